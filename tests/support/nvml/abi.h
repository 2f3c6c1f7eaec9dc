/* The part of NVML's C interface that the stand-in speaks: codes, constants and memory layouts.
 *
 * Sizes are those of x86-64 and AArch64 and are asserted; nothing here has state or behaviour.
 */
#ifndef BURSAR_NVML_ABI_H
#define BURSAR_NVML_ABI_H

#include <stdint.h>

enum {
    NVML_OK = 0,
    NVML_UNINITIALIZED = 1,
    NVML_INVALID_ARGUMENT = 2,
    NVML_NOT_SUPPORTED = 3,
    NVML_NOT_FOUND = 6,
    NVML_INSUFFICIENT_SIZE = 7,
    NVML_DRIVER_NOT_LOADED = 9,
    NVML_TIMEOUT = 10,
    NVML_GPU_IS_LOST = 15,
    NVML_VERSION_MISMATCH = 25,
    NVML_UNKNOWN = 999,
};

#define NVML_NONE_U32 UINT32_MAX /* the GPU instance of a process on a device without MIG */
#define NVML_NONE_U64 UINT64_MAX /* bytes that the driver does not tell */
#define NVML_EVENT_XID UINT64_C(8)
#define NVML_PROFILE_WHOLE_GPU 4u /* the instance profile of all seven slices */

typedef struct {
    uint64_t total, free, used;
} Memory;

typedef struct {
    uint32_t version;
    uint64_t total, reserved, free, used;
} MemoryV2;

typedef struct {
    uint32_t gpu, memory;
} Utilization;

typedef struct {
    char bus_id_legacy[16];
    uint32_t domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} PciInfo;

typedef struct {
    uint32_t pid;
    uint64_t bytes;
    uint32_t gpu_instance, compute_instance;
    uint64_t protected_bytes;
} ProcessDetail;

typedef struct {
    uint32_t version, mode, count;
    ProcessDetail *processes;
} ProcessDetailList;

typedef struct {
    uint32_t pid;
    uint64_t time_us;
    uint32_t sm, memory, encoder, decoder;
} UtilizationSample;

typedef struct {
    uint64_t time_us;
    uint32_t pid, sm, memory, encoder, decoder, jpeg, ofa;
} UtilizationInfo;

typedef struct {
    uint32_t version, count;
    uint64_t last_seen_us;
    UtilizationInfo *infos;
} UtilizationInfoList;

typedef struct {
    uint32_t multiprocessors, copy_engines, decoders, encoders, jpegs, ofas;
    uint32_t gpu_slices, compute_slices;
    uint64_t memory_mib;
} Attributes;

typedef struct {
    uint32_t id, is_p2p, slices, instances, multiprocessors;
    uint32_t copy_engines, decoders, encoders, jpegs, ofas;
    uint64_t memory_mib;
} InstanceProfile;

typedef struct {
    uint32_t version, id, is_p2p, slices, instances, multiprocessors;
    uint32_t copy_engines, decoders, encoders, jpegs, ofas;
    uint64_t memory_mib;
    char name[96];
} InstanceProfileV2;

typedef struct {
    void *device;
    uint64_t type, data;
    uint32_t gpu_instance, compute_instance;
} EventData;

_Static_assert(sizeof(Memory) == 24 && sizeof(MemoryV2) == 40, "memory");
_Static_assert(sizeof(PciInfo) == 68 && sizeof(Utilization) == 8, "device");
_Static_assert(sizeof(ProcessDetail) == 32 && sizeof(ProcessDetailList) == 24, "details");
_Static_assert(sizeof(UtilizationSample) == 32, "samples");
_Static_assert(sizeof(UtilizationInfo) == 40 && sizeof(UtilizationInfoList) == 24, "infos");
_Static_assert(sizeof(Attributes) == 40 && sizeof(EventData) == 32, "attributes and events");

#endif
