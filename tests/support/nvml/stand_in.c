/* A stand-in for libnvidia-ml.so.1: NVML's C functions, answered from a folder of plain files.
 *
 * For tests of whatever speaks NVML, where there is no GPU. A process holds memory here only while
 * it really lives. The functions check and fill in what a caller gave; `state` holds what is to be
 * told. Answers follow the driver's documentation, and its known oddities where they are asked for.
 * This file has the library, devices, memory and process lists; `meters.c` and `extras.c` the rest.
 */
#include "calls.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define CORES_PER_MULTIPROCESSOR 128

static int tell_text(char *to, uint32_t room, const char *text)
{
    if (strlen(text) >= room)
        return leave(NVML_INSUFFICIENT_SIZE);
    strcpy(to, text);
    return leave(NVML_OK);
}

/* The library and the driver */

API int nvmlInit_v2(void)
{
    int code = enter_first(__func__);
    return code == NVML_OK ? leave(code) : code;
}

API int nvmlInitWithFlags(uint32_t flags)
{
    (void)flags; /* without GPUs it is no error here either way */
    int code = enter_first(__func__);
    return code == NVML_OK ? leave(code) : code;
}

API int nvmlShutdown(void)
{
    ENTER(NO_DEVICE);
    return leave_last();
}

API const char *nvmlErrorString(int code)
{
    static _Thread_local char text[32];
    snprintf(text, sizeof text, "Stand-in error %d", code);
    return text;
}

API int nvmlSystemGetDriverVersion(char *version, uint32_t room)
{
    ENTER(NO_DEVICE);
    return tell_text(version, room, state.driver);
}

API int nvmlSystemGetNVMLVersion(char *version, uint32_t room)
{
    ENTER(NO_DEVICE);
    return tell_text(version, room, state.nvml);
}

API int nvmlSystemGetCudaDriverVersion(uint32_t *version)
{
    ENTER(NO_DEVICE);
    return tell_number(version, state.cuda);
}

API int nvmlSystemGetCudaDriverVersion_v2(uint32_t *version)
{
    ENTER(NO_DEVICE);
    return tell_number(version, state.cuda);
}

/* Devices */

API int nvmlDeviceGetCount_v2(uint32_t *count)
{
    ENTER(NO_DEVICE);
    return tell_number(count, (int64_t)state.gpus_count);
}

API int nvmlDeviceGetHandleByIndex_v2(uint32_t index, Device **device)
{
    ENTER(NO_DEVICE);
    if (index >= state.gpus_count)
        return leave(NVML_INVALID_ARGUMENT);
    return tell_device(device, state.gpus[index]);
}

API int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device)
{
    ENTER(NO_DEVICE);
    Device *found = NULL;
    for (size_t i = 0; i < state.known; i++)
        if (state.devices[i].present && strcmp(state.devices[i].uuid, uuid) == 0)
            found = &state.devices[i];
    return tell_device(device, found);
}

static void bus_id(const Device *device, char *to, size_t room, int domain_digits)
{
    snprintf(to, room, "%0*X:%02X:00.0", domain_digits, 0u, (device->minor + 1) & 0xFFu);
}

API int nvmlDeviceGetHandleByPciBusId_v2(const char *id, Device **device)
{
    ENTER(NO_DEVICE);
    Device *found = NULL;
    char expected[32];
    for (size_t i = 0; i < state.gpus_count; i++) {
        bus_id(state.gpus[i], expected, sizeof expected, 8);
        if (strcasecmp(expected, id) == 0)
            found = state.gpus[i];
    }
    return tell_device(device, found);
}

API int nvmlDeviceGetPciInfo_v3(Device *device, PciInfo *info)
{
    ENTER(device);
    if (device->parent != NULL)
        device = device->parent;
    *info = (PciInfo){.bus = device->minor + 1, .device_id = 0x233010DE};
    bus_id(device, info->bus_id_legacy, sizeof info->bus_id_legacy, 4);
    bus_id(device, info->bus_id, sizeof info->bus_id, 8);
    return leave(NVML_OK);
}

API int nvmlDeviceGetIndex(Device *device, uint32_t *index)
{
    ENTER(device);
    return tell_number(index, device->index);
}

API int nvmlDeviceGetMinorNumber(Device *device, uint32_t *minor)
{
    ENTER(device);
    return tell_number(minor, device->parent == NULL ? device->minor : NOT_TOLD);
}

API int nvmlDeviceGetUUID(Device *device, char *uuid, uint32_t room)
{
    ENTER(device);
    return tell_text(uuid, room, device->uuid);
}

API int nvmlDeviceGetName(Device *device, char *name, uint32_t room)
{
    ENTER(device);
    return tell_text(name, room, device->name);
}

API int nvmlDeviceGetNumGpuCores(Device *device, uint32_t *cores)
{
    ENTER(device);
    int64_t all = (int64_t)device->multiprocessors * CORES_PER_MULTIPROCESSOR;
    return tell_number(cores, device->parent == NULL ? all : NOT_TOLD);
}

/* Memory */

static uint64_t used_bytes(const Device *device)
{
    uint64_t used = device->base;
    for (size_t i = 0; i < state.claims_count; i++)
        if (is_on(&state.claims[i], device) && holds(&state.claims[i]))
            used += state.claims[i].bytes;
    return used;
}

static uint64_t free_bytes(const Device *device, uint64_t used)
{
    uint64_t taken = used + device->reserved;
    return taken < device->total ? device->total - taken : 0;
}

API int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory)
{
    ENTER(device);
    if (device->unified)
        return leave(NVML_NOT_SUPPORTED);
    uint64_t used = used_bytes(device);
    *memory = (Memory){device->total, free_bytes(device, used), used + device->reserved};
    return leave(NVML_OK);
}

API int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory)
{
    ENTER(device);
    if (memory->version != (sizeof *memory | 2u << 24))
        return leave(NVML_VERSION_MISMATCH);
    if (device->unified)
        return leave(NVML_NOT_SUPPORTED);
    uint64_t used = used_bytes(device);
    memory->total = device->total;
    memory->reserved = device->reserved;
    memory->free = free_bytes(device, used);
    memory->used = used;
    return leave(NVML_OK);
}

/* Processes */

static uint32_t instance(const Claim *claim, uint32_t id)
{
    return claim->device->parent == NULL ? NVML_NONE_U32 : id;
}

static bool is_listed(const Claim *claim, const Device *device, char context)
{
    return is_on(claim, device) && strchr(claim->contexts, context) != NULL && holds(claim);
}

static ProcessDetail told(const Claim *claim)
{
    return (ProcessDetail){
        .pid = claim->pid,
        .bytes = claim->tells_bytes ? claim->bytes : NVML_NONE_U64,
        .gpu_instance = instance(claim, claim->device->gpu_instance),
        .compute_instance = instance(claim, claim->device->compute_instance),
    };
}

/* The layouts of all ages are the first bytes of the longest one. */
static int list(const char *function, Device *device, char context, size_t stride, uint32_t *count,
                void *to)
{
    int entered = enter(function, device);
    if (entered != NVML_OK)
        return entered;
    stride = stride == 0 ? state.layout : stride;
    uint32_t found = 0, room = to == NULL ? 0 : *count;
    for (size_t i = 0; i < state.claims_count; i++)
        found += is_listed(&state.claims[i], device, context);
    *count = found;
    if (found == 0)
        return leave(NVML_OK);
    uint32_t wanted = found + (to == NULL ? 0 : growth(function, device));
    if (room < wanted) {
        *count = wanted;
        return leave(NVML_INSUFFICIENT_SIZE);
    }
    char *at = to;
    for (size_t i = 0; i < state.claims_count; i++)
        if (is_listed(&state.claims[i], device, context)) {
            ProcessDetail detail = told(&state.claims[i]);
            memcpy(at, &detail, stride);
            at += stride;
        }
    return leave(NVML_OK);
}

#define LISTS(kind, context)                                                                       \
    API int nvmlDeviceGet##kind##RunningProcesses(Device *device, uint32_t *count, void *to)       \
    {                                                                                              \
        return list(__func__, device, context, 16, count, to);                                     \
    }                                                                                              \
    API int nvmlDeviceGet##kind##RunningProcesses_v2(Device *device, uint32_t *count, void *to)    \
    {                                                                                              \
        return list(__func__, device, context, 24, count, to);                                     \
    }                                                                                              \
    API int nvmlDeviceGet##kind##RunningProcesses_v3(Device *device, uint32_t *count, void *to)    \
    {                                                                                              \
        return list(__func__, device, context, 0, count, to);                                     \
    }

LISTS(Compute, 'C')
LISTS(Graphics, 'G')
LISTS(MPSCompute, 'M')

API int nvmlDeviceGetRunningProcessDetailList(Device *device, ProcessDetailList *listed)
{
    ENTER(device);
    if (listed->version != (sizeof *listed | 1u << 24))
        return leave(NVML_VERSION_MISMATCH);
    if (listed->mode > 2)
        return leave(NVML_INVALID_ARGUMENT);
    char context = "CGM"[listed->mode];
    uint32_t found = 0, room = listed->processes == NULL ? 0 : listed->count;
    for (size_t i = 0; i < state.claims_count; i++)
        if (is_listed(&state.claims[i], device, context)) {
            if (found < room)
                listed->processes[found] = told(&state.claims[i]);
            found++;
        }
    listed->count = found;
    return leave(found > room ? NVML_INSUFFICIENT_SIZE : NVML_OK);
}
