/* SPDX-License-Identifier: Apache-2.0
 *
 * centroid: mean key of every block slot, summed in float32 in a fixed order, rounded once. One work-group a (slot, kv
 * head); neighbours in the grid are the heads of one slot, which lie side by side in the packed layout.
 */
#include "common.cuh"

template <int BF16, int D, int VEC> static __device__ __forceinline__ void centroid(const mobai_sm90_params &p) {
    constexpr int LANES = D / 8;     /* lanes that cover one key row */
    constexpr int ROWS = 128 / LANES; /* rows of one pass */
    constexpr int DEPTH = 8;         /* passes in flight */
    __shared__ float sums[ROWS][D];
    const int slot = (int)(blockIdx.x / (uint32_t)p.n_slice_kv_heads);
    const int g = p.kv_head_begin + (int)(blockIdx.x % (uint32_t)p.n_slice_kv_heads);
    const sequence s = sequence_of_slot(p, slot);
    const int first = (slot - s.first_slot) * p.block_size;
    const int n_keys = min(p.block_size, s.n_k - first);
    const int lane = (int)threadIdx.x % LANES, row = (int)threadIdx.x / LANES;
    const uint16_t *k = (const uint16_t *)p.k.address + batch_offset(p.k, s.index) + g * p.k.head_stride + lane * 8;
    float a[8];
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] = 0.0f;
    for (int base = 0; base < n_keys; base += ROWS * DEPTH) {
        uint4 v[DEPTH];
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            int r = base + i * ROWS + row;
            v[i] = make_uint4(0, 0, 0, 0);
            if (r < n_keys) v[i] = load_chunk<VEC>(k + (int64_t)(s.k_begin + first + r) * p.k.token_stride);
        }
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            const uint32_t w[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 f = unpack16<BF16>(w[j]);
                a[2 * j] += f.x;
                a[2 * j + 1] += f.y;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sums[row][lane * 8 + i] = a[i];
    __syncthreads();
    if (threadIdx.x < D) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < ROWS; i++) sum += sums[i][threadIdx.x];
        float mean = n_keys > 0 ? sum / (float)n_keys : 0.0f;
        ((uint16_t *)p.centroids)[((int64_t)g * p.n_slots + slot) * D + threadIdx.x] =
            (uint16_t)pack16<BF16>(mean, 0.0f);
    }
}

#define CENTROID(NAME, BF16, D)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128) NAME(const __grid_constant__ mobai_sm90_params p) {              \
        centroid<BF16, D, 1>(p);                                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) NAME##_strided(const __grid_constant__ mobai_sm90_params p) {    \
        centroid<BF16, D, 0>(p);                                                                                       \
    }
CENTROID(centroid_f16_d64, 0, 64)
CENTROID(centroid_f16_d128, 0, 128)
CENTROID(centroid_bf16_d64, 1, 64)
CENTROID(centroid_bf16_d128, 1, 128)
