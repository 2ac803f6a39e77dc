/* Signals: what is done about them, which wait, and the timers that send them. */
#include "guest.h"
#include <pthread.h>
#include <sys/time.h>

static volatile sig_atomic_t caught;
static siginfo_t last;
static void catch(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    last = *info;
    caught++;
}
/* What the kernel knows, without the C library in between. */
struct kernel_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};
static struct kernel_action actions[65];
static void get_action(int number, struct kernel_action *action) {
    MUST(syscall(SYS_rt_sigaction, number, NULL, action, 8));
}
static void action(int number, void (*handler)(int, siginfo_t *, void *), int flags, int masked) {
    struct sigaction wanted = {.sa_sigaction = handler, .sa_flags = flags};
    sigemptyset(&wanted.sa_mask);
    if (masked) sigaddset(&wanted.sa_mask, masked);
    MUST(sigaction(number, &wanted, NULL));
}
static void set_handlers(void) {
    signals_expected = 1;
    action(SIGHUP, catch, SA_SIGINFO, 0);
    action(SIGUSR1, catch, SA_SIGINFO | SA_RESTART, SIGUSR2);
    action(SIGUSR2, catch, SA_SIGINFO | SA_NODEFER | SA_ONSTACK, 0);
    action(SIGCHLD, catch, SA_SIGINFO | SA_NOCLDSTOP | SA_NOCLDWAIT, SIGRTMAX);
    action(SIGRTMIN, catch, SA_SIGINFO, SIGRTMIN + 1);
    action(SIGTRAP, catch, SA_SIGINFO, 0);
    action(SIGSEGV, catch, SA_SIGINFO | (int)SA_RESETHAND, 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGRTMAX, SIG_IGN);
    for (int i = 1; i < 65; i++) get_action(i, &actions[i]);
}
static void verify_handlers(void) {
    for (int i = 1; i < 65; i++) {
        struct kernel_action is;
        get_action(i, &is);
        if (memcmp(&is, &actions[i], sizeof is)) bad("the action of signal %d is not what it was", i);
    }
    int before = caught;
    MUST(raise(SIGUSR1));
    MUST(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 12}));
    EQUAL(last.si_int, 12);
    EQUAL(caught, before + 2);
    MUST(raise(SIGTERM));
}
static void set_trap_ignored(void) {
    signals_expected = 1;
    signal(SIGTRAP, SIG_IGN);
    for (int i = 1; i < 65; i++) get_action(i, &actions[i]);
}
static void verify_trap_ignored(void) {
    struct kernel_action is;
    get_action(SIGTRAP, &is);
    CHECK(is.handler == (void *)SIG_IGN);
    MUST(raise(SIGTRAP));
}

/* A SIGTRAP that waits. */
static void set_trap_pending(void) {
    sigset_t trap;
    sigemptyset(&trap);
    sigaddset(&trap, SIGTRAP);
    MUST(sigprocmask(SIG_BLOCK, &trap, NULL));
    MUST(raise(SIGTRAP));
}
static void verify_trap_pending(void) {
    sigset_t come;
    MUST(sigpending(&come));
    CHECK(sigismember(&come, SIGTRAP));
}

/* Masks, one a thread */
static uint64_t mask_of(int thread) { return 0xf0f0f00 << thread & ~(1ull << (SIGKILL - 1) | 1ull << (SIGSTOP - 1)); }
static void set_mask(uint64_t mask) { MUST(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8)); }
static uint64_t get_mask(void) {
    uint64_t mask;
    MUST(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8));
    return mask;
}
static void *masked(void *thread) {
    int me = (int)(intptr_t)thread;
    set_mask(mask_of(me));
    for (;;) {
        EQUAL(get_mask(), mask_of(me));
        beat(me);
    }
    return NULL;
}
static void set_masks(void) {
    share();
    pthread_t made;
    for (int i = 0; i < 8; i++) EQUAL(pthread_create(&made, NULL, masked, (void *)(intptr_t)i), 0);
    set_mask(mask_of(9));
}
static void verify_masks(void) {
    all_alive(8);
    EQUAL(get_mask(), mask_of(9));
}

/* Alternate stacks, one a thread */
static void on_stack(int number, siginfo_t *info, void *context) {
    stack_t current;
    (void)number, (void)context;
    MUST(sigaltstack(NULL, &current));
    EQUAL(current.ss_flags, SS_ONSTACK);
    char here;
    CHECK(&here > (char *)current.ss_sp && &here < (char *)current.ss_sp + current.ss_size);
    EQUAL(info->si_code, SI_TKILL);
    caught++;
}
static stack_t new_stack(size_t size) {
    stack_t wanted = {.ss_sp = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS), .ss_size = size};
    MUST(sigaltstack(&wanted, NULL));
    return wanted;
}
static void use_stack(stack_t wanted) {
    stack_t is;
    MUST(sigaltstack(NULL, &is));
    CHECK(is.ss_sp == wanted.ss_sp);
    EQUAL(is.ss_size, wanted.ss_size);
    EQUAL(is.ss_flags, 0);
    int before = caught;
    MUST(raise(SIGUSR1));
    CHECK(caught > before);
}
static void *with_stack(void *size) {
    stack_t own = new_stack((size_t)size);
    for (;;) {
        use_stack(own);
        beat((int)((size_t)size >> 16) - 1);
    }
    return NULL;
}
static stack_t main_stack;
static void set_alternate_stack(void) {
    signals_expected = 1;
    share();
    action(SIGUSR1, on_stack, SA_SIGINFO | SA_ONSTACK, 0);
    pthread_t made;
    for (size_t i = 1; i <= 4; i++) EQUAL(pthread_create(&made, NULL, with_stack, (void *)(i << 16)), 0);
    main_stack = new_stack(1 << 20);
}
static void verify_alternate_stack(void) {
    use_stack(main_stack);
    all_alive(4);
}
/* All of the guest's life is in a handler, on the alternate stack, with signals blocked by the handler's mask. */
static void verify_in_handler(void) {
    stack_t current;
    MUST(sigaltstack(NULL, &current));
    EQUAL(current.ss_flags, SS_ONSTACK);
    EQUAL(get_mask(), 1ull << (SIGUSR1 - 1) | 1ull << (SIGUSR2 - 1));
}
static void for_ever(int number, siginfo_t *info, void *context) {
    (void)number, (void)info, (void)context;
    for (;;) {
        verify_in_handler();
        good();
        nap(2000);
    }
}
static void set_in_handler(void) {
    action(SIGUSR1, for_ever, SA_SIGINFO | SA_ONSTACK, SIGUSR2);
    new_stack(1 << 20);
    MUST(raise(SIGUSR1));
}

/* Signals that wait until they are unblocked: in their order, with all that came with them. */
enum { QUEUED = 6 };
static void queue_all(void) {
    for (int i = 0; i < QUEUED; i++) MUST(sigqueue(getpid(), SIGRTMIN + i % 2, (union sigval){.sival_int = 100 + i}));
    MUST(kill(getpid(), SIGUSR1));
    MUST(kill(getpid(), SIGUSR1)); /* the second is lost, as it should be */
    MUST(raise(SIGUSR2));
    siginfo_t info = {.si_code = -77};
    info.si_value.sival_ptr = (void *)0x123456789abcull;
    MUST(syscall(SYS_rt_sigqueueinfo, getpid(), SIGWINCH, &info));
}
static void take(int number, int code, long value) {
    sigset_t one;
    siginfo_t info;
    struct timespec none = {0};
    sigemptyset(&one);
    sigaddset(&one, number);
    /* The C library would call an SI_TKILL SI_USER. */
    EQUAL(MUST(syscall(SYS_rt_sigtimedwait, &one, &info, &none, 8)), number);
    EQUAL(info.si_code, code);
    if (code == SI_USER || code == SI_TKILL) EQUAL(info.si_pid, value);
    else EQUAL((long)info.si_value.sival_ptr & (code == SI_QUEUE ? 0xffffffff : -1l), value);
}
static void no_more(void) {
    sigset_t all;
    siginfo_t info;
    struct timespec none = {0};
    sigfillset(&all);
    FAILS(sigtimedwait(&all, &info, &none), EAGAIN);
}
static void block_all(void) {
    sigset_t all;
    sigfillset(&all);
    MUST(sigprocmask(SIG_BLOCK, &all, NULL));
}
static void set_pending(void) {
    block_all();
    /* Not thrown away although there is nothing to be done about it by default. */
    queue_all();
}
static void verify_pending(void) {
    static int turn;
    const char *status = proc("/proc/self/status");
    EQUAL(field(status, "SigPnd:", 16), 1ull << (SIGUSR2 - 1));
    EQUAL(field(status, "ShdPnd:", 16), 1ull << (SIGUSR1 - 1) | 1ull << (SIGWINCH - 1) | 3ull << (SIGRTMIN - 1));
    if (++turn % 10) return;
    for (int i = 0; i < QUEUED; i += 2) take(SIGRTMIN, SI_QUEUE, 100 + i);
    for (int i = 1; i < QUEUED; i += 2) take(SIGRTMIN + 1, SI_QUEUE, 100 + i);
    take(SIGUSR1, SI_USER, getpid());
    take(SIGUSR2, SI_TKILL, getpid());
    take(SIGWINCH, -77, 0x123456789abc);
    no_more();
    queue_all();
}
/* Very many, in the queues of the process and of its thread. */
enum { FLOOD = 3500 };
static void set_pending_many(void) {
    block_all();
    siginfo_t info = {.si_code = SI_QUEUE};
    for (int i = 0; i < FLOOD; i++) {
        info.si_value.sival_ptr = (void *)(intptr_t)i;
        MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGRTMIN, &info));
        MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = i}));
    }
}
static void verify_pending_many(void) {
    static int next;
    siginfo_t info = {.si_code = SI_QUEUE};
    for (int i = 0; i < FLOOD / 20; i++, next = (next + 1) % FLOOD) {
        take(SIGRTMIN, SI_QUEUE, next);
        take(SIGRTMIN + 1, SI_QUEUE, next);
        info.si_value.sival_ptr = (void *)(intptr_t)next;
        MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGRTMIN, &info));
        MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = next}));
    }
}
/* In the queues of threads */
static pid_t tids[4];
static void *pending_in_thread(void *thread) {
    int me = (int)(intptr_t)thread;
    pid_t self = tids[me] = (pid_t)syscall(SYS_gettid);
    for (;;) {
        siginfo_t info = {.si_code = SI_QUEUE};
        for (int i = 0; i < 3; i++) {
            info.si_value.sival_ptr = (void *)(intptr_t)(me * 10 + i);
            MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), self, SIGRTMIN + 4, &info));
        }
        for (int i = 0; i < 8; i++) beat(me);
        for (int i = 0; i < 3; i++) take(SIGRTMIN + 4, SI_QUEUE, me * 10 + i);
        no_more();
    }
    return NULL;
}
static void set_pending_in_threads(void) {
    share();
    block_all();
    pthread_t made;
    for (int i = 0; i < 4; i++) EQUAL(pthread_create(&made, NULL, pending_in_thread, (void *)(intptr_t)i), 0);
}
static void verify_pending_in_threads(void) { all_alive(4); }

/* A thread that waits for signals, and one that sleeps until any comes. */
static void *waits(void *unused) {
    sigset_t set;
    siginfo_t info;
    (void)unused;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    for (int want = 1;; want++) {
        EQUAL(MUST(sigwaitinfo(&set, &info)), SIGRTMIN + 5);
        EQUAL(info.si_int, want);
        atomic_fetch_add(&shared->beats[0], 1);
    }
    return NULL;
}
static void *suspends(void *unused) {
    sigset_t most;
    (void)unused;
    sigfillset(&most);
    sigdelset(&most, SIGUSR1);
    for (;;) {
        int before = caught;
        FAILS(sigsuspend(&most), EINTR);
        EQUAL(caught, before + 1);
        atomic_fetch_add(&shared->beats[1], 1);
    }
    return NULL;
}
static pthread_t waiter, suspended;
static void set_waiters(void) {
    share();
    block_all();
    action(SIGUSR1, catch, SA_SIGINFO, 0);
    EQUAL(pthread_create(&waiter, NULL, waits, NULL), 0);
    EQUAL(pthread_create(&suspended, NULL, suspends, NULL), 0);
}
static void verify_waiters(void) {
    static int value;
    nap(2000);
    MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = ++value}));
    EQUAL(pthread_kill(suspended, SIGUSR1), 0);
    all_alive(2);
}

/* The three timers that every process has */
static void set_itimer(void) {
    signals_expected = 1;
    action(SIGALRM, catch, SA_SIGINFO | SA_RESTART, 0);
    action(SIGVTALRM, catch, SA_SIGINFO | SA_RESTART, 0);
    struct itimerval often = {{0, 5000}, {0, 5000}}, late = {{0, 7000}, {100000, 0}}, later = {{0, 0}, {50000, 0}};
    MUST(setitimer(ITIMER_REAL, &often, NULL));
    MUST(setitimer(ITIMER_VIRTUAL, &late, NULL));
    MUST(setitimer(ITIMER_PROF, &later, NULL));
}
static void verify_itimer(void) {
    struct itimerval is;
    int before = caught;
    AWAIT(caught != before, "the alarm does not come any more");
    EQUAL(last.si_code, SI_KERNEL);
    MUST(getitimer(ITIMER_REAL, &is));
    EQUAL(is.it_interval.tv_usec, 5000);
    MUST(getitimer(ITIMER_VIRTUAL, &is));
    EQUAL(is.it_interval.tv_usec, 7000);
    CHECK(is.it_value.tv_sec > 99000 && is.it_value.tv_sec <= 100000);
    MUST(getitimer(ITIMER_PROF, &is));
    EQUAL(is.it_interval.tv_usec, 0);
    CHECK(is.it_value.tv_sec > 49000 && is.it_value.tv_sec <= 50000);
}
static double began;
/* What is left of a time that has begun then: at the most what was left before somebody looked, at the least what is now. A
 * restart may have come between. */
static void is_left(double left, double whole, double most) {
    double least = whole - (now(CLOCK_MONOTONIC) - began);
    if (left < least - 120 || left > most + 3) bad("%.0f s are left, not %.0f to %.0f", left, least, most);
}
static void set_alarm(void) {
    began = now(CLOCK_MONOTONIC);
    alarm(10000);
}
static void verify_alarm(void) {
    struct itimerval is;
    double most = 10000 - (now(CLOCK_MONOTONIC) - began);
    MUST(getitimer(ITIMER_REAL, &is));
    is_left((double)is.it_value.tv_sec, 10000, most);
}

/* POSIX timers, with holes in their numbers */
enum { TIMERS = 5 };
static timer_t timers[TIMERS];
static int kernel_id(timer_t timer) { return (int)(intptr_t)timer; }
static void set_timers(void) {
    signals_expected = 1;
    action(SIGRTMIN + 6, catch, SA_SIGINFO | SA_RESTART, 0);
    for (int i = 0; i < TIMERS; i++) {
        struct sigevent event = {.sigev_notify = i % 2 ? SIGEV_SIGNAL : SIGEV_NONE, .sigev_signo = SIGRTMIN + 6,
                                 .sigev_value.sival_int = 1000 + i};
        timer_t dropped;
        MUST(timer_create(CLOCK_MONOTONIC, &event, &dropped));
        MUST(timer_create(i == 2 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &event, &timers[i]));
        MUST(timer_delete(dropped));
    }
    struct itimerspec often = {{0, 5000000}, {0, 5000000}}, late = {{3, 4}, {10000, 0}};
    MUST(timer_settime(timers[1], 0, &often, NULL));
    MUST(timer_settime(timers[2], 0, &late, NULL));
    MUST(timer_settime(timers[3], 0, &late, NULL));
    began = now(CLOCK_MONOTONIC);
}
static void verify_timers(void) {
    struct itimerspec is;
    int before = caught;
    AWAIT(caught != before, "a timer does not send its signal any more");
    EQUAL(last.si_code, SI_TIMER);
    EQUAL(last.si_int, 1001);
    EQUAL(last.si_timerid, kernel_id(timers[1]));
    for (int i = 2; i <= 3; i++) {
        double most = 10000 - (now(CLOCK_MONOTONIC) - began);
        MUST(timer_gettime(timers[i], &is));
        EQUAL(is.it_interval.tv_sec, 3);
        EQUAL(is.it_interval.tv_nsec, 4);
        is_left((double)is.it_value.tv_sec, 10000, most);
    }
    MUST(timer_gettime(timers[4], &is));
    EQUAL(is.it_value.tv_sec + is.it_value.tv_nsec, 0);
    /* A new one gets a number that is free. */
    timer_t fresh;
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    MUST(timer_create(CLOCK_BOOTTIME, &event, &fresh));
    for (int i = 0; i < TIMERS; i++) CHECK(fresh != timers[i]);
    MUST(timer_delete(fresh));
}
/* A timer for one thread */
static void *timed(void *unused) {
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 7);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 7};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    timer_t timer;
    MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec often = {{0, 3000000}, {0, 3000000}};
    MUST(timer_settime(timer, 0, &often, NULL));
    for (siginfo_t info;;) {
        EQUAL(MUST(sigwaitinfo(&set, &info)), SIGRTMIN + 7);
        EQUAL(info.si_code, SI_TIMER);
        beat(0);
    }
    return NULL;
}
static void set_timer_of_thread(void) {
    share();
    block_all();
    pthread_t made;
    EQUAL(pthread_create(&made, NULL, timed, NULL), 0);
}
static void verify_timer_of_thread(void) { alive(0); }
/* Its signal waits, blocked, and it has rung often since. */
static void set_overrun(void) {
    block_all();
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 8};
    MUST(timer_create(CLOCK_MONOTONIC, &event, &timers[0]));
    struct itimerspec often = {{0, 1000000}, {0, 1000000}};
    began = now(CLOCK_MONOTONIC);
    MUST(timer_settime(timers[0], 0, &often, NULL));
    nap(50000);
}
static void verify_overrun(void) {
    sigset_t set;
    siginfo_t info;
    static int turn;
    CHECK(field(proc("/proc/self/status"), "ShdPnd:", 16) & 1ull << (SIGRTMIN + 7));
    if (++turn % 20) return;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 8);
    struct timespec limit = {120, 0};
    /* The count begins anew when the signal is taken, which is after this. */
    double taken = now(CLOCK_MONOTONIC);
    EQUAL(MUST(sigtimedwait(&set, &info, &limit)), SIGRTMIN + 8);
    EQUAL(info.si_code, SI_TIMER);
    CHECK(info.si_overrun > 5);
    double passed = (now(CLOCK_MONOTONIC) - began) * 1000;
    if (info.si_overrun > passed + 100) bad("%d overruns within %.0f ms", info.si_overrun, passed);
    began = taken;
    nap(10000);
}
/* A flood of signals in all directions. */
static void set_flood(void) {
    signals_expected = 1;
    share();
    action(SIGUSR1, catch, SA_SIGINFO | SA_RESTART, 0);
    pid_t parent = getpid();
    for (int i = 0; i < 2; i++)
        if (!MUST(fork()))
            for (;;) {
                for (int k = 0; k < 20; k++) MUST(kill(parent, SIGUSR1));
                beat(i);
            }
}
static void verify_flood(void) {
    all_alive(2);
    int before = caught;
    all_alive(2);
    all_alive(2);
    CHECK(caught > before);
    EQUAL(last.si_code, SI_USER);
}

/* An exception of the processor, which has not been handled yet. */
static void except(void) {
    siginfo_t info = {.si_signo = SIGSEGV, .si_code = SEGV_ACCERR, .si_addr = (void *)0x1234000};
    MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), SIGSEGV, &info));
}
static void set_exception(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    except();
}
static void verify_exception(void) {
    static int turn;
    sigset_t come;
    MUST(sigpending(&come));
    EQUAL(sigismember(&come, SIGSEGV), 1);
    if (++turn % 20) return;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    siginfo_t info;
    EQUAL(MUST(sigwaitinfo(&set, &info)), SIGSEGV);
    EQUAL(info.si_code, SEGV_ACCERR);
    EQUAL((intptr_t)info.si_addr, 0x1234000);
    MUST(sigpending(&come));
    EQUAL(sigismember(&come, SIGSEGV), 0);
    except();
}

/* Timers that go off once, soon, in many processes: some do so while the job stands still. Each signal comes once. */
enum { SOONERS = 24 };
static _Noreturn void wait_for_timers(int heart) {
    int signal = heart % 3 ? SIGRTMIN + 1 : SIGALRM;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    MUST(sigprocmask(SIG_BLOCK, &set, NULL));
    timer_t timer;
    struct sigevent event = {.sigev_notify = heart % 3 == 1 ? SIGEV_SIGNAL : SIGEV_THREAD_ID, .sigev_signo = signal};
    event._sigev_un._tid = gettid();
    if (heart % 3) MUST(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct timespec patience = {120, 0};
    for (long n = 1;; n++) {
        long soon = 1000 + n * 997 % 8000; /* microseconds */
        struct itimerspec once = {.it_value.tv_nsec = soon * 1000};
        struct itimerval alarm = {.it_value.tv_usec = soon};
        double since = now(CLOCK_MONOTONIC);
        if (heart % 3) MUST(timer_settime(timer, 0, &once, NULL));
        else MUST(setitimer(ITIMER_REAL, &alarm, NULL));
        siginfo_t info;
        while (sigtimedwait(&set, &info, &patience) != signal)
            if (errno != EINTR) bad("heart %d: timer %ld of %ld us has not gone off", heart, n, soon);
        EQUAL(info.si_code, heart % 3 ? SI_TIMER : SI_KERNEL);
        /* The one before may have done so twice. */
        double took = now(CLOCK_MONOTONIC) - since;
        if (took < ((double)soon - 200) / 1e6) bad("heart %d: timer %ld of %ld us went off after %.6f s", heart, n, soon, took);
        atomic_fetch_add(&shared->beats[heart], 1);
    }
}
static void set_soon(void) {
    signals_expected = 1;
    share();
    for (int heart = 0; heart < SOONERS; heart++)
        if (!MUST(fork())) wait_for_timers(heart);
}
static void verify_soon(void) { all_alive(SOONERS); }

static const struct mode modes[] = {
    {"handlers", set_handlers, verify_handlers},
    {"trap-ignored", set_trap_ignored, verify_trap_ignored},
    {"trap-pending", set_trap_pending, verify_trap_pending},
    {"masks", set_masks, verify_masks},
    {"alternate-stack", set_alternate_stack, verify_alternate_stack},
    {"in-handler", set_in_handler, verify_in_handler},
    {"exception", set_exception, verify_exception},
    {"pending", set_pending, verify_pending},
    {"pending-many", set_pending_many, verify_pending_many},
    {"pending-in-threads", set_pending_in_threads, verify_pending_in_threads},
    {"waiters", set_waiters, verify_waiters},
    {"itimer", set_itimer, verify_itimer},
    {"alarm", set_alarm, verify_alarm},
    {"timers", set_timers, verify_timers},
    {"timer-of-thread", set_timer_of_thread, verify_timer_of_thread},
    {"timer-overrun", set_overrun, verify_overrun},
    {"flood", set_flood, verify_flood},
    {"soon", set_soon, verify_soon},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
