/* SPDX-License-Identifier: Apache-2.0
 *
 * Vectors for kernels that are compiled once per instruction tier. CMake compiles each kernel source with
 * MOBAI_TIER = 0 (plain C, any machine), 1 (AVX2, FMA, F16C), 2 (AVX-512 F, BW, VL, DQ) or 3 (with AVX-512 BF16);
 * MOBAI_ISA_FN(name) gives each copy's external functions a suffix. A kernel is written on compiler vector types of
 * MOBAI_VL floats; only what those cannot express is an intrinsic, in this file.
 */
#ifndef MOBAI_SIMD_H
#define MOBAI_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/convert.h"

#ifndef MOBAI_TIER
#define MOBAI_TIER 0
#endif

#if MOBAI_TIER >= 1
#include <immintrin.h>
#endif

#if MOBAI_TIER == 0
#define MOBAI_ISA_FN(name) name##_plain
#define MOBAI_VL 4
#elif MOBAI_TIER == 1
#define MOBAI_ISA_FN(name) name##_avx2
#define MOBAI_VL 8
#elif MOBAI_TIER == 2
#define MOBAI_ISA_FN(name) name##_avx512
#define MOBAI_VL 16
#else
#define MOBAI_ISA_FN(name) name##_avx512bf16
#define MOBAI_VL 16
#endif

#if defined(__clang__)
#define MOBAI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MOBAI_UNROLL _Pragma("GCC unroll 16")
#endif
#define MOBAI_INLINE static inline __attribute__((always_inline, unused))

typedef float mobai_vf __attribute__((vector_size(4 * MOBAI_VL)));
typedef int32_t mobai_vi __attribute__((vector_size(4 * MOBAI_VL)));
typedef uint32_t mobai_vu __attribute__((vector_size(4 * MOBAI_VL)));
typedef uint16_t mobai_vh __attribute__((vector_size(2 * MOBAI_VL)));

MOBAI_INLINE mobai_vf mobai_v_set1(float x) {
#if MOBAI_TIER >= 2
    return (mobai_vf)_mm512_set1_ps(x);
#elif MOBAI_TIER == 1
    return (mobai_vf)_mm256_set1_ps(x);
#else
    return (mobai_vf){x, x, x, x};
#endif
}
/* Addresses are untyped: they need no alignment, and a pair of 16-bit elements moves as one lane. */
MOBAI_INLINE mobai_vf mobai_v_load(const void *p) {
    mobai_vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
MOBAI_INLINE void mobai_v_store(void *p, mobai_vf v) { memcpy(p, &v, sizeof v); }

/** The first n (0..MOBAI_VL) floats at p, the rest zero; reads nothing past them. */
MOBAI_INLINE mobai_vf mobai_v_load_n(const void *p, int64_t n) {
#if MOBAI_TIER >= 2
    return (mobai_vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#else
    float t[MOBAI_VL] = {0};
    for (int i = 0; i < MOBAI_VL; i++)
        if (i < n) memcpy(t + i, (const unsigned char *)p + 4 * i, sizeof(float));
    return mobai_v_load(t);
#endif
}
MOBAI_INLINE void mobai_v_store_n(void *p, mobai_vf v, int64_t n) {
#if MOBAI_TIER >= 2
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#else
    float t[MOBAI_VL];
    mobai_v_store(t, v);
    for (int i = 0; i < MOBAI_VL; i++)
        if (i < n) memcpy((unsigned char *)p + 4 * i, t + i, sizeof(float));
#endif
}

/** mask ? a : b, per lane; a lane of the mask is 0 or -1. */
MOBAI_INLINE mobai_vf mobai_v_select(mobai_vi mask, mobai_vf a, mobai_vf b) {
    return (mobai_vf)((mask & (mobai_vi)a) | (~mask & (mobai_vi)b));
}

/** Larger of each lane; b where either is NaN. */
MOBAI_INLINE mobai_vf mobai_v_max(mobai_vf a, mobai_vf b) {
#if MOBAI_TIER >= 2
    return (mobai_vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif MOBAI_TIER == 1
    return (mobai_vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return mobai_v_select(a > b, a, b);
#endif
}
/** Smaller of each lane; b where either is NaN. */
MOBAI_INLINE mobai_vf mobai_v_min(mobai_vf a, mobai_vf b) {
#if MOBAI_TIER >= 2
    return (mobai_vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif MOBAI_TIER == 1
    return (mobai_vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return mobai_v_select(a < b, a, b);
#endif
}

/** a * b + c, rounded once where the tier has FMA. */
MOBAI_INLINE mobai_vf mobai_v_fma(mobai_vf a, mobai_vf b, mobai_vf c) {
#if MOBAI_TIER >= 2
    return (mobai_vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif MOBAI_TIER == 1
    return (mobai_vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

#if MOBAI_VL == 4
#define MOBAI_ZIP_LOW 0, 4, 1, 5
#define MOBAI_ZIP_HIGH 2, 6, 3, 7
#elif MOBAI_VL == 8
#define MOBAI_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define MOBAI_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define MOBAI_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define MOBAI_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif

/** Transposes the square of MOBAI_VL vectors: log2(MOBAI_VL) perfect shuffles of the rows. */
MOBAI_INLINE void mobai_v_transpose(mobai_vf t[MOBAI_VL]) {
    MOBAI_UNROLL
    for (int stage = 1; stage < MOBAI_VL; stage *= 2) {
        mobai_vf u[MOBAI_VL];
        MOBAI_UNROLL
        for (int i = 0; i < MOBAI_VL / 2; i++) {
            u[2 * i] = __builtin_shufflevector(t[i], t[i + MOBAI_VL / 2], MOBAI_ZIP_LOW);
            u[2 * i + 1] = __builtin_shufflevector(t[i], t[i + MOBAI_VL / 2], MOBAI_ZIP_HIGH);
        }
        MOBAI_UNROLL
        for (int i = 0; i < MOBAI_VL; i++)
            t[i] = u[i];
    }
}

/** Sum and maximum of the lanes, halves first: an order that does not depend on the caller. */
MOBAI_INLINE float mobai_v_sum(mobai_vf v) {
    float t[MOBAI_VL];
    memcpy(t, &v, sizeof t);
    MOBAI_UNROLL
    for (int h = MOBAI_VL / 2; h > 0; h /= 2) {
        MOBAI_UNROLL
        for (int i = 0; i < h; i++)
            t[i] += t[i + h];
    }
    return t[0];
}
MOBAI_INLINE float mobai_v_hmax(mobai_vf v) {
#if MOBAI_TIER >= 2
    return _mm512_reduce_max_ps((__m512)v);
#else
    float t[MOBAI_VL];
    memcpy(t, &v, sizeof t);
    MOBAI_UNROLL
    for (int h = MOBAI_VL / 2; h > 0; h /= 2) {
        MOBAI_UNROLL
        for (int i = 0; i < h; i++)
            t[i] = t[i] > t[i + h] ? t[i] : t[i + h];
    }
    return t[0];
#endif
}

/** 2^x within 1 ulp for x in [-126, 127.5]; 0 below, infinity above, NaN for NaN. */
MOBAI_INLINE mobai_vf mobai_v_exp2(mobai_vf x) {
    const mobai_vf lowest = mobai_v_set1(-126.0f), highest = mobai_v_set1(128.0f);
    const mobai_vf round = mobai_v_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    mobai_vf y = mobai_v_min(highest, mobai_v_max(lowest, x));
    mobai_vf shifted = y + round;
    mobai_vf f = y - (shifted - round); /* in [-0.5, 0.5] */
    /* Minimax for 2^f with p(0) = 1; relative error 2e-9 before rounding. */
    mobai_vf p = mobai_v_set1(1.535336196e-4f);
    p = mobai_v_fma(p, f, mobai_v_set1(1.339887502e-3f));
    p = mobai_v_fma(p, f, mobai_v_set1(9.618436918e-3f));
    p = mobai_v_fma(p, f, mobai_v_set1(5.550332367e-2f));
    p = mobai_v_fma(p, f, mobai_v_set1(2.402264774e-1f));
    p = mobai_v_fma(p, f, mobai_v_set1(6.931471825e-1f));
    p = mobai_v_fma(p, f, mobai_v_set1(1.0f));
    mobai_vi exponent = ((mobai_vi)shifted - (mobai_vi)round + 127) << 23;
    mobai_vf r = p * (mobai_vf)exponent;
#if MOBAI_TIER >= 2
    return (mobai_vf)_mm512_mask_mov_ps((__m512)r, _mm512_cmp_ps_mask((__m512)x, (__m512)lowest, _CMP_LT_OQ),
                                        _mm512_setzero_ps());
#else
    return (mobai_vf)((mobai_vi)r & ~(x < lowest));
#endif
}

/* ---------------------------------------------------------------------------- 16-bit rows to float and back -- */

MOBAI_INLINE mobai_vf mobai_v_widen(mobai_vh h, moba_dtype dtype) {
    if (dtype == MOBA_BF16) return (mobai_vf)(__builtin_convertvector(h, mobai_vu) << 16);
#if MOBAI_TIER >= 2
    return (mobai_vf)_mm512_cvtph_ps((__m256i)h);
#elif MOBAI_TIER == 1
    return (mobai_vf)_mm256_cvtph_ps((__m128i)h);
#else
    mobai_vf v;
    for (int i = 0; i < MOBAI_VL; i++)
        v[i] = mobai_f32_from_f16(h[i]);
    return v;
#endif
}
/** Rounds once, to nearest even. */
MOBAI_INLINE mobai_vh mobai_v_narrow(mobai_vf v, moba_dtype dtype) {
    if (dtype == MOBA_BF16) {
        mobai_vu u = (mobai_vu)v;
        mobai_vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        mobai_vu quiet = (u >> 16) | 0x40u;
        mobai_vu nan = (mobai_vu)(v != v);
        return __builtin_convertvector((nan & quiet) | (~nan & rounded), mobai_vh);
    }
#if MOBAI_TIER >= 2
    return (mobai_vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif MOBAI_TIER == 1
    return (mobai_vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    mobai_vh h;
    for (int i = 0; i < MOBAI_VL; i++)
        h[i] = mobai_f16_from_f32(v[i]);
    return h;
#endif
}

/** MOBAI_VL elements of `dtype` at p as floats, and back. */
MOBAI_INLINE mobai_vf mobai_v_load_as(const void *p, moba_dtype dtype) {
    if (dtype == MOBA_F32) return mobai_v_load(p);
    mobai_vh h;
    memcpy(&h, p, sizeof h);
    return mobai_v_widen(h, dtype);
}
MOBAI_INLINE void mobai_v_store_as(void *p, mobai_vf v, moba_dtype dtype) {
    if (dtype == MOBA_F32) {
        mobai_v_store(p, v);
        return;
    }
    mobai_vh h = mobai_v_narrow(v, dtype);
    memcpy(p, &h, sizeof h);
}

/** The same for the first n (0..MOBAI_VL) elements; the other lanes are zero, their memory is not touched. */
MOBAI_INLINE mobai_vf mobai_v_load_as_n(const void *p, moba_dtype dtype, int64_t n) {
    if (dtype == MOBA_F32) return mobai_v_load_n(p, n);
#if MOBAI_TIER >= 2
    mobai_vh h = (mobai_vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1u), p);
#else
    mobai_vh h = {0};
    const unsigned char *from = (const unsigned char *)p;
    unsigned char *to = (unsigned char *)&h;
    for (int64_t i = 0; i < 2 * n && i < 2 * MOBAI_VL; i++)
        to[i] = from[i];
#endif
    return mobai_v_widen(h, dtype);
}
MOBAI_INLINE void mobai_v_store_as_n(void *p, mobai_vf v, moba_dtype dtype, int64_t n) {
    if (dtype == MOBA_F32) {
        mobai_v_store_n(p, v, n);
        return;
    }
    mobai_vh h = mobai_v_narrow(v, dtype);
    const unsigned char *from = (const unsigned char *)&h;
    unsigned char *to = (unsigned char *)p;
    for (int64_t i = 0; i < 2 * n && i < 2 * MOBAI_VL; i++)
        to[i] = from[i];
}

/** Asks for the cache lines of `bytes` bytes at p; any address will do. */
MOBAI_INLINE void mobai_prefetch(const void *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch((const unsigned char *)p + i);
}

/** dst[0..n) = row of n elements of `dtype`; dst[n..padded) = 0. dst may be any address. */
MOBAI_INLINE void mobai_row_load(float *dst, const void *src, moba_dtype dtype, int64_t n, int64_t padded) {
    const unsigned char *p = (const unsigned char *)src;
    const int64_t bytes = dtype == MOBA_F32 ? 4 : 2;
    int64_t i = 0;
    for (; i + MOBAI_VL <= n; i += MOBAI_VL)
        mobai_v_store(dst + i, mobai_v_load_as(p + i * bytes, dtype));
    if (i < n) mobai_v_store_n(dst + i, mobai_v_load_as_n(p + i * bytes, dtype, n - i), n - i);
    for (i = n; i < padded; i++)
        dst[i] = 0.0f;
}

/** Row of n elements of `dtype` = src[0..n), rounded once. */
MOBAI_INLINE void mobai_row_store(void *dst, const float *src, moba_dtype dtype, int64_t n) {
    unsigned char *p = (unsigned char *)dst;
    const int64_t bytes = dtype == MOBA_F32 ? 4 : 2;
    int64_t i = 0;
    for (; i + MOBAI_VL <= n; i += MOBAI_VL)
        mobai_v_store_as(p + i * bytes, mobai_v_load(src + i), dtype);
    if (i < n) mobai_v_store_as_n(p + i * bytes, mobai_v_load_n(src + i, n - i), dtype, n - i);
}

#endif
