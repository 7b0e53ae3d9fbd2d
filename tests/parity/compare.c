/* SPDX-License-Identifier: Apache-2.0
 *
 * Expected results and the comparisons of spec.md section 7.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

/* Relative Frobenius error by dtype (f32, f16, bf16), for outputs and for gradients. */
static const double output_tolerance[] = {2e-6, 5e-4, 4e-3};
static const double gradient_tolerance[] = {1e-5, 1e-3, 6e-3};
/* Beyond this |scaled score| only the elementwise rule applies. */
static const double score_limit = 16;
/* A Frobenius error is a statement about many rows: below this number of them, one cancellation in dP - delta decides
 * it, and the elementwise rule judges alone. */
static const int64_t least_rows = 64;

/* ----------------------------------------------------------------------------------------------- expected -- */

/* Raises *largest to the largest difference of two arrays; nothing when `a` is NULL. */
static void raise_to(double *largest, const double *a, const double *b, int64_t n) {
    for (int64_t i = 0; a != NULL && i < n; i++)
        if (isfinite(a[i]) && isfinite(b[i]) && fabs(a[i] - b[i]) > *largest) *largest = fabs(a[i] - b[i]);
}

static double largest(const double *x, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        if (fabs(x[i]) > most) most = fabs(x[i]);
    return most;
}

/* Fills max_score, max_dp and n_rows. */
static void survey(const th_case *c, const int32_t *selection, th_expected *expected) {
    const ref_shape *s = &c->shape;
    int64_t stride = (int64_t)s->n_kv_heads * s->head_dim;
    for (int64_t b = 0; b < s->batch; b++) {
        int64_t n = s->cu_k[b + 1] - s->cu_k[b];
        bool *keep = th_allocate((size_t)n, sizeof *keep);
        for (int64_t i = 0; i < s->cu_q[b + 1] - s->cu_q[b]; i++)
            for (int h = 0; h < s->n_q_heads; h++) {
                int64_t t = s->cu_q[b] + i;
                expected->n_rows += ref_keep(s, b, i, t, h, selection, keep) > 1;
                for (int64_t x = 0; x < n; x++) {
                    if (!keep[x]) continue;
                    int64_t q_at = (t * s->n_q_heads + h) * s->head_dim;
                    int64_t k_at = (s->cu_k[b] + x) * stride + (h / (s->n_q_heads / s->n_kv_heads)) * s->head_dim;
                    double score = 0, dp = 0;
                    for (int d = 0; d < s->head_dim; d++) {
                        score += s->scale * c->q[q_at + d] * c->kprime[k_at + d];
                        dp += c->dout[q_at + d] * c->v[k_at + d];
                    }
                    expected->max_score = fmax(expected->max_score, fabs(score));
                    expected->max_dp = fmax(expected->max_dp, fabs(dp));
                }
            }
        free(keep);
    }
}

th_expected *th_expect(const th_case *c, const int32_t *selection, bool gradients) {
    const ref_shape *s = &c->shape;
    size_t nq = (size_t)th_q_elements(c), nk = (size_t)th_k_elements(c), nw = (size_t)th_w_elements(c),
           nl = (size_t)th_lse_elements(c);
    th_expected *x = th_allocate(1, sizeof *x);
    x->o = th_allocate(nq, sizeof(double));
    x->lse = th_allocate(nl, sizeof(double));
    ref_attend(s, c->q, c->kprime, c->v, selection, x->o, x->lse);
    survey(c, selection, x);
    double *plain[6] = {th_allocate(nq, sizeof(double)), th_allocate(nl, sizeof(double))};
    if (gradients) {
        double *dkprime = th_allocate(nk, sizeof *dkprime);
        x->dq = th_allocate(nq, sizeof(double));
        x->dk = th_allocate(nk, sizeof(double));
        x->dv = th_allocate(nk, sizeof(double));
        x->dw = th_allocate(nw, sizeof(double));
        ref_attend_bwd(s, c->q, c->kprime, c->v, selection, c->dout, x->dq, dkprime, x->dv);
        ref_kconv_bwd(s, c->k, c->w, dkprime, x->dk, x->dw);
        free(dkprime);
        plain[2] = th_allocate(nq, sizeof(double));
        plain[3] = th_allocate(nk, sizeof(double));
        plain[4] = th_allocate(nk, sizeof(double));
        plain[5] = th_allocate(nw, sizeof(double));
    }
    for (int variant = 0; variant < 2; variant++) {
        th_plain(c, selection, variant, plain[0], plain[1], plain[2], plain[3], plain[4], plain[5]);
        raise_to(&x->plain_o, plain[0], x->o, (int64_t)nq);
        raise_to(&x->plain_dq, plain[2], x->dq, (int64_t)nq);
        raise_to(&x->plain_dk, plain[3], x->dk, (int64_t)nk);
        raise_to(&x->plain_dv, plain[4], x->dv, (int64_t)nk);
        raise_to(&x->plain_dw, plain[5], x->dw, (int64_t)nw);
    }
    for (size_t i = 0; i < 6; i++)
        free(plain[i]);
    return x;
}

void th_expected_free(th_expected *x) {
    if (x == NULL) return;
    double *owned[] = {x->o, x->lse, x->dq, x->dk, x->dv, x->dw};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    free(x);
}

/* ------------------------------------------------------------------------------------------------- checks -- */

/* Twice the change that rounding to the dtype makes at ref + 0.3, as FlashAttention's tests derive it, and at least one
 * unit in the last place of the largest result. */
static double rounding_atol(int dtype, const double *ref, int64_t n) {
    static const double unit[] = {0x1p-23, 0x1p-10, 0x1p-7};
    double change = 0, most = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(ref[i])) continue;
        double back = ref_round(dtype, ref_round(dtype, ref[i] + 0.3) - 0.3);
        if (fabs(back - ref[i]) > change) change = fabs(back - ref[i]);
        most = fmax(most, fabs(ref[i]));
    }
    return fmax(2 * change, most * unit[dtype]);
}

/* Elements whose reference is NaN (a visible NaN or infinite key) are not judged. `slack`: see score_slack(). */
static void check_tensor(const th_session *s, const th_case *c, const char *name, const double *got, const double *ref,
                         int64_t n, double plain, double slack, double frobenius) {
    double atol = rounding_atol(c->shape.dtype, ref, n) + slack, error = 0, norm = 0, worst = -1;
    int64_t worst_at = 0;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(ref[i])) continue;
        if (!isfinite(got[i])) {
            th_fail(s, c, "%s[%lld] is %g; the reference is %g", name, (long long)i, got[i], ref[i]);
            return;
        }
        double difference = fabs(got[i] - ref[i]);
        error += difference * difference;
        norm += ref[i] * ref[i];
        if (difference > worst) worst = difference, worst_at = i;
    }
    if (worst > 2 * plain + atol)
        th_fail(s, c, "%s[%lld] is %.9g, the reference %.9g: error %.3g is over 2 * %.3g (plain) + %.3g", name,
                (long long)worst_at, got[worst_at], ref[worst_at], worst, plain, atol);
    if (frobenius > 0 && norm > 0 && sqrt(error / norm) > frobenius)
        th_fail(s, c, "%s: relative Frobenius error %.3g is over %.3g", name, sqrt(error / norm), frobenius);
}

/* The Frobenius tolerances are for scores within the limit, for enough rows, and for data whose results do not cancel
 * (equal keys have dq = 0 in exact arithmetic). 0: not judged. */
static double frobenius(const th_case *c, const th_expected *x, const double *tolerance) {
    bool random = c->fill == TH_NORMAL || c->fill == TH_INTEGER || c->fill == TH_ZERO_ROWS;
    return random && x->max_score <= score_limit && x->n_rows >= least_rows ? tolerance[c->shape.dtype] : 0;
}

/* Past the limit the float32 roundings of a score s (its sum, its base, lse, the difference: half an ulp each) change a
 * probability by 2^-22 |s| of itself, which a plain implementation may escape by luck. A result that is a mean of terms
 * of size `term`, weighted by probabilities, then changes by twice that. */
static double score_slack(const th_expected *x, double term) {
    return x->max_score > score_limit ? 2 * 0x1p-22 * x->max_score * term : 0;
}

/* lse is float32 whatever the dtype: the score and the sum each carry a few roundings of the scores' size. With a key
 * convolution an element of k' may round to its other neighbour. */
static void check_lse(const th_session *s, const th_case *c, const th_expected *x, const double *got) {
    static const double neighbour[] = {0x1p-23, 0x1p-10, 0x1p-7};
    double rounding = 16 * 0x1p-24 + (c->shape.kconv_width > 0 ? neighbour[c->shape.dtype] : 0);
    for (int64_t i = 0; i < th_lse_elements(c); i++) {
        double ref = x->lse[i], size = fmax(1, fmax(fabs(ref), x->max_score));
        if (isnan(ref) || got[i] == ref) continue;
        if (isfinite(ref) && fabs(got[i] - ref) <= rounding * size) continue;
        th_fail(s, c, "lse[%lld] is %.9g; the reference is %.9g", (long long)i, got[i], ref);
        return;
    }
}

void th_check_forward(const th_session *s, const th_case *c, const th_expected *x, const th_result *r) {
    double slack = score_slack(x, largest(c->v, th_k_elements(c)));
    check_tensor(s, c, "o", r->o, x->o, th_q_elements(c), x->plain_o, slack, frobenius(c, x, output_tolerance));
    check_lse(s, c, x, r->lse);
}

void th_check_backward(const th_session *s, const th_case *c, const th_expected *x, const th_result *r) {
    int64_t nq = th_q_elements(c), nk = th_k_elements(c);
    double tolerance = frobenius(c, x, gradient_tolerance), ds = c->shape.scale * x->max_dp;
    double slack_dq = score_slack(x, ds * largest(c->kprime, nk)), slack_dk = score_slack(x, ds * largest(c->q, nq));
    check_tensor(s, c, "dq", r->dq, x->dq, nq, x->plain_dq, slack_dq, tolerance);
    check_tensor(s, c, "dk", r->dk, x->dk, nk, x->plain_dk, slack_dk, tolerance);
    check_tensor(s, c, "dv", r->dv, x->dv, nk, x->plain_dv, score_slack(x, largest(c->dout, nq)), tolerance);
    if (c->shape.kconv_width > 0)
        check_tensor(s, c, "dw", r->dw, x->dw, th_w_elements(c), x->plain_dw, slack_dk * largest(c->k, nk), tolerance);
}

void th_check_both(const th_session *sessions, size_t n, const th_case *c) {
    th_expected *x = th_expect(c, c->selection, true);
    for (size_t i = 0; i < n; i++) {
        th_result r;
        unsigned forward = c->shape.dense ? TH_FORWARD : TH_ATTEND;
        if (th_once(&sessions[i], c, NULL, forward | TH_BACKWARD, c->selection, &r)) {
            th_check_forward(&sessions[i], c, x, &r);
            th_check_backward(&sessions[i], c, x, &r);
        }
        th_result_free(&r);
    }
    th_expected_free(x);
}

bool th_check_same(const th_session *s, const th_case *c, const char *what, const double *a, const double *b,
                   int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0) {
            th_fail(s, c, "%s: element %lld is %.9g and %.9g", what, (long long)i, a[i], b[i]);
            return false;
        }
    return true;
}

bool th_check_same_result(const th_session *s, const th_case *c, const char *what, const th_result *a,
                          const th_result *b) {
    const struct {
        const char *name;
        const double *a, *b;
        int64_t n;
    } rows[] = {{"o", a->o, b->o, th_q_elements(c)},    {"lse", a->lse, b->lse, th_lse_elements(c)},
                {"dq", a->dq, b->dq, th_q_elements(c)}, {"dk", a->dk, b->dk, th_k_elements(c)},
                {"dv", a->dv, b->dv, th_k_elements(c)}, {"dw", a->dw, b->dw, th_w_elements(c)}};
    char label[160];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(label, sizeof label, "%s: %s", what, rows[i].name);
        if (rows[i].a != NULL && rows[i].b != NULL && !th_check_same(s, c, label, rows[i].a, rows[i].b, rows[i].n))
            return false;
    }
    if (a->selection == NULL || b->selection == NULL) return true;
    for (int64_t i = 0; i < th_selection_elements(c); i++)
        if (a->selection[i] != b->selection[i]) {
            th_fail(s, c, "%s: selection[%lld] is %d and %d", what, (long long)i, a->selection[i], b->selection[i]);
            return false;
        }
    return true;
}

/* --------------------------------------------------------------------------------------------------- gate -- */

/* What one rounding step of every centroid channel can do to a score. */
static double centroid_ulps(const th_case *c, int64_t b, int64_t t, int h, int64_t j) {
    static const double relative[] = {0x1p-23, 0x1p-10, 0x1p-7};
    const ref_shape *s = &c->shape;
    int64_t slot = (ref_block_base(s, b) + j) * s->n_kv_heads + h / (s->n_q_heads / s->n_kv_heads);
    double sum = 0;
    for (int d = 0; d < s->head_dim; d++)
        sum += fabs(c->q[(t * s->n_q_heads + h) * s->head_dim + d] * c->centroids[slot * s->head_dim + d]);
    return sum * relative[s->dtype];
}

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* One row of one head. False after the first failure. */
static bool check_gate_row(const th_session *session, const th_case *c, int64_t b, int64_t i, int h,
                           const int32_t *row) {
    const ref_shape *s = &c->shape;
    int64_t n = ref_seq_blocks(s, b), t = s->cu_q[b] + i, takes, n_scores = 0, picked = 0;
    bool *candidate = th_allocate((size_t)n, sizeof *candidate), ok = false;
    bool *taken = th_allocate((size_t)n, sizeof *taken);
    double *scores = th_allocate((size_t)n, sizeof *scores);
    ref_candidates(s, b, i, candidate, &takes);
    for (int m = 0; m < s->top_k; m++) {
        int32_t previous = m > 0 ? row[m - 1] : -1;
        bool well_formed = row[m] == -1 || (row[m] < n && row[m] > previous && (m == 0 || previous >= 0));
        if (!well_formed) {
            th_fail(session, c, "selection row %lld head %d rank %d is %d after %d (%lld blocks)", (long long)t, h, m,
                    row[m], previous, (long long)n);
            goto done;
        }
        if (row[m] >= 0) taken[row[m]] = true;
    }
    for (int64_t j = 0; j < n; j++) {
        double score = candidate[j] ? ref_score(s, c->q, c->centroids, b, t, h, j) : NAN;
        if (!isnan(score)) scores[n_scores++] = score;
        bool forced = ref_forced(s, b, i, j);
        if (forced != taken[j] && (forced || isnan(score))) {
            th_fail(session, c, "row %lld head %d: block %lld is %s", (long long)t, h, (long long)j,
                    forced ? "forced but not selected" : "selected but no candidate (or its score is NaN)");
            goto done;
        }
        picked += taken[j] && !forced;
    }
    if (takes > n_scores) takes = n_scores;
    if (picked != takes) {
        th_fail(session, c, "row %lld head %d: the gate took %lld blocks of %lld", (long long)t, h, (long long)picked,
                (long long)takes);
        goto done;
    }
    qsort(scores, (size_t)n_scores, sizeof *scores, descending);
    for (int64_t j = 0; j < n && takes > 0; j++) {
        double score = candidate[j] ? ref_score(s, c->q, c->centroids, b, t, h, j) : NAN, edge = scores[takes - 1];
        if (isnan(score) || isinf(edge)) continue;
        double slack = 1e-3 * fmax(1, fabs(edge)) + centroid_ulps(c, b, t, h, j);
        if (taken[j] ? score < edge - slack : takes < n_scores && score > edge + slack) {
            th_fail(session, c, "row %lld head %d: block %lld with score %.9g is %s; the last place is at %.9g",
                    (long long)t, h, (long long)j, score, taken[j] ? "selected" : "left out", edge);
            goto done;
        }
    }
    ok = true;
done:
    free(candidate);
    free(taken);
    free(scores);
    return ok;
}

void th_check_gate(const th_session *session, const th_case *c, const int32_t *selection, bool identity) {
    const ref_shape *s = &c->shape;
    int64_t width = (int64_t)s->n_q_heads * s->top_k;
    for (int64_t x = s->cu_q[s->batch] * width; x < s->total_q * width; x++)
        if (selection[x] != -1) {
            th_fail(session, c, "selection[%lld], past the last sequence, is %d", (long long)x, selection[x]);
            return;
        }
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t i = 0; i < s->cu_q[b + 1] - s->cu_q[b]; i++)
            for (int h = 0; h < s->n_q_heads; h++)
                if (!check_gate_row(session, c, b, i, h, selection + ((s->cu_q[b] + i) * s->n_q_heads + h) * s->top_k))
                    return;
    for (int64_t x = 0; identity && x < s->total_q * width; x++)
        if (selection[x] != c->selection[x]) {
            th_fail(session, c, "row %lld head %lld rank %lld: block %d, the reference takes %d",
                    (long long)(x / width), (long long)(x % width / s->top_k), (long long)(x % s->top_k), selection[x],
                    c->selection[x]);
            return;
        }
}

/* -------------------------------------------------------------------------------------------------- index -- */

typedef struct saved_view {
    const int32_t *selection; /* NULL where there are masks */
    const uint8_t *masks;
    size_t mask_bytes; /* of a row */
    const int64_t *offsets;
    const uint32_t *rows;
    const uint16_t *ranks;
    int64_t n_slots, row_stride;
} saved_view;

static size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* The regions of `saved` as core/plan.h lays them out, for a plan whose bounds are the run's own shape. */
static bool view_saved(const th_session *session, const th_case *c, const th_exec *e, const th_result *r,
                       saved_view *v) {
    const ref_shape *s = &c->shape;
    int64_t blocks = (e->problem.max_total_k + s->block_size - 1) / s->block_size;
    int64_t group = s->n_q_heads / s->n_kv_heads, picks = s->top_k < blocks ? s->top_k : blocks;
    v->n_slots = e->problem.max_total_k / s->block_size + e->problem.max_batch;
    v->row_stride = e->problem.max_total_q * group * picks;
    const size_t query_rows = (size_t)(e->problem.max_total_q * s->n_q_heads);
    const bool has_masks = strstr(moba_plan_kernel(e->plan, "index"), "__sm90") != NULL &&
                           moba_plan_kernel(e->plan, "dq_sum") != NULL &&
                           strstr(moba_plan_kernel(e->plan, "dq_sum"), "__sm90") != NULL;
    v->mask_bytes = s->top_k <= 8 ? 1 : s->top_k <= 16 ? 2 : ((size_t)s->top_k + 31) / 32 * 4;
    size_t selection = aligned(query_rows * (has_masks ? v->mask_bytes : (size_t)s->top_k * sizeof *v->selection));
    size_t offsets = aligned((size_t)(s->n_kv_heads * (v->n_slots + 1)) * sizeof *v->offsets);
    size_t rows = aligned((size_t)(s->n_kv_heads * v->row_stride) * sizeof *v->rows);
    size_t ranks = aligned((size_t)(s->n_kv_heads * v->row_stride) * sizeof *v->ranks);
    if (selection + offsets + rows + ranks != r->saved_bytes) {
        th_fail(session, c, "saved has %zu bytes; its layout says %zu", r->saved_bytes,
                selection + offsets + rows + ranks);
        return false;
    }
    v->selection = has_masks ? NULL : (const int32_t *)(const void *)r->saved;
    v->masks = has_masks ? r->saved : NULL;
    v->offsets = (const int64_t *)(const void *)(r->saved + selection);
    v->rows = (const uint32_t *)(const void *)(r->saved + selection + offsets);
    v->ranks = (const uint16_t *)(const void *)(r->saved + selection + offsets + rows);
    return true;
}

/* Is rank m of this row's list the first legal occurrence of block j? */
static bool is_pick(const int32_t *row, int m, int64_t j) {
    if (row[m] != j) return false;
    for (int x = 0; x < m; x++)
        if (row[x] == j) return false;
    return true;
}

void th_check_index(const th_session *session, const th_case *c, const th_exec *e, const th_result *r) {
    const ref_shape *s = &c->shape;
    saved_view v;
    if (!view_saved(session, c, e, r, &v)) return;
    int group = s->n_q_heads / s->n_kv_heads;
    for (int64_t x = 0; v.selection != NULL && x < th_selection_elements(c); x++)
        if (v.selection[x] != r->selection[x]) {
            th_fail(session, c, "saved selection[%lld] is %d, selection %d", (long long)x, v.selection[x],
                    r->selection[x]);
            return;
        }
    const size_t mask_bytes = (size_t)(s->total_q * group) * v.mask_bytes; /* of a kv head */
    uint8_t *masks = th_allocate(mask_bytes, 1);
    for (int g = 0; g < s->n_kv_heads; g++) {
        memset(masks, 0, mask_bytes);
        const int64_t *offsets = v.offsets + (int64_t)g * (v.n_slots + 1);
        int64_t *owner = th_allocate((size_t)v.n_slots, sizeof *owner); /* sequence + 1 of a slot, 0: none */
        for (int64_t b = 0; b < s->batch; b++)
            for (int64_t j = 0; j < ref_seq_blocks(s, b); j++)
                owner[s->cu_k[b] / s->block_size + b + j] = b + 1;
        int64_t at = 0;
        for (int64_t slot = 0; slot < v.n_slots; slot++) {
            if (offsets[slot] != at) {
                th_fail(session, c, "kv head %d: the list of slot %lld begins at %lld, expected %lld", g,
                        (long long)slot, (long long)offsets[slot], (long long)at);
                goto done;
            }
            if (owner[slot] == 0) continue;
            int64_t b = owner[slot] - 1, j = slot - b - s->cu_k[b] / s->block_size;
            for (int64_t t = s->cu_q[b]; t < s->cu_q[b + 1]; t++)
                for (int h = 0; h < group; h++)
                    for (int m = 0; m < s->top_k; m++) {
                        const int32_t *row = r->selection + (t * s->n_q_heads + g * group + h) * s->top_k;
                        bool legal = !s->causal || j <= ref_own_block(s, b, t - s->cu_q[b]);
                        if (!legal || !is_pick(row, m, j)) continue;
                        const uint32_t *got = v.rows + g * v.row_stride + at;
                        const uint16_t *rank = v.ranks + g * v.row_stride + at;
                        if (at >= v.row_stride || *got != (uint32_t)(t * group + h) || *rank != m) {
                            th_fail(session, c,
                                    "kv head %d slot %lld entry %lld is row %u rank %u; expected %lld rank %d", g,
                                    (long long)slot, (long long)(at - offsets[slot]), *got, *rank,
                                    (long long)(t * group + h), m);
                            goto done;
                        }
                        masks[(size_t)(t * group + h) * v.mask_bytes + (size_t)m / 8] |= (uint8_t)(1u << m % 8);
                        at++;
                    }
        }
        if (offsets[v.n_slots] != at)
            th_fail(session, c, "kv head %d: the last offset is %lld, expected %lld", g, (long long)offsets[v.n_slots],
                    (long long)at);
        if (v.masks != NULL && memcmp(masks, v.masks + (size_t)g * mask_bytes, mask_bytes) != 0)
            th_fail(session, c, "kv head %d: the saved masks of picks are not those of the index", g);
    done:
        free(owner);
    }
    free(masks);
}
