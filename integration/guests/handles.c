/* Watches of files, and handles of processes. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>

static short events(int of, short wanted) {
    struct pollfd asked = {.fd = of, .events = wanted};
    MUST(poll(&asked, 1, 0));
    return asked.revents;
}

/* Watches with numbers that have gaps; whatever happens is told once, by the right number. Something happens only as long
 * as there is a file /act: else there might be an unread event at any moment. */
static int queue, watches[5], gone;
static void reports(int number, uint32_t mask, const char *name) {
    union {
        struct inotify_event event;
        char room[512];
    } got;
    size_t length = sizeof got.event;
    size_t held = (size_t)MUST(read(queue, &got, sizeof got.event + 16));
    CHECK(held >= length);
    EQUAL(got.event.wd, number);
    EQUAL(got.event.mask, mask);
    if (strcmp(got.event.len ? got.event.name : "", name)) bad("an event of %s, not %s", got.event.name, name);
}
static void quiet(void) {
    int bytes;
    MUST(ioctl(queue, FIONREAD, &bytes));
    EQUAL(bytes, 0);
}
static void set_inotify(void) {
    MUST(mkdir("/watched", 0755));
    close(make("/watched/file", "1", 0));
    MUST(symlink("file", "/watched/link"));
    gone = make("/watched/gone", "", O_CLOEXEC);
    MUST(unlink("/watched/gone"));
    queue = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    for (int i = 0; i < 300; i++) MUST(inotify_rm_watch(queue, MUST(inotify_add_watch(queue, "/", IN_OPEN))));
    watches[0] = MUST(inotify_add_watch(queue, "/watched", IN_CREATE | IN_DELETE));
    MUST(inotify_rm_watch(queue, MUST(inotify_add_watch(queue, "/", IN_OPEN))));
    watches[1] = MUST(inotify_add_watch(queue, "/watched/file", IN_ALL_EVENTS));
    watches[2] = MUST(inotify_add_watch(queue, "/watched/link", IN_DONT_FOLLOW | IN_ATTRIB));
    watches[3] = MUST(inotify_add_watch(queue, "/dev/shm", IN_CREATE | IN_ONLYDIR));
    char name[32];
    snprintf(name, sizeof name, "/proc/self/fd/%d", gone);
    watches[4] = MUST(inotify_add_watch(queue, name, IN_MODIFY));
    char rest[8192];
    while (read(queue, rest, sizeof rest) > 0);
    EQUAL(errno, EAGAIN);
}
static void verify_inotify(void) {
    quiet();
    EQUAL(watches[0], 301);
    EQUAL(watches[1], 303);
    EQUAL(MUST(fcntl(queue, F_GETFD)), FD_CLOEXEC);
    EQUAL(MUST(fcntl(queue, F_GETFL)) & O_NONBLOCK, O_NONBLOCK);
    if (access("/act", F_OK)) return;
    close(MUST(open("/watched/new", O_CREAT | O_RDWR, 0600)));
    reports(watches[0], IN_CREATE, "new");
    MUST(unlink("/watched/new"));
    reports(watches[0], IN_DELETE, "new");
    int fd = MUST(open("/watched/file", O_RDWR));
    reports(watches[1], IN_OPEN, "");
    EQUAL(MUST(write(fd, "2", 1)), 1);
    reports(watches[1], IN_MODIFY, "");
    close(fd);
    reports(watches[1], IN_CLOSE_WRITE, "");
    MUST(lchown("/watched/link", 0, 0));
    reports(watches[2], IN_ATTRIB, "");
    close(MUST(open("/dev/shm/new", O_CREAT | O_RDWR, 0600)));
    reports(watches[3], IN_CREATE, "new");
    MUST(unlink("/dev/shm/new"));
    EQUAL(MUST(pwrite(gone, "3", 1, 0)), 1);
    reports(watches[4], IN_MODIFY, "");
    EQUAL(MUST(inotify_add_watch(queue, "/watched", IN_CREATE | IN_DELETE)), watches[0]);
    quiet();
}
/* Events that wait. */
static void set_unread(void) {
    set_inotify();
    close(make("/watched/unread", "", 0));
}
static void verify_unread(void) {
    int bytes;
    MUST(ioctl(queue, FIONREAD, &bytes));
    EQUAL(bytes, 32);
}

/* Handles of a child, of ourselves, of a thread, of a zombie and of one that has been reaped. */
static int child, self, thread, zombie, dead, dead_again, other_dead, watcher;
static pid_t child_id, zombie_id;
static int handle(pid_t pid, unsigned flags) { return (int)MUST(syscall(SYS_pidfd_open, pid, flags)); }
static pid_t ends(void) {
    pid_t pid = MUST(fork());
    if (!pid) _exit(7);
    return pid;
}
static void *sleeps(void *tid) {
    atomic_store((atomic_int *)tid, (int)syscall(SYS_gettid));
    for (;;) nap(100000);
    return NULL;
}
static void set_pidfd(void) {
    share();
    if (!(child_id = MUST(fork())))
        for (;;) beat(0);
    child = handle(child_id, O_NONBLOCK);
    MUST(fcntl(child, F_SETFD, 0));
    self = handle(getpid(), 0);
    pthread_t id;
    CHECK(!pthread_create(&id, NULL, sleeps, &shared->numbers[0]));
    thread = handle(number(0), O_EXCL /* PIDFD_THREAD */);
    zombie = handle(zombie_id = ends(), 0);
    siginfo_t info;
    MUST(waitid(P_PID, (id_t)zombie_id, &info, WEXITED | WNOWAIT));
    pid_t pid = ends();
    dead = handle(pid, 0);
    dead_again = handle(pid, 0);
    MUST(waitpid(pid, NULL, 0));
    pid = ends();
    other_dead = handle(pid, 0);
    MUST(waitpid(pid, NULL, 0));
    watcher = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN, .data.fd = child};
    MUST(epoll_ctl(watcher, EPOLL_CTL_ADD, child, &event));
}
static long long of(int fd) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    return (long long)field(proc(path), "\nPid:\t", 10);
}
static void verify_pidfd(void) {
    struct epoll_event event;
    siginfo_t info;
    EQUAL(of(child), child_id);
    EQUAL(of(self), getpid());
    EQUAL(of(thread), number(0));
    EQUAL(MUST(fcntl(child, F_GETFD)), 0);
    EQUAL(MUST(fcntl(self, F_GETFD)), FD_CLOEXEC);
    EQUAL(MUST(fcntl(child, F_GETFL)) & O_NONBLOCK, O_NONBLOCK);
    EQUAL(events(child, POLLIN), 0);
    EQUAL(events(self, POLLIN), 0);
    EQUAL(events(thread, POLLIN), 0);
    EQUAL(events(zombie, POLLIN), POLLIN);
    EQUAL(events(dead, POLLIN) & POLLIN, POLLIN);
    MUST(syscall(SYS_pidfd_send_signal, child, 0, NULL, 0));
    MUST(syscall(SYS_pidfd_send_signal, thread, 0, NULL, 0));
    FAILS(syscall(SYS_pidfd_send_signal, dead, 0, NULL, 0), ESRCH);
    MUST(waitid(P_PIDFD, (id_t)zombie, &info, WEXITED | WNOWAIT));
    EQUAL(info.si_pid, zombie_id);
    EQUAL(info.si_status, 7);
    AGREE(inode(dead), inode(dead_again));
    CHECK(inode(dead) != inode(other_dead));
    EQUAL(MUST(epoll_wait(watcher, &event, 1, 0)), 0);
    alive(0);
}

int main(int argc, char **argv) {
    static const struct mode modes[] = {
        {"inotify", set_inotify, verify_inotify},
        {"inotify-unread", set_unread, verify_unread},
        {"pidfd", set_pidfd, verify_pidfd},
        {NULL, NULL, NULL},
    };
    return guest(argc, argv, modes);
}
