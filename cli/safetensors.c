/* SPDX-License-Identifier: Apache-2.0
 *
 * Every entry of the header is checked when the file is opened, so that finding a tensor later cannot meet a lie.
 */
#include "cli/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LENGTH_BYTES 8
#define NAME_SHOWN 64

typedef struct entry {
    const char *name;
    const char *type;
    uint64_t begin, end; /* bytes from the end of the header */
    int64_t shape[MOBAI_MAX_RANK];
    size_t rank; /* shape is filled when rank <= MOBAI_MAX_RANK */
} entry;

struct mobai_safetensors {
    json_t *header; /* owns the strings */
    entry *entries;
    size_t n_entries;
    uint64_t data_offset;
    int fd; /* -1: parsed from memory */
};

/** Bits of one element of a safetensors type; 0 for a type that this version does not know. */
static unsigned type_bits(const char *type) {
    static const struct {
        const char *name;
        unsigned bits;
    } types[] = {{"F64", 64}, {"I64", 64},  {"U64", 64}, {"C64", 64},    {"F32", 32},    {"I32", 32},    {"U32", 32},
                 {"F16", 16}, {"BF16", 16}, {"I16", 16}, {"U16", 16},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8},
                 {"I8", 8},   {"U8", 8},    {"BOOL", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(type, types[i].name) == 0) return types[i].bits;
    }
    return 0;
}

/** Reads shape into `e`; *n_elements is its product. */
static bool parse_shape(const json_t *shape, const char *name, entry *e, uint64_t *n_elements, mobai_message *message) {
    if (!json_is_array(shape)) return mobai_say(message, "has no shape for tensor '%s'", name);
    e->rank = json_array_size(shape);
    uint64_t product = 1;
    bool empty = false;
    for (size_t i = 0; i < e->rank; i++) {
        const json_t *item = json_array_get(shape, i);
        if (!json_is_integer(item) || json_integer_value(item) < 0) {
            return mobai_say(message, "gives tensor '%s' a shape that is not made of counts", name);
        }
        uint64_t dimension = (uint64_t)json_integer_value(item);
        if (i < MOBAI_MAX_RANK) e->shape[i] = (int64_t)dimension;
        if (dimension == 0) {
            empty = true;
        } else if (product > ((uint64_t)1 << 56) / dimension) {
            return mobai_say(message, "gives tensor '%s' a shape of more than 2^56 elements", name);
        } else {
            product *= dimension;
        }
    }
    *n_elements = empty ? 0 : product;
    return true;
}

static bool parse_entry(const json_t *value, uint64_t data_bytes, entry *e, mobai_message *message) {
    char name[NAME_SHOWN];
    mobai_printable(name, sizeof name, e->name, strlen(e->name));
    if (!json_is_object(value))
        return mobai_say(message, "describes tensor '%s' by something that is not an object", name);
    e->type = json_string_value(json_object_get(value, "dtype"));
    if (e->type == NULL) return mobai_say(message, "has no dtype for tensor '%s'", name);
    uint64_t n_elements = 0;
    if (!parse_shape(json_object_get(value, "shape"), name, e, &n_elements, message)) return false;

    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin)) {
        return mobai_say(message,
                         "has no usable data_offsets for tensor '%s'; [begin, end] with begin <= end is needed", name);
    }
    e->begin = (uint64_t)json_integer_value(begin);
    e->end = (uint64_t)json_integer_value(end);
    if (e->end > data_bytes) {
        return mobai_say(message,
                         "places tensor '%s' at bytes %" PRIu64 " to %" PRIu64 " of its data, but holds only %" PRIu64,
                         name, e->begin, e->end, data_bytes);
    }
    unsigned bits = type_bits(e->type);
    if (bits != 0 && (n_elements * bits % 8 != 0 || n_elements * bits / 8 != e->end - e->begin)) {
        return mobai_say(message, "gives tensor '%s' %" PRIu64 " bytes, but its shape and type need %" PRIu64, name,
                         e->end - e->begin, (n_elements * bits + 7) / 8);
    }
    return true;
}

static int by_offset(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/** Tensors must follow each other and fill the data. */
static bool check_cover(entry *entries, size_t n, uint64_t data_bytes, mobai_message *message) {
    uint64_t at = 0;
    char name[NAME_SHOWN];
    if (n > 0) qsort(entries, n, sizeof *entries, by_offset);
    for (size_t i = 0; i < n; i++) {
        if (entries[i].begin != at) {
            return mobai_say(message,
                             "places tensor '%s' at byte %" PRIu64 " of its data, which %s (byte %" PRIu64 " is next)",
                             mobai_printable(name, sizeof name, entries[i].name, strlen(entries[i].name)),
                             entries[i].begin, entries[i].begin < at ? "overlaps another tensor" : "leaves a gap", at);
        }
        at = entries[i].end;
    }
    if (at != data_bytes) {
        return mobai_say(message, "holds %" PRIu64 " bytes of data, but its tensors describe %" PRIu64, data_bytes, at);
    }
    return true;
}

static bool parse_entries(mobai_safetensors *file, uint64_t data_bytes, mobai_message *message) {
    file->entries = calloc(json_object_size(file->header) + 1, sizeof *file->entries);
    if (file->entries == NULL) return mobai_say_memory(message, "cannot be read: out of memory");
    const char *name;
    json_t *value;
    json_object_foreach(file->header, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            if (!json_is_object(value)) return mobai_say(message, "has __metadata__ that is not an object");
            continue;
        }
        entry *e = &file->entries[file->n_entries];
        e->name = name;
        if (!parse_entry(value, data_bytes, e, message)) return false;
        file->n_entries++;
    }
    return check_cover(file->entries, file->n_entries, data_bytes, message);
}

mobai_safetensors *mobai_safetensors_parse(const char *json, size_t n_bytes, uint64_t file_bytes,
                                           mobai_message *message) {
    if (file_bytes < LENGTH_BYTES + (uint64_t)n_bytes) {
        mobai_say(message, "ends inside its header");
        return NULL;
    }
    mobai_safetensors *file = calloc(1, sizeof *file);
    if (file == NULL) {
        mobai_say_memory(message, "cannot be read: out of memory");
        return NULL;
    }
    file->fd = -1;
    file->data_offset = LENGTH_BYTES + n_bytes;
    json_error_t error;
    file->header = json_loadb(json, n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (file->header == NULL) {
        char text[200];
        mobai_say(message, "has a header that is not usable JSON: %s, at byte %d",
                  mobai_printable(text, sizeof text, error.text, strlen(error.text)), error.position);
    } else if (!json_is_object(file->header)) {
        mobai_say(message, "has a header that is not a JSON object");
    } else if (parse_entries(file, file_bytes - file->data_offset, message)) {
        return file;
    }
    mobai_safetensors_close(file);
    return NULL;
}

static mobai_safetensors *read_and_parse(int fd, uint64_t file_bytes, mobai_message *message) {
    uint8_t field[LENGTH_BYTES];
    if (file_bytes < LENGTH_BYTES) {
        mobai_say(message, "is not a safetensors file: it has only %" PRIu64 " bytes", file_bytes);
        return NULL;
    }
    if (!mobai_file_read(fd, 0, field, LENGTH_BYTES, message)) return NULL;
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        length = length << 8 | field[i];
    if (length > MOBAI_SAFETENSORS_MAX_HEADER || length > file_bytes - LENGTH_BYTES) {
        mobai_say(message,
                  "is not a usable safetensors file: it claims a header of %" PRIu64 " bytes, but has %" PRIu64
                  " after the length, and at most %u are read",
                  length, file_bytes - LENGTH_BYTES, MOBAI_SAFETENSORS_MAX_HEADER);
        return NULL;
    }
    char *json = malloc((size_t)length + 1);
    mobai_safetensors *file = NULL;
    if (json == NULL) {
        mobai_say_memory(message, "cannot be read: out of memory for a header of %" PRIu64 " bytes", length);
    } else if (mobai_file_read(fd, LENGTH_BYTES, json, (size_t)length, message)) {
        file = mobai_safetensors_parse(json, (size_t)length, file_bytes, message);
    }
    free(json);
    return file;
}

mobai_safetensors *mobai_safetensors_open(const char *path, mobai_message *message) {
    uint64_t file_bytes;
    int fd = mobai_file_open(path, &file_bytes, message);
    if (fd < 0) return NULL;
    mobai_safetensors *file = read_and_parse(fd, file_bytes, message);
    if (file == NULL) {
        close(fd);
    } else {
        file->fd = fd;
    }
    return file;
}

void mobai_safetensors_close(mobai_safetensors *file) {
    if (file == NULL) return;
    if (file->fd >= 0) close(file->fd);
    json_decref(file->header);
    free(file->entries);
    free(file);
}

int mobai_safetensors_fd(const mobai_safetensors *file) { return file->fd; }

static const char *const type_names[] = {[MOBAI_ELEMENT_F32] = "F32",
                                         [MOBAI_ELEMENT_F16] = "F16",
                                         [MOBAI_ELEMENT_BF16] = "BF16",
                                         [MOBAI_ELEMENT_I32] = "I32"};

mobai_find_result mobai_safetensors_find(const mobai_safetensors *file, const char *name, mobai_tensor_view *out,
                                         mobai_message *message) {
    const entry *e = NULL;
    for (size_t i = 0; i < file->n_entries && e == NULL; i++) {
        if (strcmp(file->entries[i].name, name) == 0) e = &file->entries[i];
    }
    if (e == NULL) return MOBAI_FIND_NONE;
    mobai_tensor_view view = {.offset = file->data_offset + e->begin, .n_bytes = e->end - e->begin};
    int element = 0;
    while (element <= MOBAI_ELEMENT_I32 && strcmp(e->type, type_names[element]) != 0)
        element++;
    if (element > MOBAI_ELEMENT_I32) {
        char type[32];
        mobai_say(message, "has tensor '%s' of type %s; F32, F16, BF16 and I32 are read", name,
                  mobai_printable(type, sizeof type, e->type, strlen(e->type)));
        return MOBAI_FIND_REFUSED;
    }
    if (e->rank > MOBAI_MAX_RANK) {
        mobai_say(message, "has tensor '%s' of %zu dimensions; at most %d are read", name, e->rank, MOBAI_MAX_RANK);
        return MOBAI_FIND_REFUSED;
    }
    view.element = (mobai_element)element;
    view.rank = (int32_t)e->rank;
    memcpy(view.shape, e->shape, sizeof view.shape);
    *out = view;
    return MOBAI_FIND_OK;
}

/** The header entry of one tensor whose data begins at `begin`; NULL when out of memory. */
static json_t *describe(const mobai_tensor_view *view, uint64_t begin) {
    json_t *shape = json_array();
    for (int32_t i = 0; i < view->rank; i++)
        json_array_append_new(shape, json_integer(view->shape[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", type_names[view->element], "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)(begin + view->n_bytes));
}

uint8_t *mobai_safetensors_header(mobai_named_tensor *tensors, size_t n, size_t *n_bytes) {
    json_t *header = json_object();
    uint64_t begin = 0;
    bool complete = header != NULL;
    for (size_t i = 0; i < n; i++) {
        mobai_tensor_view *view = &tensors[i].view;
        complete = complete &&
                   mobai_shape_bytes(view->shape, view->rank, mobai_element_bytes(view->element), &view->n_bytes) &&
                   json_object_set_new(header, tensors[i].name, describe(view, begin)) == 0;
        view->offset = begin;
        begin += view->n_bytes;
    }
    char *json = complete ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    if (json == NULL) return NULL;

    /* Spaces pad the header so that the data begins at a multiple of 8. */
    size_t length = strlen(json), padded = (length + 7) / 8 * 8;
    uint8_t *bytes = malloc(LENGTH_BYTES + padded);
    if (bytes != NULL) {
        for (int i = 0; i < LENGTH_BYTES; i++)
            bytes[i] = (uint8_t)((uint64_t)padded >> (8 * i));
        memcpy(bytes + LENGTH_BYTES, json, length);
        memset(bytes + LENGTH_BYTES + length, ' ', padded - length);
        for (size_t i = 0; i < n; i++)
            tensors[i].view.offset += LENGTH_BYTES + padded;
        *n_bytes = LENGTH_BYTES + padded;
    }
    free(json);
    return bytes;
}
