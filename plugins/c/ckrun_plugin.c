/* A plugin's life: the greeting, then event after event. */
#define _GNU_SOURCE
#include "inside.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NO_SUCH_METHOD = -32601, NO_REQUEST = -32600, MAJOR = 1 };

struct wanted {
    const char *name;
    ckrun_function *function;
};

/* Fills in the events that there are; returns their number. */
static size_t functions(const ckrun_plugin *p, struct wanted wanted[10]) {
    const struct wanted all[] = {{"init", p->init},
                                 {"presuspend", p->presuspend},
                                 {"precheckpoint", p->precheckpoint},
                                 {"committed", p->committed},
                                 {"resume", p->resume},
                                 {"check", p->check},
                                 {"restart", p->restart},
                                 {"running", p->running},
                                 {"exit", p->exit},
                                 {"recover", p->recover}};
    size_t count = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i].function) wanted[count++] = all[i];
    return count;
}

int ckrun_fail(ckrun *ck, int code, const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    vsnprintf(ck->failure, sizeof ck->failure, format, rest);
    va_end(rest);
    return code;
}

const char *ckrun_failure(const ckrun *ck) { return ck->failure; }

const char *ckrun_option(const ckrun *ck, const char *name) {
    const ckrun_json *plugin = ckrun_member(ckrun_member(ck->hello.document.root, "params"), "plugin");
    return ckrun_string(ckrun_member(ckrun_member(plugin, "options"), name));
}

const char *ckrun_plugin_name(const ckrun *ck) {
    return ckrun_string(ckrun_member(ckrun_member(ckrun_member(ck->hello.document.root, "params"), "plugin"), "name"));
}

int ckrun_granted(const ckrun *ck, const char *capability) {
    const ckrun_json *granted = ckrun_member(ckrun_member(ck->hello.document.root, "params"), "granted");
    for (granted = ckrun_first(granted); granted; granted = ckrun_next(granted))
        if (ckrun_string(granted) && !strcmp(ckrun_string(granted), capability)) return 1;
    return 0;
}

int ckrun_cancelled(ckrun *ck) {
    while (!ckrun_message_read(ck, 0)) continue;
    return ck->now.cancelled || ck->ended;
}

int ckrun_take_fd(ckrun *ck, unsigned index) {
    if (index >= ck->now.nfds) return -1;
    int fd = ck->now.fds[index];
    ck->now.fds[index] = -1;
    return fd;
}

int ckrun_open(const ckrun *ck, const char *file, int flags) {
    /* The folder's path may be closed to a plugin that is not root; its descriptor is not. */
    if (ck->now.nfds && ck->now.fds[0] >= 0) return openat(ck->now.fds[0], file, flags | O_CLOEXEC, 0600);
    const char *folder = ckrun_string(ckrun_member(ckrun_member(ck->now.document.root, "params"), "folder"));
    if (!folder) {
        errno = ENOENT;
        return -1;
    }
    int dir = open(folder, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
    if (dir < 0) return -1;
    int fd = openat(dir, file, flags | O_CLOEXEC, 0600), error = errno;
    close(dir);
    errno = error;
    return fd;
}

/* The answer to hello. */
static int greet(ckrun *ck, struct ckrun_text *text) {
    const char *version = ckrun_string(ckrun_member(ckrun_member(ck->hello.document.root, "params"), "protocol"));
    struct wanted wanted[10];
    size_t count = functions(ck->plugin, wanted);
    if (!version || strtol(version, NULL, 10) != MAJOR)
        return ckrun_fail(ck, CKRUN_MISMATCH, "the plugin speaks protocol %d.0, not %s", MAJOR, version ? version : "none");
    ckrun_text_open(text, '{');
    ckrun_text_key(text, "protocol");
    ckrun_text_string(text, "1.0");
    ckrun_text_key(text, "version");
    ckrun_text_string(text, ck->plugin->version ? ck->plugin->version : "");
    if (ck->plugin->deadlines) {
        ckrun_text_key(text, "deadlines");
        ckrun_text_open(text, '{');
        for (const ckrun_deadline *deadline = ck->plugin->deadlines; deadline->event; deadline++) {
            ckrun_text_key(text, deadline->event);
            ckrun_text_seconds(text, deadline->seconds);
        }
        ckrun_text_close(text, '}');
    }
    ckrun_text_key(text, "events");
    ckrun_text_open(text, '[');
    for (size_t i = 0; i < count; i++) ckrun_text_string(text, wanted[i].name);
    ckrun_text_close(text, ']');
    ckrun_text_close(text, '}');
    return 0;
}

/* Calls the plugin's function for the event under way: 0 or a code. */
static int act(ckrun *ck, struct ckrun_text *text, ckrun_result *result) {
    const ckrun_json *params = ckrun_member(ck->now.document.root, "params"), *job = ckrun_member(params, "job");
    struct wanted wanted[10];
    size_t count = functions(ck->plugin, wanted);
    ckrun_function *function = NULL;
    int greeting = !strcmp(ck->now.method, "hello");
    if (greeting == (ck->hello.method != NULL))
        return ckrun_fail(ck, NO_REQUEST, greeting ? "hello came twice" : "%s came before hello", ck->now.method);
    if (greeting) {
        /* Options are asked for later: the document stays. */
        ck->hello = (struct ckrun_message){.document = ck->now.document, .method = ck->now.method};
        ck->now.document = (struct ckrun_document){0};
        int code = greet(ck, text);
        if (code) return code;
        function = ck->plugin->hello;
    }
    for (size_t i = 0; i < count && !function; i++)
        if (!strcmp(wanted[i].name, ck->now.method)) function = wanted[i].function;
    if (!function) return greeting ? 0 : ckrun_fail(ck, NO_SUCH_METHOD, "no event %s is known here", ck->now.method);
    ckrun_event event = {
        .self = ck->plugin->self,
        .name = ck->now.method,
        .deadline = ckrun_number(ckrun_member(params, "deadline"), 0),
        .job = ckrun_string(ckrun_member(job, "id")),
        .generation = ckrun_integer(ckrun_member(job, "generation"), 0),
        .host = ckrun_string(ckrun_member(job, "host")),
        .bundle = ckrun_string(ckrun_member(job, "bundle")),
        .folder = ckrun_string(ckrun_member(params, "folder")),
        .image = ckrun_string(ckrun_member(params, "image")),
        .after = ckrun_string(ckrun_member(params, "after")),
        .reason = ckrun_string(ckrun_member(params, "reason")),
        .requirements = ckrun_member(params, "requirements"),
        .bindings = ckrun_member(params, "bindings"),
        .params = params,
    };
    int code = function(ck, &event, result);
    if (code) return code;
    const char *error = greeting ? NULL : ckrun_result_write(result, text);
    return error ? ckrun_fail(ck, CKRUN_INTERNAL, "the answer cannot be written: %s", error) : 0;
}

/* Answers the event under way. */
static void answer(ckrun *ck) {
    struct ckrun_text text = {0}, line = {0};
    ckrun_result result = {0};
    ck->failure[0] = '\0';
    const ckrun_json *id = ck->now.id;
    int code = act(ck, &text, &result);
    for (int failed = code != 0;; failed = 1) {
        ckrun_text_open(&line, '{');
        ckrun_text_key(&line, "jsonrpc");
        ckrun_text_string(&line, "2.0");
        ckrun_text_key(&line, "id");
        ckrun_text_value(&line, id);
        if (!failed && result.nfds) {
            ckrun_text_key(&line, "fds");
            ckrun_text_integer(&line, result.nfds);
        }
        ckrun_text_key(&line, failed ? "error" : "result");
        if (failed) {
            /* A code of ckrun's or of the kit's would say something else there. */
            int known = code <= CKRUN_LOST ? code : CKRUN_INTERNAL;
            ckrun_text_open(&line, '{');
            ckrun_text_key(&line, "code");
            ckrun_text_integer(&line, known);
            ckrun_text_key(&line, "message");
            ckrun_text_sentence(&line, ck->failure[0] ? ck->failure : "the plugin did not say why");
            ckrun_text_close(&line, '}');
        } else {
            ckrun_text_raw(&line, text.bytes, text.length);
        }
        ckrun_text_close(&line, '}');
        const char *error = text.error ? text.error : line.error;
        if (!error && line.length >= CKRUN_LINE) error = "it is longer than a line may be";
        if (failed || !error) break;
        code = ckrun_fail(ck, CKRUN_INTERNAL, "the answer cannot be written: %s", error);
        ckrun_text_free(&line);
    }
    if (!line.error) ckrun_message_send(ck, &line, result.fds, code ? 0 : result.nfds);
    else ck->ended = CKRUN_WIRE_BROKEN;
    ckrun_text_free(&text);
    ckrun_text_free(&line);
    ckrun_result_free(&result);
}

/* The socket's descriptor, which no child of the plugin is to inherit. */
static int inherited(void) {
    const char *name = getenv("CKRUN_PLUGIN_SOCKET");
    char *end = NULL;
    long fd = name ? strtol(name, &end, 10) : -1;
    if (!name || end == name || *end || fd < 0 || fd > INT32_MAX || fcntl((int)fd, F_SETFD, FD_CLOEXEC)) {
        fprintf(stderr, "CKRUN_PLUGIN_SOCKET names no open descriptor: this program is started by ckrun\n");
        return -1;
    }
    return (int)fd;
}

int ckrun_plugin_serve(const ckrun_plugin *plugin) {
    int fd = inherited(), over = 0;
    ckrun *ck = fd < 0 ? NULL : calloc(1, sizeof *ck);
    if (!ck) return 1;
    ck->plugin = plugin;
    ck->wire.fd = fd;
    while (!over && !ck->ended) {
        if (!ck->nwaiting) {
            ckrun_message_read(ck, 1);
            continue;
        }
        ck->now = ck->waiting[0];
        memmove(ck->waiting, ck->waiting + 1, --ck->nwaiting * sizeof ck->waiting[0]);
        answer(ck);
        over = !strcmp(ck->now.method, "exit");
        ckrun_message_free(&ck->now);
        ckrun_message_free(&ck->answer);
    }
    int broken = ck->ended == CKRUN_WIRE_BROKEN;
    while (ck->nwaiting) ckrun_message_free(&ck->waiting[--ck->nwaiting]);
    ckrun_message_free(&ck->hello);
    ckrun_wire_free(&ck->wire);
    close(fd);
    free(ck);
    return broken;
}
