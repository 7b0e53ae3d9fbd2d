/* SPDX-License-Identifier: Apache-2.0
 *
 * Helpers of the sm_90a kernels: sequences and block slots (core/geometry.h, repeated for the device), 16-bit element
 * types, asynchronous copies, barriers.
 */
#ifndef MOBAI_SM90_COMMON_CUH
#define MOBAI_SM90_COMMON_CUH

#include <stdint.h>

#include "params.h"

#define MOBAI_FULL_WARP 0xffffffffu

/* ------------------------------------------------------------------------------------------- sequences -- */

/** One sequence: its rows, and the slot of its first key block. */
struct sequence {
    int index;
    int q_begin, n_q, k_begin, n_k;
    int first_slot;
};

__device__ __forceinline__ int2 clamped_rows(const int32_t *cu, int seqlen, int total, int b) {
    if (!cu) return make_int2(b * seqlen, (b + 1) * seqlen);
    int begin = min(max(__ldg(cu + b), 0), total);
    return make_int2(begin, min(max(__ldg(cu + b + 1), begin), total));
}

__device__ __forceinline__ sequence sequence_at(const mobai_sm90_params &p, int b) {
    sequence s;
    int2 q = clamped_rows((const int32_t *)p.cu_q, p.seqlen_q, p.total_q, b);
    int2 k = clamped_rows((const int32_t *)p.cu_k, p.seqlen_k, p.total_k, b);
    s.index = b;
    s.q_begin = q.x;
    s.n_q = q.y - q.x;
    s.k_begin = k.x;
    s.n_k = k.y - k.x;
    s.first_slot = (int)(__umulhi((uint32_t)k.x, p.block_magic) >> p.block_shift) + b;
    return s;
}

/** Number of the sequence of query row t without cu_seqlens. */
__device__ __forceinline__ int sequence_number(const mobai_sm90_params &p, int t) {
    return p.seqlen_q > 1 ? (int)(__umulhi((uint32_t)t, p.seqlen_magic) >> p.seqlen_shift) : t;
}

/** The sequence that may own query row t: the last one that begins at or before it. Check t against its rows. */
__device__ __forceinline__ sequence sequence_of_query(const mobai_sm90_params &p, int t) {
    const int32_t *cu = (const int32_t *)p.cu_q;
    int b;
    if (!cu) {
        b = min(sequence_number(p, t), p.batch - 1);
    } else {
        int low = 0, high = p.batch - 1;
        while (low < high) {
            int middle = (low + high + 1) >> 1;
            if (__ldg(cu + middle) <= t)
                low = middle;
            else
                high = middle - 1;
        }
        b = low;
    }
    return sequence_at(p, b);
}

/** The sequence that may own block slot `slot`. */
__device__ __forceinline__ sequence sequence_of_slot(const mobai_sm90_params &p, int slot) {
    const int32_t *cu = (const int32_t *)p.cu_k;
    int low = 0, high = p.batch - 1;
    while (low < high) {
        int middle = (low + high + 1) >> 1;
        if ((int)(__umulhi((uint32_t)clamped_rows(cu, p.seqlen_k, p.total_k, middle).x, p.block_magic) >> p.block_shift) + middle <=
            slot)
            low = middle;
        else
            high = middle - 1;
    }
    return sequence_at(p, low);
}

/** key / block_size for a key position of a sequence. */
__device__ __forceinline__ int block_of(const mobai_sm90_params &p, int key) {
    return (int)(__umulhi((uint32_t)key, p.block_magic) >> p.block_shift);
}

__device__ __forceinline__ int n_blocks(const mobai_sm90_params &p, const sequence &s) {
    return s.n_k > 0 ? block_of(p, s.n_k - 1) + 1 : 0;
}

/** Number of blocks query row t of `s` may pick: ids 0 .. result - 1. 0 for rows outside. */
__device__ __forceinline__ int n_legal_blocks(const mobai_sm90_params &p, const sequence &s, int t) {
    int i = t - s.q_begin;
    if (i < 0 || i >= s.n_q) return 0;
    int n = n_blocks(p, s);
    if (!p.causal) return n;
    int position = i + s.n_k - s.n_q;
    return position < 0 ? 0 : min(block_of(p, position) + 1, n);
}

/** Whether query row t of `s` may pick block `id` >= 0. */
__device__ __forceinline__ bool is_legal_block(const mobai_sm90_params &p, const sequence &s, int t, int id) {
    const int i = t - s.q_begin, key = id * p.block_size; /* no overflow for ids within the sequence */
    return i >= 0 && i < s.n_q && id < n_blocks(p, s) && (!p.causal || key <= i + s.n_k - s.n_q);
}

__device__ __forceinline__ int64_t batch_offset(const mobai_sm90_tensor &x, int b) { return (int64_t)b * x.batch_shift; }

/** Query row of gathered row `row` of a kv head. */
__device__ __forceinline__ uint32_t query_of_row(const mobai_sm90_params &p, uint32_t row) {
    return p.group == 1 ? row : __umulhi(row, p.group_magic) >> p.group_shift;
}

/** Number of entries of a list below `bound`. The entries ascend without repetition, which bounds the number; three of
 *  them are read at a time, for what counts is how many loads follow one another. */
__device__ __forceinline__ int64_t rows_below(const uint32_t *rows, int64_t n, int64_t bound) {
    if (n == 0) return 0;
    int64_t low = 0;
    n = min(n, bound - (int64_t)__ldg(rows));
    while (n > 0) {
        const int64_t step = (n + 3) >> 2;
        int below = 0;
#pragma unroll
        for (int i = 1; i <= 3; i++)
            below += i * step <= n && (int64_t)__ldg(rows + low + i * step - 1) < bound;
        low += below * step;
        n = min(n - below * step, below == 3 ? n : step - 1);
    }
    return low;
}

/* ----------------------------------------------------------------------------------------- 16-bit types -- */

/** Two floats to one register, the first in the low half. */
template <int BF16> __device__ __forceinline__ uint32_t pack16(float low, float high) {
    uint32_t r;
    if constexpr (BF16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <int BF16> __device__ __forceinline__ float2 unpack16(uint32_t v) {
    if constexpr (BF16) return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
    float2 f;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(f.x), "=f"(f.y) : "r"(v));
    return f;
}

/** 16 bytes of global memory, element by element when VEC is 0 (addresses aligned to 2 bytes only). */
template <int VEC> __device__ __forceinline__ uint4 load_chunk(const void *source) {
    if constexpr (VEC) {
        uint4 v;
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "l"(source));
        return v;
    } else {
        const uint16_t *e = (const uint16_t *)source;
        uint4 v;
        v.x = __ldg(e) | (uint32_t)__ldg(e + 1) << 16;
        v.y = __ldg(e + 2) | (uint32_t)__ldg(e + 3) << 16;
        v.z = __ldg(e + 4) | (uint32_t)__ldg(e + 5) << 16;
        v.w = __ldg(e + 6) | (uint32_t)__ldg(e + 7) << 16;
        return v;
    }
}

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/** Exclusive sum over the 1024 threads of a work-group; `total` is the sum of all. */
static __device__ __forceinline__ uint32_t scan_1024(uint32_t value, uint32_t *total) {
    __shared__ uint32_t warp_sums[33];
    const int lane = (int)threadIdx.x & 31, warp = (int)threadIdx.x >> 5;
    uint32_t inclusive = value;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
        uint32_t other = __shfl_up_sync(MOBAI_FULL_WARP, inclusive, (unsigned)i);
        if (lane >= i) inclusive += other;
    }
    __syncthreads();
    if (lane == 31) warp_sums[warp] = inclusive;
    __syncthreads();
    if (warp == 0) {
        uint32_t v = warp_sums[lane], sum = v;
#pragma unroll
        for (int i = 1; i < 32; i <<= 1) {
            uint32_t other = __shfl_up_sync(MOBAI_FULL_WARP, sum, (unsigned)i);
            if (lane >= i) sum += other;
        }
        warp_sums[lane] = sum - v;
        if (lane == 31) warp_sums[32] = sum;
    }
    __syncthreads();
    *total = warp_sums[32];
    return warp_sums[warp] + inclusive - value;
}

/* ------------------------------------------------------------------------------ copies, fences, barriers -- */

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

#define MOBAI_L2_EVICT_FIRST 0x12F0000000000000ull
#define MOBAI_L2_EVICT_LAST 0x14F0000000000000ull

/** Asynchronous copy of 16 bytes, the rest past `bytes` (0 or 16) filled with zeros. */
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, uint32_t bytes, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from), "r"(bytes),
                 "l"(policy)
                 : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

/** Copies a 16-byte chunk to shared memory, or zeros when `wanted` is false. Without VEC it is done on return. */
template <int VEC>
__device__ __forceinline__ void gather_chunk(uint32_t to, const void *from, bool wanted, uint64_t policy) {
    if constexpr (VEC)
        copy_async(to, from, wanted ? 16 : 0, policy);
    else
        store_shared(to, wanted ? load_chunk<0>(from) : make_uint4(0, 0, 0, 0));
}

/** Makes this thread's shared-memory writes visible to wgmma; then a barrier. */
__device__ __forceinline__ void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/** Barrier of one warpgroup. */
__device__ __forceinline__ void warpgroup_barrier(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ bool mbarrier_test(uint32_t barrier, int parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return done != 0;
}
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int parity) {
    asm volatile("{\n.reg .pred p;\nWAIT_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra WAIT_%=;\n}" ::"r"(
                     barrier),
                 "r"(parity)
                 : "memory");
}

#endif
