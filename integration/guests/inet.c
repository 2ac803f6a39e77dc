/* Sockets of the internet protocols. */
#include "guest.h"
#include "socket.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29
#endif
#ifndef ICMP_FILTER
#define ICMP_FILTER 1 /* linux/icmp.h, which does not go with netinet/ip_icmp.h */
#endif

/* ESTABLISHED and so on are in tcp.h. */
static int family = AF_INET, listener, a, b;
static union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
} here, of_a, of_b;
static socklen_t length(void) { return family == AF_INET ? sizeof here.four : sizeof here.six; }
static union address local(int port) {
    union address at = {0};
    at.any.sa_family = (sa_family_t)family;
    if (family == AF_INET) {
        at.four.sin_port = htons((uint16_t)port);
        at.four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else {
        at.six.sin6_port = htons((uint16_t)port);
        at.six.sin6_addr = in6addr_loopback;
    }
    return at;
}
static union address name(int of) {
    union address at = {0};
    socklen_t size = sizeof at;
    MUST(getsockname(of, &at.any, &size));
    return at;
}
static union address peer(int of) {
    union address at = {0};
    socklen_t size = sizeof at;
    MUST(getpeername(of, &at.any, &size));
    return at;
}
static void same(union address one, union address other) { EQUAL(memcmp(&one, &other, sizeof one), 0); }
static int state(int of) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    MUST(getsockopt(of, IPPROTO_TCP, TCP_INFO, &info, &size));
    return info.tcpi_state;
}
static short events(int of, short wanted) {
    struct pollfd asked = {.fd = of, .events = wanted};
    MUST(poll(&asked, 1, 0));
    return asked.revents;
}
/* Packets take their time. */
static void await_state(int of, int wanted) {
    AWAIT(state(of) == wanted, "the state is %d and not %d", state(of), wanted);
}
/* The time that a poll waits goes on while the job is nothing but an image; so it waits often, and not long. */
static void await_any(struct pollfd *asked, nfds_t count) {
    for (int tries = 0; MUST(poll(asked, count, 500)) == 0; tries++)
        if (tries == 120) bad("%d of events %d does not come", asked->fd, asked->events);
}
static void await_events(int of, short wanted) {
    struct pollfd asked = {.fd = of, .events = wanted};
    await_any(&asked, 1);
}
static int held(int of) {
    int bytes;
    MUST(ioctl(of, FIONREAD, &bytes));
    return bytes;
}
static void await_held(int of, uint64_t wanted) {
    AWAIT((uint64_t)held(of) == wanted, "there are %d bytes, not %lu", held(of), (unsigned long)wanted);
}

static void set_listen(void) {
    listener = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    here = local(0);
    MUST(bind(listener, &here.any, length()));
    MUST(listen(listener, 5));
    here = name(listener);
}
static void set_listen_6(void) {
    family = AF_INET6;
    set_listen();
}
static void connected(void) {
    a = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(a, &here.any, length()));
    b = MUST(accept(listener, NULL, NULL));
}
static void verify_listen(void) {
    EQUAL(state(listener), TCP_LISTEN);
    same(name(listener), here);
    struct tcp_info info;
    socklen_t size = sizeof info;
    MUST(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &size));
    EQUAL(info.tcpi_sacked, 5);
    connected();
    EQUAL(MUST(write(a, "x", 1)), 1);
    char byte;
    EQUAL(MUST(read(b, &byte, 1)), 1);
    struct linger none = {1, 0};
    MUST(setsockopt(a, SOL_SOCKET, SO_LINGER, &none, sizeof none));
    close(a), close(b);
    EQUAL(fcntl(listener, F_GETFD), FD_CLOEXEC);
}
/* One socket for both families. */
static void set_listen_dual(void) {
    family = AF_INET6;
    listener = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    set(listener, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    here = local(0);
    here.six.sin6_addr = in6addr_any;
    MUST(bind(listener, &here.any, length()));
    MUST(listen(listener, 5));
    here = name(listener);
}
static void verify_listen_dual(void) {
    union address all = here;
    int port = ntohs(here.six.sin6_port);
    same(name(listener), here);
    here = local(port);
    connected();
    close(a), close(b);
    family = AF_INET;
    here = local(port);
    connected();
    close(a), close(b);
    family = AF_INET6;
    here = all;
}
/* Two sockets share a port, and nobody else gets it. */
static int second;
static void set_reuseport(void) {
    here = local(0);
    for (int i = 0; i < 2; i++) {
        int made = MUST(socket(family, SOCK_STREAM, 0));
        set(made, SOL_SOCKET, SO_REUSEPORT, 1);
        MUST(bind(made, &here.any, length()));
        MUST(listen(made, 3));
        here = name(made);
        i ? (second = made) : (listener = made);
    }
}
static void verify_reuseport(void) {
    EQUAL(on(listener, SOL_SOCKET, SO_REUSEPORT), 1);
    int other = MUST(socket(family, SOCK_STREAM, 0));
    FAILS(bind(other, &here.any, length()), EADDRINUSE);
    set(other, SOL_SOCKET, SO_REUSEPORT, 1);
    MUST(bind(other, &here.any, length()));
    close(other);
    a = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(a, &here.any, length()));
    struct pollfd either[] = {{.fd = listener, .events = POLLIN}, {.fd = second, .events = POLLIN}};
    await_any(either, 2);
    close(MUST(accept(either[0].revents ? listener : second, NULL, NULL)));
    close(a);
}
/* Not connected, with and without an address. */
static void set_idle(void) {
    a = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
    b = MUST(socket(family, SOCK_STREAM, 0));
    union address any = local(0);
    MUST(bind(b, &any.any, length()));
    of_b = name(b);
}
static void set_idle_6(void) {
    family = AF_INET6;
    set_idle();
}
static void verify_idle(void) {
    char byte;
    EQUAL(state(a), TCP_CLOSE);
    EQUAL(state(b), TCP_CLOSE);
    same(name(b), of_b);
    FAILS(read(a, &byte, 1), ENOTCONN);
    EQUAL(events(a, POLLIN | POLLRDHUP | POLLOUT), POLLOUT | POLLHUP);
    EQUAL(family == AF_INET ? name(a).four.sin_port : name(a).six.sin6_port, 0);
    EQUAL(fcntl(a, F_GETFL), O_RDWR | O_NONBLOCK);
    int other = MUST(socket(family, SOCK_STREAM, 0));
    FAILS(bind(other, &of_b.any, length()), EADDRINUSE);
    close(other);
}

/* The size of its segments, which may become as little as TCP_MAXSEG takes at the most. */
static int segment(int fd) {
    int size = on(fd, IPPROTO_TCP, TCP_MAXSEG);
    return size < 32755 ? size : 32755;
}

/* A connection as two rings: what is read is the oldest, and something new is written. */
static int segments[2];
static uint64_t first[2], last[2], size_of_ring = 3000;
/* Bytes of the word behind the last one that are sent already. */
static size_t part[2];
static void put(int to, int ring) {
    uint64_t word = mix(++last[ring]);
    size_t left = 8 - part[ring];
    EQUAL(MUST(write(to, (char *)&word + part[ring], left)), left);
    part[ring] = 0;
}
static void get(int from, int ring) {
    uint64_t word;
    await_events(from, POLLIN);
    EQUAL(MUST(recv(from, &word, 8, MSG_WAITALL)), 8);
    EQUAL(word, mix(++first[ring]));
}
static void set_pair(void) {
    set_listen();
    connected();
    of_a = name(a), of_b = name(b);
    segments[0] = segment(a), segments[1] = segment(b);
    for (uint64_t i = 0; i < size_of_ring; i++) put(a, 0), put(b, 1);
}
static void set_pair_6(void) {
    family = AF_INET6;
    set_pair();
}
/* IPv4 by sockets of IPv6. */
static void set_pair_mapped(void) {
    set_listen_dual();
    inet_pton(AF_INET6, "::ffff:127.0.0.1", &here.six.sin6_addr);
    connected();
    of_a = name(a), of_b = name(b);
    segments[0] = segment(a), segments[1] = segment(b);
    for (uint64_t i = 0; i < size_of_ring; i++) put(a, 0), put(b, 1);
}
static void verify_pair(void) {
    same(name(a), of_a), same(name(b), of_b);
    same(peer(a), of_b), same(peer(b), of_a);
    for (int i = 0; i < 50; i++) {
        get(b, 0), get(a, 1);
        put(a, 0), put(b, 1);
    }
    EQUAL(state(a), TCP_ESTABLISHED);
    EQUAL(state(b), TCP_ESTABLISHED);
    EQUAL(segment(a) >= segments[0], 1);
    EQUAL(segment(b) >= segments[1], 1);
    EQUAL(events(a, POLLIN | POLLOUT | POLLRDHUP | POLLPRI), POLLIN | POLLOUT);
}
/* The one that listened is gone. */
static void set_pair_alone(void) {
    set_pair();
    close(listener);
}
/* As much as the kernel takes: there is data that was never sent. */
static void cram(int into, int ring) {
    MUST(fcntl(into, F_SETFL, O_NONBLOCK));
    uint64_t words[1024];
    for (;;) {
        for (int i = 0; i < 1024; i++) words[i] = mix(last[ring] + 1 + (uint64_t)i);
        ssize_t sent = write(into, (char *)words + part[ring], sizeof words - part[ring]);
        if (sent < 0 && errno == EAGAIN) break;
        part[ring] += (size_t)MUST(sent);
        last[ring] += part[ring] / 8;
        part[ring] %= 8;
    }
}
static void set_full(void) {
    size_of_ring = 10;
    set_pair();
    set(a, SOL_SOCKET, SO_SNDBUF, 100000);
    set(b, SOL_SOCKET, SO_RCVBUF, 100000);
    cram(a, 0);
}
static void verify_full(void) {
    for (int i = 0; i < 20; i++) get(b, 0);
    if (last[0] - first[0] < 2000) cram(a, 0);
    EQUAL(on(a, SOL_SOCKET, SO_SNDBUF), 200000);
    get(a, 1), put(b, 1);
}
/* Whose buffers grow by themselves. */
static void set_grown(void) {
    size_of_ring = 10;
    set_pair();
    cram(a, 0), cram(b, 1);
    CHECK((last[0] - first[0]) * 8 > 200000);
}
static void verify_grown(void) {
    for (int i = 0; i < 50; i++) get(b, 0), get(a, 1);
    if (last[0] - first[0] < 9000) cram(a, 0);
    if (last[1] - first[1] < 9000) cram(b, 1);
}
static void set_grown_6(void) {
    family = AF_INET6;
    set_grown();
}

/* One end is closed. */
static void set_close_wait(void) {
    set_pair();
    MUST(shutdown(a, SHUT_WR));
    await_state(b, TCP_CLOSE_WAIT);
    await_state(a, TCP_FIN_WAIT2);
}
static void set_close_wait_6(void) {
    family = AF_INET6;
    set_close_wait();
}
static void verify_close_wait(void) {
    signal(SIGPIPE, SIG_IGN);
    EQUAL(state(b), TCP_CLOSE_WAIT);
    EQUAL(state(a), TCP_FIN_WAIT2);
    if (first[0] < last[0]) get(b, 0);
    EQUAL(held(b), (last[0] - first[0]) * 8);
    char byte;
    if (first[0] == last[0]) EQUAL(MUST(read(b, &byte, 1)), 0);
    EQUAL(events(b, POLLIN | POLLOUT | POLLRDHUP), POLLIN | POLLOUT | POLLRDHUP);
    FAILS(write(a, "x", 1), EPIPE);
    get(a, 1), put(b, 1);
}
/* The peer has gone, and left something. */
static void set_peer_gone(void) {
    set_pair();
    for (uint64_t i = 0; i < size_of_ring; i++) get(b, 0);
    close(b);
    await_state(a, TCP_CLOSE_WAIT);
}
static void verify_peer_gone(void) {
    EQUAL(state(a), TCP_CLOSE_WAIT);
    if (first[1] < last[1]) get(a, 1);
    EQUAL(held(a), (last[1] - first[1]) * 8);
    EQUAL(events(a, POLLIN | POLLRDHUP | POLLHUP | POLLERR), POLLIN | POLLRDHUP);
}
/* An end that can't be told yet, since what comes before it can't be sent. */
static void set_fin_wait1(void) {
    set_grown();
    MUST(shutdown(a, SHUT_WR));
    MUST(shutdown(b, SHUT_WR));
}
static void set_fin_wait1_6(void) {
    family = AF_INET6;
    set_fin_wait1();
}
static void verify_fin_wait1(void) {
    signal(SIGPIPE, SIG_IGN);
    EQUAL(state(a), TCP_FIN_WAIT1);
    EQUAL(state(b), TCP_FIN_WAIT1);
    for (int i = 0; i < 5; i++) get(a, 1), get(b, 0);
    FAILS(write(a, "x", 1), EPIPE);
}
static void set_last_ack(void) {
    size_of_ring = 10;
    set_pair();
    MUST(shutdown(a, SHUT_WR));
    await_state(b, TCP_CLOSE_WAIT);
    cram(b, 1);
    MUST(shutdown(b, SHUT_WR));
    EQUAL(state(b), TCP_LAST_ACK);
}
static void set_last_ack_6(void) {
    family = AF_INET6;
    set_last_ack();
}
static void verify_last_ack(void) {
    EQUAL(state(b), TCP_LAST_ACK);
    EQUAL(state(a), TCP_FIN_WAIT2);
    for (int i = 0; i < 5; i++) get(a, 1);
    if (first[0] < last[0]) get(b, 0);
}
/* All of a stream comes, with its end, when its end could not be told at the checkpoint. */
static void set_drain(void) {
    size_of_ring = 10;
    set_pair();
    MUST(shutdown(a, SHUT_WR));
    await_state(b, TCP_CLOSE_WAIT);
    set(b, SOL_SOCKET, SO_SNDBUF, 10000);
    set(a, SOL_SOCKET, SO_RCVBUF, 10000);
    cram(b, 1);
    MUST(shutdown(b, SHUT_WR));
}
static void verify_drain(void) {
    static int turn;
    if (++turn % 20) return;
    while (first[1] < last[1]) get(a, 1);
    char bytes[8];
    EQUAL(MUST(recv(a, bytes, sizeof bytes, MSG_WAITALL)), part[1]);
    close(a), close(b), close(listener);
    memset(first, 0, sizeof first), memset(last, 0, sizeof last), memset(part, 0, sizeof part);
    set_drain();
}
/* Both ends have ended. */
static void set_closed(void) {
    set_pair();
    MUST(shutdown(a, SHUT_WR));
    await_state(b, TCP_CLOSE_WAIT);
    MUST(shutdown(b, SHUT_WR));
    await_state(b, TCP_CLOSE);
    await_state(a, TCP_CLOSE);
}
static void set_closed_6(void) {
    family = AF_INET6;
    set_closed();
}
static void verify_closed(void) {
    signal(SIGPIPE, SIG_IGN);
    char byte;
    union address peer_of_a = {0};
    socklen_t size = sizeof peer_of_a;
    EQUAL(state(a), TCP_CLOSE);
    EQUAL(state(b), TCP_CLOSE);
    if (first[1] < last[1]) get(a, 1), get(b, 0);
    EQUAL(held(a), (last[1] - first[1]) * 8);
    if (first[1] == last[1]) EQUAL(MUST(read(a, &byte, 1)), 0);
    EQUAL(events(a, POLLIN | POLLRDHUP | POLLOUT), POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
    EQUAL(on(a, SOL_SOCKET, SO_ERROR), 0);
    FAILS(write(b, "x", 1), EPIPE);
    FAILS(getpeername(a, &peer_of_a.any, &size), ENOTCONN);
    same(name(a), of_a);
    size = length(); /* No more than there is. */
    MUST(getsockopt(a, SOL_SOCKET, 28 /* SO_PEERNAME */, &peer_of_a, &size));
    same(peer_of_a, name(b));
}
/* The answer to the last end is late: one end is gone for its owner, the other waits. */
static void set_closed_one(void) {
    set_listen();
    connected();
    of_a = name(a), of_b = name(b);
    MUST(shutdown(a, SHUT_WR));
    await_state(b, TCP_CLOSE_WAIT);
    struct sock_filter nothing[] = {{.code = BPF_RET | BPF_K}};
    struct sock_fprog program = {1, nothing};
    MUST(setsockopt(b, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    MUST(shutdown(b, SHUT_WR));
    await_state(a, TCP_CLOSE);
}
static void verify_closed_one(void) {
    union address peer_of_a = {0};
    socklen_t size = length();
    char byte;
    EQUAL(state(a), TCP_CLOSE);
    CHECK(state(b) == TCP_LAST_ACK || state(b) == TCP_CLOSE);
    same(name(a), of_a);
    MUST(getsockopt(a, SOL_SOCKET, 28 /* SO_PEERNAME */, &peer_of_a, &size));
    same(peer_of_a, of_b);
    EQUAL(MUST(read(a, &byte, 1)), 0);
    EQUAL(MUST(read(b, &byte, 1)), 0);
}
/* Bound to addresses of nobody, by a leave that was given back. */
static void set_foreign(void) {
    here = local(0);
    here.four.sin_addr.s_addr = htonl(0xc0000207); /* 192.0.2.7 */
    a = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    set(a, IPPROTO_IP, IP_FREEBIND, 1);
    MUST(bind(a, &here.any, length()));
    set(a, IPPROTO_IP, IP_FREEBIND, 0);
    of_a = name(a);
    family = AF_INET6;
    here = local(0);
    inet_pton(AF_INET6, "2001:db8::7", &here.six.sin6_addr);
    b = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    set(b, IPPROTO_IPV6, 78 /* IPV6_FREEBIND */, 1);
    MUST(bind(b, &here.any, length()));
    MUST(listen(b, 1));
    set(b, IPPROTO_IPV6, 78, 0);
    of_b = name(b);
}
static void verify_foreign(void) {
    same(name(a), of_a), same(name(b), of_b);
    EQUAL(on(a, IPPROTO_IP, IP_FREEBIND), 0);
    EQUAL(on(b, IPPROTO_IPV6, 78), 0);
    EQUAL(state(b), TCP_LISTEN);
    int other = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    FAILS(bind(other, &of_b.any, length()), EADDRNOTAVAIL);
    close(other);
}
/* Broken off by the peer, which nobody has been told of yet. */
static void set_reset(void) {
    set_pair();
    /* What is still on its way would be lost. */
    await_held(a, size_of_ring * 8);
    struct linger none = {1, 0};
    MUST(setsockopt(b, SOL_SOCKET, SO_LINGER, &none, sizeof none));
    close(b);
    await_state(a, TCP_CLOSE);
}
static void verify_reset(void) {
    static int turn;
    EQUAL(state(a), TCP_CLOSE);
    EQUAL(events(a, POLLIN | POLLOUT | POLLRDHUP), POLLIN | POLLOUT | POLLRDHUP | POLLERR | POLLHUP);
    EQUAL(held(a), size_of_ring * 8);
    if (++turn % 25) return;
    uint64_t word;
    EQUAL(on(a, SOL_SOCKET, SO_ERROR), ECONNRESET);
    EQUAL(MUST(read(a, &word, 8)), 8);
    EQUAL(word, mix(1));
    EQUAL(on(a, SOL_SOCKET, SO_ERROR), 0);
    close(a), close(listener);
    memset(last, 0, sizeof last);
    set_reset();
}
static void set_no_reading(void) {
    size_of_ring = 10;
    set_pair();
    MUST(shutdown(a, SHUT_RD));
}
static void verify_no_reading(void) {
    char byte;
    EQUAL(state(a), TCP_ESTABLISHED);
    EQUAL(events(a, POLLRDHUP), POLLRDHUP);
    if (first[1] < last[1]) get(a, 1);
    else EQUAL(MUST(read(a, &byte, 1)), 0);
    get(b, 0), put(a, 0);
}

/* Connected, and nobody has accepted it. */
static void set_waiting(void) {
    set_listen();
    a = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(a, &here.any, length()));
    /* To be connected is not yet to be in the queue: the last packet is on its way. */
    await_events(listener, POLLIN);
    second = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(second, &here.any, length()));
    MUST(shutdown(second, SHUT_WR));
    await_state(second, TCP_FIN_WAIT2);
}
static void set_waiting_6(void) {
    family = AF_INET6;
    set_waiting();
}
static void verify_waiting(void) {
    static int turn;
    char byte;
    EQUAL(state(a), TCP_ESTABLISHED);
    EQUAL(state(second), TCP_FIN_WAIT2);
    EQUAL(events(listener, POLLIN), POLLIN);
    if (++turn % 20) return;
    for (int i = 0; i < 2; i++) {
        b = MUST(accept(listener, NULL, NULL));
        union address from = peer(b), mine = name(a);
        if (memcmp(&from, &mine, sizeof from)) {
            same(from, name(second));
            await_events(b, POLLIN);
            EQUAL(MUST(read(b, &byte, 1)), 0);
            EQUAL(MUST(write(b, "x", 1)), 1);
            EQUAL(MUST(read(second, &byte, 1)), 1);
        } else {
            EQUAL(MUST(write(a, "x", 1)), 1);
            EQUAL(MUST(read(b, &byte, 1)), 1);
        }
        close(b);
    }
    close(a), close(second), close(listener);
    set_waiting();
}
static void set_waiting_with_data(void) {
    set_listen();
    a = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(a, &here.any, length()));
    EQUAL(MUST(write(a, "hello", 5)), 5);
}
static void verify_waiting_with_data(void) { EQUAL(state(a), TCP_ESTABLISHED); }
/* Half of the time something has been sent to where nobody has accepted yet. */
static void verify_slow_to_accept(void) {
    char text[5];
    a = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(a, &here.any, length()));
    EQUAL(MUST(write(a, "hello", 5)), 5);
    nap(2000);
    b = MUST(accept(listener, NULL, NULL));
    EQUAL(MUST(read(b, text, sizeof text)), 5);
    CHECK(!memcmp(text, "hello", 5));
    close(a), close(b);
}
/* Nobody answers: the queue is full. */
static void set_connecting(void) {
    here = local(0);
    listener = MUST(socket(family, SOCK_STREAM, 0));
    MUST(bind(listener, &here.any, length()));
    MUST(listen(listener, 0));
    here = name(listener);
    second = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(second, &here.any, length()));
    await_events(listener, POLLIN);
    a = MUST(socket(family, SOCK_STREAM | SOCK_NONBLOCK, 0));
    FAILS(connect(a, &here.any, length()), EINPROGRESS);
    of_a = name(a);
}
static void verify_connecting(void) {
    static int turn;
    EQUAL(state(a), TCP_SYN_SENT);
    same(name(a), of_a);
    EQUAL(events(a, POLLOUT | POLLIN), 0);
    if (++turn != 100) return;
    close(MUST(accept(listener, NULL, NULL)));
    await_events(a, POLLOUT);
    EQUAL(on(a, SOL_SOCKET, SO_ERROR), 0);
    EQUAL(state(a), TCP_ESTABLISHED);
    close(a), close(second), close(listener);
    turn = 0;
    set_connecting();
}

static const struct {
    int level, option, value, should;
} numbers[] = {
    {SOL_SOCKET, SO_REUSEADDR, 1, 1},
    {SOL_SOCKET, SO_KEEPALIVE, 1, 1},
    {SOL_SOCKET, SO_RCVLOWAT, 3, 3},
    {IPPROTO_IP, IP_TOS, 0x10, 0x10},
    {SOL_SOCKET, SO_PRIORITY, 5, 5}, /* IP_TOS changes it */
    {IPPROTO_IP, IP_TTL, 77, 77},
    {IPPROTO_IP, IP_FREEBIND, 1, 1},
    {IPPROTO_IP, IP_TRANSPARENT, 1, 1},
    {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_DO},
    {IPPROTO_IP, IP_RECVERR, 1, 1},
    {IPPROTO_IP, IP_RECVTTL, 1, 1},
    {IPPROTO_TCP, TCP_NODELAY, 1, 1},
    {IPPROTO_TCP, TCP_KEEPIDLE, 100, 100},
    {IPPROTO_TCP, TCP_KEEPINTVL, 20, 20},
    {IPPROTO_TCP, TCP_KEEPCNT, 4, 4},
    {IPPROTO_TCP, TCP_SYNCNT, 3, 3},
    {IPPROTO_TCP, TCP_LINGER2, 17, 17},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, 12345, 12345},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384, 16384},
};
enum { NUMBERS = sizeof numbers / sizeof *numbers };
static void set_numbers(int of) {
    for (int i = 0; i < NUMBERS; i++) set(of, numbers[i].level, numbers[i].option, numbers[i].value);
    MUST(setsockopt(of, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
}
static void verify_numbers(int of) {
    char text[16] = "";
    socklen_t size = sizeof text;
    for (int i = 0; i < NUMBERS; i++) {
        int is = on(of, numbers[i].level, numbers[i].option);
        if (is != numbers[i].should) {
            bad("option %d of %d is %d, not %d", numbers[i].option, numbers[i].level, is, numbers[i].should);
        }
    }
    MUST(getsockopt(of, IPPROTO_TCP, TCP_CONGESTION, text, &size));
    EQUAL(strcmp(text, "reno"), 0);
}
/* Options that are more than a number, and some that only newer kernels have. */
static const struct {
    int six, level, option, bytes;
    unsigned char value[8];
} strings[] = {
    {0, IPPROTO_IP, IP_OPTIONS, 4, {1, 1, 1, 0}},
    {1, IPPROTO_IPV6, IPV6_HOPOPTS, 8, {0, 0, 1, 4}},
    {1, IPPROTO_IPV6, IPV6_DSTOPTS, 8, {0, 0, 1, 4}},
    {0, SOL_SOCKET, SO_TXTIME, 8, {CLOCK_MONOTONIC, 0, 0, 0, 1}},
    {0, IPPROTO_UDP, 100 /* UDP_ENCAP */, 4, {2}},
    {0, SOL_SOCKET, 82 /* SO_RCVPRIORITY */, 4, {1}},
};
enum { STRINGS = sizeof strings / sizeof *strings };
static int of_strings[2], has[STRINGS];
static void set_strings(void) {
    of_strings[0] = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    of_strings[1] = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
    for (int i = 0; i < STRINGS; i++) {
        int of = of_strings[strings[i].six];
        has[i] = !setsockopt(of, strings[i].level, strings[i].option, strings[i].value, (socklen_t)strings[i].bytes);
        if (!has[i]) EQUAL(errno, ENOPROTOOPT);
    }
}
static void verify_strings(void) {
    for (int i = 0; i < STRINGS; i++) {
        unsigned char is[64] = {0};
        socklen_t size = sizeof is;
        if (!has[i]) continue;
        MUST(getsockopt(of_strings[strings[i].six], strings[i].level, strings[i].option, is, &size));
        EQUAL(size, strings[i].bytes);
        if (memcmp(is, strings[i].value, size)) bad("option %d of %d is another one", strings[i].option, strings[i].level);
    }
}
static void set_options(void) {
    family = AF_INET6;
    set_pair_mapped();
    set_numbers(a);
    set(a, IPPROTO_IPV6, IPV6_TCLASS, 0x20);
    second = MUST(socket(AF_INET, SOCK_STREAM, 0));
    set_numbers(second);
    set(second, IPPROTO_TCP, TCP_CORK, 1);
    set(second, IPPROTO_TCP, TCP_DEFER_ACCEPT, 7);
    set(second, IPPROTO_TCP, TCP_FASTOPEN, 9);
    set(second, IPPROTO_TCP, TCP_MAXSEG, 900);
    set(second, IPPROTO_TCP, TCP_WINDOW_CLAMP, 30000);
    set_strings();
}
static void verify_options(void) {
    verify_numbers(a), verify_numbers(second);
    EQUAL(on(a, IPPROTO_IPV6, IPV6_TCLASS), 0x20);
    EQUAL(on(b, IPPROTO_TCP, TCP_NODELAY), 0);
    EQUAL(on(second, IPPROTO_TCP, TCP_CORK), 1);
    EQUAL(on(second, IPPROTO_TCP, TCP_DEFER_ACCEPT), 7);
    EQUAL(on(second, IPPROTO_TCP, TCP_FASTOPEN), 9);
    EQUAL(on(second, IPPROTO_TCP, TCP_MAXSEG), 900);
    EQUAL(on(second, IPPROTO_TCP, TCP_WINDOW_CLAMP), 30000);
    verify_strings();
    get(b, 0), get(a, 1), put(a, 0), put(b, 1);
}
/* Held back until there is more. */
static void set_cork(void) {
    size_of_ring = 10;
    set_pair();
    set(a, IPPROTO_TCP, TCP_CORK, 1);
    for (int i = 0; i < 3; i++) put(a, 0);
}
static void verify_cork(void) { EQUAL(on(a, IPPROTO_TCP, TCP_CORK), 1); }

/* Two processes, each of which waits for the other in read(2). */
static void set_between(void) {
    set_listen();
    connected();
    if (MUST(fork())) {
        close(b);
        return;
    }
    close(a), close(listener);
    for (uint64_t word, want = 0;; want++) {
        EQUAL(MUST(recv(b, &word, 8, MSG_WAITALL)), 8);
        EQUAL(word, want);
        nap(2000);
        word *= 2;
        EQUAL(MUST(write(b, &word, 8)), 8);
    }
}
static void verify_between(void) {
    static uint64_t sent;
    uint64_t got;
    EQUAL(MUST(write(a, &sent, 8)), 8);
    EQUAL(MUST(recv(a, &got, 8, MSG_WAITALL)), 8);
    EQUAL(got, sent++ * 2);
}
/* Much data all the time, and a process that waits in accept(2). */
static void set_torrent(void) {
    set_listen();
    if (!MUST(fork()))
        for (;;) {
            b = MUST(accept(listener, NULL, NULL));
            char data[5000];
            for (ssize_t got; (got = MUST(read(b, data, sizeof data))) > 0;)
                for (ssize_t at = 0; at < got;) at += MUST(write(b, data + at, (size_t)(got - at)));
            close(b);
        }
    a = MUST(socket(family, SOCK_STREAM, 0));
    MUST(connect(a, &here.any, length()));
    if (MUST(fork())) return;
    for (uint64_t i = 0;; i += 100) {
        uint64_t words[100];
        for (uint64_t k = 0; k < 100; k++) words[k] = mix(i + k + 1);
        for (size_t at = 0; at < sizeof words;) at += (size_t)MUST(write(a, (char *)words + at, sizeof words - at));
    }
}
static void verify_torrent(void) {
    for (int i = 0; i < 1000; i++) get(a, 0);
}
static void set_torrent_6(void) {
    family = AF_INET6;
    set_torrent();
}
/* What is watched has been reported, and is not again. */
static int set_of;
static void set_edge(void) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLET | EPOLLRDHUP, .data.u64 = 5};
    set_pair();
    set(a, IPPROTO_TCP, TCP_NODELAY, 1);
    set_of = MUST(epoll_create1(0));
    MUST(epoll_ctl(set_of, EPOLL_CTL_ADD, b, &event));
    event.data.u64 = 6;
    MUST(epoll_ctl(set_of, EPOLL_CTL_ADD, listener, &event));
    EQUAL(MUST(epoll_wait(set_of, &event, 1, 0)), 1);
}
static void verify_edge(void) {
    struct epoll_event event;
    EQUAL(MUST(epoll_wait(set_of, &event, 1, 0)), 0);
    put(a, 0);
    EQUAL(MUST(epoll_wait(set_of, &event, 1, 120000)), 1);
    EQUAL(event.data.u64, 5);
    EQUAL(event.events, EPOLLIN);
    get(b, 0);
}
/* There is no room. */
static void stuff(void) {
    static char bytes[1 << 16];
    while (send(a, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
    EQUAL(errno, EAGAIN);
}
static void set_full_edge(void) {
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET, .data.u64 = 5};
    set_pair();
    set(a, SOL_SOCKET, SO_SNDBUF, 1 << 16);
    set_of = MUST(epoll_create1(0));
    MUST(epoll_ctl(set_of, EPOLL_CTL_ADD, a, &event));
    EQUAL(MUST(epoll_wait(set_of, &event, 1, 0)), 1);
    /* What is on its way to the other end takes a while to be there. */
    do stuff();
    while (epoll_wait(set_of, &event, 1, 10) == 1);
}
static void verify_full_edge(void) {
    static char bytes[1 << 16];
    static int turn;
    if (++turn % 20) return;
    struct epoll_event event;
    int tries = 0;
    do {
        if (++tries > 6000) bad("nobody says that there is room");
        while (recv(b, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
    } while (MUST(epoll_wait(set_of, &event, 1, 10)) == 0);
    EQUAL(event.events, EPOLLOUT);
    do stuff();
    while (epoll_wait(set_of, &event, 1, 10) == 1);
}
/* What is watched is on its way: the kernel holds it back for its pace, which it keeps from the tenth packet on. */
static void set_arriving(void) {
    set_edge();
    for (int i = 0; i < 12; i++) verify_edge();
    set(a, SOL_SOCKET, SO_MAX_PACING_RATE, 40);
    put(a, 0);
    get(b, 0);
    put(a, 0);
}
static void verify_arriving(void) {
    struct epoll_event event;
    EQUAL(MUST(epoll_wait(set_of, &event, 1, 120000)), 1);
    EQUAL(event.data.u64, 5);
    get(b, 0);
    put(a, 0);
}

/* What has been received is to be had without a copy. */
static void set_mapped(void) {
    set_pair();
    MUST(mmap(NULL, 4096, PROT_READ, MAP_SHARED, a, 0));
}
static void verify_mapped(void) { put(a, 0), get(b, 0); }

/* Datagrams */
static void set_udp(void) {
    a = MUST(socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    b = MUST(socket(family, SOCK_DGRAM, 0));
    here = local(0);
    MUST(bind(a, &here.any, length()));
    MUST(bind(b, &here.any, length()));
    of_a = name(a), of_b = name(b);
    set(a, SOL_SOCKET, SO_BROADCAST, 1);
}
static void set_udp_6(void) {
    family = AF_INET6;
    set_udp();
}
static void send_to(int from, union address to, uint64_t word) {
    EQUAL(MUST(sendto(from, &word, 8, 0, &to.any, length())), 8);
}
static uint64_t receive(int at, union address from) {
    union address is = {0};
    socklen_t size = sizeof is;
    uint64_t word;
    EQUAL(MUST(recvfrom(at, &word, 8, MSG_TRUNC, &is.any, &size)), 8);
    same(is, from);
    return word;
}
static void verify_udp(void) {
    char byte;
    same(name(a), of_a), same(name(b), of_b);
    EQUAL(on(a, SOL_SOCKET, SO_BROADCAST), 1);
    FAILS(recv(b, &byte, 1, MSG_DONTWAIT), EAGAIN);
    send_to(a, of_b, 7);
    EQUAL(receive(b, of_a), 7);
}
static void set_udp_connected(void) {
    set_udp();
    MUST(connect(a, &of_b.any, length()));
}
static void verify_udp_connected(void) {
    same(peer(a), of_b);
    uint64_t word = 9;
    EQUAL(MUST(write(a, &word, 8)), 8);
    EQUAL(receive(b, of_a), 9);
    send_to(b, of_a, 8);
    EQUAL(receive(a, of_b), 8);
}
/* What has come and was not read. */
static void set_udp_queue(void) {
    set_udp();
    for (int i = 0; i < 20; i++) send_to(a, of_b, mix(++last[0])), send_to(b, of_b, mix(++last[0]));
    EQUAL(MUST(sendto(b, "", 0, 0, &of_a.any, length())), 0);
}
static void set_udp_queue_6(void) {
    family = AF_INET6;
    set_udp_queue();
}
static void verify_udp_queue(void) {
    EQUAL(receive(b, of_a), mix(++first[0]));
    EQUAL(receive(b, of_b), mix(++first[0]));
    send_to(a, of_b, mix(++last[0])), send_to(b, of_b, mix(++last[0]));
    EQUAL(events(a, POLLIN), POLLIN);
    EQUAL(MUST(recv(a, first + 1, 8, MSG_PEEK)), 0);
}
static void set_udp_shut(void) {
    set_udp_connected();
    MUST(shutdown(a, SHUT_RD));
    MUST(connect(b, &of_a.any, length()));
    MUST(shutdown(b, SHUT_WR));
}
static void verify_udp_shut(void) {
    signal(SIGPIPE, SIG_IGN);
    FAILS(write(b, "x", 1), EPIPE);
    EQUAL(events(a, POLLIN | POLLRDHUP), POLLIN | POLLRDHUP);
    uint64_t word = 9;
    EQUAL(MUST(write(a, &word, 8)), 8);
    EQUAL(receive(b, of_a), 9);
}
static void set_udp_corked(void) {
    set_udp_connected();
    set(a, IPPROTO_UDP, 1, 1);
    EQUAL(MUST(write(a, "abc", 3)), 3);
}
static void verify_udp_corked(void) { EQUAL(on(a, IPPROTO_UDP, 1), 1); }
/* Groups: of all who send, of one who is named, of all but one who is named, and of IPv6. */
static int member[4];
static struct sockaddr_storage group_of(int n) {
    struct sockaddr_storage at = {0};
    char text[32];
    snprintf(text, sizeof text, n == 3 ? "ff15::77:%d" : "239.77.0.%d", n + 1);
    at.ss_family = n == 3 ? AF_INET6 : AF_INET;
    void *to = n == 3 ? (void *)&((struct sockaddr_in6 *)&at)->sin6_addr : &((struct sockaddr_in *)&at)->sin_addr;
    EQUAL(inet_pton(at.ss_family, text, to), 1);
    return at;
}
static void join(int n, int level) {
    struct group_req wanted = {.gr_interface = 1, .gr_group = group_of(n)};
    MUST(setsockopt(member[n], level, MCAST_JOIN_GROUP, &wanted, sizeof wanted));
}
static void with_source(int n, int option) {
    struct group_source_req wanted = {.gsr_interface = 1, .gsr_group = group_of(n)};
    struct sockaddr_in *from = (struct sockaddr_in *)&wanted.gsr_source;
    from->sin_family = AF_INET, from->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    MUST(setsockopt(member[n], IPPROTO_IP, option, &wanted, sizeof wanted));
}
static void set_groups(void) {
    for (int n = 0; n < 4; n++) {
        family = n == 3 ? AF_INET6 : AF_INET;
        member[n] = MUST(socket(family, SOCK_DGRAM, 0));
        here = (union address){.any.sa_family = (sa_family_t)family};
        MUST(bind(member[n], &here.any, length()));
        // Only what it has joined itself.
        set(member[n], n == 3 ? IPPROTO_IPV6 : IPPROTO_IP, n == 3 ? IPV6_MULTICAST_ALL : IP_MULTICAST_ALL, 0);
    }
    join(0, IPPROTO_IP), join(2, IPPROTO_IP), join(3, IPPROTO_IPV6);
    with_source(1, MCAST_JOIN_SOURCE_GROUP);
    with_source(2, MCAST_BLOCK_SOURCE);
    a = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    struct in_addr by = {htonl(INADDR_LOOPBACK)};
    MUST(setsockopt(a, IPPROTO_IP, IP_MULTICAST_IF, &by, sizeof by));
}
static void speak(int n, uint64_t word) {
    union address to = {.four = *(struct sockaddr_in *)&(struct sockaddr_storage[]){group_of(n)}};
    to.four.sin_port = name(member[n]).four.sin_port;
    EQUAL(MUST(sendto(a, &word, 8, 0, &to.any, sizeof to.four)), 8);
}
static void hears(int n, uint64_t word) {
    uint64_t heard;
    await_events(member[n], POLLIN);
    EQUAL(MUST(recv(member[n], &heard, 8, 0)), 8);
    EQUAL(heard, word);
}
static void verify_groups(void) {
    static uint64_t word;
    word++;
    for (int n = 0; n < 3; n++) speak(n, word);
    hears(0, word), hears(1, word);
    EQUAL(events(member[2], POLLIN), 0);
    // There is no way to this one at lo.
    struct group_filter six = {.gf_interface = 1, .gf_group = group_of(3), .gf_fmode = 9, .gf_numsrc = 1};
    socklen_t size = sizeof six;
    MUST(getsockopt(member[3], IPPROTO_IPV6, MCAST_MSFILTER, &six, &size));
    EQUAL(six.gf_fmode, MCAST_EXCLUDE);
    EQUAL(six.gf_numsrc, 0);
    // Each is a member once.
    struct ip_mreq left = {.imr_interface.s_addr = htonl(INADDR_LOOPBACK)};
    EQUAL(inet_pton(AF_INET, "239.77.0.1", &left.imr_multiaddr), 1);
    MUST(setsockopt(member[0], IPPROTO_IP, IP_DROP_MEMBERSHIP, &left, sizeof left));
    speak(0, word);
    speak(1, word), hears(1, word);
    EQUAL(events(member[0], POLLIN), 0);
    join(0, IPPROTO_IP);
    with_source(2, MCAST_UNBLOCK_SOURCE);
    speak(2, word), hears(2, word);
    with_source(2, MCAST_BLOCK_SOURCE);
}
/* Raw sockets */
static void set_raw(void) {
    a = MUST(socket(AF_INET, SOCK_RAW, 200));
    here = local(0);
    MUST(bind(a, &here.any, length()));
    set(a, IPPROTO_IP, IP_TTL, 9);
    b = MUST(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    set(b, SOL_RAW, ICMP_FILTER, ~(1 << ICMP_TIMESTAMP));
}
static void verify_raw(void) {
    char data[64];
    EQUAL(on(a, IPPROTO_IP, IP_TTL), 9);
    EQUAL(on(a, SOL_SOCKET, SO_PROTOCOL), 200);
    EQUAL(on(b, SOL_RAW, ICMP_FILTER), ~(1 << ICMP_TIMESTAMP));
    EQUAL(MUST(sendto(a, "x", 1, 0, &here.any, length())), 1);
    EQUAL(MUST(recv(a, data, sizeof data, 0)), 21);
    EQUAL(data[20], 'x');
    EQUAL(data[8], 9);
}

/* Somebody outside sends words, and gets one back for each. */
static uint64_t answer(uint64_t n) { return mix(n + (1ull << 32)); }
static void set_line(void) {
    here.four = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(5011)};
    inet_pton(AF_INET, "10.77.0.2", &here.four.sin_addr);
    a = MUST(socket(AF_INET, SOCK_STREAM, 0));
    set(a, IPPROTO_TCP, TCP_NODELAY, 1);
    MUST(connect(a, &here.any, length()));
}
static void verify_line(void) {
    get(a, 0);
    uint64_t word = answer(first[0]);
    EQUAL(MUST(write(a, &word, 8)), 8);
    EQUAL(on(a, IPPROTO_TCP, TCP_NODELAY), 1);
}
/* The line may be closed, after everything that had come. */
static void verify_line_or_end(void) {
    signal(SIGPIPE, SIG_IGN);
    uint64_t word;
    await_events(a, POLLIN);
    ssize_t got = MUST(recv(a, &word, 8, MSG_WAITALL));
    if (got) {
        EQUAL(got, 8);
        EQUAL(word, mix(++first[0]));
        word = answer(first[0]);
        if (write(a, &word, 8) == 8) return;
        EQUAL(errno, EPIPE);
    }
    /* It may be closed between any two calls. */
    EQUAL(events(a, POLLRDHUP) & POLLRDHUP, POLLRDHUP);
    FAILS(write(a, "x", 1), EPIPE);
}

static const struct mode modes[] = {
    {"line", set_line, verify_line},
    {"line-or-end", set_line, verify_line_or_end},
    {"listen", set_listen, verify_listen},
    {"listen-6", set_listen_6, verify_listen},
    {"listen-dual", set_listen_dual, verify_listen_dual},
    {"reuseport", set_reuseport, verify_reuseport},
    {"idle", set_idle, verify_idle},
    {"idle-6", set_idle_6, verify_idle},
    {"pair", set_pair, verify_pair},
    {"pair-6", set_pair_6, verify_pair},
    {"pair-mapped", set_pair_mapped, verify_pair},
    {"pair-alone", set_pair_alone, verify_pair},
    {"full", set_full, verify_full},
    {"grown", set_grown, verify_grown},
    {"grown-6", set_grown_6, verify_grown},
    {"close-wait", set_close_wait, verify_close_wait},
    {"close-wait-6", set_close_wait_6, verify_close_wait},
    {"peer-gone", set_peer_gone, verify_peer_gone},
    {"fin-wait1", set_fin_wait1, verify_fin_wait1},
    {"fin-wait1-6", set_fin_wait1_6, verify_fin_wait1},
    {"last-ack", set_last_ack, verify_last_ack},
    {"last-ack-6", set_last_ack_6, verify_last_ack},
    {"drain", set_drain, verify_drain},
    {"closed", set_closed, verify_closed},
    {"closed-6", set_closed_6, verify_closed},
    {"closed-one", set_closed_one, verify_closed_one},
    {"foreign", set_foreign, verify_foreign},
    {"reset", set_reset, verify_reset},
    {"no-reading", set_no_reading, verify_no_reading},
    {"waiting", set_waiting, verify_waiting},
    {"waiting-6", set_waiting_6, verify_waiting},
    {"waiting-with-data", set_waiting_with_data, verify_waiting_with_data},
    {"slow-to-accept", set_listen, verify_slow_to_accept},
    {"connecting", set_connecting, verify_connecting},
    {"options", set_options, verify_options},
    {"cork", set_cork, verify_cork},
    {"between", set_between, verify_between},
    {"torrent", set_torrent, verify_torrent},
    {"torrent-6", set_torrent_6, verify_torrent},
    {"edge", set_edge, verify_edge},
    {"full-edge", set_full_edge, verify_full_edge},
    {"arriving", set_arriving, verify_arriving},
    {"mapped", set_mapped, verify_mapped},
    {"udp", set_udp, verify_udp},
    {"udp-6", set_udp_6, verify_udp},
    {"udp-connected", set_udp_connected, verify_udp_connected},
    {"udp-queue", set_udp_queue, verify_udp_queue},
    {"udp-queue-6", set_udp_queue_6, verify_udp_queue},
    {"udp-shut", set_udp_shut, verify_udp_shut},
    {"groups", set_groups, verify_groups},
    {"udp-corked", set_udp_corked, verify_udp_corked},
    {"raw", set_raw, verify_raw},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
