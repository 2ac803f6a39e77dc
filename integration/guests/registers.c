/* Registers: a thread fills all of a kind, spins for a while and looks what they hold. Hardly ever is it elsewhere. */
#include "guest.h"
#include <asm/prctl.h>
#include <cpuid.h>
#include <pthread.h>

static void spin_for_ever(void *(*run)(void *)) {
    pthread_t thread;
    share();
    if (pthread_create(&thread, NULL, run, NULL)) bad("pthread_create");
}
static void verify_heart(void) { alive(0); }
enum { SPINS = 20000000 };

/* All that an integer program has. The direction flag, the carry and the alignment check are among it. */
enum { GENERAL = 14 };
void fill_and_spin(const uint64_t *in, uint64_t *out, uint64_t spins);
__asm__(
    ".globl fill_and_spin\n"
    "fill_and_spin:\n"
    "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rsi\n"
    "  mov %rdx, %rcx\n"
    "  mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 16(%rdi), %rdx; mov 24(%rdi), %rsi\n"
    "  mov 32(%rdi), %rbp; mov 40(%rdi), %r8; mov 48(%rdi), %r9; mov 56(%rdi), %r10\n"
    "  mov 64(%rdi), %r11; mov 72(%rdi), %r12; mov 80(%rdi), %r13; mov 88(%rdi), %r14\n"
    "  mov 96(%rdi), %r15; mov 104(%rdi), %rdi\n"
    "  std; stc\n"
    "1: lea -1(%rcx), %rcx; jrcxz 2f; jmp 1b\n"
    "2: xchg %rdi, (%rsp)\n"
    "  mov %rax, 0(%rdi); mov %rbx, 8(%rdi); mov %rdx, 16(%rdi); mov %rsi, 24(%rdi)\n"
    "  mov %rbp, 32(%rdi); mov %r8, 40(%rdi); mov %r9, 48(%rdi); mov %r10, 56(%rdi)\n"
    "  mov %r11, 64(%rdi); mov %r12, 72(%rdi); mov %r13, 80(%rdi); mov %r14, 88(%rdi)\n"
    "  mov %r15, 96(%rdi)\n"
    "  pop %rax; mov %rax, 104(%rdi)\n"
    "  pushf; pop 112(%rdi)\n"
    "  cld\n"
    "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "  ret\n");
static void *spin_general(void *unused) {
    uint64_t in[GENERAL], out[GENERAL + 1];
    for (uint64_t seed = 1;; seed += 100) {
        fill(in, sizeof in, seed);
        fill_and_spin(in, out, SPINS);
        for (int i = 0; i < GENERAL; i++)
            if (in[i] != out[i]) bad("general register %d is %#lx, not %#lx", i, out[i], in[i]);
        if ((out[GENERAL] & 0x401) != 0x401) bad("flags are %#lx", out[GENERAL]);
        beat(0);
    }
    return unused;
}
static void set_general(void) { spin_for_ever(spin_general); }

/* x87 and the control word of SSE. */
static void *spin_floating(void *unused) {
    static struct {
        uint16_t control, r0, status, r1, tag, r2;
        uint32_t pointers[4];
        uint8_t stack[80];
    } left;
    static long double values[8], back;
    static const uint16_t control = 0x0e7f; /* 53 bits, rounding towards +infinity */
    static const uint32_t modes = 0xffa1;   /* flush to zero, rounding to zero, two sticky flags */
    static const uint16_t usual_control = 0x37f;
    static const uint32_t usual_modes = 0x1f80;
    uint32_t modes_left;
    for (int i = 0; i < 8; i++) values[i] = 1.0L / (3 + i);
    for (;;) {
        __asm__ volatile(
            "fninit; fldcw %[control]; ldmxcsr %[modes]\n"
            "fldt 112(%[values]); fldt 96(%[values]); fldt 80(%[values]); fldt 64(%[values])\n"
            "fldt 48(%[values]); fldt 32(%[values]); fldt 16(%[values]); fldt 0(%[values])\n"
            "mov %[spins], %%rcx\n"
            "1: dec %%rcx; jnz 1b\n"
            "fnsave %[left]; stmxcsr %[modes_left]\n"
            "fninit; fldcw %[usual_control]; ldmxcsr %[usual_modes]\n"
            : [left] "=m"(left), [modes_left] "=m"(modes_left)
            : [control] "m"(control), [modes] "m"(modes), [values] "r"(values), [spins] "i"(SPINS),
              [usual_control] "m"(usual_control), [usual_modes] "m"(usual_modes)
            : "rcx", "cc", "memory", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)");
        if (left.control != control) bad("the control word is %#x", left.control);
        if (modes_left != modes) bad("MXCSR is %#x", modes_left);
        EQUAL(left.tag, 0);
        for (int i = 0; i < 8; i++) {
            memcpy(&back, left.stack + 10 * i, 10);
            if (back != values[i]) bad("st(%d) is %Lf", i, back);
        }
        beat(0);
    }
    return unused;
}
static void set_floating(void) { spin_for_ever(spin_floating); }

/* Vectors: as many and as wide as this CPU has them. */
static uint8_t given[2048 + 64] __attribute__((aligned(64))), taken[2048 + 64] __attribute__((aligned(64)));
#define ALL16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define NEXT16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30) X(31)
#define PUT512(n) "vmovdqa64 64*" #n "(%0), %%zmm" #n "\n"
#define GET512(n) "vmovdqa64 %%zmm" #n ", 64*" #n "(%1)\n"
#define PUT256(n) "vmovdqa 64*" #n "(%0), %%ymm" #n "\n"
#define GET256(n) "vmovdqa %%ymm" #n ", 64*" #n "(%1)\n"
#define PUT128(n) "movdqa 64*" #n "(%0), %%xmm" #n "\n"
#define GET128(n) "movdqa %%xmm" #n ", 64*" #n "(%1)\n"
#define MASKS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define PUTK(n) "kmovq 2048+8*" #n "(%0), %%k" #n "\n"
#define GETK(n) "kmovq %%k" #n ", 2048+8*" #n "(%1)\n"
#define SPIN "mov %2, %%rcx\n1: dec %%rcx; jnz 1b\n"
#define CLOBBERS "rcx", "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
    "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

__attribute__((target("avx512f,avx512bw"))) static void vectors512(void) {
    __asm__ volatile(ALL16(PUT512) NEXT16(PUT512) MASKS(PUTK) SPIN ALL16(GET512) NEXT16(GET512) MASKS(GETK) "vzeroupper\n"
                     :
                     : "r"(given), "r"(taken), "i"(SPINS)
                     : CLOBBERS, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25",
                       "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7");
}
__attribute__((target("avx"))) static void vectors256(void) {
    __asm__ volatile(ALL16(PUT256) SPIN ALL16(GET256) "vzeroupper\n" : : "r"(given), "r"(taken), "i"(SPINS) : CLOBBERS);
}
static void vectors128(void) {
    __asm__ volatile(ALL16(PUT128) SPIN ALL16(GET128) : : "r"(given), "r"(taken), "i"(SPINS) : CLOBBERS);
}
static int width;
static void *spin_vectors(void *unused) {
    int count = width == 64 ? 32 : 16;
    for (uint64_t seed = 1;; seed += 1000) {
        fill(given, sizeof given, seed);
        width == 64 ? vectors512() : width == 32 ? vectors256() : vectors128();
        for (int i = 0; i < count; i++)
            if (memcmp(given + 64 * i, taken + 64 * i, (size_t)width)) bad("vector register %d of %d bytes", i, width);
        if (width == 64 && memcmp(given + 2048, taken + 2048, 64)) bad("a mask register");
        beat(0);
    }
    return unused;
}
static void set_vectors(void) {
    __builtin_cpu_init();
    width = __builtin_cpu_supports("avx512bw") ? 64 : __builtin_cpu_supports("avx") ? 32 : 16;
    spin_for_ever(spin_vectors);
}
/* The same, but the upper parts are in their initial state, which a CPU does not store. */
static void set_narrow(void) {
    width = 16;
    spin_for_ever(spin_vectors);
}

/* The matrix registers, on CPUs that have them; elsewhere this only beats. */
enum { TILES = 8, TILE = 1024, REQUEST = 0x1023, PERMITTED = 0x1022, TILE_DATA = 18 };
static uint8_t tiles[TILES][TILE] __attribute__((aligned(64))), tiles_back[TILES][TILE] __attribute__((aligned(64)));
static int has_tiles(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1 << 24)) return 0;
    return !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}
#define PUTT(n) ".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x04 + 8 * " #n ", 0x10\n add $1024, %%rax\n" /* tileloadd (rax,rdx), tmmN */
#define GETT(n) ".byte 0xc4, 0xe2, 0x7a, 0x4b, 0x04 + 8 * " #n ", 0x10\n add $1024, %%rax\n" /* tilestored */
static void *spin_tiles(void *unused) {
    static struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1}, config_back;
    for (int i = 0; i < TILES; i++) config.bytes[i] = 64, config.rows[i] = 16;
    int there = has_tiles();
    for (uint64_t seed = 1;; seed += 10000) {
        if (there) {
            fill(tiles, sizeof tiles, seed);
            uint64_t at = (uint64_t)tiles;
            __asm__ volatile(".byte 0xc4, 0xe2, 0x78, 0x49, 0x03\n" /* ldtilecfg (rbx) */
                             MASKS(PUTT) : "+a"(at) : "b"(&config), "d"(64) : "memory", "cc");
            __asm__ volatile("1: dec %0; jnz 1b" : "+r"((uint64_t){SPINS}) : : "cc");
            at = (uint64_t)tiles_back;
            __asm__ volatile(".byte 0xc4, 0xe2, 0x79, 0x49, 0x03\n" /* sttilecfg (rbx) */
                             MASKS(GETT) ".byte 0xc4, 0xe2, 0x78, 0x49, 0xc0\n" /* tilerelease */
                             : "+a"(at) : "b"(&config_back), "d"(64) : "memory", "cc");
            CHECK(!memcmp(&config, &config_back, sizeof config));
            CHECK(!memcmp(tiles, tiles_back, sizeof tiles));
            uint64_t permitted = 0;
            MUST(syscall(SYS_arch_prctl, PERMITTED, &permitted));
            CHECK(permitted & 1 << TILE_DATA);
        }
        beat(0);
    }
    return unused;
}
static void set_tiles(void) { spin_for_ever(spin_tiles); }

/* The bases of fs (the C library's thread-local storage) and gs, in two threads. */
static _Thread_local uint64_t local = 7;
static uint64_t words[2];
static void *spin_bases(void *which) {
    uint64_t me = which != NULL;
    local = 100 + me;
    words[me] = 200 + me;
    MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, &words[me]));
    for (;;) {
        uint64_t through_gs, base = 0;
        __asm__ volatile("mov %%gs:0, %0" : "=r"(through_gs));
        EQUAL(through_gs, 200 + me);
        EQUAL(*(volatile uint64_t *)&local, 100 + me);
        MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &base));
        EQUAL(base, &words[me]);
        beat((int)me);
    }
    return NULL;
}
static void set_bases(void) {
    pthread_t thread;
    share();
    for (uintptr_t i = 0; i < 2; i++)
        if (pthread_create(&thread, NULL, spin_bases, (void *)i)) bad("pthread_create");
}
static void verify_bases(void) {
    all_alive(2);
    EQUAL(local, 7);
}

static const struct mode modes[] = {
    {"general", set_general, verify_heart}, {"floating", set_floating, verify_heart},
    {"vectors", set_vectors, verify_heart}, {"narrow", set_narrow, verify_heart},
    {"tiles", set_tiles, verify_heart},     {"bases", set_bases, verify_bases},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
