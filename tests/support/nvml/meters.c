/* NVML's meters: utilisation of devices and processes, power, energy. */
#include "calls.h"

#include <time.h>

/* Utilisation */

static bool has_sample(const Claim *claim, const Device *device)
{
    return is_on(claim, device) && claim->busy_percent > 0 && holds(claim);
}

/* Samples are taken at the same moments for all; 0 where none is newer than what was seen. */
static uint64_t newest_sample_us(uint64_t last_seen_us)
{
    uint64_t period = (state.sample_ms > 0 ? state.sample_ms : 1) * UINT64_C(1000);
    uint64_t newest = (uint64_t)now_ns(CLOCK_REALTIME) / 1000 / period * period;
    return newest > last_seen_us ? newest : 0;
}

/* How many samples there are to tell, with the lock held; or a code below zero, without. */
static int64_t samples(const char *function, Device *device, uint64_t last_seen_us)
{
    int code = enter(function, device);
    if (code != NVML_OK)
        return -code;
    if (device->mig || device->parent != NULL)
        return -leave(NVML_NOT_SUPPORTED);
    int64_t count = 0;
    if (newest_sample_us(last_seen_us) != 0)
        for (size_t i = 0; i < state.claims_count; i++)
            count += has_sample(&state.claims[i], device);
    return count > 0 ? count : -leave(NVML_NOT_FOUND);
}

API int nvmlDeviceGetProcessUtilization(Device *device, UtilizationSample *to, uint32_t *count,
                                        uint64_t last_seen_us)
{
    int64_t found = samples(__func__, device, last_seen_us);
    if (found < 0)
        return (int)-found;
    uint32_t room = to == NULL ? 0 : *count, at = 0;
    *count = (uint32_t)found;
    if (room < found)
        return leave(NVML_INSUFFICIENT_SIZE);
    for (size_t i = 0; i < state.claims_count; i++)
        if (has_sample(&state.claims[i], device))
            to[at++] = (UtilizationSample){
                .pid = state.claims[i].pid,
                .time_us = newest_sample_us(0),
                .sm = (uint32_t)state.claims[i].busy_percent,
            };
    return leave(NVML_OK);
}

API int nvmlDeviceGetProcessesUtilizationInfo(Device *device, UtilizationInfoList *listed)
{
    int64_t found = samples(__func__, device, listed->last_seen_us);
    if (found < 0)
        return (int)-found;
    if (listed->version != (sizeof *listed | 1u << 24))
        return leave(NVML_VERSION_MISMATCH);
    uint32_t room = listed->infos == NULL ? 0 : listed->count, at = 0;
    listed->count = (uint32_t)found;
    if (room < found)
        return leave(NVML_INSUFFICIENT_SIZE);
    for (size_t i = 0; i < state.claims_count; i++)
        if (has_sample(&state.claims[i], device))
            listed->infos[at++] = (UtilizationInfo){
                .pid = state.claims[i].pid,
                .time_us = newest_sample_us(0),
                .sm = (uint32_t)state.claims[i].busy_percent,
            };
    return leave(NVML_OK);
}

API int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates)
{
    ENTER(device);
    if (!device->tells_busy || device->mig || device->parent != NULL)
        return leave(NVML_NOT_SUPPORTED);
    int64_t busy = device->busy_percent;
    if (busy == BUSY_SUM) {
        busy = 0;
        for (size_t i = 0; i < state.claims_count; i++)
            if (has_sample(&state.claims[i], device))
                busy += state.claims[i].busy_percent;
        busy = busy > 100 ? 100 : busy;
    }
    *rates = (Utilization){.gpu = (uint32_t)busy};
    return leave(NVML_OK);
}

/* Energy */

API int nvmlDeviceGetPowerUsage(Device *device, uint32_t *milliwatts)
{
    ENTER(device);
    return tell_number(milliwatts, device->power_mw);
}

API int nvmlDeviceGetTotalEnergyConsumption(Device *device, uint64_t *millijoules)
{
    ENTER(device);
    if (device->energy_mj == NOT_TOLD)
        return leave(NVML_NOT_SUPPORTED);
    *millijoules = (uint64_t)device->energy_mj;
    if (device->energy_since_ns != 0 && device->power_mw != NOT_TOLD) {
        int64_t passed_us = (now_ns(CLOCK_MONOTONIC) - device->energy_since_ns) / 1000;
        *millijoules += (uint64_t)(passed_us * device->power_mw / 1000000);
    }
    return leave(NVML_OK);
}
