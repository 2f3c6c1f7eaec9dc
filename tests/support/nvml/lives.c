/* Watches processes by pidfds in an epoll set: a call costs the same however many there are.
 *
 * A process is its pid and start time. `died/` in the folder notes when each died, so that all
 * readers agree on it, those that start later too. Nobody is signalled.
 */
#define _GNU_SOURCE
#include "lives.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PLACES (2 * LIVES_MAX) /* half empty: a search is short */
#define PID_BITS 22

typedef struct {
    uint64_t key; /* start time and pid; 0: an empty place */
    int pidfd;    /* -1: it is dead */
    int64_t died_ms;
} Life;

static Life tables[2][PLACES];
static Life *lives = tables[0], *next = tables[1];
static int folder = -1, epoll = -1;

static int64_t now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time.tv_sec * INT64_C(1000) + time.tv_nsec / 1000000;
}

static Life *find(Life *table, uint64_t key)
{
    size_t at = (size_t)(key * UINT64_C(0x9E3779B97F4A7C15) >> 40) % PLACES;
    while (table[at].key != 0 && table[at].key != key)
        at = (at + 1) % PLACES;
    return &table[at];
}

static uint64_t start_time(uint32_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    text[got < 0 ? 0 : got] = 0;
    char *at = strrchr(text, ')'); /* the name before it may hold anything */
    for (int field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at == NULL ? 0 : strtoull(at, NULL, 10);
}

/* The first reader who sees a process dead notes it; all others take the time from there. */
static void note_death(Life *life)
{
    char path[64];
    struct stat found;
    life->pidfd = -1;
    life->died_ms = now_ms();
    snprintf(path, sizeof path, "died/%llu", (unsigned long long)life->key);
    int file = openat(folder, path, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    if (file < 0)
        return;
    if (fstat(file, &found) == 0)
        life->died_ms = found.st_mtim.tv_sec * INT64_C(1000) + found.st_mtim.tv_nsec / 1000000;
    close(file);
}

static void unwatch(Life *life)
{
    /* A forked child may hold the pidfd too: closing alone would leave it in the set. */
    epoll_ctl(epoll, EPOLL_CTL_DEL, life->pidfd, NULL);
    close(life->pidfd);
    life->pidfd = -1;
}

static bool watch(Life *life, uint64_t key, uint32_t pid, uint64_t start)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = key};
    life->key = key;
    life->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (life->pidfd < 0 && errno != ESRCH && errno != EINVAL) {
        fprintf(stderr, "NVML stand-in: no pidfd of %u: %s\n", pid, strerror(errno));
        return false;
    }
    if (life->pidfd >= 0 && start_time(pid) == start)
        return epoll_ctl(epoll, EPOLL_CTL_ADD, life->pidfd, &event) == 0;
    if (life->pidfd >= 0) /* the number belongs to another process now */
        close(life->pidfd);
    note_death(life);
    return true;
}

void lives_restart(int new_folder, bool forked)
{
    for (size_t i = 0; i < PLACES; i++)
        if (lives[i].key != 0 && lives[i].pidfd >= 0) {
            if (forked) /* the epoll set is the parent's, who goes on watching */
                close(lives[i].pidfd);
            else
                unwatch(&lives[i]);
        }
    memset(tables, 0, sizeof tables);
    if (epoll >= 0)
        close(epoll);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    folder = new_folder;
}

void lives_begin(void)
{
    memset(next, 0, sizeof tables[0]);
}

bool lives_name(uint32_t pid, uint64_t start, size_t *place)
{
    uint64_t key = start << PID_BITS | pid;
    Life *life = find(next, key), *known = find(lives, key);
    *place = (size_t)(life - next);
    if (life->key == key)
        return true;
    if (known->key != key)
        return watch(life, key, pid, start);
    *life = *known;
    known->pidfd = -1; /* it has moved */
    return true;
}

void lives_end(void)
{
    for (size_t i = 0; i < PLACES; i++)
        if (lives[i].key != 0 && lives[i].pidfd >= 0)
            unwatch(&lives[i]);
    Life *old = lives;
    lives = next;
    next = old;
}

void lives_notice_deaths(void)
{
    struct epoll_event events[64];
    int count;
    do {
        count = epoll_wait(epoll, events, 64, 0);
        for (int i = 0; i < count; i++) {
            Life *life = find(lives, events[i].data.u64);
            unwatch(life);
            note_death(life);
        }
    } while (count == 64);
}

bool lives_alive(size_t place)
{
    return lives[place].pidfd >= 0;
}

int64_t lives_dead_for_ms(size_t place)
{
    return now_ms() - lives[place].died_ms;
}
