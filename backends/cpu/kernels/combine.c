/* SPDX-License-Identifier: Apache-2.0
 *
 * Combine stage: o and lse of each row from its normalised partials, in rank order. Partial i of a row has the maximum
 * m_i (base 2) and sum l_i of its scores, so its weight is 2^(m_i - max m) l_i. Picks that no kernel served have l = 0.
 */
#include <math.h>

#include "backends/cpu/kernels/attend.h"
#include "backends/cpu/kernels/sequence.h"
#include "backends/cpu/simd.h"

enum { QUERIES_PER_TASK = 64 };

static void combine_row(const mobai_stage_args *a, int64_t pick, int64_t t, int64_t head) {
    const float *ml = (const float *)mobai_cpu_address(a->partial_ml) + 2 * pick;
    const float *partials = (const float *)mobai_cpu_address(a->partials) + pick * a->head_dim;
    float *lse = (float *)mobai_cpu_address(a->lse);
    const float ln2 = 0.69314718055994530942f;
    float o[MOBAI_CPU_MAX_HEAD_DIM] = {0};
    float highest = -INFINITY, sum = 0.0f;
    for (int32_t i = 0; i < a->top_k; i++)
        if (ml[2 * i + 1] != 0.0f && !(ml[2 * i] <= highest)) highest = ml[2 * i];
    for (int32_t i = 0; i < a->top_k; i++) {
        if (ml[2 * i + 1] == 0.0f) continue;
        const float weight = exp2f(ml[2 * i] - highest) * ml[2 * i + 1];
        sum += weight;
        for (int32_t c = 0; c < a->head_dim; c++)
            o[c] += weight * partials[(int64_t)i * a->head_dim + c];
    }
    if (sum != 0.0f)
        for (int32_t c = 0; c < a->head_dim; c++)
            o[c] /= sum;
    mobai_row_store(mobai_cpu_row(a, &a->o, a->seqlen_q, t, head), o, (moba_dtype)a->dtype, a->head_dim);
    if (lse != NULL) lse[head * a->total_q + t] = sum == 0.0f ? -INFINITY : highest * ln2 + logf(sum);
}

static void combine_queries(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const mobai_stage_args *a = (const mobai_stage_args *)context;
    const int64_t n_queries = a->query_end - a->query_begin;
    const int64_t begin = a->query_begin + task * QUERIES_PER_TASK;
    const int64_t end = mobai_min64(begin + QUERIES_PER_TASK, a->query_end);
    for (int64_t g = a->kv_head_begin; g < a->kv_head_end; g++) {
        int64_t pick = ((g - a->kv_head_begin) * n_queries + begin - a->query_begin) * a->group * a->top_k;
        for (int64_t t = begin; t < end; t++)
            for (int32_t h = 0; h < a->group; h++, pick += a->top_k)
                combine_row(a, pick, t, g * a->group + h);
    }
}

moba_status MOBAI_ISA_FN(mobai_cpu_combine)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    const int64_t n_tasks = mobai_ceil_div(args->query_end - args->query_begin, QUERIES_PER_TASK);
    mobai_cpu_parallel_for(pool, n_tasks, combine_queries, (void *)(uintptr_t)args);
    return MOBA_OK;
}
