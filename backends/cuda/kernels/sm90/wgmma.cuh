/* SPDX-License-Identifier: Apache-2.0
 *
 * Hopper matrix instructions: descriptors, fences, and the m64nNk16 products with float32 accumulators.
 *
 * Shared-memory operands are tiles of 128-byte rows with the 128-byte swizzle: chunk c (16 bytes) of row r lies at
 * r * 128 + ((c ^ (r & 7)) << 4), and the tile is aligned to 1024 bytes. A K-major operand (rows are m or n, the row
 * holds 64 values of k) advances by 32 bytes a k16 step; an MN-major one (rows are k, the row holds 64 values of n)
 * by 2048 bytes, its leading offset being the distance of two 64-column tiles.
 */
#ifndef MOBAI_SM90_WGMMA_CUH
#define MOBAI_SM90_WGMMA_CUH

#include <stdint.h>

/** Matrix descriptor of a 128-byte-swizzled tile; `leading_bytes` matters to MN-major operands only. */
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t shared_address, uint32_t leading_bytes) {
    return (uint64_t)((shared_address & 0x3ffff) >> 4) | ((uint64_t)(leading_bytes >> 4) << 16) |
           ((uint64_t)(1024 >> 4) << 32) | (1ull << 62);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/** Keeps the compiler from moving uses of the accumulators across a wait. */
template <int N> __device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

/* clang-format off */
#define MOBAI_ACC32_TEXT \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MOBAI_ACC64_TEXT \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MOBAI_ACC32(d) \
    "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3]), "+f"((d)[4]), "+f"((d)[5]), "+f"((d)[6]), "+f"((d)[7]), \
    "+f"((d)[8]), "+f"((d)[9]), "+f"((d)[10]), "+f"((d)[11]), "+f"((d)[12]), "+f"((d)[13]), "+f"((d)[14]), "+f"((d)[15]), \
    "+f"((d)[16]), "+f"((d)[17]), "+f"((d)[18]), "+f"((d)[19]), "+f"((d)[20]), "+f"((d)[21]), "+f"((d)[22]), "+f"((d)[23]), \
    "+f"((d)[24]), "+f"((d)[25]), "+f"((d)[26]), "+f"((d)[27]), "+f"((d)[28]), "+f"((d)[29]), "+f"((d)[30]), "+f"((d)[31])
#define MOBAI_ACC64(d) \
    "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3]), "+f"((d)[4]), "+f"((d)[5]), "+f"((d)[6]), "+f"((d)[7]), \
    "+f"((d)[8]), "+f"((d)[9]), "+f"((d)[10]), "+f"((d)[11]), "+f"((d)[12]), "+f"((d)[13]), "+f"((d)[14]), "+f"((d)[15]), \
    "+f"((d)[16]), "+f"((d)[17]), "+f"((d)[18]), "+f"((d)[19]), "+f"((d)[20]), "+f"((d)[21]), "+f"((d)[22]), "+f"((d)[23]), \
    "+f"((d)[24]), "+f"((d)[25]), "+f"((d)[26]), "+f"((d)[27]), "+f"((d)[28]), "+f"((d)[29]), "+f"((d)[30]), "+f"((d)[31]), \
    "+f"((d)[32]), "+f"((d)[33]), "+f"((d)[34]), "+f"((d)[35]), "+f"((d)[36]), "+f"((d)[37]), "+f"((d)[38]), "+f"((d)[39]), \
    "+f"((d)[40]), "+f"((d)[41]), "+f"((d)[42]), "+f"((d)[43]), "+f"((d)[44]), "+f"((d)[45]), "+f"((d)[46]), "+f"((d)[47]), \
    "+f"((d)[48]), "+f"((d)[49]), "+f"((d)[50]), "+f"((d)[51]), "+f"((d)[52]), "+f"((d)[53]), "+f"((d)[54]), "+f"((d)[55]), \
    "+f"((d)[56]), "+f"((d)[57]), "+f"((d)[58]), "+f"((d)[59]), "+f"((d)[60]), "+f"((d)[61]), "+f"((d)[62]), "+f"((d)[63])
#define MOBAI_WGMMA_SS(N, TYPE, TEXT, ACC, A, B, P) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" TEXT "}, %" #A ", %" #B \
                 ", p, 1, 1, 0, 0;\n}" : ACC : "l"(a), "l"(b), "r"(accumulate))
#define MOBAI_WGMMA_RS(N, TYPE, TEXT, ACC, A0, A1, A2, A3, B, P, T) \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" TEXT "}, {%" #A0 ", %" #A1 ", %" #A2 \
                 ", %" #A3 "}, %" #B ", p, 1, 1, " #T ";\n}" \
                 : ACC : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
/* clang-format on */

/** d (+)= A B, both K-major in shared memory. BF16 0: f16. d has N / 2 values of a lane. */
template <int BF16> __device__ __forceinline__ void wgmma_ss(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
    if constexpr (BF16)
        MOBAI_WGMMA_SS(128, "bf16", MOBAI_ACC64_TEXT, MOBAI_ACC64(d), 64, 65, 66);
    else
        MOBAI_WGMMA_SS(128, "f16", MOBAI_ACC64_TEXT, MOBAI_ACC64(d), 64, 65, 66);
}
template <int BF16> __device__ __forceinline__ void wgmma_ss(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
    if constexpr (BF16)
        MOBAI_WGMMA_SS(64, "bf16", MOBAI_ACC32_TEXT, MOBAI_ACC32(d), 32, 33, 34);
    else
        MOBAI_WGMMA_SS(64, "f16", MOBAI_ACC32_TEXT, MOBAI_ACC32(d), 32, 33, 34);
}

/** d (+)= A B with A in registers and B in shared memory: K-major, or with MN 1 MN-major. */
template <int BF16, int MN>
__device__ __forceinline__ void wgmma_rs(float (&d)[64], const uint32_t *a, uint64_t b, int accumulate) {
    if constexpr (BF16 && MN)
        MOBAI_WGMMA_RS(128, "bf16", MOBAI_ACC64_TEXT, MOBAI_ACC64(d), 64, 65, 66, 67, 68, 69, 1);
    else if constexpr (BF16)
        MOBAI_WGMMA_RS(128, "bf16", MOBAI_ACC64_TEXT, MOBAI_ACC64(d), 64, 65, 66, 67, 68, 69, 0);
    else if constexpr (MN)
        MOBAI_WGMMA_RS(128, "f16", MOBAI_ACC64_TEXT, MOBAI_ACC64(d), 64, 65, 66, 67, 68, 69, 1);
    else
        MOBAI_WGMMA_RS(128, "f16", MOBAI_ACC64_TEXT, MOBAI_ACC64(d), 64, 65, 66, 67, 68, 69, 0);
}
template <int BF16, int MN>
__device__ __forceinline__ void wgmma_rs(float (&d)[32], const uint32_t *a, uint64_t b, int accumulate) {
    if constexpr (BF16 && MN)
        MOBAI_WGMMA_RS(64, "bf16", MOBAI_ACC32_TEXT, MOBAI_ACC32(d), 32, 33, 34, 35, 36, 37, 1);
    else if constexpr (BF16)
        MOBAI_WGMMA_RS(64, "bf16", MOBAI_ACC32_TEXT, MOBAI_ACC32(d), 32, 33, 34, 35, 36, 37, 0);
    else if constexpr (MN)
        MOBAI_WGMMA_RS(64, "f16", MOBAI_ACC32_TEXT, MOBAI_ACC32(d), 32, 33, 34, 35, 36, 37, 1);
    else
        MOBAI_WGMMA_RS(64, "f16", MOBAI_ACC32_TEXT, MOBAI_ACC32(d), 32, 33, 34, 35, 36, 37, 0);
}

#endif
