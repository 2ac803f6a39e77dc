/* What checkpoint times: `workload SHAPE STATUSFILE N`, a job of a shape and a size that verifies itself as the guests of
 * the tests do.
 *
 *   idle          one small process
 *   tree N        N children with 1 MiB each
 *   threads N     N threads
 *   memory N      N MiB without any two equal words
 *   half N        the same, but every other page is zero
 *
 * gcc -O2 -static -pthread -o workload workload.c */
#include "../guests/guest.h"
#include <pthread.h>

enum { PAGE = 4096, MIB = 1 << 20 };
static long count;
static char *memory;
static size_t size, at;

static void set_idle(void) {}
static void verify_idle(void) {}

static void set_tree(void) {
    for (long i = 0; i < count; i++) {
        if (MUST(fork())) continue;
        memory = map(MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
        fill(memory, MIB, (uint64_t)i);
        for (;;) {
            nap(1000000);
            CHECK(filled(memory, MIB, (uint64_t)i));
        }
    }
}

static void *idle(void *unused) {
    for (;;) pause();
    return unused;
}
static void set_threads(void) {
    pthread_t made;
    for (long i = 0; i < count; i++) EQUAL(pthread_create(&made, NULL, idle, NULL), 0);
}

static int zero_between;
static int is_zero(size_t page) { return zero_between && page % 2; }
static void set_memory(void) {
    size = (size_t)count * MIB;
    memory = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    for (size_t page = 0; page < size / PAGE; page++)
        if (is_zero(page)) memset(memory + page * PAGE, 0, PAGE);
        else fill(memory + page * PAGE, PAGE, page * PAGE);
}
/* A MiB a time, in turn. */
static void verify_memory(void) {
    static const char zeroes[PAGE];
    for (size_t page = at / PAGE; page < (at + MIB) / PAGE; page++)
        CHECK(is_zero(page) ? !memcmp(memory + page * PAGE, zeroes, PAGE) : filled(memory + page * PAGE, PAGE, page * PAGE));
    at = (at + MIB) % size;
}
static void set_half(void) {
    zero_between = 1;
    set_memory();
}

static const struct mode modes[] = {
    {"idle", set_idle, verify_idle},
    {"tree", set_tree, verify_idle},
    {"threads", set_threads, verify_idle},
    {"memory", set_memory, verify_memory},
    {"half", set_half, verify_memory},
    {0},
};
int main(int argc, char **argv) {
    count = argc > 3 ? atol(argv[3]) : 0;
    /* With criu a sleep ends early. */
    signals_expected = 1;
    return guest(argc, argv, modes);
}
