/* SPDX-License-Identifier: Apache-2.0
 *
 * Delta stage: delta[h][t] = sum_d dout * o in float32, what the softmax's backward subtracts from dP.
 *
 * The sum runs over d in the order and with the operations of the matrix product that gives dP (gemm.h). A row that
 * puts all its weight on one key has o = v, so dP - delta is then exactly zero, as it should be. Each lane sums one
 * row.
 */
#include "backends/cpu/kernels/stages.h"
#include "backends/cpu/simd.h"
#include "backends/cpu/kernels/sequence.h"

enum { ROWS_PER_TASK = 256 };

typedef struct delta_job {
    const mobai_stage_args *a;
    int64_t n_tasks_per_head;
} delta_job;

/** Columns [c, c + MOBAI_VL) of MOBAI_VL rows, one vector a column; rows past n and columns past head_dim are zero. */
static inline void load_columns(const mobai_stage_args *a, const unsigned char *const *rows, int64_t n, int64_t c,
                                mobai_vf *columns) {
    const moba_dtype dtype = (moba_dtype)a->dtype;
    const int64_t bytes = dtype == MOBA_F32 ? 4 : 2, width = mobai_min64(a->head_dim - c, MOBAI_VL);
    for (int64_t i = 0; i < MOBAI_VL; i++) {
        float part[MOBAI_VL];
        columns[i] = (mobai_vf){0};
        if (i >= n) continue;
        if (width == MOBAI_VL) {
            columns[i] = mobai_v_load_as(rows[i] + c * bytes, dtype);
            continue;
        }
        mobai_row_load(part, rows[i] + c * bytes, dtype, width, MOBAI_VL);
        columns[i] = mobai_v_load(part);
    }
    mobai_v_transpose(columns);
}

static void delta_rows(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const delta_job *job = (const delta_job *)context;
    const mobai_stage_args *a = job->a;
    const int64_t h = (int64_t)a->kv_head_begin * a->group + task / job->n_tasks_per_head;
    const int64_t begin = a->query_begin + task % job->n_tasks_per_head * ROWS_PER_TASK;
    const int64_t end = mobai_min64(begin + ROWS_PER_TASK, a->query_end);
    float *out = (float *)mobai_cpu_address(a->delta) + h * a->total_q;
    for (int64_t t = begin; t < end; t += MOBAI_VL) {
        const int64_t n = mobai_min64(MOBAI_VL, end - t);
        const unsigned char *dout_rows[MOBAI_VL], *o_rows[MOBAI_VL];
        for (int64_t i = 0; i < n; i++) {
            dout_rows[i] = mobai_cpu_q_row(a, &a->dout, t + i, h);
            o_rows[i] = mobai_cpu_q_row(a, &a->o, t + i, h);
            if (t + i + MOBAI_VL >= end) continue;
            mobai_cpu_prefetch_row(a, mobai_cpu_q_row(a, &a->dout, t + i + MOBAI_VL, h));
            mobai_cpu_prefetch_row(a, mobai_cpu_q_row(a, &a->o, t + i + MOBAI_VL, h));
        }
        mobai_vf sum = {0};
        for (int64_t c = 0; c < a->head_dim; c += MOBAI_VL) {
            mobai_vf dout[MOBAI_VL], o[MOBAI_VL];
            load_columns(a, dout_rows, n, c, dout);
            load_columns(a, o_rows, n, c, o);
            for (int64_t i = 0; i < mobai_min64(a->head_dim - c, MOBAI_VL); i++)
                sum = mobai_v_fma(dout[i], o[i], sum);
        }
        mobai_v_store_n(out + t, sum, n);
    }
}

moba_status MOBAI_ISA_FN(mobai_cpu_delta)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    delta_job job = {args, mobai_ceil_div(args->query_end - args->query_begin, ROWS_PER_TASK)};
    const int64_t n_heads = (int64_t)(args->kv_head_end - args->kv_head_begin) * args->group;
    mobai_cpu_parallel_for(pool, n_heads * job.n_tasks_per_head, delta_rows, &job);
    return MOBA_OK;
}
