/* A plugin for an imaginary emulator: the job finds it at /dev/emu0, which is the option `device` on every host. It vetoes
 * checkpoints while the file of the option `busy` exists. ../python/example.py does the same: each restarts what the other
 * saved. */
#define _GNU_SOURCE
#include "ckrun_plugin.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct emulator {
    int64_t cycle;
};

static const char *design(const ckrun *ck) {
    return ckrun_option(ck, "design") ? ckrun_option(ck, "design") : "sha256:6be1";
}

/* Counts the events of the job's whole life, restarts included: the key-value area is kept in the image. */
static int count(ckrun *ck) {
    const ckrun_json *value;
    int code = ckrun_get(ck, "events", &value);
    if (code && code != CKRUN_UNKNOWN) return code;
    return ckrun_put_integer(ck, "events", ckrun_integer(value, 0) + 1);
}

static int init(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    (void)event;
    if (!ckrun_option(ck, "device")) return ckrun_fail(ck, CKRUN_UNAVAILABLE, "the option device is missing");
    ckrun_add_binding(result, "device", "/dev/emu0", ckrun_option(ck, "device"));
    return count(ck);
}

static int presuspend(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    (void)event, (void)result;
    const char *busy = ckrun_option(ck, "busy");
    if (busy && !access(busy, F_OK)) return ckrun_fail(ck, CKRUN_VETO, "a transfer is under way: %s exists", busy);
    return count(ck);
}

static int precheckpoint(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    struct emulator *emulator = event->self;
    emulator->cycle += 1000;
    int fd = ckrun_open(ck, "state", O_WRONLY | O_CREAT | O_EXCL);
    if (fd < 0 || dprintf(fd, "cycle %" PRId64 "\n", emulator->cycle) < 0 || close(fd))
        return ckrun_fail(ck, CKRUN_INTERNAL, "write %s/state: %s", event->folder, strerror(errno));
    ckrun_require(result, "design", design(ck));
    return count(ck);
}

static int check(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    (void)result;
    const char *needed = ckrun_string(ckrun_member(event->requirements, "design"));
    if (needed && !strcmp(needed, design(ck))) return 0;
    return ckrun_fail(ck, CKRUN_MISMATCH, "the image needs design %s, here is %s", needed ? needed : "?", design(ck));
}

static int restart(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    struct emulator *emulator = event->self;
    char text[64] = "";
    int code = check(ck, event, result), fd = code ? -1 : ckrun_open(ck, "state", O_RDONLY);
    if (code) return code;
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (length < 0 || sscanf(text, "cycle %" SCNd64, &emulator->cycle) != 1)
        return ckrun_fail(ck, CKRUN_LOST, "%s/state: it holds no state", event->folder);
    ckrun_log(ck, "info", "the emulator goes on at cycle %" PRId64, emulator->cycle);
    return init(ck, event, result);
}

static int other(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    (void)event, (void)result;
    return count(ck);
}

int main(void) {
    static struct emulator emulator;
    static const ckrun_deadline deadlines[] = {{"precheckpoint", 600}, {NULL, 0}};
    static const ckrun_plugin plugin = {.version = "example 1", .self = &emulator, .deadlines = deadlines, .init = init,
                                        .presuspend = presuspend, .precheckpoint = precheckpoint, .committed = other,
                                        .resume = other, .check = check, .restart = restart, .running = other, .exit = other};
    return ckrun_plugin_serve(&plugin);
}
