/* SPDX-License-Identifier: Apache-2.0
 *
 * The logistic function in float32, written so that compilers vectorise loops over it. Error about 2 ulp.
 */
#ifndef MOBAI_CPU_SILU_H
#define MOBAI_CPU_SILU_H

#include "core/convert.h"

/** e^x for x in [-87, 87], clamped beyond; NaN stays NaN. Reduction and polynomial after Cephes expf. */
static inline float mobai_cpu_exp(float x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    x = x < -87.0f ? -87.0f : x;
    x = x > 87.0f ? 87.0f : x;
    const float shifted = x * 1.44269504f + shift;
    const float n = shifted - shift;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float power = mobai_f32_from_bits((mobai_bits_from_f32(shifted) - 0x4b400000u + 127u) << 23);
    return (p * r * r + r + 1.0f) * power;
}

/** 1 / (1 + e^-z). */
static inline float mobai_cpu_sigmoid(float z) { return 1.0f / (1.0f + mobai_cpu_exp(-z)); }

#endif
