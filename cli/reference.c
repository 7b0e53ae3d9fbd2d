/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"
#include "cli/tensor_file.h"
#include "core/convert.h"

enum { DENSE_BLOCK = 16, TILE = 4 };

void mobai_round_to(moba_dtype dtype, float *values, size_t n) {
    if (dtype == MOBA_F16) {
        for (size_t i = 0; i < n; i++)
            values[i] = mobai_f32_from_f16(mobai_f16_from_f32(values[i]));
    } else if (dtype == MOBA_BF16) {
        for (size_t i = 0; i < n; i++)
            values[i] = mobai_f32_from_bf16(mobai_bf16_from_f32(values[i]));
    }
}

static float round_one(moba_dtype dtype, float value) {
    mobai_round_to(dtype, &value, 1);
    return value;
}

void mobai_load_row(const mobai_reference *reference, const void *tensor, int64_t n_heads, int64_t r, int64_t head,
                    float *out) {
    const moba_dtype dtype = reference->problem->dtype;
    const size_t at = ((size_t)r * (size_t)n_heads + (size_t)head) * (size_t)reference->dim;
    const size_t n = (size_t)reference->dim;
    if (dtype == MOBA_F32) {
        memcpy(out, (const float *)tensor + at, n * sizeof *out);
        return;
    }
    const uint16_t *from = (const uint16_t *)tensor + at;
    if (dtype == MOBA_BF16) {
        for (size_t c = 0; c < n; c++)
            out[c] = mobai_f32_from_bf16(from[c]);
    } else {
        for (size_t c = 0; c < n; c++)
            out[c] = mobai_f32_from_f16(from[c]);
    }
}

static void load_key(const mobai_reference *reference, int64_t r, int32_t g, float *out) {
    mobai_load_row(reference, reference->kprime, reference->problem->n_kv_heads, r, g, out);
}
static void load_value(const mobai_reference *reference, int64_t r, int32_t g, float *out) {
    mobai_load_row(reference, reference->in->v, reference->problem->n_kv_heads, r, g, out);
}

int32_t mobai_reference_block_size(const mobai_reference *reference) {
    return reference->problem->dense ? DENSE_BLOCK : reference->problem->block_size;
}

int64_t mobai_reference_blocks(const mobai_reference *reference, int64_t b) {
    const int64_t n = mobai_reference_block_size(reference);
    return (reference->k_begin[b + 1] - reference->k_begin[b] + n - 1) / n;
}

/* -------------------------------------------------------------------------------- key convolution, centroids -- */

static double silu(double z) { return z / (1.0 + exp(-z)); }

static double silu_slope(double z) {
    const double sigmoid = 1.0 / (1.0 + exp(-z));
    return sigmoid * (1.0 + z * (1.0 - sigmoid));
}

/** z of one key: taps that reach before the sequence read zeros. `weights` is [dim][width] of this kv head. */
static void convolve(const mobai_reference *reference, int64_t b, int32_t g, int64_t x, const float *weights,
                     double *z) {
    const int32_t width = reference->problem->kconv_width;
    float key[256];
    for (int32_t c = 0; c < reference->dim; c++)
        z[c] = 0.0;
    for (int32_t l = 0; l < width && l <= x; l++) {
        mobai_load_row(reference, reference->in->k, reference->problem->n_kv_heads, reference->k_begin[b] + x - l, g,
                       key);
        for (int32_t c = 0; c < reference->dim; c++)
            z[c] += (double)weights[c * width + l] * (double)key[c];
    }
}

static void load_weights(const mobai_reference *reference, int32_t g, float *out) {
    const int32_t width = reference->problem->kconv_width;
    const size_t n = (size_t)reference->dim * (size_t)width;
    const mobai_element element = (mobai_element)reference->problem->dtype;
    const char *from = reference->in->kconv_weight;
    mobai_convert(out, MOBAI_ELEMENT_F32, from + (size_t)g * n * mobai_element_bytes(element), element, n);
}

void mobai_kconv_slope(const mobai_reference *reference, int64_t b, int32_t g, int64_t x, double *slope) {
    float weights[256 * 8];
    load_weights(reference, g, weights);
    convolve(reference, b, g, x, weights, slope);
    for (int32_t c = 0; c < reference->dim; c++)
        slope[c] = silu_slope(slope[c]);
}

static bool make_kprime(mobai_reference *reference, mobai_message *message) {
    const mobai_bench_problem *problem = reference->problem;
    const mobai_element element = (mobai_element)problem->dtype;
    const size_t row_bytes = (size_t)reference->dim * mobai_element_bytes(element);
    const size_t bytes = (size_t)reference->in->total_k * (size_t)problem->n_kv_heads * row_bytes;
    char *kprime = malloc(bytes > 0 ? bytes : 1);
    if (kprime == NULL) return mobai_say_memory(message, "out of memory for %zu bytes of convolved keys", bytes);
    reference->kprime_owned = kprime;
    reference->kprime = kprime;
    float weights[256 * 8], key[256];
    double z[256];
    for (int32_t g = 0; g < problem->n_kv_heads; g++) {
        load_weights(reference, g, weights);
        for (int64_t b = 0; b < problem->batch; b++) {
            const int64_t n = reference->k_begin[b + 1] - reference->k_begin[b];
            for (int64_t x = 0; x < n; x++) {
                const int64_t r = reference->k_begin[b] + x;
                convolve(reference, b, g, x, weights, z);
                mobai_load_row(reference, reference->in->k, problem->n_kv_heads, r, g, key);
                for (int32_t c = 0; c < reference->dim; c++)
                    key[c] = (float)((double)key[c] + silu(z[c]));
                char *to = kprime + ((size_t)r * (size_t)problem->n_kv_heads + (size_t)g) * row_bytes;
                mobai_convert(to, element, key, MOBAI_ELEMENT_F32, (size_t)reference->dim);
            }
        }
        mobai_progress_at((uint64_t)g + 1, (uint64_t)problem->n_kv_heads);
    }
    return true;
}

/**
 * Centroids in float64, rounded to the type. A float32 mean of n keys, in any order of addition, is off by at most
 * n 2^-24 mean |k|: where that interval crosses a rounding border the neighbour is right too, and slack is the gap.
 */
static bool make_centroids(mobai_reference *reference, mobai_message *message) {
    const mobai_bench_problem *problem = reference->problem;
    const int32_t dim = reference->dim;
    const size_t n = (size_t)problem->n_kv_heads * (size_t)reference->n_slots * (size_t)dim;
    reference->centroids = malloc((n > 0 ? n : 1) * sizeof(float));
    reference->slack = malloc((n > 0 ? n : 1) * sizeof(float));
    if (reference->centroids == NULL || reference->slack == NULL) {
        return mobai_say_memory(message, "out of memory for %zu centroid elements", n);
    }
    float key[256], high[256];
    double sum[256], magnitude[256];
    for (int32_t g = 0; g < problem->n_kv_heads; g++) {
        for (int64_t b = 0; b < problem->batch; b++) {
            for (int64_t j = 0; j < mobai_reference_blocks(reference, b); j++) {
                const int64_t begin = reference->k_begin[b] + j * problem->block_size;
                const int64_t limit = reference->k_begin[b + 1];
                const int64_t end = begin + problem->block_size < limit ? begin + problem->block_size : limit;
                for (int32_t c = 0; c < dim; c++)
                    sum[c] = magnitude[c] = 0.0;
                for (int64_t r = begin; r < end; r++) {
                    load_key(reference, r, g, key);
                    for (int32_t c = 0; c < dim; c++) {
                        sum[c] += (double)key[c];
                        magnitude[c] += fabs((double)key[c]);
                    }
                }
                const double count = (double)(end - begin);
                const size_t at =
                    ((size_t)g * (size_t)reference->n_slots + (size_t)(reference->slot_begin[b] + j)) * (size_t)dim;
                float *centroid = reference->centroids + at;
                float *slack = reference->slack + at;
                for (int32_t c = 0; c < dim; c++) {
                    const double mean = sum[c] / count;
                    const double error = (count + 1.0) * 0x1p-24 * magnitude[c] / count;
                    centroid[c] = (float)mean;
                    slack[c] = (float)(mean - error);
                    high[c] = (float)(mean + error);
                }
                mobai_round_to(problem->dtype, centroid, (size_t)dim);
                mobai_round_to(problem->dtype, slack, (size_t)dim);
                mobai_round_to(problem->dtype, high, (size_t)dim);
                for (int32_t c = 0; c < dim; c++)
                    slack[c] = high[c] - slack[c];
            }
        }
        mobai_progress_at((uint64_t)g + 1, (uint64_t)problem->n_kv_heads);
    }
    return true;
}

bool mobai_reference_open(const mobai_bench_problem *problem, const mobai_bench_inputs *inputs, mobai_reference *out,
                          mobai_message *message) {
    *out = (mobai_reference){.problem = problem, .in = inputs, .dim = problem->head_dim, .kprime = inputs->k};
    out->group = problem->n_q_heads / problem->n_kv_heads;
    out->scale = 1.0 / sqrt((double)problem->head_dim);
    const size_t n = (size_t)problem->batch + 1;
    out->q_begin = calloc(n, sizeof(int64_t));
    out->k_begin = calloc(n, sizeof(int64_t));
    out->slot_begin = calloc(n, sizeof(int64_t));
    bool good = out->q_begin != NULL && out->k_begin != NULL && out->slot_begin != NULL;
    if (!good) mobai_say_memory(message, "out of memory for %zu sequences", n);
    for (int64_t b = 0; good && b < problem->batch; b++) {
        out->q_begin[b + 1] = out->q_begin[b] + (problem->lens_q ? problem->lens_q[b] : problem->seqlen_q);
        out->k_begin[b + 1] = out->k_begin[b] + (problem->lens_k ? problem->lens_k[b] : problem->seqlen_k);
        out->slot_begin[b + 1] = out->slot_begin[b] + mobai_reference_blocks(out, b);
    }
    if (good) {
        out->n_slots = out->slot_begin[problem->batch];
        if (problem->kconv_width > 0) good = make_kprime(out, message);
        if (good && !problem->dense) good = make_centroids(out, message);
    }
    if (!good) mobai_reference_close(out);
    return good;
}

void mobai_reference_close(mobai_reference *reference) {
    free(reference->q_begin);
    free(reference->k_begin);
    free(reference->slot_begin);
    free(reference->kprime_owned);
    free(reference->centroids);
    free(reference->slack);
    *reference = (mobai_reference){0};
}

/* ------------------------------------------------------------------------------------------------- rows -- */

bool mobai_row_open(const mobai_reference *reference, mobai_row *row, mobai_message *message) {
    const mobai_bench_problem *problem = reference->problem;
    *row = (mobai_row){0};
    const int64_t chosen = (int64_t)problem->top_k * problem->block_size;
    row->capacity = problem->dense || chosen > problem->seqlen_k ? problem->seqlen_k : chosen;
    const size_t n = (size_t)row->capacity + 1;
    row->keys = malloc(n * sizeof *row->keys);
    row->score = malloc(n * sizeof *row->score);
    row->p = malloc(n * sizeof *row->p);
    row->plain_p = malloc(n * sizeof *row->plain_p);
    row->blocks = malloc(((size_t)problem->top_k + 1) * sizeof *row->blocks);
    if (row->keys != NULL && row->score != NULL && row->p != NULL && row->plain_p != NULL && row->blocks != NULL) {
        return true;
    }
    mobai_row_close(row);
    return mobai_say_memory(message, "out of memory for %zu keys of a row", n);
}

void mobai_row_close(mobai_row *row) {
    free(row->keys);
    free(row->score);
    free(row->p);
    free(row->plain_p);
    free(row->blocks);
    *row = (mobai_row){0};
}

void mobai_row_place(const mobai_reference *reference, int64_t t, int32_t h, mobai_row *row) {
    int64_t low = 0, high = reference->problem->batch;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (reference->q_begin[middle] <= t) {
            low = middle;
        } else {
            high = middle;
        }
    }
    row->b = low;
    row->t = t;
    row->i = t - reference->q_begin[low];
    row->h = h;
    row->g = h / reference->group;
    const int64_t seqlen_q = reference->q_begin[low + 1] - reference->q_begin[low];
    const int64_t seqlen_k = reference->k_begin[low + 1] - reference->k_begin[low];
    row->pos = row->i + seqlen_k - seqlen_q;
}

int32_t mobai_row_blocks(const mobai_reference *reference, const mobai_row *row, const int32_t *selection,
                         int32_t *out) {
    const mobai_bench_problem *problem = reference->problem;
    int64_t limit = mobai_reference_blocks(reference, row->b);
    if (problem->causal) {
        const int64_t visible = row->pos < 0 ? 0 : row->pos / problem->block_size + 1;
        if (visible < limit) limit = visible;
    }
    const int32_t *ids =
        selection + ((size_t)row->t * (size_t)problem->n_q_heads + (size_t)row->h) * (size_t)problem->top_k;
    int32_t n = 0;
    for (int32_t m = 0; m < problem->top_k; m++) {
        bool legal = ids[m] >= 0 && ids[m] < limit;
        /* Ascending ids cannot repeat; the search is for a faulty selection. */
        if (legal && n > 0 && ids[m] <= out[n - 1]) {
            for (int32_t e = 0; legal && e < n; e++)
                legal = out[e] != ids[m];
        }
        if (legal) out[n++] = ids[m];
    }
    return n;
}

/** Storage rows of the keys that the row sees. */
static void gather_keys(const mobai_reference *reference, const int32_t *selection, mobai_row *row) {
    const mobai_bench_problem *problem = reference->problem;
    const int64_t base = reference->k_begin[row->b];
    const int64_t seqlen_k = reference->k_begin[row->b + 1] - base;
    const int64_t visible = problem->causal && row->pos + 1 < seqlen_k ? row->pos + 1 : seqlen_k;
    row->n_keys = 0;
    if (problem->dense) {
        for (int64_t x = 0; x < visible; x++)
            row->keys[row->n_keys++] = base + x;
        return;
    }
    const int32_t n = mobai_row_blocks(reference, row, selection, row->blocks);
    for (int32_t m = 0; m < n; m++) {
        const int64_t begin = (int64_t)row->blocks[m] * problem->block_size;
        const int64_t end = begin + problem->block_size < visible ? begin + problem->block_size : visible;
        for (int64_t x = begin; x < end; x++)
            row->keys[row->n_keys++] = base + x;
    }
}

void mobai_row_forward(const mobai_reference *reference, const mobai_bench_outputs *outputs, int64_t t, int32_t h,
                       mobai_row *row) {
    const mobai_bench_problem *problem = reference->problem;
    const moba_dtype dtype = problem->dtype;
    const int32_t dim = reference->dim;
    const float scale = (float)reference->scale;
    mobai_row_place(reference, t, h, row);
    gather_keys(reference, outputs->selection, row);
    mobai_load_row(reference, reference->in->q, problem->n_q_heads, t, h, row->qf);
    for (int32_t c = 0; c < dim; c++) {
        row->q[c] = (double)row->qf[c];
        row->o[c] = 0.0;
        row->plain_o[c] = 0.0f;
    }
    row->max_score = 0.0;
    row->lse = -INFINITY;
    row->plain_lse = -INFINITY;
    if (row->n_keys == 0) return;

    /* Four keys at a time: each sum keeps its plain order, four independent ones hide the latency of addition. */
    float tile[TILE][256];
    double max = -INFINITY;
    float plain_max = -INFINITY;
    for (int64_t x = 0; x < row->n_keys; x += TILE) {
        const int64_t n = row->n_keys - x < TILE ? row->n_keys - x : TILE;
        for (int64_t u = 0; u < TILE; u++)
            load_key(reference, row->keys[x + (u < n ? u : 0)], row->g, tile[u]);
        double a0 = 0.0, a1 = 0.0, a2 = 0.0, a3 = 0.0;
        float f0 = 0.0f, f1 = 0.0f, f2 = 0.0f, f3 = 0.0f;
        for (int32_t c = 0; c < dim; c++) {
            const double qd = row->q[c];
            const float qf = row->qf[c];
            a0 += qd * (double)tile[0][c];
            a1 += qd * (double)tile[1][c];
            a2 += qd * (double)tile[2][c];
            a3 += qd * (double)tile[3][c];
            f0 += qf * tile[0][c];
            f1 += qf * tile[1][c];
            f2 += qf * tile[2][c];
            f3 += qf * tile[3][c];
        }
        const double a[TILE] = {a0, a1, a2, a3};
        const float f[TILE] = {f0, f1, f2, f3};
        for (int64_t u = 0; u < n; u++) {
            const double score = a[u] * reference->scale;
            const float plain = round_one(dtype, round_one(dtype, f[u]) * scale);
            row->score[x + u] = score;
            row->plain_p[x + u] = plain;
            if (score > max) max = score;
            if (plain > plain_max) plain_max = plain;
            if (fabs(score) > row->max_score) row->max_score = fabs(score);
        }
    }
    double sum = 0.0;
    float plain_sum = 0.0f;
    for (int64_t x = 0; x < row->n_keys; x++) {
        row->p[x] = exp(row->score[x] - max);
        row->plain_p[x] = expf(row->plain_p[x] - plain_max);
        sum += row->p[x];
        plain_sum += row->plain_p[x];
    }
    row->lse = max + log(sum);
    row->plain_lse = plain_max + logf(plain_sum);
    for (int64_t x = 0; x < row->n_keys; x++) {
        row->p[x] /= sum;
        row->plain_p[x] = round_one(dtype, row->plain_p[x] / plain_sum);
        load_value(reference, row->keys[x], row->g, tile[0]);
        const double p = row->p[x];
        const float plain_p = row->plain_p[x];
        for (int32_t c = 0; c < dim; c++) {
            row->o[c] += p * (double)tile[0][c];
            row->plain_o[c] += plain_p * tile[0][c];
        }
    }
    mobai_round_to(dtype, row->plain_o, (size_t)dim);
}

/** do of the row, and delta = sum do * o. */
static void load_delta(const mobai_reference *reference, mobai_row *row) {
    mobai_load_row(reference, reference->in->dout, reference->problem->n_q_heads, row->t, row->h, row->doutf);
    row->delta = 0.0;
    row->plain_delta = 0.0f;
    for (int32_t c = 0; c < reference->dim; c++) {
        row->dout[c] = (double)row->doutf[c];
        row->delta += row->dout[c] * row->o[c];
        row->plain_delta += row->doutf[c] * row->plain_o[c];
    }
}

void mobai_row_backward(const mobai_reference *reference, mobai_row *row) {
    const moba_dtype dtype = reference->problem->dtype;
    const int32_t dim = reference->dim;
    load_delta(reference, row);
    for (int32_t c = 0; c < dim; c++) {
        row->dq[c] = 0.0;
        row->plain_dq[c] = 0.0f;
    }
    float key[256], value[256];
    for (int64_t x = 0; x < row->n_keys; x++) {
        load_key(reference, row->keys[x], row->g, key);
        load_value(reference, row->keys[x], row->g, value);
        double dp = 0.0;
        float plain_dp = 0.0f;
        for (int32_t c = 0; c < dim; c++) {
            dp += row->dout[c] * (double)value[c];
            plain_dp += row->doutf[c] * value[c];
        }
        const double ds = row->p[x] * (dp - row->delta);
        const float plain_ds = round_one(dtype, row->plain_p[x] * (round_one(dtype, plain_dp) - row->plain_delta));
        for (int32_t c = 0; c < dim; c++) {
            row->dq[c] += ds * (double)key[c];
            row->plain_dq[c] += plain_ds * key[c];
        }
    }
    for (int32_t c = 0; c < dim; c++) {
        row->dq[c] *= reference->scale;
        row->plain_dq[c] *= (float)reference->scale;
    }
    mobai_round_to(dtype, row->plain_dq, (size_t)dim);
}

/* ---------------------------------------------------------------------------------------- key gradients -- */

bool mobai_key_gradients_open(const mobai_reference *reference, int64_t n_keys, mobai_key_gradients *out) {
    const size_t n = (size_t)(n_keys > 0 ? n_keys : 1) * (size_t)reference->dim;
    *out = (mobai_key_gradients){0};
    out->dk = malloc(n * sizeof(double));
    out->dv = malloc(n * sizeof(double));
    out->plain_dk = malloc(n * sizeof(float));
    out->plain_dv = malloc(n * sizeof(float));
    out->keys = malloc(n * sizeof(float));
    out->values = malloc(n * sizeof(float));
    if (out->dk != NULL && out->dv != NULL && out->plain_dk != NULL && out->plain_dv != NULL && out->keys != NULL &&
        out->values != NULL) {
        return true;
    }
    mobai_key_gradients_close(out);
    return false;
}

void mobai_key_gradients_close(mobai_key_gradients *gradients) {
    free(gradients->dk);
    free(gradients->dv);
    free(gradients->plain_dk);
    free(gradients->plain_dv);
    free(gradients->keys);
    free(gradients->values);
    *gradients = (mobai_key_gradients){0};
}

/** True when a placed row attends to key `x` of its sequence (and so to the visible part of its block). */
static bool row_chose(const mobai_reference *reference, const mobai_bench_outputs *outputs, const mobai_row *row,
                      int64_t x) {
    const mobai_bench_problem *problem = reference->problem;
    if (problem->causal && row->pos < x) return false;
    if (problem->dense) return true;
    const int64_t j = x / problem->block_size;
    const int32_t *ids =
        outputs->selection + ((size_t)row->t * (size_t)problem->n_q_heads + (size_t)row->h) * (size_t)problem->top_k;
    for (int32_t m = 0; m < problem->top_k; m++) {
        if (ids[m] == j) return true;
    }
    return false;
}

int64_t mobai_key_rows(const mobai_reference *reference, const mobai_bench_outputs *outputs, int64_t b, int32_t g,
                       int64_t begin) {
    mobai_row row;
    int64_t n = 0;
    for (int64_t t = reference->q_begin[b]; t < reference->q_begin[b + 1]; t++) {
        mobai_row_place(reference, t, g * reference->group, &row);
        for (int32_t e = 0; e < reference->group; e++) {
            row.h = g * reference->group + e;
            n += row_chose(reference, outputs, &row, begin);
        }
    }
    return n;
}

/** Without the row's own keys: lse and o as the library gave them. */
static void take_row(const mobai_reference *reference, const mobai_bench_outputs *outputs, mobai_row *row) {
    const mobai_bench_problem *problem = reference->problem;
    mobai_load_row(reference, reference->in->q, problem->n_q_heads, row->t, row->h, row->qf);
    mobai_load_row(reference, outputs->o, problem->n_q_heads, row->t, row->h, row->plain_o);
    for (int32_t c = 0; c < reference->dim; c++) {
        row->q[c] = (double)row->qf[c];
        row->o[c] = (double)row->plain_o[c];
    }
    row->plain_lse = outputs->lse[(size_t)row->h * (size_t)reference->in->total_q + (size_t)row->t];
    row->lse = (double)row->plain_lse;
}

/** Adds one row's part to the gradients of its visible keys. */
static void add_row(const mobai_reference *reference, const mobai_row *row, mobai_key_gradients *out) {
    const moba_dtype dtype = reference->problem->dtype;
    const int32_t dim = reference->dim;
    const int64_t end = reference->problem->causal && row->pos + 1 < out->end ? row->pos + 1 : out->end;
    for (int64_t x = out->begin; x < end; x++) {
        const size_t at = (size_t)(x - out->begin) * (size_t)dim;
        const float *key = out->keys + at;
        const float *value = out->values + at;
        double score = 0.0, dp = 0.0;
        float plain_score = 0.0f, plain_dp = 0.0f;
        for (int32_t c = 0; c < dim; c++) {
            score += row->q[c] * (double)key[c];
            dp += row->dout[c] * (double)value[c];
            plain_score += row->qf[c] * key[c];
            plain_dp += row->doutf[c] * value[c];
        }
        score *= reference->scale;
        if (fabs(score) > out->max_score) out->max_score = fabs(score);
        const double p = exp(score - row->lse);
        const double ds = p * (dp - row->delta) * reference->scale;
        plain_score = round_one(dtype, round_one(dtype, plain_score) * (float)reference->scale);
        const float plain_p = round_one(dtype, expf(plain_score - row->plain_lse));
        const float plain_ds = round_one(dtype, plain_p * (round_one(dtype, plain_dp) - row->plain_delta));
        double *dk = out->dk + at, *dv = out->dv + at;
        float *plain_dk = out->plain_dk + at, *plain_dv = out->plain_dv + at;
        for (int32_t c = 0; c < dim; c++) {
            dk[c] += ds * row->q[c];
            dv[c] += p * row->dout[c];
            plain_dk[c] += plain_ds * row->qf[c];
            plain_dv[c] += plain_p * row->doutf[c];
        }
    }
}

void mobai_key_gradients_fill(const mobai_reference *reference, const mobai_bench_outputs *outputs, bool exact,
                              mobai_row *row, mobai_key_gradients *gradients) {
    const int32_t dim = reference->dim;
    const size_t n = (size_t)(gradients->end - gradients->begin) * (size_t)dim;
    memset(gradients->dk, 0, n * sizeof(double));
    memset(gradients->dv, 0, n * sizeof(double));
    memset(gradients->plain_dk, 0, n * sizeof(float));
    memset(gradients->plain_dv, 0, n * sizeof(float));
    gradients->n_rows = 0;
    gradients->max_score = 0.0;
    for (int64_t x = gradients->begin; x < gradients->end; x++) {
        const int64_t r = reference->k_begin[gradients->b] + x;
        const size_t at = (size_t)(x - gradients->begin) * (size_t)dim;
        load_key(reference, r, gradients->g, gradients->keys + at);
        load_value(reference, r, gradients->g, gradients->values + at);
    }
    for (int64_t t = reference->q_begin[gradients->b]; t < reference->q_begin[gradients->b + 1]; t++) {
        mobai_row_place(reference, t, gradients->g * reference->group, row);
        for (int32_t e = 0; e < reference->group; e++) {
            const int32_t h = gradients->g * reference->group + e;
            row->h = h;
            if (!row_chose(reference, outputs, row, gradients->begin)) continue;
            gradients->n_rows++;
            if (exact) {
                mobai_row_forward(reference, outputs, t, h, row);
            } else {
                take_row(reference, outputs, row);
            }
            load_delta(reference, row);
            add_row(reference, row, gradients);
        }
    }
    for (size_t i = 0; i < n; i++)
        gradients->plain_dk[i] *= (float)reference->scale;
    mobai_round_to(reference->problem->dtype, gradients->plain_dk, n);
    mobai_round_to(reference->problem->dtype, gradients->plain_dv, n);
}
