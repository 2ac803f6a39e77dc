/* What a checkpoint may refuse: it is kept, or named. */
#include "guest.h"
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
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
static void set_inotify(void) {
    fd = MUST(inotify_init1(IN_NONBLOCK));
    MUST(inotify_add_watch(fd, "/tmp", IN_CREATE));
}
static void verify_inotify(void) {
    char event[512];
    FAILS(read(fd, event, sizeof event), EAGAIN);
    close(make("/tmp/new", "", 0));
    MUST(unlink("/tmp/new"));
    CHECK(MUST(read(fd, event, sizeof event)) >= (ssize_t)sizeof(struct inotify_event));
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
static void set_queue(void) {
    fd = MUST(mq_open("/queue", O_CREAT | O_RDWR | O_NONBLOCK, 0600, NULL));
    MUST(mq_send(fd, "message", 7, 5));
}
static void verify_queue(void) {
    char text[8192];
    unsigned priority;
    EQUAL(MUST(mq_receive(fd, text, sizeof text, &priority)), 7);
    EQUAL(priority, 5);
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

static const struct mode modes[] = {
    {"io-uring", set_io_uring, verify_io_uring},
    {"userfaultfd", set_userfaultfd, verify_userfaultfd},
    {"several", set_several, verify_io_uring},
    {"unix-pair", set_unix_pair, verify_unix_pair},
    {"tcp-listener", set_listener, verify_listener},
    {"inotify", set_inotify, verify_inotify},
    {"pidfd", set_pidfd, verify_pidfd},
    {"message-queue", set_queue, verify_queue},
    {"landlock", set_landlock, verify_landlock},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
