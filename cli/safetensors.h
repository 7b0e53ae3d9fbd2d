/* SPDX-License-Identifier: Apache-2.0
 *
 * The safetensors format: an 8-byte little-endian header length, a JSON header, then the bytes of the tensors, which
 * cover the rest of the file without gaps or overlaps. F32, F16, BF16 and I32 are read; other types may be present.
 */
#ifndef MOBAI_SAFETENSORS_H
#define MOBAI_SAFETENSORS_H

#include "cli/tensor_file.h"

/** Longest header that is read, the same limit as other readers have. */
#define MOBAI_SAFETENSORS_MAX_HEADER 100000000u

typedef struct mobai_safetensors mobai_safetensors;

/** Parses the `n_bytes` bytes of JSON that follow the length field of a file of `file_bytes` bytes. NULL with a
 * sentence when it is refused. */
mobai_safetensors *mobai_safetensors_parse(const char *json, size_t n_bytes, uint64_t file_bytes,
                                           mobai_message *message);

/** Opens a file; NULL with a sentence (without the path) when it cannot be read. */
mobai_safetensors *mobai_safetensors_open(const char *path, mobai_message *message);

/** Frees and, when it was opened from a path, closes it; NULL is allowed. */
void mobai_safetensors_close(mobai_safetensors *file);

/** File descriptor of an opened file. */
int mobai_safetensors_fd(const mobai_safetensors *file);

typedef enum mobai_find_result { MOBAI_FIND_OK, MOBAI_FIND_NONE, MOBAI_FIND_REFUSED } mobai_find_result;

/** Finds a tensor by name. MOBAI_FIND_REFUSED, with a sentence, when its type or rank is not one of those read here. */
mobai_find_result mobai_safetensors_find(const mobai_safetensors *file, const char *name, mobai_tensor_view *out,
                                         mobai_message *message);

/** A tensor to be written. */
typedef struct mobai_named_tensor {
    const char *name;
    mobai_tensor_view view; /* element, rank and shape are given; offset and n_bytes are set by the header function */
} mobai_named_tensor;

/** Makes length field and header for `n` tensors, and sets each view's offset in the file and n_bytes. Tensors lie in
 *  the order given. The caller frees the bytes with free(); NULL when out of memory. */
uint8_t *mobai_safetensors_header(mobai_named_tensor *tensors, size_t n, size_t *n_bytes);

#endif
