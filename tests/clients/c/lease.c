/* Debits a lease on shared memory, as rust/lease/src/layout.rs says.
 *
 *     lease SOCKET RESERVATION AHEAD detach|leave
 *
 * Debits one token at a time until it is stopped: by the verdict, or because the grant is used up.
 * With AHEAD the daemon raises the grant unasked, so this needs no gRPC. At the end it detaches,
 * which keeps the reservation for somebody to commit, or just leaves: then the daemon settles it at
 * what was debited. Prints what it saw as one line of JSON.
 *
 * The lease is for the process that reserved; launch.py reserves and becomes this program. Numbers
 * are little-endian, and so has to be the host.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef LAYOUT_VERSION
#define LAYOUT_VERSION 1
#endif

enum { MAGIC = 0x4c535242 /* "BRSL" */, PAGE_BYTES = 4096, WORD = 64 };
enum { CLOSED_NAPS = 100000 /* 5 s */, GRANT_NAPS = 1000 /* 1 s */ };
enum { ATTACH = 1, DETACH = 2, TOKENS = 0, STOP = 3, ID_BYTES = 64 };

static const uint64_t COUNT = (UINT64_C(1) << 48) - 1; /* the bits of used and granted */
static const uint64_t CLOSED = UINT64_C(1) << 63;      /* of the usage word */
static const uint64_t ENDED = UINT64_C(1) << 51;       /* of the control word */

struct request {
    uint32_t magic;
    uint16_t version, kind;
    uint64_t tag, claim_or_lease;
    int64_t ahead, at_most, usage[4];
    uint8_t unit, id_length, reserved[6];
    char id[ID_BYTES];
};

struct answer {
    uint32_t magic;
    uint16_t version, status;
    uint64_t tag, used, granted, lease;
    uint16_t message_length, reserved[3];
    char message[208];
};

_Static_assert(sizeof(struct request) == 144, "a request's bytes");
_Static_assert(sizeof(struct answer) == 256, "an answer's bytes");

struct lease {
    int socket;
    uint64_t number;
    _Atomic uint64_t *usage;
    const _Atomic uint64_t *control;
};

enum outcome { DEBITED, EXHAUSTED, OVER };

static void die(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void die_of_errno(const char *what) {
    perror(what);
    exit(1);
}

static void nap(long microseconds) {
    nanosleep(&(struct timespec){.tv_nsec = microseconds * 1000}, NULL);
}

/* Sends a request and receives its answer, with two descriptors where the answer brings some. */
static struct answer ask(int socket, struct request *request, int fds[2]) {
    request->magic = MAGIC;
    request->version = LAYOUT_VERSION;
    if (send(socket, request, sizeof *request, MSG_NOSIGNAL) != sizeof *request)
        die_of_errno("cannot ask");
    struct answer answer;
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(2 * sizeof(int))];
    } beside;
    struct iovec part = {&answer, sizeof answer};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &beside,
        .msg_controllen = sizeof beside,
    };
    ssize_t length = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (length < 0 && errno != ECONNRESET)
        die_of_errno("no answer");
    if (length <= 0)
        die("the daemon hung up: it may speak another version of the layout");
    if (length != sizeof answer || answer.magic != MAGIC || answer.version != LAYOUT_VERSION)
        die("the answer is of another version of the layout");
    if (answer.status != 0) {
        int cut = answer.message_length < 208 ? answer.message_length : 208;
        fprintf(stderr, "refused, reason %d: %.*s\n", answer.status, cut, answer.message);
        exit(1);
    }
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    if (fds != NULL) {
        if (rights == NULL || rights->cmsg_type != SCM_RIGHTS ||
            rights->cmsg_len != CMSG_LEN(2 * sizeof(int)))
            die("the answer came without its pages");
        memcpy(fds, CMSG_DATA(rights), 2 * sizeof(int));
    }
    return answer;
}

/* Maps a page and closes its descriptor, which the mapping does not need. */
static char *map_page(int fd, int protection) {
    char *page = mmap(NULL, PAGE_BYTES, protection, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        die_of_errno("cannot map a page");
    close(fd);
    uint32_t head[2];
    memcpy(head, page, sizeof head);
    if (head[0] != MAGIC || head[1] != LAYOUT_VERSION)
        die("the page is of another version of the layout");
    return page;
}

static struct lease attach(const char *path, const char *reservation, int64_t ahead) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(reservation);
    if (strlen(path) >= sizeof address.sun_path || length > ID_BYTES)
        die("the socket's path or the reservation's id is too long");
    strcpy(address.sun_path, path);
    struct lease lease = {.socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
    struct timeval patience = {.tv_sec = 5};
    setsockopt(lease.socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(lease.socket, (struct sockaddr *)&address, sizeof address) != 0)
        die_of_errno("cannot reach the lease socket");
    struct request request = {
        .kind = ATTACH, .ahead = ahead, .unit = TOKENS, .id_length = (uint8_t)length};
    memcpy(request.id, reservation, length);
    int fds[2];
    lease.number = ask(lease.socket, &request, fds).lease;
    char *usage = map_page(fds[0], PROT_READ | PROT_WRITE);
    char *control = map_page(fds[1], PROT_READ);
    lease.usage = (_Atomic uint64_t *)(void *)(usage + WORD);
    lease.control = (const _Atomic uint64_t *)(const void *)(control + WORD);
    return lease;
}

/* Debits n, all of it or nothing; on DEBITED the verdict says how to go on. */
static enum outcome step(const struct lease *lease, uint64_t n, unsigned *verdict) {
    for (int naps = 0;;) {
        uint64_t usage = atomic_load_explicit(lease->usage, memory_order_acquire);
        uint64_t control = atomic_load_explicit(lease->control, memory_order_relaxed);
        if (control & ENDED)
            return OVER;
        if (usage & CLOSED) {
            if (++naps > CLOSED_NAPS)
                die("the daemon has gone away while it was at work on the lease");
            nap(50);
            continue;
        }
        if ((usage & COUNT) + n > (control & COUNT))
            return EXHAUSTED;
        if (atomic_compare_exchange_weak_explicit(lease->usage, &usage, usage + n,
                                                  memory_order_acq_rel, memory_order_acquire)) {
            *verdict = control >> 48 & 7;
            return DEBITED;
        }
    }
}

/* Waits until so much is granted in all; false: it does not come. */
static int wait_for_grant(const struct lease *lease, uint64_t total) {
    for (int naps = 0; naps < GRANT_NAPS; naps++) {
        uint64_t control = atomic_load_explicit(lease->control, memory_order_relaxed);
        if (control & ENDED || (control & COUNT) >= total)
            return 1;
        nap(1000);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 5)
        die("usage: lease SOCKET RESERVATION AHEAD detach|leave");
    int64_t ahead = strtoll(argv[3], NULL, 10);
    struct lease lease = attach(argv[1], argv[2], ahead);
    const char *why = "exhausted";
    uint64_t used = 0;
    for (;;) {
        unsigned verdict = STOP;
        enum outcome outcome = step(&lease, 1, &verdict);
        if (outcome == EXHAUSTED && ahead > 0 && wait_for_grant(&lease, used + 1))
            continue;
        if (outcome == DEBITED)
            used++;
        if (outcome == DEBITED && verdict != STOP)
            continue;
        if (outcome != EXHAUSTED)
            why = outcome == OVER ? "ended" : "stop";
        break;
    }
    uint64_t word = atomic_load(lease.usage) & COUNT;
    if (strcmp(argv[4], "detach") == 0) {
        struct request request = {.kind = DETACH, .claim_or_lease = lease.number};
        word = ask(lease.socket, &request, NULL).used;
    }
    printf("{\"used\": %llu, \"counted\": %llu, \"why\": \"%s\"}\n", (unsigned long long)used,
           (unsigned long long)word, why);
    return 0;
}
