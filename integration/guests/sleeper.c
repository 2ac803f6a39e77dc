/* Calls that wait: with a timeout, which must be kept, and without one. None may say that it was interrupted. */
#include "guest.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>

enum { MILLISECONDS = 400, MOST = 24 };
static const struct timespec time_out = {0, MILLISECONDS * 1000000L};
static atomic_ulong turns[MOST];
static int sleepers;
static uint32_t word;

struct call {
    const char *name;
    int (*wait)(void); /* as the call: -1 and errno */
    int error;         /* at its timeout, 0 for none */
};

static int wait_nanosleep(void) { return nanosleep(&time_out, NULL); }
static int wait_nanosleep_rest(void) {
    struct timespec rest;
    return nanosleep(&time_out, &rest);
}
/* The system call by itself: the C library's clock_nanosleep gives its error as result. */
static int wait_clock(int clock) { return (int)syscall(SYS_clock_nanosleep, clock, 0, &time_out, NULL); }
static int wait_monotonic(void) { return wait_clock(CLOCK_MONOTONIC); }
static int wait_realtime(void) { return wait_clock(CLOCK_REALTIME); }
static int wait_boottime(void) { return wait_clock(CLOCK_BOOTTIME); }
static struct timespec later(void) {
    struct timespec at;
    MUST(clock_gettime(CLOCK_MONOTONIC, &at));
    at.tv_nsec += time_out.tv_nsec;
    if (at.tv_nsec >= 1000000000) at.tv_nsec -= 1000000000, at.tv_sec++;
    return at;
}
static int wait_until(void) {
    struct timespec at = later();
    return (int)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}
static int wait_futex(void) { return (int)syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time_out, NULL, 0); }
static int wait_futex_until(void) {
    struct timespec at = later();
    return (int)syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &at, NULL, FUTEX_BITSET_MATCH_ANY);
}
static int wait_poll(void) { return poll(NULL, 0, MILLISECONDS); }
static int wait_ppoll(void) { return ppoll(NULL, 0, &time_out, NULL); }
static int wait_select(void) {
    struct timeval time = {0, MILLISECONDS * 1000L};
    return select(0, NULL, NULL, NULL, &time);
}
static int wait_pselect(void) { return pselect(0, NULL, NULL, NULL, &time_out, NULL); }
static int watch = -1;
static int wait_epoll(void) {
    struct epoll_event event;
    return epoll_wait(watch, &event, 1, MILLISECONDS);
}
static int wait_epoll_masked(void) {
    struct epoll_event event;
    sigset_t none;
    sigemptyset(&none);
    return epoll_pwait(watch, &event, 1, MILLISECONDS, &none);
}
static int wait_epoll_precise(void) {
    struct epoll_event event;
    return (int)syscall(SYS_epoll_pwait2, watch, &event, 1, &time_out, NULL, 0);
}
static int wait_signal(void) {
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    return sigtimedwait(&usr1, NULL, &time_out);
}
static int set = -1;
static int wait_semaphore(void) {
    struct sembuf take = {0, -1, 0};
    return semtimedop(set, &take, 1, &time_out);
}
static int pair[2] = {-1, -1};
static int wait_socket(void) {
    char byte;
    return (int)recv(pair[0], &byte, 1, 0);
}

static void *turn(void *which) {
    const struct call *call = which;
    int slot = sleepers++;
    atomic_fetch_add(&turns[slot], 1);
    for (;;) {
        double before = now(CLOCK_MONOTONIC);
        errno = 0;
        int result = call->wait();
        int error = result < 0 ? errno : 0;
        if (result > 0 || error != call->error) bad("%s gave %d: %s", call->name, result, strerror(error));
        double passed = now(CLOCK_MONOTONIC) - before;
        if (passed < MILLISECONDS / 1e3) bad("%s came back after %.6f s", call->name, passed);
        atomic_fetch_add(&turns[slot], 1);
    }
    return NULL;
}
static void begin(const struct call *calls) {
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &usr1, NULL));
    for (; calls->name; calls++) {
        pthread_t thread;
        int slot = sleepers;
        if (pthread_create(&thread, NULL, turn, (void *)calls)) bad("pthread_create");
        while (!atomic_load(&turns[slot])) nap(100);
    }
}
/* Every twentieth time it waits for the end of what may have been interrupted by a checkpoint. */
static void verify_turns(void) {
    static int look;
    if (++look % 20) return;
    unsigned long before[MOST];
    for (int i = 0; i < sleepers; i++) before[i] = atomic_load(&turns[i]);
    for (int i = 0; i < sleepers; i++)
        AWAIT(atomic_load(&turns[i]) != before[i], "sleeper %d does not wake up", i);
}
static void set_timeouts(void) {
    static const struct call calls[] = {
        {"nanosleep", wait_nanosleep, 0},       {"nanosleep with rest", wait_nanosleep_rest, 0},
        {"CLOCK_MONOTONIC", wait_monotonic, 0}, {"CLOCK_REALTIME", wait_realtime, 0},
        {"CLOCK_BOOTTIME", wait_boottime, 0},   {"TIMER_ABSTIME", wait_until, 0},
        {"futex", wait_futex, ETIMEDOUT},       {"futex until", wait_futex_until, ETIMEDOUT},
        {"poll", wait_poll, 0},                 {"ppoll", wait_ppoll, 0},
        {"select", wait_select, 0},             {"pselect", wait_pselect, 0},
        {"sigtimedwait", wait_signal, EAGAIN},  {0},
    };
    begin(calls);
}
static void set_epoll(void) {
    static const struct call calls[] = {
        {"epoll_wait", wait_epoll, 0},
        {"epoll_pwait", wait_epoll_masked, 0},
        {"epoll_pwait2", wait_epoll_precise, 0},
        {0},
    };
    watch = MUST(epoll_create1(0));
    begin(calls);
}
static void set_semaphore(void) {
    static const struct call calls[] = {{"semtimedop", wait_semaphore, EAGAIN}, {0}};
    set = MUST(semget(IPC_PRIVATE, 1, 0600));
    begin(calls);
}
static void set_socket(void) {
    static const struct call calls[] = {{"recv", wait_socket, EAGAIN}, {0}};
    struct timeval time = {0, MILLISECONDS * 1000L};
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    MUST(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time));
    begin(calls);
}

/* Calls that wait for what does not come. */
static int end[2];
static int wait_for_ever(int which) {
    struct epoll_event event;
    struct pollfd read_end = {.fd = end[0], .events = POLLIN};
    sigset_t usr1;
    fd_set fds;
    char byte;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    FD_ZERO(&fds);
    FD_SET(end[0], &fds);
    switch (which) {
    case 0: return pause();
    case 1: return poll(&read_end, 1, -1);
    case 2: return ppoll(&read_end, 1, NULL, NULL);
    case 3: return select(end[0] + 1, &fds, NULL, NULL, NULL);
    case 4: return epoll_wait(watch, &event, 1, -1);
    case 5: return epoll_pwait(watch, &event, 1, -1, &usr1);
    case 6: return sigwaitinfo(&usr1, NULL);
    case 7: return (int)read(end[0], &byte, 1);
    case 8: return (int)syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    case 9: return (int)syscall(SYS_epoll_pwait2, watch, &event, 1, NULL, NULL, 0);
    case 10: return sigsuspend(&usr1);
    default: return -2;
    }
}
static void *stay(void *which) {
    int call = (int)(uintptr_t)which;
    int result = wait_for_ever(call);
    bad("wait %d gave %d: %s", call, result, strerror(errno));
    return NULL;
}
static void set_for_ever(void) {
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    MUST(sigprocmask(SIG_BLOCK, &usr1, NULL));
    MUST(pipe(end));
    watch = MUST(epoll_create1(0));
    for (uintptr_t i = 0; i < 11; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, stay, (void *)i)) bad("pthread_create");
    }
}
static void verify_for_ever(void) { nap(1000); }

static const struct mode modes[] = {
    {"timeouts", set_timeouts, verify_turns}, {"epoll", set_epoll, verify_turns},
    {"semaphore", set_semaphore, verify_turns}, {"socket", set_socket, verify_turns},
    {"for-ever", set_for_ever, verify_for_ever},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
