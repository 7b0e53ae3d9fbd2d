/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks of a pass's outputs against float64, given their selection (docs/spec.md section 7).
 *
 * Small problems are checked whole. Large ones are sampled: at least 256 rows (the first, the last, the ragged tail,
 * and rows of every sequence), for gradients 64 rows of dq and 8 whole key blocks of dk and dv (blocks of 16 keys when
 * dense). Every output is scanned for elements that were never written, and every row of the selection for its form.
 *
 * Rules: relative Frobenius error within the type's bound while |scaled score| <= 16; largest error at most twice that
 * of a plain implementation in the same type on the same rows, plus twice what 0.3 more and 0.3 less does to the
 * expected values in that type (the FlashAttention rule); every routed block within 1e-3 max(1, |score|) of the row's
 * last place, plus what other roundings of the centroids allow; lse within 1e-5 max(1, |lse|, |score|), the float32
 * rounding of a sum of up to 128 products and of exponentials that are good to 2^-21.
 */
#ifndef MOBAI_VERIFY_H
#define MOBAI_VERIFY_H

#include "cli/reference.h"

typedef enum mobai_pass { MOBAI_PASS_FWD, MOBAI_PASS_BWD, MOBAI_PASS_ROUTE } mobai_pass;

/** "fwd", "bwd", "route". */
const char *mobai_pass_name(mobai_pass pass);

typedef struct mobai_verdict {
    bool verified;
    double max_err;           /* largest absolute error of o, or of any gradient; route: largest regret */
    double rel_err;           /* relative Frobenius error of o, or the largest one of dq, dk, dv, dw; route: 0 */
    int64_t n_rows, n_blocks; /* what was looked at */
    mobai_message fault;      /* the first rule that was broken */
} mobai_verdict;

/**
 * Checks one pass. `outputs` holds what it wrote; for BWD also o, lse and selection of its forward, which must have
 * been verified before. False (with a sentence) only when the check could not be made, for want of memory.
 */
bool mobai_verify(const mobai_reference *reference, const mobai_bench_outputs *outputs, mobai_pass pass, uint64_t seed,
                  mobai_verdict *verdict, mobai_message *message);

/** Selected (query, key) pairs over all heads, counted from the selection. */
int64_t mobai_count_pairs(const mobai_reference *reference, const int32_t *selection);

/** (query row, candidate block) pairs that a gate scores. */
int64_t mobai_count_candidates(const mobai_reference *reference);

#endif
