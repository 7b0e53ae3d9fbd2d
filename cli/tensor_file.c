/* SPDX-License-Identifier: Apache-2.0
 *
 * Conversion between element types, and bounded streamed reading of tensors.
 */
#include "cli/tensor_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/progress.h"
#include "core/convert.h"

/* Elements read at once: large enough for full disk speed, small beside any tensor that matters. */
#define PIECE_ELEMENTS ((size_t)1 << 20)

size_t mobai_element_bytes(mobai_element element) {
    return element == MOBAI_ELEMENT_F16 || element == MOBAI_ELEMENT_BF16 ? 2 : 4;
}

const char *mobai_element_name(mobai_element element) {
    static const char *const names[] = {[MOBAI_ELEMENT_F32] = "float32",
                                        [MOBAI_ELEMENT_F16] = "float16",
                                        [MOBAI_ELEMENT_BF16] = "bfloat16",
                                        [MOBAI_ELEMENT_I32] = "int32"};
    return names[element];
}

static float load_f32(const void *from, mobai_element element, size_t i) {
    if (element == MOBAI_ELEMENT_F32) {
        float value;
        memcpy(&value, (const char *)from + 4 * i, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, (const char *)from + 2 * i, 2);
    return element == MOBAI_ELEMENT_F16 ? mobai_f32_from_f16(half) : mobai_f32_from_bf16(half);
}

void mobai_convert(void *to, mobai_element to_element, const void *from, mobai_element from_element, size_t n) {
    if (to_element == from_element) {
        memcpy(to, from, n * mobai_element_bytes(to_element));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float value = load_f32(from, from_element, i);
        if (to_element == MOBAI_ELEMENT_F32) {
            memcpy((char *)to + 4 * i, &value, 4);
        } else {
            uint16_t half = to_element == MOBAI_ELEMENT_F16 ? mobai_f16_from_f32(value) : mobai_bf16_from_f32(value);
            memcpy((char *)to + 2 * i, &half, 2);
        }
    }
}

uint64_t mobai_view_count(const mobai_tensor_view *view) { return view->n_bytes / mobai_element_bytes(view->element); }

bool mobai_shape_bytes(const int64_t *shape, int32_t rank, size_t element_bytes, uint64_t *out) {
    const uint64_t limit = (uint64_t)1 << 62;
    uint64_t bytes = element_bytes;
    bool empty = false;
    for (int32_t i = 0; i < rank; i++) {
        if (shape[i] < 0) return false;
        if (shape[i] == 0) {
            empty = true;
        } else if (bytes > limit / (uint64_t)shape[i]) {
            return false;
        } else {
            bytes *= (uint64_t)shape[i];
        }
    }
    *out = empty ? 0 : bytes;
    return true;
}

const char *mobai_shape_text(const mobai_tensor_view *view, char *out, size_t capacity) {
    size_t used = (size_t)snprintf(out, capacity, "[");
    for (int32_t i = 0; i < view->rank && used < capacity; i++) {
        used += (size_t)snprintf(out + used, capacity - used, "%s%" PRId64, i ? ", " : "", view->shape[i]);
    }
    if (used < capacity) snprintf(out + used, capacity - used, "]");
    return out;
}

int mobai_file_open(const char *path, uint64_t *file_bytes, mobai_message *message) {
    /* O_NONBLOCK: opening a named pipe must end in a sentence, not in waiting. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        mobai_say(message, "cannot be opened: %s", strerror(errno));
        return -1;
    }
    struct stat status;
    if (fstat(fd, &status) != 0) {
        mobai_say(message, "cannot be examined: %s", strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
        mobai_say(message, "is %s; a regular file is needed",
                  S_ISDIR(status.st_mode) ? "a directory" : "a device or pipe");
    } else {
        *file_bytes = (uint64_t)status.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

bool mobai_file_read(int fd, uint64_t offset, void *out, size_t n, mobai_message *message) {
    size_t done = 0;
    while (done < n) {
        ssize_t got = pread(fd, (char *)out + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return mobai_say(message, "cannot be read at byte %" PRIu64 ": %s", offset + done, strerror(errno));
        if (got == 0) return mobai_say(message, "ends at byte %" PRIu64 ", before the data does", offset + done);
        done += (size_t)got;
    }
    return true;
}

mobai_stream_result mobai_tensor_stream(int fd, const mobai_tensor_view *view, mobai_element element,
                                        mobai_tensor_sink sink, void *user, mobai_message *message) {
    const uint64_t count = mobai_view_count(view);
    const size_t from_bytes = mobai_element_bytes(view->element), to_bytes = mobai_element_bytes(element);
    const size_t piece = count < PIECE_ELEMENTS ? (size_t)count : PIECE_ELEMENTS;
    if (count == 0) return MOBAI_STREAM_OK;
    const bool converts = element != view->element;
    char *raw = malloc(piece * from_bytes), *converted = converts ? malloc(piece * to_bytes) : raw;
    mobai_stream_result result = MOBAI_STREAM_OK;
    if (raw == NULL || converted == NULL) {
        mobai_say_memory(message, "cannot be read: out of memory for a buffer of %zu bytes",
                         piece * (from_bytes + to_bytes));
        result = MOBAI_STREAM_UNREADABLE;
    }
    for (uint64_t first = 0; first < count && result == MOBAI_STREAM_OK; first += piece) {
        size_t n = count - first < piece ? (size_t)(count - first) : piece;
        if (!mobai_file_read(fd, view->offset + first * from_bytes, raw, n * from_bytes, message)) {
            result = MOBAI_STREAM_UNREADABLE;
            break;
        }
        if (converts) mobai_convert(converted, element, raw, view->element, n);
        if (!sink(user, first, converted, n)) result = MOBAI_STREAM_STOPPED;
        mobai_progress_at(first + n, count);
    }
    free(raw);
    if (converts) free(converted);
    return result;
}

typedef struct load_target {
    char *data;
    size_t element_bytes;
} load_target;

static bool load_piece(void *user, uint64_t first, const void *data, size_t n) {
    const load_target *target = user;
    memcpy(target->data + first * target->element_bytes, data, n * target->element_bytes);
    return true;
}

bool mobai_tensor_load(int fd, const mobai_tensor_view *view, mobai_element element, void **out,
                       mobai_message *message) {
    load_target target = {.element_bytes = mobai_element_bytes(element)};
    uint64_t bytes = mobai_view_count(view) * target.element_bytes;
    target.data = bytes < SIZE_MAX ? malloc(bytes ? (size_t)bytes : 1) : NULL;
    if (target.data == NULL)
        return mobai_say_memory(message, "cannot be read: out of memory for %" PRIu64 " bytes", bytes);
    if (mobai_tensor_stream(fd, view, element, load_piece, &target, message) != MOBAI_STREAM_OK) {
        free(target.data);
        return false;
    }
    *out = target.data;
    return true;
}
