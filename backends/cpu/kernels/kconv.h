/* SPDX-License-Identifier: Apache-2.0
 *
 * What the key convolution and its backward share: weights in the order that loops want, and the sum before SiLU.
 */
#ifndef MOBAI_CPU_KCONV_H
#define MOBAI_CPU_KCONV_H

#include "backends/cpu/kernels/sequence.h"
#include "backends/cpu/simd.h"

/** weights[l][c] of kv head g in float32. */
static inline void mobai_cpu_kconv_weights(const mobai_stage_args *a, int64_t g,
                                           float weights[][MOBAI_CPU_MAX_HEAD_DIM]) {
    const int64_t row_bytes = a->kconv_width * (a->dtype == MOBA_F32 ? 4 : 2);
    const unsigned char *source =
        (const unsigned char *)mobai_cpu_address(a->kconv_weight) + g * a->head_dim * row_bytes;
    float taps[MOBAI_CPU_MAX_KCONV + MOBAI_VL]; /* a whole vector, so that compilers see the row loads fit */
    for (int32_t c = 0; c < a->head_dim; c++) {
        mobai_row_load(taps, source + c * row_bytes, (moba_dtype)a->dtype, a->kconv_width, a->kconv_width);
        for (int32_t l = 0; l < a->kconv_width; l++)
            weights[l][c] = taps[l];
    }
}

/** z[c] = sum_l weights[l][c] * key[t - l][c]; row t' of the sequence that begins at `first` is keys[t' % 8]. */
static inline void mobai_cpu_kconv_sum(float *z, float keys[][MOBAI_CPU_MAX_HEAD_DIM],
                                       const float weights[][MOBAI_CPU_MAX_HEAD_DIM], int64_t t, int64_t first,
                                       int32_t width, int32_t d) {
    for (int32_t c = 0; c < d; c++)
        z[c] = 0.0f;
    for (int32_t l = 0; l < width && t - l >= first; l++) {
        const float *key = keys[(t - l) % MOBAI_CPU_MAX_KCONV], *w = weights[l];
        for (int32_t c = 0; c < d; c++)
            z[c] += w[c] * key[c];
    }
}

#endif
