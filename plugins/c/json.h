/* JSON, read strictly and written compactly. Inside the kit only. */
#ifndef CKRUN_JSON_H
#define CKRUN_JSON_H

#include "ckrun_plugin.h"

/* A text that grows. After the first error it stays as it is, so that errors need a look at the end only. */
struct ckrun_text {
    char *bytes;
    size_t length, room;
    const char *error; /* a sentence, or NULL */
};

/* One message: its text, which the strings of its values lie in, and the values. */
struct ckrun_document {
    char *text;
    struct ckrun_block *blocks;
    ckrun_json *root;
};

/* Reads `length` bytes, which must be one value and nothing else. The document owns the text
 * (from malloc) then, also on failure. Returns NULL or why not. */
const char *ckrun_document_read(struct ckrun_document *document, char *text, size_t length);
void ckrun_document_free(struct ckrun_document *document);
/* Memory that lives as long as the document, or NULL. */
void *ckrun_document_alloc(struct ckrun_document *document, size_t size);

/* The bytes of a string, which may have zero bytes in it, or of a number as it was written; NULL if it is neither. */
const char *ckrun_json_bytes(const ckrun_json *value, size_t *length);
/* Likewise the name of a member of an object. */
const char *ckrun_key_bytes(const ckrun_json *member, size_t *length);
/* The bytes of the UTF-8 sequence at `at`, or 0 if there is none. */
size_t ckrun_utf8(const char *at, const char *end);

/* '{', '[' with the comma that may be needed before them, and '}', ']'. */
void ckrun_text_open(struct ckrun_text *text, char bracket);
void ckrun_text_close(struct ckrun_text *text, char bracket);
void ckrun_text_key(struct ckrun_text *text, const char *key);
void ckrun_text_string(struct ckrun_text *text, const char *string);
/* For sentences: bytes that are no UTF-8 become question marks instead of an error. */
void ckrun_text_sentence(struct ckrun_text *text, const char *string);
void ckrun_text_integer(struct ckrun_text *text, int64_t number);
void ckrun_text_seconds(struct ckrun_text *text, double seconds);
void ckrun_text_hexadecimal(struct ckrun_text *text, uint64_t number);
void ckrun_text_base64(struct ckrun_text *text, const void *bytes, size_t length);
/* A value that was read. */
void ckrun_text_value(struct ckrun_text *text, const ckrun_json *value);
/* A value that the plugin's author has written as JSON. */
void ckrun_text_json(struct ckrun_text *text, const char *json);
/* Without looking at it. */
void ckrun_text_raw(struct ckrun_text *text, const char *bytes, size_t length);
void ckrun_text_free(struct ckrun_text *text);

/* Decodes into exactly `length` bytes: 0, or -1 if it is no base64 of that length. */
int ckrun_base64(const ckrun_json *value, void *bytes, size_t length);

#endif
