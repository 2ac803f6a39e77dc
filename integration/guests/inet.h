/* For guests that have sockets of the internet protocols; behind guest.h. */
#include "socket.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>

/* None of them needs everything. */
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-variable"

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
