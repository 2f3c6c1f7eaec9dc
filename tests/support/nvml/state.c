/* Reads the folder that NVML_STAND_IN names, as seldom as it can; fails and hangs by its rules.
 *
 * `state` and the files in `processes/` hold lines of tab-separated key=value fields; both are
 * written by rename. One stat each tells whether they changed.
 */
#define _GNU_SOURCE
#include "lives.h"
#include "state.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FILE_MAX (256 * 1024)
#define FIELDS_MAX 32
#define RACY_NS 20000000 /* a file that young may change again without a new time of change */
#define PAUSE_NS 20000000

typedef struct {
    ino_t inode;
    off_t size;
    int64_t changed_ns;
    bool racy;
} Stamp;

State state;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder_name[4096];
static int folder = -1, users;
static Stamp state_stamp, claims_stamp;
static bool readable;

int64_t now_ns(int clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static bool complain(const char *what, const char *about)
{
    fprintf(stderr, "NVML stand-in: %s: %s\n", what, about);
    return false;
}

/* Who holds memory */

bool holds(const Claim *claim)
{
    if (claim->start == 0 || claim->free_after_ms == NEVER || lives_alive(claim->life))
        return true;
    return lives_dead_for_ms(claim->life) < claim->free_after_ms;
}

bool is_on(const Claim *claim, const Device *device)
{
    return claim->device == device || claim->device->parent == device;
}

/* Lines */

static Device *find_device(const char *uuid)
{
    for (size_t i = 0; i < state.known; i++)
        if (strcmp(state.devices[i].uuid, uuid) == 0)
            return &state.devices[i];
    if (state.known == DEVICES_MAX) {
        complain("too many devices", uuid);
        return NULL;
    }
    Device *device = &state.devices[state.known++];
    snprintf(device->uuid, TEXT_MAX, "%s", uuid);
    return device;
}

typedef struct {
    const char *keys[FIELDS_MAX], *values[FIELDS_MAX];
    size_t count;
} Fields;

/* Cuts a line up in place; its first field is the kind and has no value. */
static const char *cut(char *line, Fields *fields)
{
    char *rest = NULL, *kind = strtok_r(line, "\t", &rest);
    fields->count = 0;
    for (char *one; (one = strtok_r(NULL, "\t", &rest)) != NULL;) {
        char *equals = strchr(one, '=');
        if (equals == NULL || fields->count == FIELDS_MAX) {
            complain("no field, or one too many", one);
            return NULL;
        }
        *equals = 0;
        fields->keys[fields->count] = one;
        fields->values[fields->count++] = equals + 1;
    }
    return kind;
}

static const char *text(const Fields *fields, const char *key)
{
    for (size_t i = 0; i < fields->count; i++)
        if (strcmp(fields->keys[i], key) == 0)
            return fields->values[i];
    return "";
}

static int64_t number(const Fields *fields, const char *key)
{
    return strtoll(text(fields, key), NULL, 10);
}

static bool read_device(const Fields *fields)
{
    Device *device = find_device(text(fields, "uuid"));
    if (device == NULL)
        return false;
    const char *parent = text(fields, "parent");
    device->parent = *parent ? find_device(parent) : NULL;
    device->present = true;
    snprintf(device->name, TEXT_MAX, "%s", text(fields, "name"));
    device->lost = number(fields, "lost");
    device->mig = number(fields, "mig");
    device->unified = number(fields, "unified");
    device->index = (uint32_t)number(fields, "index");
    device->minor = (uint32_t)number(fields, "minor");
    device->gpu_instance = (uint32_t)number(fields, "gpu_instance");
    device->compute_instance = (uint32_t)number(fields, "compute_instance");
    device->multiprocessors = (uint32_t)number(fields, "multiprocessors");
    device->slices = (uint32_t)number(fields, "slices");
    device->total = (uint64_t)number(fields, "total");
    device->reserved = (uint64_t)number(fields, "reserved");
    device->base = (uint64_t)number(fields, "base");
    device->tells_busy = number(fields, "tells_busy");
    device->busy_percent = number(fields, "busy_percent");
    device->power_mw = number(fields, "power_mw");
    device->energy_mj = number(fields, "energy_mj");
    device->energy_since_ns = number(fields, "energy_since_ns");
    if (device->parent == NULL)
        state.gpus[state.gpus_count++] = device;
    return true;
}

static bool read_rule(const Fields *fields, const Rule *old, size_t old_count)
{
    if (state.rules_count == RULES_MAX)
        return complain("too many rules", text(fields, "function"));
    Rule *rule = &state.rules[state.rules_count++];
    const char *gpu = text(fields, "gpu");
    *rule = (Rule){
        .id = (uint64_t)number(fields, "id"),
        .does = *text(fields, "does"),
        .device = *gpu ? find_device(gpu) : NULL,
        .value = (uint32_t)number(fields, "value"),
        .times = number(fields, "times"),
    };
    snprintf(rule->function, TEXT_MAX, "%s", text(fields, "function"));
    for (size_t i = 0; i < old_count; i++)
        if (old[i].id == rule->id)
            rule->used = old[i].used;
    return true;
}

static bool read_line(const char *kind, const Fields *fields, const Rule *old, size_t old_count)
{
    if (strcmp(kind, "device") == 0)
        return read_device(fields);
    if (strcmp(kind, "rule") == 0)
        return read_rule(fields, old, old_count);
    if (strcmp(kind, "event") == 0 && state.events_count < EVENTS_MAX) {
        state.events[state.events_count++] = (Event){
            .id = (uint64_t)number(fields, "id"),
            .xid = (uint64_t)number(fields, "xid"),
            .device = find_device(text(fields, "gpu")),
        };
        return true;
    }
    if (strcmp(kind, "system") != 0)
        return complain("unknown line in state", kind);
    snprintf(state.driver, TEXT_MAX, "%s", text(fields, "driver"));
    snprintf(state.nvml, TEXT_MAX, "%s", text(fields, "nvml"));
    state.cuda = (uint32_t)number(fields, "cuda");
    state.layout = (uint32_t)number(fields, "layout");
    state.sample_ms = (uint32_t)number(fields, "sample_ms");
    return true;
}

static bool read_claim(const Fields *fields)
{
    if (state.claims_count == CLAIMS_MAX)
        return complain("too many claims", text(fields, "pid"));
    Claim *claim = &state.claims[state.claims_count];
    *claim = (Claim){
        .device = find_device(text(fields, "gpu")),
        .pid = (uint32_t)number(fields, "pid"),
        .start = (uint64_t)number(fields, "start"),
        .bytes = (uint64_t)number(fields, "bytes"),
        .tells_bytes = number(fields, "tells_bytes"),
        .busy_percent = number(fields, "busy_percent"),
        .free_after_ms = number(fields, "free_after_ms"),
    };
    snprintf(claim->contexts, sizeof claim->contexts, "%s", text(fields, "contexts"));
    if (claim->device == NULL)
        return false;
    state.claims_count++;
    return claim->start == 0 || lives_name(claim->pid, claim->start, &claim->life);
}

/* Files */

/* NULL where there is none; the text is good until the next call. */
static char *read_file(int at, const char *name)
{
    static char content[FILE_MAX];
    int file = openat(at, name, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return NULL;
    ssize_t got = read(file, content, sizeof content - 1);
    close(file);
    if (got < 0 || got == sizeof content - 1) {
        complain("unreadable or too long", name);
        return NULL;
    }
    content[got] = 0;
    return content;
}

static bool read_state(void)
{
    static Rule old[RULES_MAX];
    size_t old_count = state.rules_count;
    char *content = read_file(folder, "state"), *rest = NULL;
    Fields fields;
    if (content == NULL)
        return false;
    memcpy(old, state.rules, sizeof old);
    for (size_t i = 0; i < state.known; i++)
        state.devices[i].present = false;
    state.gpus_count = state.rules_count = state.events_count = 0;
    for (char *line; (line = strtok_r(content, "\n", &rest)) != NULL; content = NULL) {
        const char *kind = cut(line, &fields);
        if (kind == NULL || !read_line(kind, &fields, old, old_count))
            return false;
    }
    return true;
}

static bool read_claims(void)
{
    int at = openat(folder, "processes", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listed = at < 0 ? NULL : fdopendir(at);
    Fields fields;
    bool good = listed != NULL;
    if (!good)
        return false;
    lives_begin();
    state.claims_count = 0;
    for (struct dirent *found; good && (found = readdir(listed)) != NULL;) {
        if (found->d_name[0] == '.')
            continue;
        char *content = read_file(at, found->d_name), *rest = NULL;
        if (content == NULL) /* it is gone already */
            continue;
        for (char *line; good && (line = strtok_r(content, "\n", &rest)) != NULL; content = NULL)
            good = cut(line, &fields) != NULL && read_claim(&fields);
    }
    closedir(listed);
    lives_end();
    return good;
}

/* -1 where there is no such file; else whether it has changed since it was read. */
static int changed(const char *name, Stamp *stamp)
{
    struct stat found;
    if (fstatat(folder, name, &found, 0) != 0)
        return -1;
    int64_t at = found.st_mtim.tv_sec * INT64_C(1000000000) + found.st_mtim.tv_nsec;
    bool same = found.st_ino == stamp->inode && found.st_size == stamp->size &&
                at == stamp->changed_ns;
    if (same && !stamp->racy)
        return 0;
    *stamp = (Stamp){found.st_ino, found.st_size, at, now_ns(CLOCK_REALTIME) - at < RACY_NS};
    return 1;
}

static bool refresh(void)
{
    int new_state = changed("state", &state_stamp);
    int new_claims = changed("processes", &claims_stamp);
    if (new_state < 0 || new_claims < 0)
        return false;
    bool again = !readable;
    readable = (!new_state && !again) || read_state();
    readable = readable && ((!new_claims && !again) || read_claims());
    if (readable)
        lives_notice_deaths();
    return readable;
}

/* Calls */

static bool concerns(const Rule *rule, const char *function, const Device *device)
{
    if (strcmp(rule->function, "*") != 0 && strcmp(rule->function, function) != 0)
        return false;
    if (rule->times != NO_LIMIT && rule->used >= rule->times)
        return false;
    return rule->device == NULL || rule->device == device || rule->device == device->parent;
}

uint32_t growth(const char *function, Device *device)
{
    for (size_t i = 0; i < state.rules_count; i++)
        if (state.rules[i].does == 'g' && concerns(&state.rules[i], function, device)) {
            state.rules[i].used++;
            return state.rules[i].value;
        }
    return 0;
}

static int obey(const char *function, const Device *device, bool *hangs)
{
    *hangs = false;
    for (size_t i = 0; i < state.rules_count; i++) {
        Rule *rule = &state.rules[i];
        if (rule->does == 'g' || !concerns(rule, function, device))
            continue;
        rule->used++;
        *hangs = rule->does == 'h';
        return *hangs ? NVML_OK : (int)rule->value;
    }
    return NVML_OK;
}

static bool is_lost(const Device *device)
{
    return device->lost || !device->present || (device->parent != NULL && is_lost(device->parent));
}

static int admit(const char *function, Device *device)
{
    bool ours = device >= state.devices && device < state.devices + state.known;
    bool none = device == NO_DEVICE;
    bool hangs = false;
    int code = NVML_OK;
    if (users == 0)
        return NVML_UNINITIALIZED;
    if (!ours && !none)
        return NVML_INVALID_ARGUMENT;
    bool good = refresh();
    while (good) {
        code = obey(function, device, &hangs);
        if (!hangs)
            break;
        good = pause_a_moment();
    }
    if (!good)
        return NVML_UNKNOWN;
    return code == NVML_OK && !none && is_lost(device) ? NVML_GPU_IS_LOST : code;
}

bool pause_a_moment(void)
{
    struct timespec moment = {.tv_nsec = PAUSE_NS};
    pthread_mutex_unlock(&lock);
    nanosleep(&moment, NULL);
    pthread_mutex_lock(&lock);
    return refresh();
}

int enter(const char *function, Device *device)
{
    pthread_mutex_lock(&lock);
    int code = admit(function, device);
    return code == NVML_OK ? code : leave(code);
}

int leave(int code)
{
    pthread_mutex_unlock(&lock);
    return code;
}

/* A child shares its parent's epoll set, and what it took out would be missing for the parent. */
static void after_fork(void)
{
    pthread_mutex_init(&lock, NULL);
    if (folder >= 0)
        lives_restart(folder, true);
    claims_stamp = (Stamp){0};
}

static bool open_folder(void)
{
    static bool prepared;
    const char *name = getenv("NVML_STAND_IN");
    if (!prepared)
        pthread_atfork(NULL, NULL, after_fork);
    prepared = true;
    if (name == NULL || strlen(name) >= sizeof folder_name)
        return complain("NVML_STAND_IN names no folder", name == NULL ? "unset" : name);
    if (folder >= 0 && strcmp(name, folder_name) == 0)
        return true;
    if (folder >= 0)
        close(folder);
    memset(&state, 0, sizeof state);
    users = 0;
    readable = false;
    state_stamp = claims_stamp = (Stamp){0};
    folder = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    lives_restart(folder, false);
    strcpy(folder_name, name);
    return folder >= 0 || complain("no such folder", name);
}

int enter_first(const char *function)
{
    pthread_mutex_lock(&lock);
    if (!open_folder())
        return leave(NVML_DRIVER_NOT_LOADED);
    users++;
    int code = admit(function, NO_DEVICE);
    if (code == NVML_OK)
        return code;
    users--;
    return leave(code);
}

int leave_last(void)
{
    users--;
    return leave(NVML_OK);
}
