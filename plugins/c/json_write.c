/* Writes JSON. */
#include "json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Longer than any line may be: whoever sends it sees that. */
enum { MOST = 2 << 20 };

void ckrun_text_raw(struct ckrun_text *text, const char *bytes, size_t length) {
    if (text->error) return;
    if (length > MOST - text->length) {
        text->error = "the message is longer than a line may be";
        return;
    }
    if (text->room - text->length < length) {
        size_t room = 2 * (text->length + length) + 256;
        char *more = realloc(text->bytes, room);
        if (!more) {
            text->error = "no memory";
            return;
        }
        text->bytes = more;
        text->room = room;
    }
    if (length) memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
}

/* The comma before a value, unless it is the first one or follows its name. */
static void separate(struct ckrun_text *text) {
    if (text->length && !strchr("{[:", text->bytes[text->length - 1])) ckrun_text_raw(text, ",", 1);
}

void ckrun_text_open(struct ckrun_text *text, char bracket) {
    separate(text);
    ckrun_text_raw(text, &bracket, 1);
}

void ckrun_text_close(struct ckrun_text *text, char bracket) { ckrun_text_raw(text, &bracket, 1); }

static void quoted(struct ckrun_text *text, const char *at, size_t length, int mend) {
    if (!at) text->error = text->error ? text->error : "a string is missing";
    if (text->error) return;
    separate(text);
    ckrun_text_raw(text, "\"", 1);
    for (const char *end = at + length; at < end;) {
        size_t size = ckrun_utf8(at, end);
        unsigned char c = (unsigned char)*at;
        if (!size && !mend) {
            if (!text->error) text->error = "a string is not UTF-8";
            return;
        }
        if (!size) {
            ckrun_text_raw(text, "?", 1);
        } else if (c < 0x20) {
            char escape[8];
            ckrun_text_raw(text, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", c));
        } else {
            if (c == '"' || c == '\\') ckrun_text_raw(text, "\\", 1);
            ckrun_text_raw(text, at, size);
        }
        at += size ? size : 1;
    }
    ckrun_text_raw(text, "\"", 1);
}

void ckrun_text_string(struct ckrun_text *text, const char *string) {
    quoted(text, string, string ? strlen(string) : 0, 0);
}

void ckrun_text_sentence(struct ckrun_text *text, const char *string) { quoted(text, string, strlen(string), 1); }

void ckrun_text_key(struct ckrun_text *text, const char *key) {
    ckrun_text_string(text, key);
    ckrun_text_raw(text, ":", 1);
}

void ckrun_text_integer(struct ckrun_text *text, int64_t number) {
    char digits[24];
    separate(text);
    if (number <= -(INT64_C(1) << 53) || number >= INT64_C(1) << 53) {
        if (!text->error) text->error = "a number is not below 2^53";
        return;
    }
    ckrun_text_raw(text, digits, (size_t)snprintf(digits, sizeof digits, "%" PRId64, number));
}

/* "%f" would write a comma in some locales. */
void ckrun_text_seconds(struct ckrun_text *text, double seconds) {
    char digits[32];
    int64_t milliseconds = seconds > 0 && seconds < 1e9 ? (int64_t)(seconds * 1000 + 0.5) : 0;
    separate(text);
    int length = snprintf(digits, sizeof digits, "%" PRId64 ".%03d", milliseconds / 1000, (int)(milliseconds % 1000));
    ckrun_text_raw(text, digits, (size_t)length);
}

void ckrun_text_hexadecimal(struct ckrun_text *text, uint64_t number) {
    char digits[24];
    snprintf(digits, sizeof digits, "0x%" PRIx64, number);
    ckrun_text_string(text, digits);
}

void ckrun_text_value(struct ckrun_text *text, const ckrun_json *value) {
    size_t length = 0;
    const char *bytes = ckrun_json_bytes(value, &length);
    int object = 0;
    switch (ckrun_json_type(value)) {
    case CKRUN_ABSENT:
    case CKRUN_NULL:
        separate(text);
        ckrun_text_raw(text, "null", 4);
        break;
    case CKRUN_BOOLEAN:
        separate(text);
        if (ckrun_boolean(value, 0)) ckrun_text_raw(text, "true", 4);
        else ckrun_text_raw(text, "false", 5);
        break;
    case CKRUN_NUMBER:
        separate(text);
        ckrun_text_raw(text, bytes, length);
        break;
    case CKRUN_STRING:
        quoted(text, bytes, length, 0);
        break;
    case CKRUN_OBJECT:
        object = 1;
        /* fall through */
    case CKRUN_LIST:
        ckrun_text_open(text, object ? '{' : '[');
        for (const ckrun_json *item = ckrun_first(value); item; item = ckrun_next(item)) {
            if (object) {
                bytes = ckrun_key_bytes(item, &length);
                quoted(text, bytes, length, 0);
                ckrun_text_raw(text, ":", 1);
            }
            ckrun_text_value(text, item);
        }
        ckrun_text_close(text, object ? '}' : ']');
    }
}

void ckrun_text_json(struct ckrun_text *text, const char *json) {
    struct ckrun_document document = {0};
    size_t length = strlen(json);
    char *copy = malloc(length + 1);
    const char *error = copy ? ckrun_document_read(&document, memcpy(copy, json, length + 1), length) : "no memory";
    if (error && !text->error) text->error = error;
    if (!error) ckrun_text_value(text, document.root);
    ckrun_document_free(&document);
}

void ckrun_text_free(struct ckrun_text *text) {
    free(text->bytes);
    *text = (struct ckrun_text){0};
}

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void ckrun_text_base64(struct ckrun_text *text, const void *bytes, size_t length) {
    const unsigned char *at = bytes;
    separate(text);
    ckrun_text_raw(text, "\"", 1);
    for (; length && !text->error; at += 3) {
        size_t here = length < 3 ? length : 3;
        unsigned group = (unsigned)at[0] << 16 | (here > 1 ? (unsigned)at[1] << 8 : 0) | (here > 2 ? at[2] : 0u);
        char out[4] = {alphabet[group >> 18], alphabet[group >> 12 & 63], here > 1 ? alphabet[group >> 6 & 63] : '=',
                       here > 2 ? alphabet[group & 63] : '='};
        ckrun_text_raw(text, out, sizeof out);
        length -= here;
    }
    ckrun_text_raw(text, "\"", 1);
}

int ckrun_base64(const ckrun_json *value, void *bytes, size_t length) {
    size_t written = 0;
    const char *at = ckrun_json_type(value) == CKRUN_STRING ? ckrun_json_bytes(value, &written) : NULL;
    unsigned char *to = bytes;
    if (!at || written != (length + 2) / 3 * 4) return -1;
    while (length) {
        size_t here = length < 3 ? length : 3;
        unsigned group = 0;
        for (size_t i = 0; i < 4; i++) {
            const char *found = at[i] ? strchr(alphabet, at[i]) : NULL;
            if (i > here ? at[i] != '=' : !found) return -1;
            group = group << 6 | (found ? (unsigned)(found - alphabet) : 0);
        }
        /* Bits that belong to no byte. */
        if ((here < 3 && group & 0xff) || (here < 2 && group & 0xff00)) return -1;
        for (size_t i = 0; i < here; i++) to[i] = (unsigned char)(group >> (16 - 8 * i));
        at += 4;
        to += here;
        length -= here;
    }
    return 0;
}
