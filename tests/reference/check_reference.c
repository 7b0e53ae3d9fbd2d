/* SPDX-License-Identifier: Apache-2.0
 *
 * The reference checked against itself: gradients by central differences, rounding against the C compiler's, and
 * small cases worked by hand.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "reference.h"

enum { MAX_ELEMENTS = 4096 };

static uint64_t random_state = 7;

static double uniform(void) { /* in [-1, 1) */
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)random_state * 0x1p-63;
}

typedef struct arrays {
    double q[MAX_ELEMENTS], k[MAX_ELEMENTS], v[MAX_ELEMENTS], w[MAX_ELEMENTS], dout[MAX_ELEMENTS];
    double kprime[MAX_ELEMENTS], centroids[MAX_ELEMENTS], o[MAX_ELEMENTS], lse[MAX_ELEMENTS];
    double dq[MAX_ELEMENTS], dk[MAX_ELEMENTS], dv[MAX_ELEMENTS], dw[MAX_ELEMENTS], dkprime[MAX_ELEMENTS];
    int32_t selection[MAX_ELEMENTS];
} arrays;

static arrays a;

static void fill(double *x) {
    for (int i = 0; i < MAX_ELEMENTS; i++)
        x[i] = uniform();
}

static double loss(const ref_shape *s) {
    ref_kconv(s, a.k, a.w, a.kprime);
    ref_attend(s, a.q, a.kprime, a.v, a.selection, a.o, a.lse);
    double sum = 0;
    for (int64_t x = 0; x < s->total_q * s->n_q_heads * s->head_dim; x++)
        sum += a.o[x] * a.dout[x];
    return sum;
}

static void check_gradient(const ref_shape *s, double *x, const double *gradient, int64_t n, const char *name) {
    const double h = 1e-5;
    for (int64_t i = 0; i < n; i++) {
        double keep = x[i];
        x[i] = keep + h;
        double up = loss(s);
        x[i] = keep - h;
        double down = loss(s);
        x[i] = keep;
        double expected = (up - down) / (2 * h);
        cr_assert(fabs(expected - gradient[i]) < 1e-8 * (1 + fabs(expected)), "%s[%d]: %.12g, finite difference %.12g",
                  name, (int)i, gradient[i], expected);
    }
}

Test(reference, gradients_by_finite_differences) {
    static const int32_t cu_q[] = {0, 7, 7, 18}, cu_k[] = {0, 13, 17, 26};
    for (int variant = 0; variant < 5; variant++) {
        ref_shape s = {REF_EXACT, 4, 2, 3, 4, 3, 0, 0, 3, true, false, 0.7, 3, 19, 28, cu_q, cu_k};
        if (variant == 1) s.causal = false, s.kconv_width = 0;
        if (variant == 2) s.dense = true;
        if (variant == 3) s.dense = true, s.causal = false, s.kconv_width = 2;
        if (variant == 4) s.n_sink = 1, s.n_local = 2;
        fill(a.q), fill(a.k), fill(a.v), fill(a.w), fill(a.dout);
        ref_kconv(&s, a.k, a.w, a.kprime);
        ref_centroids(&s, a.kprime, a.centroids);
        ref_select(&s, a.q, a.centroids, a.selection);
        loss(&s);
        ref_attend_bwd(&s, a.q, a.kprime, a.v, a.selection, a.dout, a.dq, a.dkprime, a.dv);
        ref_kconv_bwd(&s, a.k, a.w, a.dkprime, a.dk, a.dw);
        check_gradient(&s, a.q, a.dq, s.total_q * s.n_q_heads * s.head_dim, "dq");
        check_gradient(&s, a.k, a.dk, s.total_k * s.n_kv_heads * s.head_dim, "dk");
        check_gradient(&s, a.v, a.dv, s.total_k * s.n_kv_heads * s.head_dim, "dv");
        check_gradient(&s, a.w, a.dw, s.n_kv_heads * s.head_dim * s.kconv_width, "dw");
    }
}

Test(reference, rounds_to_nearest_even) {
    for (int i = 0; i < 200000; i++) {
        double x = ldexp(uniform(), (int)(uniform() * 140));
        cr_assert(ref_round(REF_F32, x) == (double)(float)x, "%a", x);
    }
    static const struct {
        int dtype;
        double in, out;
    } table[] = {
        {REF_F16, 1 + 0x1p-11, 1},
        {REF_F16, 1 + 0x3p-11, 1 + 0x1p-9},
        {REF_F16, 65519, 65504},
        {REF_F16, -65520, -INFINITY},
        {REF_F16, 0x1p-25, 0},
        {REF_F16, 0x1.8p-25, 0x1p-24},
        {REF_F16, 0x1.fffp-15, 0x1p-14},
        {REF_BF16, 1 + 0x1p-8, 1},
        {REF_BF16, 1 + 0x3p-8, 1 + 0x1p-6},
        {REF_BF16, 0x1.ffp127, INFINITY},
        {REF_BF16, 0x1.fe8p127, 0x1.fep127},
        {REF_BF16, -0x1p-134, -0.0},
        {REF_F32, 0x1p-150, 0},
        {REF_F32, 0x1.8p-150, 0x1p-149},
        {REF_F32, 0x1.ffffffp127, INFINITY},
        {REF_EXACT, 1 + 0x1p-52, 1 + 0x1p-52},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        cr_assert(ref_round(table[i].dtype, table[i].in) == table[i].out, "row %zu: %a", i,
                  ref_round(table[i].dtype, table[i].in));
}

/* Five blocks of two keys, one channel; the block means are 1, 5, 5, -2, 0. */
static const int32_t hand_cu[] = {0, 10};
static const double hand_k[] = {0, 2, 5, 5, 4, 6, -2, -2, 0, 0};

static ref_shape hand_shape(void) {
    ref_shape s = {REF_F32, 1, 1, 1, 2, 2, 0, 0, 0, true, false, 1, 1, 10, 10, hand_cu, hand_cu};
    return s;
}

static void select_rows(const ref_shape *s, const double *k, double q_value) {
    for (int i = 0; i < 10; i++)
        a.q[i] = q_value;
    ref_centroids(s, k, a.centroids);
    ref_select(s, a.q, a.centroids, a.selection);
}

static void expect_row(int row, int top_k, const int32_t *expected) {
    for (int m = 0; m < top_k; m++)
        cr_assert_eq(a.selection[row * top_k + m], expected[m], "row %d rank %d: %d", row, m,
                     a.selection[row * top_k + m]);
}

Test(reference, selection_worked_by_hand) {
    ref_shape s = hand_shape();
    select_rows(&s, hand_k, 1);
    expect_row(0, 2, (int32_t[]){0, -1});
    expect_row(3, 2, (int32_t[]){0, 1});
    expect_row(5, 2, (int32_t[]){1, 2});
    expect_row(9, 2, (int32_t[]){2, 4}); /* blocks 1 and 2 tie: the more recent */
    select_rows(&s, hand_k, -1);
    expect_row(9, 2, (int32_t[]){3, 4});
    select_rows(&s, hand_k, 0);
    expect_row(9, 2, (int32_t[]){3, 4}); /* 0 and -0 tie */
    s.top_k = 1;
    select_rows(&s, hand_k, 1);
    expect_row(9, 1, (int32_t[]){4});
    s.top_k = 3, s.n_sink = 1, s.n_local = 1;
    select_rows(&s, hand_k, 1);
    expect_row(9, 3, (int32_t[]){0, 2, 4});
    s.n_local = 2;
    select_rows(&s, hand_k, 1);
    expect_row(9, 3, (int32_t[]){0, 3, 4});
    expect_row(2, 3, (int32_t[]){0, 1, -1});
    s.causal = false, s.n_sink = 0, s.n_local = 0;
    select_rows(&s, hand_k, 1);
    expect_row(0, 3, (int32_t[]){0, 1, 2});
    double nan_k[10];
    memcpy(nan_k, hand_k, sizeof nan_k);
    nan_k[2] = NAN;
    s.top_k = 7;
    select_rows(&s, nan_k, 1);
    expect_row(0, 7, (int32_t[]){0, 2, 3, 4, -1, -1, -1});
}

Test(reference, attention_worked_by_hand) {
    static const int32_t cu_q[] = {0, 3}, cu_k[] = {0, 2};
    ref_shape s = {REF_F32, 1, 1, 1, 2, 1, 0, 0, 0, true, false, 1, 1, 4, 2, cu_q, cu_k};
    double q[] = {1, 1, 1, 1}, k[] = {0, log(3)}, v[] = {4, 8};
    int32_t selection[] = {-1, 0, 0, -1};
    ref_attend(&s, q, k, v, selection, a.o, a.lse);
    cr_assert(a.o[0] == 0 && a.lse[0] == -INFINITY); /* position -1: no key */
    cr_assert(a.o[1] == 4 && a.lse[1] == 0);
    cr_assert(fabs(a.o[2] - 7) < 1e-14 && fabs(a.lse[2] - log(4)) < 1e-14);
    cr_assert(a.o[3] == 0 && a.lse[3] == -INFINITY); /* storage past the last sequence */
}

Test(reference, key_convolution_worked_by_hand) {
    static const int32_t cu[] = {0, 2, 4};
    ref_shape s = {REF_EXACT, 1, 1, 1, 2, 1, 0, 0, 2, true, false, 1, 2, 4, 4, cu, cu};
    double k[] = {1, 2, 3, 4}, w[] = {10, 100}, out[4];
    ref_kconv(&s, k, w, out);
    /* SiLU(x) = x to double precision for x >= 40 */
    cr_assert(fabs(out[0] - (1 + 10 / (1 + exp(-10.0)))) < 1e-14);
    cr_assert(fabs(out[1] - (2 + 120)) < 1e-12);
    cr_assert(fabs(out[2] - (3 + 30 / (1 + exp(-30.0)))) < 1e-12); /* no tap reaches into sequence 0 */
    cr_assert(fabs(out[3] - (4 + 340)) < 1e-12);
}
