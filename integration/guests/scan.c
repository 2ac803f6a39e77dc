/* `scan HOST PORT READY`: a JTAG adapter that asks a device for its IDCODE for ever, by OpenOCD's remote_bitbang, and is right to
 * expect the same each time. It passes Run-Test/Idle once, before it creates READY, and never again: so the design's clock is
 * somebody else's. At SIGTERM it ends, after at least one scan. HOST is looked up in /etc/hosts. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <unistd.h>

enum { BITS = 32 };
static const unsigned expected = 0x1c0de0ff;
static volatile sig_atomic_t over;
static int adapter;
static char commands[1000];
static int length;

static void end(int signal) { over = signal; }

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct in_addr find(const char *host) {
    struct in_addr address;
    char line[1000], ip[100], name[100];
    FILE *hosts = fopen("/etc/hosts", "re");
    while (hosts && fgets(line, sizeof line, hosts))
        if (sscanf(line, "%99s %99s", ip, name) == 2 && !strcmp(name, host) && inet_aton(ip, &address)) return address;
    die(host);
    return address;
}

/* A bit: the data change while TCK is low, and what comes out is asked for before it rises. */
static void bit(int tms, int ask) {
    commands[length++] = (char)('0' + 2 * tms);
    if (ask) commands[length++] = 'R';
    commands[length++] = (char)('4' + 2 * tms);
}
static void modes(const char *tms) {
    for (; *tms; tms++) bit(*tms == '1', 0);
}
static void send_all(void) {
    for (int sent = 0; sent < length;) {
        ssize_t more = write(adapter, commands + sent, (size_t)(length - sent));
        if (more <= 0) die("write");
        sent += (int)more;
    }
    length = 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[2])), .sin_addr = find(argv[1])};
    int one = 1;
    signal(SIGTERM, end);
    adapter = socket(AF_INET, SOCK_STREAM, 0);
    if (adapter < 0 || connect(adapter, (struct sockaddr *)&to, sizeof to)) die("connect");
    setsockopt(adapter, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* Test-Logic-Reset from anywhere, Run-Test/Idle, Select-DR-Scan. */
    modes("11111" "0" "1");
    int began = 0;
    do {
        char answers[BITS];
        unsigned found = 0;
        modes("00");
        for (int n = 0; n < BITS; n++) bit(n == BITS - 1, 1);
        /* Update-DR, Select-DR-Scan. */
        modes("11");
        send_all();
        for (int got = 0; got < BITS;) {
            ssize_t more = read(adapter, answers + got, (size_t)(BITS - got));
            if (more <= 0) die("read");
            got += (int)more;
        }
        for (int n = 0; n < BITS; n++) found |= (unsigned)(answers[n] == '1') << n;
        if (found != expected) {
            fprintf(stderr, "the device says that it is %08x\n", found);
            return 1;
        }
        if (!began++ && creat(argv[3], 0644) < 0) die(argv[3]);
    } while (!over);
    return 0;
}
