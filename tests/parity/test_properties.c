/* SPDX-License-Identifier: Apache-2.0
 *
 * Properties that hold whatever the reference says: two computations of the library compared with each other.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

/* Largest difference allowed between two results that agree up to rounding: both meet the tolerances of spec.md
 * section 7, so they differ by at most twice those. Relative to the norm of `b`. */
static const double agreement[] = {1e-5, 1e-3, 6e-3};

static void check_close(const th_session *s, const th_case *c, const char *what, const double *a, const double *b,
                        int64_t n) {
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        error += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    if (!(sqrt(error) <= 2 * agreement[c->shape.dtype] * sqrt(norm)))
        th_fail(s, c, "%s: the two results differ by %.3g of their norm", what, sqrt(error / norm));
}

/* A case made from another's string, with its data replaced by the caller. */
static th_case *variant_of(const th_case *c, const char *text) { return th_case_new(text, c->seed); }

static void set_text(char *to, size_t size, const char *format, const th_case *c) {
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    size_t used = 0;
    for (; *format != '\0' && used + 8 < size; format++) {
        if (*format == '@') {
            used += (size_t)snprintf(to + used, size - used, "%s", dtypes[c->shape.dtype]);
        } else {
            to[used++] = *format;
        }
    }
    to[used] = '\0';
}

/* ----------------------------------------------------------------------------------- dense, block-diagonal -- */

static void check_dense_equality(const th_session *sessions, size_t n, const th_case *c) {
    for (size_t i = 0; i < n; i++) {
        moba_problem dense = c->problem;
        th_case dense_case = *c;
        th_result routed, full;
        dense.dense = 1;
        dense_case.problem = dense;
        dense_case.shape.dense = true;
        bool ok = th_once(&sessions[i], c, NULL, TH_FORWARD | TH_BACKWARD, NULL, &routed);
        if (th_once(&sessions[i], &dense_case, NULL, TH_FORWARD | TH_BACKWARD, NULL, &full) && ok) {
            check_close(&sessions[i], c, "top_k >= n and dense: o", routed.o, full.o, th_q_elements(c));
            check_close(&sessions[i], c, "top_k >= n and dense: dq", routed.dq, full.dq, th_q_elements(c));
            check_close(&sessions[i], c, "top_k >= n and dense: dk", routed.dk, full.dk, th_k_elements(c));
            check_close(&sessions[i], c, "top_k >= n and dense: dv", routed.dv, full.dv, th_k_elements(c));
        }
        th_result_free(&routed);
        th_result_free(&full);
    }
}

Test(properties, all_blocks_equal_dense) {
    static const char *const problems[] = {
        "b1q200k200h4g2d64B32t7c,@",
        "b1q200k200h4g2d64B32t1000c,@",
        "b2q70k150h2g2d128B16t10n,@",
        "b3q90k100h2g1d32B16t130c,@,lens=90+0+31/100+4+31",
    };
    th_for_each(problems, COUNT(problems), check_dense_equality);
}

/* top_k = 1: each query attends to its own block only (two published implementations run full attention there). */
static void check_block_diagonal(const th_session *sessions, size_t n, const th_case *c) {
    const ref_shape *s = &c->shape;
    int32_t *own = th_allocate((size_t)th_selection_elements(c), sizeof *own);
    for (int64_t t = 0; t < s->total_q; t++)
        for (int h = 0; h < s->n_q_heads; h++)
            own[t * s->n_q_heads + h] = (int32_t)(t / s->block_size);
    th_expected *x = th_expect(c, own, true);
    for (size_t i = 0; i < n; i++) {
        th_result r;
        if (th_once(&sessions[i], c, NULL, TH_FORWARD | TH_BACKWARD, NULL, &r)) {
            th_check_forward(&sessions[i], c, x, &r);
            th_check_backward(&sessions[i], c, x, &r);
            if (memcmp(own, r.selection, (size_t)th_selection_elements(c) * sizeof *own) != 0)
                th_fail(&sessions[i], c, "top_k = 1 selected something other than the own blocks");
        }
        th_result_free(&r);
    }
    th_expected_free(x);
    free(own);
}

Test(properties, top_k_1_is_block_diagonal) {
    static const char *const problems[] = {"b1q200k200h4g2d64B32t1c,@", "b1q150k150h2g2d128B100t1c,@"};
    th_for_each(problems, COUNT(problems), check_block_diagonal);
}

/* ------------------------------------------------------------------------------------- locality of changes -- */

static void swap_keys(th_case *c, int64_t a, int64_t b) {
    int64_t width = (int64_t)c->shape.n_kv_heads * c->shape.head_dim;
    for (int64_t x = 0; x < width; x++) {
        double k = c->k[a * width + x], v = c->v[a * width + x];
        c->k[a * width + x] = c->k[b * width + x];
        c->v[a * width + x] = c->v[b * width + x];
        c->k[b * width + x] = k;
        c->v[b * width + x] = v;
    }
}

/* Integer data keeps the routing exact, so that only the order of summation changes. */
static void check_permutation(const th_session *sessions, size_t n, const th_case *c) {
    th_case *permuted = th_case_new(c->text, c->seed);
    const int64_t block = 2, size = c->shape.block_size;
    for (int64_t x = 0; x < size / 2; x++)
        swap_keys(permuted, block * size + x, block * size + size - 1 - x);
    th_case_refresh(permuted);
    int64_t first_row = (block + 1) * size, width = (int64_t)c->shape.n_q_heads * c->shape.head_dim;
    for (size_t i = 0; i < n; i++) {
        th_result a, b;
        bool ok = th_once(&sessions[i], c, NULL, TH_FORWARD, NULL, &a);
        if (th_once(&sessions[i], permuted, NULL, TH_FORWARD, NULL, &b) && ok) {
            int64_t elements = th_q_elements(c) - first_row * width;
            check_close(&sessions[i], c, "rows after a permuted past block", a.o + first_row * width,
                        b.o + first_row * width, elements);
            th_check_same(&sessions[i], c, "rows before the permuted block", a.o, b.o, block * size * width);
        }
        th_result_free(&a);
        th_result_free(&b);
    }
    th_case_free(permuted);
}

Test(properties, keys_inside_a_past_block_may_be_permuted) {
    static const char *const problems[] = {"b1q200k200h4g2d64B32t3c,@;fill=integer",
                                           "b1q150k150h2g2d128B16t4c,@;fill=integer"};
    th_for_each(problems, COUNT(problems), check_permutation);
}

/* Other values, then NaN keys, in the last tokens: no earlier row may change by a bit. */
static void check_future(const th_session *sessions, size_t n, const th_case *c) {
    const ref_shape *s = &c->shape;
    int64_t q_width = (int64_t)s->n_q_heads * s->head_dim, k_width = (int64_t)s->n_kv_heads * s->head_dim;
    for (int variant = 0; variant < 2; variant++) {
        for (int64_t cut = s->total_q - 1; cut > 0; cut -= 23) {
            th_case *changed = th_case_new(c->text, c->seed);
            th_random random = {(uint64_t)cut};
            for (int64_t x = cut * k_width; x < th_k_elements(c); x++) {
                changed->k[x] = variant == 0 ? ref_round(s->dtype, 3 * th_normal(&random)) : NAN;
                changed->v[x] = ref_round(s->dtype, 3 * th_normal(&random));
            }
            for (int64_t x = cut * q_width; x < th_q_elements(c); x++)
                changed->q[x] = ref_round(s->dtype, th_normal(&random));
            for (size_t i = 0; i < n; i++) {
                th_result a, b;
                bool ok = th_once(&sessions[i], c, NULL, TH_FORWARD, NULL, &a);
                if (th_once(&sessions[i], changed, NULL, TH_FORWARD, NULL, &b) && ok) {
                    th_check_same(&sessions[i], c,
                                  variant == 0 ? "o of rows before a changed token" : "o of rows before a NaN key", a.o,
                                  b.o, cut * q_width);
                    for (int h = 0; h < s->n_q_heads; h++)
                        th_check_same(&sessions[i], c, "lse of rows before a changed token", a.lse + h * s->total_q,
                                      b.lse + h * s->total_q, cut);
                }
                th_result_free(&a);
                th_result_free(&b);
            }
            th_case_free(changed);
        }
    }
}

Test(properties, a_future_token_changes_no_earlier_row) {
    static const char *const problems[] = {"b1q140k140h4g2d64B32t3c,@", "b1q90k90h2g2d128B16t4c,@,kconv=3",
                                           "b1q100k100h2g1d64B16t1c,@,dense"};
    th_for_each(problems, COUNT(problems), check_future);
}

/* ------------------------------------------------------------------------------------------ split prefill -- */

/* The last rows of a causal run, computed alone over the same keys. */
static void check_split(const th_session *sessions, size_t n, const th_case *c) {
    const ref_shape *s = &c->shape;
    int64_t width = (int64_t)s->n_q_heads * s->head_dim;
    static const int64_t rows[] = {1, 7, 33, 100};
    for (size_t x = 0; x < COUNT(rows); x++) {
        int64_t first = s->total_q - rows[x];
        char text[200];
        static const char *const dtypes[] = {"f32", "f16", "bf16"};
        snprintf(text, sizeof text, "b1q%lldk%lldh%dg%dd%dB%dt%dc,%s%s;fill=integer", (long long)rows[x],
                 (long long)s->total_k, s->n_q_heads, s->n_kv_heads, s->head_dim, s->block_size, s->top_k,
                 dtypes[s->dtype], s->dense ? ",dense" : "");
        th_case *part = variant_of(c, text);
        memcpy(part->k, c->k, sizeof *c->k * (size_t)th_k_elements(c));
        memcpy(part->v, c->v, sizeof *c->v * (size_t)th_k_elements(c));
        memcpy(part->q, c->q + first * width, sizeof *c->q * (size_t)th_q_elements(part));
        th_case_refresh(part);
        for (size_t i = 0; i < n; i++) {
            th_result whole, last;
            bool ok = th_once(&sessions[i], c, NULL, TH_FORWARD, NULL, &whole);
            if (th_once(&sessions[i], part, NULL, TH_FORWARD, NULL, &last) && ok) {
                check_close(&sessions[i], part, "split prefill", last.o, whole.o + first * width, th_q_elements(part));
                int64_t picks = (int64_t)s->n_q_heads * s->top_k;
                if (!s->dense && memcmp(last.selection, whole.selection + first * picks,
                                        (size_t)(rows[x] * picks) * sizeof(int32_t)) != 0)
                    th_fail(&sessions[i], part, "split prefill selects other blocks");
            }
            th_result_free(&whole);
            th_result_free(&last);
        }
        th_case_free(part);
    }
}

Test(properties, split_prefill_equals_rows_of_the_full_run) {
    static const char *const problems[] = {"b1q150k150h4g2d64B32t3c,@;fill=integer",
                                           "b1q130k130h2g1d128B16t1c,@,dense;fill=integer"};
    th_for_each(problems, COUNT(problems), check_split);
}

/* ----------------------------------------------------------------------------------------- GQA and packing -- */

static void check_gqa(const th_session *sessions, size_t n, const th_case *c) {
    const ref_shape *s = &c->shape;
    char text[200];
    set_text(text, sizeof text, "b1q130k130h4g4d64B32t3c,@;fill=integer", c);
    th_case *repeated = variant_of(c, text);
    int group = s->n_q_heads / s->n_kv_heads;
    memcpy(repeated->q, c->q, sizeof *c->q * (size_t)th_q_elements(c));
    memcpy(repeated->dout, c->dout, sizeof *c->dout * (size_t)th_q_elements(c));
    for (int64_t t = 0; t < s->total_k; t++)
        for (int h = 0; h < s->n_q_heads; h++)
            for (int x = 0; x < s->head_dim; x++) {
                int64_t from = (t * s->n_kv_heads + h / group) * s->head_dim + x,
                        to = (t * s->n_q_heads + h) * s->head_dim + x;
                repeated->k[to] = c->k[from];
                repeated->v[to] = c->v[from];
            }
    th_case_refresh(repeated);
    double *dk = th_allocate((size_t)th_k_elements(c), sizeof *dk),
           *dv = th_allocate((size_t)th_k_elements(c), sizeof *dv);
    for (size_t i = 0; i < n; i++) {
        th_result a, b;
        bool ok = th_once(&sessions[i], c, NULL, TH_FORWARD | TH_BACKWARD, NULL, &a);
        if (th_once(&sessions[i], repeated, NULL, TH_FORWARD | TH_BACKWARD, NULL, &b) && ok) {
            memset(dk, 0, sizeof *dk * (size_t)th_k_elements(c));
            memset(dv, 0, sizeof *dv * (size_t)th_k_elements(c));
            for (int64_t x = 0; x < th_k_elements(repeated); x++) {
                int64_t d = x % s->head_dim, h = x / s->head_dim % s->n_q_heads, t = x / s->head_dim / s->n_q_heads;
                dk[(t * s->n_kv_heads + h / group) * s->head_dim + d] += b.dk[x];
                dv[(t * s->n_kv_heads + h / group) * s->head_dim + d] += b.dv[x];
            }
            check_close(&sessions[i], c, "GQA and repeated keys: o", a.o, b.o, th_q_elements(c));
            check_close(&sessions[i], c, "GQA and repeated keys: dq", a.dq, b.dq, th_q_elements(c));
            check_close(&sessions[i], c, "GQA and repeated keys: dk", a.dk, dk, th_k_elements(c));
            check_close(&sessions[i], c, "GQA and repeated keys: dv", a.dv, dv, th_k_elements(c));
            if (memcmp(a.selection, b.selection, (size_t)th_selection_elements(c) * sizeof(int32_t)) != 0)
                th_fail(&sessions[i], c, "GQA selects other blocks than repeated keys");
        }
        th_result_free(&a);
        th_result_free(&b);
    }
    free(dk);
    free(dv);
    th_case_free(repeated);
}

Test(properties, gqa_equals_repeated_keys) {
    static const char *const problems[] = {"b1q130k130h4g2d64B32t3c,@;fill=integer",
                                           "b1q130k130h4g1d64B32t3c,@;fill=integer"};
    th_for_each(problems, COUNT(problems), check_gqa);
}

/* Each sequence of a packed batch, run alone. */
static void check_packing(const th_session *sessions, size_t n, const th_case *c) {
    const ref_shape *s = &c->shape;
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    int64_t q_width = (int64_t)s->n_q_heads * s->head_dim, k_width = (int64_t)s->n_kv_heads * s->head_dim;
    for (size_t i = 0; i < n; i++) {
        th_result all, one;
        if (!th_once(&sessions[i], c, NULL, TH_FORWARD | TH_BACKWARD, NULL, &all)) continue;
        for (int64_t b = 0; b < s->batch; b++) {
            long long rows = s->cu_q[b + 1] - s->cu_q[b], keys = s->cu_k[b + 1] - s->cu_k[b];
            if (rows == 0 || keys == 0) continue;
            char text[200];
            snprintf(text, sizeof text, "b1q%lldk%lldh%dg%dd%dB%dt%d%c,%s;fill=integer", rows, keys, s->n_q_heads,
                     s->n_kv_heads, s->head_dim, s->block_size, s->top_k, s->causal ? 'c' : 'n', dtypes[s->dtype]);
            th_case *alone = variant_of(c, text);
            memcpy(alone->q, c->q + s->cu_q[b] * q_width, sizeof *c->q * (size_t)(rows * q_width));
            memcpy(alone->dout, c->dout + s->cu_q[b] * q_width, sizeof *c->q * (size_t)(rows * q_width));
            memcpy(alone->k, c->k + s->cu_k[b] * k_width, sizeof *c->k * (size_t)(keys * k_width));
            memcpy(alone->v, c->v + s->cu_k[b] * k_width, sizeof *c->v * (size_t)(keys * k_width));
            th_case_refresh(alone);
            if (th_once(&sessions[i], alone, NULL, TH_FORWARD | TH_BACKWARD, NULL, &one)) {
                int64_t picks = (int64_t)s->n_q_heads * s->top_k;
                check_close(&sessions[i], alone, "packed and alone: o", all.o + s->cu_q[b] * q_width, one.o,
                            rows * q_width);
                check_close(&sessions[i], alone, "packed and alone: dq", all.dq + s->cu_q[b] * q_width, one.dq,
                            rows * q_width);
                check_close(&sessions[i], alone, "packed and alone: dk", all.dk + s->cu_k[b] * k_width, one.dk,
                            keys * k_width);
                check_close(&sessions[i], alone, "packed and alone: dv", all.dv + s->cu_k[b] * k_width, one.dv,
                            keys * k_width);
                if (memcmp(all.selection + s->cu_q[b] * picks, one.selection,
                           (size_t)(rows * picks) * sizeof(int32_t)) != 0)
                    th_fail(&sessions[i], alone, "packed and alone select different blocks");
            }
            th_result_free(&one);
            th_case_free(alone);
        }
        th_result_free(&all);
    }
}

Test(properties, packed_equals_separate) {
    static const char *const problems[] = {
        "b4q100k150h4g2d64B32t3c,@,lens=100+0+17+64/150+5+17+33;fill=integer",
        "b3q60k60h2g1d32B16t2n,@,lens=60+5+33/60+5+33;fill=integer",
    };
    th_for_each(problems, COUNT(problems), check_packing);
}

/* NaN in one sequence's tensors and past the last sequence: the others must not see it. */
static void check_isolation(const th_session *sessions, size_t n, const th_case *c) {
    const ref_shape *s = &c->shape;
    int64_t q_width = (int64_t)s->n_q_heads * s->head_dim, k_width = (int64_t)s->n_kv_heads * s->head_dim;
    th_case *dirty = th_case_new(c->text, c->seed);
    for (int64_t x = s->cu_k[1] * k_width; x < s->cu_k[2] * k_width; x++)
        dirty->k[x] = dirty->v[x] = NAN;
    for (int64_t x = s->cu_k[s->batch] * k_width; x < th_k_elements(c); x++)
        dirty->k[x] = dirty->v[x] = NAN;
    for (int64_t x = s->cu_q[1] * q_width; x < s->cu_q[2] * q_width; x++)
        dirty->q[x] = NAN;
    for (int64_t x = s->cu_q[s->batch] * q_width; x < th_q_elements(c); x++)
        dirty->q[x] = dirty->dout[x] = NAN;
    for (size_t i = 0; i < n; i++) {
        th_result a, b;
        bool ok = th_once(&sessions[i], c, NULL, TH_FORWARD | TH_BACKWARD, NULL, &a);
        if (th_once(&sessions[i], dirty, NULL, TH_FORWARD | TH_BACKWARD, NULL, &b) && ok) {
            int64_t q_after = s->cu_q[2] * q_width, k_after = s->cu_k[2] * k_width;
            th_check_same(&sessions[i], c, "o before a NaN sequence", a.o, b.o, s->cu_q[1] * q_width);
            th_check_same(&sessions[i], c, "o after a NaN sequence", a.o + q_after, b.o + q_after,
                          th_q_elements(c) - q_after);
            check_close(&sessions[i], c, "dq before a NaN sequence", b.dq, a.dq, s->cu_q[1] * q_width);
            check_close(&sessions[i], c, "dk before a NaN sequence", b.dk, a.dk, s->cu_k[1] * k_width);
            check_close(&sessions[i], c, "dv before a NaN sequence", b.dv, a.dv, s->cu_k[1] * k_width);
            check_close(&sessions[i], c, "dq after a NaN sequence", b.dq + q_after, a.dq + q_after,
                        th_q_elements(c) - q_after);
            check_close(&sessions[i], c, "dk after a NaN sequence", b.dk + k_after, a.dk + k_after,
                        th_k_elements(c) - k_after);
            check_close(&sessions[i], c, "dv after a NaN sequence", b.dv + k_after, a.dv + k_after,
                        th_k_elements(c) - k_after);
        }
        th_result_free(&a);
        th_result_free(&b);
    }
    th_case_free(dirty);
}

Test(properties, sequences_are_isolated) {
    static const char *const problems[] = {
        "b3q70k90h4g2d64B32t3c,@,lens=70+20+37/90+25+41;tail=9",
        "b3q70k70h2g1d32B16t2n,@,lens=70+20+37/70+21+37;tail=3",
        "b3q50k50h2g2d64B16t1c,@,dense,lens=50+20+37/50+21+37;tail=9",
    };
    th_for_each(problems, COUNT(problems), check_isolation);
}

/* ------------------------------------------------------------------------------------- zero gradients, bounds -- */

/* Block 1 is in nobody's list: exactly zero gradients there, and everywhere in rows without a pick. */
static void check_unselected(const th_session *sessions, size_t n, const th_case *c) {
    const ref_shape *s = &c->shape;
    int64_t picks = th_selection_elements(c), k_width = (int64_t)s->n_kv_heads * s->head_dim;
    int32_t *selection = th_allocate((size_t)picks, sizeof *selection);
    th_random random = {c->seed};
    th_random_selection(c, &random, selection);
    for (int64_t i = 0; i < picks; i++)
        if (selection[i] == 1) selection[i] = -1;
    for (size_t i = 0; i < n; i++) {
        th_result r;
        if (th_once(&sessions[i], c, NULL, TH_ATTEND | TH_BACKWARD, selection, &r))
            for (int64_t x = s->block_size * k_width; x < 2 * s->block_size * k_width; x++)
                if (r.dk[x] != 0 || r.dv[x] != 0) {
                    th_fail(&sessions[i], c, "unselected key %lld has gradient %g, %g", (long long)(x / k_width),
                            r.dk[x], r.dv[x]);
                    break;
                }
        th_result_free(&r);
    }
    free(selection);
}

Test(properties, unselected_keys_have_zero_gradient) {
    static const char *const problems[] = {"b1q130k130h4g2d64B32t3c,@", "b1q60k130h2g2d128B32t4n,@",
                                           "b1q90k90h8g1d17B16t2c,@"};
    th_for_each(problems, COUNT(problems), check_unselected);
}

/* Bounds larger than the run, in every dimension, change no bit (MoBA#32). */
static void check_hints(const th_session *sessions, size_t n, const th_case *c) {
    for (size_t i = 0; i < n; i++) {
        th_result exact;
        if (!th_once(&sessions[i], c, NULL, TH_FORWARD | TH_BACKWARD, NULL, &exact)) continue;
        for (int variant = 0; variant < 6; variant++) {
            moba_problem p = c->problem;
            th_result r;
            if (variant == 0 || variant == 5) p.max_batch += 11;
            if (variant == 1 || variant == 5) p.max_total_q = p.max_total_q * 5 + 3;
            if (variant == 2 || variant == 5) p.max_total_k = p.max_total_k * 7 + 1;
            if (variant == 3 || variant == 5) p.max_seqlen_q = p.max_total_q;
            if (variant == 4 || variant == 5) p.max_seqlen_k = p.max_total_k;
            if (th_once(&sessions[i], c, &p, TH_FORWARD | TH_BACKWARD, NULL, &r))
                th_check_same_result(&sessions[i], c, "larger bounds", &exact, &r);
            th_result_free(&r);
        }
        th_result_free(&exact);
    }
}

Test(properties, larger_bounds_change_no_bit) {
    static const char *const problems[] = {
        "b1q300k300h4g2d64B32t3c,@,det",
        "b3q130k150h4g4d64B16t4c,@,det,lens=130+0+64/150+5+64;tail=3",
        "b2q90k90h2g1d64B32t2n,@,det,kconv=3",
        "b1q90k90h2g1d64B32t2c,@,det,dense",
    };
    th_for_each(problems, COUNT(problems), check_hints);
}

/* ---------------------------------------------------------------------------------------- finite differences -- */

static double loss(const th_case *c, th_exec *e, const int32_t *selection) {
    th_result r;
    double sum = 0;
    if (th_run(e, c->shape.dense ? TH_FORWARD : TH_ATTEND, selection, &r))
        for (int64_t x = 0; x < th_q_elements(c); x++)
            sum += r.o[x] * c->dout[x];
    th_result_free(&r);
    return sum;
}

/* Central differences of the library's own float32 forward along random directions. */
static void check_differences(const th_session *sessions, size_t n, const th_case *c) {
    const double h = 1e-2;
    for (size_t i = 0; i < n; i++) {
        th_result r;
        if (!th_once(&sessions[i], c, NULL, (c->shape.dense ? TH_FORWARD : TH_ATTEND) | TH_BACKWARD, c->selection, &r))
            continue;
        struct {
            const char *name;
            const double *gradient;
            int64_t n;
            size_t member;
        } rows[] = {{"dq", r.dq, th_q_elements(c), offsetof(th_case, q)},
                    {"dk", r.dk, th_k_elements(c), offsetof(th_case, k)},
                    {"dv", r.dv, th_k_elements(c), offsetof(th_case, v)},
                    {"dw", r.dw, th_w_elements(c), offsetof(th_case, w)}};
        for (size_t x = 0; x < COUNT(rows); x++) {
            double value[2], slope = 0, size = 0;
            for (int side = 0; side < 2; side++) {
                th_case *moved = th_case_new(c->text, c->seed);
                th_random random = {x + 31};
                double *data;
                memcpy(&data, (const char *)moved + rows[x].member, sizeof data);
                slope = size = 0;
                for (int64_t j = 0; j < rows[x].n; j++) {
                    double direction = th_normal(&random);
                    data[j] = ref_round(REF_F32, data[j] + (side == 0 ? h : -h) * direction);
                    slope += direction * rows[x].gradient[j];
                    size += rows[x].gradient[j] * rows[x].gradient[j];
                }
                th_exec *e = th_open(&sessions[i], moved, NULL);
                value[side] = e != NULL ? loss(moved, e, c->selection) : NAN;
                th_close(e);
                th_case_free(moved);
            }
            double measured = (value[0] - value[1]) / (2 * h);
            /* h^2 truncation and float32 noise over 2h, both relative to the gradient's norm */
            if (rows[x].n > 0 && !(fabs(measured - slope) <= 0.02 * sqrt(size) + 1e-3))
                th_fail(&sessions[i], c, "%s: slope %.6g, finite difference %.6g", rows[x].name, slope, measured);
        }
        th_result_free(&r);
    }
}

Test(properties, gradients_agree_with_finite_differences_of_the_forward) {
    static const char *const problems[] = {
        "b1q60k60h2g1d16B16t2c,f32",
        "b2q30k40h2g2d8B16t2n,f32,kconv=3",
        "b1q40k40h2g1d16B16t1c,f32,dense",
        "b2q40k40h4g1d8B16t2c,f32,kconv=2,lens=40+9/40+9",
    };
    th_for_each(problems, COUNT(problems), check_differences);
}
