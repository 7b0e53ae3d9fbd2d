/* SPDX-License-Identifier: Apache-2.0
 *
 * Matrix cores for kernels of the dialect: products c[16][16] += a[16][16] b[16][16] of a wave, a and b of f16 or bf16,
 * c of float. A lane holds FRAG_K consecutive values along the inner dimension, from FRAG_FROM on, of row n of a and of
 * column n of b, n = WAVE_LANE % 16; of column n of c it holds the rows ACC_ROW(0) .. ACC_ROW(ACC_N - 1).
 *
 * Layouts: AMD's instruction set guides, "Matrix fused-multiply-add" of CDNA 2 and CDNA 3 (v_mfma_f32_16x16x16_f16, 64
 * lanes) and "WMMA" of RDNA 3 and RDNA 4 (v_wmma_f32_16x16x16_f16, 32 lanes; RDNA 3 wants both halves of the wave to
 * hold all of a and b). The same mappings stand in llama.cpp's ggml-cuda/mma.cuh (MFMA, RDNA 4) and in Modular's
 * get_rdna_fragment_layout (RDNA 3).
 */
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
