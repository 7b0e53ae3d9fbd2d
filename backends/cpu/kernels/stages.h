/* SPDX-License-Identifier: Apache-2.0
 *
 * Entry points of the routing and backward kernels, one copy per instruction tier (simd.h), and their scratch.
 */
#ifndef MOBAI_CPU_STAGES_H
#define MOBAI_CPU_STAGES_H

#include "backends/cpu/cpu.h"
#include "core/convert.h"

enum {
    MOBAI_CPU_MAX_HEAD_DIM = 256, /* docs/spec.md section 8 */
    MOBAI_CPU_MAX_KCONV = 8       /* likewise; a power of two, since rings of rows are indexed modulo it */
};

/** Floats that accumulators of dQ may take: an eighth of the bytes of q, k, v and o. */
static inline int64_t mobai_cpu_dq_floats_limit(const mobai_shape *shape) {
    const moba_problem *p = shape->problem;
    const int64_t rows = 2 * (p->max_total_q * p->n_q_heads + p->max_total_k * p->n_kv_heads);
    return rows * p->head_dim * (int64_t)mobai_dtype_bytes(p->dtype) / 8 / (int64_t)sizeof(float);
}

#define MOBAI_CPU_DECLARE_STAGES(tier)                                                                                 \
    moba_status mobai_cpu_kconv_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                            \
    moba_status mobai_cpu_centroid_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                         \
    moba_status mobai_cpu_gate_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                             \
    moba_status mobai_cpu_index_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                            \
    moba_status mobai_cpu_delta_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                            \
    moba_status mobai_cpu_attend_bwd_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                       \
    moba_status mobai_cpu_kconv_bwd_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                        \
    size_t mobai_cpu_gate_scratch_##tier(const mobai_shape *shape);                                                    \
    size_t mobai_cpu_index_scratch_##tier(const mobai_shape *shape);                                                   \
    size_t mobai_cpu_attend_bwd_scratch_##tier(const mobai_shape *shape);                                              \
    size_t mobai_cpu_kconv_bwd_scratch_##tier(const mobai_shape *shape);

MOBAI_CPU_DECLARE_STAGES(plain)
MOBAI_CPU_DECLARE_STAGES(avx2)
MOBAI_CPU_DECLARE_STAGES(avx512)

#endif
