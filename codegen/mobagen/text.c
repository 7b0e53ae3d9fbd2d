/* SPDX-License-Identifier: Apache-2.0
 *
 * Text buffers, files, and the one way mobagen reports an error.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

_Noreturn void fail_at(const char *path, int line, const char *format, ...) {
    va_list args;
    if (line > 0)
        fprintf(stderr, "%s:%d: ", path, line);
    else
        fprintf(stderr, "%s: ", path);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static void reserve(text *t, size_t more) {
    if (t->length + more + 1 <= t->capacity) return;
    size_t capacity = t->capacity ? t->capacity : 4096;
    while (capacity < t->length + more + 1)
        capacity *= 2;
    char *data = realloc(t->data, capacity);
    if (!data) fail_at("mobagen", 0, "no memory for %zu bytes of text", capacity);
    t->data = data;
    t->capacity = capacity;
}

void text_add_bytes(text *t, const char *data, size_t length) {
    reserve(t, length);
    memcpy(t->data + t->length, data, length);
    t->length += length;
    t->data[t->length] = '\0';
}

void text_add(text *t, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    reserve(t, (size_t)length);
    vsnprintf(t->data + t->length, (size_t)length + 1, format, again);
    va_end(again);
    t->length += (size_t)length;
}

static char *read_whole(FILE *f) {
    text t = {0};
    char chunk[4096];
    size_t n;
    while ((n = fread(chunk, 1, sizeof chunk, f)) > 0)
        text_add_bytes(&t, chunk, n);
    if (!t.data) text_add_bytes(&t, "", 0);
    return t.data;
}

char *read_file(const char *path, const char *why_path, int why_line) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_at(why_path, why_line, "cannot read %s: %s", path, strerror(errno));
    char *data = read_whole(f);
    if (ferror(f)) fail_at(why_path, why_line, "cannot read %s: %s", path, strerror(errno));
    fclose(f);
    return data;
}

void write_file(const char *path, const text *t) {
    FILE *old = fopen(path, "rb");
    if (old) {
        char *data = read_whole(old);
        fclose(old);
        bool same = strcmp(data, t->data ? t->data : "") == 0;
        free(data);
        if (same) return;
    }
    FILE *f = fopen(path, "wb");
    if (!f) fail_at(path, 0, "cannot write: %s", strerror(errno));
    bool failed = fwrite(t->data ? t->data : "", 1, t->length, f) != t->length;
    if (fclose(f) != 0 || failed) fail_at(path, 0, "cannot write: %s", strerror(errno));
}
