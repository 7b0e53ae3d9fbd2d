/* SPDX-License-Identifier: Apache-2.0
 *
 * Wide loads for gate_matrix.kern: 16-bit values in vectors of 16 bytes, and fragments of fragments.h, from memory and
 * from shared arrays of f32x4. Statements; `whole`, the same for all lanes, says that rows have DT values and are
 * aligned, else the values from number n of a row on (n may be below 0) are zeros and single ones are read.
 */
#define ALIGNED16(b) (((unsigned long long)(b)&15u) == 0)

#if defined(__CUDACC__) || defined(MOBA_MMA_EMULATED)
typedef words4 vector16;
#ifdef MOBA_MMA_EMULATED
#define FIRST_BIT(bits) __builtin_ctz(bits)
#else
#define FIRST_BIT(bits) (__ffs((int)(bits)) - 1)
#endif
/* Between rows of vectors in shared memory, so that readers meet in no bank. */
#define PAD_VECTORS 4
/* Lanes that hold a column of c, and which of them this one is. */
#define HOLDERS 4
#define HOLDER (WAVE_LANE % 4)
#define LOAD_EIGHT(to, b, at, whole, n)                                                                                \
    {                                                                                                                  \
        int n_ = (n);                                                                                                  \
        if ((whole) && n_ > 0)                                                                                         \
            to = *(const words4 *)((b) + (at));                                                                        \
        else                                                                                                           \
            to = moba_eight(b, at, n_);                                                                                \
    }
#define FRAGS_OF_ROW(f, d, j, b, at, whole, n)                                                                         \
    {                                                                                                                  \
        int dim_ = (d)*16 + WAVE_LANE % 4 * 8;                                                                         \
        words4 eight_;                                                                                                 \
        LOAD_EIGHT(eight_, b, (at) + dim_, whole, (n)-dim_)                                                            \
        SPREAD(f, d, j, eight_);                                                                                       \
    }
#define FRAGS_OF_SHARED(f, d, j, b, row)                                                                               \
    {                                                                                                                  \
        words4 eight_ = SHARED16(b, (row) + (d)*2 + WAVE_LANE % 4);                                                    \
        SPREAD(f, 0, j, eight_);                                                                                       \
    }
#define SHARED16(b, i) (*(words4 *)&(b)[i])

#else
typedef u32 vector16 __attribute__((ext_vector_type(4), may_alias));
typedef frag frag_anywhere __attribute__((aligned(FRAG_K == 4 ? 8 : 16), may_alias));
#define FIRST_BIT(bits) __builtin_ctz(bits)
#define PAD_VECTORS 1
#define HOLDERS (WAVE / 16)
#define HOLDER (WAVE_LANE / 16)
#define LOAD_EIGHT(to, b, at, whole, n)                                                                                \
    {                                                                                                                  \
        int n_ = (n);                                                                                                  \
        if ((whole) && n_ > 0)                                                                                         \
            to = *(const vector16 *)((b) + (at));                                                                      \
        else {                                                                                                         \
            UNROLL                                                                                                     \
            for (int w_ = 0; w_ < 4; w_++) {                                                                           \
                to[w_] = 0;                                                                                            \
                if (2 * w_ < n_) to[w_] = (b)[(at) + 2 * w_];                                                          \
                if (2 * w_ + 1 < n_) to[w_] |= (u32)(b)[(at) + 2 * w_ + 1] << 16;                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
#define FRAGS_OF_ROW(f, d, j, b, at, whole, n)                                                                         \
    {                                                                                                                  \
        int dim_ = (d)*16 + FRAG_FROM;                                                                                 \
        if ((whole) && (n) > 0)                                                                                        \
            f[d] = *(const frag_anywhere *)((b) + (at) + dim_);                                                        \
        else {                                                                                                         \
            UNROLL                                                                                                     \
            for (int c_ = 0; c_ < FRAG_K; c_++) {                                                                      \
                f[d][c_] = 0;                                                                                          \
                if (dim_ + c_ < (n)) f[d][c_] = (b)[(at) + dim_ + c_];                                                 \
            }                                                                                                          \
        }                                                                                                              \
    }
#define FRAGS_OF_SHARED(f, d, j, b, row)                                                                               \
    f[0] = *(const frag_anywhere *)((const unsigned short *)&(b)[row] + (d)*16 + FRAG_FROM);
#define SHARED16(b, i) (*(vector16 *)&(b)[i])
#endif
