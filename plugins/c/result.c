/* The answer to an event, in the making. */
#define _GNU_SOURCE
#include "inside.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* Begins an object in a list, or a member in an object. */
static void item(struct ckrun_text *list) {
    ckrun_text_open(list, list->length ? '{' : '[');
    if (list->length == 1) ckrun_text_open(list, '{');
}

static void member(struct ckrun_text *object, const char *name) {
    if (!object->length) ckrun_text_open(object, '{');
    ckrun_text_key(object, name);
}

static void pair(struct ckrun_text *object, const char *name, const char *value) {
    ckrun_text_key(object, name);
    ckrun_text_string(object, value);
}

static void begin_binding(ckrun_result *result, const char *kind, const char *virtual_name) {
    item(&result->bindings);
    pair(&result->bindings, "kind", kind);
    pair(&result->bindings, "virtual", virtual_name);
}

void ckrun_add_binding(ckrun_result *result, const char *kind, const char *virtual_name, const char *real_name) {
    begin_binding(result, kind, virtual_name);
    pair(&result->bindings, "real", real_name);
    ckrun_text_close(&result->bindings, '}');
}

void ckrun_add_binding_fd(ckrun_result *result, const char *kind, const char *virtual_name, int fd) {
    int mine = result->nfds < CKRUN_FDS ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
    if (mine < 0) {
        result->error = result->nfds < CKRUN_FDS ? "a binding has no good descriptor" : "more than 16 descriptors";
        return;
    }
    begin_binding(result, kind, virtual_name);
    ckrun_text_key(&result->bindings, "fd");
    ckrun_text_integer(&result->bindings, result->nfds);
    ckrun_text_close(&result->bindings, '}');
    result->fds[result->nfds++] = mine;
}

void ckrun_add_handle(ckrun_result *result, const char *space, int64_t virtual_number, int64_t real_number) {
    struct ckrun_text *text = &result->bindings;
    item(text);
    pair(text, "kind", "handle");
    pair(text, "space", space);
    ckrun_text_key(text, "virtual");
    ckrun_text_integer(text, virtual_number);
    ckrun_text_key(text, "real");
    ckrun_text_integer(text, real_number);
    ckrun_text_close(text, '}');
}

void ckrun_add_env(ckrun_result *result, const char *name, const char *value) {
    member(&result->env, name);
    ckrun_text_string(&result->env, value);
}

void ckrun_add_mount(ckrun_result *result, const char *source, const char *destination, const char *options) {
    struct ckrun_text *text = &result->mounts;
    item(text);
    pair(text, "source", source);
    pair(text, "destination", destination);
    if (options) {
        ckrun_text_key(text, "options");
        ckrun_text_open(text, '[');
        while (*options) {
            char option[256];
            size_t length = strcspn(options, ",");
            if (length >= sizeof option) {
                result->error = "an option of a mount is too long";
                return;
            }
            memcpy(option, options, length);
            option[length] = '\0';
            if (length) ckrun_text_string(text, option);
            options += length + (options[length] == ',');
        }
        ckrun_text_close(text, ']');
    }
    ckrun_text_close(text, '}');
}

void ckrun_add_ioctl(ckrun_result *result, const char *device, uint64_t command, const ckrun_ioctl_handle *handles,
                     size_t count) {
    struct ckrun_text *text = &result->ioctls;
    item(text);
    pair(text, "device", device);
    ckrun_text_key(text, "command");
    ckrun_text_hexadecimal(text, command);
    ckrun_text_key(text, "handles");
    ckrun_text_open(text, '[');
    for (size_t i = 0; i < count; i++) {
        ckrun_text_open(text, '{');
        pair(text, "space", handles[i].space);
        if (handles[i].at) {
            pair(text, "at", handles[i].at);
        } else {
            ckrun_text_key(text, "offset");
            ckrun_text_integer(text, handles[i].offset);
        }
        if (handles[i].size || !handles[i].at) {
            ckrun_text_key(text, "size");
            ckrun_text_integer(text, handles[i].size);
        }
        pair(text, "direction", handles[i].direction);
        ckrun_text_close(text, '}');
    }
    ckrun_text_close(text, ']');
    ckrun_text_close(text, '}');
}

void ckrun_require(ckrun_result *result, const char *name, const char *value) {
    member(&result->requirements, name);
    ckrun_text_string(&result->requirements, value);
}

void ckrun_require_integer(ckrun_result *result, const char *name, int64_t value) {
    member(&result->requirements, name);
    ckrun_text_integer(&result->requirements, value);
}

void ckrun_require_json(ckrun_result *result, const char *name, const char *value) {
    member(&result->requirements, name);
    ckrun_text_json(&result->requirements, value);
}

const char *ckrun_result_write(struct ckrun_result *result, struct ckrun_text *text) {
    const struct {
        const char *name;
        struct ckrun_text *text;
        char bracket;
    } parts[] = {{"bindings", &result->bindings, ']'},
                 {"env", &result->env, '}'},
                 {"mounts", &result->mounts, ']'},
                 {"ioctls", &result->ioctls, ']'},
                 {"requirements", &result->requirements, '}'}};
    ckrun_text_open(text, '{');
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (parts[i].text->error && !result->error) result->error = parts[i].text->error;
        if (!parts[i].text->length) continue;
        ckrun_text_close(parts[i].text, parts[i].bracket);
        ckrun_text_key(text, parts[i].name);
        ckrun_text_raw(text, parts[i].text->bytes, parts[i].text->length);
    }
    ckrun_text_close(text, '}');
    return result->error;
}

void ckrun_result_free(struct ckrun_result *result) {
    for (unsigned i = 0; i < result->nfds; i++) close(result->fds[i]);
    ckrun_text_free(&result->bindings);
    ckrun_text_free(&result->env);
    ckrun_text_free(&result->mounts);
    ckrun_text_free(&result->ioctls);
    ckrun_text_free(&result->requirements);
}
