/* Goes on wherever it is, on another kernel and another CPU: threads that ask the vDSO for the time all the while, one that
 * sleeps, and a first one that counts, by eventfds of both kinds, with a POSIX timer that is not its process's first. A line
 * a turn goes to /log; what is wrong, too. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static atomic_ulong asked;
static atomic_int wrong;

static long long now(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) wrong = 1;
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *ask(void *unused) {
    (void)unused;
    long long last = 0;
    for (;;) {
        long long monotonic = now(CLOCK_MONOTONIC);
        if (monotonic < last) wrong = 2;
        last = monotonic;
        struct timeval day;
        long before = (long)time(NULL);
        gettimeofday(&day, NULL);
        /* A move may come between any two of them. */
        if (day.tv_sec < before - 2 || day.tv_sec > (long)time(NULL) + 2) wrong = 3;
        now(CLOCK_REALTIME_COARSE);
        struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
        asked++;
    }
    return NULL;
}

static void *sleeper(void *unused) {
    (void)unused;
    struct timespec longer = {100000, 0};
    nanosleep(&longer, NULL);
    wrong = 4;
    return NULL;
}

/* Takes out what is expected and puts it back. */
static void turn_over(int fd, uint64_t expected, int otherwise) {
    uint64_t got = 0;
    if (read(fd, &got, sizeof got) != sizeof got || got != expected) wrong = otherwise;
    if (write(fd, &expected, sizeof expected) != sizeof expected) wrong = otherwise;
}

int main(void) {
    int semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK), counter = eventfd(5, EFD_NONBLOCK);
    timer_t timers[3];
    struct sigevent silent = {.sigev_notify = SIGEV_NONE};
    for (int n = 0; n < 3; n++)
        if (timer_create(CLOCK_MONOTONIC, &silent, &timers[n])) abort();
    struct itimerspec longer = {.it_value = {100000, 0}}, left;
    if (timer_settime(timers[2], 0, &longer, NULL) || timer_delete(timers[0]) || timer_delete(timers[1])) abort();
    pthread_t thread;
    for (int n = 0; n < 3; n++) pthread_create(&thread, NULL, n ? ask : sleeper, NULL);
    int log = open("/log", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    for (int turn = 0;; turn++) {
        char line[64];
        unsigned long before = asked;
        while (asked < before + 4) {
            struct timespec pause = {0, 5000000};
            nanosleep(&pause, NULL);
        }
        turn_over(semaphore, 1, 5);
        turn_over(counter, 5, 6);
        if (timer_gettime(timers[2], &left) || left.it_value.tv_sec < 90000 || left.it_value.tv_sec > 100000) wrong = 7;
        int length = snprintf(line, sizeof line, "%d %d\n", turn, wrong);
        if (write(log, line, (size_t)length) != length) abort();
    }
}
