/* What is in a network namespace, as far as a program notices: packets still take the way that they took. */
#include "guest.h"
#include <arpa/inet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int device, device2, udp;
static uint64_t count;

static void sh(const char *script) {
    int status = system(script);
    if (status) bad("%s: %d", script, status);
}
static struct ifreq attached(int of) {
    struct ifreq request = {0};
    MUST(ioctl(of, TUNGETIFF, &request));
    return request;
}
static int attach(const char *name, int flags) {
    struct ifreq request = {.ifr_flags = (short)flags};
    int of = MUST(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    strcpy(request.ifr_name, name);
    MUST(ioctl(of, TUNSETIFF, &request));
    return of;
}
static struct sockaddr_in at(const char *address, int port) {
    struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    EQUAL(inet_pton(AF_INET, address, &made.sin_addr), 1);
    return made;
}
static int bound(const char *address, int port) {
    struct sockaddr_in here = at(address, port);
    int made = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    MUST(bind(made, (struct sockaddr *)&here, sizeof here));
    return made;
}
/* The wire is not as fast as the processor: a packet that is lost is sent again. */
static void send_count(const char *to) {
    struct sockaddr_in there = at(to, 7);
    if (sendto(udp, &count, sizeof count, 0, (struct sockaddr *)&there, sizeof there) < 0
        && errno != ENOBUFS && errno != ENETDOWN)
        bad("sendto: %s", strerror(errno));
}
/* The datagram that was sent comes out of the device, behind `before` bytes of the link. */
static unsigned char packet[2048];
static ssize_t come_out(const char *to, ssize_t before) {
    double sent = 0;
    count++;
    for (int naps = 0;;) {
        double moment = now(CLOCK_MONOTONIC);
        if (naps > PATIENCE) bad("packet %lu does not come out", (unsigned long)count);
        if (moment - sent > 0.05) send_count(to), sent = moment;
        ssize_t got = read(device, packet, sizeof packet);
        if (got < 0 && errno != EAGAIN) bad("read: %s", strerror(errno));
        ssize_t head = before + (ssize_t)(sizeof(struct iphdr) + sizeof(struct udphdr));
        if (got == head + 8 && packet[before] == 0x45 && packet[before + 9] == IPPROTO_UDP
            && !memcmp(packet + head, &count, 8))
            return got;
        if (got < 0) nap(500), naps++;
    }
}
static uint16_t sum(const void *of, size_t bytes) {
    const uint16_t *words = of;
    uint32_t all = 0;
    for (size_t i = 0; i < bytes / 2; i++) all += words[i];
    while (all >> 16) all = (all & 0xffff) + (all >> 16);
    return (uint16_t)~all;
}

/* A device that is there as long as it is attached to; the guest is the other end of the wire. */
static void set_tun(void) {
    device = attach("tun7", IFF_TUN | IFF_NO_PI);
    sh("ip addr add 10.88.0.1 peer 10.88.0.2 dev tun7; ip link set tun7 up mtu 1400 alias wire");
    int size = 100000;
    MUST(ioctl(device, TUNSETSNDBUF, &size));
    udp = bound("10.88.0.1", 9);
}
static void verify_tun(void) {
    int size;
    ssize_t got = come_out("10.88.0.2", 0);
    struct iphdr *ip = (struct iphdr *)packet;
    struct udphdr *head = (struct udphdr *)(ip + 1);
    uint32_t from = ip->saddr;
    uint16_t port = head->source;
    ip->saddr = ip->daddr, ip->daddr = from;
    ip->check = 0, ip->check = sum(ip, sizeof *ip);
    head->source = head->dest, head->dest = port, head->check = 0;
    uint64_t reply = ~count, heard = 0;
    memcpy(head + 1, &reply, 8);
    EQUAL(MUST(write(device, packet, (size_t)got)), got);
    ssize_t came;
    AWAIT((came = recv(udp, &heard, sizeof heard, 0)) >= 0 || errno != EAGAIN, "no reply");
    MUST(came);
    EQUAL(heard, reply);
    MUST(ioctl(device, TUNGETSNDBUF, &size));
    EQUAL(size, 100000);
    EQUAL(strcmp(attached(device).ifr_name, "tun7"), 0);
    EQUAL(attached(device).ifr_flags & (IFF_TUN | IFF_TAP | IFF_MULTI_QUEUE | IFF_PERSIST), IFF_TUN);
    EQUAL(MUST(fcntl(device, F_GETFL)) & O_NONBLOCK, O_NONBLOCK);
    EQUAL(MUST(fcntl(device, F_GETFD)), FD_CLOEXEC);
}
/* Out of one end of a pair, in at the other, through a bridge, and out of a device that outlives the guest. */
static void set_bridge(void) {
    sh("ip tuntap add tap7 mode tap; ip link add va index 70 type veth peer name vb index 71; ip link add br7 type bridge;"
       "ip link set br7 addrgenmode none; ip link set tap7 addrgenmode none; ip link set vb master br7; ip link set tap7 master br7; ip link set va up; ip link set vb up; ip link set tap7 up;"
       "ip link set br7 up; ip addr add 10.89.0.1/24 dev va; ip neigh add 10.89.0.2 lladdr 02:00:00:00:00:02 dev va;"
       "ip route add 10.90.0.0/16 via 10.89.0.2 dev va");
    device = attach("tap7", IFF_TAP | IFF_NO_PI);
    udp = bound("10.89.0.1", 9);
}
static void verify_bridge(void) {
    static const unsigned char to[6] = {2, 0, 0, 0, 0, 2};
    come_out("10.90.1.2", 14);
    EQUAL(memcmp(packet, to, 6), 0);
    EQUAL(attached(device).ifr_flags & IFF_PERSIST, IFF_PERSIST);
    EQUAL(if_nametoindex("va"), 70);
    EQUAL(if_nametoindex("vb"), 71);
}
/* Two queues, one of which takes no packets; headers; information in front of each packet. */
static int queue_flags(int of) { return attached(of).ifr_flags & (IFF_TAP | IFF_MULTI_QUEUE | IFF_VNET_HDR | IFF_DETACH_QUEUE); }
static void set_queues(void) {
    struct ifreq request = {.ifr_flags = IFF_DETACH_QUEUE};
    int size = 12;
    device = attach("tap8", IFF_TAP | IFF_MULTI_QUEUE | IFF_VNET_HDR);
    device2 = attach("tap8", IFF_TAP | IFF_MULTI_QUEUE | IFF_VNET_HDR);
    MUST(ioctl(device2, TUNSETQUEUE, &request));
    MUST(ioctl(device, TUNSETVNETHDRSZ, &size));
    sh("ip link set tap8 up");
}
static void verify_queues(void) {
    int size;
    EQUAL(queue_flags(device), IFF_TAP | IFF_MULTI_QUEUE | IFF_VNET_HDR);
    EQUAL(queue_flags(device2), IFF_TAP | IFF_MULTI_QUEUE | IFF_VNET_HDR | IFF_DETACH_QUEUE);
    MUST(ioctl(device, TUNGETVNETHDRSZ, &size));
    EQUAL(size, 12);
    static int checked;
    if (!checked++) sh("ip -d link show tap8 | grep -q 'pi on vnet_hdr on'");
    int idle = MUST(open("/dev/net/tun", O_RDWR));
    struct ifreq request = {0};
    FAILS(ioctl(idle, TUNGETIFF, &request), EBADFD);
    close(idle);
}
/* Not attached to anything yet. */
static void set_idle(void) { device = MUST(open("/dev/net/tun", O_RDWR | O_NONBLOCK)); }
static void verify_idle(void) {
    static int turn;
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    FAILS(ioctl(device, TUNGETIFF, &request), EBADFD);
    if (++turn % 30) return;
    MUST(ioctl(device, TUNSETIFF, &request));
    close(device);
    set_idle();
}
/* Sockets of addresses that only a made link has. */
static int listener, client, server;
static void set_bound(void) {
    struct sockaddr_in here = at("10.91.0.1", 80);
    sh("ip link add va type veth peer name vb; ip link set va up; ip link set vb up; ip addr add 10.91.0.1/24 dev va;"
       "ip -6 addr add 2001:db8:91::1/64 dev va nodad; ip rule add from 10.91.0.1 lookup 91;"
       "ip route add default via 10.91.0.254 table 91");
    MUST(listener = socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(listener, (struct sockaddr *)&here, sizeof here));
    MUST(listen(listener, 5));
    MUST(client = socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(client, (struct sockaddr *)&here, sizeof here));
    MUST(server = accept(listener, NULL, NULL));
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(9)};
    EQUAL(inet_pton(AF_INET6, "2001:db8:91::1", &six.sin6_addr), 1);
    MUST(udp = socket(AF_INET6, SOCK_DGRAM, 0));
    MUST(bind(udp, (struct sockaddr *)&six, sizeof six));
    MUST(connect(udp, (struct sockaddr *)&six, sizeof six));
    /* The kernel makes the way to an address of IPv6 a little later. Once it is there, it stays. */
    struct pollfd arrived = {.fd = udp, .events = POLLIN};
    do send(udp, &count, 8, 0);
    while (MUST(poll(&arrived, 1, 50)) == 0);
    while (recv(udp, &count, 8, MSG_DONTWAIT) > 0) {}
    count = 0;
}
static void verify_bound(void) {
    uint64_t heard;
    count++;
    EQUAL(MUST(write(client, &count, 8)), 8);
    EQUAL(MUST(read(server, &heard, 8)), 8);
    EQUAL(heard, count);
    ssize_t sent;
    AWAIT((sent = send(udp, &count, 8, 0)) >= 0 || errno != ENETUNREACH, "the way to itself does not come");
    MUST(sent);
    EQUAL(MUST(read(udp, &heard, 8)), 8);
    EQUAL(heard, count);
}
/* A filter that lets nobody begin anything but by a SYN, and knows the connections that have been begun. */
static void set_guarded(void) {
    sh("nft 'table inet guard { chain in { type filter hook input priority 0; policy drop; ct state established accept;"
       "tcp flags & (syn | ack) == syn accept; meta l4proto { udp, ipv6-icmp } accept; }; }'");
    set_bound();
}
/* Parameters that a program has set. */
static void put(const char *path, const char *value) {
    int fd = MUST(open(path, O_WRONLY));
    EQUAL(MUST(write(fd, value, strlen(value))), strlen(value));
    close(fd);
}
static const char *set[][2] = {
    {"/proc/sys/net/ipv4/ip_forward", "1\n"},
    {"/proc/sys/net/ipv4/conf/lo/forwarding", "0\n"},
    {"/proc/sys/net/ipv4/ip_unprivileged_port_start", "80\n"},
    {"/proc/sys/net/ipv4/ping_group_range", "5\t7\n"},
    {"/proc/sys/net/core/somaxconn", "77\n"},
    {"/proc/sys/net/ipv4/tcp_rmem", "4096\t5000\t60000\n"},
    {"/proc/sys/net/ipv6/conf/all/forwarding", "1\n"},
    {"/proc/sys/net/unix/max_dgram_qlen", "33\n"},
};
static void set_parameters(void) {
    for (size_t i = 0; i < sizeof set / sizeof *set; i++) put(set[i][0], set[i][1]);
}
static void verify_parameters(void) {
    for (size_t i = 0; i < sizeof set / sizeof *set; i++)
        if (strcmp(proc(set[i][0]), set[i][1])) bad("%s is %s", set[i][0], proc(set[i][0]));
}

static const struct mode modes[] = {
    {"tun", set_tun, verify_tun},
    {"bridge", set_bridge, verify_bridge},
    {"queues", set_queues, verify_queues},
    {"idle", set_idle, verify_idle},
    {"bound", set_bound, verify_bound},
    {"guarded", set_guarded, verify_bound},
    {"parameters", set_parameters, verify_parameters},
    {0},
};
int main(int argc, char **argv) { return guest(argc, argv, modes); }
