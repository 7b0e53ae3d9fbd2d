/* SPDX-License-Identifier: Apache-2.0
 *
 * Wide loads for kernels on matrix cores: 16-bit values in vectors of 16 bytes and fragments of fragments.h, from
 * memory and from shared arrays of f32x4. A statement each; `whole`, the same for all lanes, says that what is meant is
 * aligned and all there, else `n` values are (any number, also negative) and the others are zeros.
 */
typedef u32 vector16 __attribute__((ext_vector_type(4), may_alias));
typedef frag frag_anywhere __attribute__((aligned(FRAG_K == 4 ? 8 : 16), may_alias));

#define ALIGNED16(b) (((unsigned long long)(b)&15u) == 0)
#define FIRST_BIT(bits) __builtin_ctz(bits)
/* Element i of a shared array of f32x4 as a vector16. */
#define SHARED16(b, i) (*(vector16 *)&(b)[i])
/* The fragment that begins at 16-bit value `at` of a shared array of f32x4. */
#define FRAG_FROM_SHARED(f, b, at) f = *(const frag_anywhere *)((const unsigned short *)&(b)[0] + (at));
#define FRAG_FROM_MEMORY(f, b, at, whole, n)                                                                           \
    if ((whole) && (n) > 0)                                                                                            \
        f = *(const frag_anywhere *)((b) + (at));                                                                      \
    else {                                                                                                             \
        UNROLL                                                                                                         \
        for (int c_ = 0; c_ < FRAG_K; c_++) {                                                                          \
            f[c_] = 0;                                                                                                 \
            if (c_ < (n)) f[c_] = (b)[(at) + c_];                                                                      \
        }                                                                                                              \
    }
/* Eight values as a vector16. */
#define EIGHT(to, b, at, whole, n)                                                                                     \
    if ((whole) && (n) > 0)                                                                                            \
        to = *(const vector16 *)((b) + (at));                                                                          \
    else {                                                                                                             \
        UNROLL                                                                                                         \
        for (int w_ = 0; w_ < 4; w_++) {                                                                               \
            to[w_] = 0;                                                                                                \
            if (2 * w_ < (n)) to[w_] = (b)[(at) + 2 * w_];                                                             \
            if (2 * w_ + 1 < (n)) to[w_] |= (u32)(b)[(at) + 2 * w_ + 1] << 16;                                         \
        }                                                                                                              \
    }
