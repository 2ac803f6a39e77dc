/* Restartable sequences: threads that add to the counter of their CPU without a lock. */
#include "guest.h"
#include <pthread.h>
#include <sys/rseq.h>

enum { THREADS = 3, CPUS = 4096, SPINS = 3000 };
static struct {
    volatile uint64_t count;
    char pad[56];
} counters[CPUS];
static atomic_ulong added[THREADS];
static atomic_int hold, held;

/* Adds one to the counter of this CPU, by a load and, much later, a store; 0 when it was disturbed in between. */
static int add(struct rseq *area) {
    uint32_t cpu = *(volatile uint32_t *)&area->cpu_id_start;
    if (cpu >= CPUS) bad("CPU %u", cpu);
    __asm__ goto(
        ".pushsection .data.rel.ro.sequence, \"aw\"\n"
        ".balign 32\n"
        "3: .long 0, 0\n"
        "   .quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "   lea 3b(%%rip), %%rax\n"
        "   mov %%rax, 8(%[area])\n"
        "1: cmp %[cpu], 4(%[area])\n"
        "   jne 5f\n"
        "   mov (%[counter]), %%rax\n"
        "   mov %[spins], %%ecx\n"
        "6: dec %%ecx\n"
        "   jnz 6b\n"
        "   inc %%rax\n"
        "   mov %%rax, (%[counter])\n"
        "2: jmp 7f\n"
        "   .byte 0x0f, 0xb9, 0x3d\n"
        "   .long %c[signature]\n"
        "4: jmp %l[disturbed]\n"
        "5: jmp %l[disturbed]\n"
        "7:\n"
        :
        : [area] "r"(area), [cpu] "r"(cpu), [counter] "r"(&counters[cpu].count), [spins] "i"(SPINS),
          [signature] "i"(RSEQ_SIG)
        : "rax", "rcx", "cc", "memory"
        : disturbed);
    return 1;
disturbed:
    return 0;
}
static void *run(void *which) {
    int me = (int)(uintptr_t)which;
    struct rseq *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    for (;;) {
        if (atomic_load(&hold)) {
            atomic_fetch_add(&held, 1);
            while (atomic_load(&hold)) nap(200);
            atomic_fetch_sub(&held, 1);
        }
        for (int i = 0; i < 100; i++)
            if (add(area)) atomic_fetch_add(&added[me], 1);
    }
    return NULL;
}
static void set_counters(void) {
    pthread_t thread;
    if (!__rseq_size) bad("the C library has no rseq");
    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&thread, NULL, run, (void *)i)) bad("pthread_create");
}
static void verify_counters(void) {
    static uint64_t last[THREADS];
    static int idle[THREADS];
    nap(5000);
    atomic_store(&hold, 1);
    while (atomic_load(&held) != THREADS) nap(200);
    uint64_t counted = 0, sum = 0;
    for (int i = 0; i < CPUS; i++) counted += counters[i].count;
    for (int i = 0; i < THREADS; i++) {
        idle[i] = added[i] != last[i] ? 0 : idle[i] + 1;
        if (idle[i] > 10000) bad("thread %d adds nothing", i);
        sum += last[i] = added[i];
    }
    EQUAL(counted, sum);
    atomic_store(&hold, 0);
    while (atomic_load(&held)) nap(200);
}

static const struct mode modes[] = {{"counters", set_counters, verify_counters}, {0}};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
