/* Whoever is told by a signal when something is ready (O_ASYNC), and waits for nothing else. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

static sigset_t told;
static void ask(int fd) {
    MUST(fcntl(fd, F_SETOWN, getpid()));
    MUST(fcntl(fd, F_SETSIG, SIGRTMIN + 3));
    MUST(fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK));
}
static void set_told(void) {
    signals_expected = 1;
    sigemptyset(&told);
    sigaddset(&told, SIGRTMIN + 3);
    MUST(sigprocmask(SIG_BLOCK, &told, NULL));
}
/* The next signal. */
static void await(int fd) {
    struct timespec patience = {15, 0};
    siginfo_t info;
    while (sigtimedwait(&told, &info, &patience) < 0)
        if (errno != EINTR) bad("nobody tells of descriptor %d", fd);
    EQUAL(info.si_fd, fd);
}
static int count(void) {
    struct timespec no_time = {0, 0};
    int n = 0;
    while (sigtimedwait(&told, NULL, &no_time) > 0) n++;
    return n;
}
/* Reads as many bytes, all of which are told of. */
static void take(int fd, int wanted) {
    char bytes[64];
    for (int got = 0; got < wanted;) {
        await(fd);
        ssize_t n;
        while ((n = read(fd, bytes, sizeof bytes)) > 0) got += (int)n;
        if (n == 0) bad("descriptor %d has ended", fd);
        EQUAL(errno, EAGAIN);
    }
}

static int writer, reader;

/* Most of the time a byte waits to be sent: until the one before has been acknowledged, which the reader puts off. */
static void set_tcp(void) {
    set_told();
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof here;
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(listener, (struct sockaddr *)&here, length));
    MUST(listen(listener, 1));
    MUST(getsockname(listener, (struct sockaddr *)&here, &length));
    writer = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(writer, (struct sockaddr *)&here, length));
    reader = MUST(accept(listener, NULL, NULL));
    ask(reader);
}
static void verify_stream(void) {
    for (int i = 0; i < 5; i++) {
        int no = 0;
        (void)!setsockopt(reader, IPPROTO_TCP, TCP_QUICKACK, &no, sizeof no);
        EQUAL(write(writer, "a", 1), 1);
        EQUAL(write(writer, "b", 1), 1);
        take(reader, 2);
        CHECK(count() <= 1); /* the second byte came while the first one was read */
    }
}

/* The same without anything that is on its way. */
static void set_pipe(void) {
    set_told();
    int ends[2];
    MUST(pipe(ends));
    reader = ends[0], writer = ends[1];
    ask(reader);
}
static void set_pair(void) {
    set_told();
    int ends[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
    reader = ends[0], writer = ends[1];
    ask(reader);
}

/* Told of room where there was none. */
static char piece[8192];
static void set_room(void) {
    set_tcp();
    int small = 16384;
    MUST(setsockopt(writer, SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
    MUST(setsockopt(reader, SOL_SOCKET, SO_RCVBUF, &small, sizeof small));
    MUST(fcntl(reader, F_SETFL, O_NONBLOCK));
    ask(writer);
}
static void verify_room(void) {
    long sent = 0, got = 0;
    for (;;) {
        ssize_t n = write(writer, piece, sizeof piece);
        if (n < 0) break;
        sent += n;
    }
    EQUAL(errno, EAGAIN);
    count();
    nap(20000);
    double since = now(CLOCK_MONOTONIC);
    while (got < sent) {
        ssize_t n = read(reader, piece, sizeof piece);
        if (n > 0) got += n;
        else nap(1000);
        if (now(CLOCK_MONOTONIC) - since > 20) bad("%ld of %ld bytes have come", got, sent);
    }
    await(writer);
    while (count() > 0) nap(1000);
}

/* Descriptors on their way to somebody: told of when they have come. */
static int pair[2];
static void pass(int fd) {
    char byte = 'x';
    union { char bytes[CMSG_SPACE(sizeof fd)]; struct cmsghdr align; } control = {0};
    struct iovec io = {&byte, 1};
    struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    MUST(sendmsg(pair[0], &message, 0));
    MUST(close(fd));
}
static int receive(void) {
    char byte;
    int fd;
    union { char bytes[CMSG_SPACE(sizeof fd)]; struct cmsghdr align; } control = {0};
    struct iovec io = {&byte, 1};
    struct msghdr message = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control};
    EQUAL(MUST(recvmsg(pair[1], &message, 0)), 1);
    CHECK(CMSG_FIRSTHDR(&message));
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}
static void set_passed(void) {
    set_pipe();
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
}
static void verify_passed(void) {
    pass(reader);
    nap(20000);
    EQUAL(write(writer, "a", 1), 1);
    reader = receive();
    EQUAL(fcntl(reader, F_GETFL) & O_ASYNC, O_ASYNC);
    EQUAL(fcntl(reader, F_GETSIG), SIGRTMIN + 3);
    struct timespec patience = {15, 0};
    while (sigtimedwait(&told, NULL, &patience) < 0)
        if (errno != EINTR) bad("nobody tells of a descriptor that was passed on");
    char byte;
    EQUAL(MUST(read(reader, &byte, 1)), 1);
}

/* So is a timer that runs. */
static int timer;
static void set_passed_timer(void) {
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    timer = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
}
static void verify_passed_timer(void) {
    struct itimerspec every = {{0, 10000000}, {0, 80000000}};
    MUST(timerfd_settime(timer, 0, &every, NULL));
    uint64_t times;
    FAILS(read(timer, &times, sizeof times), EAGAIN);
    pass(timer);
    nap(50000);
    timer = receive();
    double since = now(CLOCK_MONOTONIC);
    while (read(timer, &times, sizeof times) < 0) {
        EQUAL(errno, EAGAIN);
        if (now(CLOCK_MONOTONIC) - since > 15) bad("a timer that was passed on stands still");
        nap(1000);
    }
}

/* Told of a directory's changes. */
static void set_directory(void) {
    set_told();
    MUST(mkdir("/watched", 0755));
    reader = MUST(open("/watched", O_RDONLY | O_DIRECTORY));
    MUST(fcntl(reader, F_SETSIG, SIGRTMIN + 3));
    MUST(fcntl(reader, F_NOTIFY, DN_CREATE | DN_MULTISHOT));
}
static void verify_directory(void) {
    close(make("/watched/file", "", 0));
    await(reader);
    MUST(unlink("/watched/file"));
}

static const struct mode modes[] = {
    {"tcp", set_tcp, verify_stream},
    {"pipe", set_pipe, verify_stream},
    {"pair", set_pair, verify_stream},
    {"room", set_room, verify_room},
    {"passed", set_passed, verify_passed},
    {"passed-timer", set_passed_timer, verify_passed_timer},
    {"directory", set_directory, verify_directory},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
