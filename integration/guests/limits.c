/* Limits: of processes that have all that they are allowed. */
#include "guest.h"
#include <sys/resource.h>

/* A field of /proc/self/status, in KiB. */
static unsigned long kib(const char *field_) { return field(proc("/proc/self/status"), field_, 10); }

static int file = -1;
static struct rlimit wanted[RLIM_NLIMITS];
static void limit(int kind, rlim_t soft, int hard_too) {
    struct rlimit *it = &wanted[kind];
    MUST(getrlimit((__rlimit_resource_t)kind, it));
    it->rlim_cur = soft;
    if (hard_too) it->rlim_max = soft;
    MUST(setrlimit((__rlimit_resource_t)kind, it));
}
static void note_limits(void) {
    for (int kind = 0; kind < RLIM_NLIMITS; kind++) MUST(getrlimit((__rlimit_resource_t)kind, &wanted[kind]));
}
static void verify_limits(void) {
    for (int kind = 0; kind < RLIM_NLIMITS; kind++) {
        struct rlimit is;
        MUST(getrlimit((__rlimit_resource_t)kind, &is));
        EQUAL(is.rlim_cur, wanted[kind].rlim_cur);
        EQUAL(is.rlim_max, wanted[kind].rlim_max);
    }
}
/* No page more is to be had. */
static void no_memory(int flags, int error) {
    FAILS((intptr_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0), error);
}

static void set_address_space(void) {
    note_limits();
    limit(RLIMIT_AS, kib("VmSize:") * 1024, 0);
}
static void verify_memory(void) {
    verify_limits();
    no_memory(0, ENOMEM);
}
static void set_address_space_for_good(void) {
    note_limits();
    limit(RLIMIT_AS, kib("VmSize:") * 1024, 1);
}
static void set_data(void) {
    note_limits();
    limit(RLIMIT_DATA, kib("VmData:") * 1024, 0);
}

/* Whatever is mapped is locked, and as much is locked as may be. */
static void set_locked(void) {
    note_limits();
    MUST(mlockall(MCL_CURRENT | MCL_FUTURE));
    limit(RLIMIT_MEMLOCK, kib("VmLck:") * 1024, 0);
    /* CAP_IPC_LOCK is above that limit. */
    struct { uint32_t version; int pid; } header = {0x20080522, 0};
    struct { uint32_t effective, permitted, inheritable; } data[2];
    MUST(syscall(SYS_capget, &header, data));
    for (int i = 0; i < 2; i++) {
        uint32_t lock = i == 0 ? 1u << 14 : 0;
        data[i].effective &= ~lock, data[i].permitted &= ~lock, data[i].inheritable &= ~lock;
    }
    MUST(syscall(SYS_capset, &header, data));
}
static void verify_locked(void) {
    verify_limits();
    no_memory(0, EAGAIN);
}

/* A user who has more processes than may be. They execute a program all the same, again and again: what counts is whether
 * there were too many when they became that user. */
enum { MANY = 3 };
static char *files[MANY] = {"COUNT=/count0", "COUNT=/count1", "COUNT=/count2"};
static _Noreturn void execute(char *count) {
    char *const again[] = {"/guest", "again", "/status", NULL}, *const with[] = {count, NULL};
    execve("/guest", again, with);
    bad("execve: %s", strerror(errno));
}
static void set_processes(void) {
    note_limits();
    for (int i = 0; i < MANY; i++) {
        int count = make(files[i] + 6, "", 0);
        MUST(fchown(count, 54321, 54321));
        close(count);
    }
    MUST(setresgid(54321, 54321, 54321));
    MUST(setresuid(54321, 54321, 54321));
    limit(RLIMIT_NPROC, MANY + 1, 0);
    for (int i = 0; i < MANY; i++)
        if (!MUST(fork())) execute(files[i]);
    limit(RLIMIT_NPROC, 2, 0);
}
static void verify_processes(void) {
    static off_t last[MANY];
    verify_limits();
    FAILS(fork(), EAGAIN);
    for (int i = 0; i < MANY; i++) {
        struct stat about;
        double since = now(CLOCK_MONOTONIC);
        while (MUST(stat(files[i] + 6, &about)), about.st_size == last[i]) {
            if (now(CLOCK_MONOTONIC) - since > 15) bad("no program is executed any more");
            nap(1000);
        }
        last[i] = about.st_size;
    }
}
static void set_again(void) {
    char *path = getenv("COUNT");
    CHECK(path);
    limit(RLIMIT_NPROC, 2, 0);
    int count = MUST(open(path, O_WRONLY | O_APPEND | O_CLOEXEC));
    MUST(write(count, "x", 1));
    close(count);
    nap(2000);
    execute(path - 6);
}

/* More descriptors than are allowed by now, the highest above the limit. */
static void set_descriptors(void) {
    note_limits();
    EQUAL(MUST(fcntl(MUST(open("/dev/null", O_RDWR)), F_DUPFD, 200)), 200);
    limit(RLIMIT_NOFILE, 4, 0);
}
static void verify_descriptors(void) {
    verify_limits();
    MUST(fcntl(200, F_GETFD));
    FAILS(fcntl(200, F_DUPFD, 0), EMFILE);
}

/* Small ones of what a checkpoint might need. */
static void set_small(void) {
    note_limits();
    file = make("/file", "1234567890", 0);
    limit(RLIMIT_FSIZE, 300, 0);
    limit(RLIMIT_STACK, 4096, 0);
    limit(RLIMIT_CORE, 0, 0);
    limit(RLIMIT_SIGPENDING, 0, 0);
    limit(RLIMIT_MSGQUEUE, 0, 0);
    limit(RLIMIT_CPU, 3600, 0);
}
static void verify_small(void) {
    verify_limits();
    struct stat about;
    MUST(fstat(file, &about));
    EQUAL(about.st_size, 10);
    signal(SIGXFSZ, SIG_IGN);
    FAILS(pwrite(file, "x", 1, 300), EFBIG);
}

static const struct mode modes[] = {
    {"address-space", set_address_space, verify_memory},
    {"address-space-for-good", set_address_space_for_good, verify_memory},
    {"data", set_data, verify_memory},
    {"locked", set_locked, verify_locked},
    {"processes", set_processes, verify_processes},
    {"again", set_again, verify_limits},
    {"descriptors", set_descriptors, verify_descriptors},
    {"small", set_small, verify_small},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
