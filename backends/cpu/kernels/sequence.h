/* SPDX-License-Identifier: Apache-2.0
 *
 * From storage rows and block slots to sequences and addresses. Everything is clamped as core/geometry.h says, so
 * illegal cu_seqlens give wrong results but no access outside the tensors.
 */
#ifndef MOBAI_CPU_KERNELS_SEQUENCE_H
#define MOBAI_CPU_KERNELS_SEQUENCE_H

#include "backends/cpu/cpu.h"
#include "backends/cpu/kernels/stages.h"

static inline void *mobai_cpu_address(moba_buffer buffer) { return (void *)(uintptr_t)(buffer.handle + buffer.offset); }

/** One sequence of a run with its block slots. */
typedef struct mobai_cpu_blocks {
    mobai_rows q, k;    /* storage rows */
    int64_t first_slot; /* of its key blocks */
    int64_t n_blocks;
} mobai_cpu_blocks;

static inline mobai_cpu_blocks mobai_cpu_blocks_at(const mobai_stage_args *a, int64_t b) {
    const int32_t *cu_q = (const int32_t *)mobai_cpu_address(a->cu_seqlens_q);
    const int32_t *cu_k = (const int32_t *)mobai_cpu_address(a->cu_seqlens_k);
    mobai_cpu_blocks s;
    s.q = mobai_seq_rows(cu_q, a->seqlen_q, a->total_q, b);
    s.k = mobai_seq_rows(cu_k, a->seqlen_k, a->total_k, b);
    s.first_slot = mobai_first_slot(s.k.begin, a->block_size, b);
    s.n_blocks = mobai_n_blocks(s.k.end - s.k.begin, a->block_size);
    return s;
}

/** Position of the query in storage row t of the sequence; negative: it sees no key when causal. */
static inline int64_t mobai_cpu_position(const mobai_cpu_blocks *s, int64_t t) {
    return mobai_position(t - s->q.begin, s->q.end - s->q.begin, s->k.end - s->k.begin);
}

/** The sequence that owns slot `slot`; false when none does. First slots ascend strictly with b, so a binary search
 *  finds the only candidate. */
static inline bool mobai_cpu_blocks_of_slot(const mobai_stage_args *a, int64_t slot, mobai_cpu_blocks *out) {
    if (a->batch < 1) return false;
    int64_t low = 0, high = a->batch;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (mobai_cpu_blocks_at(a, middle).first_slot <= slot)
            low = middle;
        else
            high = middle;
    }
    *out = mobai_cpu_blocks_at(a, low);
    return slot >= out->first_slot && slot < out->first_slot + out->n_blocks;
}

/** The first sequence whose rows end past `row`, by binary search in ascending cu_seqlens; `batch` when there is none.
 */
static inline int64_t mobai_cpu_sequence_past(const int32_t *cu, int64_t seqlen, int64_t total, int64_t batch,
                                              int64_t row) {
    int64_t low = 0, high = batch;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (mobai_seq_rows(cu, seqlen, total, middle).end > row)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/** Address of (storage row, head) of a tensor whose sequences have `seqlen` rows when there are no cu_seqlens. */
static inline unsigned char *mobai_cpu_row(const mobai_stage_args *a, const moba_tensor *x, int64_t seqlen, int64_t row,
                                           int64_t head) {
    int64_t element = head * x->head_stride;
    if (a->cu_seqlens_q.handle != 0 || seqlen < 1)
        element += row * x->token_stride;
    else
        element += row / seqlen * x->batch_stride + row % seqlen * x->token_stride;
    return (unsigned char *)mobai_cpu_address(x->buffer) + element * (a->dtype == MOBA_F32 ? 4 : 2);
}

static inline const unsigned char *mobai_cpu_q_row(const mobai_stage_args *a, const moba_tensor *x, int64_t row,
                                                   int64_t head) {
    return mobai_cpu_row(a, x, a->seqlen_q, row, head);
}
static inline const unsigned char *mobai_cpu_k_row(const mobai_stage_args *a, const moba_tensor *x, int64_t row,
                                                   int64_t head) {
    return mobai_cpu_row(a, x, a->seqlen_k, row, head);
}

/** Row of dkprime for storage row `row` and kv head g of the slice. */
static inline float *mobai_cpu_dkprime_row(const mobai_stage_args *a, int64_t row, int64_t g) {
    return (float *)mobai_cpu_address(a->dkprime) + (row * a->slice_kv_heads + g - a->kv_head_begin) * a->head_dim;
}

/** Asks for a row that is read soon. Rows of one head lie a page or so apart, which hardware prefetchers do not follow.
 */
static inline void mobai_cpu_prefetch_row(const mobai_stage_args *a, const unsigned char *row) {
    const int64_t bytes = a->head_dim * (a->dtype == MOBA_F32 ? 4 : 2);
    for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(row + i, 0, 2);
}

#endif
