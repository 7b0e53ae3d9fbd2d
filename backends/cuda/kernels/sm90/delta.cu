/* SPDX-License-Identifier: Apache-2.0
 *
 * delta: rowsum(dO * O) of every row in float32. D / 8 lanes a row, 16 bytes of each tensor a lane, ROWS rows at a
 * time.
 */
#include "common.cuh"

template <int BF16, int D, int VEC> static __device__ __forceinline__ void delta(const mobai_sm90_params &p) {
    constexpr int LANES = D / 8, ROWS = 4, GROUP_ROWS = 256 / LANES;
    const int lane = (int)threadIdx.x % LANES, n_heads = p.n_slice_kv_heads * p.group;
    const int64_t n_rows = (int64_t)(p.query_end - p.query_begin) * n_heads;
    const int64_t first = (int64_t)blockIdx.x * (GROUP_ROWS * ROWS) + threadIdx.x / LANES;
    uint4 o[ROWS], dout[ROWS];
    float *to[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int64_t row = min(first + i * GROUP_ROWS, n_rows - 1);
        const int t = (int)(row / n_heads), h = p.kv_head_begin * p.group + (int)(row - (int64_t)t * n_heads);
        /* with cu_seqlens there is no batch offset; without, rows lie one sequence after another */
        const int b = p.cu_q ? 0 : min(sequence_number(p, p.query_begin + t), p.batch - 1);
        const int64_t at = p.query_begin + t;
        o[i] = load_chunk<VEC>((const uint16_t *)p.o.address + batch_offset(p.o, b) + at * p.o.token_stride +
                               h * p.o.head_stride + lane * 8);
        dout[i] = load_chunk<VEC>((const uint16_t *)p.dout.address + batch_offset(p.dout, b) +
                                  at * p.dout.token_stride + h * p.dout.head_stride + lane * 8);
        to[i] = (float *)p.delta + (int64_t)h * p.total_q + at;
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const uint32_t a[4] = {o[i].x, o[i].y, o[i].z, o[i].w}, b[4] = {dout[i].x, dout[i].y, dout[i].z, dout[i].w};
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 x = unpack16<BF16>(a[j]), y = unpack16<BF16>(b[j]);
            sum = fmaf(x.x, y.x, sum);
            sum = fmaf(x.y, y.y, sum);
        }
#pragma unroll
        for (int x = 1; x < LANES; x <<= 1)
            sum += __shfl_xor_sync(MOBAI_FULL_WARP, sum, x);
        if (lane == 0 && first + i * GROUP_ROWS < n_rows) *to[i] = sum;
    }
}

#define DELTA(NAME, BF16, D)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ mobai_sm90_params p) {              \
        delta<BF16, D, 1>(p);                                                                                          \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) NAME##_strided(const __grid_constant__ mobai_sm90_params p) {    \
        delta<BF16, D, 0>(p);                                                                                          \
    }
DELTA(delta_f16_d64, 0, 64)
DELTA(delta_f16_d128, 0, 128)
DELTA(delta_bf16_d64, 1, 64)
DELTA(delta_bf16_d128, 1, 128)
