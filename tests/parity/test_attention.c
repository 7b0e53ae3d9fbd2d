/* SPDX-License-Identifier: Apache-2.0
 *
 * Attention and its gradients against the float64 reference, under prescribed routing.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

Test(attention, shapes) {
    static const char *const problems[] = {
        "b1q1k1h1g1d1B16t1c,@",
        "b1q130k130h4g2d64B32t3c,@",
        "b2q100k100h2g2d128B64t2c,@",
        "b1q200k200h8g1d32B16t8c,@",
        "b1q96k96h16g1d16B16t4c,@",
        "b1q157k157h2g1d256B100t2c,@",
        "b1q64k300h4g4d64B32t4c,@",
        "b1q300k64h2g1d64B32t4c,@",
        "b1q50k10h2g2d33B16t2c,@",
        "b1q120k120h2g1d64B16t128c,@",
        "b1q100k333h3g3d7B48t3n,@",
        "b2q33k65h4g2d64B16t5n,@",
        "b4q1k500h8g2d64B64t4c,@",
        "b1q40k1100h2g1d64B512t2c,@",
        "b1q20k2200h1g1d16B16t128c,@",
        "b1q150k150h2g2d64B32t1c,@",
        "b1q150k150h2g2d64B32t1n,@",
        "b1q100k400h2g1d64B16t6c,@,sink=1,local=2",
        "b1q100k400h2g1d64B16t3c,@,sink=1,local=2",
        "b1q100k300h2g1d64B16t4n,@,sink=2",
        "b1q100k100h2g1d64B32t2c,@;scale=0.5",
        "b2q100k100h2g1d48B16t3c,@,det",
    };
    th_for_each(problems, COUNT(problems), th_check_both);
}

Test(attention, sequences_of_many_lengths) {
    static const char *const problems[] = {
        "b5q200k220h4g2d64B32t3c,@,lens=0+200+1+17+64/5+220+0+17+100",
        "b5q200k220h4g2d64B32t3n,@,lens=0+200+1+17+64/5+220+0+17+100",
        "b4q70k80h2g1d32B16t2c,@,lens=0+0+70+0/0+80+3+0",
        "b3q90k90h2g2d64B32t4c,@,lens=90+1+33/90+1+33;tail=9",
        "b8q31k31h4g1d16B16t2c,@,lens=1+2+3+15+16+17+31+0/1+2+3+15+16+17+31+0",
        "b2q0k40h2g1d16B16t2c,@,lens=0+0/40+7",
        "b2q40k0h2g1d16B16t2c,@,lens=40+7/0+0",
        "b2q60k60h2g1d32B16t2c,@;cu",
        "b3q50k100h4g2d64B32t3c,@,dense,lens=50+0+21/100+4+0;tail=3",
    };
    th_for_each(problems, COUNT(problems), th_check_both);
}

Test(attention, strides) {
    static const char *const problems[] = {
        "b2q70k90h4g2d64B32t2c,@;layout=bshd",           "b2q70k90h4g2d64B32t2c,@;layout=bhsd",
        "b2q70k90h4g2d64B32t2c,@;layout=sliced",         "b2q70k90h4g2d64B32t2c,@;layout=fused",
        "b2q70k90h4g2d64B32t2c,@;layout=bhsd;cu",        "b2q70k90h4g2d64B32t2c,@;layout=sliced;tail=5",
        "b2q70k90h4g2d33B32t2c,@,kconv=3;layout=sliced", "b2q70k90h4g2d128B32t2n,@,dense;layout=sliced",
        "b2q70k90h4g2d128B32t2c,@,dense;layout=bhsd",    "b2q70k90h4g2d64B32t2c,@,kconv=4;layout=bhsd",
    };
    th_for_each(problems, COUNT(problems), th_check_both);
}

Test(attention, dense_mode) {
    static const char *const problems[] = {
        "b1q130k130h4g2d64B16t1c,@,dense",       "b1q130k130h4g2d64B16t1n,@,dense",  "b2q40k100h8g1d128B16t1c,@,dense",
        "b1q100k40h2g2d32B16t1c,@,dense",        "b1q1k300h4g4d64B16t1c,@,dense",    "b1q77k77h2g1d256B16t1c,@,dense",
        "b1q90k90h2g1d64B16t1c,@,dense,kconv=3", "b1q90k90h2g1d5B16t1c,@,dense,det",
    };
    th_for_each(problems, COUNT(problems), th_check_both);
}

Test(attention, key_convolution) {
    static const char *const problems[] = {
        "b1q130k130h4g2d64B32t3c,@,kconv=3",
        "b1q100k100h2g2d128B32t2c,@,kconv=5",
        "b1q90k90h2g1d33B16t3c,@,kconv=8",
        "b2q60k60h2g1d16B16t2n,@,kconv=2",
        "b7q40k40h4g2d32B16t2c,@,kconv=5,lens=1+2+3+4+5+6+40/1+2+3+4+5+6+40",
        "b6q30k30h2g1d64B16t2c,@,kconv=8,lens=0+1+0+7+30+2/0+1+0+7+30+2;tail=6",
        "b3q20k50h2g1d64B16t3c,@,kconv=4,lens=20+5+1/50+3+17",
        "b4q30k300h2g2d40B16t3c,@,kconv=6,lens=30+2+3+9/127+2+300+9;tail=140",
    };
    th_for_each(problems, COUNT(problems), th_check_both);
}

/* Every shape that is tuned (spec.md section 8), forward and backward. */
Test(attention, tuned_shapes) {
    static const char *const problems[] = {
        "b1q150k400h2g2d64B64t4c,@",    "b1q150k400h4g1d128B64t4c,@",   "b1q150k700h2g2d128B128t4c,@",
        "b1q150k700h4g1d64B128t4c,@",   "b1q100k1100h8g1d64B256t3c,@",  "b1q100k1100h1g1d128B256t3c,@",
        "b1q100k1700h1g1d64B512t3c,@",  "b1q100k1700h4g1d128B512t3c,@", "b1q100k2500h1g1d64B64t32c,@",
        "b1q100k2500h1g1d128B64t32c,@",
    };
    th_for_each(problems, COUNT(problems), th_check_both);
}

/* Runs th_check_both over problems made by a printf format with one number. */
static void check_numbers(const char *format, const int *numbers, size_t n) {
    const char **problems = th_allocate(n, sizeof *problems);
    for (size_t i = 0; i < n; i++) {
        char *text = th_allocate(128, 1), number[16];
        const char *from = format;
        snprintf(number, sizeof number, "%d", numbers[i]);
        while (*from != '\0') {
            strncat(text, *from == '#' ? number : (char[]){*from, '\0'}, 127 - strlen(text));
            from++;
        }
        problems[i] = text;
    }
    th_for_each(problems, n, th_check_both);
    for (size_t i = 0; i < n; i++)
        free((void *)(uintptr_t)problems[i]);
    free(problems);
}

Test(attention, head_dims) {
    static const int head_dims[] = {1,   2,   3,   4,   5,   7,   8,   9,   15,  16,  17,  23,  24,  31,
                                    32,  33,  40,  47,  48,  63,  64,  65,  72,  80,  96,  100, 112, 127,
                                    128, 129, 144, 160, 176, 192, 200, 224, 240, 250, 255, 256};
    check_numbers("b1q37k53h2g1d#B16t2c,@", head_dims, COUNT(head_dims));
}

Test(attention, block_sizes) {
    static const int block_sizes[] = {16, 17,  18,  23,  31,  32,  33,  47,  48,  63,  64,  65,
                                      96, 100, 127, 128, 129, 191, 192, 200, 255, 256, 257, 300};
    check_numbers("b1q50k333h2g1d32B#t2c,@", block_sizes, COUNT(block_sizes));
}

Test(attention, top_ks) {
    static const int top_ks[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 500};
    check_numbers("b1q20k600h2g1d16B16t#c,@", top_ks, COUNT(top_ks));
}

Test(attention, group_sizes) {
    static const int heads[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24};
    check_numbers("b1q33k50h#g1d32B16t2c,@", heads, COUNT(heads));
}

/* Every ragged tail with lse of -1e4 and less (pytorch#196678). */
Test(attention, ragged_tails_with_very_negative_lse) {
    int lengths[48];
    for (int i = 0; i < 48; i++)
        lengths[i] = 17 + i;
    check_numbers("b1q#k#h2g1d64B32t2c,@;fill=very_negative", lengths, 33);
    check_numbers("b1q#k#h1g1d64B16t1c,@,dense;fill=very_negative", lengths, 17);
}

/* Attention and gradients over a prescribed selection, against what its legal picks give. */
static void check_selection(const th_session *sessions, size_t n, const th_case *c, const int32_t *selection) {
    th_expected *x = th_expect(c, selection, true); /* the reference itself ignores what no block owns */
    for (size_t i = 0; i < n; i++) {
        th_result r;
        th_exec *e = th_open(&sessions[i], c, NULL);
        if (e != NULL && th_run(e, TH_ATTEND | TH_BACKWARD, selection, &r)) {
            th_check_forward(&sessions[i], c, x, &r);
            th_check_backward(&sessions[i], c, x, &r);
            th_check_index(&sessions[i], c, e, &r);
            th_result_free(&r);
        }
        th_close(e);
    }
    th_expected_free(x);
}

/* Random legal selections: rows of any number of picks, also none, also without the own block. */
static void check_random_selection(const th_session *sessions, size_t n, const th_case *c) {
    int32_t *selection = th_allocate((size_t)th_selection_elements(c), sizeof *selection);
    th_random random = {c->seed + 99};
    th_random_selection(c, &random, selection);
    check_selection(sessions, n, c, selection);
    free(selection);
}

Test(attention, prescribed_selections) {
    static const char *const problems[] = {
        "b1q130k130h4g2d64B32t3c,@",
        "b1q100k300h2g1d64B16t7n,@",
        "b3q80k120h4g2d32B16t4c,@,lens=80+3+31/120+3+20;tail=4",
        "b2q90k90h4g1d128B32t2c,@,kconv=3",
        "b1q50k50h2g2d16B16t9c,@",
    };
    th_for_each(problems, COUNT(problems), check_random_selection);
}

/* Ids out of range, repeated, or of the future are ignored; the legal rest counts. */
static void check_illegal_selection(const th_session *sessions, size_t n, const th_case *c) {
    const ref_shape *s = &c->shape;
    static const int32_t bad[] = {-2, -1, INT32_MIN, INT32_MAX, 1000000, 50, 49, 16};
    int64_t elements = th_selection_elements(c);
    int32_t *dirty = th_allocate((size_t)elements, sizeof *dirty);
    th_random random = {c->seed + 5};
    th_random_selection(c, &random, dirty);
    for (int64_t i = 0; i < elements; i++) {
        if (th_integer(&random, 0, 3) == 0) dirty[i] = bad[th_integer(&random, 0, 7)];
        if (th_integer(&random, 0, 3) == 0 && i % s->top_k > 0) dirty[i] = dirty[i - 1];
    }
    check_selection(sessions, n, c, dirty);
    free(dirty);
}

Test(attention, illegal_selections_are_ignored) {
    static const char *const problems[] = {
        "b1q130k130h4g2d64B32t4c,@",
        "b1q100k300h2g1d32B16t7n,@",
        "b3q80k120h4g2d32B16t4c,@,lens=80+3+31/120+3+20;tail=4",
    };
    th_for_each(problems, COUNT(problems), check_illegal_selection);
}

/* The plan cut into slices by heads and by query range, down to the least workspace. */
static void check_slices(const th_session *sessions, size_t n, const th_case *c) {
    th_expected *x = th_expect(c, c->selection, true);
    for (size_t i = 0; i < n; i++) {
        th_session unlimited = sessions[i];
        moba_problem p = c->problem;
        moba_plan *plan = NULL;
        size_t whole = 0;
        p.workspace_limit = MOBA_WORKSPACE_UNLIMITED;
        if (!th_ok(&unlimited, c, moba_plan_create(unlimited.context, &p, &plan), "moba_plan_create")) continue;
        moba_plan_workspace(plan, &whole);
        moba_plan_destroy(plan);
        int n_limits = 0;
        for (uint64_t limit = whole; limit > 0; limit = limit * 2 / 3) {
            th_result r;
            p.workspace_limit = limit;
            if (moba_plan_create(unlimited.context, &p, &plan) != MOBA_OK) break; /* below the least possible */
            moba_plan_destroy(plan);
            if (th_once(&sessions[i], c, &p, TH_ATTEND | TH_BACKWARD, c->selection, &r)) {
                th_check_forward(&sessions[i], c, x, &r);
                th_check_backward(&sessions[i], c, x, &r);
            }
            th_result_free(&r);
            n_limits++;
        }
        if (n_limits == 0) th_fail(&sessions[i], c, "the workspace query's own size %zu is refused as a limit", whole);
    }
    th_expected_free(x);
}

Test(attention, slices) {
    static const char *const problems[] = {
        "b1q700k700h8g4d32B32t4c,f32",
        "b2q300k300h3g3d64B16t8c,bf16,kconv=3,det",
        "b3q600k600h2g1d32B16t6c,f16,lens=600+0+77/600+9+77",
        "b2q400k400h8g2d64B64t4c,bf16",
        "b1q700k700h4g1d128B128t5c,f16,kconv=3,det",
        "b3q500k600h3g1d64B192t3c,bf16,lens=500+0+200/600+9+100;tail=30",
    };
    th_for_each(problems, COUNT(problems), check_slices);
}
