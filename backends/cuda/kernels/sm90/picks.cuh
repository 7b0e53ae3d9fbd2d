/* SPDX-License-Identifier: Apache-2.0
 *
 * Which picks of a row have an entry in the index: the rule of index.cu, for kernels that read the selection.
 */
#ifndef MOBAI_SM90_PICKS_CUH
#define MOBAI_SM90_PICKS_CUH

#include "common.cuh"

/**
 * Picks of one row, LANES lanes a row: lane l has ids[i] = pick i * LANES + l, or -1 where the pick is padding, illegal
 * or a repetition. `legal` is n_legal_blocks() of the row. All lanes of the warp must call.
 */
template <int LANES, int PER_LANE>
static __device__ __forceinline__ void read_picks(const int32_t *selection, int top_k, int legal,
                                                  int (&ids)[PER_LANE]) {
    const int lane = (int)threadIdx.x % LANES;
    int before = -1;
    bool ascending = true;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int x = i * LANES + lane, id = x < top_k ? __ldg(selection + x) : -1;
        ids[i] = id >= 0 && id < legal ? id : -1;
        int left = __shfl_up_sync(MOBAI_FULL_WARP, ids[i], 1, LANES);
        left = lane == 0 ? before : left;
        if (x > 0 && ids[i] >= 0 && (ids[i] <= left || left < 0)) ascending = false; /* a hole may hide a repeated id */
        before = __shfl_sync(MOBAI_FULL_WARP, ids[i], LANES - 1, LANES);
    }
    if (__all_sync(MOBAI_FULL_WARP, ascending)) return;
    int kept[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        kept[i] = ids[i];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        for (int x = 0; x < LANES; x++) {
            int other = __shfl_sync(MOBAI_FULL_WARP, ids[i], x, LANES);
#pragma unroll
            for (int j = 0; j < PER_LANE; j++)
                if (other >= 0 && ids[j] == other && j * LANES + lane > i * LANES + x) kept[j] = -1;
        }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        ids[i] = kept[i];
}

/** 4 x 4 transpose of words over the lanes of a quad. */
static __device__ __forceinline__ void transpose_words(uint32_t (&v)[4], int quad) {
    const bool odd = quad & 1, high = quad & 2;
    uint32_t a = odd ? v[0] : v[1], b = odd ? v[2] : v[3];
    a = __shfl_xor_sync(MOBAI_FULL_WARP, a, 1);
    b = __shfl_xor_sync(MOBAI_FULL_WARP, b, 1);
    v[0] = odd ? a : v[0];
    v[2] = odd ? b : v[2];
    v[1] = odd ? v[1] : a;
    v[3] = odd ? v[3] : b;
    a = high ? v[0] : v[2];
    b = high ? v[1] : v[3];
    a = __shfl_xor_sync(MOBAI_FULL_WARP, a, 2);
    b = __shfl_xor_sync(MOBAI_FULL_WARP, b, 2);
    v[0] = high ? a : v[0];
    v[1] = high ? b : v[1];
    v[2] = high ? v[2] : a;
    v[3] = high ? v[3] : b;
}

/** Writes 16 bytes, element by element when VEC is 0. */
template <int VEC> static __device__ __forceinline__ void store_chunk(void *to, const uint32_t (&w)[4]) {
    if constexpr (VEC) {
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                     : "memory");
    } else {
        uint16_t *e = (uint16_t *)to;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            e[2 * j] = (uint16_t)w[j];
            e[2 * j + 1] = (uint16_t)(w[j] >> 16);
        }
    }
}

#endif
