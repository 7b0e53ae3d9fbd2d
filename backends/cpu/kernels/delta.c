/* SPDX-License-Identifier: Apache-2.0
 *
 * Delta stage: delta[h][t] = sum_d dout * o in float32, what the softmax's backward subtracts from dP.
 */
#include "backends/cpu/kernels/stages.h"
#include "backends/cpu/simd.h"
#include "backends/cpu/kernels/sequence.h"

enum { ROWS_PER_TASK = 256 };

typedef struct delta_job {
    const mobai_stage_args *a;
    int64_t n_tasks_per_head;
} delta_job;

static void delta_rows(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const delta_job *job = (const delta_job *)context;
    const mobai_stage_args *a = job->a;
    const int64_t h = (int64_t)a->kv_head_begin * a->group + task / job->n_tasks_per_head;
    const int64_t begin = a->query_begin + task % job->n_tasks_per_head * ROWS_PER_TASK;
    const int64_t end = mobai_min64(begin + ROWS_PER_TASK, a->query_end);
    float *out = (float *)mobai_cpu_address(a->delta) + h * a->total_q;
    float dout[MOBAI_CPU_MAX_HEAD_DIM], o[MOBAI_CPU_MAX_HEAD_DIM];
    for (int64_t t = begin; t < end; t++) {
        mobai_row_load(dout, mobai_cpu_q_row(a, &a->dout, t, h), (moba_dtype)a->dtype, a->head_dim, a->head_dim);
        mobai_row_load(o, mobai_cpu_q_row(a, &a->o, t, h), (moba_dtype)a->dtype, a->head_dim, a->head_dim);
        float lanes[16] = {0};
        int32_t d = 0;
        for (; d + 16 <= a->head_dim; d += 16)
            for (int32_t i = 0; i < 16; i++)
                lanes[i] += dout[d + i] * o[d + i];
        for (int32_t i = 0; d + i < a->head_dim; i++)
            lanes[i] += dout[d + i] * o[d + i];
        for (int32_t half = 8; half > 0; half /= 2)
            for (int32_t i = 0; i < half; i++)
                lanes[i] += lanes[i + half];
        out[t] = lanes[0];
    }
}

moba_status MOBAI_ISA_FN(mobai_cpu_delta)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    delta_job job = {args, mobai_ceil_div(args->query_end - args->query_begin, ROWS_PER_TASK)};
    const int64_t n_heads = (int64_t)(args->kv_head_end - args->kv_head_begin) * args->group;
    mobai_cpu_parallel_for(pool, n_heads * job.n_tasks_per_head, delta_rows, &job);
    return MOBA_OK;
}
