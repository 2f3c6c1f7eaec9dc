/* What all exported functions share: how a call opens, and how it tells what was asked. */
#ifndef BURSAR_NVML_CALLS_H
#define BURSAR_NVML_CALLS_H

#include "state.h"

#define API __attribute__((visibility("default")))

/* Opens a call: returns its failure, or goes on with the lock held. */
#define ENTER(device)                                                                              \
    do {                                                                                           \
        int code = enter(__func__, device);                                                        \
        if (code != NVML_OK)                                                                       \
            return code;                                                                           \
    } while (0)

static inline int tell_number(uint32_t *to, int64_t value)
{
    if (value == NOT_TOLD)
        return leave(NVML_NOT_SUPPORTED);
    *to = (uint32_t)value;
    return leave(NVML_OK);
}

static inline int tell_device(Device **to, Device *device)
{
    if (device == NULL)
        return leave(NVML_NOT_FOUND);
    *to = device;
    return leave(device->lost ? NVML_GPU_IS_LOST : NVML_OK);
}

#endif
