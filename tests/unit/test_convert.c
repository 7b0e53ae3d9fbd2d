/* SPDX-License-Identifier: Apache-2.0
 *
 * f16 and bf16 conversion, every bit pattern one way and every rounding boundary the other.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "core/convert.h"

static double exact_f16(uint16_t h) {
    double sign = h & 0x8000 ? -1 : 1;
    int exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25));
}

static double exact_bf16(uint16_t h) {
    double sign = h & 0x8000 ? -1 : 1;
    int exponent = h >> 7 & 255, fraction = h & 127;
    if (exponent == 255) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent == 0 ? ldexp(fraction, -133) : ldexp(128 + fraction, exponent - 134));
}

Test(convert, every_f16_widens_exactly_and_comes_back) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        double expected = exact_f16((uint16_t)h);
        float f = mobai_f32_from_f16((uint16_t)h);
        if (isnan(expected)) {
            cr_assert(isnan(f) && isnan(mobai_f32_from_f16(mobai_f16_from_f32(f))), "%04x", h);
            continue;
        }
        cr_assert((double)f == expected && !signbit(f) == !signbit(expected), "%04x", h);
        cr_assert_eq(mobai_f16_from_f32(f), h, "%04x", h);
    }
}

Test(convert, every_bf16_widens_exactly_and_comes_back) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        double expected = exact_bf16((uint16_t)h);
        float f = mobai_f32_from_bf16((uint16_t)h);
        if (isnan(expected)) {
            cr_assert(isnan(f) && isnan(mobai_f32_from_bf16(mobai_bf16_from_f32(f))), "%04x", h);
            continue;
        }
        cr_assert((double)f == expected && !signbit(f) == !signbit(expected), "%04x", h);
        cr_assert_eq(mobai_bf16_from_f32(f), h, "%04x", h);
    }
}

/* Between each pair of neighbours: the midpoint goes to the even one, a hair off it to the nearer one. */
static void check_boundaries(uint32_t first, uint32_t last, float (*widen)(uint16_t), uint16_t (*narrow)(float)) {
    for (uint32_t h = first; h < last; h++) {
        double low = (double)widen((uint16_t)h), high = (double)widen((uint16_t)(h + 1));
        float middle = (float)((low + high) / 2);
        cr_assert((double)middle == (low + high) / 2);
        for (int sign = 0; sign < 2; sign++) {
            uint32_t bit = sign ? 0x8000u : 0;
            float factor = sign ? -1.0f : 1.0f;
            cr_assert_eq(narrow(factor * middle), bit | (h % 2 == 0 ? h : h + 1), "midpoint above %04x", h);
            cr_assert_eq(narrow(factor * nextafterf(middle, 0)), bit | h, "below the midpoint above %04x", h);
            cr_assert_eq(narrow(factor * nextafterf(middle, INFINITY)), bit | (h + 1), "above the midpoint above %04x",
                         h);
        }
    }
}

Test(convert, f16_rounds_to_nearest_even) { check_boundaries(0, 0x7bff, mobai_f32_from_f16, mobai_f16_from_f32); }
Test(convert, bf16_rounds_to_nearest_even) { check_boundaries(0, 0x7f7f, mobai_f32_from_bf16, mobai_bf16_from_f32); }

Test(convert, overflow_gives_infinity) {
    cr_assert_eq(mobai_f16_from_f32(65519.0f), 0x7bff);
    cr_assert_eq(mobai_f16_from_f32(65520.0f), 0x7c00);
    cr_assert_eq(mobai_f16_from_f32(-1e30f), 0xfc00);
    cr_assert_eq(mobai_f16_from_f32(1e-30f), 0);
    cr_assert_eq(mobai_bf16_from_f32(0x1.fep127f), 0x7f7f);
    cr_assert_eq(mobai_bf16_from_f32(0x1.ffp127f), 0x7f80);
    cr_assert_eq(mobai_bf16_from_f32(-0x1.fffffep127f), 0xff80);
}

/* A NaN whose payload lies in the bits that are cut must not become an infinity. */
Test(convert, nan_stays_nan) {
    static const uint32_t patterns[] = {0x7f800001, 0x7fbfffff, 0x7fc00000, 0xff800001, 0xffffffff, 0x7f801000};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        float f = mobai_f32_from_bits(patterns[i]);
        cr_assert(isnan(mobai_f32_from_f16(mobai_f16_from_f32(f))), "%08x", patterns[i]);
        cr_assert(isnan(mobai_f32_from_bf16(mobai_bf16_from_f32(f))), "%08x", patterns[i]);
    }
}

Test(convert, element_sizes) {
    cr_assert_eq(mobai_dtype_bytes(MOBA_F32), 4);
    cr_assert_eq(mobai_dtype_bytes(MOBA_F16), 2);
    cr_assert_eq(mobai_dtype_bytes(MOBA_BF16), 2);
}
