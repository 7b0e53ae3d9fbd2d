/* SPDX-License-Identifier: Apache-2.0
 *
 * The work items of attend_bwd and the matrix product its dQ needs.
 */
#ifndef MOBAI_SM90_BWD_CUH
#define MOBAI_SM90_BWD_CUH

#include "common.cuh"
#include "wgmma.cuh"

static __device__ __forceinline__ mobai_sm90_bwd_item *bwd_items(const mobai_sm90_params &p, int slice_g) {
    return (mobai_sm90_bwd_item *)((char *)p.scratch + MOBAI_SM90_BWD_ITEMS_OFFSET) +
           (int64_t)slice_g * p.n_item_capacity;
}
static __device__ __forceinline__ mobai_sm90_bwd_list *bwd_lists(const mobai_sm90_params &p, int slice_g) {
    return (mobai_sm90_bwd_list *)bwd_items(p, p.n_slice_kv_heads) + (int64_t)slice_g * p.n_slots * p.n_key_tiles;
}

/** The sums of one key's dK or dV over query ranges. */
static __device__ __forceinline__ float *bwd_sums(const mobai_sm90_params &p, int slice_g, int is_dv, int key_row) {
    const int64_t head = (int64_t)is_dv * p.n_slice_kv_heads + slice_g;
    return (float *)p.dkv_sums + (head * p.total_k + key_row) * p.head_dim;
}

/** One key's row of dkprime. */
static __device__ __forceinline__ float *bwd_dkprime(const mobai_sm90_params &p, int g, int key_row, int head_dim) {
    return (float *)p.dkprime + ((int64_t)key_row * p.slice_kv_heads + g - p.kv_head_begin) * head_dim;
}

/** d (+)= A B with both MN-major in shared memory. */
#define MOBAI_WGMMA_SS_MN(N, TYPE, TEXT, ACC, A, B, P)                                                                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" TEXT "}, %" #A ", %" #B          \
                 ", p, 1, 1, 1, 1;\n}"                                                                                 \
                 : ACC                                                                                                 \
                 : "l"(a), "l"(b), "r"(accumulate))
template <int BF16>
__device__ __forceinline__ void wgmma_ss_mn(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
    if constexpr (BF16)
        MOBAI_WGMMA_SS_MN(128, "bf16", MOBAI_ACC64_TEXT, MOBAI_ACC64(d), 64, 65, 66);
    else
        MOBAI_WGMMA_SS_MN(128, "f16", MOBAI_ACC64_TEXT, MOBAI_ACC64(d), 64, 65, 66);
}
template <int BF16>
__device__ __forceinline__ void wgmma_ss_mn(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
    if constexpr (BF16)
        MOBAI_WGMMA_SS_MN(64, "bf16", MOBAI_ACC32_TEXT, MOBAI_ACC32(d), 32, 33, 34);
    else
        MOBAI_WGMMA_SS_MN(64, "f16", MOBAI_ACC32_TEXT, MOBAI_ACC32(d), 32, 33, 34);
}

/** Writes four 8 x 8 matrices of 16-bit values: lane l gives the address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void store_matrices(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

/** Asynchronous copy of 4 bytes. */
__device__ __forceinline__ void copy_async_word(uint32_t to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

#endif
