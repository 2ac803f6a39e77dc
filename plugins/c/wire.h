/* The socket: lines and the descriptors that come with them. Inside the kit only. */
#ifndef CKRUN_WIRE_H
#define CKRUN_WIRE_H

#include <stddef.h>

enum { CKRUN_LINE = 1048576, CKRUN_FDS = 16, CKRUN_FDS_WAITING = 64 };
/* What ckrun_wire_line() has found. */
enum { CKRUN_WIRE_LINE, CKRUN_WIRE_NOTHING, CKRUN_WIRE_END, CKRUN_WIRE_BROKEN };

struct ckrun_wire {
    int fd;
    char *bytes; /* received and not yet taken */
    size_t length, room, searched;
    int fds[CKRUN_FDS_WAITING]; /* likewise */
    unsigned nfds;
    const char *error;
};

/* Takes a line, without its end, into memory from malloc. Without `wait` only what is there already. */
int ckrun_wire_line(struct ckrun_wire *wire, int wait, char **line, size_t *length);
/* Takes `count` descriptors that came with the line taken last: 0, or -1 if there are not so many. */
int ckrun_wire_fds(struct ckrun_wire *wire, int *fds, unsigned count);
/* Whether descriptors have come that belong to no line. */
int ckrun_wire_fds_left(const struct ckrun_wire *wire);
/* Sends a line, which has its end: 0, or -1 with errno. */
int ckrun_wire_send(struct ckrun_wire *wire, const char *line, size_t length, const int *fds, unsigned nfds);
/* Frees and closes everything but the socket. */
void ckrun_wire_free(struct ckrun_wire *wire);

#endif
