/* Messages: which one is an event, which one the answer to a call, and which one breaks the protocol. */
#define _GNU_SOURCE
#include "inside.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int broken(ckrun *ck, const char *why) {
    fprintf(stderr, "the socket of ckrun: %s\n", why);
    ck->ended = CKRUN_WIRE_BROKEN;
    return -1;
}

void ckrun_message_free(struct ckrun_message *message) {
    for (unsigned i = 0; i < message->nfds; i++)
        if (message->fds[i] >= 0) close(message->fds[i]);
    ckrun_document_free(&message->document);
    *message = (struct ckrun_message){0};
}

/* The notification concerns the request that came last, if that has not been answered. */
static void cancel(ckrun *ck, const ckrun_json *params) {
    struct ckrun_message *last = ck->nwaiting ? &ck->waiting[ck->nwaiting - 1] : &ck->now;
    const char *event = ckrun_string(ckrun_member(params, "event"));
    if (last->method && event && !strcmp(event, last->method)) last->cancelled = 1;
}

/* Puts a message where it belongs: NULL, or what is wrong with it. The message is empty if somebody else owns it now. */
static const char *place(ckrun *ck, struct ckrun_message *m) {
    const ckrun_json *root = m->document.root, *version = ckrun_member(root, "jsonrpc"), *fds = ckrun_member(root, "fds");
    if (!ckrun_string(version) || strcmp(ckrun_string(version), "2.0")) return "a message that is not JSON-RPC 2.0";
    m->id = ckrun_member(root, "id");
    m->method = ckrun_string(ckrun_member(root, "method"));
    if (fds) {
        int64_t count = ckrun_integer(fds, 0);
        if (count < 1 || count > CKRUN_FDS) return "not 1 to 16 descriptors";
        if (ckrun_wire_fds(&ck->wire, m->fds, (unsigned)count)) return "descriptors were announced that did not come";
        m->nfds = (unsigned)count;
    }
    if (ckrun_wire_fds_left(&ck->wire)) return "descriptors came that were not announced";
    ckrun_type type = ckrun_json_type(m->id);
    if (m->id && type != CKRUN_STRING && type != CKRUN_NUMBER) return "an id that is none";
    if (m->method && !m->id) {
        if (!strcmp(m->method, "cancel")) cancel(ck, ckrun_member(root, "params"));
        return NULL;
    }
    if (m->method) {
        if (ck->nwaiting == CKRUN_WAITING) return "too many requests at once";
        ck->waiting[ck->nwaiting++] = *m;
    } else {
        int result = ckrun_member(root, "result") != NULL, error = ckrun_member(root, "error") != NULL;
        if (result == error) return "neither a request nor an answer";
        if (!ck->called || ckrun_integer(m->id, -1) != ck->call) return "an answer to nothing";
        ckrun_message_free(&ck->answer);
        ck->answer = *m;
        ck->called = 0;
        ck->answered = 1;
    }
    *m = (struct ckrun_message){0};
    return NULL;
}

int ckrun_message_read(ckrun *ck, int wait) {
    struct ckrun_message message = {0};
    char *line;
    size_t length;
    if (ck->ended) return -1;
    int got = ckrun_wire_line(&ck->wire, wait, &line, &length);
    if (got == CKRUN_WIRE_NOTHING) return -1;
    if (got == CKRUN_WIRE_BROKEN) return broken(ck, ck->wire.error);
    if (got == CKRUN_WIRE_END) {
        ck->ended = got;
        return -1;
    }
    const char *wrong = ckrun_document_read(&message.document, line, length);
    if (!wrong) wrong = place(ck, &message);
    ckrun_message_free(&message);
    return wrong ? broken(ck, wrong) : 0;
}

int ckrun_message_send(ckrun *ck, struct ckrun_text *line, const int *fds, unsigned nfds) {
    ckrun_text_raw(line, "\n", 1);
    if (ck->ended || ckrun_wire_send(&ck->wire, line->bytes, line->length, fds, nfds)) {
        if (!ck->ended) ck->ended = errno == EPIPE || errno == ECONNRESET ? CKRUN_WIRE_END : CKRUN_WIRE_BROKEN;
        return -1;
    }
    return 0;
}
