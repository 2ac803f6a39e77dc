/* A plugin that makes every call and gives every kind of answer, for ../python/test_kits.py; ../python/every_call.py does
 * the same. */
#define _GNU_SOURCE
#include "ckrun_plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MUST(condition)                                                                                                 \
    do {                                                                                                                \
        if (!(condition)) return ckrun_fail(ck, CKRUN_INTERNAL, "not so: %s (%s)", #condition, ckrun_failure(ck));      \
    } while (0)

static int init(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    int real = memfd_create("ring", 0), other = memfd_create("link", 0);
    (void)event;
    MUST(write(real, "ring", 4) == 4 && write(other, "link", 4) == 4);
    ckrun_add_binding(result, "device", "/dev/emu0", "/dev/pts/9");
    ckrun_add_binding_fd(result, "memory", "/dev/shm/ring0", real);
    ckrun_add_binding(result, "socket", "tcp:emu:4000", "tcp:10.0.0.7:5011");
    ckrun_add_binding_fd(result, "socket", "unix:@emu", other);
    ckrun_add_handle(result, "session", 1, 48211);
    ckrun_add_env(result, "EMU_SLOTS", "1");
    ckrun_add_env(result, "EMU_\"NAME\"", "B\303\244r\n");
    ckrun_add_mount(result, "/opt/emu/lib", "/opt/emu/lib", "ro,nosuid");
    ckrun_ioctl_handle handle = {.space = "session", .offset = 0, .size = 4, .direction = "both"};
    ckrun_add_ioctl(result, "/dev/emu0", 0xc0084501, &handle, 1);
    ckrun_ioctl_handle handles[] = {
        {.space = "session", .at = "argument", .size = 4, .direction = "in"},
        {.space = "buffer", .at = "result", .direction = "out"},
    };
    ckrun_add_ioctl(result, "/dev/emu0", 0x4502, handles, 2);
    close(real);
    close(other);
    return 0;
}

static int memory(ckrun *ck) {
    static unsigned char data[600000];
    MUST(!ckrun_read(ck, 7, 0x7f00c0de1000, data, sizeof data));
    for (size_t i = 0; i < sizeof data; i++) MUST(data[i] == i % 251);
    MUST(!ckrun_write(ck, 7, 0x7f00c0de1000, data, 524290));
    return 0;
}

static int precheckpoint(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    const char *name, *real;
    int64_t number;
    const ckrun_json *value;
    const ckrun_task *tasks;
    size_t count;
    (void)event;
    MUST(!ckrun_translate(ck, "device", CKRUN_TO_REAL, "/dev/emu0", &name) && !strcmp(name, "/dev/pts/9"));
    MUST(!ckrun_translate(ck, "device", CKRUN_TO_VIRTUAL, "/dev/pts/9", &name) && !strcmp(name, "/dev/emu0"));
    MUST(!ckrun_translate_number(ck, "handle", "session", CKRUN_TO_REAL, 1, &number) && number == 48211);
    MUST(!ckrun_translate_number(ck, "pid", NULL, CKRUN_TO_VIRTUAL, 4242, &number) && number == 7);
    MUST(!ckrun_translate_fd(ck, 7, 3, &name, &real) && !strcmp(name, "/dev/emu0") && !strcmp(real, "/dev/pts/9"));
    MUST(!ckrun_bind_handle(ck, "session", 2, 48212));
    MUST(!ckrun_unbind_handle(ck, "session", 2));
    MUST(!ckrun_put(ck, "text", "\"B\\u00e4r \\ud83d\\udc3b\\u0000\""));
    MUST(!ckrun_put_integer(ck, "number", -9007199254740991));
    MUST(!ckrun_put(ck, "value", "{\"list\": [1.5, null, true]}"));
    MUST(!ckrun_get(ck, "value", &value) && ckrun_number(ckrun_first(ckrun_member(value, "list")), 0) == 1.5);
    MUST(!ckrun_put(ck, "value", NULL));
    MUST(ckrun_get(ck, "value", &value) == CKRUN_UNKNOWN);
    MUST(!ckrun_tasks(ck, &tasks, &count) && count == 1);
    MUST(tasks->pid == 7 && tasks->tid == 8 && !strcmp(tasks->command, "testbench"));
    int code = memory(ck);
    if (code) return code;
    ckrun_register rip = {.name = "rip"};
    MUST(!ckrun_get_registers(ck, 8, &rip, 1) && rip.value == 0x401000);
    rip.value = 0x402000;
    MUST(!ckrun_set_registers(ck, 8, &rip, 1));
    MUST(!ckrun_signal(ck, 7, 10));
    char *large = calloc(1, 1048577);
    MUST(large);
    memset(large, 'x', 1048576);
    code = ckrun_put_string(ck, "large", large);
    free(large);
    MUST(code == CKRUN_LIMIT);
    ckrun_log(ck, "warn", "large\377");
    ckrun_require(result, "design", "sha256:6be1");
    ckrun_require_integer(result, "gates", 1200000);
    ckrun_require_json(result, "parts", "[\"a\", {\"b\": 2}]");
    return 0;
}

static int presuspend(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    (void)event, (void)result;
    if (ckrun_barrier(ck, "drained") == CKRUN_STATE)
        ckrun_log(ck, "info", "cancelled %s", ckrun_cancelled(ck) ? "True" : "False");
    return 0;
}

static int resume(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    (void)event, (void)result;
    int code = ckrun_signal(ck, 7, 9);
    if (code == CKRUN_DENIED) ckrun_log(ck, "error", "%s", ckrun_failure(ck));
    return code;
}

static int running(ckrun *ck, const ckrun_event *event, ckrun_result *result) {
    (void)event;
    ckrun_add_binding(result, "device", "/dev/emu0", ckrun_option(ck, "absent"));
    return 0;
}

int main(void) {
    static const ckrun_plugin plugin = {.version = "every call", .init = init, .presuspend = presuspend,
                                        .precheckpoint = precheckpoint, .resume = resume, .running = running};
    return ckrun_plugin_serve(&plugin);
}
