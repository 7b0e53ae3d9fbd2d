/* SPDX-License-Identifier: Apache-2.0
 *
 * The generated kernels' HIP texts against the float64 reference, under the emulator: every stage, dtype and tile of
 * head_dim once at least, on shapes that take it seconds (the suite of tests/parity takes minutes).
 */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "../parity/harness.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

/* The whole forward: routing by regret, attention over its own selection. Then the backward. */
static void check_all(const th_session *sessions, size_t n, const th_case *c) {
    for (size_t i = 0; i < n; i++) {
        th_result r;
        if (th_once(&sessions[i], c, NULL, TH_FORWARD | TH_BACKWARD, NULL, &r)) {
            if (!c->shape.dense) th_check_gate(&sessions[i], c, r.selection, c->fill == TH_INTEGER);
            th_expected *x = th_expect(c, r.selection, true);
            th_check_forward(&sessions[i], c, x, &r);
            th_check_backward(&sessions[i], c, x, &r);
            th_expected_free(x);
        }
        th_result_free(&r);
    }
}

Test(hip_parity, tiles_of_head_dim) {
    static const char *const problems[] = {
        "b1q37k53h2g1d16B16t2c,@",
        "b1q40k70h2g1d64B32t2c,@",
        "b1q33k80h1g1d128B32t2c,@",
        "b1q20k70h2g2d200B64t2n,@",
    };
    th_for_each(problems, COUNT(problems), check_all);
}

Test(hip_parity, sequences_and_layouts) {
    static const char *const problems[] = {
        "b4q70k80h2g1d32B16t2c,@,lens=0+20+70+1/17+80+3+0;tail=9",
        "b2q33k65h4g2d33B16t5n,f32;layout=sliced",
        "b2q30k40h2g1d64B16t3c,bf16,sink=1,local=1;layout=bhsd",
        "b1q1k90h4g2d64B16t3c,f16",
        "b1q20k600h1g1d16B16t40c,f32;fill=integer",
        "b1q10k600h1g1d16B16t500c,f16",
    };
    th_for_each(problems, COUNT(problems), check_all);
}

/* What kernels on matrix cores can get wrong: ragged tiles of rows, keys and head_dim, odd strides, a negative scale.
 */
Test(hip_parity, matrix_cores) {
    static const char *const problems[] = {
        "b1q70k200h4g1d64B64t3c,bf16",
        "b1q33k70h2g2d63B16t3c,f16;layout=sliced",
        "b1q40k140h2g1d127B48t2n,bf16",
        "b1q50k150h2g1d128B100t2c,f16;layout=bhsd",
        "b3q70k80h4g2d96B32t3c,bf16,lens=70+1+31/80+17+31;tail=5",
        "b1q30k90h1g1d33B32t3c,f16;fill=huge",
        "b1q30k90h1g1d64B32t3c,bf16;scale=-0.3",
    };
    th_for_each(problems, COUNT(problems), check_all);
}

static void check_route(const th_session *sessions, size_t n, const th_case *c) {
    const bool exact = c->fill == TH_INTEGER || c->fill == TH_EQUAL || c->fill == TH_ZERO;
    for (size_t i = 0; i < n; i++) {
        th_result r;
        if (th_once(&sessions[i], c, NULL, TH_ROUTE, NULL, &r)) th_check_gate(&sessions[i], c, r.selection, exact);
        th_result_free(&r);
    }
}

/* The gate on matrix cores: tiles of 128 rows with lists of 8, 16 and 32 picks, several tiles of centroids, ranges of
 * candidates that begin and end inside of them, ties, NaN and infinite scores. */
Test(hip_parity, matrix_gate) {
    static const char *const problems[] = {
        "b1q150k1300h2g1d64B16t5c,bf16;fill=integer",
        "b1q140k1300h1g1d128B16t9c,f16;fill=integer",
        "b1q70k1300h1g1d128B16t10c,bf16;fill=integer",
        "b1q70k1300h1g1d64B16t33c,f16;fill=integer",
        "b1q70k700h1g1d128B16t5c,bf16;fill=integer",
        "b1q70k700h1g1d128B16t12c,f16;fill=integer",
        "b1q70k900h1g1d128B16t25c,f16;fill=integer",
        "b1q130k700h1g1d64B16t8n,f16;fill=integer",
        "b1q130k700h1g1d33B16t32n,bf16;fill=integer",
        "b1q200k900h2g1d64B16t8c,f16;fill=equal",
        "b1q70k900h1g1d128B16t20c,bf16;fill=equal",
        "b1q70k900h1g1d128B16t20c,bf16;fill=zero",
        "b1q200k900h2g2d64B16t8c,bf16,sink=2,local=3;fill=integer",
        "b1q70k900h1g1d64B16t48c,bf16,sink=40;fill=integer",
        "b1q100k900h1g1d128B16t5c,f16,sink=2,local=3",
        "b5q200k700h2g1d64B16t4c,bf16,lens=0+200+1+17+64/5+700+0+17+100;tail=9;fill=integer",
        "b3q90k600h2g2d40B16t12n,f16,lens=90+1+33/600+1+33;fill=integer",
        "b1q130k900h1g1d64B16t4c,bf16;fill=nan_keys",
        "b1q66k900h1g1d64B16t14c,f16;fill=nan_keys",
        "b1q130k900h1g1d128B16t4c,f16;fill=inf_keys",
        "b1q66k900h1g1d64B16t14c,bf16;fill=inf_keys",
        "b1q100k400h1g1d1B16t30c,bf16;fill=inf_keys",
        "b2q140k300h4g2d64B16t4c,bf16;layout=sliced;fill=integer",
        "b2q140k300h4g2d128B16t4c,f16;layout=bhsd",
    };
    th_for_each(problems, COUNT(problems), check_route);
}

Test(hip_parity, key_convolution) {
    static const char *const problems[] = {
        "b1q20k20h1g1d16B16t1c,@,kconv=2",
        "b1q50k140h2g2d33B16t2c,@,kconv=3",
        "b3q20k30h2g1d16B16t2c,@,kconv=4,lens=20+5+1/30+3+17",
        "b3q20k130h2g1d16B16t2c,@,kconv=7,lens=20+5+1/3+130+2;tail=3",
    };
    th_for_each(problems, COUNT(problems), check_all);
}

Test(hip_parity, dense_mode) {
    static const char *const problems[] = {
        "b1q40k70h4g2d64B16t1c,@,dense",
        "b2q20k40h2g1d128B16t1n,f16,dense",
        "b3q30k40h2g1d32B16t1c,@,dense,lens=30+0+21/40+4+0;tail=3",
    };
    th_for_each(problems, COUNT(problems), check_all);
}

Test(hip_parity, bad_numbers) {
    static const char *const problems[] = {
        "b1q40k100h2g1d32B16t3c,f32;fill=nan_keys",
        "b1q40k100h2g1d32B16t3c,f32;fill=equal",
        "b1q40k40h1g1d64B16t2c,bf16;fill=very_negative",
    };
    th_for_each(problems, COUNT(problems), check_all);
}
