/* What the guests share.
 *
 * A guest is a program that the tests run in a container: `guest MODE STATUSFILE`. It sets up the kernel state that its
 * mode is about, once, and then verifies it for ever. It says so in STATUSFILE, which it rewrites in place: "OK n" with a
 * rising n, or "BAD reason". It knows nothing of checkpoints: whatever it finds, nobody but a checkpoint has done.
 *
 * Every process of a guest may say BAD, and then nobody says OK any more. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wunused-function"

struct mode {
    const char *name;
    void (*set_up)(void);
    void (*verify)(void);
};

enum { STATUS_SIZE = 256 };
static int status_fd = -1;
/* Set where signals are meant to interrupt system calls. */
static int signals_expected;

static void say(const char *text) {
    char line[STATUS_SIZE];
    memset(line, ' ', sizeof line);
    size_t length = strlen(text);
    memcpy(line, text, length < sizeof line - 1 ? length : sizeof line - 1);
    line[sizeof line - 1] = '\n';
    if (pwrite(status_fd, line, sizeof line, 0) != sizeof line) _exit(4);
}

/* One OK may still cross a BAD; so it is said again and again. */
static _Noreturn __attribute__((format(printf, 1, 2))) void bad(const char *format, ...) {
    char reason[STATUS_SIZE - 32], line[STATUS_SIZE];
    va_list rest;
    va_start(rest, format);
    vsnprintf(reason, sizeof reason, format, rest);
    va_end(rest);
    snprintf(line, sizeof line, "BAD pid %d: %s", getpid(), reason);
    for (;;) {
        say(line);
        usleep(1000);
    }
}

static void good(void) {
    static unsigned long n;
    char now[4] = "", line[32];
    if (pread(status_fd, now, 3, 0) == 3 && !strcmp(now, "BAD"))
        for (;;) pause();
    snprintf(line, sizeof line, "OK %lu", ++n);
    say(line);
}

/* The value of a call that must not fail. */
#define MUST(call)                                                            \
    ({                                                                        \
        __auto_type must_ = (call);                                           \
        if (must_ == (__typeof__(must_))-1) bad("line %d: %s: %s", __LINE__, #call, strerror(errno)); \
        must_;                                                                \
    })
#define CHECK(what)                                                  \
    do {                                                             \
        if (!(what)) bad("line %d: not %s", __LINE__, #what);        \
    } while (0)
/* Both sides are whole numbers. */
#define EQUAL(is, should)                                                                       \
    do {                                                                                        \
        long long is_ = (long long)(is), should_ = (long long)(should);                         \
        if (is_ != should_) bad("line %d: %s is %lld, not %lld", __LINE__, #is, is_, should_);  \
    } while (0)
/* Both numbers are of one thing, whatever it is. A restart may change them between two looks. */
#define AGREE(one, other)                                                               \
    do {                                                                                \
        unsigned long long one_, other_;                                                \
        do one_ = (one), other_ = (other);                                              \
        while (one_ != (one));                                                          \
        if (one_ != other_)                                                             \
            bad("line %d: %s is %llu, %s is %llu", __LINE__, #one, one_, #other, other_); \
    } while (0)
/* Waits until something is so, or says BAD. Patience is counted in naps and not in seconds: those go on while the job is
 * nothing but an image. */
enum { PATIENCE = 100000 };
#define AWAIT(what, ...)                            \
    do {                                            \
        for (int naps_ = 0; !(what); naps_++) {     \
            if (naps_ == PATIENCE) bad(__VA_ARGS__); \
            nap(500);                               \
        }                                           \
    } while (0)
/* A call that must fail with an error. */
#define FAILS(call, error)                                                                     \
    do {                                                                                       \
        errno = 0;                                                                             \
        long long got_ = (long long)(call);                                                    \
        if (got_ != -1 || errno != (error))                                                    \
            bad("line %d: %s gave %lld, errno %d, not %s", __LINE__, #call, got_, errno, #error); \
    } while (0)

static void nap(long microseconds) {
    struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
    while (nanosleep(&time, &time))
        if (errno != EINTR || !signals_expected) bad("nanosleep: %s", strerror(errno));
}

static ino_t inode(int fd) {
    struct stat about;
    MUST(fstat(fd, &about));
    return about.st_ino;
}
static ino_t inode_at(const char *path) {
    struct stat about;
    MUST(lstat(path, &about));
    return about.st_ino;
}

static double now(clockid_t clock) {
    struct timespec t;
    MUST(clock_gettime(clock, &t));
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A number that hardly comes about by accident. */
static uint64_t mix(uint64_t x) {
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15ull;
    x ^= x >> 29;
    return x * 0xbf58476d1ce4e5b9ull;
}
static void fill(void *at, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes / 8; i++) ((uint64_t *)at)[i] = mix(seed + i);
}
static int filled(const void *at, size_t bytes, uint64_t seed) {
    for (size_t i = 0; i < bytes / 8; i++)
        if (((const uint64_t *)at)[i] != mix(seed + i)) return 0;
    return 1;
}
static void *map(size_t bytes, int protection, int flags) {
    return MUST(mmap(NULL, bytes, protection, flags, flags & MAP_ANONYMOUS ? -1 : 0, 0));
}

/* What a process or a thread does while it is well: its heart beats. The first process sees to it that all hearts do. */
enum { HEARTS = 256 };
static struct {
    atomic_ulong beats[HEARTS];
    atomic_int numbers[HEARTS]; /* whatever a mode passes round */
} *shared;
static unsigned long seen[HEARTS];

static void share(void) { shared = map(sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS); }
static void beat(int heart) {
    atomic_fetch_add(&shared->beats[heart], 1);
    nap(1000);
}
/* Waits until a heart has beaten since the last time. */
static void alive(int heart) {
    unsigned long beats;
    AWAIT((beats = atomic_load(&shared->beats[heart])) != seen[heart], "heart %d stands still at %lu", heart, beats);
    seen[heart] = beats;
}
static void all_alive(int hearts) {
    for (int i = 0; i < hearts; i++) alive(i);
}
/* Waits for a number that another process puts there. */
static int number(int slot) {
    int value;
    AWAIT((value = atomic_load(&shared->numbers[slot])), "number %d does not come", slot);
    return value;
}

/* When the kernel has started this process: another time in each generation. 0 where there is no /proc. */
static unsigned long long generation(void) {
    char text[1024] = "", *at;
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    MUST(pread(fd, text, sizeof text - 1, 0));
    close(fd);
    /* The 22nd word; the second one may have anything in it. */
    at = strrchr(text, ')');
    for (int word = 2; at && word < 22; word++) at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}
/* What /proc says, as much as there is room for. What comes in several pieces is read again if a restart came between
 * them: the next piece may begin elsewhere in it then. */
static const char *proc_into(char *text, size_t room, const char *path) {
    unsigned long long began;
    int pieces;
    do {
        size_t held = 0;
        ssize_t more;
        began = generation();
        int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
        for (pieces = 0; (more = MUST(read(fd, text + held, room - 1 - held))) > 0; pieces++) held += (size_t)more;
        close(fd);
        text[held] = 0;
    } while (pieces > 1 && generation() != began);
    return text;
}
static const char *proc(const char *path) {
    static _Thread_local char text[1 << 16];
    return proc_into(text, sizeof text, path);
}
/* The number behind a word in such a text. */
static unsigned long long field(const char *text, const char *word, int base) {
    const char *at = strstr(text, word);
    if (!at) bad("no %s in %.60s", word, text);
    return strtoull(at + strlen(word), NULL, base);
}
/* A file with this content. */
static int make(const char *path, const char *content, int flags) {
    int fd = MUST(open(path, O_CREAT | O_TRUNC | O_RDWR | flags, 0644));
    size_t length = strlen(content);
    if (length) EQUAL(MUST(write(fd, content, length)), length);
    return fd;
}

static int guest(int argc, char **argv, const struct mode *modes) {
    if (argc == 2 && !strcmp(argv[1], "list")) {
        for (; modes->name; modes++) puts(modes->name);
        return 0;
    }
    if (argc < 3) return 2;
    while (modes->name && strcmp(modes->name, argv[1])) modes++;
    status_fd = open(argv[2], O_CREAT | O_RDWR, 0666);
    if (status_fd < 0) return 3;
    if (!modes->name) bad("there is no mode %s", argv[1]);
    modes->set_up();
    for (;;) {
        modes->verify();
        good();
        nap(2000);
    }
}
