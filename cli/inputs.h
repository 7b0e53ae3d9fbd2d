/* SPDX-License-Identifier: Apache-2.0
 *
 * Host inputs of a benchmark: random by a seed, or from a safetensors file.
 *
 * Random data are standard normal and counter-based: an element depends on the seed, the tensor and its index only,
 * so the same problem and seed give the same bytes on every machine.
 */
#ifndef MOBAI_INPUTS_H
#define MOBAI_INPUTS_H

#include "cli/problem_string.h"

/** Contiguous host tensors of the problem's type: q, dout [total_q][n_q_heads][head_dim]; k, v
 * [total_k][n_kv_heads][head_dim]. */
typedef struct mobai_bench_inputs {
    void *q, *k, *v, *dout;
    void *kconv_weight;   /* [n_kv_heads][head_dim][kconv_width]; NULL without a key convolution */
    int32_t *cu_q, *cu_k; /* [batch + 1]; NULL when all sequences are equally long */
    int64_t total_q, total_k;
} mobai_bench_inputs;

/** Makes random inputs. The key convolution's weights have a deviation of 1/4, so that k' stays near k. */
bool mobai_inputs_random(const mobai_bench_problem *problem, uint64_t seed, mobai_bench_inputs *out,
                         mobai_message *message);

/**
 * Reads q, k, v and, where present, do, kconv_weight, cu_seqlens_q and cu_seqlens_k. `problem` is a partial parse;
 * its shape is filled in from the file, and fields that the text gave must agree with it. Without a type in the text,
 * the file's type of q is taken. `do` and kconv_weight are random by `seed` where the file has none.
 */
bool mobai_inputs_load(const char *path, mobai_bench_problem *problem, uint64_t seed, mobai_bench_inputs *out,
                       mobai_message *message);

void mobai_inputs_free(mobai_bench_inputs *inputs);

/** Fills n elements of `dtype` with normal numbers of the given deviation. `stream` tells tensors apart. */
bool mobai_fill_normal(void *out, moba_dtype dtype, size_t n, uint64_t seed, uint64_t stream, double deviation);

#endif
