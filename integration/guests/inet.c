/* Sockets of the internet protocols that listen, wait for somebody, or lead outside. */
#include "guest.h"
#include "inet.h"

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
    {"waiting", set_waiting, verify_waiting},
    {"waiting-6", set_waiting_6, verify_waiting},
    {"waiting-with-data", set_waiting_with_data, verify_waiting_with_data},
    {"slow-to-accept", set_listen, verify_slow_to_accept},
    {"connecting", set_connecting, verify_connecting},
    {"options", set_options, verify_options},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
