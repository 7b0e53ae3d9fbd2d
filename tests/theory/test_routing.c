/* SPDX-License-Identifier: Apache-2.0
 *
 * Monte Carlo: routing over real vectors against moba_snr_failure() and moba_snr_recall().
 *
 * A sample draws unit keys, uniform on the sphere, for a few blocks. Then for each of several uniform unit queries the
 * first m keys of block 0 are replaced by keys of a given affinity to the query (one signal key, m - 1 keys of its
 * cluster), and the centroids are scored as the gate scores them.
 *
 * Confidence: queries over the same keys are not independent, so the standard error comes from the means of the
 * samples, which are. A figure may be off by 4 standard errors (two sides: 6e-5 by chance for each; the seed is fixed),
 * plus what the theory leaves out, which is computed, not tuned:
 *   - the m keys have fixed affinities, so the relevant block's score varies less by m / B of its variance, and the
 * true SNR is SNR / sqrt(1 - m / (2 B));
 *   - the score of a block is a mean of B coordinates of unit vectors, whose excess kurtosis is -6 / (d + 2): the first
 *     Edgeworth term bounds the departure from the normal law by 6 / (24 (d + 2) B) max |He3 phi| < 0.14 / (d B).
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "moba/moba.h"

enum { MAX_DIM = 128, MAX_BLOCKS = 16, QUERIES = 64 };

static uint64_t state;

static double uniform(void) {
    uint64_t x = state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return ((double)(x >> 11) + 0.5) * 0x1p-53;
}

/** Two independent normal numbers, by the polar method. */
static void normal_pair(double *a, double *b) {
    double x, y, r2;
    do {
        x = 2.0 * uniform() - 1.0;
        y = 2.0 * uniform() - 1.0;
        r2 = x * x + y * y;
    } while (r2 >= 1.0 || r2 == 0.0);
    const double f = sqrt(-2.0 * log(r2) / r2);
    *a = x * f;
    *b = y * f;
}

static double dot(const double *a, const double *b, int d) {
    double sum = 0.0;
    for (int c = 0; c < d; c++)
        sum += a[c] * b[c];
    return sum;
}

/** A uniform point on the unit sphere; d is even. */
static void unit_vector(double *out, int d) {
    for (int c = 0; c < d; c += 2)
        normal_pair(&out[c], &out[c + 1]);
    const double norm = sqrt(dot(out, out, d));
    for (int c = 0; c < d; c++)
        out[c] /= norm;
}

/** A unit key with <q, key> = affinity, otherwise uniform. */
static void key_near(const double *q, double affinity, double *out, int d) {
    unit_vector(out, d);
    const double along = dot(out, q, d);
    const double across = sqrt(1.0 - along * along);
    for (int c = 0; c < d; c++) {
        out[c] = affinity * q[c] + sqrt(1.0 - affinity * affinity) * (out[c] - along * q[c]) / across;
    }
}

/** Sums over samples, for a mean and its standard error. */
typedef struct estimate {
    double sum, sum2;
    int n;
} estimate;
static void add(estimate *e, double value) {
    e->sum += value;
    e->sum2 += value * value;
    e->n++;
}
static double mean_of(const estimate *e) { return e->sum / e->n; }
static double error_of(const estimate *e) {
    const double variance = (e->sum2 - e->sum * e->sum / e->n) / (e->n - 1);
    return sqrt(variance / e->n);
}

/**
 * One sample: n_blocks blocks of keys, QUERIES queries. Adds the share of (query, noise block) pairs in which the noise
 * block wins, and for each top_k in 1, 2, 4 the share of queries that find the relevant block.
 */
static void sample(int d, int block_size, int n_blocks, double mu, int m, double cluster_mu, estimate *failure,
                   estimate recall[3]) {
    static double sums[MAX_BLOCKS][MAX_DIM]; /* of all keys of a noise block, of the last B - m of block 0 */
    double key[MAX_DIM], q[MAX_DIM], centroid[MAX_DIM];
    memset(sums, 0, sizeof sums);
    for (int j = 0; j < n_blocks; j++) {
        for (int x = j == 0 ? m : 0; x < block_size; x++) {
            unit_vector(key, d);
            for (int c = 0; c < d; c++)
                sums[j][c] += key[c];
        }
    }
    int wins = 0;
    int found[3] = {0, 0, 0};
    for (int i = 0; i < QUERIES; i++) {
        unit_vector(q, d);
        memcpy(centroid, sums[0], sizeof centroid);
        for (int x = 0; x < m; x++) {
            key_near(q, x == 0 ? mu : cluster_mu, key, d);
            for (int c = 0; c < d; c++)
                centroid[c] += key[c];
        }
        for (int c = 0; c < d; c++)
            centroid[c] /= block_size;
        const double relevant = dot(q, centroid, d);
        int beaten_by = 0;
        for (int j = 1; j < n_blocks; j++) {
            for (int c = 0; c < d; c++)
                centroid[c] = sums[j][c] / block_size;
            beaten_by += dot(q, centroid, d) > relevant;
        }
        wins += beaten_by;
        for (int e = 0; e < 3; e++)
            found[e] += beaten_by < 1 << e;
    }
    add(failure, (double)wins / (QUERIES * (n_blocks - 1)));
    for (int e = 0; e < 3; e++)
        add(&recall[e], (double)found[e] / QUERIES);
}

/** |Phi(-snr) - Phi(-true snr)| plus the Edgeworth bound. */
static double slack_of(double snr, int d, int block_size, int m) {
    const double true_snr = snr / sqrt(1.0 - (double)m / (2.0 * block_size));
    return fabs(moba_snr_failure(snr) - moba_snr_failure(true_snr)) + 0.14 / ((double)d * block_size);
}

static void check_failure(int d, int block_size, double mu, int m, double cluster_mu, int n_samples) {
    estimate failure = {0}, recall[3] = {{0}};
    for (int i = 0; i < n_samples; i++)
        sample(d, block_size, 2, mu, m, cluster_mu, &failure, recall);
    const double snr = moba_snr(d, block_size, mu, m, cluster_mu);
    const double expected = moba_snr_failure(snr);
    const double allowed = 4.0 * error_of(&failure) + slack_of(snr, d, block_size, m);
    printf(
        "d %3d B %3d m %d: SNR %.3f, Phi(-SNR) %.4f, simulated %.4f +- %.4f (%d samples of %d queries), allowed %.4f\n",
        d, block_size, m, snr, expected, mean_of(&failure), error_of(&failure), n_samples, QUERIES, allowed);
    cr_assert(fabs(mean_of(&failure) - expected) <= allowed,
              "d %d, B %d, m %d: a noise block wins in %.5f of the cases, Phi(-SNR) is %.5f, allowed %.5f", d,
              block_size, m, mean_of(&failure), expected, allowed);
    cr_assert(allowed < 0.025, "too few samples to tell anything: allowed %.4f", allowed);
}

Test(routing, failure_probability) {
    state = 20260101;
    const int dims[] = {64, 128};
    const int blocks[] = {64, 128, 256, 512};
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 4; j++) {
            const int n_samples = 100 + 60000 / blocks[j] / (dims[i] / 64);
            check_failure(dims[i], blocks[j], 0.8, 1, 0.0, n_samples);
            check_failure(dims[i], blocks[j], 0.8, 6, 0.25, n_samples);
        }
    }
}

/** A deliberately wrong formula (d / B in place of d / (2 B)) must fall outside, or the test above proves nothing. */
Test(routing, the_simulation_can_tell) {
    state = 20260102;
    estimate failure = {0}, recall[3] = {{0}};
    for (int i = 0; i < 3000; i++)
        sample(64, 64, 2, 0.8, 1, 0.0, &failure, recall);
    const double wrong = moba_snr_failure(sqrt(2.0) * moba_snr(64, 64, 0.8, 1, 0.0));
    cr_assert(fabs(mean_of(&failure) - wrong) > 10.0 * error_of(&failure) + slack_of(0.8, 64, 64, 1));
}

/** Recall among 16 blocks. Slack: top-k fails by at most n - 1 times what one comparison is off. */
Test(routing, recall) {
    state = 20260103;
    const int d = 64, block_size = 64, n_blocks = 16, m = 3, n_samples = 600;
    const double mu = 0.8, cluster_mu = 0.4;
    estimate failure = {0}, recall[3] = {{0}};
    for (int i = 0; i < n_samples; i++)
        sample(d, block_size, n_blocks, mu, m, cluster_mu, &failure, recall);
    const double snr = moba_snr(d, block_size, mu, m, cluster_mu);
    const double true_snr = snr / sqrt(1.0 - (double)m / (2.0 * block_size));
    for (int e = 0; e < 3; e++) {
        const double expected = moba_snr_recall(snr, n_blocks, 1 << e);
        const double slack =
            fabs(moba_snr_recall(true_snr, n_blocks, 1 << e) - expected) + (n_blocks - 1) * 0.14 / (d * block_size);
        const double allowed = 4.0 * error_of(&recall[e]) + slack;
        printf("top_k %d of %d: recall %.4f, simulated %.4f +- %.4f, allowed %.4f\n", 1 << e, n_blocks, expected,
               mean_of(&recall[e]), error_of(&recall[e]), allowed);
        cr_assert(fabs(mean_of(&recall[e]) - expected) <= allowed, "top_k %d: recall %.4f, expected %.4f, allowed %.4f",
                  1 << e, mean_of(&recall[e]), expected, allowed);
        cr_assert(allowed < 0.03);
    }
}
