/* SPDX-License-Identifier: Apache-2.0
 *
 * NumPy's .npy format, versions 1, 2 and 3: float32, float16 and int32, C order, little-endian.
 */
#ifndef MOBAI_NPY_H
#define MOBAI_NPY_H

#include "cli/tensor_file.h"

/** Longest header that is read; NumPy itself refuses more than 10,000 bytes by default. */
#define MOBAI_NPY_MAX_HEADER 65536

/**
 * Parses the first `n_bytes` bytes of a file of `file_bytes` bytes. `n_bytes` must hold the whole header or
 * MOBAI_NPY_MAX_HEADER + 12 bytes. The view is checked against `file_bytes`. False with a sentence when it is refused.
 */
bool mobai_npy_parse(const uint8_t *bytes, size_t n_bytes, uint64_t file_bytes, mobai_tensor_view *out,
                     mobai_message *message);

/** Reads and parses the header of an open file. */
bool mobai_npy_read_header(int fd, uint64_t file_bytes, mobai_tensor_view *out, mobai_message *message);

/** Bytes that mobai_npy_header() may write. */
#define MOBAI_NPY_HEADER_CAPACITY 384

/** Writes a version 1 header for a float32, float16 or int32 tensor; returns its length, a multiple of 64. Offset and
 *  n_bytes of `view` are not read. */
size_t mobai_npy_header(const mobai_tensor_view *view, uint8_t out[MOBAI_NPY_HEADER_CAPACITY]);

#endif
