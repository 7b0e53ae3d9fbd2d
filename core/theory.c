/* SPDX-License-Identifier: Apache-2.0
 *
 * The theory that picks block_size and top_k (arXiv 2511.11571 section 3; docs/theory.md), and moba_advise(), which
 * ranks choices by it and by the cost model.
 *
 * Model: keys and queries of unit norm in d dimensions. The mean of B noise keys scores N(0, 1 / (d B)) against a
 * query; the relevant block's mean scores the same around Dmu_eff / B. Their difference has the standard deviation
 * sqrt(2 / (d B)), so a noise block wins with probability Phi(-SNR), SNR = Dmu_eff sqrt(d / (2 B)).
 */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "core/context.h"
#include "core/geometry.h"
#include "core/status.h"

static const double mobai_pi = 3.14159265358979323846;
static const double mobai_sqrt2 = 1.41421356237309504880;

/** Upper tail of the standard normal: P(X > x). Relative accuracy of erfc, also far out. */
static double mobai_normal_tail(double x) { return 0.5 * erfc(x / mobai_sqrt2); }

static double mobai_normal_density(double x) { return exp(-0.5 * x * x) / sqrt(2.0 * mobai_pi); }

/**
 * The x with P(X > x) = p, for 0 < p < 1. Start: Abramowitz and Stegun 26.2.23 (error below 4.5e-4); then Halley
 * steps, each of which cubes the error: three reach the accuracy of erfc.
 */
static double mobai_normal_tail_inverse(double p) {
    if (p > 0.5) return -mobai_normal_tail_inverse(1.0 - p);
    const double t = sqrt(-2.0 * log(p));
    double x = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    for (int i = 0; i < 3; i++) {
        const double density = mobai_normal_density(x);
        if (!(density > 0.0)) break;
        const double newton = (mobai_normal_tail(x) - p) / density;
        x += newton / (1.0 - 0.5 * x * newton);
    }
    return x;
}

double moba_snr(int32_t head_dim, int64_t block_size, double delta_mu, int64_t cluster_size, double cluster_delta) {
    if (head_dim < 1 || block_size < 1 || cluster_size < 1) return NAN;
    const double effective = delta_mu + (double)(cluster_size - 1) * cluster_delta;
    return effective * sqrt((double)head_dim / (2.0 * (double)block_size));
}

double moba_snr_failure(double snr) { return mobai_normal_tail(snr); }

double moba_snr_required(int64_t n_blocks, int64_t top_k) {
    if (n_blocks < 1) return NAN;
    if (top_k < 1) return INFINITY;
    if (top_k >= n_blocks) return -INFINITY;
    return mobai_normal_tail_inverse((double)top_k / (double)n_blocks);
}

/** P(Binomial(n, p) <= k) for k < n, terms by their ratio in logarithms so that none underflows alone. */
static double mobai_binomial_cdf(int64_t n, double p, double log_1mp, int64_t k) {
    if (p <= 0.0) return 1.0;
    if (p >= 1.0) return 0.0;
    const double log_odds = log(p) - log_1mp;
    double log_term = (double)n * log_1mp;
    double sum = exp(log_term);
    for (int64_t i = 1; i <= k; i++) {
        log_term += log((double)(n - i + 1) / (double)i) + log_odds;
        sum += exp(log_term);
    }
    return sum < 1.0 ? sum : 1.0;
}

double moba_snr_recall(double snr, int64_t n_blocks, int64_t top_k) {
    if (isnan(snr) || n_blocks < 1) return NAN;
    if (top_k < 1) return 0.0;
    if (top_k >= n_blocks) return 1.0;
    if (isinf(snr)) return snr > 0.0 ? 1.0 : 0.0;
    /* In units of one block score's deviation the relevant block is at x ~ N(sqrt(2) snr, 1) and each noise block
     * beats it with P(N(0, 1) > x). The trapezoidal rule converges exponentially on this integrand; 1/64 resolves
     * the binomial's step, whose width is about 1 / sqrt(2 top_k log n), and 9 deviations leave out 1e-19. */
    const double step = 1.0 / 64.0;
    const double mean = mobai_sqrt2 * snr;
    const int n_steps = 9 * 64;
    double recall = 0.0;
    double weight = 0.0;
    for (int i = -n_steps; i <= n_steps; i++) {
        const double z = (double)i * step;
        const double density = mobai_normal_density(z);
        const double tail = mobai_normal_tail(mean + z);
        const double log_1mp = tail < 0.5 ? log1p(-tail) : log(mobai_normal_tail(-(mean + z)));
        recall += density * mobai_binomial_cdf(n_blocks - 1, tail, log_1mp, top_k - 1);
        weight += density;
    }
    return recall / weight;
}

/* ---------------------------------------------------------------------------------------------- advise -- */

static const int32_t mobai_block_sizes[] = {16, 32, 64, 96, 128, 192, 256, 384, 512};
static const int32_t mobai_top_ks[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
enum {
    MOBAI_N_BLOCK_SIZES = sizeof mobai_block_sizes / sizeof mobai_block_sizes[0],
    MOBAI_N_TOP_KS = sizeof mobai_top_ks / sizeof mobai_top_ks[0],
    MOBAI_MAX_ADVICE = MOBAI_N_BLOCK_SIZES * (MOBAI_N_TOP_KS + 1),
    MOBAI_MAX_LENGTH_BITS = 24
};

/** Model cost of one pass; *us is INFINITY where no kernel chain serves the shape. Other failures are returned. */
static moba_status mobai_model_cost(moba_context *context, const moba_problem *problem, double *forward_us,
                                    double *backward_us) {
    moba_plan *plan = NULL;
    const moba_status status = moba_plan_create(context, problem, &plan);
    if (status == MOBA_ERROR_UNSUPPORTED) {
        *forward_us = INFINITY;
        if (backward_us != NULL) *backward_us = INFINITY;
        return MOBA_OK;
    }
    if (status != MOBA_OK) return status;
    moba_status cost = moba_plan_cost(plan, "fwd", forward_us);
    if (cost == MOBA_OK && backward_us != NULL) cost = moba_plan_cost(plan, "bwd", backward_us);
    moba_plan_destroy(plan);
    return cost;
}

/** The same problem at another key length. Query length follows where the two were equal (self attention), else stays
 *  (decode, chunked prefill). False: more rows than the library takes. */
static bool mobai_at_length(const moba_problem *problem, int64_t length, moba_problem *out) {
    *out = *problem;
    const bool square = problem->max_seqlen_q == problem->max_seqlen_k;
    const int64_t seqlen_q = square ? length : problem->max_seqlen_q;
    if (mobai_max64(length, seqlen_q) > (INT32_MAX - 1) / problem->max_batch) return false;
    out->max_seqlen_k = length;
    out->max_total_k = length * problem->max_batch;
    out->max_seqlen_q = seqlen_q;
    out->max_total_q = seqlen_q * problem->max_batch;
    return true;
}

/** Forward cost less dense forward cost at `length`; INFINITY where either is unknown. */
static moba_status mobai_excess_us(moba_context *context, const moba_problem *problem, int64_t length, double *us) {
    moba_problem routed;
    *us = INFINITY;
    if (!mobai_at_length(problem, length, &routed)) return MOBA_OK;
    double routed_us = 0.0, dense_us = 0.0;
    MOBAI_TRY(mobai_model_cost(context, &routed, &routed_us, NULL));
    routed.dense = 1;
    MOBAI_TRY(mobai_model_cost(context, &routed, &dense_us, NULL));
    if (isfinite(routed_us) && isfinite(dense_us)) *us = routed_us - dense_us;
    return MOBA_OK;
}

/**
 * Least length from which the routed forward wins: powers of two downwards from 2^24 while it still wins, then six
 * halvings of the last interval, which leaves under 2 % of the length.
 */
static moba_status mobai_break_even(moba_context *context, const moba_problem *problem, int64_t *length) {
    *length = -1;
    int64_t wins = -1;
    int64_t loses = 0;
    for (int bits = MOBAI_MAX_LENGTH_BITS; bits >= 5; bits--) {
        moba_problem at;
        if (!mobai_at_length(problem, (int64_t)1 << bits, &at)) continue;
        double us = 0.0;
        MOBAI_TRY(mobai_excess_us(context, problem, (int64_t)1 << bits, &us));
        if (!(us < 0.0)) {
            loses = (int64_t)1 << bits;
            break;
        }
        wins = (int64_t)1 << bits;
    }
    if (wins < 0) return MOBA_OK;
    for (int i = 0; i < 6 && wins - loses > 1; i++) {
        const int64_t middle = loses + (wins - loses) / 2;
        double us = 0.0;
        MOBAI_TRY(mobai_excess_us(context, problem, middle, &us));
        if (us < 0.0) {
            wins = middle;
        } else {
            loses = middle;
        }
    }
    *length = wins;
    return MOBA_OK;
}

/** Order of moba_advise(): reliable by forward time, then the others by recall; ties by table order (stable). */
static bool mobai_advice_before(const moba_advice *a, const moba_advice *b) {
    const bool reliable_a = a->recall >= 0.99;
    const bool reliable_b = b->recall >= 0.99;
    if (reliable_a != reliable_b) return reliable_a;
    return reliable_a ? a->forward_us < b->forward_us : a->recall > b->recall;
}

/** Fills one choice, except break_even. False in *served: no kernel serves it, or it breaks a limit. */
static moba_status mobai_advise_one(moba_context *context, const moba_problem *base, double delta_mu,
                                    int32_t block_size, int32_t top_k, moba_advice *out, bool *served) {
    moba_problem problem = *base;
    problem.block_size = block_size;
    problem.top_k = top_k;
    problem.dense = 0;
    *served = false;
    const int64_t n_blocks = mobai_n_blocks(problem.max_seqlen_k, block_size);
    const int32_t n_local = problem.causal ? (problem.n_local_blocks > 1 ? problem.n_local_blocks : 1) : 0;
    const int32_t n_forced = problem.n_sink_blocks + n_local;
    if (n_forced > top_k) return MOBA_OK;
    *out = (moba_advice){.struct_size = sizeof *out, .block_size = block_size, .top_k = top_k, .break_even = -1};
    out->snr = moba_snr(problem.head_dim, block_size, delta_mu, 1, 0.0);
    /* Forced blocks use up picks without a contest, so the contest is for the rest among the rest. */
    const int64_t n_contested = mobai_max64(n_blocks - n_forced, 1);
    out->snr_required = moba_snr_required(n_contested, top_k - n_forced);
    out->recall = top_k >= n_blocks ? 1.0 : moba_snr_recall(out->snr, n_contested, top_k - n_forced);
    if (top_k >= n_blocks) out->snr_required = -INFINITY;
    MOBAI_TRY(mobai_model_cost(context, &problem, &out->forward_us, &out->backward_us));
    *served = isfinite(out->forward_us);
    return MOBA_OK;
}

moba_status moba_advise(moba_context *context, const moba_problem *problem, double delta_mu, int64_t max_keys,
                        moba_advice *out, int32_t capacity, int32_t *n) {
    if (context == NULL) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "context is NULL");
    if (problem == NULL) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "problem is NULL");
    if (n == NULL) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "n is NULL");
    *n = 0;
    if (!isfinite(delta_mu)) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "delta_mu is not finite");
    if (max_keys < 0) {
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "max_keys is %lld, must be at least 0", (long long)max_keys);
    }
    if (capacity < 0 || (capacity > 0 && out == NULL)) {
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "out is NULL or capacity %d is negative", (int)capacity);
    }
    if (capacity == 0) return MOBA_OK;
    const size_t entry_bytes = out[0].struct_size;
    if (entry_bytes < sizeof(size_t)) {
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "out[0].struct_size is %zu, must be sizeof(moba_advice)",
                          entry_bytes);
    }
    moba_problem base;
    MOBAI_TRY(mobai_copy_struct(&base, sizeof base, problem, "moba_problem"));
    if (base.max_seqlen_q == 0) base.max_seqlen_q = base.max_total_q;
    if (base.max_seqlen_k == 0) base.max_seqlen_k = base.max_total_k;

    /* The dense plan also checks every field that does not depend on the choice. */
    moba_problem dense = base;
    dense.dense = 1;
    dense.block_size = mobai_block_sizes[0];
    dense.top_k = 1;
    dense.n_sink_blocks = 0;
    dense.n_local_blocks = 0;
    double dense_forward_us = 0.0, dense_backward_us = 0.0;
    moba_plan *plan = NULL;
    MOBAI_TRY(moba_plan_create(context, &dense, &plan));
    moba_plan_destroy(plan);
    MOBAI_TRY(mobai_model_cost(context, &dense, &dense_forward_us, &dense_backward_us));

    const int64_t default_keys = mobai_min64(1024, mobai_max64(base.max_seqlen_k, 1));
    const int64_t budget = max_keys > 0 ? max_keys : default_keys;
    moba_advice choices[MOBAI_MAX_ADVICE];
    int32_t n_choices = 0;
    for (size_t b = 0; b < MOBAI_N_BLOCK_SIZES; b++) {
        const int32_t block_size = mobai_block_sizes[b];
        const int64_t n_blocks = mobai_max64(mobai_n_blocks(base.max_seqlen_k, block_size), 1);
        const int64_t most = mobai_min64(mobai_min64(budget / block_size, n_blocks), 128);
        for (size_t i = 0; i <= MOBAI_N_TOP_KS; i++) {
            /* Every listed top_k below the most that the budget allows, then that one itself. */
            const bool last = i == MOBAI_N_TOP_KS || mobai_top_ks[i] >= most;
            const int64_t top_k = last ? most : mobai_top_ks[i];
            if (top_k < 1) break;
            bool served = false;
            MOBAI_TRY(
                mobai_advise_one(context, &base, delta_mu, block_size, (int32_t)top_k, &choices[n_choices], &served));
            if (served) {
                choices[n_choices].dense_forward_us = dense_forward_us;
                choices[n_choices].dense_backward_us = dense_backward_us;
                n_choices++;
            }
            if (last) break;
        }
    }
    for (int32_t i = 1; i < n_choices; i++) {
        const moba_advice key = choices[i];
        int32_t j = i;
        for (; j > 0 && mobai_advice_before(&key, &choices[j - 1]); j--)
            choices[j] = choices[j - 1];
        choices[j] = key;
    }
    if (n_choices > capacity) n_choices = capacity;
    for (int32_t i = 0; i < n_choices; i++) {
        moba_problem chosen = base;
        chosen.dense = 0;
        chosen.block_size = choices[i].block_size;
        chosen.top_k = choices[i].top_k;
        MOBAI_TRY(mobai_break_even(context, &chosen, &choices[i].break_even));
        /* The caller's entries may be shorter or longer than this library's. */
        unsigned char *entry = (unsigned char *)out + (size_t)i * entry_bytes;
        choices[i].struct_size = entry_bytes;
        memset(entry, 0, entry_bytes);
        memcpy(entry, &choices[i], entry_bytes < sizeof choices[i] ? entry_bytes : sizeof choices[i]);
    }
    *n = n_choices;
    return MOBA_OK;
}
