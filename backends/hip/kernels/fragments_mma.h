/* SPDX-License-Identifier: Apache-2.0
 *
 * fragments.h over mma.sync (compute capability 8.0 and later), for attend_matrix.kern.
 *
 * c[16][16] += a b is made as its transpose by two m16n8k16 products: b's columns are their rows, a's rows their
 * columns. A lane, the t-th of its quad, n = lane / 4, then holds of c the columns n and n + 8 and of each the rows 2
 * t, 2 t + 1, 2 t + 8 and 2 t + 9 (ISA guide of PTX, "Matrix Fragments for mma.m16n8k16"); of a and b it holds rows
 * (columns) n and n + 8, two words of two values each. Which inner index a word stands for is free where a and b agree:
 * queries and keys go by 32 dims, of which a lane has the eight from 8 t on, so that both are read 16 bytes at a time.
 *
 * Keys and values of up to HELD keys stay in shared memory for all row tiles of a list, 16-byte pieces exchanged within
 * a line so that no reader meets another in a bank: keys by the lowest bit of the key, values (read by ldmatrix) by the
 * lowest three.
 */
#define WAVE 32
#define WAVE_LANE (LANE % WAVE)
#define WAVE_ID (LANE / WAVE)
#define FRAG_N (WAVE_LANE / 4)
#define FRAG_ROWS 2
#define FRAGS 2
#define ACC_N 8
#define ACC_ROW(i) ((i) / 4 * 8 + WAVE_LANE % 4 * 2 + (i) % 2)
#define ACC_COLUMN(i) ((i) / 2 % 2)
#define COLUMN_LEADER (WAVE_LANE % 4 == 0)
#define SPAN (DT == 128 ? 32 : 64)
#define HELD 128

typedef u32 frag[4]; /* row n: two words, row n + 8: two words */
typedef float accumulator[ACC_N];

#ifndef MOBA_MMA_EMULATED
typedef uint4 words4;
#define MOBA_INLINE static __device__ __forceinline__
/* 2 HELD lines of DT values: keys, then values. */
extern __shared__ __align__(128) words4 moba_held[];

/* c += a b, 16 x 8 x 16. */
MOBA_INLINE void moba_mma(int is_f16, float &c0, float &c1, float &c2, float &c3, u32 a0, u32 a1, u32 a2, u32 a3,
                          u32 b0, u32 b1) {
    if (is_f16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
            "%2, %3};"
            : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
            "%1, %2, %3};"
            : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/* Four transposed 8 x 8 matrices; lane 8 i + r gives the place of row r of matrix i, in elements of moba_held. */
MOBA_INLINE void moba_load_transposed(frag &f, int at) {
    u32 address = (u32)__cvta_generic_to_shared(moba_held + at);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
                 : "r"(address)
                 : "memory");
}
/* Starts copying 16 bytes to moba_held[to]; zeros where there is nothing to copy. */
MOBA_INLINE void moba_copy16(int to, const unsigned short *from, bool real) {
    u32 address = (u32)__cvta_generic_to_shared(moba_held + to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(real ? 16 : 0)
                 : "memory");
}
#define COPY_COMMIT asm volatile("cp.async.commit_group;" ::: "memory")
#define COPY_WAIT(n) asm volatile("cp.async.wait_group " #n ";" ::: "memory")
#define OTHER_U32(x, bit) __shfl_xor_sync(0xffffffffu, x, bit)
MOBA_INLINE float moba_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* Rounded to nearest even, `low` in the low half. */
MOBA_INLINE u32 moba_pack(int is_f16, float low, float high) {
    u32 two;
    if (is_f16)
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(two) : "f"(high), "f"(low));
    return two;
}
MOBA_INLINE void moba_store4(float *to, float x, float y, float z, float w) {
    __stcs((float4 *)to, make_float4(x, y, z, w));
}
#endif

#define OTHER_F32(x, bit) BITS_F32(OTHER_U32(BITS_U32(x), bit))
#define EXP2_PROB(x) moba_exp2(x)
#define PRODUCT(c, a, b)                                                                                               \
    moba_mma(DTYPE == 1, c[0], c[1], c[2], c[3], b[0], b[2], b[1], b[3], a[0], a[1]);                                  \
    moba_mma(DTYPE == 1, c[4], c[5], c[6], c[7], b[0], b[2], b[1], b[3], a[2], a[3])

/* Over the lanes that hold one column of c. */
MOBA_INLINE float moba_column_max(float x) {
    x = FMAX(x, OTHER_F32(x, 1));
    return FMAX(x, OTHER_F32(x, 2));
}
MOBA_INLINE float moba_column_sum(float x) {
    x += OTHER_F32(x, 1);
    return x + OTHER_F32(x, 2);
}

/* The columns of c, rounded, as columns of b. */
#define NARROW(to, c)                                                                                                  \
    to[0] = moba_pack(DTYPE == 1, c[0], c[1]);                                                                         \
    to[1] = moba_pack(DTYPE == 1, c[4], c[5]);                                                                         \
    to[2] = moba_pack(DTYPE == 1, c[2], c[3]);                                                                         \
    to[3] = moba_pack(DTYPE == 1, c[6], c[7])

/* ------------------------------------------------------------------------------------------------ attend -- */

/* Rows of x that can be moved 16 bytes at a time. */
#define IN_VECTORS(x) (head_dim % 8 == 0 && ((unsigned long long)x & 15) == 0 && (x##_ts | x##_hs | x##_bs) % 8 == 0)
#define ROW_FACTS const bool q_vectors = IN_VECTORS(q), k_vectors = IN_VECTORS(k), v_vectors = IN_VECTORS(v)

/* Eight values from x[at] on, those past `n` as zeros. */
MOBA_INLINE words4 moba_eight(const unsigned short *x, i64 at, int n) {
    u32 w[4];
    UNROLL
    for (int i = 0; i < 4; i++) {
        w[i] = 0;
        if (2 * i < n) w[i] = x[at + 2 * i];
        if (2 * i + 1 < n) w[i] |= (u32)x[at + 2 * i + 1] << 16;
    }
    words4 eight = {w[0], w[1], w[2], w[3]};
    return eight;
}

/* Words of 32 dims of one row or column, in two fragments. */
#define SPREAD(f, d, j, eight)                                                                                         \
    f[d][2 * (j)] = eight.x;                                                                                           \
    f[d][2 * (j) + 1] = eight.y;                                                                                       \
    f[(d) + 1][2 * (j)] = eight.z;                                                                                     \
    f[(d) + 1][2 * (j) + 1] = eight.w
#define LOAD_QUERIES(f, d, j, at)                                                                                      \
    {                                                                                                                  \
        int dim_ = (d)*16 + WAVE_LANE % 4 * 8;                                                                         \
        words4 eight_ = {0, 0, 0, 0};                                                                                  \
        if (q_vectors) {                                                                                               \
            if ((at) >= 0 && dim_ < head_dim) eight_ = *(const words4 *)(q + (at) + dim_);                             \
        } else if ((at) >= 0)                                                                                          \
            eight_ = moba_eight(q, (at) + dim_, head_dim - dim_);                                                      \
        SPREAD(f, d, j, eight_);                                                                                       \
    }

/* Lines of `chunks` vectors, n of them there, up to the next multiple of 64, to moba_held[first]. */
MOBA_INLINE void moba_hold(int chunks, int first, bool keys, const unsigned short *x, i64 at, i64 ts, int n,
                           int head_dim, bool vectors) {
    const int end = (n + 63) / 64 * 64 * chunks;
    ROLLED
    for (int e = LANE; e < end; e += 128) {
        int row = e / chunks, c = e % chunks, there = row < n ? head_dim - c * 8 : 0;
        int to = first + row * chunks + (c ^ (keys ? row % 2 * 4 : row % 8));
        if (vectors)
            moba_copy16(to, there > 0 ? x + at + row * ts + c * 8 : x, there > 0);
        else
            moba_held[to] = moba_eight(x, at + row * ts + c * 8, there);
    }
    COPY_COMMIT;
}

#define MUST_HOLD(k0) ((k0) < held_from || (k0) >= held_to)
/* Both at once: values come while scores are made. */
#define HOLD_KEYS(k0, n)                                                                                               \
    if (fresh) {                                                                                                       \
        int n_ = MIN64(key_end - (k0), HELD);                                                                          \
        held_from = k0;                                                                                                \
        held_to = held_from + n_;                                                                                      \
        BARRIER;                                                                                                       \
        moba_hold(DT / 8, 0, true, k, LIST_K + (k0)*k_ts, k_ts, n_, head_dim, k_vectors);                              \
        moba_hold(DT / 8, HELD * DT / 8, false, v, LIST_V + (k0)*v_ts, v_ts, n_, head_dim, v_vectors);                 \
        COPY_WAIT(1);                                                                                                  \
        BARRIER;                                                                                                       \
    }
#define HOLD_VALUES(k0, n)
#define VALUES_ARE_HELD                                                                                                \
    if (fresh) {                                                                                                       \
        COPY_WAIT(0);                                                                                                  \
        BARRIER;                                                                                                       \
    }
#define VALUES_ARE_READ

/* Keys 16 part .. of the span from k0 on, dims 16 d .. 16 d + 31. */
#define LOAD_KEYS(f, part, d)                                                                                          \
    UNROLL                                                                                                             \
    for (int j_ = 0; j_ < 2; j_++) {                                                                                   \
        int line_ =                                                                                                    \
            (k0 - held_from + FRAG_N) * (DT / 8) + ((WAVE_LANE % 4 + WAVE_LANE / 4 % 2 * 4) ^ ((d) / 2 % 2 * 4));      \
        words4 eight_ = moba_held[line_ + ((part)*16 + j_ * 8) * (DT / 8) + (d) / 4 * 8];                              \
        SPREAD(f, 0, j_, eight_);                                                                                      \
    }
#define LOAD_VALUES(f, part, d)                                                                                        \
    moba_load_transposed(f, HELD *DT / 8 + (k0 - held_from + WAVE_LANE % 16) * (DT / 8) +                              \
                                ((WAVE_LANE / 16 ^ WAVE_LANE % 8) ^ ((d) % 4 * 2)) + (part)*16 * (DT / 8) +            \
                                (d) / 4 * 8);

/* Dims 16 d .. of the lane's columns, each times its factor, to the partials of picks: pairs of lanes exchange halves,
 * so that each writes four values at once. */
#define STORE_COLUMNS(c, d, picks, factors)                                                                            \
    UNROLL                                                                                                             \
    for (int j_ = 0; j_ < 2; j_++) {                                                                                   \
        float w_ = c[2 * j_] * factors[j_], x_ = c[2 * j_ + 1] * factors[j_];                                          \
        float y_ = c[2 * j_ + 4] * factors[j_], z_ = c[2 * j_ + 5] * factors[j_];                                      \
        bool odd_ = WAVE_LANE % 2 != 0;                                                                                \
        float other0_ = OTHER_F32(odd_ ? w_ : y_, 1), other1_ = OTHER_F32(odd_ ? x_ : z_, 1);                          \
        int dim_ = (d)*16 + (odd_ ? 8 : 0) + WAVE_LANE % 4 / 2 * 4;                                                    \
        float four_[4] = {odd_ ? other0_ : w_, odd_ ? other1_ : x_, odd_ ? y_ : other0_, odd_ ? z_ : other1_};         \
        if (picks[j_] >= 0) {                                                                                          \
            i64 to_ = picks[j_] * head_dim + dim_;                                                                     \
            if (head_dim % 4 == 0) {                                                                                   \
                if (dim_ < head_dim) moba_store4(partials + to_, four_[0], four_[1], four_[2], four_[3]);              \
            } else {                                                                                                   \
                UNROLL                                                                                                 \
                for (int e_ = 0; e_ < 4; e_++)                                                                         \
                    if (dim_ + e_ < head_dim) STF(partials, to_ + e_, four_[e_]);                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
