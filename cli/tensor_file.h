/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensors that lie in files: element types and their conversion, and bounded streamed reading. The npy and
 * safetensors parsers say where a tensor lies (mobai_tensor_view); this reads it.
 */
#ifndef MOBAI_TENSOR_FILE_H
#define MOBAI_TENSOR_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/cli.h"

typedef enum mobai_element {
    MOBAI_ELEMENT_F32 = MOBA_F32,
    MOBAI_ELEMENT_F16 = MOBA_F16,
    MOBAI_ELEMENT_BF16 = MOBA_BF16,
    MOBAI_ELEMENT_I32
} mobai_element;

size_t mobai_element_bytes(mobai_element element);
/** "float32", "float16", "bfloat16", "int32". */
const char *mobai_element_name(mobai_element element);

/** Converts n elements between float types, rounding to nearest even (NaN stays NaN, overflow gives infinity), or
 * copies when the types are equal. int32 converts only to itself. The arrays must not overlap. */
void mobai_convert(void *to, mobai_element to_element, const void *from, mobai_element from_element, size_t n);

#define MOBAI_MAX_RANK 8

/** Where a C-order little-endian tensor lies in a file. */
typedef struct mobai_tensor_view {
    mobai_element element;
    int32_t rank;
    int64_t shape[MOBAI_MAX_RANK];
    uint64_t offset;  /* bytes from the start of the file */
    uint64_t n_bytes; /* exactly the product of shape times the element size; within the file when it was opened */
} mobai_tensor_view;

/** Number of elements. */
uint64_t mobai_view_count(const mobai_tensor_view *view);

/** Product of the shape times `element_bytes`, in 64 bits; false when it does not fit in 2^62. */
bool mobai_shape_bytes(const int64_t *shape, int32_t rank, size_t element_bytes, uint64_t *out);

/** "[3, 4, 5]" into `out`; returns it. */
const char *mobai_shape_text(const mobai_tensor_view *view, char *out, size_t capacity);

/** Opens a regular file for reading; -1 with a sentence (without the path) when that cannot be done. */
int mobai_file_open(const char *path, uint64_t *file_bytes, mobai_message *message);

/** Reads exactly `n` bytes at `offset`. */
bool mobai_file_read(int fd, uint64_t offset, void *out, size_t n, mobai_message *message);

/** Takes `n` converted elements that start at element `first`; false stops the reading. */
typedef bool (*mobai_tensor_sink)(void *user, uint64_t first, const void *data, size_t n);

typedef enum mobai_stream_result { MOBAI_STREAM_OK, MOBAI_STREAM_UNREADABLE, MOBAI_STREAM_STOPPED } mobai_stream_result;

/** Reads the tensor in pieces of a few MiB, converts each to `element`, hands it to `sink`, and shows progress.
 *  MOBAI_STREAM_UNREADABLE sets the message; MOBAI_STREAM_STOPPED means that the sink returned false. */
mobai_stream_result mobai_tensor_stream(int fd, const mobai_tensor_view *view, mobai_element element,
                                        mobai_tensor_sink sink, void *user, mobai_message *message);

/** Reads the whole tensor, converted to `element`, into memory that the caller frees with free(). A tensor without
 *  elements gives a valid pointer too. */
bool mobai_tensor_load(int fd, const mobai_tensor_view *view, mobai_element element, void **out,
                       mobai_message *message);

#endif
