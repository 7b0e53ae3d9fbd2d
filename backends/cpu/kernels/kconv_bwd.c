/* SPDX-License-Identifier: Apache-2.0
 *
 * Backward of the key convolution. With z the sum before SiLU and dz = dk' * SiLU'(z):
 * dk[t] = dk'[t] + sum_l w[l] dz[t+l] and dw[l] = sum_t dz[t] k[t-l], both within the sequence.
 *
 * The keys are cut into a number of ranges that depends on the shape alone; each gives a partial dw, and partials are
 * added in order, so the result is the same at any thread count.
 */
#include <string.h>

#include "backends/cpu/kernels/kconv.h"
#include "backends/cpu/kernels/stages.h"
#include "backends/cpu/simd.h"
#include "backends/cpu/kernels/silu.h"

enum { MAX_RANGES = 64, MIN_ROWS = 64, ROWS_PER_SUM = 256 };

typedef struct kconv_bwd_job {
    const mobai_stage_args *a;
    int64_t n_ranges, rows_per_range;
    float *partials; /* [kv head of the slice][range][tap][head_dim] */
} kconv_bwd_job;

static int64_t ranges_of(int64_t total_k) {
    return mobai_max64(1, mobai_min64(MAX_RANGES, mobai_ceil_div(total_k, MIN_ROWS)));
}

size_t MOBAI_ISA_FN(mobai_cpu_kconv_bwd_scratch)(const mobai_shape *shape) {
    const moba_problem *p = shape->problem;
    const size_t per_range = (size_t)p->kconv_width * (size_t)p->head_dim * sizeof(float);
    return (size_t)shape->n_slice_kv_heads * (size_t)ranges_of(p->max_total_k) * per_range;
}

/** Rows of one kv head that are worked on, and their sums. */
typedef struct kconv_bwd_state {
    float weights[MOBAI_CPU_MAX_KCONV][MOBAI_CPU_MAX_HEAD_DIM];
    float keys[MOBAI_CPU_MAX_KCONV][MOBAI_CPU_MAX_HEAD_DIM];
    float dz[MOBAI_CPU_MAX_KCONV][MOBAI_CPU_MAX_HEAD_DIM];
    float sum[MOBAI_CPU_MAX_KCONV][MOBAI_CPU_MAX_HEAD_DIM];
} kconv_bwd_state;

static void add_sum(kconv_bwd_state *state, float *partial, int32_t width, int32_t d) {
    for (int32_t l = 0; l < width; l++) {
        for (int32_t c = 0; c < d; c++) {
            partial[l * d + c] += state->sum[l][c];
            state->sum[l][c] = 0.0f;
        }
    }
}

/** dk of rows [begin, end) of the sequence `rows`, and their share of dw. */
static void gradients(const mobai_stage_args *a, int64_t g, mobai_rows rows, int64_t begin, int64_t end,
                      kconv_bwd_state *state, float *partial) {
    const int32_t d = a->head_dim, width = a->kconv_width;
    float z[MOBAI_CPU_MAX_HEAD_DIM];
    for (int64_t u = mobai_max64(rows.begin, begin - width + 1); u < end + width - 1; u++) {
        float *dz = state->dz[u % MOBAI_CPU_MAX_KCONV];
        if (u < rows.end) {
            float *key = state->keys[u % MOBAI_CPU_MAX_KCONV];
            mobai_row_load(key, mobai_cpu_k_row(a, &a->k, u, g), (moba_dtype)a->dtype, d, d);
            if (u < begin) continue;
            const float *gradient = mobai_cpu_dkprime_row(a, u, g);
            mobai_cpu_kconv_sum(z, state->keys, (const float(*)[MOBAI_CPU_MAX_HEAD_DIM])state->weights, u, rows.begin,
                                width, d);
            for (int32_t c = 0; c < d; c++) {
                const float sigmoid = mobai_cpu_sigmoid(z[c]);
                dz[c] = gradient[c] * sigmoid * (1.0f + z[c] * (1.0f - sigmoid));
            }
        } else {
            memset(dz, 0, (size_t)d * sizeof *dz);
        }
        if (u < end) {
            for (int32_t l = 0; l < width && u - l >= rows.begin; l++) {
                const float *key = state->keys[(u - l) % MOBAI_CPU_MAX_KCONV];
                for (int32_t c = 0; c < d; c++)
                    state->sum[l][c] += dz[c] * key[c];
            }
            if ((u - begin) % ROWS_PER_SUM == ROWS_PER_SUM - 1) add_sum(state, partial, width, d);
        }
        const int64_t t = u - width + 1;
        if (t < begin) continue;
        const float *gradient = mobai_cpu_dkprime_row(a, t, g);
        for (int32_t c = 0; c < d; c++)
            z[c] = gradient[c];
        for (int32_t l = 0; l < width; l++) {
            const float *later = state->dz[(t + l) % MOBAI_CPU_MAX_KCONV], *w = state->weights[l];
            for (int32_t c = 0; c < d; c++)
                z[c] += w[c] * later[c];
        }
        mobai_row_store(mobai_cpu_row(a, &a->dk, a->seqlen_k, t, g), z, (moba_dtype)a->dtype, d);
    }
    add_sum(state, partial, width, d);
}

/** Rows outside all sequences are zero. */
static void clear_rows(const mobai_stage_args *a, int64_t begin, int64_t end, int64_t g) {
    const float zeros[MOBAI_CPU_MAX_HEAD_DIM] = {0};
    for (int64_t t = begin; t < end; t++)
        mobai_row_store(mobai_cpu_row(a, &a->dk, a->seqlen_k, t, g), zeros, (moba_dtype)a->dtype, a->head_dim);
}

static void kconv_bwd_range(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const kconv_bwd_job *job = (const kconv_bwd_job *)context;
    const mobai_stage_args *a = job->a;
    const int32_t *cu = (const int32_t *)mobai_cpu_address(a->cu_seqlens_k);
    const int32_t d = a->head_dim, width = a->kconv_width;
    const int64_t g = a->kv_head_begin + task / job->n_ranges;
    const int64_t begin = mobai_min64(task % job->n_ranges * job->rows_per_range, a->total_k);
    const int64_t end = mobai_min64(begin + job->rows_per_range, a->total_k);
    float *partial = job->partials + task * width * d;
    memset(partial, 0, (size_t)width * (size_t)d * sizeof *partial);
    kconv_bwd_state state;
    memset(state.sum, 0, sizeof state.sum);
    mobai_cpu_kconv_weights(a, g, state.weights);
    int64_t covered = begin;
    for (int64_t b = mobai_cpu_sequence_past(cu, a->seqlen_k, a->total_k, a->batch, begin);
         b < a->batch && covered < end; b++) {
        const mobai_rows rows = mobai_seq_rows(cu, a->seqlen_k, a->total_k, b);
        const int64_t from = mobai_max64(rows.begin, covered), to = mobai_min64(rows.end, end);
        if (from >= to) continue;
        clear_rows(a, covered, from, g);
        gradients(a, g, rows, from, to, &state, partial);
        covered = to;
    }
    clear_rows(a, covered, end, g);
}

/** dw of one kv head: its partials in order. */
static void sum_weights(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const kconv_bwd_job *job = (const kconv_bwd_job *)context;
    const mobai_stage_args *a = job->a;
    const int32_t d = a->head_dim, width = a->kconv_width;
    const float *partials = job->partials + task * job->n_ranges * width * d;
    float *dw = (float *)mobai_cpu_address(a->dkconv_weight) + (a->kv_head_begin + task) * d * width;
    for (int32_t c = 0; c < d; c++) {
        for (int32_t l = 0; l < width; l++) {
            float sum = 0.0f;
            for (int64_t range = 0; range < job->n_ranges; range++)
                sum += partials[(range * width + l) * d + c];
            dw[c * width + l] = sum;
        }
    }
}

moba_status MOBAI_ISA_FN(mobai_cpu_kconv_bwd)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    kconv_bwd_job job = {args, ranges_of(args->total_k), 0, (float *)mobai_cpu_address(args->scratch)};
    job.rows_per_range = mobai_ceil_div(args->total_k, job.n_ranges);
    const int64_t n_heads = args->kv_head_end - args->kv_head_begin;
    mobai_cpu_parallel_for(pool, n_heads * job.n_ranges, kconv_bwd_range, &job);
    mobai_cpu_parallel_for(pool, n_heads, sum_weights, &job);
    return MOBA_OK;
}
