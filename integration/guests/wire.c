/* Sockets to the kernel and to the wire: netlink and packet sockets. */
#include "guest.h"
#include "socket.h"
#include <arpa/inet.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>

static int a, b, c;
static struct sockaddr_nl name(int of) {
    struct sockaddr_nl at = {0};
    socklen_t size = sizeof at;
    MUST(getsockname(of, (struct sockaddr *)&at, &size));
    return at;
}
/* A list of all devices: as many answers as the kernel has. */
static void ask(int of) {
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 7, 0}, {AF_UNSPEC}};
    EQUAL(MUST(send(of, &request, sizeof request, 0)), sizeof request);
    static char answer[1 << 16];
    for (;;) {
        ssize_t length = MUST(recv(of, answer, sizeof answer, 0));
        struct nlmsghdr *head = (struct nlmsghdr *)answer;
        CHECK(NLMSG_OK(head, length));
        EQUAL(head->nlmsg_pid, name(of).nl_pid);
        EQUAL(head->nlmsg_seq, 7);
        if (head->nlmsg_type == NLMSG_DONE) return;
        EQUAL(head->nlmsg_type, RTM_NEWLINK);
    }
}
static void set_netlink(void) {
    a = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    struct sockaddr_nl at = {.nl_family = AF_NETLINK, .nl_pid = 4711, .nl_groups = RTMGRP_LINK};
    MUST(bind(a, (struct sockaddr *)&at, sizeof at));
    set(a, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 33);
    set(a, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    set(a, SOL_NETLINK, NETLINK_PKTINFO, 1);
    /* Programs among themselves, one of which is connected. */
    b = MUST(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_USERSOCK));
    c = MUST(socket(AF_NETLINK, SOCK_DGRAM, NETLINK_USERSOCK));
    at.nl_pid = 0, at.nl_groups = 0;
    MUST(bind(b, (struct sockaddr *)&at, sizeof at));
    at.nl_pid = name(b).nl_pid;
    MUST(connect(c, (struct sockaddr *)&at, sizeof at));
    ask(a);
}
static void verify_netlink(void) {
    EQUAL(name(a).nl_pid, 4711);
    EQUAL(name(a).nl_groups, RTMGRP_LINK);
    unsigned groups[8] = {0};
    socklen_t size = sizeof groups;
    MUST(getsockopt(a, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &size));
    EQUAL(groups[0], RTMGRP_LINK);
    EQUAL(groups[1], 1);
    EQUAL(on(a, SOL_NETLINK, NETLINK_EXT_ACK), 1);
    EQUAL(on(a, SOL_NETLINK, NETLINK_PKTINFO), 1);
    EQUAL(on(a, SOL_NETLINK, NETLINK_CAP_ACK), 0);
    ask(a);
    EQUAL(name(b).nl_pid, getpid());
    char got[4];
    EQUAL(MUST(send(c, "word", 4, 0)), 4);
    EQUAL(MUST(recv(b, got, 4, 0)), 4);
    CHECK(!memcmp(got, "word", 4));
}
static void verify_netlink_unread(void) {
    struct pollfd asked = {.fd = b, .events = POLLIN};
    EQUAL(MUST(poll(&asked, 1, 0)), 1);
}
static void set_netlink_unread(void) {
    set_netlink();
    EQUAL(MUST(send(c, "word", 4, 0)), 4);
}

/* The kernel does not tell of the audit system in a container, but says so. */
static void set_audit(void) { a = MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT)); }
static void verify_audit(void) {
    struct nlmsghdr request = {sizeof request, AUDIT_GET, NLM_F_REQUEST | NLM_F_ACK, 7, 0};
    EQUAL(MUST(send(a, &request, sizeof request, 0)), sizeof request);
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
    } answer;
    EQUAL(MUST(recv(a, &answer, sizeof answer, 0)), sizeof answer);
    EQUAL(answer.head.nlmsg_type, NLMSG_ERROR);
    EQUAL(answer.error.error, -EPERM);
    EQUAL(answer.error.msg.nlmsg_seq, 7);
}

/* Frames of a protocol that nobody else speaks, over the loopback device. */
enum { OURS = 0x88b5 };
static struct sockaddr_ll place(int of) {
    struct sockaddr_ll at = {0};
    socklen_t size = sizeof at;
    MUST(getsockname(of, (struct sockaddr *)&at, &size));
    return at;
}
static void set_packet(void) {
    int lo = (int)if_nametoindex("lo");
    a = MUST(socket(AF_PACKET, SOCK_DGRAM, 0));
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(OURS), .sll_ifindex = lo};
    MUST(bind(a, (struct sockaddr *)&at, sizeof at));
    set(a, SOL_PACKET, PACKET_AUXDATA, 1);
    set(a, SOL_PACKET, PACKET_COPY_THRESH, 99);
    set(a, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
    set(a, SOL_PACKET, PACKET_FANOUT, 13 | PACKET_FANOUT_LB << 16);
    struct packet_mreq wish = {.mr_ifindex = lo, .mr_type = PACKET_MR_PROMISC};
    for (int i = 0; i < 2; i++) MUST(setsockopt(a, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &wish, sizeof wish));
    /* Only frames that begin with an x. */
    struct sock_filter code[] = {
        {BPF_LD | BPF_B | BPF_ABS, 0, 0, 0}, {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 'x'},
        {BPF_RET | BPF_K, 0, 0, 0xffff}, {BPF_RET | BPF_K, 0, 0, 0}};
    struct sock_fprog program = {4, code};
    MUST(setsockopt(a, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program));
    /* One that only sends, with rings that nobody has mapped. */
    b = MUST(socket(AF_PACKET, SOCK_RAW, 0));
    set(b, SOL_PACKET, PACKET_VERSION, TPACKET_V2);
    set(b, SOL_PACKET, PACKET_RESERVE, 8);
    struct tpacket_req ring = {4096, 2, 1024, 8};
    MUST(setsockopt(b, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring));
    c = MUST(socket(AF_PACKET, SOCK_DGRAM, 0));
}
static void verify_packet(void) {
    EQUAL(place(a).sll_protocol, htons(OURS));
    EQUAL(place(a).sll_ifindex, if_nametoindex("lo"));
    EQUAL(on(a, SOL_PACKET, PACKET_AUXDATA), 1);
    EQUAL(on(a, SOL_PACKET, PACKET_COPY_THRESH), 99);
    EQUAL(on(a, SOL_PACKET, PACKET_IGNORE_OUTGOING), 1);
    EQUAL(on(a, SOL_PACKET, PACKET_FANOUT), 13 | PACKET_FANOUT_LB << 16);
    EQUAL(on(b, SOL_PACKET, PACKET_VERSION), TPACKET_V2);
    EQUAL(on(b, SOL_PACKET, PACKET_RESERVE), 8);
    struct tpacket_req ring = {4096, 2, 1024, 8};
    FAILS(setsockopt(b, SOL_PACKET, PACKET_VERSION, &(int){0}, sizeof(int)), EBUSY);
    FAILS(setsockopt(b, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring), EBUSY);
    /* Each membership is left as often as it was asked for; then there is none. */
    struct packet_mreq wish = {.mr_ifindex = place(a).sll_ifindex, .mr_type = PACKET_MR_PROMISC};
    MUST(setsockopt(a, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &wish, sizeof wish));
    MUST(setsockopt(a, SOL_PACKET, PACKET_DROP_MEMBERSHIP, &wish, sizeof wish));
    for (int i = 0; i < 2; i++) MUST(setsockopt(a, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &wish, sizeof wish));
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(OURS), .sll_halen = 6};
    to.sll_ifindex = place(a).sll_ifindex;
    char got[8] = "";
    EQUAL(MUST(sendto(c, "y no", 4, 0, (struct sockaddr *)&to, sizeof to)), 4);
    EQUAL(MUST(sendto(c, "x yes", 5, 0, (struct sockaddr *)&to, sizeof to)), 5);
    EQUAL(MUST(recv(a, got, sizeof got, 0)), 5);
    CHECK(!memcmp(got, "x yes", 5));
}
/* Rings that are mapped, and in which nothing has been. */
static char *frames;
static void set_packet_mapped(void) {
    struct tpacket_req ring = {4096, 2, 1024, 8};
    a = MUST(socket(AF_PACKET, SOCK_RAW, 0));
    MUST(setsockopt(a, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring));
    MUST(setsockopt(a, SOL_PACKET, PACKET_TX_RING, &ring, sizeof ring));
    frames = MUST(mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0));
    if (!MUST(fork()))
        for (;;) {
            CHECK(!frames[16383]);
            nap(1000);
        }
}
/* The number of the socket that is mapped there. */
static ino_t mapped(const void *at) {
    char range[64];
    snprintf(range, sizeof range, "%lx-%lx", (long)at, (long)at + 16384);
    return field(strstr(proc("/proc/self/maps"), range) ?: "nothing", "socket:[", 10);
}
static void verify_packet_mapped(void) {
    AGREE(inode(a), mapped(frames));
    for (int i = 0; i < 16384; i++) EQUAL(frames[i], 0);
}
static void set_packet_used(void) {
    set_packet_mapped();
    struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(OURS)};
    at.sll_ifindex = (int)if_nametoindex("lo");
    MUST(bind(a, (struct sockaddr *)&at, sizeof at));
    c = MUST(socket(AF_PACKET, SOCK_DGRAM, 0));
    at.sll_halen = 6;
    EQUAL(MUST(sendto(c, "x", 1, 0, (struct sockaddr *)&at, sizeof at)), 1);
    struct pollfd come = {.fd = a, .events = POLLIN};
    EQUAL(MUST(poll(&come, 1, 120000)), 1);
    for (int i = 0; i < 8; i++) ((struct tpacket_hdr *)(frames + 1024 * i))->tp_status = TP_STATUS_KERNEL;
}
static void verify_packet_used(void) { CHECK(frames[sizeof(struct tpacket_hdr)] || frames[8]); }
static void set_packet_unread(void) {
    set_packet();
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(OURS), .sll_halen = 6};
    to.sll_ifindex = place(a).sll_ifindex;
    EQUAL(MUST(sendto(c, "x", 1, 0, (struct sockaddr *)&to, sizeof to)), 1);
    struct pollfd asked = {.fd = a, .events = POLLIN};
    EQUAL(MUST(poll(&asked, 1, 120000)), 1);
}
static void verify_packet_unread(void) {
    struct pollfd asked = {.fd = a, .events = POLLIN};
    EQUAL(MUST(poll(&asked, 1, 0)), 1);
}

static const struct mode modes[] = {
    {"netlink", set_netlink, verify_netlink},
    {"audit", set_audit, verify_audit},
    {"netlink-unread", set_netlink_unread, verify_netlink_unread},
    {"packet-mapped", set_packet_mapped, verify_packet_mapped},
    {"packet-used", set_packet_used, verify_packet_used},
    {"packet", set_packet, verify_packet},
    {"packet-unread", set_packet_unread, verify_packet_unread},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
