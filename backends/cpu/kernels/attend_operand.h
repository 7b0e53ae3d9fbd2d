/* SPDX-License-Identifier: Apache-2.0
 *
 * The factors of attend's two products: float32, or bfloat16 where the tier has dot products of it. Sums are float32.
 */
#ifndef MOBAI_CPU_ATTEND_OPERAND_H
#define MOBAI_CPU_ATTEND_OPERAND_H

#include "backends/cpu/gemm.h"

#if MOBAI_TIER < 3

typedef float operand;

/** Row of d elements of `dtype`, its sign turned when `flip`. */
static inline void operand_gather(operand *to, const void *row, moba_dtype dtype, int64_t d, bool flip) {
    mobai_row_load(to, row, dtype, d, d);
    if (flip)
        for (int64_t c = 0; c < d; c++)
            to[c] = -to[c];
}

/** K^T and V of n keys whose rows are stride_bytes apart, as B of the two products. */
static inline void operand_pack_keys(operand *b, const void *rows, int64_t stride_bytes, moba_dtype dtype, int64_t n,
                                     int64_t d) {
    mobai_gemm_pack_transposed(b, rows, stride_bytes, dtype, n, d);
}
static inline void operand_pack_values(operand *b, const void *rows, int64_t stride_bytes, moba_dtype dtype, int64_t n,
                                       int64_t d) {
    mobai_gemm_pack(b, rows, stride_bytes, dtype, n, d);
}

/** Keys that n packed ones count for. */
static inline int64_t operand_packed_keys(int64_t n) { return n; }

/** True when no packed value is an infinity or NaN. */
static inline bool operand_all_finite(const operand *b, int64_t n) {
    mobai_vf sum = {0};
    for (int64_t i = 0; i < n; i += MOBAI_VL)
        sum += mobai_v_load(b + i) * 0.0f;
    return mobai_v_sum(sum) == 0.0f;
}

MOBAI_INLINE void operand_store(operand *p, mobai_vf v) { mobai_v_store(p, v); }

/** One register tile of C = A B or alpha C + A B over k; see mobai_gemm_tiles. `width` is in columns, 1 to a panel. */
MOBAI_INLINE void operand_tile(int64_t rows, int64_t width, int64_t k, const operand *a, int64_t a_row,
                               const operand *b, float *const *c, const float *alpha) {
    mobai_gemm_tiles[(width + MOBAI_VL - 1) / MOBAI_VL - 1][rows - 1](k, a, a_row, 1, b, c, alpha);
}

/** The same for one row when entries of B past k may be infinite or NaN. */
static inline void operand_tile_exact(int64_t width, int64_t k, const operand *a, operand *b, float *const *c,
                                      const float *alpha) {
    operand_tile(1, width, k, a, 0, b, c, alpha);
}

#else

#include "backends/cpu/gemm_bf16.h"

typedef uint16_t operand;

static inline void operand_gather(operand *to, const void *row, moba_dtype dtype, int64_t d, bool flip) {
    (void)dtype;
    memcpy(to, row, (size_t)d * sizeof *to);
    if (flip)
        for (int64_t c = 0; c < d; c++)
            to[c] ^= 0x8000u;
}

static inline void operand_pack_keys(operand *b, const void *rows, int64_t stride_bytes, moba_dtype dtype, int64_t n,
                                     int64_t d) {
    (void)dtype;
    mobai_gemm_bf16_pack_transposed(b, rows, stride_bytes, n, d);
}
static inline void operand_pack_values(operand *b, const void *rows, int64_t stride_bytes, moba_dtype dtype, int64_t n,
                                       int64_t d) {
    (void)dtype;
    mobai_gemm_bf16_pack(b, rows, stride_bytes, n, d);
}

static inline int64_t operand_packed_keys(int64_t n) { return (n + 1) / 2 * 2; }

static inline bool operand_all_finite(const operand *b, int64_t n) {
    uint16_t special = 0;
    for (int64_t i = 0; i < n; i++)
        special |= (uint16_t)((b[i] & 0x7f80u) == 0x7f80u);
    return special == 0;
}

MOBAI_INLINE void operand_store(operand *p, mobai_vf v) {
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &h, sizeof h);
}

MOBAI_INLINE void operand_tile(int64_t rows, int64_t width, int64_t k, const operand *a, int64_t a_row,
                               const operand *b, float *const *c, const float *alpha) {
    mobai_gemm_bf16_tiles[(width + MOBAI_VL - 1) / MOBAI_VL - 1][rows - 1]((k + 1) / 2, a, a_row, b, c, alpha);
}

/** With an odd k the last pair's other half is taken out of B for the while. */
static inline void operand_tile_exact(int64_t width, int64_t k, const operand *a, operand *b, float *const *c,
                                      const float *alpha) {
    operand kept[2 * MOBAI_GEMM_PANEL], *last = b + (k / 2) * 2 * MOBAI_GEMM_PANEL;
    if (k % 2 == 1) {
        memcpy(kept, last, sizeof kept);
        for (int i = 1; i < 2 * MOBAI_GEMM_PANEL; i += 2)
            last[i] = 0;
    }
    operand_tile(1, width, k, a, 0, b, c, alpha);
    if (k % 2 == 1) memcpy(last, kept, sizeof kept);
}

#endif
#endif
