/* A plugin of DMTCP's that does for its job what plugins/softemu does for one of ckrun's: the job's connection to a virtual
 * address leads to a slot of a softemu server; the slot is frozen and saved at a checkpoint, and at a restart claimed and
 * loaded on the server that the file EMU_PLACE then names.
 *
 * DMTCP is not to know of the socket, at whose other end it would look for itself: so everything here is done by bare system
 * calls. A plugin of DMTCP's is a part of the job; it has no way to say no, and ends the job when something is wrong.
 *
 * EMU_PLACE: a file with the path of a control socket. EMU_STATE: where the slot is saved. EMU_PORT: the virtual port. */
#define _GNU_SOURCE
#include "dmtcp.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* DMTCP wraps syscall(2) as well. */
static long bare_(long number, long a, long b, long c, long d, long e) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    if (result < 0) errno = -result;
    return result < 0 ? -1 : result;
}
#define PICK(n, a, b, c, d, e, ...) bare_(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define bare(...) PICK(__VA_ARGS__, 0, 0, 0, 0, 0)

static int slot = -1, port, held = -1;
static char answer[65536];

static void die(const char *what) {
    fprintf(stderr, "emu: %s: %s\n", what, strerror(errno));
    _exit(97);
}

/* One request to the server; dies on anything but "ok". */
static void ask(const char *format, ...) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char request[4096], path[100] = "";
    va_list args;
    va_start(args, format);
    int length = vsnprintf(request, sizeof request, format, args);
    va_end(args);
    int place = bare(SYS_open, getenv("EMU_PLACE"), O_RDONLY);
    if (place < 0 || bare(SYS_read, place, path, sizeof path - 1) <= 0) die("EMU_PLACE");
    bare(SYS_close, place);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = bare(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bare(SYS_connect, fd, &address, sizeof address) || bare(SYS_write, fd, request, length) != length) die(path);
    size_t got = 0;
    while (!got || answer[got - 1] != '\n') {
        long more = bare(SYS_read, fd, answer + got, sizeof answer - 1 - got);
        if (more <= 0) die("the server has gone");
        got += more;
    }
    answer[got] = 0;
    bare(SYS_close, fd);
    if (strncmp(answer, "{\"ok\"", 5)) {
        fprintf(stderr, "emu: %s", answer);
        _exit(98);
    }
}

static void claim(const char *frozen) {
    ask("{\"op\":\"claim\",\"owner\":\"dmtcp\",\"links\":[\"tcp\"],\"frozen\":%s}\n", frozen);
    const char *at = strstr(answer, "\"slot\":"), *link = strstr(answer, "tcp:");
    if (!at || !link) die(answer);
    slot = atoi(at + 7);
    port = atoi(strchr(link + 4, ':') + 1);
}

static void op(const char *name) { ask("{\"op\":\"%s\",\"owner\":\"dmtcp\",\"slot\":%d}\n", name, slot); }
static void file(const char *name) {
    ask("{\"op\":\"%s\",\"owner\":\"dmtcp\",\"slot\":%d,\"file\":\"%s\"}\n", name, slot, getenv("EMU_STATE"));
}

/* Puts a connection to the slot at descriptor `number`. */
static void dial(int number) {
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    int fd = bare(SYS_socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (bare(SYS_connect, fd, &address, sizeof address)) die("connect");
    bare(SYS_setsockopt, fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (fd != number) {
        bare(SYS_dup2, fd, number);
        bare(SYS_close, fd);
    }
}

int connect(int fd, const struct sockaddr *address, socklen_t length) {
    const struct sockaddr_in *inet = (const struct sockaddr_in *)address;
    if (inet->sin_family != AF_INET || ntohs(inet->sin_port) != atoi(getenv("EMU_PORT")))
        return NEXT_FNC(connect)(fd, address, length);
    close(fd);
    if (slot < 0) claim("false");
    dial(held = fd);
    return 0;
}

/* The job's threads still run, and read what comes. */
static void drain(void) {
    struct timespec pause = {0, 1000000};
    op("freeze");
    for (;;) {
        int unread = 0, unsent = 0;
        op("drain");
        int queued = !strstr(answer, "\"unwritten\":0}") || !strstr(answer, "\"unacknowledged\":0,");
        ioctl(held, FIONREAD, &unread);
        ioctl(held, TIOCOUTQ, &unsent);
        if (!unread && !unsent && !queued) return;
        bare(SYS_nanosleep, &pause, NULL);
    }
}

static void hook(DmtcpEvent_t event, DmtcpEventData_t *data) {
    (void)data;
    if (held < 0) return;
    switch (event) {
    case DMTCP_EVENT_PRESUSPEND: drain(); break;
    case DMTCP_EVENT_PRECHECKPOINT: file("save"); break;
    case DMTCP_EVENT_RESUME: op("thaw"); break;
    case DMTCP_EVENT_RESTART:
        claim("true");
        file("load");
        dial(held);
        bare(SYS_fcntl, held, F_SETFL, O_NONBLOCK);
        op("thaw");
        break;
    case DMTCP_EVENT_EXIT: op("release"); break;
    default: break;
    }
}

static DmtcpPluginDescriptor_t emu = {DMTCP_PLUGIN_API_VERSION, DMTCP_PACKAGE_VERSION, "emu", "", "", "softemu", hook};
DMTCP_DECL_PLUGIN(emu);
