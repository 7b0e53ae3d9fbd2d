/* SPDX-License-Identifier: Apache-2.0
 *
 * Centroid stage: the mean key of each block (docs/spec.md section 3).
 *
 * Sums run in float32 over runs of 64 keys, and the runs are then added, so that the rounding error of a long block
 * grows with the run, not with the block.
 */
#include <string.h>

#include "backends/cpu/kernels/stages.h"
#include "backends/cpu/simd.h"
#include "backends/cpu/kernels/sequence.h"

enum { RUN = 64 };

static void centroid_slot(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const mobai_stage_args *a = (const mobai_stage_args *)context;
    const int32_t d = a->head_dim;
    const int64_t g = a->kv_head_begin + task / a->n_slots, slot = task % a->n_slots;
    float sum[MOBAI_CPU_MAX_HEAD_DIM], run[MOBAI_CPU_MAX_HEAD_DIM], key[MOBAI_CPU_MAX_HEAD_DIM];
    memset(sum, 0, (size_t)d * sizeof *sum);
    mobai_cpu_blocks s;
    if (mobai_cpu_blocks_of_slot(a, slot, &s)) {
        const int64_t begin = s.k.begin + (slot - s.first_slot) * a->block_size;
        const int64_t end = mobai_min64(begin + a->block_size, s.k.end);
        for (int64_t first = begin; first < end; first += RUN) {
            memset(run, 0, (size_t)d * sizeof *run);
            for (int64_t t = first; t < mobai_min64(first + RUN, end); t++) {
                mobai_row_load(key, mobai_cpu_k_row(a, &a->k, t, g), (moba_dtype)a->dtype, d, d);
                for (int32_t c = 0; c < d; c++)
                    run[c] += key[c];
            }
            for (int32_t c = 0; c < d; c++)
                sum[c] += run[c];
        }
        for (int32_t c = 0; c < d; c++)
            sum[c] /= (float)(end - begin);
    }
    const int64_t row_bytes = d * (a->dtype == MOBA_F32 ? 4 : 2);
    mobai_row_store((unsigned char *)mobai_cpu_address(a->centroids) + (g * a->n_slots + slot) * row_bytes, sum,
                    (moba_dtype)a->dtype, d);
}

moba_status MOBAI_ISA_FN(mobai_cpu_centroid)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    const int64_t n_heads = args->kv_head_end - args->kv_head_begin;
    mobai_cpu_parallel_for(pool, n_heads * args->n_slots, centroid_slot, (void *)(uintptr_t)args);
    return MOBA_OK;
}
