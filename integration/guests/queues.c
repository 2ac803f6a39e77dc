/* Pipes and the descriptors that count, wait and watch. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static int from, to, from2, to2;
static void pair(int *out, int *in, int flags) {
    int ends[2];
    MUST(pipe2(ends, flags));
    *out = ends[0];
    *in = ends[1];
}
static int flags(int of) { return MUST(fcntl(of, F_GETFL)) & ~0100000; }
static int held(int in) {
    int bytes;
    MUST(ioctl(in, FIONREAD, &bytes));
    return bytes;
}
static short events(int of, short wanted) {
    struct pollfd asked = {.fd = of, .events = wanted};
    MUST(poll(&asked, 1, 0));
    return asked.revents;
}

/* A pipe as a ring: what is read is the oldest, and something new is written. */
static size_t length;
static uint64_t first, last;
static void put(uint64_t word) { EQUAL(MUST(write(to, &word, 8)), 8); }
static void fill_ring(void) {
    while (last < length) put(mix(++last));
}
static void set_pipe(void) {
    pair(&from, &to, O_CLOEXEC);
    length = 4000;
    fill_ring();
}
static void verify_ring(void) {
    EQUAL(held(from), length * 8);
    for (int i = 0; i < 100; i++) {
        uint64_t word;
        EQUAL(MUST(read(from, &word, 8)), 8);
        EQUAL(word, mix(++first));
        put(mix(++last));
    }
}
static void verify_pipe(void) {
    verify_ring();
    EQUAL(MUST(fcntl(from, F_GETPIPE_SZ)), 65536);
    EQUAL(flags(from), O_RDONLY);
    EQUAL(flags(to), O_WRONLY);
    EQUAL(MUST(fcntl(to, F_GETFD)), FD_CLOEXEC);
}
static void set_large(void) {
    pair(&from, &to, 0);
    EQUAL(MUST(fcntl(to, F_SETPIPE_SZ, 1 << 20)), 1 << 20);
    length = 120000;
    fill_ring();
}
static void verify_large(void) {
    verify_ring();
    EQUAL(MUST(fcntl(from, F_GETPIPE_SZ)), 1 << 20);
}
/* Nothing more fits in, and the writer does not wait. */
static void set_full(void) {
    pair(&from, &to, O_NONBLOCK);
    length = 65536 / 8;
    fill_ring();
    FAILS(write(to, "x", 1), EAGAIN);
}
static void verify_full(void) {
    FAILS(write(to, "x", 1), EAGAIN);
    EQUAL(held(from), 65536);
    /* The pipe counts pages, so it is pages that come and go. */
    uint64_t page[512];
    EQUAL(MUST(read(from, page, sizeof page)), sizeof page);
    for (int i = 0; i < 512; i++) EQUAL(page[i], mix(++first));
    for (int i = 0; i < 512; i++) page[i] = mix(++last);
    EQUAL(MUST(write(to, page, sizeof page)), sizeof page);
    EQUAL(flags(from), O_RDONLY | O_NONBLOCK);
    EQUAL(flags(to), O_WRONLY | O_NONBLOCK);
}
/* Packets: each read gets one write. */
static void packet(int bytes) {
    char data[256];
    memset(data, bytes, sizeof data);
    EQUAL(MUST(write(to, data, (size_t)bytes)), bytes);
}
static void set_packets(void) {
    pair(&from, &to, O_DIRECT);
    for (int i = 1; i <= 10; i++) packet(i * 7);
}
static void verify_packets(void) {
    static int turn;
    char data[256];
    int wanted = (turn++ % 10 + 1) * 7;
    EQUAL(MUST(read(from, data, sizeof data)), wanted);
    EQUAL(data[0], wanted);
    EQUAL(data[wanted - 1], wanted);
    packet(wanted);
    EQUAL(flags(to), O_WRONLY | O_DIRECT);
}
/* One end is closed. tee(2) looks without taking. */
static void set_no_writer(void) {
    set_pipe();
    close(to);
    pair(&from2, &to2, 0);
}
static void verify_no_writer(void) {
    static uint64_t words[8192];
    EQUAL(events(from, POLLIN), POLLIN | POLLHUP);
    EQUAL(held(from), length * 8);
    EQUAL(MUST(tee(from, to2, 65536, 0)), length * 8);
    EQUAL(MUST(read(from2, words, sizeof words)), length * 8);
    for (size_t i = 0; i < length; i++) EQUAL(words[i], mix(i + 1));
}
static void set_no_reader(void) {
    signal(SIGPIPE, SIG_IGN);
    pair(&from, &to, 0);
    EQUAL(MUST(write(to, "lost", 4)), 4);
    close(from);
}
static void verify_no_reader(void) {
    EQUAL(events(to, POLLOUT), POLLOUT | POLLERR);
    FAILS(write(to, "x", 1), EPIPE);
}
/* Two processes, each of which waits for the other in read(2). */
static void set_between(void) {
    pair(&from, &to, 0);
    pair(&from2, &to2, 0);
    pid_t pid = MUST(fork());
    if (pid) {
        close(from2), close(to);
        return;
    }
    close(from), close(to2);
    for (uint64_t word, want = 0;; want++) {
        EQUAL(MUST(read(from2, &word, 8)), 8);
        EQUAL(word, want);
        nap(2000);
        put(word * 2);
    }
}
static void verify_between(void) {
    static uint64_t sent;
    uint64_t got;
    EQUAL(MUST(write(to2, &sent, 8)), 8);
    EQUAL(MUST(read(from, &got, 8)), 8);
    EQUAL(got, sent++ * 2);
}
/* Much data all the time through a chain of processes. */
static void set_chain(void) {
    int in;
    pair(&in, &to, 0);
    for (int i = 0; i < 3; i++) {
        pair(&from, &to2, 0);
        if (MUST(fork())) {
            close(in), close(to2);
            in = from;
            continue;
        }
        close(to), close(from);
        char data[5000];
        for (;;) {
            ssize_t got = MUST(read(in, data, sizeof data));
            CHECK(got > 0);
            for (ssize_t at = 0; at < got;) at += MUST(write(to2, data + at, (size_t)(got - at)));
        }
    }
    if (MUST(fork())) return;
    close(from);
    for (uint64_t i = 0;; i += 100) {
        uint64_t words[100];
        for (uint64_t k = 0; k < 100; k++) words[k] = mix(i + k);
        EQUAL(MUST(write(to, words, sizeof words)), sizeof words);
    }
}
static void verify_chain(void) {
    for (int i = 0; i < 1000; i++) {
        uint64_t word;
        size_t got = 0;
        while (got < 8) got += (size_t)MUST(read(from, (char *)&word + got, 8 - got));
        EQUAL(word, mix(first++));
    }
}

/* Counters */
static void set_eventfd(void) {
    from = MUST(eventfd(5, EFD_NONBLOCK | EFD_CLOEXEC));
    from2 = MUST(eventfd(0, EFD_NONBLOCK));
    to2 = MUST(eventfd(0, 0));
    eventfd_write(to2, UINT64_MAX - 1);
}
static void verify_eventfd(void) {
    static eventfd_t should = 5;
    eventfd_t value;
    MUST(eventfd_read(from, &value));
    EQUAL(value, should);
    MUST(eventfd_write(from, ++should));
    EQUAL(flags(from), O_RDWR | O_NONBLOCK);
    EQUAL(MUST(fcntl(from, F_GETFD)), FD_CLOEXEC);
    FAILS(eventfd_read(from2, &value), EAGAIN);
    EQUAL(events(to2, POLLIN | POLLOUT), POLLIN);
    EQUAL(flags(to2), O_RDWR);
}
static void set_semaphore(void) {
    from = MUST(eventfd(7, EFD_SEMAPHORE | EFD_NONBLOCK));
}
static void verify_semaphore(void) {
    eventfd_t value;
    for (int i = 0; i < 7; i++) {
        MUST(eventfd_read(from, &value));
        EQUAL(value, 1);
    }
    FAILS(eventfd_read(from, &value), EAGAIN);
    MUST(eventfd_write(from, 7));
}
static void *waits(void *unused) {
    (void)unused;
    for (eventfd_t value;;) {
        MUST(eventfd_read(from, &value));
        EQUAL(value, 3);
        MUST(eventfd_write(to, 4));
    }
    return NULL;
}
static void set_waiter(void) {
    pthread_t made;
    from = MUST(eventfd(0, 0));
    to = MUST(eventfd(0, 0));
    EQUAL(pthread_create(&made, NULL, waits, NULL), 0);
}
static void verify_waiter(void) {
    eventfd_t value;
    nap(3000);
    MUST(eventfd_write(from, 3));
    MUST(eventfd_read(to, &value));
    EQUAL(value, 4);
}

static void set_signalfd(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 2);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    from = MUST(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
    sigdelset(&set, SIGUSR1);
    from2 = MUST(signalfd(-1, &set, SFD_NONBLOCK));
    MUST(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 1}));
}
static void verify_signalfd(void) {
    static int value = 1;
    struct signalfd_siginfo info;
    FAILS(read(from2, &info, sizeof info), EAGAIN);
    EQUAL(MUST(read(from, &info, sizeof info)), sizeof info);
    EQUAL(info.ssi_signo, SIGUSR1);
    EQUAL(info.ssi_int, value);
    EQUAL(info.ssi_pid, getpid());
    EQUAL(info.ssi_code, SI_QUEUE);
    FAILS(read(from, &info, sizeof info), EAGAIN);
    MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = -value}));
    EQUAL(MUST(read(from2, &info, sizeof info)), sizeof info);
    EQUAL(info.ssi_int, -value);
    MUST(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = ++value}));
    EQUAL(flags(from), O_RDWR | O_NONBLOCK);
    EQUAL(MUST(fcntl(from, F_GETFD)), FD_CLOEXEC);
}

/* Timers */
static int timer(clockid_t clock, int flags_of_timer, int how, long seconds, long nanoseconds, long interval) {
    int made = MUST(timerfd_create(clock, flags_of_timer));
    struct itimerspec when = {{interval / 1000000000, interval % 1000000000}, {seconds, nanoseconds}};
    MUST(timerfd_settime(made, how, &when, NULL));
    return made;
}
static double began;
static void set_timerfd(void) {
    from = timer(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC, 0, 0, 5000000, 5000000);
}
/* It goes on ticking, and no tick is invented. */
static void verify_timerfd(void) {
    uint64_t ticks;
    EQUAL(events(from, POLLIN) & ~POLLIN, 0);
    AWAIT(events(from, POLLIN), "a timer does not tick any more");
    EQUAL(MUST(read(from, &ticks, 8)), 8);
    CHECK(ticks >= 1);
    if (ticks > 200000) bad("%lu ticks at once", (unsigned long)ticks);
    struct itimerspec rest;
    MUST(timerfd_gettime(from, &rest));
    EQUAL(rest.it_interval.tv_nsec, 5000000);
    CHECK(rest.it_value.tv_nsec <= 5000000);
    EQUAL(flags(from), O_RDWR | O_NONBLOCK);
    EQUAL(MUST(fcntl(from, F_GETFD)), FD_CLOEXEC);
}
/* Far in the future, by three clocks, relative and absolute; and one that is not set. */
static void set_timerfd_later(void) {
    struct timespec t;
    began = now(CLOCK_MONOTONIC);
    from = timer(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 10000, 0, 0);
    from2 = timer(CLOCK_BOOTTIME, TFD_NONBLOCK, 0, 20000, 0, 3000000000);
    MUST(clock_gettime(CLOCK_REALTIME, &t));
    to = timer(CLOCK_REALTIME, TFD_NONBLOCK, TFD_TIMER_ABSTIME, t.tv_sec + 30000, 0, 0);
    to2 = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
}
static void due(int of, double seconds, long interval) {
    struct itimerspec rest;
    uint64_t ticks;
    /* A restart may come between two looks at a clock. */
    double most = seconds - (now(CLOCK_MONOTONIC) - began);
    MUST(timerfd_gettime(of, &rest));
    double left = (double)rest.it_value.tv_sec + (double)rest.it_value.tv_nsec / 1e9;
    double least = seconds - (now(CLOCK_MONOTONIC) - began);
    if (left < least - 120 || left > most + 3) bad("%.3f s are left of a timer, not %.3f to %.3f", left, least, most);
    EQUAL(rest.it_interval.tv_sec, interval);
    FAILS(read(of, &ticks, 8), EAGAIN);
}
static void verify_timerfd_later(void) {
    struct itimerspec rest;
    due(from, 10000, 0);
    due(from2, 20000, 3);
    due(to, 30000, 0);
    MUST(timerfd_gettime(to2, &rest));
    EQUAL(rest.it_value.tv_sec + rest.it_value.tv_nsec, 0);
}
/* Rung, and nobody has looked. */
static void set_timerfd_rung(void) {
    from = timer(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 0, 1000000, 0);
    while (!events(from, POLLIN)) nap(500);
}
static void verify_timerfd_rung(void) {
    static int turn;
    uint64_t ticks;
    EQUAL(events(from, POLLIN), POLLIN);
    if (++turn % 30) return;
    EQUAL(MUST(read(from, &ticks, 8)), 8);
    EQUAL(ticks, 1);
    FAILS(read(from, &ticks, 8), EAGAIN);
    close(from);
    set_timerfd_rung();
}

/* epoll */
static int set;
static void watch(int in, int of, uint32_t wanted, uint64_t data) {
    struct epoll_event event = {.events = wanted, .data.u64 = data};
    MUST(epoll_ctl(in, EPOLL_CTL_ADD, of, &event));
}
/* Exactly these are reported. */
static void reports(int in, int count, uint64_t data, uint32_t wanted) {
    struct epoll_event found[8];
    EQUAL(MUST(epoll_wait(in, found, 8, 0)), count);
    for (int i = 0; i < count; i++) {
        if (found[i].data.u64 != data) continue;
        EQUAL(found[i].events, wanted);
        return;
    }
    if (count) bad("%lx is not reported", (unsigned long)data);
}
static void ready(int of) { EQUAL(MUST(write(of, "x", 1)), 1); }
static void unready(int of) {
    char byte;
    EQUAL(MUST(read(of, &byte, 1)), 1);
}
static void set_epoll(void) {
    pair(&from, &to, O_NONBLOCK);
    pair(&from2, &to2, O_NONBLOCK);
    set = MUST(epoll_create1(EPOLL_CLOEXEC));
    watch(set, from, EPOLLIN, 0x123456789abcdefull);
    watch(set, from2, EPOLLIN | EPOLLPRI, 22);
    watch(set, to2, 0, 33);
}
static void verify_epoll(void) {
    reports(set, 0, 0, 0);
    ready(to);
    reports(set, 1, 0x123456789abcdefull, EPOLLIN);
    ready(to2);
    reports(set, 2, 22, EPOLLIN);
    unready(from);
    unready(from2);
    struct epoll_event event = {.events = EPOLLOUT, .data.u64 = 33};
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, to2, &event));
    reports(set, 1, 33, EPOLLOUT);
    event.events = 0;
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, to2, &event));
    EQUAL(MUST(fcntl(set, F_GETFD)), FD_CLOEXEC);
    FAILS(epoll_ctl(set, EPOLL_CTL_ADD, from, &event), EEXIST);
}
static int outer;
static void set_nested(void) {
    set_epoll();
    outer = MUST(epoll_create1(0));
    watch(outer, set, EPOLLIN, 44);
}
static void verify_nested(void) {
    reports(outer, 0, 0, 0);
    ready(to);
    reports(outer, 1, 44, EPOLLIN);
    reports(set, 1, 0x123456789abcdefull, EPOLLIN);
    unready(from);
    reports(set, 0, 0, 0);
}
static void set_oneshot(void) {
    pair(&from, &to, O_NONBLOCK);
    set = MUST(epoll_create1(0));
    watch(set, from, EPOLLIN | EPOLLONESHOT, 66);
    ready(to);
    reports(set, 1, 66, EPOLLIN);
}
static void verify_oneshot(void) {
    static int turn;
    /* Reported once, and no more until it is asked for again. */
    reports(set, 0, 0, 0);
    if (++turn % 20) return;
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 66};
    MUST(epoll_ctl(set, EPOLL_CTL_MOD, from, &event));
    reports(set, 1, 66, EPOLLIN);
}
/* Watched is the description, even when its number is closed or another's. */
static void set_closed_number(void) {
    pair(&from, &to, O_NONBLOCK);
    pair(&from2, &to2, O_NONBLOCK);
    set = MUST(epoll_create1(0));
    watch(set, from, EPOLLIN, 77);
    int kept = MUST(dup(from));
    MUST(dup2(from2, from)); /* the number is another pipe's now */
    watch(set, from, EPOLLIN, 88);
    int second = from;
    from = kept;
    close(from2);
    from2 = second;
}
static void verify_closed_number(void) {
    reports(set, 0, 0, 0);
    ready(to);
    reports(set, 1, 77, EPOLLIN);
    ready(to2);
    reports(set, 2, 88, EPOLLIN);
    reports(set, 2, 77, EPOLLIN);
    unready(from);
    unready(from2);
}
/* Reported when it changes, not while it lasts. */
static void set_edge(void) {
    pair(&from, &to, O_NONBLOCK);
    set = MUST(epoll_create1(0));
    watch(set, from, EPOLLIN | EPOLLET, 99);
    ready(to);
    reports(set, 1, 99, EPOLLIN);
}
static void verify_edge(void) {
    static int turn;
    reports(set, 0, 0, 0);
    if (++turn % 20) return;
    ready(to);
    reports(set, 1, 99, EPOLLIN);
    unready(from);
}
/* An edge that nobody has seen is not lost. */
static void set_unseen_edge(void) {
    pair(&from, &to, O_NONBLOCK);
    set = MUST(epoll_create1(0));
    watch(set, from, EPOLLIN | EPOLLET, 99);
    ready(to);
}
static void verify_unseen_edge(void) {
    static int turn;
    EQUAL(held(from), 1);
    if (++turn % 20) return;
    reports(set, 1, 99, EPOLLIN);
    unready(from);
    ready(to);
}
/* A pipe is full of pieces that do not fill its pages. Whoever reads tells a writer of room only if there was none before. */
static void stuff(void) {
    static char piece[3000];
    while (write(to, piece, sizeof piece) == sizeof piece) {}
    EQUAL(errno, EAGAIN);
}
static void set_full_edge(void) {
    pair(&from, &to, O_NONBLOCK);
    set = MUST(epoll_create1(0));
    watch(set, to, EPOLLOUT | EPOLLET, 99);
    reports(set, 1, 99, EPOLLOUT);
    stuff();
    reports(set, 0, 0, 0);
}
static void verify_full_edge(void) {
    static char pieces[1 << 16];
    struct epoll_event event;
    CHECK(MUST(read(from, pieces, sizeof pieces)) > 0);
    EQUAL(MUST(epoll_wait(set, &event, 1, 120000)), 1);
    EQUAL(event.events, EPOLLOUT);
    stuff();
}
/* A thread waits, without end and with one that is far away. */
static void *epoll_waits(void *timeout) {
    struct epoll_event event;
    for (;;) {
        int got = MUST(epoll_wait(set, &event, 1, (int)(intptr_t)timeout));
        EQUAL(got, 1);
        EQUAL(event.data.u64, 111);
        unready(from);
        ready(to2);
    }
    return NULL;
}
static void epoll_waiter(intptr_t timeout) {
    pthread_t made;
    pair(&from, &to, 0);
    pair(&from2, &to2, 0);
    set = MUST(epoll_create1(0));
    watch(set, from, EPOLLIN, 111);
    EQUAL(pthread_create(&made, NULL, epoll_waits, (void *)timeout), 0);
}
static void set_epoll_waiter(void) { epoll_waiter(-1); }
static void set_epoll_waiter_with_timeout(void) { epoll_waiter(1000000); }
static void verify_epoll_waiter(void) {
    nap(3000);
    ready(to);
    unready(from2);
}
/* Everything that can be watched */
static void set_epoll_over_all(void) {
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    MUST(sigprocmask(SIG_BLOCK, &mask, NULL));
    set = MUST(epoll_create1(0));
    watch(set, to = MUST(eventfd(0, 0)), EPOLLIN, 1);
    watch(set, from = MUST(signalfd(-1, &mask, 0)), EPOLLIN, 2);
    watch(set, from2 = timer(CLOCK_MONOTONIC, 0, 0, 100000, 0, 0), EPOLLIN, 3);
    MUST(mkfifo("/tmp/fifo", 0600));
    watch(set, to2 = MUST(open("/tmp/fifo", O_RDWR)), EPOLLIN, 4);
}
static void verify_epoll_over_all(void) {
    static struct itimerspec soon = {{0, 0}, {0, 1}}, late = {{0, 0}, {100000, 0}};
    struct signalfd_siginfo info;
    eventfd_t value;
    reports(set, 0, 0, 0);
    MUST(eventfd_write(to, 1));
    reports(set, 1, 1, EPOLLIN);
    MUST(kill(getpid(), SIGUSR2));
    reports(set, 2, 2, EPOLLIN);
    MUST(timerfd_settime(from2, 0, &soon, NULL));
    while (!events(from2, POLLIN)) nap(300);
    reports(set, 3, 3, EPOLLIN);
    ready(to2);
    reports(set, 4, 4, EPOLLIN);
    unready(to2);
    MUST(timerfd_settime(from2, 0, &late, NULL));
    EQUAL(MUST(read(from, &info, sizeof info)), sizeof info);
    MUST(eventfd_read(to, &value));
}

/* A child that waits for a signal of its own by an epoll: the kernel wakes who has added the signalfd. */
static pid_t awaits_signals;
static void set_childs_signals(void) {
    struct signalfd_siginfo info;
    struct epoll_event event;
    sigset_t mask;
    pair(&from, &to, 0);
    awaits_signals = MUST(fork());
    if (awaits_signals) return;
    sigemptyset(&mask);
    sigaddset(&mask, SIGURG);
    MUST(sigprocmask(SIG_BLOCK, &mask, NULL));
    from2 = MUST(signalfd(-1, &mask, SFD_CLOEXEC));
    set = MUST(epoll_create1(EPOLL_CLOEXEC));
    watch(set, from2, EPOLLIN, 1);
    for (;;) {
        ready(to);
        EQUAL(MUST(epoll_wait(set, &event, 1, -1)), 1);
        EQUAL(MUST(read(from2, &info, sizeof info)), sizeof info);
        EQUAL(info.ssi_signo, SIGURG);
    }
}
static void verify_childs_signals(void) {
    unready(from);
    nap(300);
    MUST(kill(awaits_signals, SIGURG));
}

/* poll and select that wait, with and without an end. */
static void *polls(void *timeout) {
    struct pollfd asked = {.fd = from, .events = POLLIN};
    for (;;) {
        EQUAL(MUST(poll(&asked, 1, (int)(intptr_t)timeout)), 1);
        unready(from);
        ready(to2);
    }
    return NULL;
}
static void poller(intptr_t timeout) {
    pthread_t made;
    pair(&from, &to, 0);
    pair(&from2, &to2, 0);
    EQUAL(pthread_create(&made, NULL, polls, (void *)timeout), 0);
}
static void set_poller(void) { poller(-1); }
static void set_poller_with_timeout(void) { poller(1000000); }

static const struct mode modes[] = {
    {"pipe", set_pipe, verify_pipe},
    {"pipe-large", set_large, verify_large},
    {"pipe-full", set_full, verify_full},
    {"pipe-packets", set_packets, verify_packets},
    {"pipe-no-writer", set_no_writer, verify_no_writer},
    {"pipe-no-reader", set_no_reader, verify_no_reader},
    {"pipe-between", set_between, verify_between},
    {"pipe-chain", set_chain, verify_chain},
    {"eventfd", set_eventfd, verify_eventfd},
    {"eventfd-semaphore", set_semaphore, verify_semaphore},
    {"eventfd-waiter", set_waiter, verify_waiter},
    {"signalfd", set_signalfd, verify_signalfd},
    {"timerfd", set_timerfd, verify_timerfd},
    {"timerfd-later", set_timerfd_later, verify_timerfd_later},
    {"timerfd-rung", set_timerfd_rung, verify_timerfd_rung},
    {"epoll", set_epoll, verify_epoll},
    {"epoll-nested", set_nested, verify_nested},
    {"epoll-oneshot", set_oneshot, verify_oneshot},
    {"epoll-closed-number", set_closed_number, verify_closed_number},
    {"epoll-edge", set_edge, verify_edge},
    {"epoll-full-edge", set_full_edge, verify_full_edge},
    {"epoll-unseen-edge", set_unseen_edge, verify_unseen_edge},
    {"epoll-waiter", set_epoll_waiter, verify_epoll_waiter},
    {"epoll-waiter-timeout", set_epoll_waiter_with_timeout, verify_epoll_waiter},
    {"epoll-over-all", set_epoll_over_all, verify_epoll_over_all},
    {"epoll-childs-signals", set_childs_signals, verify_childs_signals},
    {"poll", set_poller, verify_epoll_waiter},
    {"poll-timeout", set_poller_with_timeout, verify_epoll_waiter},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
