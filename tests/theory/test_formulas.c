/* SPDX-License-Identifier: Apache-2.0
 *
 * The closed formulas of docs/theory.md against published values and exact identities.
 */
#include <criterion/criterion.h>
#include <math.h>

#include "moba/moba.h"

#define NEAR(got, want, tolerance)                                                                                     \
    do {                                                                                                               \
        const double near_got = (got), near_want = (want);                                                             \
        cr_assert(fabs(near_got - near_want) <= (tolerance), "%s is %.15g, expected %.15g", #got, near_got,            \
                  near_want);                                                                                          \
    } while (0)

Test(formulas, snr) {
    NEAR(moba_snr(64, 512, 1.0, 1, 0.0), 0.25, 1e-15);
    NEAR(moba_snr(64, 256, 1.0, 1, 0.0), 0.353553390593274, 1e-14);
    NEAR(moba_snr(64, 128, 1.0, 1, 0.0), 0.5, 1e-15);
    /* Halving the block gains sqrt(2); a cluster of m keys adds (m - 1) times its own affinity. */
    NEAR(moba_snr(128, 64, 0.7, 1, 9.0), sqrt(2.0) * moba_snr(128, 128, 0.7, 1, 9.0), 1e-14);
    NEAR(moba_snr(128, 64, 0.7, 5, 0.2), (0.7 + 4 * 0.2) * 1.0, 1e-14);
    cr_assert(isnan(moba_snr(0, 64, 1.0, 1, 0.0)));
    cr_assert(isnan(moba_snr(64, 0, 1.0, 1, 0.0)));
    cr_assert(isnan(moba_snr(64, 64, 1.0, 0, 0.0)));
}

Test(formulas, failure) {
    NEAR(moba_snr_failure(0.0), 0.5, 1e-15);
    NEAR(moba_snr_failure(1.0), 0.158655253931457, 1e-14);
    NEAR(moba_snr_failure(3.0), 0.00134989803163009, 1e-16);
    NEAR(moba_snr_failure(6.0), 9.86587645037698e-10, 1e-22);
    NEAR(moba_snr_failure(-2.0), 1.0 - moba_snr_failure(2.0), 1e-15);
}

/** Needed SNR at B = 128 and top_k = 8: 8K, 64K and 512K tokens are 64, 512 and 4096 blocks. */
Test(formulas, required) {
    NEAR(moba_snr_required(64, 8), 1.15, 0.005);
    NEAR(moba_snr_required(512, 8), 2.15, 0.005);
    NEAR(moba_snr_required(4096, 8), 2.89, 0.005);
    NEAR(moba_snr_required(40, 1), 1.95996398454005, 1e-12);
    NEAR(moba_snr_required(100, 1), 2.32634787404084, 1e-12);
    NEAR(moba_snr_required(1000, 1), 3.09023230616781, 1e-12);
    NEAR(moba_snr_required(2, 1), 0.0, 1e-15);
    NEAR(moba_snr_required(1000, 999), -3.09023230616781, 1e-9);
    cr_assert(moba_snr_required(8, 8) == -INFINITY);
    cr_assert(moba_snr_required(8, 9) == -INFINITY);
    cr_assert(moba_snr_required(8, 0) == INFINITY);
    cr_assert(isnan(moba_snr_required(0, 1)));
}

Test(formulas, required_inverts_failure) {
    for (int64_t n = 2; n <= (int64_t)1 << 40; n *= 3) {
        for (int64_t k = 1; k < n; k = 5 * k + 1) {
            const double p = (double)k / (double)n;
            const double back = moba_snr_failure(moba_snr_required(n, k));
            cr_assert(fabs(back - p) <= 1e-9 * p, "n %lld k %lld: %.15g became %.15g", (long long)n, (long long)k, p,
                      back);
        }
    }
}

Test(formulas, recall_identities) {
    /* Two blocks: the relevant one is first unless the other beats it. */
    for (int i = 0; i < 25; i++) {
        const double snr = -3.0 + 0.37 * i;
        NEAR(moba_snr_recall(snr, 2, 1), 1.0 - moba_snr_failure(snr), 1e-10);
    }
    /* Without a signal every block is equally likely to be among the first k. */
    for (int64_t n = 2; n <= 4096; n *= 4) {
        for (int64_t k = 1; k <= n && k <= 128; k *= 2)
            NEAR(moba_snr_recall(0.0, n, k), (double)k / (double)n, 1e-9);
    }
    cr_assert(moba_snr_recall(-50.0, 64, 64) == 1.0);
    cr_assert(moba_snr_recall(50.0, 64, 0) == 0.0);
    cr_assert(moba_snr_recall(INFINITY, 64, 1) == 1.0);
    cr_assert(moba_snr_recall(-INFINITY, 64, 1) == 0.0);
    cr_assert(isnan(moba_snr_recall(NAN, 64, 1)));
    cr_assert(isnan(moba_snr_recall(1.0, 0, 1)));
}

Test(formulas, recall_is_monotonous) {
    for (int64_t n = 16; n <= 65536; n *= 8) {
        double before = 0.0;
        for (int i = 0; i <= 40; i++) {
            const double snr = -2.0 + 0.25 * i;
            const double recall = moba_snr_recall(snr, n, 8);
            cr_assert(recall >= before - 1e-12 && recall <= 1.0, "n %lld snr %g: %.15g after %.15g", (long long)n, snr,
                      recall, before);
            cr_assert(moba_snr_recall(snr, n, 9) >= recall - 1e-12);
            cr_assert(moba_snr_recall(snr, 2 * n, 8) <= recall + 1e-12);
            before = recall;
        }
        cr_assert(before > 0.999, "an SNR of 8 finds the block among %lld: %g", (long long)n, before);
    }
}
