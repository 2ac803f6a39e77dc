/* What a checkpoint may refuse: it is kept, or named. */
#include "guest.h"
#include <asm/ldt.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/un.h>

static int fd, other;

static void set_io_uring(void) {
    struct io_uring_params parameters = {0};
    fd = (int)MUST(syscall(SYS_io_uring_setup, 8, &parameters));
}
/* It does nothing, eight times. */
static void verify_io_uring(void) { EQUAL(MUST(syscall(SYS_io_uring_enter, fd, 0, 0, 0, NULL, 0)), 0); }
static void set_userfaultfd(void) {
    struct uffdio_api api = {.api = UFFD_API};
    fd = (int)MUST(syscall(SYS_userfaultfd, O_NONBLOCK));
    MUST(ioctl(fd, UFFDIO_API, &api));
}
static void verify_userfaultfd(void) {
    char message[32];
    FAILS(read(fd, message, sizeof message), EAGAIN);
}
/* Maps of all kinds that are carried: an array that nobody may change any more, a hash table, a trie. */
static long bpf(int command, union bpf_attr *attributes) {
    return syscall(SYS_bpf, command, attributes, sizeof *attributes);
}
static int maps[3];
static int map_of(unsigned type, unsigned key, unsigned flags, const char *name) {
    union bpf_attr of = {.map_type = type, .key_size = key, .value_size = 8, .max_entries = 20, .map_flags = flags};
    strncpy(of.map_name, name, sizeof of.map_name - 1);
    return (int)MUST(bpf(BPF_MAP_CREATE, &of));
}
static void entry(int map, const void *key, uint64_t value) {
    union bpf_attr of = {.map_fd = (unsigned)map, .key = (uintptr_t)key, .value = (uintptr_t)&value};
    MUST(bpf(BPF_MAP_UPDATE_ELEM, &of));
}
static uint64_t found(int map, const void *key) {
    uint64_t value = 0;
    union bpf_attr of = {.map_fd = (unsigned)map, .key = (uintptr_t)key, .value = (uintptr_t)&value};
    return bpf(BPF_MAP_LOOKUP_ELEM, &of) ? 0 : value;
}
struct prefix {
    uint32_t bits;
    uint8_t bytes[4];
};
static void set_bpf_maps(void) {
    maps[0] = map_of(BPF_MAP_TYPE_ARRAY, 4, 0, "frozen");
    maps[1] = map_of(BPF_MAP_TYPE_HASH, 4, BPF_F_RDONLY, "hash");
    maps[2] = map_of(BPF_MAP_TYPE_LPM_TRIE, sizeof(struct prefix), BPF_F_NO_PREALLOC, "trie");
    close(maps[1]);
    maps[1] = map_of(BPF_MAP_TYPE_HASH, 4, 0, "hash");
    for (uint32_t i = 0; i < 20; i += 2) {
        entry(maps[0], &i, mix(i));
        entry(maps[1], &(uint32_t){i * 1000}, mix(i));
    }
    union bpf_attr frozen = {.map_fd = (unsigned)maps[0]};
    MUST(bpf(BPF_MAP_FREEZE, &frozen));
    entry(maps[2], &(struct prefix){16, {10, 77, 0, 0}}, 5);
    entry(maps[2], &(struct prefix){24, {10, 77, 3, 0}}, 6);
}
static void verify_bpf_maps(void) {
    for (uint32_t i = 0; i < 20; i++) {
        EQUAL(found(maps[0], &i), i % 2 ? 0 : mix(i));
        EQUAL(found(maps[1], &(uint32_t){i * 1000}), i % 2 ? 0 : mix(i));
    }
    uint64_t value = 1;
    union bpf_attr of = {.map_fd = (unsigned)maps[0], .key = (uintptr_t)&(uint32_t){1}, .value = (uintptr_t)&value};
    FAILS(bpf(BPF_MAP_UPDATE_ELEM, &of), EPERM);
    entry(maps[1], &(uint32_t){7}, 7);
    of = (union bpf_attr){.map_fd = (unsigned)maps[1], .key = (uintptr_t)&(uint32_t){7}};
    MUST(bpf(BPF_MAP_DELETE_ELEM, &of));
    EQUAL(found(maps[2], &(struct prefix){32, {10, 77, 3, 9}}), 6);
    EQUAL(found(maps[2], &(struct prefix){32, {10, 77, 4, 9}}), 5);
    EQUAL(found(maps[2], &(struct prefix){32, {10, 78, 4, 9}}), 0);
    struct bpf_map_info about = {0};
    union bpf_attr asked = {.info = {(unsigned)maps[2], sizeof about, (uintptr_t)&about}};
    MUST(bpf(BPF_OBJ_GET_INFO_BY_FD, &asked));
    CHECK(!strcmp(about.name, "trie"));
    EQUAL(about.max_entries, 20);
    EQUAL(about.map_flags, BPF_F_NO_PREALLOC);
}
static void set_bpf_program(void) {
    struct bpf_insn code[] = {{.code = 0xb7, .imm = 0}, {.code = 0x95}}; /* r0 = 0; exit */
    union bpf_attr of = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2, .insns = (uintptr_t)code,
                         .license = (uintptr_t) "GPL"};
    fd = (int)MUST(bpf(BPF_PROG_LOAD, &of));
}
static void verify_bpf_program(void) { MUST(fcntl(fd, F_GETFD)); }
static void set_several(void) {
    set_io_uring();
    if (!MUST(fork())) {
        close(fd);
        set_userfaultfd();
        for (;;) pause();
    }
}

static void set_unix_pair(void) {
    int ends[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    fd = ends[0], other = ends[1];
    EQUAL(MUST(write(other, "waiting", 7)), 7);
}
static void verify_unix_pair(void) {
    char text[8] = "";
    EQUAL(MUST(read(fd, text, 8)), 7);
    CHECK(!strcmp(text, "waiting"));
    EQUAL(MUST(write(other, "waiting", 7)), 7);
}
static void set_listener(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(4711)};
    fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(fd, (struct sockaddr *)&at, sizeof at));
    MUST(listen(fd, 5));
}
static void verify_listener(void) {
    struct sockaddr_in is;
    socklen_t length = sizeof is;
    int listens;
    MUST(getsockname(fd, (struct sockaddr *)&is, &length));
    EQUAL(ntohs(is.sin_port), 4711);
    length = sizeof listens;
    MUST(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length));
    EQUAL(listens, 1);
}
static pid_t child;
static void set_pidfd(void) {
    child = MUST(fork());
    if (!child)
        for (;;) pause();
    fd = (int)MUST(syscall(SYS_pidfd_open, child, 0));
}
static void verify_pidfd(void) {
    MUST(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    EQUAL(field(proc(path), "\nPid:", 10), child);
}
/* Whoever is told of a message must not be told of it by a checkpoint that looks at the queue. */
static void set_queue_watched(void) {
    fd = MUST(mq_open("/queue", O_CREAT | O_RDWR | O_NONBLOCK, 0600, NULL));
    MUST(mq_send(fd, "message", 7, 5));
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    MUST(mq_notify(fd, &event));
}
static void verify_queue(void) {
    char text[8192];
    unsigned priority;
    EQUAL(MUST(mq_receive(fd, text, sizeof text, &priority)), 7);
    EQUAL(priority, 5);
    FAILS(mq_receive(fd, text, sizeof text, &priority), EAGAIN);
    MUST(mq_notify(fd, NULL));
    MUST(mq_send(fd, "message", 7, 5));
}
static void verify_queue_watched(void) {
    verify_queue();
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    MUST(mq_notify(fd, &event));
}
static void set_queue_unlinked(void) {
    fd = MUST(mq_open("/queue", O_CREAT | O_RDWR | O_NONBLOCK, 0600, NULL));
    MUST(mq_unlink("/queue"));
    MUST(mq_send(fd, "message", 7, 5));
}
/* A process that may touch no file is not to be let free by a restart. */
static void set_landlock(void) {
    const uint64_t handled[1] = {1ull << 2 /* LANDLOCK_ACCESS_FS_READ_FILE */};
    fd = (int)MUST(syscall(444, handled, sizeof handled, 0));
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    close(make("/tmp/file", "", 0));
    MUST(syscall(446, fd, 0));
    close(fd);
}
static void verify_landlock(void) { FAILS(open("/tmp/file", O_RDONLY), EACCES); }

/* What can be seen of processes and threads. */
static pid_t still(void) {
    pid_t child = MUST(fork());
    if (!child)
        for (;;) pause();
    return child;
}
static void set_traced(void) {
    child = still();
    MUST(ptrace(PTRACE_SEIZE, child, NULL, NULL));
}
static void verify_traced(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", child);
    EQUAL(field(proc(path), "TracerPid:", 10), getpid());
}
static void set_pending_trap(void) {
    sigset_t trap;
    sigemptyset(&trap);
    sigaddset(&trap, SIGTRAP);
    MUST(sigprocmask(SIG_BLOCK, &trap, NULL));
    MUST(raise(SIGTRAP));
}
static void verify_pending_trap(void) {
    sigset_t waits;
    MUST(sigpending(&waits));
    EQUAL(sigismember(&waits, SIGTRAP), 1);
}
/* The timer measures the thread that has made it, and /proc does not say which that is. */
static timer_t timer;
static void *with_timer(void *unused) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec later = {.it_value.tv_sec = 1000000};
    MUST(timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer));
    MUST(timer_settime(timer, 0, &later, NULL));
    atomic_store(&shared->numbers[0], 1);
    for (;;) pause();
    return unused;
}
static void set_timer_of_a_thread(void) {
    pthread_t thread;
    share();
    EQUAL(pthread_create(&thread, NULL, with_timer, NULL), 0);
    number(0);
}
static void verify_timer_of_a_thread(void) {
    struct itimerspec left;
    MUST(timer_gettime(timer, &left));
    CHECK(left.it_value.tv_sec > 1000);
}
/* Its own filter asks it about getppid. */
static void set_listener_of_filter(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    fd = (int)MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter));
}
static void verify_listener_of_filter(void) {
    struct seccomp_notif_sizes sizes;
    MUST(syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes));
    MUST(fcntl(fd, F_GETFD));
}
static void set_lost_listener(void) {
    set_listener_of_filter();
    close(fd);
}
static void verify_lost_listener(void) { FAILS(syscall(SYS_getppid), ENOSYS); }
/* A program of two instructions: pause() for ever. */
static void set_program_of_32_bits(void) {
    static const struct __attribute__((packed)) {
        unsigned char ident[16];
        uint16_t type, machine;
        uint32_t version, entry, segments, sections, flags;
        uint16_t size, segment_size, count, rest[3];
        uint32_t load, offset, address, physical, bytes, room, access, align;
        unsigned char code[9];
    } program = {
        "\177ELF\1\1\1", 2, 3, 1, 0x10054, 52, 0, 0, 52, 32, 1, {0},
        1, 0, 0x10000, 0x10000, sizeof program, sizeof program, 5, 0x1000,
        {0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7},
    };
    int file = MUST(open("/tmp/narrow", O_CREAT | O_WRONLY, 0755));
    EQUAL(MUST(write(file, &program, sizeof program)), sizeof program);
    close(file);
    int ends[2];
    MUST(pipe2(ends, O_CLOEXEC));
    child = MUST(fork());
    if (!child) {
        execl("/tmp/narrow", "narrow", NULL);
        bad("execute a program of 32 bits: %s", strerror(errno));
    }
    close(ends[1]);
    char none;
    EQUAL(MUST(read(ends[0], &none, 1)), 0);
    close(ends[0]);
}
static void verify_child(void) { EQUAL(MUST(waitpid(child, NULL, WNOHANG)), 0); }
/* Calls are dispatched besides, as long as the byte says so: ckrun has to switch that off for itself. */
static volatile char dispatching;
static volatile int dispatched;
static void on_dispatch(int signal) {
    dispatching = SYSCALL_DISPATCH_FILTER_ALLOW;
    dispatched += signal == SIGSYS;
}
static void set_segment(void) {
    struct sigaction action = {.sa_handler = on_dispatch};
    EQUAL(sigaction(SIGSYS, &action, NULL), 0);
    EQUAL(prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &dispatching), 0);
    struct user_desc data = {.entry_number = 0, .limit = 1, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
    EQUAL(syscall(SYS_modify_ldt, 1, &data, sizeof data), 0);
    __asm__ volatile("mov %0, %%gs" : : "r"(7));
}
static void verify_segment(void) {
    int selector;
    __asm__ volatile("mov %%gs, %0" : "=r"(selector));
    EQUAL(selector & 0xffff, 7);
    int before = dispatched;
    dispatching = SYSCALL_DISPATCH_FILTER_BLOCK;
    syscall(SYS_getppid);
    EQUAL(dispatched, before + 1);
}
/* Few kernels have it. */
static void set_core(void) {
    if (prctl(PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0, 0, 0)) CHECK(errno == EINVAL || errno == ENODEV);
}
static void verify_core(void) {
    unsigned long cookie = 0;
    if (!prctl(PR_SCHED_CORE, PR_SCHED_CORE_GET, 0, 0, &cookie)) CHECK(cookie);
}
/* One child in each. */
static const int namespaces[] = {CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP,
                                 CLONE_NEWTIME, CLONE_NEWPID};
enum { NAMESPACES = sizeof namespaces / sizeof *namespaces };
static void set_namespaces(void) {
    share();
    for (int i = 0; i < NAMESPACES; i++) {
        if (MUST(fork())) continue;
        MUST(unshare(namespaces[i]));
        /* A process never moves into these two itself. */
        if (namespaces[i] == CLONE_NEWTIME) MUST(fork());
        for (;;) beat(i);
    }
}
static void verify_namespaces(void) { all_alive(NAMESPACES); }
/* File systems that the job has mounted itself: where there was none, and over one of the sandbox. */
static void set_mount(void) {
    MUST(mkdir("/own", 0755));
    MUST(mount("none", "/own", "tmpfs", 0, NULL));
    MUST(close(make("/own/file", "own", 0)));
}
static void verify_mount(void) { MUST(access("/own/file", F_OK)); }
static void set_mount_over(void) {
    MUST(mount("none", "/dev/shm", "tmpfs", MS_NOEXEC, NULL));
    MUST(close(make("/dev/shm/file", "own", 0)));
}
static void verify_mount_over(void) { MUST(access("/dev/shm/file", F_OK)); }

static void set_mount_gone(void) { MUST(umount2("/dev/shm", MNT_DETACH)); }
static dev_t device(const char *path) {
    struct stat about;
    MUST(stat(path, &about));
    return about.st_dev;
}
static void verify_mount_gone(void) { AGREE(device("/dev/shm"), device("/dev")); }

static const struct mode modes[] = {
    {"mount-gone", set_mount_gone, verify_mount_gone},
    {"mount", set_mount, verify_mount},
    {"mount-over", set_mount_over, verify_mount_over},
    {"io-uring", set_io_uring, verify_io_uring},
    {"bpf-maps", set_bpf_maps, verify_bpf_maps},
    {"bpf-program", set_bpf_program, verify_bpf_program},
    {"userfaultfd", set_userfaultfd, verify_userfaultfd},
    {"several", set_several, verify_io_uring},
    {"unix-pair", set_unix_pair, verify_unix_pair},
    {"tcp-listener", set_listener, verify_listener},
    {"pidfd", set_pidfd, verify_pidfd},
    {"queue-watched", set_queue_watched, verify_queue_watched},
    {"queue-unlinked", set_queue_unlinked, verify_queue},
    {"landlock", set_landlock, verify_landlock},
    {"traced", set_traced, verify_traced},
    {"pending-trap", set_pending_trap, verify_pending_trap},
    {"timer-of-a-thread", set_timer_of_a_thread, verify_timer_of_a_thread},
    {"filter-with-listener", set_listener_of_filter, verify_listener_of_filter},
    {"filter-without-listener", set_lost_listener, verify_lost_listener},
    {"program-of-32-bits", set_program_of_32_bits, verify_child},
    {"own-segment", set_segment, verify_segment},
    {"core-scheduling", set_core, verify_core},
    {"namespaces", set_namespaces, verify_namespaces},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
