/* SPDX-License-Identifier: Apache-2.0
 *
 * What the checks of outputs, routing and gradients share.
 */
#ifndef MOBAI_VERIFY_INTERNAL_H
#define MOBAI_VERIFY_INTERNAL_H

#include "cli/verify.h"

/** Running comparison of one tensor. */
typedef struct mobai_comparison {
    const char *name;
    double error2, expected2; /* sums of squares */
    double max_error, max_plain, atol;
    double worst_got, worst_expected;
    int64_t worst_row, worst_head; /* storage row; head of the tensor */
    bool unordered;                /* a NaN or infinity where the expected value is finite */
} mobai_comparison;

/** Takes `n` elements of one row. */
void mobai_compare(moba_dtype dtype, mobai_comparison *c, int64_t row, int64_t head, const double *expected,
                   const float *plain, const float *got, int32_t n);

/** Applies both rules; a broken one sets verdict->fault unless it is set. `frobenius` false: elementwise alone. */
void mobai_judge(const mobai_comparison *c, double bound, bool frobenius, mobai_verdict *verdict);

/** Sets the fault, unless there is one already. */
void mobai_fault(mobai_verdict *verdict, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** Next number of a splitmix64 sequence, below `n` (n > 0). */
uint64_t mobai_random_below(uint64_t *state, uint64_t n);

/** Multiply-adds that a whole check may cost; beyond, rows and blocks are sampled. A second or so. */
#define MOBAI_WHOLE_CHECK_WORK 4.0e8

bool mobai_verify_gradients(const mobai_reference *reference, const mobai_bench_outputs *outputs, uint64_t seed,
                            mobai_row *row, mobai_verdict *verdict, mobai_message *message);

/** Form of every row of the selection, and regret of the rows listed as t * n_q_heads + h. Sets max_err to the regret.
 */
void mobai_verify_routing(const mobai_reference *reference, const int32_t *selection, const int64_t *rows,
                          int64_t n_rows, mobai_row *row, double *scores, mobai_verdict *verdict);

#endif
