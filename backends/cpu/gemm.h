/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrix products of the CPU kernels, in float32: C (m x n) = alpha C + A (m x k) B (k x n).
 *
 * B is packed in panels of MOBAI_GEMM_PANEL columns, each [k][MOBAI_GEMM_PANEL] floats, the last one padded. A is read
 * in place through a row and a k stride, so that one kernel serves S = Q K^T, O = P V, dV = P^T dO, dK = dS^T Q. Rows
 * of C may lie anywhere. The register tile is MOBAI_GEMM_MR rows of one panel. An element of C is the sum over k in
 * ascending order whatever tile it falls in, so results do not depend on how rows and columns are grouped.
 */
#ifndef MOBAI_GEMM_H
#define MOBAI_GEMM_H

#include "backends/cpu/simd.h"

/* 6 x 4 vectors leave 8 of AVX-512's 32 registers for B and a broadcast of A; 6 x 2 leave 4 of 16. */
#define MOBAI_GEMM_MR 6
#if MOBAI_TIER >= 2
#define MOBAI_GEMM_NV 4
#else
#define MOBAI_GEMM_NV 2
#endif
#define MOBAI_GEMM_PANEL (MOBAI_GEMM_NV * MOBAI_VL)

/** Columns rounded up to whole panels: floats per k of a packed B. */
MOBAI_INLINE int64_t mobai_gemm_padded(int64_t n) {
    return (n + MOBAI_GEMM_PANEL - 1) / MOBAI_GEMM_PANEL * MOBAI_GEMM_PANEL;
}

/** As `alpha`: C += A B as one chain of additions that starts from C. A sum over k that is cut into several products
 * then has the same bits wherever it is cut. */
static __attribute__((unused)) const float mobai_gemm_onto[1] = {1.0f};

/* The accumulators are named variables: compilers do not keep an array of 24 vectors in registers. */
#define MOBAI_GEMM_EACH_ROW(do_row) do_row(0) do_row(1) do_row(2) do_row(3) do_row(4) do_row(5)
#define MOBAI_GEMM_CLEAR(i)                                                                                            \
    mobai_vf acc##i##0 = {0}, acc##i##1 = {0}, acc##i##2 = {0}, acc##i##3 = {0};                                       \
    if (mr > i && onto) {                                                                                              \
        acc##i##0 = mobai_v_load(c[i]);                                                                                \
        if (nv > 1) acc##i##1 = mobai_v_load(c[i] + MOBAI_VL);                                                         \
        if (nv > 2) acc##i##2 = mobai_v_load(c[i] + 2 * MOBAI_VL);                                                     \
        if (nv > 3) acc##i##3 = mobai_v_load(c[i] + 3 * MOBAI_VL);                                                     \
    } else if (mr > i) {                                                                                               \
        __builtin_prefetch(c[i], 1);                                                                                   \
        if (nv > 1) __builtin_prefetch(c[i] + MOBAI_VL, 1);                                                            \
        if (nv > 2) __builtin_prefetch(c[i] + 2 * MOBAI_VL, 1);                                                        \
        if (nv > 3) __builtin_prefetch(c[i] + 3 * MOBAI_VL, 1);                                                        \
    }
#define MOBAI_GEMM_STEP(i)                                                                                             \
    if (mr > i) {                                                                                                      \
        mobai_vf av = mobai_v_set1(a[i * a_row]);                                                                      \
        acc##i##0 = mobai_v_fma(av, b0, acc##i##0);                                                                    \
        if (nv > 1) acc##i##1 = mobai_v_fma(av, b1, acc##i##1);                                                        \
        if (nv > 2) acc##i##2 = mobai_v_fma(av, b2, acc##i##2);                                                        \
        if (nv > 3) acc##i##3 = mobai_v_fma(av, b3, acc##i##3);                                                        \
    }
#define MOBAI_GEMM_STORE(i)                                                                                            \
    if (mr > i) {                                                                                                      \
        mobai_v_store(c[i], acc##i##0);                                                                                \
        if (nv > 1) mobai_v_store(c[i] + MOBAI_VL, acc##i##1);                                                         \
        if (nv > 2) mobai_v_store(c[i] + 2 * MOBAI_VL, acc##i##2);                                                     \
        if (nv > 3) mobai_v_store(c[i] + 3 * MOBAI_VL, acc##i##3);                                                     \
    }
#define MOBAI_GEMM_ADD(i)                                                                                              \
    if (mr > i) {                                                                                                      \
        mobai_vf scale = mobai_v_set1(alpha[i]);                                                                       \
        acc##i##0 = mobai_v_fma(mobai_v_load(c[i]), scale, acc##i##0);                                                 \
        if (nv > 1) acc##i##1 = mobai_v_fma(mobai_v_load(c[i] + MOBAI_VL), scale, acc##i##1);                          \
        if (nv > 2) acc##i##2 = mobai_v_fma(mobai_v_load(c[i] + 2 * MOBAI_VL), scale, acc##i##2);                      \
        if (nv > 3) acc##i##3 = mobai_v_fma(mobai_v_load(c[i] + 3 * MOBAI_VL), scale, acc##i##3);                      \
    }

/** One register tile: mr rows of nv vectors, both constants at the call. `alpha` NULL: c is written, not read. C is
 *  touched after the k loop only (but for mobai_gemm_onto), so it is prefetched before. */
MOBAI_INLINE void mobai_gemm_tile(const int mr, const int nv, int64_t k, const float *a, int64_t a_row, int64_t a_k,
                                  const float *b, float *const *c, const float *alpha) {
    const int onto = alpha == mobai_gemm_onto;
    MOBAI_GEMM_EACH_ROW(MOBAI_GEMM_CLEAR)
    mobai_vf b0, b1 = {0}, b2 = {0}, b3 = {0};
    for (int64_t x = 0; x < k; x++) {
        b0 = mobai_v_load(b);
        if (nv > 1) b1 = mobai_v_load(b + MOBAI_VL);
        if (nv > 2) b2 = mobai_v_load(b + 2 * MOBAI_VL);
        if (nv > 3) b3 = mobai_v_load(b + 3 * MOBAI_VL);
        MOBAI_GEMM_EACH_ROW(MOBAI_GEMM_STEP)
        a += a_k;
        b += MOBAI_GEMM_PANEL;
    }
    if (alpha != NULL && !onto) {
        MOBAI_GEMM_EACH_ROW(MOBAI_GEMM_ADD)
    }
    MOBAI_GEMM_EACH_ROW(MOBAI_GEMM_STORE)
}

typedef void (*mobai_gemm_fn)(int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, float *const *c,
                              const float *alpha);

#define MOBAI_GEMM_DEFINE(mr, nv)                                                                                      \
    static __attribute__((noinline, unused)) void mobai_gemm_##mr##x##nv(                                              \
        int64_t k, const float *a, int64_t a_row, int64_t a_k, const float *b, float *const *c, const float *alpha) {  \
        mobai_gemm_tile(mr, nv, k, a, a_row, a_k, b, c, alpha);                                                        \
    }
#define MOBAI_GEMM_DEFINE_ROWS(nv)                                                                                     \
    MOBAI_GEMM_DEFINE(1, nv)                                                                                           \
    MOBAI_GEMM_DEFINE(2, nv)                                                                                           \
    MOBAI_GEMM_DEFINE(3, nv) MOBAI_GEMM_DEFINE(4, nv) MOBAI_GEMM_DEFINE(5, nv) MOBAI_GEMM_DEFINE(6, nv)
#define MOBAI_GEMM_ROWS(nv)                                                                                            \
    { mobai_gemm_1x##nv, mobai_gemm_2x##nv, mobai_gemm_3x##nv, mobai_gemm_4x##nv, mobai_gemm_5x##nv, mobai_gemm_6x##nv }

MOBAI_GEMM_DEFINE_ROWS(1)
MOBAI_GEMM_DEFINE_ROWS(2)
#if MOBAI_GEMM_NV == 4
MOBAI_GEMM_DEFINE_ROWS(3)
MOBAI_GEMM_DEFINE_ROWS(4)
#endif

/** [vectors - 1][rows - 1] */
static __attribute__((unused)) const mobai_gemm_fn mobai_gemm_tiles[MOBAI_GEMM_NV][MOBAI_GEMM_MR] = {
    MOBAI_GEMM_ROWS(1),
    MOBAI_GEMM_ROWS(2),
#if MOBAI_GEMM_NV == 4
    MOBAI_GEMM_ROWS(3),
    MOBAI_GEMM_ROWS(4),
#endif
};

/**
 * C = A B (alpha NULL), or C[i] = alpha[i] C[i] + A B. Writes whole vectors: rows of C must have room for n rounded up
 * to MOBAI_VL, and columns past n get what B's padding gives (zeros of the packers below). Panels of B are `b_panel`
 * floats apart.
 */
static inline __attribute__((unused)) void mobai_gemm_rows(int64_t m, int64_t n, int64_t k, const float *a,
                                                           int64_t a_row, int64_t a_k, const float *b, int64_t b_panel,
                                                           float *const *c, const float *alpha) {
    for (int64_t j = 0; j < n; j += MOBAI_GEMM_PANEL) {
        int64_t width = n - j < MOBAI_GEMM_PANEL ? n - j : MOBAI_GEMM_PANEL;
        const mobai_gemm_fn *tiles = mobai_gemm_tiles[(width + MOBAI_VL - 1) / MOBAI_VL - 1];
        for (int64_t i = 0; i < m; i += MOBAI_GEMM_MR) {
            int64_t rows = m - i < MOBAI_GEMM_MR ? m - i : MOBAI_GEMM_MR;
            float *at[MOBAI_GEMM_MR];
            for (int64_t r = 0; r < rows; r++)
                at[r] = c[i + r] + j;
            tiles[rows - 1](k, a + i * a_row, a_row, a_k, b, at, alpha == NULL ? NULL : alpha + i);
        }
        b += b_panel;
    }
}

/** The same with rows of C `c_row` floats apart; `accumulate`: C += A B as mobai_gemm_onto does, else C = A B. */
static inline __attribute__((unused)) void mobai_gemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t a_row,
                                                      int64_t a_k, const float *b, int64_t b_panel, float *c,
                                                      int64_t c_row, int accumulate) {
    for (int64_t j = 0; j < n; j += MOBAI_GEMM_PANEL) {
        int64_t width = n - j < MOBAI_GEMM_PANEL ? n - j : MOBAI_GEMM_PANEL;
        const mobai_gemm_fn *tiles = mobai_gemm_tiles[(width + MOBAI_VL - 1) / MOBAI_VL - 1];
        for (int64_t i = 0; i < m; i += MOBAI_GEMM_MR) {
            int64_t rows = m - i < MOBAI_GEMM_MR ? m - i : MOBAI_GEMM_MR;
            float *at[MOBAI_GEMM_MR];
            for (int64_t r = 0; r < rows; r++)
                at[r] = c + (i + r) * c_row + j;
            tiles[rows - 1](k, a + i * a_row, a_row, a_k, b, at, accumulate ? mobai_gemm_onto : NULL);
        }
        b += b_panel;
    }
}

/* Rows of a tensor lie a token apart, on pages of their own, where hardware prefetch does not follow. */
#define MOBAI_GEMM_AHEAD 8

/**
 * Packs rows of `width` elements (dtype, `stride_bytes` apart) as B with B[x][j] = row x, element j: k = n_rows,
 * n = width. Panels are n_rows * MOBAI_GEMM_PANEL floats; columns past width are zero.
 */
static inline __attribute__((unused)) void mobai_gemm_pack(float *b, const void *rows, int64_t stride_bytes,
                                                           moba_dtype dtype, int64_t n_rows, int64_t width) {
    const int64_t bytes = dtype == MOBA_F32 ? 4 : 2;
    const unsigned char *p = (const unsigned char *)rows;
    for (int64_t j = 0; j < width; j += MOBAI_GEMM_PANEL) {
        int64_t n = width - j < MOBAI_GEMM_PANEL ? width - j : MOBAI_GEMM_PANEL;
        for (int64_t x = 0; x < n_rows; x++, b += MOBAI_GEMM_PANEL) {
            if (j == 0 && x + MOBAI_GEMM_AHEAD < n_rows)
                mobai_prefetch(p + (x + MOBAI_GEMM_AHEAD) * stride_bytes, width * bytes);
            mobai_row_load(b, p + x * stride_bytes + j * bytes, dtype, n, MOBAI_GEMM_PANEL);
        }
    }
}

/**
 * Packs the same rows transposed: B[x][j] = row j, element x: k = width, n = n_rows. Panels are
 * width * MOBAI_GEMM_PANEL floats; columns past n_rows are zero.
 */
static inline __attribute__((unused)) void mobai_gemm_pack_transposed(float *b, const void *rows, int64_t stride_bytes,
                                                                      moba_dtype dtype, int64_t n_rows, int64_t width) {
    const int64_t bytes = dtype == MOBA_F32 ? 4 : 2;
    const unsigned char *p = (const unsigned char *)rows;
    for (int64_t j = 0; j < n_rows; j += MOBAI_GEMM_PANEL, b += width * MOBAI_GEMM_PANEL) {
        int64_t n = n_rows - j < MOBAI_GEMM_PANEL ? n_rows - j : MOBAI_GEMM_PANEL;
        for (int64_t r = 0; r < n; r++)
            mobai_prefetch(p + (j + r) * stride_bytes, width * bytes);
        for (int64_t x = 0; x < width; x += MOBAI_VL) {
            int64_t w = width - x < MOBAI_VL ? width - x : MOBAI_VL;
            for (int64_t r = 0; r < MOBAI_GEMM_PANEL; r += MOBAI_VL) {
                mobai_vf t[MOBAI_VL];
                for (int64_t i = 0; i < MOBAI_VL; i++) {
                    const unsigned char *src = p + (j + r + i) * stride_bytes + x * bytes;
                    if (r + i >= n)
                        t[i] = (mobai_vf){0};
                    else
                        t[i] = w == MOBAI_VL ? mobai_v_load_as(src, dtype) : mobai_v_load_as_n(src, dtype, w);
                }
                mobai_v_transpose(t);
                for (int64_t i = 0; i < w; i++)
                    mobai_v_store(b + (x + i) * MOBAI_GEMM_PANEL + r, t[i]);
            }
        }
    }
}

#endif
