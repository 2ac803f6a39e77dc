/* Who a process is, what it may, and how it is treated. */
#include "guest.h"
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/securebits.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/fsuid.h>
#include <sys/personality.h>
#include <sys/resource.h>

static void are(uid_t real, uid_t effective, uid_t saved, uid_t of_files, const char *what) {
    char line[64];
    snprintf(line, sizeof line, "\n%s:\t%u\t%u\t%u\t%u\n", what, real, effective, saved, of_files);
    if (!strstr(proc("/proc/thread-self/status"), line)) bad("%s are not %u %u %u %u", what, real, effective, saved, of_files);
}
static void set_ids(void) {
    const gid_t groups[] = {5, 6, 7000000, 4000000000u};
    MUST(prctl(PR_SET_KEEPCAPS, 1));
    MUST(setgroups(4, groups));
    MUST(setresgid(1001, 1002, 1003));
    setfsgid(1004);
    MUST(setresuid(2001, 2002, 2003));
}
static void verify_ids(void) {
    gid_t groups[8];
    are(2001, 2002, 2003, 2002, "Uid");
    are(1001, 1002, 1003, 1004, "Gid");
    EQUAL(MUST(getgroups(8, groups)), 4);
    EQUAL(groups[2], 7000000);
    EQUAL(groups[3], 4000000000u);
    FAILS(open("/root only", O_RDONLY | O_CREAT, 0600), EACCES);
}
static void set_many_groups(void) {
    gid_t groups[1000];
    for (gid_t i = 0; i < 1000; i++) groups[i] = i * 3 + 1;
    MUST(setgroups(1000, groups));
}
static void verify_many_groups(void) {
    static gid_t groups[1001];
    EQUAL(MUST(getgroups(1001, groups)), 1000);
    for (gid_t i = 0; i < 1000; i++) EQUAL(groups[i], i * 3 + 1);
}
/* A thread may be somebody else. */
static void *somebody(void *id) {
    gid_t id_ = (gid_t)(intptr_t)id;
    MUST(syscall(SYS_setgroups, 1, &id_));
    MUST(syscall(SYS_setresgid, id_, id_, id_));
    MUST(syscall(SYS_setresuid, id_, id_, id_));
    for (;;) {
        gid_t group;
        are(id_, id_, id_, id_, "Uid");
        are(id_, id_, id_, id_, "Gid");
        EQUAL(MUST(getgroups(1, &group)), 1);
        EQUAL(group, id_);
        beat((int)id_ - 3000);
    }
    return NULL;
}
static void set_ids_of_threads(void) {
    share();
    pthread_t made;
    for (intptr_t i = 0; i < 4; i++) EQUAL(pthread_create(&made, NULL, somebody, (void *)(3000 + i)), 0);
}
static void verify_ids_of_threads(void) {
    all_alive(4);
    are(0, 0, 0, 0, "Uid");
}

/* Capabilities */
static struct __user_cap_data_struct caps[2];
static struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
static void set_caps(void) {
    MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_MODULE));
    MUST(prctl(PR_CAPBSET_DROP, CAP_AUDIT_WRITE));
    MUST(syscall(SYS_capget, &header, caps));
    caps[0].permitted &= ~(1u << CAP_NET_RAW);
    caps[0].effective = caps[0].permitted & ~(1u << CAP_CHOWN);
    caps[0].inheritable = 1u << CAP_KILL | 1u << CAP_SETUID;
    MUST(syscall(SYS_capset, &header, caps));
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
    MUST(syscall(SYS_capget, &header, caps));
}
static void verify_caps(void) {
    struct __user_cap_data_struct is[2];
    MUST(syscall(SYS_capget, &header, is));
    CHECK(!memcmp(is, caps, sizeof is));
    EQUAL(prctl(PR_CAPBSET_READ, CAP_SYS_MODULE), 0);
    EQUAL(prctl(PR_CAPBSET_READ, CAP_AUDIT_WRITE), 0);
    EQUAL(prctl(PR_CAPBSET_READ, CAP_KILL), 1);
    EQUAL(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0), 1);
    EQUAL(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_SETUID, 0, 0), 0);
}
enum { BITS = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_CAP_AMBIENT_RAISE };
static void set_securebits(void) { MUST(prctl(PR_SET_SECUREBITS, BITS)); }
static void verify_securebits(void) { EQUAL(MUST(prctl(PR_GET_SECUREBITS)), BITS); }
static void set_no_new_privs(void) { MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); }
static void verify_no_new_privs(void) { EQUAL(MUST(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)), 1); }

/* Filters: the call `number` fails with `error`. */
static void filter(int number, int error, unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    EQUAL(MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program)), 0);
}
static void set_seccomp(void) {
    filter(SYS_getpriority, 77, 0);
    filter(SYS_getppid, 78, SECCOMP_FILTER_FLAG_LOG);
}
static void verify_seccomp(void) {
    FAILS(syscall(SYS_getpriority, 0, 0), 77);
    FAILS(syscall(SYS_getppid), 78);
    EQUAL(field(proc("/proc/self/status"), "Seccomp_filters:", 10), 2);
    EQUAL(field(proc("/proc/self/status"), "NoNewPrivs:", 10), 0);
}
/* One filter for all, one more for the child, and one for a thread of its own. */
static void *filtered(void *unused) {
    (void)unused;
    filter(SYS_getpgid, 80, 0);
    for (;;) {
        FAILS(syscall(SYS_getpgid, 0), 80);
        FAILS(syscall(SYS_getpriority, 0, 0), 77);
        beat(1);
    }
    return NULL;
}
static void set_seccomp_family(void) {
    share();
    filter(SYS_getpriority, 77, 0);
    if (!MUST(fork())) {
        filter(SYS_getsid, 79, 0);
        for (;;) {
            FAILS(syscall(SYS_getpriority, 0, 0), 77);
            FAILS(syscall(SYS_getsid, 0), 79);
            beat(0);
        }
    }
    pthread_t made;
    EQUAL(pthread_create(&made, NULL, filtered, NULL), 0);
}
static void verify_seccomp_family(void) {
    all_alive(2);
    FAILS(syscall(SYS_getpriority, 0, 0), 77);
    MUST(syscall(SYS_getsid, 0));
    MUST(syscall(SYS_getpgid, 0));
    EQUAL(field(proc("/proc/thread-self/status"), "Seccomp_filters:", 10), 1);
}
/* A child that may do nothing but read and write. */
static int ask[2], answer[2];
static void set_seccomp_strict(void) {
    MUST(pipe(ask));
    MUST(pipe(answer));
    if (MUST(fork())) return;
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
    for (char word; read(ask[0], &word, 1) == 1; word++)
        if (write(answer[1], &word, 1) != 1) break;
    syscall(SYS_exit, 1);
}
static void verify_seccomp_strict(void) {
    static char word;
    char got;
    nap(2000);
    EQUAL(MUST(write(ask[1], &word, 1)), 1);
    EQUAL(MUST(read(answer[0], &got, 1)), 1);
    EQUAL(got, word++);
}

/* Limits: only downwards, which everybody may. */
static const struct { int which; rlim_t soft, hard; } limits[] = {
    {RLIMIT_NOFILE, 123, 456}, {RLIMIT_CORE, 0, 4096}, {RLIMIT_STACK, 1 << 20, 4 << 20}, {RLIMIT_NPROC, 1000, 2000},
    {RLIMIT_FSIZE, 1 << 30, RLIM_INFINITY}, {RLIMIT_AS, 1l << 40, 1l << 41}, {RLIMIT_SIGPENDING, 50, 60}};
static void set_limits(void) {
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit was, wanted = {limits[i].soft, limits[i].hard};
        MUST(getrlimit(limits[i].which, &was));
        if (wanted.rlim_max > was.rlim_max) wanted.rlim_max = was.rlim_max;
        MUST(setrlimit(limits[i].which, &wanted));
    }
}
static void verify_limits(void) {
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit is;
        MUST(getrlimit(limits[i].which, &is));
        if (is.rlim_cur != limits[i].soft) bad("the soft limit %d is %lu", limits[i].which, is.rlim_cur);
        if (is.rlim_max > limits[i].hard) bad("the hard limit %d is %lu", limits[i].which, is.rlim_max);
    }
}

/* Scheduling, one thread other than the next */
static void *scheduled(void *thread) {
    int me = (int)(intptr_t)thread, policy = (int[]){SCHED_OTHER, SCHED_BATCH, SCHED_IDLE}[me];
    struct sched_param none = {0}, is;
    cpu_set_t one, has;
    CPU_ZERO(&one);
    MUST(sched_getaffinity(0, sizeof has, &has));
    for (int cpu = 0, left = me % CPU_COUNT(&has); left >= 0; cpu = (cpu + 1) % CPU_SETSIZE)
        if (CPU_ISSET(cpu, &has) && left-- == 0) CPU_SET(cpu, &one);
    MUST(sched_setscheduler(0, policy | (me == 1 ? SCHED_RESET_ON_FORK : 0), &none));
    if (policy != SCHED_IDLE) MUST(setpriority(PRIO_PROCESS, 0, 3 + me));
    MUST(sched_setaffinity(0, sizeof one, &one));
    MUST(prctl(PR_SET_TIMERSLACK, 70000 + me));
    MUST(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (me + 1)));
    for (;;) {
        EQUAL(MUST(sched_getscheduler(0)), policy | (me == 1 ? SCHED_RESET_ON_FORK : 0));
        MUST(sched_getparam(0, &is));
        errno = 0;
        if (policy != SCHED_IDLE) EQUAL(getpriority(PRIO_PROCESS, 0), 3 + me);
        MUST(sched_getaffinity(0, sizeof has, &has));
        CHECK(CPU_EQUAL(&has, &one));
        EQUAL(MUST(prctl(PR_GET_TIMERSLACK)), 70000 + me);
        EQUAL(MUST(syscall(SYS_ioprio_get, 1, 0)), 2 << 13 | (me + 1));
        beat(me);
    }
    return NULL;
}
static void set_scheduling(void) {
    share();
    pthread_t made;
    for (intptr_t i = 0; i < 3; i++) EQUAL(pthread_create(&made, NULL, scheduled, (void *)i), 0);
    MUST(setpriority(PRIO_PROCESS, 0, -3));
}
static void verify_scheduling(void) {
    all_alive(3);
    EQUAL(getpriority(PRIO_PROCESS, 0), -3);
    EQUAL(MUST(prctl(PR_GET_TIMERSLACK)), 50000);
}

static void set_personality(void) { MUST(personality(ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT)); }
static void verify_personality(void) { EQUAL(MUST(personality(0xffffffff)), ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT); }
static void set_umask(void) { umask(0137); }
static void verify_umask(void) {
    EQUAL(umask(0137), 0137);
    EQUAL(field(proc("/proc/self/status"), "Umask:", 8), 0137);
}
static void set_cwd(void) {
    MUST(mkdir("/tmp/here", 0755));
    MUST(chdir("/tmp/here"));
    close(make("near", "near", 0));
}
static void verify_cwd(void) {
    char here[64];
    CHECK(getcwd(here, sizeof here));
    CHECK(!strcmp(here, "/tmp/here"));
    CHECK(!strcmp(proc("near"), "near"));
}
/* With another root than the first process has. */
static _Noreturn void in_root(void (*verify)(void)) {
    for (;;) {
        verify();
        beat(0);
    }
}
static void verify_chroot(void) {
    char here[64];
    CHECK(getcwd(here, sizeof here));
    CHECK(!strcmp(here, "/dir"));
    CHECK(!strcmp(proc("/file"), "inside"));
    CHECK(!strcmp(proc("../../file"), "inside"));
    FAILS(access("/tmp", F_OK), ENOENT);
}
static void enter_chroot(void) {
    MUST(mkdir("/tmp/root", 0755));
    MUST(mkdir("/tmp/root/dir", 0755));
    close(make("/tmp/root/file", "inside", 0));
    MUST(chroot("/tmp/root"));
    MUST(chdir("/dir"));
}
static void set_chroot(void) {
    share();
    if (MUST(fork())) return;
    enter_chroot();
    in_root(verify_chroot);
}
/* The current directory is above the root. */
static void verify_chroot_cwd_outside(void) {
    CHECK(!strcmp(proc("file"), "outside"));
    FAILS(access("/file", F_OK), ENOENT);
}
static void set_chroot_cwd_outside(void) {
    share();
    if (MUST(fork())) return;
    MUST(mkdir("/tmp/root", 0755));
    close(make("/tmp/file", "outside", 0));
    MUST(chdir("/tmp"));
    MUST(chroot("/tmp/root"));
    in_root(verify_chroot_cwd_outside);
}
static void verify_alive(void) { alive(0); }

static void *named(void *thread) {
    char name[16], is[16];
    snprintf(name, sizeof name, "thread (%d)\n )", (int)(intptr_t)thread);
    MUST(prctl(PR_SET_NAME, name));
    for (;;) {
        MUST(prctl(PR_GET_NAME, is));
        CHECK(!strcmp(is, name));
        beat((int)(intptr_t)thread);
    }
    return NULL;
}
static void set_names(void) {
    share();
    pthread_t made;
    for (intptr_t i = 0; i < 3; i++) EQUAL(pthread_create(&made, NULL, named, (void *)i), 0);
    MUST(prctl(PR_SET_NAME, "\xff\xfe 12345678901"));
}
static void verify_names(void) {
    char is[16];
    all_alive(3);
    MUST(prctl(PR_GET_NAME, is));
    CHECK(!strcmp(is, "\xff\xfe 12345678901"));
}
/* A child dies with its parent: one that has the wish, of many. */
static void set_death_signal(void) {
    share();
    if (MUST(fork())) return;
    for (;;) {
        int is;
        if (!atomic_load(&shared->numbers[0])) {
            MUST(prctl(PR_SET_PDEATHSIG, SIGUSR2));
            atomic_store(&shared->numbers[0], 1);
        }
        MUST(prctl(PR_GET_PDEATHSIG, &is));
        EQUAL(is, SIGUSR2);
        beat(0);
    }
}
static void set_not_dumpable(void) { MUST(prctl(PR_SET_DUMPABLE, 0)); }
static void verify_not_dumpable(void) { EQUAL(prctl(PR_GET_DUMPABLE), 0); }
static void set_oom(void) {
    int fd = MUST(open("/proc/self/oom_score_adj", O_WRONLY));
    EQUAL(MUST(write(fd, "567", 3)), 3);
    close(fd);
}
static void verify_oom(void) { EQUAL(atoi(proc("/proc/self/oom_score_adj")), 567); }

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
static void set_prctls(void) {
    MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    int fd = MUST(open("/proc/self/coredump_filter", O_WRONLY));
    EQUAL(MUST(write(fd, "0x7b", 4)), 4);
    close(fd);
}
static void verify_prctls(void) {
    int on;
    EQUAL(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
    EQUAL(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), PR_MCE_KILL_EARLY);
    MUST(prctl(PR_GET_CHILD_SUBREAPER, &on));
    EQUAL(on, 1);
    EQUAL(strtol(proc("/proc/self/coredump_filter"), NULL, 16), 0x7b);
}
static void set_mdwe(void) { MUST(prctl(PR_SET_MDWE, 1, 0, 0, 0)); }
static void verify_mdwe(void) {
    EQUAL(prctl(PR_GET_MDWE, 0, 0, 0, 0), 1);
    FAILS((long)mmap(NULL, 4096, PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EACCES);
}
static void set_tsc(void) { MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV)); }
static void verify_tsc(void) {
    /* The vdso reads the counter, so the clock is asked by a system call from now on. */
    int is;
    MUST(prctl(PR_GET_TSC, &is));
    EQUAL(is, PR_TSC_SIGSEGV);
}

/* Clocks of a job go on, not back, and never jump: whatever has happened on the host. */
static const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW};
static double times[4];
static void set_clocks(void) {
    for (int i = 0; i < 4; i++) times[i] = now(clocks[i]);
}
static void verify_clocks(void) {
    for (int i = 0; i < 4; i++) {
        double is = now(clocks[i]);
        if (is < times[i]) bad("clock %d went back from %f to %f", clocks[i], times[i], is);
        if (is > times[i] + 3600) bad("clock %d jumped from %f to %f", clocks[i], times[i], is);
        times[i] = is;
    }
}
/* The program has gone from the disk. */
static void set_deleted_program(void) { MUST(unlink("/guest")); }
static void verify_deleted_program(void) {
    char exe[64] = "";
    MUST(readlink("/proc/self/exe", exe, sizeof exe - 1));
    CHECK(!strcmp(exe, "/guest (deleted)"));
    int fd = MUST(open("/proc/self/exe", O_RDONLY));
    EQUAL(MUST(read(fd, exe, 4)), 4);
    CHECK(!memcmp(exe, "\177ELF", 4));
    close(fd);
}

/* The login that the kernel's audit knows, in a process with two threads. */
static unsigned login = 3;
static void *has_login(void *unused) {
    for (;;) {
        EQUAL(strtoul(proc("/proc/thread-self/loginuid"), NULL, 10), login);
        beat(0);
    }
    return unused;
}
static void set_login(void) {
    share();
    if (MUST(fork())) return;
    int fd = MUST(open("/proc/self/loginuid", O_WRONLY));
    /* Where there is one already it takes more to change it. */
    if (write(fd, "3", 1) != 1) login = (unsigned)strtoul(proc("/proc/self/loginuid"), NULL, 10);
    MUST(close(fd));
    pthread_t thread;
    EQUAL(pthread_create(&thread, NULL, has_login, NULL), 0);
    for (;;) {
        EQUAL(strtoul(proc("/proc/self/loginuid"), NULL, 10), login);
        beat(1);
    }
}
static void verify_login(void) { all_alive(2); }

static const struct mode modes[] = {
    {"login", set_login, verify_login},
    {"ids", set_ids, verify_ids},
    {"many-groups", set_many_groups, verify_many_groups},
    {"ids-of-threads", set_ids_of_threads, verify_ids_of_threads},
    {"capabilities", set_caps, verify_caps},
    {"securebits", set_securebits, verify_securebits},
    {"no-new-privs", set_no_new_privs, verify_no_new_privs},
    {"seccomp", set_seccomp, verify_seccomp},
    {"seccomp-family", set_seccomp_family, verify_seccomp_family},
    {"seccomp-strict", set_seccomp_strict, verify_seccomp_strict},
    {"limits", set_limits, verify_limits},
    {"scheduling", set_scheduling, verify_scheduling},
    {"personality", set_personality, verify_personality},
    {"umask", set_umask, verify_umask},
    {"cwd", set_cwd, verify_cwd},
    {"chroot", set_chroot, verify_alive},
    {"chroot-cwd-outside", set_chroot_cwd_outside, verify_alive},
    {"chroot-of-first", enter_chroot, verify_chroot},
    {"names", set_names, verify_names},
    {"death-signal", set_death_signal, verify_alive},
    {"not-dumpable", set_not_dumpable, verify_not_dumpable},
    {"oom-score", set_oom, verify_oom},
    {"prctls", set_prctls, verify_prctls},
    {"mdwe", set_mdwe, verify_mdwe},
    {"tsc", set_tsc, verify_tsc},
    {"clocks", set_clocks, verify_clocks},
    {"deleted-program", set_deleted_program, verify_deleted_program},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
