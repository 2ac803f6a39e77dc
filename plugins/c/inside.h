/* What the rooms of the kit share. */
#ifndef CKRUN_INSIDE_H
#define CKRUN_INSIDE_H

#include "json.h"
#include "wire.h"

/* Requests that have come while a call waits for its answer: after an event was cancelled the next one may be there. */
enum { CKRUN_WAITING = 8 };

struct ckrun_message {
    struct ckrun_document document;
    const char *method; /* NULL in an answer */
    const ckrun_json *id;
    int fds[CKRUN_FDS];
    unsigned nfds;
    int cancelled;
};

struct ckrun {
    const ckrun_plugin *plugin;
    struct ckrun_wire wire;
    struct ckrun_message hello, now, answer, waiting[CKRUN_WAITING];
    unsigned nwaiting;
    int64_t call;  /* the id of the last call */
    int called;    /* whether its answer is still to come */
    int answered;  /* whether `answer` is it */
    int ended;     /* CKRUN_WIRE_END or CKRUN_WIRE_BROKEN */
    char failure[1024];
};

/* Reads one message and puts it where it belongs. Returns 0, or -1 if there is none, for ever (ck->ended) or now. */
int ckrun_message_read(ckrun *ck, int wait);
void ckrun_message_free(struct ckrun_message *message);
/* Sends a line; after a failure the socket has ended. */
int ckrun_message_send(ckrun *ck, struct ckrun_text *line, const int *fds, unsigned nfds);

struct ckrun_result {
    struct ckrun_text bindings, env, mounts, ioctls, requirements;
    int fds[CKRUN_FDS];
    unsigned nfds;
    const char *error;
};

/* Writes {"bindings": ...}. Returns NULL or why not. */
const char *ckrun_result_write(struct ckrun_result *result, struct ckrun_text *text);
void ckrun_result_free(struct ckrun_result *result);

#endif
