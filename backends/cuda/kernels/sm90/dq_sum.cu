/* SPDX-License-Identifier: Apache-2.0
 *
 * dq_sum: dq of a slice's rows from their picks' partials, key tile by key tile of the picked blocks, in rank order
 * within. D / 8 lanes a row, 16 bytes of every partial each. A row's partials lie one after another, already scaled;
 * their column order (attend_bwd.cu) is undone by a transpose within quads.
 */
#include "picks.cuh"

template <int BF16, int D, int VEC> static __device__ __forceinline__ void dq_sum(const mobai_sm90_params &p) {
    constexpr int LANES = D / 8, PER_LANE = 32 / LANES;
    const int lane = (int)threadIdx.x % LANES;
    const uint32_t rows = (uint32_t)(p.query_end - p.query_begin) * (uint32_t)p.group;
    const uint32_t row = blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    const bool real_row = row < rows;
    const uint32_t within = (real_row ? row : 0) + (uint32_t)p.query_begin * (uint32_t)p.group;
    const int t = (int)query_of_row(p, within);
    const int slice_g = (int)blockIdx.y, g = p.kv_head_begin + slice_g;
    const int h = g * p.group + (int)(within - (uint32_t)t * (uint32_t)p.group);
    const sequence s = sequence_of_query(p, t);
    uint32_t picks = 0; /* those that have partials, one bit each */
    if (p.pick_masks) {
        const int64_t at = (int64_t)g * p.total_q * p.group + within;
        if (p.top_k <= 8)
            picks = __ldg((const uint8_t *)p.pick_masks + at);
        else if (p.top_k <= 16)
            picks = __ldg((const uint16_t *)p.pick_masks + at);
        else
            picks = __ldg((const uint32_t *)p.pick_masks + at);
    } else {
        int ids[PER_LANE];
        read_picks<LANES>((const int32_t *)p.selection + ((int64_t)t * p.n_q_heads + h) * p.top_k, p.top_k,
                          n_legal_blocks(p, s, t), ids);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            const uint32_t all = __ballot_sync(MOBAI_FULL_WARP, ids[i] >= 0) >> ((int)threadIdx.x & 31 & -LANES);
            picks |= (all & ((1u << LANES) - 1)) << (i * LANES);
        }
    }

    float sum[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum[i] = 0.0f;
    const char *partials = (const char *)p.partials +
                           ((int64_t)slice_g * rows + (real_row ? row : 0)) * p.top_k * p.n_key_tiles * (D * 2) +
                           lane * 16;
    for (int key_tile = 0; key_tile < p.n_key_tiles; key_tile++) {
#pragma unroll
        for (int batch = 0; batch < 4; batch++) {
            if (batch * 8 >= p.top_k) break;
            uint4 v[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int x = batch * 8 + i;
                v[i] = make_uint4(0, 0, 0, 0);
                asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
                             "@p ld.global.L1::no_allocate.L2::cache_hint.v4.b32 {%0, %1, %2, %3}, [%4], %5;\n}"
                             : "+r"(v[i].x), "+r"(v[i].y), "+r"(v[i].z), "+r"(v[i].w)
                             : "l"(partials + (int64_t)(x * p.n_key_tiles + key_tile) * (D * 2)),
                               "l"(MOBAI_L2_EVICT_FIRST), "r"(picks & (1u << x)));
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const uint32_t words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float2 f = unpack16<BF16>(words[j]);
                    sum[2 * j] += f.x;
                    sum[2 * j + 1] += f.y;
                }
            }
        }
    }
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        words[j] = pack16<BF16>(sum[2 * j], sum[2 * j + 1]);
    transpose_words(words, lane & 3);
    if (!real_row) return;
    uint16_t *out = (uint16_t *)p.dq.address + (int64_t)t * p.dq.token_stride + h * p.dq.head_stride +
                    batch_offset(p.dq, s.index) + lane * 8;
    store_chunk<VEC>(out, words);
}

#define DQ_SUM(NAME, BF16, D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256, 4) NAME(const __grid_constant__ mobai_sm90_params p) {           \
        dq_sum<BF16, D, 1>(p);                                                                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 4) NAME##_strided(const __grid_constant__ mobai_sm90_params p) { \
        dq_sum<BF16, D, 0>(p);                                                                                         \
    }
DQ_SUM(dq_sum_f16_d64, 0, 64)
DQ_SUM(dq_sum_f16_d128, 0, 128)
DQ_SUM(dq_sum_bf16_d64, 1, 64)
DQ_SUM(dq_sum_bf16_d128, 1, 128)
