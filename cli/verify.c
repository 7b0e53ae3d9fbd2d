/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/verify_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"
#include "cli/tensor_file.h"

/** Scores beyond this are judged by the elementwise rule alone. */
#define SCORE_LIMIT 16.0

const char *mobai_pass_name(mobai_pass pass) {
    static const char *const names[] = {"fwd", "bwd", "route"};
    return names[pass];
}

void mobai_fault(mobai_verdict *verdict, const char *format, ...) {
    verdict->verified = false;
    if (verdict->fault.text[0] != '\0') return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(verdict->fault.text, sizeof verdict->fault.text, format, arguments);
    va_end(arguments);
}

uint64_t mobai_random_below(uint64_t *state, uint64_t n) {
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return (x ^ (x >> 31)) % n;
}

/* ------------------------------------------------------------------------------------------- comparison -- */

/** One value rounded to the type. */
static double in_type(moba_dtype dtype, double value) {
    float rounded = (float)value;
    mobai_round_to(dtype, &rounded, 1);
    return (double)rounded;
}

void mobai_compare(moba_dtype dtype, mobai_comparison *c, int64_t row, int64_t head, const double *expected,
                   const float *plain, const float *got, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        if (!isfinite(expected[i])) continue; /* from inputs that are not finite */
        const double error = fabs((double)got[i] - expected[i]);
        const double plain_error = fabs((double)plain[i] - expected[i]);
        /* Adding 0.3 and taking it away again loses what a value of ordinary size must lose in this type. */
        const double kept = in_type(dtype, in_type(dtype, in_type(dtype, expected[i]) + 0.3) - 0.3);
        const double atol = 2.0 * fabs(kept - in_type(dtype, expected[i]));
        if (!isfinite(error)) {
            if (!c->unordered) {
                c->worst_row = row;
                c->worst_head = head;
                c->worst_got = (double)got[i];
                c->worst_expected = expected[i];
            }
            c->unordered = true;
            continue;
        }
        c->error2 += error * error;
        c->expected2 += expected[i] * expected[i];
        if (plain_error > c->max_plain) c->max_plain = plain_error;
        if (atol > c->atol) c->atol = atol;
        if (error > c->max_error) {
            c->max_error = error;
            if (!c->unordered) {
                c->worst_row = row;
                c->worst_head = head;
                c->worst_got = (double)got[i];
                c->worst_expected = expected[i];
            }
        }
    }
}

void mobai_judge(const mobai_comparison *c, double bound, bool frobenius, mobai_verdict *verdict) {
    const double relative = c->expected2 > 0.0 ? sqrt(c->error2 / c->expected2) : (c->error2 > 0.0 ? INFINITY : 0.0);
    const double error = c->unordered ? INFINITY : c->max_error;
    if (error > verdict->max_err) verdict->max_err = error;
    if (relative > verdict->rel_err) verdict->rel_err = relative;
    if (c->unordered) {
        mobai_fault(verdict, "%s of row %" PRId64 ", head %" PRId64 " holds %g, expected %g", c->name, c->worst_row,
                    c->worst_head, c->worst_got, c->worst_expected);
    } else if (frobenius && !(relative <= bound)) {
        mobai_fault(verdict,
                    "%s: relative Frobenius error %.3g is above %.3g; worst at row %" PRId64 ", head %" PRId64
                    ": %.9g, expected %.9g",
                    c->name, relative, bound, c->worst_row, c->worst_head, c->worst_got, c->worst_expected);
    } else if (!(c->max_error <= 2.0 * c->max_plain + c->atol)) {
        mobai_fault(
            verdict,
            "%s of row %" PRId64 ", head %" PRId64
            " is %.9g, expected %.9g: the error %.3g is above %.3g, twice a plain implementation's %.3g plus %.3g",
            c->name, c->worst_row, c->worst_head, c->worst_got, c->worst_expected, c->max_error,
            2.0 * c->max_plain + c->atol, c->max_plain, c->atol);
    }
}

/* --------------------------------------------------------------------------------------------- counting -- */

int64_t mobai_count_pairs(const mobai_reference *reference, const int32_t *selection) {
    const mobai_bench_problem *problem = reference->problem;
    int64_t pairs = 0;
    mobai_row row;
    for (int64_t t = 0; t < reference->in->total_q; t++) {
        mobai_row_place(reference, t, 0, &row);
        const int64_t seqlen_k = reference->k_begin[row.b + 1] - reference->k_begin[row.b];
        const int64_t visible = problem->causal && row.pos + 1 < seqlen_k ? row.pos + 1 : seqlen_k;
        if (visible <= 0) continue;
        if (problem->dense) {
            pairs += visible * problem->n_q_heads;
            continue;
        }
        const size_t n = (size_t)problem->n_q_heads * (size_t)problem->top_k;
        const int32_t *ids = selection + (size_t)t * n;
        for (size_t m = 0; m < n; m++) {
            const int64_t begin = (int64_t)ids[m] * problem->block_size;
            if (ids[m] < 0 || begin >= visible) continue;
            pairs += visible - begin < problem->block_size ? visible - begin : problem->block_size;
        }
    }
    return pairs;
}

int64_t mobai_count_candidates(const mobai_reference *reference) {
    const mobai_bench_problem *problem = reference->problem;
    if (problem->dense) return 0;
    int64_t candidates = 0;
    mobai_row row;
    for (int64_t t = 0; t < reference->in->total_q; t++) {
        mobai_row_place(reference, t, 0, &row);
        if (!problem->causal) {
            candidates += mobai_reference_blocks(reference, row.b) * problem->n_q_heads;
        } else if (row.pos >= 0) {
            candidates += row.pos / problem->block_size * problem->n_q_heads;
        }
    }
    return candidates;
}

/* ---------------------------------------------------------------------------------------------- forward -- */

static double out_bound(moba_dtype dtype) {
    static const double bounds[] = {[MOBA_F32] = 2e-6, [MOBA_F16] = 5e-4, [MOBA_BF16] = 4e-3};
    return bounds[dtype];
}

/** lse is float32 whatever the type; with a key convolution an element of k' may round to its other neighbour, which
 *  moves a score by as much as that moves the element. */
static double lse_bound(const mobai_bench_problem *problem) {
    static const double neighbour[] = {[MOBA_F32] = 0x1p-23, [MOBA_F16] = 0x1p-10, [MOBA_BF16] = 0x1p-7};
    return 1e-5 + (problem->kconv_width > 0 ? neighbour[problem->dtype] : 0.0);
}

/** NaN anywhere means an element that no kernel wrote (the buffers were filled with NaN). */
static void scan(const mobai_reference *reference, const char *name, const void *data, int64_t rows, int64_t heads,
                 mobai_verdict *verdict) {
    float values[256];
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t h = 0; h < heads; h++) {
            mobai_load_row(reference, data, heads, r, h, values);
            float sum = 0.0f; /* NaN if any is NaN; infinities of both signs too, which are no less wrong */
            for (int32_t c = 0; c < reference->dim; c++)
                sum += values[c] * 0.0f;
            if (!(sum == 0.0f)) {
                mobai_fault(verdict, "%s of row %" PRId64 ", head %" PRId64 " is not finite or was never written", name,
                            r, h);
                return;
            }
        }
    }
}

/** True when all inputs are finite, so that all outputs must be. */
static bool inputs_finite(const mobai_reference *reference) {
    const mobai_bench_problem *problem = reference->problem;
    mobai_verdict verdict = {.verified = true};
    scan(reference, "q", reference->in->q, reference->in->total_q, problem->n_q_heads, &verdict);
    scan(reference, "k", reference->in->k, reference->in->total_k, problem->n_kv_heads, &verdict);
    scan(reference, "v", reference->in->v, reference->in->total_k, problem->n_kv_heads, &verdict);
    scan(reference, "do", reference->in->dout, reference->in->total_q, problem->n_q_heads, &verdict);
    return verdict.verified;
}

static void check_forward(const mobai_reference *reference, const mobai_bench_outputs *outputs, const int64_t *rows,
                          int64_t n_rows, mobai_row *row, mobai_verdict *verdict) {
    const mobai_bench_problem *problem = reference->problem;
    mobai_comparison c = {.name = "o"};
    float got[256];
    double max_score = 0.0;
    for (int64_t i = 0; i < n_rows; i++) {
        const int64_t t = rows[i] / problem->n_q_heads;
        const int32_t h = (int32_t)(rows[i] % problem->n_q_heads);
        mobai_row_forward(reference, outputs, t, h, row);
        if (row->max_score > max_score) max_score = row->max_score;
        mobai_load_row(reference, outputs->o, problem->n_q_heads, t, h, got);
        mobai_compare(problem->dtype, &c, t, h, row->o, row->plain_o, got, reference->dim);
        const double lse = (double)outputs->lse[(size_t)h * (size_t)reference->in->total_q + (size_t)t];
        const double size = fmax(1.0, fmax(row->max_score, row->n_keys > 0 ? fabs(row->lse) : 0.0));
        const bool good = row->n_keys == 0 ? lse == -INFINITY : fabs(lse - row->lse) <= lse_bound(problem) * size;
        if (!good) {
            mobai_fault(verdict, "lse of row %" PRId64 ", head %" PRId32 " is %.9g, expected %.9g", t, h, lse,
                        row->lse);
        }
        if (row->n_keys == 0) {
            for (int32_t e = 0; e < reference->dim; e++) {
                if (got[e] != 0.0f) {
                    mobai_fault(verdict,
                                "o of row %" PRId64 ", head %" PRId32 " is %g, but the row has no key: must be 0", t, h,
                                (double)got[e]);
                    break;
                }
            }
        }
        mobai_progress_at((uint64_t)i, (uint64_t)n_rows);
    }
    mobai_judge(&c, out_bound(problem->dtype), max_score <= SCORE_LIMIT, verdict);
}

/* --------------------------------------------------------------------------------------------- sampling -- */

static int by_value(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/** Rows (t * n_q_heads + h, ascending, distinct) to check; all of them where that is cheap. NULL: out of memory. */
static int64_t *sample_rows(const mobai_reference *reference, const mobai_row *row, uint64_t seed, int64_t *n_rows) {
    const mobai_bench_problem *problem = reference->problem;
    const int64_t heads = problem->n_q_heads;
    const int64_t all = reference->in->total_q * heads;
    const double work = (double)all * (double)row->capacity * (double)reference->dim * 4.0;
    int64_t *rows = NULL;
    int64_t n = 0;
    if (work <= MOBAI_WHOLE_CHECK_WORK || all <= 256) {
        rows = malloc((size_t)(all > 0 ? all : 1) * sizeof *rows);
        if (rows == NULL) return NULL;
        for (; n < all; n++)
            rows[n] = n;
        *n_rows = n;
        return rows;
    }
    uint64_t state = seed ^ 0x5eed0f5a3b1e5ull;
    const int64_t capacity = 512 + 8 * problem->batch;
    rows = malloc((size_t)capacity * sizeof *rows);
    if (rows == NULL) return NULL;
    for (int64_t b = 0; b < problem->batch; b++) {
        const int64_t begin = reference->q_begin[b], end = reference->q_begin[b + 1];
        if (begin == end) continue;
        const int64_t seqlen_k = reference->k_begin[b + 1] - reference->k_begin[b];
        const int64_t shift = seqlen_k - (end - begin); /* position of row 0 */
        const int64_t block = mobai_reference_block_size(reference);
        const int64_t tail =
            seqlen_k > 0 ? (seqlen_k - 1) / block * block - shift : 0; /* first row of the last block */
        const int64_t at[] = {0, end - begin - 1, tail, tail - 1, block - 1 - shift, block - shift};
        for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
            const int64_t t = at[i] < 0 ? 0 : (at[i] < end - begin ? at[i] : end - begin - 1);
            rows[n++] = (begin + t) * heads + (int64_t)mobai_random_below(&state, (uint64_t)heads);
        }
    }
    /* More than 256 are drawn, so that 256 remain after equal ones are struck out. */
    while (n < 288)
        rows[n++] = (int64_t)mobai_random_below(&state, (uint64_t)all);
    int64_t n_distinct = 0;
    do {
        qsort(rows, (size_t)n, sizeof *rows, by_value);
        n_distinct = 0;
        for (int64_t i = 0; i < n; i++) {
            if (i == 0 || rows[i] != rows[i - 1]) rows[n_distinct++] = rows[i];
        }
        n = n_distinct;
        while (n < 256)
            rows[n++] = (int64_t)mobai_random_below(&state, (uint64_t)all);
    } while (n_distinct < 256);
    *n_rows = n;
    return rows;
}

bool mobai_verify(const mobai_reference *reference, const mobai_bench_outputs *outputs, mobai_pass pass, uint64_t seed,
                  mobai_verdict *verdict, mobai_message *message) {
    const mobai_bench_problem *problem = reference->problem;
    *verdict = (mobai_verdict){.verified = true};
    mobai_progress("verifying %s", mobai_pass_name(pass));
    mobai_row row;
    if (!mobai_row_open(reference, &row, message)) return false;
    int64_t n_rows = 0;
    int64_t *rows = sample_rows(reference, &row, seed, &n_rows);
    double *scores = malloc(((size_t)reference->n_slots + 1) * 2 * sizeof *scores);
    bool good = rows != NULL && scores != NULL;
    if (!good) mobai_say_memory(message, "out of memory for the rows to verify");
    verdict->n_rows = n_rows;
    if (good && pass != MOBAI_PASS_BWD && !problem->dense) {
        mobai_verify_routing(reference, outputs->selection, rows, n_rows, &row, scores, verdict);
        if (pass == MOBAI_PASS_FWD) verdict->max_err = 0.0; /* that was the regret */
    }
    const bool finite = pass == MOBAI_PASS_ROUTE || inputs_finite(reference);
    if (good && pass == MOBAI_PASS_FWD) {
        if (finite) scan(reference, "o", outputs->o, reference->in->total_q, problem->n_q_heads, verdict);
        check_forward(reference, outputs, rows, n_rows, &row, verdict);
    }
    if (good && pass == MOBAI_PASS_BWD) {
        if (finite) {
            scan(reference, "dq", outputs->dq, reference->in->total_q, problem->n_q_heads, verdict);
            scan(reference, "dk", outputs->dk, reference->in->total_k, problem->n_kv_heads, verdict);
            scan(reference, "dv", outputs->dv, reference->in->total_k, problem->n_kv_heads, verdict);
        }
        good = mobai_verify_gradients(reference, outputs, seed, &row, verdict, message);
    }
    free(rows);
    free(scores);
    mobai_row_close(&row);
    return good;
}
