/* Unix sockets: pairs and names, what waits in them, who is at the other end. */
#include "guest.h"
#include <grp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static int a, b, c, d, listener, epoll;
static void pair(int type, int *one, int *other) {
    int ends[2];
    MUST(socketpair(AF_UNIX, type, 0, ends));
    *one = ends[0];
    *other = ends[1];
}
/* A name that begins with @ is abstract. */
static socklen_t name(struct sockaddr_un *address, const char *text) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    size_t length = strlen(text);
    memcpy(address->sun_path, text, length);
    if (*text == '@') address->sun_path[0] = 0;
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (*text != '@'));
}
static int named(int type, const char *text) {
    struct sockaddr_un address;
    int fd = MUST(socket(AF_UNIX, type, 0));
    MUST(bind(fd, (struct sockaddr *)&address, name(&address, text)));
    return fd;
}
static void reach(int fd, const char *text) {
    struct sockaddr_un address;
    MUST(connect(fd, (struct sockaddr *)&address, name(&address, text)));
}
static int client(int type, const char *text) {
    int fd = MUST(socket(AF_UNIX, type, 0));
    reach(fd, text);
    return fd;
}
static void is_called(int fd, int (*ask)(int, struct sockaddr *, socklen_t *), const char *text) {
    struct sockaddr_un is, should;
    socklen_t length = sizeof is, expected = name(&should, text);
    memset(&is, 0, sizeof is);
    MUST(ask(fd, (struct sockaddr *)&is, &length));
    if (!*text) expected = sizeof(sa_family_t);
    EQUAL(length, expected);
    CHECK(!memcmp(is.sun_path, should.sun_path, length - sizeof(sa_family_t)));
}
static void put(int to, const char *text) { EQUAL(MUST(send(to, text, strlen(text), MSG_DONTWAIT)), strlen(text)); }
static void get(int from, const char *text) {
    char buffer[256] = "";
    EQUAL(MUST(recv(from, buffer, sizeof buffer - 1, MSG_DONTWAIT)), strlen(text));
    if (strcmp(buffer, text)) bad("it is \"%.60s\", not \"%.60s\"", buffer, text);
}
static void nothing(int from) { FAILS(recv(from, &(char){0}, 1, MSG_DONTWAIT), EAGAIN); }
static int option(int fd, int which) {
    int value;
    socklen_t length = sizeof value;
    MUST(getsockopt(fd, SOL_SOCKET, which, &value, &length));
    return value;
}
static void set_option(int fd, int which, int value) { MUST(setsockopt(fd, SOL_SOCKET, which, &value, sizeof value)); }
static short events(int of, short wanted) {
    struct pollfd asked = {.fd = of, .events = wanted};
    MUST(poll(&asked, 1, 0));
    return asked.revents;
}
static void is_socket(const char *path) {
    struct stat is;
    MUST(lstat(path, &is));
    CHECK(S_ISSOCK(is.st_mode));
}

/* A stream as a ring, both ways. */
static uint64_t first[2], last[2];
static void ring_put(int way) {
    uint64_t word = mix(++last[way]);
    EQUAL(MUST(send(way ? b : a, &word, 8, MSG_DONTWAIT)), 8);
}
static void ring_get(int way) {
    uint64_t word;
    EQUAL(MUST(recv(way ? a : b, &word, 8, MSG_DONTWAIT)), 8);
    EQUAL(word, mix(++first[way]));
}
static void fill_ring(void) {
    for (int i = 0; i < 200; i++) ring_put(i & 1);
}
static void verify_ring(void) {
    for (int i = 0; i < 20; i++) {
        ring_get(i & 1);
        ring_put(i & 1);
    }
}
static void set_pair(void) {
    pair(SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, &a, &b);
    fill_ring();
}
static void verify_pair(void) {
    verify_ring();
    EQUAL(MUST(fcntl(a, F_GETFD)), FD_CLOEXEC);
    EQUAL(MUST(fcntl(a, F_GETFL)) & ~0100000, O_RDWR | O_NONBLOCK);
}
/* As much as goes in. */
static size_t held;
static void set_full(void) {
    static char bytes[4096];
    pair(SOCK_STREAM, &a, &b);
    ssize_t sent;
    while ((sent = send(a, bytes, sizeof bytes, MSG_DONTWAIT)) > 0) held += (size_t)sent;
    EQUAL(errno, EAGAIN);
}
static void verify_full(void) {
    static char bytes[1 << 20];
    int waiting;
    MUST(ioctl(b, FIONREAD, &waiting));
    EQUAL(waiting, held);
    EQUAL(MUST(recv(b, bytes, 100000, MSG_WAITALL)), 100000);
    EQUAL(MUST(send(a, bytes, 100000, 0)), 100000);
}
/* Packets keep their borders. */
static void fill_packets(void) {
    put(a, "one");
    put(a, "");
    put(a, "three");
}
static void verify_packets(void) {
    get(b, "one");
    get(b, "");
    get(b, "three");
    nothing(b);
    fill_packets();
}
static void set_packets(void) {
    pair(SOCK_SEQPACKET, &a, &b);
    fill_packets();
}
static void set_datagrams(void) {
    pair(SOCK_DGRAM, &a, &b);
    fill_packets();
}
/* Ended in one direction, or by the end of the other one. */
static void set_half_closed(void) {
    pair(SOCK_STREAM, &a, &b);
    put(a, "last words");
    MUST(shutdown(a, SHUT_WR));
}
static void verify_half_closed(void) {
    char buffer[16];
    signal(SIGPIPE, SIG_IGN);
    EQUAL(MUST(recv(b, buffer, sizeof buffer, MSG_PEEK)), 10);
    FAILS(send(a, "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK(events(b, POLLRDHUP) & POLLRDHUP);
    put(b, "back");
    get(a, "back");
}
static void set_peer_gone(void) {
    pair(SOCK_STREAM, &a, &b);
    put(a, "legacy");
    MUST(close(a));
    pair(SOCK_SEQPACKET, &c, &d);
    MUST(close(c));
}
static void verify_peer_gone(void) {
    char buffer[16];
    EQUAL(MUST(recv(b, buffer, sizeof buffer, MSG_PEEK)), 6);
    FAILS(send(b, "x", 1, MSG_NOSIGNAL), EPIPE);
    CHECK(events(b, POLLIN) & POLLHUP);
    EQUAL(MUST(recv(d, buffer, sizeof buffer, 0)), 0);
}
static void set_reset(void) {
    pair(SOCK_STREAM, &a, &b);
    put(b, "unread");
    put(a, "read");
    MUST(close(a));
}
static void verify_reset(void) {
    char buffer[16];
    EQUAL(MUST(recv(b, buffer, sizeof buffer, MSG_PEEK)), 4);
    CHECK(events(b, POLLIN) & POLLERR);
}

/* Listening: one is connected, one waits to be accepted, and new ones come and go. */
static const char *place;
static int type;
static void listens(const char *text, int of) {
    place = text;
    type = of;
    listener = named(type, text);
    MUST(listen(listener, 7));
    a = client(type, text);
    b = MUST(accept(listener, NULL, NULL));
    c = client(type, text);
    fill_ring();
}
static void verify_listener(void) {
    verify_ring();
    is_called(listener, getsockname, place);
    is_called(b, getsockname, place);
    is_called(a, getpeername, place);
    is_called(a, getsockname, "");
    EQUAL(option(listener, SO_ACCEPTCONN), 1);
    int accepted = MUST(accept(listener, NULL, NULL));
    put(c, "hello");
    get(accepted, "hello");
    MUST(close(c));
    MUST(close(accepted));
    c = client(type, place);
}
static void set_listener(void) {
    MUST(mkdir("/tmp/sockets", 0755));
    listens("/tmp/sockets/listener", SOCK_STREAM);
    MUST(chmod(place, 0640));
    MUST(chown(place, 11, 12));
}
static void verify_file(void) {
    struct stat is;
    verify_listener();
    MUST(stat(place, &is));
    EQUAL(is.st_mode, S_IFSOCK | 0640);
    EQUAL(is.st_uid, 11);
    EQUAL(is.st_gid, 12);
}
static void set_abstract(void) { listens("@guest of a test", SOCK_SEQPACKET); }
/* The one that listened is gone, with its file or without. */
static void set_listener_gone(void) {
    listens("/gone", SOCK_STREAM);
    MUST(close(c));
    MUST(close(listener));
    MUST(unlink("/gone"));
}
static void verify_listener_gone(void) {
    verify_ring();
    is_called(b, getsockname, "/gone");
    is_called(a, getpeername, "/gone");
    FAILS(access("/gone", F_OK), ENOENT);
}
/* Its name is relative to a directory where nobody is any more. */
static void set_relative(void) {
    MUST(mkdir("/from", 0755));
    MUST(mkdir("/from/here", 0755));
    MUST(chdir("/from/here"));
    listens("../listener", SOCK_STREAM);
    MUST(chdir("/"));
}
static void verify_relative(void) {
    MUST(chdir("/from/here"));
    verify_listener();
    MUST(chdir("/"));
    is_socket("/from/listener");
    FAILS(access("/listener", F_OK), ENOENT);
}
/* Files that were moved, deleted, or have made room for another one. */
static void set_moved(void) {
    a = named(SOCK_DGRAM, "/moved");
    MUST(rename("/moved", "/here"));
    b = named(SOCK_DGRAM, "/deleted");
    MUST(unlink("/deleted"));
    c = named(SOCK_DGRAM, "/taken");
    MUST(unlink("/taken"));
    d = named(SOCK_DGRAM, "/taken");
}
static void verify_moved(void) {
    const char *names[] = {"/moved", "/deleted", "/taken", "/taken"};
    int all[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) is_called(all[i], getsockname, names[i]);
    FAILS(access("/moved", F_OK), ENOENT);
    FAILS(access("/deleted", F_OK), ENOENT);
    int sender = client(SOCK_DGRAM, "/here");
    put(sender, "a");
    reach(sender, "/taken");
    put(sender, "d");
    get(a, "a");
    get(d, "d");
    nothing(c);
    MUST(close(sender));
}
/* One way: from one with a name, one without, and one that is gone. */
static void fill_mailbox(void) {
    put(b, "named");
    put(c, "nameless");
    int gone = named(SOCK_DGRAM, "@gone");
    reach(gone, "/mailbox");
    put(gone, "gone");
    MUST(close(gone));
}
static void set_mailbox(void) {
    a = named(SOCK_DGRAM, "/mailbox");
    b = named(SOCK_DGRAM, "/postman");
    c = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    reach(b, "/mailbox");
    reach(c, "/mailbox");
    fill_mailbox();
}
static void verify_mailbox(void) {
    const char *texts[] = {"named", "nameless", "gone"}, *names[] = {"/postman", "", "@gone"};
    for (int i = 0; i < 3; i++) {
        char buffer[16] = "";
        struct sockaddr_un from, should;
        socklen_t length = sizeof from, expected = name(&should, names[i]);
        EQUAL(MUST(recvfrom(a, buffer, 15, MSG_DONTWAIT, (struct sockaddr *)&from, &length)), strlen(texts[i]));
        CHECK(!strcmp(buffer, texts[i]));
        if (!*names[i]) expected = 0;
        EQUAL(length, expected);
        CHECK(length == 0 || !memcmp(from.sun_path, should.sun_path, length - sizeof(sa_family_t)));
    }
    nothing(a);
    fill_mailbox();
}
/* It has chosen its name itself, and sends to itself. */
static void set_own(void) {
    a = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    sa_family_t family = AF_UNIX;
    struct sockaddr_un is;
    socklen_t length = sizeof is;
    MUST(bind(a, (struct sockaddr *)&family, sizeof family));
    MUST(getsockname(a, (struct sockaddr *)&is, &length));
    MUST(connect(a, (struct sockaddr *)&is, length));
    put(a, "own");
}
static void verify_own(void) {
    get(a, "own");
    put(a, "own");
}

/* Descriptors on their way. */
static void give(int over, const int *fds, int count, const char *text) {
    union { char room[CMSG_SPACE(8 * sizeof(int))]; struct cmsghdr header; } control = {0};
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
        .msg_controllen = CMSG_SPACE((size_t)count * sizeof(int))};
    control.header = (struct cmsghdr){CMSG_LEN((size_t)count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.header), fds, (size_t)count * sizeof(int));
    EQUAL(MUST(sendmsg(over, &message, 0)), strlen(text));
}
static void take(int from, int *fds, int count, const char *text) {
    union { char room[CMSG_SPACE(8 * sizeof(int))]; struct cmsghdr header; } control;
    char buffer[64] = "";
    struct iovec part = {buffer, sizeof buffer - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    EQUAL(MUST(recvmsg(from, &message, MSG_DONTWAIT)), strlen(text));
    CHECK(!strcmp(buffer, text));
    EQUAL(control.header.cmsg_type, SCM_RIGHTS);
    EQUAL(control.header.cmsg_len, CMSG_LEN((size_t)count * sizeof(int)));
    memcpy(fds, CMSG_DATA(&control.header), (size_t)count * sizeof(int));
}
/* A pipe of which one end is nowhere else, a file, and a socket with something in it, of which the other end is here. */
static void send_rights(void) {
    int ends[2], sent[3];
    MUST(pipe(ends));
    EQUAL(MUST(write(ends[1], "flow", 4)), 4);
    int file = make("/tmp/sent", "content", 0);
    pair(SOCK_STREAM, &sent[2], &d);
    put(d, "deep");
    sent[0] = ends[0];
    sent[1] = file;
    c = ends[1];
    put(a, "before");
    give(a, sent, 3, "with");
    put(a, "after");
    MUST(close(ends[0]));
    MUST(close(file));
    MUST(close(sent[2]));
}
static void verify_rights(void) {
    int got[3];
    char buffer[16] = "";
    struct stat is;
    EQUAL(MUST(recv(b, buffer, 6, 0)), 6);
    take(b, got, 3, type == SOCK_STREAM ? "with" : "with");
    get(b, "after");
    EQUAL(MUST(write(c, "er", 2)), 2);
    EQUAL(MUST(read(got[0], buffer, sizeof buffer)), 6);
    CHECK(!memcmp(buffer, "flower", 6));
    EQUAL(MUST(lseek(got[1], 0, SEEK_CUR)), 7);
    MUST(fstat(got[1], &is));
    EQUAL(is.st_size, 7);
    get(got[2], "deep");
    put(got[2], "answer");
    get(d, "answer");
    for (int i = 0; i < 3; i++) MUST(close(got[i]));
    MUST(close(c));
    MUST(close(d));
    send_rights();
}
static void set_rights(void) {
    type = SOCK_STREAM;
    pair(type, &a, &b);
    send_rights();
}
static void set_rights_of_packets(void) {
    type = SOCK_SEQPACKET;
    pair(type, &a, &b);
    send_rights();
}
/* Each is on its way to itself: once the job has ended, only the kernel knows of them. */
static void verify_loop(void) {
    int got[2];
    take(a, got, 2, "self");
    for (int i = 0; i < 2; i++) {
        AGREE(inode(i ? b : a), inode(got[i]));
        MUST(close(got[i]));
    }
    give(b, (int[]){a, b}, 2, "self");
}
static void set_loop(void) {
    struct sockaddr_un here;
    type = SOCK_DGRAM;
    pair(type, &a, &b);
    socklen_t size = name(&here, "@loop");
    MUST(bind(a, (struct sockaddr *)&here, size));
    give(b, (int[]){a, b}, 2, "self");
}
/* Both ends of a pair, each on its way through a socket that is on its way itself. */
static void send_nested(void) {
    int inner[2], outer[2];
    pair(SOCK_STREAM, &inner[0], &inner[1]);
    pair(SOCK_STREAM, &outer[0], &outer[1]);
    put(inner[0], "inmost");
    give(outer[0], inner, 2, "inner");
    give(a, outer, 2, "outer");
    for (int i = 0; i < 2; i++) {
        MUST(close(inner[i]));
        MUST(close(outer[i]));
    }
}
static void verify_nested(void) {
    int inner[2], outer[2];
    take(b, outer, 2, "outer");
    take(outer[1], inner, 2, "inner");
    get(inner[1], "inmost");
    for (int i = 0; i < 2; i++) {
        MUST(close(inner[i]));
        MUST(close(outer[i]));
    }
    send_nested();
}
static void set_nested(void) {
    pair(SOCK_DGRAM, &a, &b);
    send_nested();
}

/* Who is at the other end: a child with an identity of its own. */
static int child;
static void set_credentials(void) {
    share();
    listener = named(SOCK_STREAM, "/listener");
    MUST(listen(listener, 1));
    MUST(chmod("/listener", 0666));
    pair(SOCK_SEQPACKET, &c, &d);
    child = MUST(fork());
    if (!child) {
        MUST(setgroups(2, (gid_t[]){21, 22}));
        MUST(setresgid(31, 31, 31));
        MUST(setresuid(41, 41, 41));
        a = client(SOCK_STREAM, "/listener");
        for (;;) beat(0);
    }
    b = MUST(accept(listener, NULL, NULL));
    /* Another one has made a pair, and is gone. */
    pid_t gone = MUST(fork());
    if (!gone) {
        int ends[2];
        MUST(setresuid(51, 51, 51));
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
        give(c, ends, 2, "pair");
        _exit(0);
    }
    int ends[2];
    EQUAL(MUST(waitpid(gone, NULL, 0)), gone);
    take(d, ends, 2, "pair");
    shared->numbers[0] = gone;
    MUST(close(c));
    MUST(close(d));
    c = ends[0];
    d = ends[1];
}
static void is_peer(int fd, int pid, unsigned uid, unsigned gid) {
    struct ucred peer;
    socklen_t length = sizeof peer;
    MUST(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length));
    EQUAL(peer.pid, pid);
    EQUAL(peer.uid, uid);
    EQUAL(peer.gid, gid);
}
static void verify_credentials(void) {
    gid_t groups[4];
    socklen_t length = sizeof groups;
    alive(0);
    is_peer(b, child, 41, 31);
    MUST(getsockopt(b, SOL_SOCKET, 59 /* SO_PEERGROUPS */, groups, &length));
    EQUAL(length, 2 * sizeof(gid_t));
    CHECK(groups[0] == 21 && groups[1] == 22);
    is_peer(listener, getpid(), 0, 0);
    is_peer(c, shared->numbers[0], 51, 0);
    is_peer(d, shared->numbers[0], 51, 0);
}
/* Messages that say who has sent them; the sender may be gone. */
static void send_signed(void) {
    put(a, "mine");
    pid_t other = MUST(fork());
    if (!other) {
        MUST(setresuid(61, 61, 61));
        put(a, "gone");
        _exit(0);
    }
    EQUAL(MUST(waitpid(other, NULL, 0)), other);
    child = other;
}
static void is_signed(const char *text, int pid, unsigned uid) {
    union { char room[CMSG_SPACE(sizeof(struct ucred))]; struct cmsghdr header; } control;
    char buffer[16] = "";
    struct iovec part = {buffer, sizeof buffer - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct ucred by;
    EQUAL(MUST(recvmsg(b, &message, MSG_DONTWAIT)), strlen(text));
    CHECK(!strcmp(buffer, text));
    EQUAL(control.header.cmsg_type, SCM_CREDENTIALS);
    memcpy(&by, CMSG_DATA(&control.header), sizeof by);
    EQUAL(by.pid, pid);
    EQUAL(by.uid, uid);
}
static void set_signed(void) {
    pair(type = SOCK_DGRAM, &a, &b);
    set_option(b, SO_PASSCRED, 1);
    send_signed();
}
static void set_signed_stream(void) {
    pair(type = SOCK_STREAM, &a, &b);
    set_option(b, SO_PASSCRED, 1);
    send_signed();
}
static void verify_signed(void) {
    EQUAL(option(b, SO_PASSCRED), 1);
    is_signed("mine", getpid(), 0);
    is_signed("gone", child, 61);
    send_signed();
}

/* A byte out of band. */
static void set_urgent(void) {
    pair(SOCK_STREAM, &a, &b);
    put(a, "abc");
    EQUAL(MUST(send(a, "!", 1, MSG_OOB)), 1);
    put(a, "def");
}
static void verify_urgent(void) {
    char byte, buffer[16];
    int mark;
    EQUAL(MUST(recv(b, &byte, 1, MSG_OOB | MSG_PEEK)), 1);
    EQUAL(byte, '!');
    EQUAL(MUST(recv(b, buffer, sizeof buffer, MSG_PEEK)), 3);
    MUST(ioctl(b, SIOCATMARK, &mark));
    EQUAL(mark, 0);
    CHECK(events(b, POLLPRI) & POLLPRI);
}
/* Options. */
static void set_options(void) {
    pair(SOCK_STREAM, &a, &b);
    put(a, "0123456789");
    set_option(b, SO_PEEK_OFF, 4);
    set_option(a, SO_SNDBUF, 50000);
    set_option(a, SO_RCVBUF, 60000);
    set_option(b, SO_RCVLOWAT, 3);
    set_option(b, SO_PRIORITY, 5);
    MUST(setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){2, 500000}, sizeof(struct timeval)));
    MUST(setsockopt(a, SOL_SOCKET, SO_LINGER, &(struct linger){1, 9}, sizeof(struct linger)));
}
static void verify_options(void) {
    char buffer[8] = "";
    EQUAL(MUST(recv(b, buffer, 2, MSG_PEEK)), 2);
    CHECK(!strcmp(buffer, "45"));
    set_option(b, SO_PEEK_OFF, 4);
    EQUAL(option(a, SO_SNDBUF), 100000);
    EQUAL(option(a, SO_RCVBUF), 120000);
    EQUAL(option(b, SO_RCVLOWAT), 3);
    EQUAL(option(b, SO_PRIORITY), 5);
    struct timeval time;
    struct linger linger;
    socklen_t length = sizeof time;
    MUST(getsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &time, &length));
    EQUAL(time.tv_sec * 1000000 + time.tv_usec, 2500000);
    length = sizeof linger;
    MUST(getsockopt(a, SOL_SOCKET, SO_LINGER, &linger, &length));
    CHECK(linger.l_onoff && linger.l_linger == 9);
}
/* Watched: one with something in it, one without, one that has reported it already, and one that listens. */
static void watch(int fd, uint32_t wanted) {
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){wanted, {.fd = fd}}));
}
static void set_epoll(void) {
    struct epoll_event ready[8];
    epoll = MUST(epoll_create1(0));
    pair(SOCK_STREAM, &a, &b);
    pair(SOCK_STREAM, &c, &d);
    put(a, "edge");
    watch(b, EPOLLIN | EPOLLET);
    watch(d, EPOLLIN);
    EQUAL(MUST(epoll_wait(epoll, ready, 8, 0)), 1);
    listener = named(SOCK_STREAM, "@watched");
    MUST(listen(listener, 3));
    watch(listener, EPOLLIN);
}
static void verify_epoll(void) {
    struct epoll_event ready[8];
    EQUAL(MUST(epoll_wait(epoll, ready, 8, 0)), 0);
    put(c, "level");
    EQUAL(MUST(epoll_wait(epoll, ready, 8, 0)), 1);
    EQUAL(ready[0].data.fd, d);
    get(d, "level");
    int caller = client(SOCK_STREAM, "@watched");
    EQUAL(MUST(epoll_wait(epoll, ready, 8, 0)), 1);
    EQUAL(ready[0].data.fd, listener);
    MUST(close(MUST(accept(listener, NULL, NULL))));
    MUST(close(caller));
}
/* Between processes, who wait for each other: to be served, and to be connected to. */
static void set_server(void) {
    share();
    listener = named(SOCK_STREAM, "/server");
    MUST(listen(listener, 5));
    if (!MUST(fork()))
        for (;;) {
            char line[32];
            int served = MUST(accept(listener, NULL, NULL));
            ssize_t length = MUST(recv(served, line, sizeof line, 0));
            EQUAL(MUST(send(served, line, (size_t)length, 0)), length);
            MUST(close(served));
            beat(0);
        }
    MUST(close(listener));
    pair(SOCK_STREAM, &a, &b);
    if (!MUST(fork())) {
        char byte;
        MUST(close(a));
        for (;;) {
            EQUAL(MUST(recv(b, &byte, 1, 0)), 1);
            EQUAL(MUST(send(b, &byte, 1, 0)), 1);
        }
    }
    MUST(close(b));
}
static void verify_server(void) {
    int caller = client(SOCK_STREAM, "/server");
    char line[32] = "";
    EQUAL(MUST(send(caller, "question", 8, 0)), 8);
    EQUAL(MUST(recv(caller, line, sizeof line, 0)), 8);
    CHECK(!strcmp(line, "question"));
    MUST(close(caller));
    EQUAL(MUST(send(a, "!", 1, 0)), 1);
    EQUAL(MUST(recv(a, line, 1, 0)), 1);
}

/* To be refused: what was sent to where nobody is yet, and somebody who is not here. */
static void set_unaccepted(void) {
    listener = named(SOCK_STREAM, "/listener");
    MUST(listen(listener, 5));
    put(client(SOCK_STREAM, "/listener"), "early");
}
static void set_outside(void) { a = client(SOCK_STREAM, "/outside"); }
static void verify_nothing(void) {}

static const struct mode modes[] = {
    {"pair", set_pair, verify_pair},
    {"full", set_full, verify_full},
    {"packets", set_packets, verify_packets},
    {"datagrams", set_datagrams, verify_packets},
    {"half-closed", set_half_closed, verify_half_closed},
    {"peer-gone", set_peer_gone, verify_peer_gone},
    {"reset", set_reset, verify_reset},
    {"listener", set_listener, verify_file},
    {"abstract-name", set_abstract, verify_listener},
    {"listener-gone", set_listener_gone, verify_listener_gone},
    {"relative", set_relative, verify_relative},
    {"moved", set_moved, verify_moved},
    {"mailbox", set_mailbox, verify_mailbox},
    {"own", set_own, verify_own},
    {"rights", set_rights, verify_rights},
    {"rights-of-packets", set_rights_of_packets, verify_rights},
    {"rights-nested", set_nested, verify_nested},
    {"loop", set_loop, verify_loop},
    {"credentials", set_credentials, verify_credentials},
    {"signed", set_signed, verify_signed},
    {"signed-stream", set_signed_stream, verify_signed},
    {"urgent", set_urgent, verify_urgent},
    {"options", set_options, verify_options},
    {"epoll", set_epoll, verify_epoll},
    {"server", set_server, verify_server},
    {"unaccepted", set_unaccepted, verify_nothing},
    {"outside", set_outside, verify_nothing},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
