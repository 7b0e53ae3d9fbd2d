/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrix cores for kernels of the dialect: products c[16][16] += a[16][16] b[16][16] of a wave, a and b of f16 or bf16,
 * c of float. A lane holds FRAG_K consecutive values along the inner dimension, from FRAG_FROM on, of row n of a and of
 * column n of b, n = WAVE_LANE % 16; of column n of c it holds the rows ACC_ROW(0) .. ACC_ROW(ACC_N - 1).
 *
 * On NVIDIA a lane holds FRAG_ROWS rows of a, columns of b and of c: FRAG_N + 8 j, and of c the value i is of column
 * ACC_COLUMN(i) of them (fragments_mma.h).
 *
 * Layouts: AMD's instruction set guides, "Matrix fused-multiply-add" of CDNA 2 and CDNA 3 (v_mfma_f32_16x16x16_f16, 64
 * lanes) and "WMMA" of RDNA 3 and RDNA 4 (v_wmma_f32_16x16x16_f16, 32 lanes; RDNA 3 wants both halves of the wave to
 * hold all of a and b). The same mappings stand in llama.cpp's ggml-cuda/mma.cuh (MFMA, RDNA 4) and in Modular's
 * get_rdna_fragment_layout (RDNA 3).
 */
#if defined(__CUDACC__) || defined(MOBA_MMA_EMULATED)
#include "fragments_mma.h"
#else
#if defined(__gfx90a__) || defined(__gfx942__) || defined(__gfx950__)
#define WAVE 64
#define FRAG_K 4
#define FRAG_FROM (WAVE_LANE / 16 * 4)
#define ACC_N 4
#define ACC_ROW(i) (WAVE_LANE / 16 * 4 + (i))
#elif defined(__gfx1100__) || defined(__gfx1101__) || defined(__gfx1151__)
#define WAVE 32
#define FRAG_K 16
#define FRAG_FROM 0
#define ACC_N 8
#define ACC_ROW(i) (2 * (i) + WAVE_LANE / 16)
#elif defined(__gfx1200__) || defined(__gfx1201__)
#define WAVE 32
#define FRAG_K 8
#define FRAG_FROM (WAVE_LANE / 16 * 8)
#define ACC_N 8
#define ACC_ROW(i) (WAVE_LANE / 16 * 8 + (i))
#else
#error "this architecture has no matrix cores"
#endif
#define WAVE_LANE (LANE % WAVE)
#define WAVE_ID (LANE / WAVE)

typedef unsigned short frag __attribute__((ext_vector_type(FRAG_K)));
typedef float accumulator __attribute__((ext_vector_type(ACC_N)));
typedef _Float16 frag_f16 __attribute__((ext_vector_type(FRAG_K)));
typedef short frag_bf16 __attribute__((ext_vector_type(FRAG_K)));

static __device__ inline accumulator moba_product(int is_f16, frag a, frag b, accumulator c) {
    frag_f16 af = __builtin_bit_cast(frag_f16, a), bf = __builtin_bit_cast(frag_f16, b);
    frag_bf16 ab = __builtin_bit_cast(frag_bf16, a), bb = __builtin_bit_cast(frag_bf16, b);
#if WAVE == 64
    if (is_f16) return __builtin_amdgcn_mfma_f32_16x16x16f16(af, bf, c, 0, 0, 0);
    return __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(ab, bb, c, 0, 0, 0);
#elif FRAG_K == 16
    if (is_f16) return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(af, bf, c);
    return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(ab, bb, c);
#else
    if (is_f16) return __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(af, bf, c);
    return __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(ab, bb, c);
#endif
}
#define PRODUCT(c, a, b) c = moba_product(DTYPE == 1, a, b, c)

/* Of the lane whose number in the wave differs in bit `bit`. */
static __device__ inline u32 moba_other(u32 x, int bit) {
    return (u32)__builtin_amdgcn_ds_bpermute((WAVE_LANE ^ bit) * 4, (int)x);
}
#define OTHER_F32(x, bit) BITS_F32(moba_other(BITS_U32(x), bit))

/* Over the lanes that hold one column of c. */
static __device__ inline float moba_column_max(float x) {
    x = FMAX(x, OTHER_F32(x, 16));
    if (WAVE == 64) x = FMAX(x, OTHER_F32(x, 32));
    return x;
}
static __device__ inline float moba_column_sum(float x) {
    x += OTHER_F32(x, 16);
    if (WAVE == 64) x += OTHER_F32(x, 32);
    return x;
}

/* Column n of c, rounded, as column n of a b. Where a lane holds other rows of c than it must hold of b, half of them
 * are those of the lane 16 further. */
static __device__ inline frag moba_narrow(int is_f16, accumulator c) {
    frag out;
    unsigned short own[ACC_N];
    UNROLL
    for (int i = 0; i < ACC_N; i++)
        own[i] = is_f16 ? moba_f16(c[i]) : moba_bf16(c[i]);
#if FRAG_K == ACC_N
    UNROLL
    for (int i = 0; i < ACC_N; i++)
        out[i] = own[i];
#else
    bool odd = WAVE_LANE >= 16;
    UNROLL
    for (int i = 0; i < ACC_N; i += 2) {
        u32 other = moba_other(own[i] | (u32)own[i + 1] << 16, 16);
        unsigned short low = (unsigned short)other, high = (unsigned short)(other >> 16);
        out[2 * i] = odd ? low : own[i];
        out[2 * i + 1] = odd ? own[i] : low;
        out[2 * i + 2] = odd ? high : own[i + 1];
        out[2 * i + 3] = odd ? own[i + 1] : high;
    }
#endif
    return out;
}
#define NARROW_COLUMN(c) moba_narrow(DTYPE == 1, c)
#define NARROW(to, c) to = NARROW_COLUMN(c)
#define FRAG_N (WAVE_LANE % 16)
#define FRAG_ROWS 1
#define ACC_COLUMN(i) 0
#define COLUMN_LEADER (WAVE_LANE < 16)
#define FRAGS 1 /* fragments that gate loads at once */
#define EXP2_PROB(x) EXP2(x)

/* ------------------------------------------------------------------------------------------------ attend --
 * SPAN keys at a time lie in shared memory, then their values, transposed, in the same place. Two 16-bit values a word.
 * Keys: 32 rows of DT, LDK words apart. Values: DT rows of 32, LDV words apart. */
#define SPAN 32
#define ROW_FACTS
/* The wave's rows of this tile; there is nothing to do ahead. */
#define LOAD_QUERIES(f)                                                                                                \
    UNROLL                                                                                                             \
    for (int s_ = 0; s_ < STRIPS; s_++) {                                                                              \
        i64 at_ = row_q[ROW(tile, s_, 0)];                                                                             \
        UNROLL                                                                                                         \
        for (int d_ = 0; d_ < DT / 16; d_++)                                                                           \
            UNROLL                                                                                                     \
        for (int c_ = 0; c_ < FRAG_K; c_++) {                                                                          \
            int dim_ = d_ * 16 + FRAG_FROM + c_;                                                                       \
            f[s_][d_][c_] = 0;                                                                                         \
            if (at_ >= 0 && dim_ < head_dim) f[s_][d_][c_] = q[at_ + dim_];                                            \
        }                                                                                                              \
    }
#define FETCH_QUERIES(row_tile)                                                                                        \
    {}
#define WORD(b, at, seen_low, next, seen_high)                                                                         \
    ((seen_low ? (u32)(b)[at] : 0u) | (seen_high ? (u32)(b)[(at) + (next)] << 16 : 0u))
#define STEP 32
#define HOLD_LIST
#define LIST_IS_HELD
#define ROWS_ARE_FOUND BARRIER;
/* The last that a row of the tile sees, so that all waves come to the same barriers. */
#define LAST_KEY(last)                                                                                                 \
    {                                                                                                                  \
        int rows_ = MIN64(LIST_END - LIST_AT - tile * TO_I64(64), TO_I64(64));                                         \
        last = MIN64(row_sees[tile % 4 * 64 + rows_ - 1], TO_I32(LIST_KEY_END));                                       \
    }
#define HOLD_KEYS(k0, n)                                                                                               \
    for (int e_ = LANE; e_ < 32 * DT / 2; e_ += LANES) {                                                               \
        int key_ = e_ / (DT / 2), d_ = e_ % (DT / 2) * 2;                                                              \
        words[key_ * LDK + e_ % (DT / 2)] = WORD(k, LIST_K + ((k0) + key_) * k_ts + d_, key_ < (n) && d_ < head_dim,   \
                                                 1, key_ < (n) && d_ + 1 < head_dim);                                  \
    }                                                                                                                  \
    BARRIER;
/* The scores are made: values may take the keys' place. */
#define HOLD_VALUES(k0, n)                                                                                             \
    BARRIER;                                                                                                           \
    for (int e_ = LANE; e_ < DT * 16; e_ += LANES) {                                                                   \
        int d_ = e_ % DT, key_ = e_ / DT * 2;                                                                          \
        words[d_ * LDV + key_ / 2] = WORD(v, LIST_V + ((k0) + key_) * v_ts + d_, key_ < (n) && d_ < head_dim, v_ts,    \
                                          key_ + 1 < (n) && d_ < head_dim);                                            \
    }
#define VALUES_ARE_HELD BARRIER;
#define VALUES_ARE_READ BARRIER;
#define LOAD_FRAG(f, at)                                                                                               \
    UNROLL                                                                                                             \
    for (int w_ = 0; w_ < FRAG_K / 2; w_++) {                                                                          \
        u32 two_ = words[(at) + w_];                                                                                   \
        f[2 * w_] = (unsigned short)two_;                                                                              \
        f[2 * w_ + 1] = (unsigned short)(two_ >> 16);                                                                  \
    }
#define LOAD_KEYS(f, part, d) LOAD_FRAG(f, ((part)*16 + FRAG_N) * LDK + ((d)*16 + FRAG_FROM) / 2)
#define LOAD_VALUES(f, part, d) LOAD_FRAG(f, ((d)*16 + FRAG_N) * LDV + ((part)*16 + FRAG_FROM) / 2)
#define STORE_COLUMNS(c, d, picks, factors)                                                                            \
    UNROLL                                                                                                             \
    for (int i_ = 0; i_ < ACC_N; i_++) {                                                                               \
        int dim_ = (d)*16 + ACC_ROW(i_);                                                                               \
        if (picks[0] >= 0 && dim_ < head_dim) STF(partials, picks[0] * head_dim + dim_, c[i_] * factors[0]);           \
    }
#endif
