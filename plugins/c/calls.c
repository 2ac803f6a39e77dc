/* What a plugin can ask ckrun for. */
#include "inside.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The most that one `read` or `write` may carry. */
enum { CHUNK = 524288 };

/* Begins a request and its params; without an id it is a notification. */
static struct ckrun_text begin(int64_t id, const char *method) {
    struct ckrun_text text = {0};
    ckrun_text_open(&text, '{');
    ckrun_text_key(&text, "jsonrpc");
    ckrun_text_string(&text, "2.0");
    if (id) {
        ckrun_text_key(&text, "id");
        ckrun_text_integer(&text, id);
    }
    ckrun_text_key(&text, "method");
    ckrun_text_string(&text, method);
    ckrun_text_key(&text, "params");
    return text;
}

static struct ckrun_text call(ckrun *ck, const char *method) {
    struct ckrun_text text = begin(++ck->call, method);
    ckrun_text_open(&text, '{');
    return text;
}

static void string(struct ckrun_text *text, const char *name, const char *value) {
    ckrun_text_key(text, name);
    ckrun_text_string(text, value);
}

static void integer(struct ckrun_text *text, const char *name, int64_t value) {
    ckrun_text_key(text, name);
    ckrun_text_integer(text, value);
}

static void hexadecimal(struct ckrun_text *text, const char *name, uint64_t value) {
    ckrun_text_key(text, name);
    ckrun_text_hexadecimal(text, value);
}

/* Sends a request without its last bracket, and frees it. */
static int send_it(ckrun *ck, const char *what, struct ckrun_text *text) {
    int code = 0;
    ckrun_text_close(text, '}');
    if (text->error || text->length >= CKRUN_LINE)
        code = ckrun_fail(ck, CKRUN_LIMIT, "%s: %s", what, text->error ? text->error : "longer than a line may be");
    else if (ckrun_message_send(ck, text, NULL, 0))
        code = ckrun_fail(ck, CKRUN_GONE, "%s: ckrun has gone", what);
    ckrun_text_free(text);
    return code;
}

/* Sends a request without its last bracket, and waits for the answer. */
static int ask(ckrun *ck, const char *method, struct ckrun_text *text, const ckrun_json **result) {
    if (result) *result = NULL;
    int code = send_it(ck, method, text);
    if (code) return code;
    for (ck->called = 1, ck->answered = 0; !ck->answered;)
        if (ckrun_message_read(ck, 1)) return ckrun_fail(ck, CKRUN_GONE, "%s: ckrun has gone", method);
    const ckrun_json *root = ck->answer.document.root, *error = ckrun_member(root, "error");
    if (error) {
        const char *message = ckrun_string(ckrun_member(error, "message"));
        code = (int)ckrun_integer(ckrun_member(error, "code"), CKRUN_INTERNAL);
        return ckrun_fail(ck, code ? code : CKRUN_INTERNAL, "%s: %s", method, message ? message : "ckrun did not say why");
    }
    if (result) *result = ckrun_member(root, "result");
    return 0;
}

static int finish(ckrun *ck, const char *method, struct ckrun_text *text, const ckrun_json **result) {
    ckrun_text_close(text, '}');
    return ask(ck, method, text, result);
}

/* ckrun has answered, but not what the protocol says. */
static int strange(ckrun *ck, const char *method) {
    return ckrun_fail(ck, CKRUN_INTERNAL, "%s: the answer is not what the protocol promises", method);
}

int ckrun_call(ckrun *ck, const char *method, const char *params, const ckrun_json **result) {
    struct ckrun_text text = begin(++ck->call, method);
    ckrun_text_json(&text, params ? params : "{}");
    return ask(ck, method, &text, result);
}

static const char *const sides[] = {"virtual", "real"};

int ckrun_translate(ckrun *ck, const char *kind, int direction, const char *name, const char **answer) {
    const ckrun_json *result;
    struct ckrun_text text = call(ck, "translate");
    string(&text, "kind", kind);
    string(&text, sides[direction == CKRUN_TO_VIRTUAL], name);
    int code = finish(ck, "translate", &text, &result);
    if (code) return code;
    *answer = ckrun_string(ckrun_member(result, sides[direction != CKRUN_TO_VIRTUAL]));
    return *answer ? 0 : strange(ck, "translate");
}

int ckrun_translate_number(ckrun *ck, const char *kind, const char *space, int direction, int64_t number, int64_t *answer) {
    const ckrun_json *result;
    struct ckrun_text text = call(ck, "translate");
    string(&text, "kind", kind);
    if (space) string(&text, "space", space);
    integer(&text, sides[direction == CKRUN_TO_VIRTUAL], number);
    int code = finish(ck, "translate", &text, &result);
    if (code) return code;
    result = ckrun_member(result, sides[direction != CKRUN_TO_VIRTUAL]);
    if (ckrun_integer(result, 0) != ckrun_integer(result, 1)) return strange(ck, "translate");
    *answer = ckrun_integer(result, 0);
    return 0;
}

int ckrun_translate_fd(ckrun *ck, int64_t pid, int64_t number, const char **virtual_name, const char **real_name) {
    const ckrun_json *result;
    struct ckrun_text text = call(ck, "translate");
    string(&text, "kind", "fd");
    integer(&text, "pid", pid);
    integer(&text, "number", number);
    int code = finish(ck, "translate", &text, &result);
    if (code) return code;
    if (virtual_name) *virtual_name = ckrun_string(ckrun_member(result, "virtual"));
    if (real_name) *real_name = ckrun_string(ckrun_member(result, "real"));
    return 0;
}

int ckrun_bind_handle(ckrun *ck, const char *space, int64_t virtual_number, int64_t real_number) {
    struct ckrun_text text = call(ck, "bind");
    string(&text, "kind", "handle");
    string(&text, "space", space);
    integer(&text, "virtual", virtual_number);
    integer(&text, "real", real_number);
    return finish(ck, "bind", &text, NULL);
}

int ckrun_unbind_handle(ckrun *ck, const char *space, int64_t virtual_number) {
    struct ckrun_text text = call(ck, "unbind");
    string(&text, "kind", "handle");
    string(&text, "space", space);
    integer(&text, "virtual", virtual_number);
    return finish(ck, "unbind", &text, NULL);
}

static struct ckrun_text put(ckrun *ck, const char *key) {
    struct ckrun_text text = call(ck, "put");
    string(&text, "key", key);
    return text;
}

int ckrun_put(ckrun *ck, const char *key, const char *value) {
    struct ckrun_text text = put(ck, key);
    if (value) {
        ckrun_text_key(&text, "value");
        ckrun_text_json(&text, value);
    }
    return finish(ck, "put", &text, NULL);
}

int ckrun_put_string(ckrun *ck, const char *key, const char *value) {
    struct ckrun_text text = put(ck, key);
    string(&text, "value", value);
    return finish(ck, "put", &text, NULL);
}

int ckrun_put_integer(ckrun *ck, const char *key, int64_t value) {
    struct ckrun_text text = put(ck, key);
    integer(&text, "value", value);
    return finish(ck, "put", &text, NULL);
}

int ckrun_get(ckrun *ck, const char *key, const ckrun_json **value) {
    struct ckrun_text text = call(ck, "get");
    string(&text, "key", key);
    int code = finish(ck, "get", &text, value);
    if (!code) *value = ckrun_member(*value, "value");
    return code;
}

int ckrun_tasks(ckrun *ck, const ckrun_task **tasks, size_t *count) {
    const ckrun_json *list, *item;
    struct ckrun_text text = call(ck, "tasks");
    int code = finish(ck, "tasks", &text, &list);
    if (code) return code;
    list = ckrun_member(list, "tasks");
    *count = 0;
    for (item = ckrun_first(list); item; item = ckrun_next(item)) ++*count;
    ckrun_task *made = ckrun_document_alloc(&ck->answer.document, (*count + 1) * sizeof *made);
    if (ckrun_json_type(list) != CKRUN_LIST || !made) return strange(ck, "tasks");
    *tasks = made;
    for (item = ckrun_first(list); item; item = ckrun_next(item)) {
        const char *command = ckrun_string(ckrun_member(item, "command"));
        *made++ = (ckrun_task){.pid = ckrun_integer(ckrun_member(item, "pid"), 0),
                               .tid = ckrun_integer(ckrun_member(item, "tid"), 0),
                               .command = command ? command : ""};
    }
    return 0;
}

int ckrun_read(ckrun *ck, int64_t pid, uint64_t address, void *bytes, size_t length) {
    for (size_t done = 0; done < length;) {
        const ckrun_json *result;
        size_t here = length - done < CHUNK ? length - done : CHUNK;
        struct ckrun_text text = call(ck, "read");
        integer(&text, "pid", pid);
        hexadecimal(&text, "address", address + done);
        integer(&text, "length", (int64_t)here);
        int code = finish(ck, "read", &text, &result);
        if (code) return code;
        if (ckrun_base64(ckrun_member(result, "data"), (char *)bytes + done, here)) return strange(ck, "read");
        done += here;
    }
    return 0;
}

int ckrun_write(ckrun *ck, int64_t pid, uint64_t address, const void *bytes, size_t length) {
    for (size_t done = 0; done < length;) {
        size_t here = length - done < CHUNK ? length - done : CHUNK;
        struct ckrun_text text = call(ck, "write");
        integer(&text, "pid", pid);
        hexadecimal(&text, "address", address + done);
        ckrun_text_key(&text, "data");
        ckrun_text_base64(&text, (const char *)bytes + done, here);
        int code = finish(ck, "write", &text, NULL);
        if (code) return code;
        done += here;
    }
    return 0;
}

int ckrun_get_registers(ckrun *ck, int64_t tid, ckrun_register *registers, size_t count) {
    const ckrun_json *result;
    struct ckrun_text text = call(ck, "registers");
    integer(&text, "tid", tid);
    int code = finish(ck, "registers", &text, &result);
    if (code) return code;
    result = ckrun_member(result, "registers");
    for (size_t i = 0; i < count; i++)
        if (ckrun_hexadecimal(ckrun_member(result, registers[i].name), &registers[i].value))
            return ckrun_fail(ck, CKRUN_UNKNOWN, "registers: there is no register %s", registers[i].name);
    return 0;
}

int ckrun_set_registers(ckrun *ck, int64_t tid, const ckrun_register *registers, size_t count) {
    struct ckrun_text text = call(ck, "registers");
    integer(&text, "tid", tid);
    ckrun_text_key(&text, "set");
    ckrun_text_open(&text, '{');
    for (size_t i = 0; i < count; i++) hexadecimal(&text, registers[i].name, registers[i].value);
    ckrun_text_close(&text, '}');
    return finish(ck, "registers", &text, NULL);
}

int ckrun_signal(ckrun *ck, int64_t pid, int number) {
    struct ckrun_text text = call(ck, "signal");
    integer(&text, "pid", pid);
    integer(&text, "signal", number);
    return finish(ck, "signal", &text, NULL);
}

int ckrun_barrier(ckrun *ck, const char *name) {
    struct ckrun_text text = call(ck, "barrier");
    string(&text, "name", name);
    return finish(ck, "barrier", &text, NULL);
}

int ckrun_log(ckrun *ck, const char *level, const char *format, ...) {
    char message[4096];
    va_list rest;
    va_start(rest, format);
    vsnprintf(message, sizeof message, format, rest);
    va_end(rest);
    struct ckrun_text text = begin(0, "log");
    ckrun_text_open(&text, '{');
    string(&text, "level", level);
    ckrun_text_key(&text, "message");
    ckrun_text_sentence(&text, message);
    ckrun_text_close(&text, '}');
    return send_it(ck, "log", &text);
}
