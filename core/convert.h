/* SPDX-License-Identifier: Apache-2.0
 *
 * float16 and bfloat16 on the host, round to nearest even. NaN stays NaN, overflow gives infinity.
 */
#ifndef MOBAI_CONVERT_H
#define MOBAI_CONVERT_H

#include <stdint.h>
#include <string.h>

#include "moba/moba.h"

static inline float mobai_f32_from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline uint32_t mobai_bits_from_f32(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float mobai_f32_from_bf16(uint16_t h) { return mobai_f32_from_bits((uint32_t)h << 16); }
static inline uint16_t mobai_bf16_from_f32(float f) {
    uint32_t u = mobai_bits_from_f32(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float mobai_f32_from_f16(uint16_t h);
uint16_t mobai_f16_from_f32(float f);

/** Bytes of one element of `dtype`. */
static inline size_t mobai_dtype_bytes(moba_dtype dtype) { return dtype == MOBA_F32 ? 4 : 2; }

#endif
