/* SPDX-License-Identifier: Apache-2.0
 *
 * Naive float64 implementation of docs/spec.md; see reference.h for the layouts.
 */
#include "reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define Q(t, h) (((t)*s->n_q_heads + (h)) * s->head_dim)
#define K(t, g) (((t)*s->n_kv_heads + (g)) * s->head_dim)

static void *allocate(int64_t n, size_t size) {
    void *p = calloc((size_t)(n > 0 ? n : 1), size);
    if (p == NULL) abort();
    return p;
}

double ref_round(int dtype, double x) {
    if (dtype == REF_EXACT || x == 0 || !isfinite(x)) return x;
    int bits = dtype == REF_F32 ? 24 : dtype == REF_F16 ? 11 : 8; /* of significand, the implicit one included */
    int least = dtype == REF_F16 ? -14 : -126;                    /* exponent of the smallest normal number */
    double limit = dtype == REF_F16 ? 65520.0 : dtype == REF_F32 ? 0x1.ffffffp127 : 0x1.ffp127;
    if (fabs(x) >= limit) return copysign(INFINITY, x);
    int exponent = ilogb(x) < least ? least : ilogb(x);
    double ulp = ldexp(1.0, exponent - bits + 1);
    return nearbyint(x / ulp) * ulp;
}

static int64_t seq_q(const ref_shape *s, int64_t b) { return s->cu_q[b + 1] - s->cu_q[b]; }
static int64_t seq_k(const ref_shape *s, int64_t b) { return s->cu_k[b + 1] - s->cu_k[b]; }

int64_t ref_seq_blocks(const ref_shape *s, int64_t b) { return (seq_k(s, b) + s->block_size - 1) / s->block_size; }

int64_t ref_block_base(const ref_shape *s, int64_t b) {
    int64_t base = 0;
    for (int64_t x = 0; x < b; x++)
        base += ref_seq_blocks(s, x);
    return base;
}

int64_t ref_own_block(const ref_shape *s, int64_t b, int64_t i) {
    int64_t position = i + seq_k(s, b) - seq_q(s, b);
    return position < 0 ? -1 : position / s->block_size;
}

/* Sum over taps of w[l] k[t-l], zero before the start of the sequence. */
static double tap_sum(const ref_shape *s, const double *k, const double *w, int64_t first, int64_t t, int g, int c) {
    double sum = 0;
    for (int l = 0; l < s->kconv_width && t - l >= first; l++)
        sum += w[(g * s->head_dim + c) * s->kconv_width + l] * k[K(t - l, g) + c];
    return sum;
}

void ref_kconv(const ref_shape *s, const double *k, const double *w, double *kprime) {
    memcpy(kprime, k, sizeof *k * (size_t)(s->total_k * s->n_kv_heads * s->head_dim));
    if (s->kconv_width == 0) return;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t t = s->cu_k[b]; t < s->cu_k[b + 1]; t++)
            for (int g = 0; g < s->n_kv_heads; g++)
                for (int c = 0; c < s->head_dim; c++) {
                    double x = tap_sum(s, k, w, s->cu_k[b], t, g, c);
                    kprime[K(t, g) + c] = ref_round(s->dtype, k[K(t, g) + c] + x / (1 + exp(-x)));
                }
}

void ref_kconv_bwd(const ref_shape *s, const double *k, const double *w, const double *dkprime, double *dk,
                   double *dw) {
    memcpy(dk, dkprime, sizeof *dk * (size_t)(s->total_k * s->n_kv_heads * s->head_dim));
    if (s->kconv_width == 0) return;
    memset(dw, 0, sizeof *dw * (size_t)(s->n_kv_heads * s->head_dim * s->kconv_width));
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t t = s->cu_k[b]; t < s->cu_k[b + 1]; t++)
            for (int g = 0; g < s->n_kv_heads; g++)
                for (int c = 0; c < s->head_dim; c++) {
                    double x = tap_sum(s, k, w, s->cu_k[b], t, g, c);
                    double sigmoid = 1 / (1 + exp(-x));
                    double dx = dkprime[K(t, g) + c] * sigmoid * (1 + x * (1 - sigmoid));
                    for (int l = 0; l < s->kconv_width && t - l >= s->cu_k[b]; l++) {
                        int tap = (g * s->head_dim + c) * s->kconv_width + l;
                        dk[K(t - l, g) + c] += dx * w[tap];
                        dw[tap] += dx * k[K(t - l, g) + c];
                    }
                }
}

void ref_centroids(const ref_shape *s, const double *kprime, double *centroids) {
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t j = 0; j < ref_seq_blocks(s, b); j++)
            for (int g = 0; g < s->n_kv_heads; g++)
                for (int c = 0; c < s->head_dim; c++) {
                    int64_t first = s->cu_k[b] + j * s->block_size;
                    int64_t end = first + s->block_size < s->cu_k[b + 1] ? first + s->block_size : s->cu_k[b + 1];
                    double sum = 0;
                    for (int64_t t = first; t < end; t++)
                        sum += kprime[K(t, g) + c];
                    centroids[K(ref_block_base(s, b) + j, g) + c] = ref_round(s->dtype, sum / (double)(end - first));
                }
}

double ref_score(const ref_shape *s, const double *q, const double *centroids, int64_t b, int64_t t, int h, int64_t j) {
    int g = h / (s->n_q_heads / s->n_kv_heads);
    double sum = 0;
    for (int c = 0; c < s->head_dim; c++)
        sum += q[Q(t, h) + c] * centroids[K(ref_block_base(s, b) + j, g) + c];
    return sum;
}

bool ref_forced(const ref_shape *s, int64_t b, int64_t i, int64_t j) {
    if (!s->causal) return j < s->n_sink;
    int64_t own = ref_own_block(s, b, i);
    int n_local = s->n_local > 1 ? s->n_local : 1; /* the own block always counts */
    return j <= own && (j < s->n_sink || j > own - n_local);
}

int64_t ref_candidates(const ref_shape *s, int64_t b, int64_t i, bool *candidate, int64_t *takes) {
    int64_t end = s->causal ? ref_own_block(s, b, i) + 1 : ref_seq_blocks(s, b);
    int64_t n = 0, forced = 0;
    for (int64_t j = 0; j < ref_seq_blocks(s, b); j++) {
        bool is_forced = j < end && ref_forced(s, b, i, j);
        candidate[j] = j < end && !is_forced;
        forced += is_forced;
        n += candidate[j];
    }
    *takes = s->top_k - forced < n ? s->top_k - forced : n;
    return n;
}

void ref_select(const ref_shape *s, const double *q, const double *centroids, int32_t *selection) {
    for (int64_t x = 0; x < s->total_q * s->n_q_heads * s->top_k; x++)
        selection[x] = -1;
    for (int64_t b = 0; b < s->batch; b++) {
        int64_t n = ref_seq_blocks(s, b);
        bool *candidate = allocate(n, sizeof *candidate), *taken = allocate(n, sizeof *taken);
        double *score = allocate(n, sizeof *score);
        for (int64_t i = 0; i < seq_q(s, b); i++)
            for (int h = 0; h < s->n_q_heads; h++) {
                int64_t t = s->cu_q[b] + i, takes;
                ref_candidates(s, b, i, candidate, &takes);
                for (int64_t j = 0; j < n; j++) {
                    taken[j] = ref_forced(s, b, i, j);
                    if (candidate[j]) score[j] = ref_score(s, q, centroids, b, t, h, j);
                }
                for (int64_t x = 0; x < takes; x++) {
                    int64_t best = -1;
                    for (int64_t j = 0; j < n; j++) /* >= : of equal scores the more recent block */
                        if (candidate[j] && !taken[j] && !isnan(score[j]) && (best < 0 || score[j] >= score[best]))
                            best = j;
                    if (best >= 0) taken[best] = true;
                }
                int32_t *row = selection + (t * s->n_q_heads + h) * s->top_k;
                for (int64_t j = 0; j < n; j++)
                    if (taken[j]) *row++ = (int32_t)j;
            }
        free(candidate);
        free(taken);
        free(score);
    }
}

int64_t ref_keep(const ref_shape *s, int64_t b, int64_t i, int64_t t, int h, const int32_t *selection, bool *keep) {
    int64_t n = 0;
    for (int64_t x = 0; x < seq_k(s, b); x++) {
        keep[x] = s->dense;
        for (int m = 0; !s->dense && m < s->top_k; m++)
            if (selection[(t * s->n_q_heads + h) * s->top_k + m] == x / s->block_size) keep[x] = true;
        if (s->causal && x > i + seq_k(s, b) - seq_q(s, b)) keep[x] = false;
        n += keep[x];
    }
    return n;
}

/* Softmax probabilities of one row over its kept keys; returns the log-sum-exp (-inf without keys). */
static double probabilities(const ref_shape *s, const double *q_row, const double *k_head, const bool *keep, int64_t n,
                            double *p) {
    double max = -INFINITY, sum = 0;
    for (int64_t x = 0; x < n; x++) {
        if (!keep[x]) continue;
        p[x] = 0;
        for (int c = 0; c < s->head_dim; c++)
            p[x] += s->scale * q_row[c] * k_head[K(x, 0) + c];
        if (isnan(p[x])) max = NAN;
        if (p[x] > max) max = p[x];
    }
    for (int64_t x = 0; x < n; x++)
        if (keep[x]) sum += p[x] = exp(p[x] - max);
    for (int64_t x = 0; x < n; x++)
        p[x] = keep[x] ? p[x] / sum : 0;
    return sum == 0 ? -INFINITY : max + log(sum);
}

void ref_attend(const ref_shape *s, const double *q, const double *kprime, const double *v, const int32_t *selection,
                double *o, double *lse) {
    memset(o, 0, sizeof *o * (size_t)(s->total_q * s->n_q_heads * s->head_dim));
    for (int64_t x = 0; x < s->total_q * s->n_q_heads; x++)
        lse[x] = -INFINITY;
    for (int64_t b = 0; b < s->batch; b++) {
        int64_t n = seq_k(s, b);
        bool *keep = allocate(n, sizeof *keep);
        double *p = allocate(n, sizeof *p);
        for (int64_t i = 0; i < seq_q(s, b); i++)
            for (int h = 0; h < s->n_q_heads; h++) {
                int64_t t = s->cu_q[b] + i;
                int g = h / (s->n_q_heads / s->n_kv_heads);
                if (ref_keep(s, b, i, t, h, selection, keep) == 0) continue;
                lse[h * s->total_q + t] = probabilities(s, q + Q(t, h), kprime + K(s->cu_k[b], g), keep, n, p);
                for (int64_t x = 0; x < n; x++)
                    for (int c = 0; keep[x] && c < s->head_dim; c++)
                        o[Q(t, h) + c] += p[x] * v[K(s->cu_k[b] + x, g) + c];
            }
        free(keep);
        free(p);
    }
}

void ref_attend_bwd(const ref_shape *s, const double *q, const double *kprime, const double *v,
                    const int32_t *selection, const double *dout, double *dq, double *dkprime, double *dv) {
    memset(dq, 0, sizeof *dq * (size_t)(s->total_q * s->n_q_heads * s->head_dim));
    memset(dkprime, 0, sizeof *dkprime * (size_t)(s->total_k * s->n_kv_heads * s->head_dim));
    memset(dv, 0, sizeof *dv * (size_t)(s->total_k * s->n_kv_heads * s->head_dim));
    for (int64_t b = 0; b < s->batch; b++) {
        int64_t n = seq_k(s, b);
        bool *keep = allocate(n, sizeof *keep);
        double *p = allocate(n, sizeof *p), *dp = allocate(n, sizeof *dp);
        for (int64_t i = 0; i < seq_q(s, b); i++)
            for (int h = 0; h < s->n_q_heads; h++) {
                int64_t t = s->cu_q[b] + i;
                int g = h / (s->n_q_heads / s->n_kv_heads);
                if (ref_keep(s, b, i, t, h, selection, keep) == 0) continue;
                probabilities(s, q + Q(t, h), kprime + K(s->cu_k[b], g), keep, n, p);
                double delta = 0;
                for (int64_t x = 0; x < n; x++) {
                    dp[x] = 0;
                    for (int c = 0; keep[x] && c < s->head_dim; c++)
                        dp[x] += dout[Q(t, h) + c] * v[K(s->cu_k[b] + x, g) + c];
                    delta += p[x] * dp[x];
                }
                for (int64_t x = 0; x < n; x++)
                    for (int c = 0; keep[x] && c < s->head_dim; c++) {
                        double ds = s->scale * p[x] * (dp[x] - delta);
                        dq[Q(t, h) + c] += ds * kprime[K(s->cu_k[b] + x, g) + c];
                        dkprime[K(s->cu_k[b] + x, g) + c] += ds * q[Q(t, h) + c];
                        dv[K(s->cu_k[b] + x, g) + c] += p[x] * dout[Q(t, h) + c];
                    }
            }
        free(keep);
        free(p);
        free(dp);
    }
}
