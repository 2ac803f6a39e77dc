/* UDP and raw sockets. */
#include "guest.h"
#include "inet.h"
#include <netinet/ip_icmp.h>

#ifndef IPV6_MULTICAST_ALL
#define IPV6_MULTICAST_ALL 29
#endif
#ifndef ICMP_FILTER
#define ICMP_FILTER 1 /* linux/icmp.h, which does not go with netinet/ip_icmp.h */
#endif

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

static const struct mode modes[] = {
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
