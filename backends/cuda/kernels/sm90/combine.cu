/* SPDX-License-Identifier: Apache-2.0
 *
 * combine: o and lse of a slice's rows from their picks' partials. D / 8 lanes a row, 16 bytes of every partial each,
 * summed in rank order. The partials' column order (attend.cu) is
 * undone by a transpose within quads.
 */
#include "picks.cuh"

template <int BF16, int D, int VEC> static __device__ __forceinline__ void combine(const mobai_sm90_params &p) {
    constexpr int LANES = D / 8, PER_LANE = 32 / LANES; /* picks whose weight one lane computes */
    const int lane = (int)threadIdx.x % LANES;
    const uint32_t n_queries = (uint32_t)(p.query_end - p.query_begin), rows = n_queries * (uint32_t)p.group;
    const uint32_t row = blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
    const bool real_row = row < rows;
    const uint32_t within = (real_row ? row : 0) + (uint32_t)p.query_begin * (uint32_t)p.group;
    const int t = (int)query_of_row(p, within);
    const int slice_g = (int)blockIdx.y, g = p.kv_head_begin + slice_g;
    const int h = g * p.group + (int)(within - (uint32_t)t * (uint32_t)p.group);
    const sequence s = sequence_of_query(p, t);
    const int legal = n_legal_blocks(p, s, t);
    const int64_t pick = ((int64_t)slice_g * rows + (real_row ? row : 0)) * p.top_k;
    const int32_t *selection = (const int32_t *)p.selection + ((int64_t)t * p.n_q_heads + h) * p.top_k;

    float weight[PER_LANE];
    int ids[PER_LANE];
    read_picks<LANES>(selection, p.top_k, legal, ids);

    const float *lse = (const float *)p.partial_ml;
    /* where each pick's partial is: its position in the kv head's index, or, without that map, as attend_places left it
     */
    const uint32_t *places = p.places
                                 ? (const uint32_t *)p.places + ((int64_t)g * p.total_q * p.group + within) * p.top_k
                                 : (const uint32_t *)lse + (int64_t)p.n_slice_kv_heads * rows * p.top_k + pick;
    /* the first of each slot's lists: partials go on from one to the next as positions do */
    const mobai_sm90_list *lists = (const mobai_sm90_list *)p.item_lists + (int64_t)slice_g * p.n_list_capacity +
                                   (int64_t)s.first_slot * p.n_item_steps;
    const uint32_t first_partial = p.places ? (uint32_t)slice_g * rows * (uint32_t)p.top_k : 0;
    uint32_t partial[PER_LANE];
    float greatest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        partial[i] = ids[i] >= 0 ? __ldg(places + i * LANES + lane) + first_partial : 0;
        if (p.places && !p.has_all_rows && ids[i] >= 0)
            partial[i] += lists[ids[i] * p.n_item_steps].first_partial - (uint32_t)lists[ids[i] * p.n_item_steps].first;
        weight[i] = ids[i] >= 0 ? __ldg(lse + partial[i]) : -INFINITY;
        greatest = fmaxf(greatest, weight[i]);
    }
#pragma unroll
    for (int i = 1; i < LANES; i <<= 1)
        greatest = fmaxf(greatest, __shfl_xor_sync(MOBAI_FULL_WARP, greatest, i));
    const bool none = greatest == -INFINITY;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        weight[i] = ids[i] >= 0 ? exp2_approx(weight[i] - (none ? 0.0f : greatest)) : 0.0f;
        sum += weight[i];
    }
#pragma unroll
    for (int i = 1; i < LANES; i <<= 1)
        sum += __shfl_xor_sync(MOBAI_FULL_WARP, sum, i);
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;

    float o[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        o[i] = 0.0f;
    const char *partials = (const char *)p.partials + lane * 16;
#pragma unroll
    for (int batch = 0; batch < 4; batch++) {
        if (batch * 8 >= p.top_k) break;
        uint4 v[8];
        float w[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int x = batch * 8 + i;
            const int id = __shfl_sync(MOBAI_FULL_WARP, ids[x / LANES], x % LANES, LANES);
            const uint32_t at = __shfl_sync(MOBAI_FULL_WARP, partial[x / LANES], x % LANES, LANES);
            w[i] = __shfl_sync(MOBAI_FULL_WARP, weight[x / LANES], x % LANES, LANES) * inverse;
            v[i] = make_uint4(0, 0, 0, 0);
            asm volatile("{\n.reg .pred p;\nsetp.ge.s32 p, %6, 0;\n"
                         "@p ld.global.L1::no_allocate.L2::cache_hint.v4.b32 {%0, %1, %2, %3}, [%4], %5;\n}"
                         : "+r"(v[i].x), "+r"(v[i].y), "+r"(v[i].z), "+r"(v[i].w)
                         : "l"(partials + (int64_t)at * (D * 2)), "l"(MOBAI_L2_EVICT_FIRST), "r"(id));
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 f = unpack16<BF16>(words[j]);
                o[2 * j] = fmaf(w[i], f.x, o[2 * j]);
                o[2 * j + 1] = fmaf(w[i], f.y, o[2 * j + 1]);
            }
        }
    }
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; j++)
        words[j] = pack16<BF16>(o[2 * j], o[2 * j + 1]);
    transpose_words(words, lane & 3);
    if (!real_row) return;
    /* rows past the last sequence take its offset, which is 0 with cu_seqlens and cannot occur without */
    uint16_t *out = (uint16_t *)p.o.address + (int64_t)t * p.o.token_stride + h * p.o.head_stride +
                    batch_offset(p.o, s.index) + lane * 8;
    store_chunk<VEC>(out, words);
    if (lane == 0 && p.lse)
        ((float *)p.lse)[(int64_t)h * p.total_q + t] =
            sum == 0.0f ? -INFINITY : (greatest + log2_approx(sum)) * 0.693147180559945309f;
}

#define COMBINE(NAME, BF16, D)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256, 4) NAME(const __grid_constant__ mobai_sm90_params p) {           \
        combine<BF16, D, 1>(p);                                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 4) NAME##_strided(const __grid_constant__ mobai_sm90_params p) { \
        combine<BF16, D, 0>(p);                                                                                        \
    }
COMBINE(combine_f16_d64, 0, 64)
COMBINE(combine_f16_d128, 0, 128)
COMBINE(combine_bf16_d64, 1, 64)
COMBINE(combine_bf16_d128, 1, 128)
