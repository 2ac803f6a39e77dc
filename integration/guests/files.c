/* Files: what is open how, where it stands, who holds which lock. */
#include "guest.h"
#include <dirent.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>

static int fd, other;

/* What a descriptor leads to, as the kernel puts it. */
static void leads_to(int from, const char *to) {
    char path[32], link[512] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", from);
    MUST(readlink(path, link, sizeof link - 1));
    if (strcmp(link, to)) bad("descriptor %d leads to %s, not to %s", from, link, to);
}
static void stands_at(int of, off_t position) { EQUAL(MUST(lseek(of, 0, SEEK_CUR)), position); }
static void holds(int of, const char *text) {
    char got[256] = "";
    EQUAL(MUST(pread(of, got, sizeof got - 1, 0)), strlen(text));
    CHECK(!strcmp(got, text));
}
/* The flags of F_GETFL that a program can choose. */
static int flags(int of) { return MUST(fcntl(of, F_GETFL)) & ~O_LARGEFILE & ~0100000; }
static nlink_t links(int of) {
    struct stat about;
    MUST(fstat(of, &about));
    return about.st_nlink;
}

static void set_regular(void) {
    fd = make("/tmp/file", "0123456789", O_CLOEXEC);
    MUST(lseek(fd, 4, SEEK_SET));
    other = MUST(open("/tmp/file", O_RDONLY | O_NOATIME | O_NONBLOCK));
    MUST(lseek(other, 1L << 40, SEEK_SET));
    CHECK(MUST(open("/tmp/file", O_WRONLY | O_SYNC)) == other + 1);
}
static void verify_regular(void) {
    char byte;
    stands_at(fd, 4);
    EQUAL(MUST(read(fd, &byte, 1)), 1);
    EQUAL(byte, '4');
    MUST(lseek(fd, -1, SEEK_CUR));
    EQUAL(MUST(write(fd, "4", 1)), 1);
    MUST(lseek(fd, -1, SEEK_CUR));
    stands_at(other, 1L << 40);
    FAILS(write(other, "x", 1), EBADF);
    FAILS(read(other + 1, &byte, 1), EBADF);
    EQUAL(flags(fd), O_RDWR);
    EQUAL(flags(other), O_RDONLY | O_NOATIME | O_NONBLOCK);
    EQUAL(flags(other + 1), O_WRONLY | O_SYNC);
    EQUAL(MUST(fcntl(fd, F_GETFD)), FD_CLOEXEC);
    EQUAL(MUST(fcntl(other, F_GETFD)), 0);
    leads_to(fd, "/tmp/file");
    holds(fd, "0123456789");
}
static void set_append(void) { fd = make("/tmp/log", "begin\n", O_APPEND); }
static void verify_append(void) {
    static off_t length = 6;
    EQUAL(flags(fd), O_RDWR | O_APPEND);
    MUST(lseek(fd, 0, SEEK_SET));
    EQUAL(MUST(write(fd, "more\n", 5)), 5);
    stands_at(fd, length += 5);
    if (length > 4000) {
        MUST(ftruncate(fd, 6));
        length = 6;
    }
}
static char block[4096] __attribute__((aligned(4096)));
static void set_direct(void) {
    fd = MUST(open("/tmp/direct", O_CREAT | O_RDWR | O_DIRECT, 0600));
    fill(block, sizeof block, 1);
    EQUAL(MUST(write(fd, block, sizeof block)), sizeof block);
}
static void verify_direct(void) {
    EQUAL(flags(fd), O_RDWR | O_DIRECT);
    stands_at(fd, sizeof block);
    memset(block, 0, sizeof block);
    EQUAL(MUST(pread(fd, block, sizeof block, 0)), sizeof block);
    CHECK(filled(block, sizeof block, 1));
    FAILS(pread(fd, block + 1, 77, 0), EINVAL);
}
static void set_path(void) {
    close(make("/tmp/file", "content", 0));
    MUST(symlink("/tmp/file", "/tmp/link"));
    fd = MUST(open("/tmp/file", O_PATH));
    CHECK(MUST(open("/tmp/link", O_PATH | O_NOFOLLOW)) == fd + 1);
    CHECK(MUST(open("/tmp", O_PATH | O_DIRECTORY)) == fd + 2);
}
static void verify_path(void) {
    char got[32] = "";
    FAILS(read(fd, got, 1), EBADF);
    EQUAL(flags(fd), O_PATH);
    EQUAL(flags(fd + 1) & O_PATH, O_PATH);
    leads_to(fd, "/tmp/file");
    EQUAL(MUST(readlinkat(fd + 1, "", got, sizeof got - 1)), 9);
    CHECK(!strcmp(got, "/tmp/file"));
    int again = MUST(openat(fd + 2, "file", O_RDONLY));
    AGREE(inode(again), inode(fd));
    close(again);
}

/* Files whose names are gone */
static void set_deleted(void) {
    fd = make("/tmp/gone", "nobody finds this", 0);
    other = MUST(open("/tmp/gone", O_RDONLY));
    MUST(fchmod(fd, 0604));
    MUST(fchown(fd, 12, 34));
    MUST(unlink("/tmp/gone"));
    MUST(lseek(other, 7, SEEK_SET));
}
static void verify_deleted(void) {
    static char last = 's';
    char byte;
    struct stat about;
    MUST(fstat(fd, &about));
    EQUAL(about.st_nlink, 0);
    EQUAL(about.st_mode, S_IFREG | 0604);
    EQUAL(about.st_uid, 12);
    EQUAL(about.st_gid, 34);
    EQUAL(about.st_size, 17);
    AGREE(inode(other), inode(fd));
    stands_at(other, 7);
    stands_at(fd, 17);
    EQUAL(MUST(pread(other, &byte, 1, 16)), 1);
    EQUAL(byte, last);
    last = last == 'z' ? 'a' : (char)(last + 1);
    EQUAL(MUST(pwrite(fd, &last, 1, 16)), 1);
    EQUAL(MUST(pread(other, &byte, 1, 16)), 1);
    EQUAL(byte, last);
    FAILS(access("/tmp/gone", F_OK), ENOENT);
}
static void set_deleted_in_two(void) {
    share();
    set_deleted();
    if (MUST(fork())) return;
    for (;;) {
        EQUAL(links(other), 0);
        stands_at(other, 7);
        char got[16] = "";
        EQUAL(MUST(pread(fd, got, 6, 0)), 6);
        CHECK(!strcmp(got, "nobody"));
        beat(0);
    }
}
static void verify_deleted_in_two(void) {
    verify_deleted();
    alive(0);
}
static void set_deleted_linked(void) {
    fd = make("/tmp/one", "two names", 0);
    MUST(link("/tmp/one", "/tmp/two"));
    MUST(unlink("/tmp/one"));
}
static void verify_deleted_linked(void) {
    EQUAL(links(fd), 1);
    holds(fd, "two names");
    other = MUST(open("/tmp/two", O_RDONLY));
    AGREE(inode(other), inode(fd));
    close(other);
    FAILS(access("/tmp/one", F_OK), ENOENT);
}
static void set_deleted_sparse(void) {
    fd = make("/tmp/sparse", "", 0);
    MUST(ftruncate(fd, 1L << 32));
    EQUAL(MUST(pwrite(fd, "middle", 6, 1L << 31)), 6);
    MUST(unlink("/tmp/sparse"));
}
static void verify_deleted_sparse(void) {
    struct stat about;
    char got[9] = "";
    MUST(fstat(fd, &about));
    EQUAL(about.st_size, 1L << 32);
    CHECK(about.st_blocks < 1000);
    EQUAL(MUST(pread(fd, got, 8, (1L << 31) - 1)), 8);
    CHECK(!memcmp(got, "\0middle\0", 8));
}
/* Never had a name. */
static void set_tmpfile(void) {
    fd = MUST(open("/tmp", O_TMPFILE | O_RDWR, 0600));
    EQUAL(MUST(write(fd, "nameless", 8)), 8);
}
static void verify_tmpfile(void) {
    EQUAL(links(fd), 0);
    holds(fd, "nameless");
}
static void set_deleted_directory(void) {
    MUST(mkdir("/tmp/dir", 0700));
    fd = MUST(open("/tmp/dir", O_RDONLY | O_DIRECTORY));
    MUST(chdir("/tmp/dir"));
    MUST(rmdir("/tmp/dir"));
}
static void verify_deleted_directory(void) {
    char here[64];
    EQUAL(links(fd), 0);
    FAILS(openat(fd, "x", O_CREAT | O_RDWR, 0600), ENOENT);
    FAILS(syscall(SYS_getcwd, here, sizeof here) > 0 && !strncmp(here, "/", 1) ? 0 : -1, ENOENT);
}
static void set_renamed(void) {
    fd = make("/tmp/before", "content", 0);
    MUST(rename("/tmp/before", "/tmp/after"));
}
static void verify_renamed(void) {
    leads_to(fd, "/tmp/after");
    holds(fd, "content");
    EQUAL(links(fd), 1);
}
/* The name is another file's now. */
static void set_replaced(void) {
    fd = make("/tmp/name", "the old", 0);
    other = make("/tmp/new", "the new", 0);
    MUST(rename("/tmp/new", "/tmp/name"));
}
static void verify_replaced(void) {
    holds(fd, "the old");
    holds(other, "the new");
    EQUAL(links(fd), 0);
    EQUAL(links(other), 1);
    leads_to(other, "/tmp/name");
}

static void set_directory(void) {
    MUST(mkdir("/tmp/dir", 0755));
    for (char name[] = "/tmp/dir/a"; name[9] <= 'f'; name[9]++) close(make(name, name, 0));
    fd = MUST(open("/tmp/dir", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    char some[64];
    CHECK(MUST(syscall(SYS_getdents64, fd, some, sizeof some)) > 0);
}
static void verify_directory(void) {
    static int rest = -1;
    char many[1024];
    off_t at = MUST(lseek(fd, 0, SEEK_CUR));
    long got = MUST(syscall(SYS_getdents64, fd, many, sizeof many));
    if (rest < 0) rest = (int)got;
    EQUAL(got, rest);
    CHECK(got > 0);
    MUST(lseek(fd, at, SEEK_SET));
    other = MUST(openat(fd, "c", O_RDONLY));
    holds(other, "/tmp/dir/c");
    close(other);
}

/* FIFOs */
static void set_fifo(void) {
    MUST(mkfifo("/tmp/fifo", 0600));
    fd = MUST(open("/tmp/fifo", O_RDONLY | O_NONBLOCK));
    other = MUST(open("/tmp/fifo", O_WRONLY));
    EQUAL(MUST(write(other, "abcdefgh", 8)), 8);
}
static void verify_fifo(void) {
    static char first = 'a';
    char got;
    int held;
    MUST(ioctl(fd, FIONREAD, &held));
    EQUAL(held, 8);
    EQUAL(MUST(read(fd, &got, 1)), 1);
    EQUAL(got, first);
    EQUAL(MUST(write(other, &got, 1)), 1);
    first = first == 'h' ? 'a' : (char)(first + 1);
    EQUAL(flags(fd), O_RDONLY | O_NONBLOCK);
    EQUAL(flags(other), O_WRONLY);
}
static void verify_named_fifo(void) {
    verify_fifo();
    leads_to(fd, "/tmp/fifo");
    int third = MUST(open("/tmp/fifo", O_WRONLY | O_NONBLOCK));
    AGREE(inode(third), inode(fd));
    close(third);
}
static void set_fifo_deleted(void) {
    set_fifo();
    MUST(unlink("/tmp/fifo"));
}
/* Both ends in one description. */
static void set_fifo_both(void) {
    MUST(mkfifo("/tmp/fifo", 0600));
    fd = other = MUST(open("/tmp/fifo", O_RDWR));
    EQUAL(MUST(write(other, "abcdefgh", 8)), 8);
}
static void verify_fifo_both(void) {
    int held;
    char got[9] = "";
    MUST(ioctl(fd, FIONREAD, &held));
    EQUAL(held, 8);
    EQUAL(MUST(read(fd, got, 8)), 8);
    CHECK(!strcmp(got, "abcdefgh"));
    EQUAL(MUST(write(fd, "abcdefgh", 8)), 8);
    EQUAL(flags(fd), O_RDWR);
}
static void set_fifo_waited_for(void) {
    share();
    MUST(mkfifo("/tmp/fifo", 0600));
    if (!MUST(fork())) {
        for (;;) { /* waits for the other side both in open and in read */
            char got;
            int end = MUST(open("/tmp/fifo", O_RDONLY));
            EQUAL(MUST(read(end, &got, 1)), 1);
            EQUAL(got, 'x');
            EQUAL(MUST(read(end, &got, 1)), 0);
            close(end);
            atomic_fetch_add(&shared->beats[0], 1);
        }
    }
}
static void verify_fifo_waited_for(void) {
    nap(1000);
    int end = MUST(open("/tmp/fifo", O_WRONLY));
    nap(1000);
    EQUAL(MUST(write(end, "x", 1)), 1);
    close(end);
    alive(0);
}

/* One description under several numbers and in several processes */
static void set_dup(void) {
    share();
    fd = make("/tmp/file", "0123456789", 0);
    CHECK(MUST(fcntl(fd, F_DUPFD_CLOEXEC, 700)) == 700);
    other = MUST(open("/tmp/file", O_RDONLY));
    MUST(dup2(other, 5 + fd));
    if (MUST(fork())) return;
    for (int want = 1;; want++) {
        while (atomic_load(&shared->numbers[0]) != want) nap(300);
        stands_at(700, want % 10);
        MUST(lseek(fd, want % 10 + 1, SEEK_SET));
        atomic_store(&shared->numbers[1], want);
        atomic_fetch_add(&shared->beats[0], 1);
    }
}
static void verify_dup(void) {
    static int want;
    MUST(lseek(fd, ++want % 10, SEEK_SET));
    stands_at(700, want % 10);
    stands_at(other, 0);
    stands_at(5 + fd, 0);
    atomic_store(&shared->numbers[0], want);
    alive(0);
    EQUAL(atomic_load(&shared->numbers[1]), want);
    stands_at(fd, want % 10 + 1);
    EQUAL(MUST(fcntl(fd, F_GETFD)), 0);
    EQUAL(MUST(fcntl(700, F_GETFD)), FD_CLOEXEC);
}
static void set_many(void) {
    close(make("/tmp/file", "0123456789", 0));
    for (int i = 0; i < 500; i++) {
        int made = MUST(open("/tmp/file", i % 2 ? O_RDONLY : O_RDWR | O_CLOEXEC));
        MUST(lseek(made, i, SEEK_SET));
        if (i == 0) fd = made;
        EQUAL(made, fd + i);
    }
}
static void verify_many(void) {
    for (int i = 0; i < 500; i++) {
        stands_at(fd + i, i);
        EQUAL(fcntl(fd + i, F_GETFD), i % 2 ? 0 : FD_CLOEXEC);
    }
    FAILS(fcntl(fd + 500, F_GETFD), EBADF);
}
/* Not even the standard streams. */
static void set_closed(void) {
    for (int i = 0; i < 3; i++)
        if (i != status_fd) close(i);
}
static void verify_closed(void) {
    for (int i = 0; i < 64; i++)
        if (i != status_fd) FAILS(fcntl(i, F_GETFD), EBADF);
}
/* A signal tells that a descriptor is ready. */
static volatile sig_atomic_t told;
static void tell(int number, siginfo_t *info, void *unused) {
    (void)unused;
    told = number == SIGRTMIN + 3 && info->si_fd == fd ? told + 1 : -1000000;
}
static void set_async(void) {
    int ends[2];
    signals_expected = 1;
    MUST(pipe(ends));
    fd = ends[0], other = ends[1];
    struct sigaction action = {.sa_sigaction = tell, .sa_flags = SA_SIGINFO | SA_RESTART};
    MUST(sigaction(SIGRTMIN + 3, &action, NULL));
    MUST(fcntl(fd, F_SETOWN, getpid()));
    MUST(fcntl(fd, F_SETSIG, SIGRTMIN + 3));
    MUST(fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK));
}
static void verify_async(void) {
    char byte;
    told = 0;
    EQUAL(MUST(write(other, "x", 1)), 1);
    for (int i = 0; !told && i < 10000; i++) nap(500);
    CHECK(told > 0);
    EQUAL(MUST(read(fd, &byte, 1)), 1);
    EQUAL(MUST(fcntl(fd, F_GETOWN)), getpid());
    EQUAL(MUST(fcntl(fd, F_GETSIG)), SIGRTMIN + 3);
    EQUAL(flags(fd), O_ASYNC | O_NONBLOCK);
}

/* Locks: another description asks for them. */
static void set_flock(void) {
    fd = make("/tmp/locked", "", 0);
    other = make("/tmp/shared", "", 0);
    MUST(flock(fd, LOCK_EX));
    MUST(flock(other, LOCK_SH));
}
static void verify_flock(void) {
    int second = MUST(open("/tmp/locked", O_RDWR)), third = MUST(open("/tmp/shared", O_RDWR));
    FAILS(flock(second, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    FAILS(flock(second, LOCK_SH | LOCK_NB), EWOULDBLOCK);
    MUST(flock(third, LOCK_SH | LOCK_NB));
    FAILS(flock(third, LOCK_EX | LOCK_NB), EWOULDBLOCK);
    close(second);
    close(third);
}
/* One that another process has set, as /proc tells. */
static pid_t locker;
static void set_flock_of_child(void) {
    share();
    fd = make("/tmp/locked", "", 0);
    locker = MUST(fork());
    if (!locker) {
        MUST(flock(fd, LOCK_EX));
        for (;;) beat(0);
    }
    alive(0);
}
static void verify_flock_of_child(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    EQUAL(field(proc(path), "FLOCK  ADVISORY  WRITE ", 10), locker);
    int second = MUST(open("/tmp/locked", O_RDWR));
    FAILS(flock(second, LOCK_SH | LOCK_NB), EWOULDBLOCK);
    close(second);
    alive(0);
}
static void lock(int of, int command, short kind, off_t from, off_t length) {
    struct flock wanted = {.l_type = kind, .l_start = from, .l_len = length};
    MUST(fcntl(of, command, &wanted));
}
/* Who stands in the way of a write lock there. */
static void locked(int of, off_t from, off_t length, short kind, off_t start, off_t size, pid_t by) {
    struct flock asked = {.l_type = F_WRLCK, .l_start = from, .l_len = length};
    MUST(fcntl(of, F_OFD_GETLK, &asked));
    EQUAL(asked.l_type, kind);
    if (kind == F_UNLCK) return;
    EQUAL(asked.l_start, start);
    EQUAL(asked.l_len, size);
    EQUAL(asked.l_pid, by);
}
static void set_posix_lock(void) {
    fd = make("/tmp/locked", "0123456789", 0);
    lock(fd, F_SETLK, F_WRLCK, 2, 3);
    lock(fd, F_SETLK, F_RDLCK, 7, 0);
    /* Closing any descriptor of a file drops the locks; so this one stays open. */
    other = MUST(open("/tmp/locked", O_RDWR));
}
static void verify_posix_lock(void) {
    locked(other, 0, 5, F_WRLCK, 2, 3, getpid());
    locked(other, 6, 10, F_RDLCK, 7, 0, getpid());
    locked(other, 0, 2, F_UNLCK, 0, 0, 0);
}
static void set_ofd_lock(void) {
    fd = make("/tmp/locked", "0123456789", 0);
    lock(fd, F_OFD_SETLK, F_WRLCK, 2, 3);
    lock(fd, F_OFD_SETLK, F_RDLCK, 7, 1);
    other = MUST(open("/tmp/locked", O_RDWR));
}
static void verify_ofd_lock(void) {
    locked(other, 0, 5, F_WRLCK, 2, 3, -1);
    locked(other, 6, 10, F_RDLCK, 7, 1, -1);
    locked(fd, 0, 0, F_UNLCK, 0, 0, 0);
}
/* A child holds one lock, the parent another, and a third waits. */
static void set_locks_of_two(void) {
    share();
    fd = make("/tmp/locked", "0123456789", 0);
    lock(fd, F_SETLK, F_WRLCK, 0, 1);
    if (!MUST(fork())) {
        lock(fd, F_SETLK, F_WRLCK, 1, 1);
        other = MUST(open("/tmp/locked", O_RDWR));
        for (;;) {
            locked(other, 0, 1, F_WRLCK, 0, 1, getppid());
            locked(other, 1, 1, F_WRLCK, 1, 1, getpid());
            beat(0);
        }
    }
    if (!MUST(fork())) {
        lock(fd, F_SETLKW, F_WRLCK, 0, 1);
        bad("got a lock that the parent holds");
    }
    alive(0);
}
static void verify_locks_of_two(void) { alive(0); }
static void set_lease(void) {
    close(make("/tmp/leased", "", 0));
    fd = MUST(open("/tmp/leased", O_RDONLY));
    MUST(fcntl(fd, F_SETLEASE, F_RDLCK));
    close(make("/tmp/leased too", "", 0));
    other = MUST(open("/tmp/leased too", O_RDWR));
    MUST(fcntl(other, F_SETLEASE, F_WRLCK));
}
static void verify_lease(void) {
    EQUAL(MUST(fcntl(fd, F_GETLEASE)), F_RDLCK);
    EQUAL(MUST(fcntl(other, F_GETLEASE)), F_WRLCK);
}

/* What is no file */
static void set_devices(void) {
    fd = MUST(open("/dev/null", O_RDWR));
    const char *const all[] = {"/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"};
    for (int i = 0; i < 4; i++) EQUAL(MUST(open(all[i], O_RDWR)), fd + 1 + i);
}
static void verify_devices(void) {
    char got[2] = "xx";
    EQUAL(MUST(read(fd, got, 2)), 0);
    EQUAL(MUST(read(fd + 1, got, 2)), 2);
    EQUAL(got[0], 0);
    FAILS(write(fd + 2, got, 2), ENOSPC);
    EQUAL(MUST(read(fd + 3, got, 2)), 2);
    EQUAL(MUST(read(fd + 4, got, 2)), 2);
    leads_to(fd + 4, "/dev/urandom");
}
static void set_proc(void) {
    fd = MUST(open("/proc/self/status", O_RDONLY));
    other = MUST(open("/proc/sys/kernel/ostype", O_RDONLY));
    CHECK(MUST(open("/sys/kernel/mm", O_RDONLY | O_DIRECTORY)) == other + 1);
    CHECK(MUST(open("/proc", O_RDONLY | O_DIRECTORY)) == other + 2);
}
static void verify_proc(void) {
    char text[512] = "";
    CHECK(MUST(pread(fd, text, sizeof text - 1, 0)) > 0);
    EQUAL(field(text, "\nPid:", 10), getpid());
    memset(text, 0, 8);
    CHECK(MUST(pread(other, text, 5, 0)) == 5);
    CHECK(!strncmp(text, "Linux", 5));
    leads_to(other + 1, "/sys/kernel/mm");
    MUST(faccessat(other + 2, "self/maps", R_OK, 0));
}

/* The kernel calls the first two deleted as soon as somebody looks at their names again. */
static void set_proc_net(void) {
    char byte;
    other = MUST(open("/proc/net", O_RDONLY | O_DIRECTORY));
    fd = MUST(open("/proc/1/net/tcp", O_RDONLY));
    CHECK(MUST(open("/proc/net/udp", O_RDONLY)) == fd + 1);
    for (int n = 0; n < 8; n++) EQUAL(MUST(read(fd, &byte, 1)), 1);
    MUST(access("/proc/1/net/tcp", F_OK));
}
static void verify_proc_net(void) {
    char text[512] = "";
    EQUAL(MUST(lseek(fd, 0, SEEK_CUR)), 8);
    CHECK(MUST(pread(fd, text, sizeof text - 1, 2)) > 20);
    CHECK(!strncmp(text, "sl  local_address", 17));
    CHECK(MUST(pread(fd + 1, text, sizeof text - 1, 3)) > 20);
    CHECK(!strncmp(text, "sl  local_address", 17));
    MUST(faccessat(other, "unix", R_OK, 0));
}

/* File systems that live in memory: /dev/shm has everything that a directory can have. */
static void set_tmpfs(void) {
    MUST(mkdir("/dev/shm/dir", 0751));
    MUST(chmod("/dev/shm/dir", 01753));
    close(make("/dev/shm/dir/file", "content", 0));
    MUST(chown("/dev/shm/dir/file", 12, 34));
    MUST(chmod("/dev/shm/dir/file", 04750));
    MUST(link("/dev/shm/dir/file", "/dev/shm/second name"));
    MUST(symlink("no/where", "/dev/shm/link"));
    MUST(mkfifo("/dev/shm/fifo", 0600));
    close(make("/dev/shm/empty", "", 0));
    const struct timespec times[2] = {{1000, 1}, {2000, 2}};
    MUST(utimensat(AT_FDCWD, "/dev/shm/empty", times, 0));
    other = make("/dev/shm/sparse", "", 0);
    MUST(ftruncate(other, 1L << 34));
    EQUAL(MUST(pwrite(other, "end", 3, (1L << 34) - 3)), 3);
    MUST(setxattr("/dev/shm/dir/file", "trusted.word", "value", 5, 0));
    fd = make("/dev/shm/open", "open", 0);
    MUST(unlink("/dev/shm/open"));
    memset(block, 'b', sizeof block);
    int large = make("/dev/shm/large", "", 0);
    for (int i = 0; i < 1000; i++) EQUAL(MUST(write(large, block, sizeof block)), sizeof block);
    close(large);
}
static void verify_tmpfs(void) {
    struct stat about;
    char text[32] = "";
    MUST(stat("/dev/shm/dir", &about));
    EQUAL(about.st_mode, S_IFDIR | 01753);
    MUST(stat("/dev/shm/dir/file", &about));
    EQUAL(about.st_mode, S_IFREG | 04750);
    EQUAL(about.st_uid, 12);
    EQUAL(about.st_gid, 34);
    EQUAL(about.st_nlink, 2);
    AGREE(inode_at("/dev/shm/second name"), inode_at("/dev/shm/dir/file"));
    CHECK(!strcmp(proc("/dev/shm/second name"), "content"));
    EQUAL(MUST(readlink("/dev/shm/link", text, sizeof text - 1)), 8);
    CHECK(!strcmp(text, "no/where"));
    MUST(lstat("/dev/shm/fifo", &about));
    EQUAL(about.st_mode, S_IFIFO | 0600);
    MUST(stat("/dev/shm/empty", &about));
    EQUAL(about.st_size, 0);
    EQUAL(about.st_mtim.tv_sec, 2000);
    EQUAL(about.st_mtim.tv_nsec, 2);
    MUST(fstat(other, &about));
    EQUAL(about.st_size, 1L << 34);
    CHECK(about.st_blocks < 100);
    memset(text, 0, sizeof text);
    EQUAL(MUST(pread(other, text, 8, (1L << 34) - 3)), 3);
    CHECK(!strcmp(text, "end"));
    memset(text, 0, sizeof text);
    EQUAL(MUST(getxattr("/dev/shm/dir/file", "trusted.word", text, sizeof text)), 5);
    CHECK(!strcmp(text, "value"));
    holds(fd, "open");
    EQUAL(links(fd), 0);
    MUST(stat("/dev/shm/large", &about));
    EQUAL(about.st_size, 1000 * sizeof block);
}

/* Files of procfs whose process has ended. */
static void set_ended_process(void) {
    char path[32], byte;
    int ends[2];
    MUST(pipe(ends));
    pid_t pid = MUST(fork());
    if (!pid) {
        close(ends[1]);
        read(ends[0], &byte, 1);
        _exit(0);
    }
    snprintf(path, sizeof path, "/proc/%d", pid);
    MUST(chdir(path));
    fd = MUST(open("mountinfo", O_RDONLY));
    other = MUST(open(".", O_DIRECTORY | O_CLOEXEC));
    MUST(close(ends[1]));
    MUST(close(ends[0]));
    EQUAL(MUST(waitpid(pid, NULL, 0)), pid);
}
static void verify_ended_process(void) {
    char path[64], link[64];
    FAILS(open("status", O_RDONLY), ESRCH);
    FAILS(openat(other, "status", O_RDONLY), ESRCH);
    for (int n = 0; n < 2; n++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", n ? fd : other);
        link[MUST(readlink(path, link, sizeof link - 1))] = 0;
        CHECK(strstr(link, n ? "/2/mountinfo" : "/2 (deleted)"));
    }
    EQUAL(MUST(fcntl(other, F_GETFD)), FD_CLOEXEC);
    /* Its number is free. */
    FAILS(kill(2, 0), ESRCH);
}

/* A symbolic link that is open itself, and deleted. */
static void set_deleted_link(void) {
    MUST(symlink("/no/where", "/link"));
    MUST(lchown("/link", 12, 34));
    fd = MUST(open("/link", O_PATH | O_NOFOLLOW));
    other = MUST(open("/link", O_PATH | O_NOFOLLOW | O_CLOEXEC));
    MUST(unlink("/link"));
}
static void verify_deleted_link(void) {
    struct stat about;
    char text[32] = "";
    MUST(fstat(fd, &about));
    EQUAL(about.st_mode, S_IFLNK | 0777);
    EQUAL(about.st_nlink, 0);
    EQUAL(about.st_uid, 12);
    EQUAL(about.st_gid, 34);
    AGREE(inode(fd), inode(other));
    EQUAL(MUST(readlinkat(other, "", text, sizeof text - 1)), 9);
    CHECK(!strcmp(text, "/no/where"));
    FAILS(access("/link", F_OK), ENOENT);
}

static const struct mode modes[] = {
    {"ended-process", set_ended_process, verify_ended_process},
    {"deleted-link", set_deleted_link, verify_deleted_link},
    {"regular", set_regular, verify_regular},
    {"append", set_append, verify_append},
    {"direct", set_direct, verify_direct},
    {"path", set_path, verify_path},
    {"deleted", set_deleted, verify_deleted},
    {"deleted-in-two", set_deleted_in_two, verify_deleted_in_two},
    {"deleted-linked", set_deleted_linked, verify_deleted_linked},
    {"deleted-sparse", set_deleted_sparse, verify_deleted_sparse},
    {"tmpfile", set_tmpfile, verify_tmpfile},
    {"deleted-directory", set_deleted_directory, verify_deleted_directory},
    {"renamed", set_renamed, verify_renamed},
    {"replaced", set_replaced, verify_replaced},
    {"directory", set_directory, verify_directory},
    {"fifo", set_fifo, verify_named_fifo},
    {"fifo-deleted", set_fifo_deleted, verify_fifo},
    {"fifo-both-ends", set_fifo_both, verify_fifo_both},
    {"fifo-waited-for", set_fifo_waited_for, verify_fifo_waited_for},
    {"dup", set_dup, verify_dup},
    {"many", set_many, verify_many},
    {"closed", set_closed, verify_closed},
    {"signal-driven", set_async, verify_async},
    {"flock", set_flock, verify_flock},
    {"flock-of-child", set_flock_of_child, verify_flock_of_child},
    {"posix-lock", set_posix_lock, verify_posix_lock},
    {"ofd-lock", set_ofd_lock, verify_ofd_lock},
    {"locks-of-two", set_locks_of_two, verify_locks_of_two},
    {"lease", set_lease, verify_lease},
    {"devices", set_devices, verify_devices},
    {"proc", set_proc, verify_proc},
    {"proc-net", set_proc_net, verify_proc_net},
    {"tmpfs", set_tmpfs, verify_tmpfs},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
