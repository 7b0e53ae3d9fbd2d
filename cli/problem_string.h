/* SPDX-License-Identifier: Apache-2.0
 *
 * Problem strings, the one-line form of a problem that `moba bench`, `moba explain` and failure messages use:
 *
 *   b2q8192k8192h16g16d128B128t8c,bf16,sink=1,local=2,kconv=3,dense,det,inference,lens=513+0+129/600+5+129
 *
 *   b  sequences                  g  key-value heads       c / n  causal, non-causal
 *   q  query rows of a sequence   d  head_dim
 *   k  keys of a sequence         B  block_size
 *   h  query heads                t  top_k
 *
 * Each field occurs once, in any order, with c or n last; then f32, f16 or bf16 and the options, in any order, after
 * commas. `lens` gives the lengths of every sequence, of the queries, then (after '/') of the keys; without '/' both
 * are the same. With lens, b is the number of lengths and q and k are the longest ones: they may be left out, and are
 * refused when they disagree. Without lens, b left out is 1, and q or k left out is the other one. g left out is h.
 * With dense, B and t may be left out. With inference there is no backward.
 */
#ifndef MOBAI_PROBLEM_STRING_H
#define MOBAI_PROBLEM_STRING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/cli.h"

/** Fields that the text itself gave, for callers that take the others from a file. */
enum {
    MOBAI_GIVEN_BATCH = 1 << 0,
    MOBAI_GIVEN_Q = 1 << 1,
    MOBAI_GIVEN_K = 1 << 2,
    MOBAI_GIVEN_Q_HEADS = 1 << 3,
    MOBAI_GIVEN_KV_HEADS = 1 << 4,
    MOBAI_GIVEN_HEAD_DIM = 1 << 5,
    MOBAI_GIVEN_BLOCK_SIZE = 1 << 6,
    MOBAI_GIVEN_TOP_K = 1 << 7,
    MOBAI_GIVEN_CAUSAL = 1 << 8,
    MOBAI_GIVEN_DTYPE = 1 << 9,
    MOBAI_GIVEN_LENS = 1 << 10
};

/** A problem with the shape of one run. */
typedef struct mobai_bench_problem {
    int64_t batch;
    int64_t seqlen_q, seqlen_k; /* of each sequence, or the longest ones with lens */
    int32_t n_q_heads, n_kv_heads, head_dim, block_size, top_k;
    int32_t n_sink_blocks, n_local_blocks, kconv_width;
    bool causal, dense, deterministic, inference;
    moba_dtype dtype;
    int64_t *lens_q, *lens_k; /* batch lengths each, owned; NULL: all sequences are equally long */
    uint32_t given;           /* MOBAI_GIVEN_ bits */
} mobai_bench_problem;

/**
 * Reads a problem string. False with a sentence that holds the column (from 1) of the fault. `partial`: the shape
 * (b q k h g d, type, lens) may be missing, to be filled in by the caller; missing numbers are 0.
 * Free the result with mobai_problem_free().
 */
bool mobai_problem_parse(const char *text, bool partial, mobai_bench_problem *out, mobai_message *message);

/** Frees the lengths and zeroes them. */
void mobai_problem_free(mobai_bench_problem *problem);

/** Writes the canonical text, which parses to the same problem; NULL when out of memory. Free it with free(). */
char *mobai_problem_print(const mobai_bench_problem *problem);

/** Deep copy; false when out of memory. */
bool mobai_problem_copy(mobai_bench_problem *to, const mobai_bench_problem *from);

/** Rows of all sequences. */
int64_t mobai_problem_total_q(const mobai_bench_problem *problem);
int64_t mobai_problem_total_k(const mobai_bench_problem *problem);

/** First row of sequence `b` (b = batch: the total). */
int64_t mobai_problem_q_begin(const mobai_bench_problem *problem, int64_t b);
int64_t mobai_problem_k_begin(const mobai_bench_problem *problem, int64_t b);

/** The library's form, with these lengths as bounds. */
moba_problem mobai_problem_bounds(const mobai_bench_problem *problem);

#endif
