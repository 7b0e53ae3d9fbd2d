/* SPDX-License-Identifier: Apache-2.0 */
#include "core/convert.h"

float mobai_f32_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1fu) return mobai_f32_from_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return mobai_f32_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

uint16_t mobai_f16_from_f32(float f) {
    uint32_t u = mobai_bits_from_f32(f);
    uint32_t sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x3ffu));
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (u < 0x38800000u) {
        /* subnormal: adding 0.5 puts the unit of 2^-24 at the last mantissa bit, where the adder rounds to even */
        float shifted = mobai_f32_from_bits(u) + 0.5f;
        return (uint16_t)(sign | (mobai_bits_from_f32(shifted) - 0x3f000000u));
    }
    uint32_t rounded = u + 0xfffu + ((u >> 13) & 1u);
    return (uint16_t)(sign | ((rounded >> 13) - (112u << 10)));
}
