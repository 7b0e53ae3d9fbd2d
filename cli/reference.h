/* SPDX-License-Identifier: Apache-2.0
 *
 * Float64 results for single rows and single key blocks (docs/spec.md sections 2 to 6), next to those of a plain
 * implementation in the problem's own type: one that rounds every tensor it would store (scores, probabilities,
 * gradients of both) and adds up in float32 in plain order. Its error is the yardstick of the elementwise rule.
 */
#ifndef MOBAI_REFERENCE_H
#define MOBAI_REFERENCE_H

#include "cli/inputs.h"

/** What a pass wrote, on the host. Members that the pass does not write are NULL. */
typedef struct mobai_bench_outputs {
    const void *o;            /* like q */
    const float *lse;         /* [n_q_heads][total_q] */
    const int32_t *selection; /* [total_q][n_q_heads][top_k]; NULL when dense */
    const void *dq, *dk, *dv; /* like q, k, v */
    const float *dw;          /* [n_kv_heads][head_dim][kconv_width] */
} mobai_bench_outputs;

typedef struct mobai_reference {
    const mobai_bench_problem *problem;
    const mobai_bench_inputs *in;
    int64_t *q_begin, *k_begin; /* [batch + 1] */
    int64_t *slot_begin;        /* [batch + 1]: blocks of earlier sequences */
    int64_t n_slots;
    int32_t group, dim;
    double scale;
    const void *kprime; /* keys after the convolution; in->k without one */
    void *kprime_owned;
    float *centroids; /* [n_kv_heads][n_slots][dim], rounded to the type; NULL when dense */
    float *slack;     /* like centroids: how far a float32 mean may round elsewhere */
} mobai_reference;

/** Keys and everything of one row. Arrays hold as many keys as the longest row of the problem needs. */
typedef struct mobai_row {
    int64_t b, t, i, pos; /* sequence, storage row, row of the sequence, aligned position */
    int32_t h, g;
    int64_t n_keys, capacity;
    int64_t *keys;     /* storage rows of the keys it sees */
    double *score, *p; /* scaled scores, probabilities */
    float *plain_p;
    int32_t *blocks;  /* [top_k] */
    double max_score; /* largest |scaled score| */
    double lse;
    double q[256], o[256], dout[256], dq[256];
    float qf[256], doutf[256], plain_o[256], plain_dq[256];
    double delta;
    float plain_lse, plain_delta;
} mobai_row;

/** Prepares cumulative lengths, k' and centroids. `inputs` and `problem` must outlive it. */
bool mobai_reference_open(const mobai_bench_problem *problem, const mobai_bench_inputs *inputs, mobai_reference *out,
                          mobai_message *message);
void mobai_reference_close(mobai_reference *reference);

bool mobai_row_open(const mobai_reference *reference, mobai_row *row, mobai_message *message);
void mobai_row_close(mobai_row *row);

/** Number of key blocks of sequence b; a dense problem has blocks of 16 keys, for sampling only. */
int64_t mobai_reference_blocks(const mobai_reference *reference, int64_t b);
int32_t mobai_reference_block_size(const mobai_reference *reference);

/** Places the row: sequence, position, kv head. */
void mobai_row_place(const mobai_reference *reference, int64_t t, int32_t h, mobai_row *row);

/** Legal entries of a placed row's selection, as the library must read them; returns their number. `out` holds top_k.
 */
int32_t mobai_row_blocks(const mobai_reference *reference, const mobai_row *row, const int32_t *selection,
                         int32_t *out);

/** lse, o and the plain ones of row (t, h), given the selection of `outputs`. Rows without keys: o = 0, lse = -inf. */
void mobai_row_forward(const mobai_reference *reference, const mobai_bench_outputs *outputs, int64_t t, int32_t h,
                       mobai_row *row);

/** After mobai_row_forward(): delta, dq and the plain ones. */
void mobai_row_backward(const mobai_reference *reference, mobai_row *row);

/** Gradients of a range of keys within one block, of k' (before the convolution's backward) and v. */
typedef struct mobai_key_gradients {
    int64_t b;
    int32_t g;
    int64_t begin, end; /* keys of the sequence */
    double *dk, *dv;    /* [end - begin][dim] */
    float *plain_dk, *plain_dv;
    float *keys, *values; /* the range's k' and v */
    int64_t n_rows;       /* rows that chose the block */
    double max_score;
} mobai_key_gradients;

/** Allocates for `n_keys` keys. */
bool mobai_key_gradients_open(const mobai_reference *reference, int64_t n_keys, mobai_key_gradients *out);
void mobai_key_gradients_close(mobai_key_gradients *gradients);

/**
 * Fills the gradients for b, g, begin, end as set by the caller. `exact`: lse and delta of each row in float64 from its
 * own keys; else from the outputs' lse and o (which the caller has verified), which costs a row only these keys.
 */
void mobai_key_gradients_fill(const mobai_reference *reference, const mobai_bench_outputs *outputs, bool exact,
                              mobai_row *row, mobai_key_gradients *gradients);

/** Number of rows that chose the block of key `begin`; what mobai_key_gradients_fill() will visit. */
int64_t mobai_key_rows(const mobai_reference *reference, const mobai_bench_outputs *outputs, int64_t b, int32_t g,
                       int64_t begin);

/** z = sum_l w[l] k[t - l] of one key and kv head, per channel, and d k'/d z = SiLU'(z). */
void mobai_kconv_slope(const mobai_reference *reference, int64_t b, int32_t g, int64_t x, double *slope);

/** Rounds to the type and back. */
void mobai_round_to(moba_dtype dtype, float *values, size_t n);

/** Row r of a contiguous [rows][heads][dim] tensor, as float32. */
void mobai_load_row(const mobai_reference *reference, const void *tensor, int64_t n_heads, int64_t r, int64_t head,
                    float *out);

#endif
