/* Reads JSON (RFC 8259). A message comes from another process, and perhaps from one that means harm: nothing is read past
 * its end, nesting is limited, and what is not quite JSON is refused. */
#include "json.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH = 64, BLOCK = 8192 };

struct ckrun_json {
    ckrun_type type;
    int truth;       /* of a boolean; of a number: whether it is an integer below 2^53 */
    const char *key; /* of a member of an object */
    size_t key_length;
    const char *text; /* of a string, and of a number as it was written */
    size_t length;
    union {
        int64_t integer;
        ckrun_json *first;
    } is;
    double number;
    ckrun_json *next;
};

struct ckrun_block {
    struct ckrun_block *next;
    size_t used, size;
    /* Whatever lies here needs no more alignment than this. */
    union {
        int64_t integer;
        double number;
        void *pointer;
    } room[];
};

struct reader {
    char *at, *end;
    struct ckrun_document *document;
    const char *error;
};

void *ckrun_document_alloc(struct ckrun_document *document, size_t size) {
    struct ckrun_block *block = document->blocks;
    if (size > SIZE_MAX / 2) return NULL;
    size = (size + sizeof block->room[0] - 1) / sizeof block->room[0] * sizeof block->room[0];
    if (!block || block->size - block->used < size) {
        size_t least = size > BLOCK ? size : BLOCK;
        block = malloc(sizeof *block + least);
        if (!block) return NULL;
        *block = (struct ckrun_block){.next = document->blocks, .size = least};
        document->blocks = block;
    }
    void *made = (char *)block->room + block->used;
    block->used += size;
    return made;
}

void ckrun_document_free(struct ckrun_document *document) {
    while (document->blocks) {
        struct ckrun_block *next = document->blocks->next;
        free(document->blocks);
        document->blocks = next;
    }
    free(document->text);
    *document = (struct ckrun_document){0};
}

static int fail(struct reader *r, const char *why) {
    if (!r->error) r->error = why;
    return -1;
}

static void skip_space(struct reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

static int take(struct reader *r, char c) {
    if (r->at == r->end || *r->at != c) return 0;
    r->at++;
    return 1;
}

/* The bytes of the UTF-8 sequence at `at`, or 0: no overlong forms, no surrogates, nothing above U+10FFFF. */
size_t ckrun_utf8(const char *at, const char *end) {
    const unsigned char *s = (const unsigned char *)at;
    size_t left = (size_t)(end - at);
    size_t size = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (size > left) return 0;
    for (size_t i = 1; i < size; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f)) return 0;
    if ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f)) return 0;
    return size;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static int hex4(struct reader *r, unsigned *unit) {
    *unit = 0;
    for (int i = 0; i < 4; i++) {
        if (r->at == r->end) return fail(r, "it ends in an escape");
        int digit = hex_digit(*r->at++);
        if (digit < 0) return fail(r, "an escape has no four hexadecimal digits");
        *unit = *unit << 4 | (unsigned)digit;
    }
    return 0;
}

/* A \u escape, whose 'u' has been read, as UTF-8 at `*to`. It is never longer than its escape. */
static int unicode(struct reader *r, char **to) {
    unsigned code, low;
    if (hex4(r, &code)) return -1;
    if (code >= 0xdc00 && code <= 0xdfff) return fail(r, "half a surrogate pair");
    if (code >= 0xd800 && code <= 0xdbff) {
        if (!take(r, '\\') || !take(r, 'u')) return fail(r, "half a surrogate pair");
        if (hex4(r, &low)) return -1;
        if (low < 0xdc00 || low > 0xdfff) return fail(r, "half a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    unsigned char *out = (unsigned char *)*to;
    if (code < 0x80) {
        *out++ = (unsigned char)code;
    } else if (code < 0x800) {
        *out++ = (unsigned char)(0xc0 | code >> 6);
        *out++ = (unsigned char)(0x80 | (code & 0x3f));
    } else {
        if (code < 0x10000) {
            *out++ = (unsigned char)(0xe0 | code >> 12);
        } else {
            *out++ = (unsigned char)(0xf0 | code >> 18);
            *out++ = (unsigned char)(0x80 | (code >> 12 & 0x3f));
        }
        *out++ = (unsigned char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (unsigned char)(0x80 | (code & 0x3f));
    }
    *to = (char *)out;
    return 0;
}

/* A string, whose first quote has been read. It is unescaped in its place, and ends with a zero byte instead of a quote. */
static int string(struct reader *r, const char **text, size_t *length) {
    char *to = r->at;
    *text = to;
    for (;;) {
        if (r->at == r->end) return fail(r, "it ends in a string");
        unsigned char c = (unsigned char)*r->at;
        if (c == '"') {
            r->at++;
            *length = (size_t)(to - *text);
            *to = '\0';
            return 0;
        }
        if (c < 0x20) return fail(r, "a control character in a string");
        if (c != '\\') {
            size_t size = ckrun_utf8(r->at, r->end);
            if (!size) return fail(r, "a string is not UTF-8");
            memmove(to, r->at, size);
            to += size;
            r->at += size;
            continue;
        }
        if (++r->at == r->end) return fail(r, "it ends in an escape");
        char escaped = *r->at++;
        static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
        const char *known = escaped ? strchr(from, escaped) : NULL;
        if (known) {
            *to++ = into[known - from];
        } else if (escaped != 'u') {
            return fail(r, "an escape that does not exist");
        } else if (unicode(r, &to)) {
            return -1;
        }
    }
}

static size_t digits(struct reader *r) {
    char *start = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9') r->at++;
    return (size_t)(r->at - start);
}

/* A number. strtod() is not asked: it would look at the locale, which is the plugin's. */
static int number(struct reader *r, ckrun_json *value) {
    char *start = r->at;
    int negative = take(r, '-'), whole = 1;
    long exponent = 0, scale = 0;
    double mantissa = 0;
    char *first = r->at;
    size_t count = digits(r);
    if (!count || (count > 1 && *first == '0')) return fail(r, "a number that is none");
    if (take(r, '.')) {
        whole = 0;
        size_t places = digits(r);
        if (!places) return fail(r, "a number that is none");
        scale = -(long)places;
    }
    for (char *at = first; at < r->at; at++)
        if (*at != '.') mantissa = mantissa * 10 + (*at - '0');
    if (take(r, 'e') || take(r, 'E')) {
        whole = 0;
        int down = take(r, '-');
        if (!down) take(r, '+');
        char *at = r->at;
        if (!digits(r)) return fail(r, "a number that is none");
        for (; at < r->at && exponent < 10000000; at++) exponent = exponent * 10 + (*at - '0');
        if (down) exponent = -exponent;
    }
    exponent += scale;
    for (; exponent > 0 && mantissa > 0 && mantissa <= DBL_MAX; exponent--) mantissa *= 10;
    double divisor = 1;
    for (; exponent < 0 && mantissa > 0; exponent++) {
        divisor *= 10;
        /* Up to 10^22 a double is exact; one division by it is as near as can be. */
        if (divisor >= 1e22 || exponent == -1) {
            mantissa /= divisor;
            divisor = 1;
        }
    }
    if (mantissa > DBL_MAX) return fail(r, "a number that is too large");
    value->type = CKRUN_NUMBER;
    value->number = negative ? -mantissa : mantissa;
    value->text = start;
    value->length = (size_t)(r->at - start);
    value->truth = whole && mantissa < 9007199254740992.0;
    value->is.integer = value->truth ? (int64_t)value->number : 0;
    return 0;
}

static ckrun_json *read_value(struct reader *r, int depth);

/* The items of a list or the members of an object, up to the closing bracket. */
static int items(struct reader *r, ckrun_json *value, char close, int depth) {
    ckrun_json **last = &value->is.first;
    value->type = close == ']' ? CKRUN_LIST : CKRUN_OBJECT;
    if (depth == DEPTH) return fail(r, "it nests too deeply");
    skip_space(r);
    if (take(r, close)) return 0;
    for (;;) {
        const char *key = NULL;
        size_t key_length = 0;
        skip_space(r);
        if (close == '}') {
            if (!take(r, '"')) return fail(r, "a member has no name");
            if (string(r, &key, &key_length)) return -1;
            skip_space(r);
            if (!take(r, ':')) return fail(r, "a member has no value");
        }
        ckrun_json *item = read_value(r, depth + 1);
        if (!item) return -1;
        item->key = key;
        item->key_length = key_length;
        *last = item;
        last = &item->next;
        skip_space(r);
        if (take(r, close)) return 0;
        if (!take(r, ',')) return fail(r, "a comma or a closing bracket is missing");
    }
}

static int word(struct reader *r, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, word, length)) return fail(r, "a value that is none");
    r->at += length;
    return 0;
}

static ckrun_json *read_value(struct reader *r, int depth) {
    skip_space(r);
    ckrun_json *value = ckrun_document_alloc(r->document, sizeof *value);
    int bad = 0;
    if (!value || r->at == r->end) {
        fail(r, value ? "it ends too early" : "no memory");
        return NULL;
    }
    *value = (ckrun_json){.type = CKRUN_NULL};
    switch (*r->at) {
    case '{':
    case '[':
        bad = items(r, value, *r->at++ == '[' ? ']' : '}', depth);
        break;
    case '"':
        r->at++;
        value->type = CKRUN_STRING;
        bad = string(r, &value->text, &value->length);
        break;
    case 't':
    case 'f':
        value->type = CKRUN_BOOLEAN;
        value->truth = *r->at == 't';
        bad = word(r, value->truth ? "true" : "false");
        break;
    case 'n':
        bad = word(r, "null");
        break;
    default:
        bad = number(r, value);
    }
    return bad ? NULL : value;
}

const char *ckrun_document_read(struct ckrun_document *document, char *text, size_t length) {
    struct reader r = {.at = text, .end = text + length, .document = document};
    *document = (struct ckrun_document){.text = text};
    document->root = read_value(&r, 0);
    skip_space(&r);
    if (document->root && r.at != r.end) fail(&r, "something stands after its end");
    return r.error;
}

ckrun_type ckrun_json_type(const ckrun_json *value) { return value ? value->type : CKRUN_ABSENT; }

/* Of members of the same name the last one counts, as with most readers. */
const ckrun_json *ckrun_member(const ckrun_json *object, const char *name) {
    const ckrun_json *found = NULL;
    size_t length = strlen(name);
    if (ckrun_json_type(object) != CKRUN_OBJECT) return NULL;
    for (const ckrun_json *member = object->is.first; member; member = member->next)
        if (member->key_length == length && !memcmp(member->key, name, length)) found = member;
    return found;
}

const ckrun_json *ckrun_first(const ckrun_json *list) {
    ckrun_type type = ckrun_json_type(list);
    return type == CKRUN_LIST || type == CKRUN_OBJECT ? list->is.first : NULL;
}

const ckrun_json *ckrun_next(const ckrun_json *item) { return item ? item->next : NULL; }

/* A string with a zero byte in it would be taken for a shorter one. */
static const char *whole(const char *text, size_t length) { return text && !memchr(text, 0, length) ? text : NULL; }

const char *ckrun_key(const ckrun_json *member) { return member ? whole(member->key, member->key_length) : NULL; }

const char *ckrun_string(const ckrun_json *value) {
    return ckrun_json_type(value) == CKRUN_STRING ? whole(value->text, value->length) : NULL;
}

const char *ckrun_json_bytes(const ckrun_json *value, size_t *length) {
    if (ckrun_json_type(value) != CKRUN_STRING && ckrun_json_type(value) != CKRUN_NUMBER) return NULL;
    *length = value->length;
    return value->text;
}

const char *ckrun_key_bytes(const ckrun_json *member, size_t *length) {
    *length = member->key_length;
    return member->key;
}

int64_t ckrun_integer(const ckrun_json *value, int64_t otherwise) {
    return ckrun_json_type(value) == CKRUN_NUMBER && value->truth ? value->is.integer : otherwise;
}

double ckrun_number(const ckrun_json *value, double otherwise) {
    return ckrun_json_type(value) == CKRUN_NUMBER ? value->number : otherwise;
}

int ckrun_boolean(const ckrun_json *value, int otherwise) {
    return ckrun_json_type(value) == CKRUN_BOOLEAN ? value->truth : otherwise;
}

int ckrun_hexadecimal(const ckrun_json *value, uint64_t *number) {
    const char *at = ckrun_string(value);
    if (!at || at[0] != '0' || (at[1] != 'x' && at[1] != 'X')) return -1;
    size_t length = strlen(at += 2);
    uint64_t sum = 0;
    if (!length || length > 16) return -1;
    for (; *at; at++) {
        int digit = hex_digit(*at);
        if (digit < 0) return -1;
        sum = sum << 4 | (unsigned)digit;
    }
    *number = sum;
    return 0;
}
