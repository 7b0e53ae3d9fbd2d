/* SPDX-License-Identifier: Apache-2.0
 *
 * Block geometry shared by host code: sequences from cu_seqlens, block slots, positions. The arithmetic here is the
 * contract of mobai_stage_args; device kernels repeat it.
 */
#ifndef MOBAI_GEOMETRY_H
#define MOBAI_GEOMETRY_H

#include <stdint.h>

/** A half-open range of storage rows. */
typedef struct mobai_rows {
    int64_t begin, end;
} mobai_rows;

static inline int64_t mobai_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t mobai_max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t mobai_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/** Rows of sequence b: [cu[b], cu[b+1]) clamped into [0, total]; without cu (NULL) [b * seqlen, (b+1) * seqlen). */
static inline mobai_rows mobai_seq_rows(const int32_t *cu, int64_t seqlen, int64_t total, int64_t b) {
    mobai_rows r;
    if (cu == NULL) {
        r.begin = b * seqlen;
        r.end = r.begin + seqlen;
        return r;
    }
    r.begin = mobai_min64(mobai_max64(cu[b], 0), total);
    r.end = mobai_min64(mobai_max64(cu[b + 1], r.begin), total);
    return r;
}

/** First block slot of sequence b whose keys begin at row `k_begin`. */
static inline int64_t mobai_first_slot(int64_t k_begin, int32_t block_size, int64_t b) {
    return k_begin / block_size + b;
}

/** Number of slots of a run. */
static inline int64_t mobai_n_slots(int64_t total_k, int32_t block_size, int64_t batch) {
    return total_k / block_size + batch;
}

/** Number of key blocks of a sequence. */
static inline int64_t mobai_n_blocks(int64_t seqlen_k, int32_t block_size) {
    return mobai_ceil_div(seqlen_k, block_size);
}

/** Bytes of one row in mobai_stage_args.pick_masks. */
static inline int64_t mobai_pick_mask_bytes(int32_t top_k) {
    return top_k <= 8 ? 1 : top_k <= 16 ? 2 : 4 * mobai_ceil_div(top_k, 32);
}

/** Bottom-right aligned position of query i: i + Sk - Sq; negative: the row sees no key. */
static inline int64_t mobai_position(int64_t i, int64_t seqlen_q, int64_t seqlen_k) { return i + seqlen_k - seqlen_q; }

#endif
