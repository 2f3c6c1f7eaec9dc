/* NVML's MIG instances and events, and what displays ask for and a stand-in need not know. */
#include "calls.h"

#include <time.h>

#define SETS_MAX 64

/* MIG */

API int nvmlDeviceGetMigMode(Device *device, uint32_t *now, uint32_t *pending)
{
    ENTER(device);
    if (device->parent != NULL)
        return leave(NVML_NOT_SUPPORTED);
    *now = *pending = device->mig;
    return leave(NVML_OK);
}

API int nvmlDeviceGetMaxMigDeviceCount(Device *device, uint32_t *count)
{
    ENTER(device);
    return tell_number(count, device->mig ? 7 : 0);
}

API int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, uint32_t index, Device **to)
{
    ENTER(device);
    if (!device->mig)
        return leave(NVML_NOT_SUPPORTED);
    Device *found = NULL;
    for (size_t i = 0; i < state.known; i++)
        if (state.devices[i].present && state.devices[i].parent == device &&
            state.devices[i].index == index)
            found = &state.devices[i];
    return tell_device(to, found);
}

API int nvmlDeviceIsMigDeviceHandle(Device *device, uint32_t *is_instance)
{
    ENTER(device);
    return tell_number(is_instance, device->parent != NULL);
}

API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *device, Device **parent)
{
    ENTER(device);
    return tell_device(parent, device->parent);
}

API int nvmlDeviceGetGpuInstanceId(Device *device, uint32_t *id)
{
    ENTER(device);
    return tell_number(id, device->parent != NULL ? device->gpu_instance : NOT_TOLD);
}

API int nvmlDeviceGetComputeInstanceId(Device *device, uint32_t *id)
{
    ENTER(device);
    return tell_number(id, device->parent != NULL ? device->compute_instance : NOT_TOLD);
}

API int nvmlDeviceGetAttributes_v2(Device *device, Attributes *attributes)
{
    ENTER(device);
    if (device->parent == NULL)
        return leave(NVML_NOT_SUPPORTED);
    *attributes = (Attributes){
        .multiprocessors = device->multiprocessors,
        .gpu_slices = device->slices,
        .compute_slices = device->slices,
        .memory_mib = device->total >> 20,
    };
    return leave(NVML_OK);
}

static bool is_whole_gpu(const Device *device, uint32_t profile)
{
    return device->mig && profile == NVML_PROFILE_WHOLE_GPU;
}

API int nvmlDeviceGetGpuInstanceProfileInfo(Device *device, uint32_t profile, InstanceProfile *to)
{
    ENTER(device);
    if (!is_whole_gpu(device, profile))
        return leave(NVML_NOT_SUPPORTED);
    *to = (InstanceProfile){.slices = 7, .instances = 1, .memory_mib = device->total >> 20};
    to->multiprocessors = device->multiprocessors;
    return leave(NVML_OK);
}

API int nvmlDeviceGetGpuInstanceProfileInfoV(Device *device, uint32_t profile,
                                             InstanceProfileV2 *to)
{
    ENTER(device);
    if (!is_whole_gpu(device, profile))
        return leave(NVML_NOT_SUPPORTED);
    *to = (InstanceProfileV2){.slices = 7, .instances = 1, .memory_mib = device->total >> 20};
    to->multiprocessors = device->multiprocessors;
    return leave(NVML_OK);
}

/* Events */

typedef struct {
    bool used;
    uint64_t seen; /* the newest event when it was created, or that it has told */
    bool registered[DEVICES_MAX];
} EventSet;

static EventSet sets[SETS_MAX];

API int nvmlEventSetCreate(EventSet **to)
{
    ENTER(NO_DEVICE);
    for (size_t i = 0; i < SETS_MAX; i++)
        if (!sets[i].used) {
            sets[i] = (EventSet){.used = true};
            if (state.events_count > 0)
                sets[i].seen = state.events[state.events_count - 1].id;
            *to = &sets[i];
            return leave(NVML_OK);
        }
    return leave(NVML_UNKNOWN);
}

API int nvmlEventSetFree(EventSet *set)
{
    ENTER(NO_DEVICE);
    set->used = false;
    return leave(NVML_OK);
}

API int nvmlDeviceGetSupportedEventTypes(Device *device, uint64_t *types)
{
    ENTER(device);
    *types = device->parent == NULL ? NVML_EVENT_XID : 0;
    return leave(NVML_OK);
}

API int nvmlDeviceRegisterEvents(Device *device, uint64_t types, EventSet *set)
{
    ENTER(device);
    if ((types & ~NVML_EVENT_XID) != 0 || device->parent != NULL)
        return leave(NVML_NOT_SUPPORTED);
    set->registered[device - state.devices] = true;
    return leave(NVML_OK);
}

static const Event *next_event(EventSet *set)
{
    for (size_t i = 0; i < state.events_count; i++) {
        const Event *event = &state.events[i];
        if (event->id <= set->seen || event->device == NULL)
            continue;
        set->seen = event->id;
        if (set->registered[event->device - state.devices])
            return event;
    }
    return NULL;
}

API int nvmlEventSetWait_v2(EventSet *set, EventData *data, uint32_t timeout_ms)
{
    ENTER(NO_DEVICE);
    int64_t end = now_ns(CLOCK_MONOTONIC) + timeout_ms * INT64_C(1000000);
    const Event *event;
    while ((event = next_event(set)) == NULL)
        if (now_ns(CLOCK_MONOTONIC) >= end)
            return leave(NVML_TIMEOUT);
        else if (!pause_a_moment())
            return leave(NVML_UNKNOWN);
    *data = (EventData){event->device, NVML_EVENT_XID, event->xid, NVML_NONE_U32, NVML_NONE_U32};
    return leave(NVML_OK);
}

/* What only displays ask for */

#define UNSUPPORTED(name)                                                                          \
    API int nvmlDeviceGet##name(Device *device)                                                    \
    {                                                                                              \
        ENTER(device);                                                                             \
        return leave(NVML_NOT_SUPPORTED);                                                          \
    }

#define DISABLED(name)                                                                             \
    API int nvmlDeviceGet##name(Device *device, uint32_t *mode)                                    \
    {                                                                                              \
        ENTER(device);                                                                             \
        return tell_number(mode, 0);                                                               \
    }

/* nvitop cannot show an instance without. */
API int nvmlDeviceGetBAR1MemoryInfo(Device *device, Memory *memory)
{
    ENTER(device);
    *memory = (Memory){device->total, device->total, 0};
    return leave(NVML_OK);
}

DISABLED(AccountingMode)
DISABLED(ComputeMode)
DISABLED(DisplayActive)
DISABLED(DisplayMode)
DISABLED(PersistenceMode)
UNSUPPORTED(AccountingBufferSize)
UNSUPPORTED(AccountingPids)
UNSUPPORTED(AccountingStats)
UNSUPPORTED(ClockInfo)
UNSUPPORTED(ConfComputeMemSizeInfo)
UNSUPPORTED(CudaComputeCapability)
UNSUPPORTED(DecoderUtilization)
UNSUPPORTED(DriverModel)
UNSUPPORTED(DriverModel_v2)
UNSUPPORTED(EncoderUtilization)
UNSUPPORTED(EnforcedPowerLimit)
UNSUPPORTED(FanSpeed)
UNSUPPORTED(FieldValues)
UNSUPPORTED(MaxClockInfo)
UNSUPPORTED(PcieThroughput)
UNSUPPORTED(PerformanceState)
UNSUPPORTED(PowerManagementLimit)
UNSUPPORTED(Serial)
UNSUPPORTED(Temperature)
UNSUPPORTED(TemperatureV)
UNSUPPORTED(TotalEccErrors)
