/* What the folder says now: devices, what processes claim, rules and events.
 *
 * Every call of the library is `enter` (which reads what has changed, and fails or hangs where a
 * rule says so), then a look at the tables below, then `leave`.
 */
#ifndef BURSAR_NVML_STATE_H
#define BURSAR_NVML_STATE_H

#include "abi.h"

#include <stdbool.h>
#include <stddef.h>

#define DEVICES_MAX 128 /* GPUs and MIG instances, counted from the library's start */
#define CLAIMS_MAX 4096
#define RULES_MAX 64
#define EVENTS_MAX 64
#define TEXT_MAX 96

#define BUSY_SUM (-1) /* a device is as busy as its processes are together */
#define NOT_TOLD INT64_C(-1) /* a figure that the device does not support */
#define NEVER (-1)    /* memory that is not freed when its process dies */
#define NO_LIMIT (-1) /* a rule that holds until it is removed */

typedef struct Device {
    char uuid[TEXT_MAX], name[TEXT_MAX];
    bool present, lost, mig, unified;
    struct Device *parent; /* of a MIG instance */
    uint32_t index;        /* of a MIG instance: its slot */
    uint32_t minor, gpu_instance, compute_instance, multiprocessors, slices;
    uint64_t total, reserved, base;
    bool tells_busy;
    int64_t busy_percent, power_mw, energy_mj;
    int64_t energy_since_ns; /* CLOCK_MONOTONIC; 0 where the counter stands still */
} Device;

/* What one process holds on one device. */
typedef struct {
    Device *device;
    uint32_t pid;
    uint64_t start; /* /proc/PID/stat, field 22; 0 where no process has to live for it */
    uint64_t bytes;
    bool tells_bytes;
    char contexts[4]; /* of C, G and M */
    int64_t busy_percent;
    int64_t free_after_ms;
    size_t life;
} Claim;

typedef struct {
    uint64_t id;
    char does; /* f: fails with the value; h: hangs; g: the list wants so many entries more */
    char function[TEXT_MAX];
    Device *device;
    uint32_t value;
    int64_t times, used;
} Rule;

typedef struct {
    uint64_t id, xid;
    Device *device;
} Event;

typedef struct {
    Device nothing;
    char driver[TEXT_MAX], nvml[TEXT_MAX];
    uint32_t cuda, layout, sample_ms;
    Device devices[DEVICES_MAX];
    size_t known; /* devices ever named; handles stay what they are */
    Device *gpus[DEVICES_MAX];
    size_t gpus_count;
    Claim claims[CLAIMS_MAX];
    size_t claims_count;
    Rule rules[RULES_MAX];
    size_t rules_count;
    Event events[EVENTS_MAX];
    size_t events_count;
} State;

extern State state;

#define NO_DEVICE (&state.nothing) /* of a call that is about none */

/* Takes the lock; on any other code than NVML_OK it is not held. */
int enter(const char *function, Device *device);
int leave(int code);

/* As `enter` and `leave`; whoever the folder belongs to now is read from the environment. */
int enter_first(const char *function);
int leave_last(void);

/* Gives the lock up for a moment, and reads what has changed since. */
bool pause_a_moment(void);

/* How many entries more than there are a list has to have room for. */
uint32_t growth(const char *function, Device *device);

bool holds(const Claim *claim);
bool is_on(const Claim *claim, const Device *device);
int64_t now_ns(int clock);

#endif
