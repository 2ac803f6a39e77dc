/* TCP connections in every state. */
#include "guest.h"
#include "inet.h"
#include <linux/filter.h>

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

static const struct mode modes[] = {
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
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
