/* SPDX-License-Identifier: Apache-2.0
 *
 * The products of gemm.h with bfloat16 factors and float32 sums, on AVX-512 BF16 dot products.
 *
 * An instruction adds two neighbours in k at once, so k is counted in pairs: A holds rows of bfloat16 with k
 * contiguous, B panels hold [pair][MOBAI_GEMM_PANEL] of (even k in the low half, odd k in the high half). The order of
 * an element's sum does not depend on its tile. The instruction takes subnormal factors as zero.
 */
#ifndef MOBAI_GEMM_BF16_H
#define MOBAI_GEMM_BF16_H

#include "backends/cpu/gemm.h"

MOBAI_INLINE mobai_vf mobai_v_dot_bf16(mobai_vf sum, uint32_t pair, mobai_vf pairs) {
    return (mobai_vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int32_t)pair), (__m512bh)pairs);
}

#define MOBAI_GEMM_BF16_STEP(i)                                                                                        \
    if (mr > i) {                                                                                                      \
        uint32_t pair;                                                                                                 \
        memcpy(&pair, a + i * a_row, sizeof pair);                                                                     \
        acc##i##0 = mobai_v_dot_bf16(acc##i##0, pair, b0);                                                             \
        if (nv > 1) acc##i##1 = mobai_v_dot_bf16(acc##i##1, pair, b1);                                                 \
        if (nv > 2) acc##i##2 = mobai_v_dot_bf16(acc##i##2, pair, b2);                                                 \
        if (nv > 3) acc##i##3 = mobai_v_dot_bf16(acc##i##3, pair, b3);                                                 \
    }

/** mobai_gemm_tile() over n_pairs of k; rows of A are a_row elements apart. */
MOBAI_INLINE void mobai_gemm_bf16_tile(const int mr, const int nv, int64_t n_pairs, const uint16_t *a, int64_t a_row,
                                       const uint16_t *b, float *const *c, const float *alpha) {
    const int onto = 0;
    MOBAI_GEMM_EACH_ROW(MOBAI_GEMM_CLEAR)
    mobai_vf b0, b1 = {0}, b2 = {0}, b3 = {0};
    for (int64_t x = 0; x < n_pairs; x++) {
        memcpy(&b0, b, sizeof b0);
        if (nv > 1) memcpy(&b1, b + 2 * MOBAI_VL, sizeof b1);
        if (nv > 2) memcpy(&b2, b + 4 * MOBAI_VL, sizeof b2);
        if (nv > 3) memcpy(&b3, b + 6 * MOBAI_VL, sizeof b3);
        MOBAI_GEMM_EACH_ROW(MOBAI_GEMM_BF16_STEP)
        a += 2;
        b += 2 * MOBAI_GEMM_PANEL;
    }
    if (alpha != NULL) {
        MOBAI_GEMM_EACH_ROW(MOBAI_GEMM_ADD)
    }
    MOBAI_GEMM_EACH_ROW(MOBAI_GEMM_STORE)
}

typedef void (*mobai_gemm_bf16_fn)(int64_t n_pairs, const uint16_t *a, int64_t a_row, const uint16_t *b,
                                   float *const *c, const float *alpha);

#define MOBAI_GEMM_BF16_DEFINE(mr, nv)                                                                                 \
    static __attribute__((noinline)) void mobai_gemm_bf16_##mr##x##nv(                                                 \
        int64_t n_pairs, const uint16_t *a, int64_t a_row, const uint16_t *b, float *const *c, const float *alpha) {   \
        mobai_gemm_bf16_tile(mr, nv, n_pairs, a, a_row, b, c, alpha);                                                  \
    }
#define MOBAI_GEMM_BF16_DEFINE_ROWS(nv)                                                                                \
    MOBAI_GEMM_BF16_DEFINE(1, nv)                                                                                      \
    MOBAI_GEMM_BF16_DEFINE(2, nv)                                                                                      \
    MOBAI_GEMM_BF16_DEFINE(3, nv)                                                                                      \
    MOBAI_GEMM_BF16_DEFINE(4, nv)                                                                                      \
    MOBAI_GEMM_BF16_DEFINE(5, nv)                                                                                      \
    MOBAI_GEMM_BF16_DEFINE(6, nv)
#define MOBAI_GEMM_BF16_ROWS(nv)                                                                                       \
    {                                                                                                                  \
        mobai_gemm_bf16_1x##nv, mobai_gemm_bf16_2x##nv, mobai_gemm_bf16_3x##nv, mobai_gemm_bf16_4x##nv,                \
            mobai_gemm_bf16_5x##nv, mobai_gemm_bf16_6x##nv                                                             \
    }
MOBAI_GEMM_BF16_DEFINE_ROWS(1)
MOBAI_GEMM_BF16_DEFINE_ROWS(2)
MOBAI_GEMM_BF16_DEFINE_ROWS(3)
MOBAI_GEMM_BF16_DEFINE_ROWS(4)

/** [vectors - 1][rows - 1] */
static const mobai_gemm_bf16_fn mobai_gemm_bf16_tiles[MOBAI_GEMM_NV][MOBAI_GEMM_MR] = {
    MOBAI_GEMM_BF16_ROWS(1),
    MOBAI_GEMM_BF16_ROWS(2),
    MOBAI_GEMM_BF16_ROWS(3),
    MOBAI_GEMM_BF16_ROWS(4),
};

/** mobai_gemm_pack() with B[x][j] = row x, element j; an odd last row is paired with zeros. */
static inline __attribute__((unused)) void mobai_gemm_bf16_pack(uint16_t *b, const void *rows, int64_t stride_bytes,
                                                                int64_t n_rows, int64_t width) {
    const unsigned char *p = (const unsigned char *)rows;
    for (int64_t j = 0; j < width; j += MOBAI_GEMM_PANEL)
        for (int64_t x = 0; x < n_rows; x += 2) {
            if (j == 0)
                for (int64_t r = x + MOBAI_GEMM_AHEAD; r < n_rows && r < x + MOBAI_GEMM_AHEAD + 2; r++)
                    mobai_prefetch(p + r * stride_bytes, 2 * width);
            for (int64_t c = 0; c < MOBAI_GEMM_PANEL; c += MOBAI_VL, b += 2 * MOBAI_VL) {
                const int64_t n = width - j - c < 0 ? 0 : width - j - c < MOBAI_VL ? width - j - c : MOBAI_VL;
                const unsigned char *even = p + x * stride_bytes + 2 * (j + c);
                mobai_vu pair = (mobai_vu)mobai_v_load_as_n(even, MOBA_BF16, n) >> 16;
                if (x + 1 < n_rows) pair |= (mobai_vu)mobai_v_load_as_n(even + stride_bytes, MOBA_BF16, n);
                memcpy(b, &pair, sizeof pair);
            }
        }
}

/** mobai_gemm_pack_transposed() with B[x][j] = row j, element x, for an even width. */
static inline __attribute__((unused)) void
mobai_gemm_bf16_pack_transposed(uint16_t *b, const void *rows, int64_t stride_bytes, int64_t n_rows, int64_t width) {
    /* A pair of neighbours moves as one 32-bit element, and moving does not look at the value. */
    mobai_gemm_pack_transposed((float *)(void *)b, rows, stride_bytes, MOBA_F32, n_rows, width / 2);
}

#endif
