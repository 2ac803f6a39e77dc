/* Reads lines, writes each back as the kit understands it, or "refused"; for ../python/test_kits.py. */
#define _GNU_SOURCE
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
    char *line = NULL;
    size_t room = 0;
    for (ssize_t length; (length = getline(&line, &room, stdin)) > 0;) {
        struct ckrun_document document;
        struct ckrun_text text = {0};
        /* Not a byte more than it has, so that a look past its end is noticed. */
        char *exact = malloc((size_t)length);
        if (!exact) return 1;
        memcpy(exact, line, (size_t)length);
        const char *error = ckrun_document_read(&document, exact, (size_t)length - 1);
        if (!error) ckrun_text_value(&text, document.root);
        if (error) puts("refused");
        else if (text.error) puts("read, but cannot be written");
        else printf("%.*s\n", (int)text.length, text.bytes);
        ckrun_text_free(&text);
        ckrun_document_free(&document);
    }
    free(line);
    return 0;
}
