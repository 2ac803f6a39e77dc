/* What the kernel answers without being called: the clocks and the CPU by the functions of the vDSO, beside the same by
 * system calls. A thread and a child ask, too. */
#include "guest.h"
#include <pthread.h>
#include <sys/time.h>

enum { THREAD, CHILD, HEARTS_HERE };

static long long nanoseconds(const struct timespec *t) { return t->tv_sec * 1000000000LL + t->tv_nsec; }

/* The function's time is between those of two calls. */
static void clock_agrees(clockid_t clock) {
    struct timespec before, between, after;
    MUST(syscall(SYS_clock_gettime, clock, &before));
    MUST(clock_gettime(clock, &between));
    MUST(syscall(SYS_clock_gettime, clock, &after));
    CHECK(nanoseconds(&before) <= nanoseconds(&between));
    CHECK(nanoseconds(&between) <= nanoseconds(&after));
}
static void ask(void) {
    clock_agrees(CLOCK_MONOTONIC);
    clock_agrees(CLOCK_MONOTONIC_COARSE);
    clock_agrees(CLOCK_BOOTTIME);
    struct timeval before, between, after;
    MUST(syscall(SYS_gettimeofday, &before, NULL));
    MUST(gettimeofday(&between, NULL));
    long seconds = time(NULL);
    MUST(syscall(SYS_gettimeofday, &after, NULL));
    /* Somebody may set this clock, by much less than that. */
    CHECK(between.tv_sec > before.tv_sec - 60 && between.tv_sec < seconds + 60);
    CHECK(seconds > between.tv_sec - 60 && seconds < after.tv_sec + 60);
    struct timespec fine, really;
    MUST(clock_getres(CLOCK_MONOTONIC, &fine));
    MUST(syscall(SYS_clock_getres, CLOCK_MONOTONIC, &really));
    EQUAL(nanoseconds(&fine), nanoseconds(&really));
    unsigned cpu, node, real;
    cpu_set_t one;
    MUST(sched_getaffinity(0, sizeof one, &one));
    MUST(getcpu(&cpu, &node));
    CHECK(CPU_ISSET(cpu, &one));
    MUST(syscall(SYS_getcpu, NULL, &real, NULL));
    EQUAL(node, real);
}
static void *run(void *unused) {
    (void)unused;
    for (;;) {
        ask();
        for (int i = 0; i < 5; i++) beat(THREAD);
    }
    return NULL;
}
static void set_functions(void) {
    share();
    /* One CPU, so that the answer is known. */
    cpu_set_t all, one;
    MUST(sched_getaffinity(0, sizeof all, &all));
    CPU_ZERO(&one);
    int last = CPU_SETSIZE - 1;
    while (!CPU_ISSET(last, &all)) last--;
    CPU_SET(last, &one);
    MUST(sched_setaffinity(0, sizeof one, &one));
    if (!MUST(fork())) {
        for (;;) {
            ask();
            for (int i = 0; i < 5; i++) beat(CHILD);
        }
    }
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL)) bad("pthread_create");
}
static void verify_functions(void) {
    ask();
    all_alive(HEARTS_HERE);
}

static const struct mode modes[] = {{"functions", set_functions, verify_functions}, {0}};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
