/* TCP connections at work. */
#include "guest.h"
#include "inet.h"
#include <sys/epoll.h>

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

static const struct mode modes[] = {
    {"cork", set_cork, verify_cork},
    {"between", set_between, verify_between},
    {"torrent", set_torrent, verify_torrent},
    {"torrent-6", set_torrent_6, verify_torrent},
    {"edge", set_edge, verify_edge},
    {"full-edge", set_full_edge, verify_full_edge},
    {"arriving", set_arriving, verify_arriving},
    {"mapped", set_mapped, verify_mapped},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
