/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks of a selection: the form of every row, and the regret of sampled rows (docs/spec.md sections 4 and 7).
 */
#include <inttypes.h>
#include <math.h>

#include "cli/verify_internal.h"

/** Blocks a row must take whatever their score: own and local ones, sinks. Ids are in [0, n_candidates). */
typedef struct forced_blocks {
    int64_t n_candidates; /* blocks at or before the own one when causal, else all */
    int64_t n_sinks;      /* ids below this */
    int64_t local_begin;  /* ids from this on, own block included; n_candidates when non-causal */
} forced_blocks;

static forced_blocks forced_of(const mobai_reference *reference, const mobai_row *row) {
    const mobai_bench_problem *problem = reference->problem;
    forced_blocks f = {mobai_reference_blocks(reference, row->b), problem->n_sink_blocks, 0};
    if (problem->causal) {
        f.n_candidates = row->pos < 0 ? 0 : row->pos / problem->block_size + 1;
        const int64_t n_local = problem->n_local_blocks > 1 ? problem->n_local_blocks : 1;
        f.local_begin = f.n_candidates > n_local ? f.n_candidates - n_local : 0;
    } else {
        f.local_begin = f.n_candidates;
    }
    if (f.n_sinks > f.local_begin) f.n_sinks = f.local_begin;
    return f;
}

static bool is_forced(const forced_blocks *f, int64_t j) { return j < f->n_sinks || j >= f->local_begin; }

/** Ascending distinct candidates, then -1; all forced blocks among them; never more free ones than there is room for.
 */
static void check_form(const mobai_reference *reference, const int32_t *ids, const mobai_row *row,
                       mobai_verdict *verdict) {
    const int32_t top_k = reference->problem->top_k;
    const forced_blocks f = forced_of(reference, row);
    int64_t n = 0, n_forced = 0;
    for (; n < top_k && ids[n] != -1; n++) {
        const bool legal = ids[n] >= 0 && ids[n] < f.n_candidates && (n == 0 || ids[n] > ids[n - 1]);
        if (!legal) {
            mobai_fault(verdict,
                        "selection of row %" PRId64 ", head %" PRId32 ": entry %" PRId64 " is %" PRId32
                        ", must ascend within the %" PRId64 " candidates",
                        row->t, row->h, n, ids[n], f.n_candidates);
            return;
        }
        n_forced += is_forced(&f, ids[n]);
    }
    for (int64_t m = n; m < top_k; m++) {
        if (ids[m] != -1) {
            mobai_fault(verdict,
                        "selection of row %" PRId64 ", head %" PRId32 ": entry %" PRId64 " after -1 is %" PRId32,
                        row->t, row->h, m, ids[m]);
            return;
        }
    }
    const int64_t want = f.n_sinks + f.n_candidates - f.local_begin;
    if (n_forced != want) {
        mobai_fault(verdict,
                    "selection of row %" PRId64 ", head %" PRId32 " has %" PRId64 " of %" PRId64
                    " forced blocks (own, local, sink)",
                    row->t, row->h, n_forced, want);
    }
}

/** The m-th largest of scores[0..n), by quickselect; the array is reordered. None is NaN. */
static double place_of(double *scores, int64_t n, int64_t m) {
    int64_t low = 0, high = n - 1;
    const int64_t want = m - 1; /* index in descending order */
    while (low < high) {
        const double pivot = scores[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (scores[i] > pivot)
                i++;
            while (scores[j] < pivot)
                j--;
            if (i > j) break;
            const double swap = scores[i];
            scores[i++] = scores[j];
            scores[j--] = swap;
        }
        if (want <= j) {
            high = j;
        } else if (want >= i) {
            low = i;
        } else {
            break;
        }
    }
    return scores[want];
}

/** Regret of one row. `scores` holds twice n_slots + 1 numbers. */
static void check_regret(const mobai_reference *reference, const int32_t *ids, const mobai_row *row, double *scores,
                         mobai_verdict *verdict) {
    const mobai_bench_problem *problem = reference->problem;
    const int32_t dim = reference->dim;
    const forced_blocks f = forced_of(reference, row);
    double *sorted = scores + reference->n_slots;
    float q[256];
    mobai_load_row(reference, reference->in->q, problem->n_q_heads, row->t, row->h, q);
    const size_t base =
        ((size_t)row->g * (size_t)reference->n_slots + (size_t)reference->slot_begin[row->b]) * (size_t)dim;
    int64_t n_free = 0;
    double slack = 0.0; /* what other roundings of a centroid may change a score by, at most */
    for (int64_t j = f.n_sinks; j < f.local_begin; j++) {
        const float *centroid = reference->centroids + base + (size_t)j * (size_t)dim;
        const float *gap = reference->slack + base + (size_t)j * (size_t)dim;
        double score = 0.0, change = 0.0;
        for (int32_t c = 0; c < dim; c++) {
            score += (double)q[c] * (double)centroid[c];
            change += fabs((double)q[c]) * (double)gap[c];
        }
        scores[j] = score;
        if (isnan(score)) continue; /* never selected */
        sorted[n_free++] = score;
        if (change > slack) slack = change;
    }
    int64_t n_picks = 0;
    for (int32_t m = 0; m < problem->top_k && ids[m] >= 0; m++)
        n_picks += !is_forced(&f, ids[m]);
    const int64_t n_forced = f.n_sinks + f.n_candidates - f.local_begin;
    const int64_t room = problem->top_k > n_forced ? problem->top_k - n_forced : 0;
    const int64_t want = room < n_free ? room : n_free;
    if (n_picks != want) {
        mobai_fault(verdict,
                    "selection of row %" PRId64 ", head %" PRId32 " has %" PRId64 " routed blocks, must have %" PRId64,
                    row->t, row->h, n_picks, want);
        return;
    }
    if (want == 0) return;
    const double place = place_of(sorted, n_free, want);
    const double allowed = 1e-3 * fmax(1.0, fabs(place)) + 2.0 * slack;
    for (int32_t m = 0; m < problem->top_k && ids[m] >= 0; m++) {
        if (is_forced(&f, ids[m])) continue;
        const double regret = place - scores[ids[m]];
        if (regret > verdict->max_err) verdict->max_err = regret;
        if (!(regret <= allowed)) {
            mobai_fault(verdict,
                        "selection of row %" PRId64 ", head %" PRId32 ": block %" PRId32
                        " scores %.6g, but the last place is worth %.6g (allowed regret %.3g)",
                        row->t, row->h, ids[m], scores[ids[m]], place, allowed);
            return;
        }
    }
}

void mobai_verify_routing(const mobai_reference *reference, const int32_t *selection, const int64_t *rows,
                          int64_t n_rows, mobai_row *row, double *scores, mobai_verdict *verdict) {
    const mobai_bench_problem *problem = reference->problem;
    const int32_t n_heads = problem->n_q_heads;
    for (int64_t t = 0; t < reference->in->total_q; t++) {
        mobai_row_place(reference, t, 0, row);
        for (row->h = 0; row->h < n_heads; row->h++) {
            const size_t r = (size_t)t * (size_t)n_heads + (size_t)row->h;
            check_form(reference, selection + r * (size_t)problem->top_k, row, verdict);
        }
    }
    if (!verdict->verified) return;
    for (int64_t i = 0; i < n_rows; i++) {
        mobai_row_place(reference, rows[i] / n_heads, (int32_t)(rows[i] % n_heads), row);
        check_regret(reference, selection + (size_t)rows[i] * (size_t)problem->top_k, row, scores, verdict);
    }
}
