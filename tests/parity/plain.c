/* SPDX-License-Identifier: Apache-2.0
 *
 * Plain attention in the input dtype: float accumulation in order, and every tensor that an unfused implementation
 * would store (scores, probabilities, dP, dS, results) rounded to the dtype. Its backward has the interface of
 * moba_backward(): it is given o in the dtype and lse in float32. The yardstick of the elementwise rule.
 *
 * There are two of them, which differ as implementations of the same precision do: the order of a dot product, and
 * powers of e or (as hardware does) of two. The backward of each is given the lse of the other, off by 2^-23 of its
 * size: the roundings of lse and of the recomputed score, for a backward kernel need not compute in its forward's
 * order. Where one is exact by luck (all probability on one key, dP and delta rounded alike), the other shows what the
 * format costs.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

typedef struct plain_row {
    bool *keep;
    float *p, *dp; /* probabilities and their gradients, per key of the sequence */
} plain_row;

static float rounded(const ref_shape *s, float x) { return (float)ref_round(s->dtype, (double)x); }

static float dot(const double *a, const double *b, int n) {
    float sum = 0;
    for (int c = 0; c < n; c++)
        sum += (float)a[c] * (float)b[c];
    return sum;
}

/* The same in the variant's order: ascending, or in eight interleaved sums. */
static float variant_dot(int variant, const double *a, const double *b, int n) {
    if (variant == 0) return dot(a, b, n);
    float lanes[8] = {0}, sum = 0;
    for (int c = n - 1; c >= 0; c--)
        lanes[c % 8] += (float)a[c] * (float)b[c];
    for (int lane = 0; lane < 8; lane++)
        sum += lanes[lane];
    return sum;
}

/* The scaled score, in powers of e (variant 0) or of two, as the variant stores it. */
static float score(const ref_shape *s, int variant, const double *q, const double *k) {
    float factor = variant == 0 ? (float)s->scale : (float)s->scale * 1.442695041f;
    return rounded(s, factor * variant_dot(variant, q, k, s->head_dim));
}

/* Softmax probabilities of one row; returns lse. */
static float softmax(const ref_shape *s, int variant, const double *q, const double *k, int64_t k_stride, int64_t n,
                     plain_row *row) {
    float max = -INFINITY, sum = 0;
    for (int64_t x = 0; x < n; x++) {
        if (!row->keep[x]) continue;
        row->p[x] = score(s, variant, q, k + x * k_stride);
        if (row->p[x] > max) max = row->p[x];
    }
    for (int64_t x = 0; x < n; x++)
        if (row->keep[x]) sum += row->p[x] = variant == 0 ? expf(row->p[x] - max) : exp2f(row->p[x] - max);
    for (int64_t x = 0; x < n; x++)
        row->p[x] = row->keep[x] ? rounded(s, row->p[x] / sum) : 0;
    return variant == 0 ? max + logf(sum) : (max + log2f(sum)) * 0.693147181f;
}

/* Probabilities again, from the lse that the forward stored. */
static void recompute(const ref_shape *s, int variant, const double *q, const double *k, int64_t k_stride, int64_t n,
                      float lse, plain_row *row) {
    float lse_2 = lse * 1.442695041f;
    for (int64_t x = 0; x < n; x++) {
        if (!row->keep[x]) continue;
        float stored = score(s, variant, q, k + x * k_stride);
        row->p[x] = rounded(s, variant == 0 ? expf(stored - lse) : exp2f(stored - lse_2));
    }
}

/* o = round(sum_x p[x] v[x]); accumulates over keys in order. */
static void weigh(const ref_shape *s, const float *p, const bool *keep, const double *v, int64_t stride, int64_t n,
                  float factor, double *to) {
    for (int c = 0; c < s->head_dim; c++) {
        float sum = 0;
        for (int64_t x = 0; x < n; x++)
            if (keep[x]) sum += p[x] * (float)v[x * stride + c];
        to[c] = (double)rounded(s, factor * sum);
    }
}

static void row_backward(const ref_shape *s, const double *q, const double *k, const double *v, const double *dout,
                         float delta, int64_t stride, int64_t n, plain_row *row, double *dq, float *dk, float *dv) {
    for (int64_t x = 0; x < n; x++) {
        if (!row->keep[x]) continue;
        row->dp[x] = rounded(s, row->p[x] * (rounded(s, dot(dout, v + x * stride, s->head_dim)) - delta));
        for (int c = 0; c < s->head_dim; c++) {
            dk[x * stride + c] += (float)s->scale * row->dp[x] * (float)q[c];
            dv[x * stride + c] += row->p[x] * (float)dout[c];
        }
    }
    weigh(s, row->dp, row->keep, k, stride, n, (float)s->scale, dq);
}

static void plain_kconv_bwd(const th_case *c, const float *dkprime, double *dk, double *dw) {
    const ref_shape *s = &c->shape;
    int64_t width = (int64_t)s->n_kv_heads * s->head_dim, taps = s->kconv_width;
    float *dk_sum = th_allocate((size_t)(s->total_k * width), sizeof *dk_sum);
    float *dw_sum = th_allocate((size_t)(width * taps), sizeof *dw_sum);
    for (int64_t i = 0; i < s->total_k * width; i++)
        dk_sum[i] = dkprime[i];
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t t = s->cu_k[b]; t < s->cu_k[b + 1]; t++)
            for (int64_t x = 0; x < width; x++) {
                float u = 0;
                for (int64_t l = 0; l < taps && t - l >= s->cu_k[b]; l++)
                    u += (float)c->w[x * taps + l] * (float)c->k[(t - l) * width + x];
                float sigmoid = 1 / (1 + expf(-u));
                float du = dkprime[t * width + x] * sigmoid * (1 + u * (1 - sigmoid));
                for (int64_t l = 0; l < taps && t - l >= s->cu_k[b]; l++) {
                    dk_sum[(t - l) * width + x] += du * (float)c->w[x * taps + l];
                    dw_sum[x * taps + l] += du * (float)c->k[(t - l) * width + x];
                }
            }
    for (int64_t i = 0; i < s->total_k * width; i++)
        dk[i] = (double)rounded(s, dk_sum[i]);
    for (int64_t i = 0; i < width * taps; i++)
        dw[i] = (double)dw_sum[i];
    free(dk_sum);
    free(dw_sum);
}

/* k' in float32, rounded once; tap sums in the variant's order. */
static double *plain_kconv(const th_case *c, int variant) {
    const ref_shape *s = &c->shape;
    int64_t width = (int64_t)s->n_kv_heads * s->head_dim, taps = s->kconv_width;
    double *kprime = th_allocate((size_t)(s->total_k * width), sizeof *kprime);
    memcpy(kprime, c->k, sizeof *kprime * (size_t)(s->total_k * width));
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t t = s->cu_k[b]; taps > 0 && t < s->cu_k[b + 1]; t++)
            for (int64_t x = 0; x < width; x++) {
                float u = 0;
                int64_t n = t - s->cu_k[b] + 1 < taps ? t - s->cu_k[b] + 1 : taps;
                for (int64_t i = 0; i < n; i++) {
                    int64_t l = variant == 0 ? i : n - 1 - i;
                    u += (float)c->w[x * taps + l] * (float)c->k[(t - l) * width + x];
                }
                float power = variant == 0 ? expf(-u) : exp2f(u * -1.442695041f);
                kprime[t * width + x] = (double)rounded(s, (float)c->k[t * width + x] + u / (1 + power));
            }
    return kprime;
}

void th_plain(const th_case *c, const int32_t *selection, int variant, double *o, double *lse, double *dq, double *dk,
              double *dv, double *dw) {
    const ref_shape *s = &c->shape;
    int64_t stride = (int64_t)s->n_kv_heads * s->head_dim, nk = s->total_k * stride;
    memset(o, 0, sizeof *o * (size_t)th_q_elements(c));
    for (int64_t x = 0; x < th_lse_elements(c); x++)
        lse[x] = -INFINITY;
    double *kprime = plain_kconv(c, variant);
    float *dk_sum = th_allocate((size_t)nk, sizeof *dk_sum), *dv_sum = th_allocate((size_t)nk, sizeof *dv_sum);
    if (dq != NULL) memset(dq, 0, sizeof *dq * (size_t)th_q_elements(c));
    for (int64_t b = 0; b < s->batch; b++) {
        int64_t n = s->cu_k[b + 1] - s->cu_k[b];
        plain_row row = {th_allocate((size_t)n, sizeof *row.keep), th_allocate((size_t)n, sizeof *row.p),
                         th_allocate((size_t)n, sizeof *row.dp)};
        for (int64_t i = 0; i < s->cu_q[b + 1] - s->cu_q[b]; i++)
            for (int h = 0; h < s->n_q_heads; h++) {
                int64_t t = s->cu_q[b] + i, q_at = (t * s->n_q_heads + h) * s->head_dim;
                int64_t k_at = s->cu_k[b] * stride + (int64_t)(h / (s->n_q_heads / s->n_kv_heads)) * s->head_dim;
                if (ref_keep(s, b, i, t, h, selection, row.keep) == 0) continue;
                lse[h * s->total_q + t] = (double)softmax(s, variant, c->q + q_at, kprime + k_at, stride, n, &row);
                weigh(s, row.p, row.keep, c->v + k_at, stride, n, 1, o + q_at);
                if (dq == NULL) continue;
                float delta = variant_dot(variant, c->dout + q_at, o + q_at, s->head_dim);
                float given = softmax(s, 1 - variant, c->q + q_at, kprime + k_at, stride, n, &row);
                given += (variant == 0 ? 0x1p-23f : -0x1p-23f) * fabsf(given);
                recompute(s, variant, c->q + q_at, kprime + k_at, stride, n, given, &row);
                row_backward(s, c->q + q_at, kprime + k_at, c->v + k_at, c->dout + q_at, delta, stride, n, &row,
                             dq + q_at, dk_sum + k_at, dv_sum + k_at);
            }
        free(row.keep);
        free(row.p);
        free(row.dp);
    }
    for (int64_t i = 0; dq != NULL && i < nk; i++) {
        dv[i] = (double)rounded(s, dv_sum[i]);
        dk[i] = (double)rounded(s, dk_sum[i]);
    }
    if (dq != NULL && s->kconv_width > 0) plain_kconv_bwd(c, dk_sum, dk, dw);
    free(kprime);
    free(dk_sum);
    free(dv_sum);
}
