/* SPDX-License-Identifier: Apache-2.0
 *
 * Key convolution: k'[t] = k[t] + SiLU(sum_l w[l] k[t-l]) per kv head and channel, with zero history before each
 * sequence (docs/spec.md section 2).
 */
#include <string.h>

#include "backends/cpu/kernels/kconv.h"
#include "backends/cpu/kernels/stages.h"
#include "backends/cpu/simd.h"
#include "backends/cpu/kernels/silu.h"

enum { ROWS_PER_TASK = 256 };

typedef struct kconv_job {
    const mobai_stage_args *a;
    int64_t n_tasks_per_head;
} kconv_job;

/** k' of rows [begin, end) of one sequence; `keys` starts at row `first`. */
static void convolve(const mobai_stage_args *a, int64_t g, int64_t first, int64_t begin, int64_t end,
                     const float weights[][MOBAI_CPU_MAX_HEAD_DIM]) {
    const int32_t d = a->head_dim, width = a->kconv_width;
    float keys[MOBAI_CPU_MAX_KCONV][MOBAI_CPU_MAX_HEAD_DIM], z[MOBAI_CPU_MAX_HEAD_DIM];
    for (int64_t t = mobai_max64(first, begin - width + 1); t < end; t++) {
        float *key = keys[t % MOBAI_CPU_MAX_KCONV];
        mobai_row_load(key, mobai_cpu_k_row(a, &a->k, t, g), (moba_dtype)a->dtype, d, d);
        if (t < begin) continue;
        mobai_cpu_kconv_sum(z, keys, weights, t, first, width, d);
        for (int32_t c = 0; c < d; c++)
            z[c] = key[c] + z[c] * mobai_cpu_sigmoid(z[c]);
        mobai_row_store(mobai_cpu_row(a, &a->kprime, a->seqlen_k, t, g), z, (moba_dtype)a->dtype, d);
    }
}

/** Rows outside all sequences are zero. */
static void clear_rows(const mobai_stage_args *a, int64_t begin, int64_t end, int64_t g) {
    const float zeros[MOBAI_CPU_MAX_HEAD_DIM] = {0};
    for (int64_t t = begin; t < end; t++)
        mobai_row_store(mobai_cpu_row(a, &a->kprime, a->seqlen_k, t, g), zeros, (moba_dtype)a->dtype, a->head_dim);
}

static void kconv_rows(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const kconv_job *job = (const kconv_job *)context;
    const mobai_stage_args *a = job->a;
    const int32_t *cu = (const int32_t *)mobai_cpu_address(a->cu_seqlens_k);
    const int64_t g = a->kv_head_begin + task / job->n_tasks_per_head;
    const int64_t begin = task % job->n_tasks_per_head * ROWS_PER_TASK;
    const int64_t end = mobai_min64(begin + ROWS_PER_TASK, a->total_k);
    float weights[MOBAI_CPU_MAX_KCONV][MOBAI_CPU_MAX_HEAD_DIM];
    mobai_cpu_kconv_weights(a, g, weights);
    int64_t covered = begin;
    for (int64_t b = mobai_cpu_sequence_past(cu, a->seqlen_k, a->total_k, a->batch, begin);
         b < a->batch && covered < end; b++) {
        const mobai_rows rows = mobai_seq_rows(cu, a->seqlen_k, a->total_k, b);
        const int64_t from = mobai_max64(rows.begin, covered), to = mobai_min64(rows.end, end);
        if (from >= to) continue;
        clear_rows(a, covered, from, g);
        convolve(a, g, rows.begin, from, to, (const float(*)[MOBAI_CPU_MAX_HEAD_DIM])weights);
        covered = to;
    }
    clear_rows(a, covered, end, g);
}

moba_status MOBAI_ISA_FN(mobai_cpu_kconv)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    kconv_job job = {args, mobai_ceil_div(args->total_k, ROWS_PER_TASK)};
    const int64_t n_heads = args->kv_head_end - args->kv_head_begin;
    mobai_cpu_parallel_for(pool, n_heads * job.n_tasks_per_head, kconv_rows, &job);
    return MOBA_OK;
}
