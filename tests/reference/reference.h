/* SPDX-License-Identifier: Apache-2.0
 *
 * Naive float64 implementation of docs/spec.md, written to be checked by reading. It shares no code with the library.
 * Tensors are packed: q, o, dq [total_q][n_q_heads][head_dim]; k, v, dk, dv [total_k][n_kv_heads][head_dim];
 * w, dw [n_kv_heads][head_dim][kconv_width]; lse [n_q_heads][total_q]; selection [total_q][n_q_heads][top_k];
 * centroids [ref_n_blocks()][n_kv_heads][head_dim], the blocks of sequence 0 first.
 */
#ifndef MOBA_TESTS_REFERENCE_H
#define MOBA_TESTS_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

/** Element types, numbered like moba_dtype; REF_EXACT rounds nothing (for finite differences). */
enum { REF_F32 = 0, REF_F16 = 1, REF_BF16 = 2, REF_EXACT = 3 };

typedef struct ref_shape {
    int dtype;
    int n_q_heads, n_kv_heads, head_dim, block_size, top_k, n_sink, n_local, kconv_width;
    bool causal, dense;
    double scale;
    int64_t batch, total_q, total_k;
    const int32_t *cu_q, *cu_k; /* [batch + 1], always given */
} ref_shape;

/** x rounded to nearest even in `dtype`; overflow gives an infinity. */
double ref_round(int dtype, double x);

/** Key blocks of one sequence, and of all sequences before `b`. */
int64_t ref_seq_blocks(const ref_shape *s, int64_t b);
int64_t ref_block_base(const ref_shape *s, int64_t b);
static inline int64_t ref_n_blocks(const ref_shape *s) { return ref_block_base(s, s->batch); }

/** Own block of query i of sequence b; negative when the row sees no key. Causal only. */
int64_t ref_own_block(const ref_shape *s, int64_t b, int64_t i);

/** Section 2. `w` is not read when kconv_width is 0: kprime is then k. */
void ref_kconv(const ref_shape *s, const double *k, const double *w, double *kprime);
/** Section 3. */
void ref_centroids(const ref_shape *s, const double *kprime, double *centroids);
/** Section 4: <q, c> of one row and head with block j of its sequence. */
double ref_score(const ref_shape *s, const double *q, const double *centroids, int64_t b, int64_t t, int h, int64_t j);
/** Section 4: is block j forced for query i of sequence b? */
bool ref_forced(const ref_shape *s, int64_t b, int64_t i, int64_t j);
/** Section 4: how many blocks, forced ones excluded, the gate may choose from and how many it takes at most. */
int64_t ref_candidates(const ref_shape *s, int64_t b, int64_t i, bool *candidate, int64_t *takes);
/** Section 4, the whole gate. */
void ref_select(const ref_shape *s, const double *q, const double *centroids, int32_t *selection);
/** Section 5. `selection` is not read when dense. */
void ref_attend(const ref_shape *s, const double *q, const double *kprime, const double *v, const int32_t *selection,
                double *o, double *lse);
/** Keys that row t (query i of sequence b), head h attends to: keep[x], x < Sk. Returns how many. */
int64_t ref_keep(const ref_shape *s, int64_t b, int64_t i, int64_t t, int h, const int32_t *selection, bool *keep);
/** Section 6, to k' (not to the raw keys). */
void ref_attend_bwd(const ref_shape *s, const double *q, const double *kprime, const double *v,
                    const int32_t *selection, const double *dout, double *dq, double *dkprime, double *dv);
/** Section 2 backward. */
void ref_kconv_bwd(const ref_shape *s, const double *k, const double *w, const double *dkprime, double *dk, double *dw);

#endif
