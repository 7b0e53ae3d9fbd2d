/* SPDX-License-Identifier: Apache-2.0
 *
 * Entry points of the attend and combine kernels, one copy per instruction tier (simd.h), and their scratch.
 */
#ifndef MOBAI_CPU_ATTEND_H
#define MOBAI_CPU_ATTEND_H

#include "backends/cpu/cpu.h"

#define MOBAI_CPU_DECLARE_ATTEND(tier)                                                                                 \
    moba_status mobai_cpu_attend_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                           \
    moba_status mobai_cpu_attend_partials_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                  \
    moba_status mobai_cpu_combine_##tier(const mobai_stage_args *args, mobai_cpu_pool *pool);                          \
    size_t mobai_cpu_attend_scratch_##tier(const mobai_shape *shape);

MOBAI_CPU_DECLARE_ATTEND(plain)
MOBAI_CPU_DECLARE_ATTEND(avx2)
MOBAI_CPU_DECLARE_ATTEND(avx512)
MOBAI_CPU_DECLARE_ATTEND(avx512bf16)

#endif
