/* The socket. A read may bring several lines, or a part of one; the descriptors of a line come with its first byte. The
 * kernel never joins what was sent after descriptors with what was sent with them, but may well join what came before; so
 * descriptors are kept in the order in which they came, and each line takes those that it announces. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ = 65536 };

union control {
    char bytes[CMSG_SPACE(sizeof(int) * CKRUN_FDS)];
    struct cmsghdr aligned;
};

static int broken(struct ckrun_wire *wire, const char *why) {
    wire->error = why;
    return CKRUN_WIRE_BROKEN;
}

/* Keeps the descriptors of a message that was received, or closes those for which there is no room. */
static int keep_fds(struct ckrun_wire *wire, struct msghdr *message) {
    int lost = (message->msg_flags & MSG_CTRUNC) != 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (wire->nfds < CKRUN_FDS_WAITING) {
                wire->fds[wire->nfds++] = fd;
            } else {
                close(fd);
                lost = 1;
            }
        }
    }
    return lost ? broken(wire, "too many descriptors") : CKRUN_WIRE_NOTHING;
}

/* Reads what is there: CKRUN_WIRE_LINE says only that something has come. */
static int receive(struct ckrun_wire *wire) {
    if (wire->room - wire->length < READ) {
        size_t room = wire->length + 2 * READ;
        char *more = realloc(wire->bytes, room);
        if (!more) return broken(wire, "no memory");
        wire->bytes = more;
        wire->room = room;
    }
    union control control;
    struct iovec part = {.iov_base = wire->bytes + wire->length, .iov_len = READ};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(wire->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return CKRUN_WIRE_NOTHING;
    if (got < 0 && errno != ECONNRESET) return broken(wire, strerror(errno));
    if (got <= 0) return wire->length ? broken(wire, "the socket ends within a line") : CKRUN_WIRE_END;
    wire->length += (size_t)got;
    return keep_fds(wire, &message) == CKRUN_WIRE_BROKEN ? CKRUN_WIRE_BROKEN : CKRUN_WIRE_LINE;
}

int ckrun_wire_line(struct ckrun_wire *wire, int wait, char **line, size_t *length) {
    for (;;) {
        size_t fresh = wire->length - wire->searched;
        char *end = fresh ? memchr(wire->bytes + wire->searched, '\n', fresh) : NULL;
        size_t size = end ? (size_t)(end - wire->bytes) + 1 : wire->length;
        if (size > CKRUN_LINE || (!end && size == CKRUN_LINE)) return broken(wire, "a line is too long");
        if (end) {
            *line = malloc(size);
            if (!*line) return broken(wire, "no memory");
            memcpy(*line, wire->bytes, size);
            *length = size - 1;
            wire->length -= size;
            wire->searched = 0;
            memmove(wire->bytes, wire->bytes + size, wire->length);
            return CKRUN_WIRE_LINE;
        }
        wire->searched = wire->length;
        int got = receive(wire);
        if (got == CKRUN_WIRE_LINE) continue;
        if (got != CKRUN_WIRE_NOTHING || !wait) return got;
        struct pollfd ready = {.fd = wire->fd, .events = POLLIN};
        if (poll(&ready, 1, -1) < 0 && errno != EINTR) return broken(wire, strerror(errno));
    }
}

int ckrun_wire_fds(struct ckrun_wire *wire, int *fds, unsigned count) {
    if (count > wire->nfds) return -1;
    memcpy(fds, wire->fds, count * sizeof *fds);
    wire->nfds -= count;
    memmove(wire->fds, wire->fds + count, wire->nfds * sizeof *fds);
    return 0;
}

int ckrun_wire_fds_left(const struct ckrun_wire *wire) { return !wire->length && wire->nfds; }

int ckrun_wire_send(struct ckrun_wire *wire, const char *line, size_t length, const int *fds, unsigned nfds) {
    while (length) {
        union control control;
        struct iovec part = {.iov_base = (char *)line, .iov_len = length};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (nfds) {
            memset(&control, 0, sizeof control);
            message.msg_control = &control;
            message.msg_controllen = CMSG_SPACE(nfds * sizeof *fds);
            struct cmsghdr *c = CMSG_FIRSTHDR(&message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(nfds * sizeof *fds);
            memcpy(CMSG_DATA(c), fds, nfds * sizeof *fds);
        }
        /* A plugin must not be killed because ckrun has gone. */
        ssize_t sent = sendmsg(wire->fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd ready = {.fd = wire->fd, .events = POLLOUT};
            if (poll(&ready, 1, -1) < 0 && errno != EINTR) return -1;
            continue;
        }
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return -1;
        line += sent;
        length -= (size_t)sent;
        nfds = 0;
    }
    return 0;
}

void ckrun_wire_free(struct ckrun_wire *wire) {
    for (unsigned i = 0; i < wire->nfds; i++) close(wire->fds[i]);
    free(wire->bytes);
    wire->bytes = NULL;
}
