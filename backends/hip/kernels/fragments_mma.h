/* SPDX-License-Identifier: Apache-2.0
 *
 * fragments.h over mma.sync (compute capability 8.0 and later), for attend_matrix.kern and gate_matrix.kern.
 *
 * c[16][16] += a b is made as its transpose by two m16n8k16 products: b's columns are their rows, a's rows their
 * columns. A lane, the t-th of its quad, n = lane / 4, then holds of c the columns n and n + 8 and of each the rows 2
 * t, 2 t + 1, 2 t + 8 and 2 t + 9 (PTX ISA, "Matrix Fragments for mma.m16n8k16"); of a and b it holds rows (columns) n
 * and n + 8, two words each: inner indices 2 t, 2 t + 1, and 2 t + 8, 2 t + 9.
 * The same mapping stands in CuTe's MMA_Traits of SM80_16x8x16_F32F16F16F32_TN.
 *
 * Keys and values of up to SPAN keys stay in shared memory for all row tiles of a list; each wave has its queries
 * beside them, which come while the tile before is at work. Lines are of DT values; the 16-byte pieces of line r are
 * exchanged by r % 8, so that the eight lines that ldmatrix reads at a time do not meet in a bank.
 */
#define WAVE 32
#define WAVE_LANE (LANE % WAVE)
#define WAVE_ID (LANE / WAVE)
#define FRAG_N (WAVE_LANE / 4)
#define FRAG_ROWS 2
#define ACC_N 8
#define ACC_ROW(i) ((i) / 4 * 8 + WAVE_LANE % 4 * 2 + (i) % 2)
#define ACC_COLUMN(i) ((i) / 2 % 2)
#define COLUMN_LEADER (WAVE_LANE % 4 == 0)
#define SPAN 128
#define STEP 64

typedef u32 frag[4]; /* row n: two words, row n + 8: two words */
typedef float accumulator[ACC_N];

#ifndef MOBA_MMA_EMULATED
typedef uint4 words4;
#define MOBA_INLINE static __device__ __forceinline__
/* Lines of DT values: SPAN of keys, SPAN of values, 64 of queries. */
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
/* Four 8 x 8 matrices, or their transposes; lane 8 i + r gives the place of row r of matrix i, an element of moba_held.
 */
#define LOAD_MATRICES(name, which)                                                                                     \
    MOBA_INLINE void name(u32 &w, u32 &x, u32 &y, u32 &z, int at) {                                                    \
        u32 address = (u32)__cvta_generic_to_shared(moba_held + at);                                                   \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" which ".shared.b16 {%0, %1, %2, %3}, [%4];"                       \
                     : "=r"(w), "=r"(x), "=r"(y), "=r"(z)                                                              \
                     : "r"(address)                                                                                    \
                     : "memory");                                                                                      \
    }
LOAD_MATRICES(moba_load, "")
LOAD_MATRICES(moba_load_transposed, ".trans")
/* Starts copying 16 bytes to moba_held[to]; zeros where there is nothing to copy. */
MOBA_INLINE void moba_copy16(int to, const unsigned short *from, bool real) {
    u32 address = (u32)__cvta_generic_to_shared(moba_held + to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(real ? 16 : 0)
                 : "memory");
}
#define COPY_COMMIT asm volatile("cp.async.commit_group;" ::: "memory")
#define COPY_WAIT(n) asm volatile("cp.async.wait_group " #n ";" ::: "memory")
#define SYNC_WAVE __syncwarp()
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

/* A third work-group leaves too few registers where instructions are older. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define RESIDENT_D64 2
#else
#define RESIDENT_D64 3
#endif

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

/* A lane's own 16 bytes of row or column n + 8 j instead of what ldmatrix gives it, in FRAGS fragments: which inner
 * index a word stands for is free where a and b agree. */
#define FRAGS 2
#define SPREAD(f, d, j, eight)                                                                                         \
    f[d][2 * (j)] = eight.x;                                                                                           \
    f[d][2 * (j) + 1] = eight.y;                                                                                       \
    f[(d) + 1][2 * (j)] = eight.z;                                                                                     \
    f[(d) + 1][2 * (j) + 1] = eight.w

/* Eight values to moba_held[to], at once or later; zeros where there is nothing. */
MOBA_INLINE void moba_put(int to, const unsigned short *x, i64 at, int there, bool vectors) {
    if (vectors)
        moba_copy16(to, there > 0 ? x + at : x, there > 0);
    else
        moba_held[to] = moba_eight(x, at, there);
}

#define QUERY_LINE (2 * SPAN + WAVE_ID * 16)
#define FETCH_QUERIES(row_tile)                                                                                        \
    {                                                                                                                  \
        UNROLL                                                                                                         \
        for (int i_ = 0; i_ < DT / 16; i_++) {                                                                         \
            int r_ = (i_ * 32 + WAVE_LANE) / (DT / 8), c_ = (i_ * 32 + WAVE_LANE) % (DT / 8);                          \
            i64 at_ = row_q[(row_tile) % 4 * 64 + WAVE_ID * 16 + r_];                                                  \
            moba_put((QUERY_LINE + r_) * (DT / 8) + (c_ ^ r_ % 8), q, at_ + c_ * 8, at_ >= 0 ? head_dim - c_ * 8 : 0,  \
                     q_vectors);                                                                                       \
        }                                                                                                              \
        COPY_COMMIT;                                                                                                   \
    }
#define LOAD_QUERIES(f)                                                                                                \
    COPY_WAIT(0);                                                                                                      \
    SYNC_WAVE;                                                                                                         \
    UNROLL                                                                                                             \
    for (int d_ = 0; d_ < DT / 16; d_++)                                                                               \
        moba_load(f[0][d_][0], f[0][d_][2], f[0][d_][1], f[0][d_][3],                                                  \
                  (QUERY_LINE + WAVE_LANE % 16) * (DT / 8) + ((WAVE_LANE / 16 ^ WAVE_LANE % 8) ^ (d_ % 4 * 2)) +       \
                      d_ / 4 * 8);                                                                                     \
    SYNC_WAVE;

/* n lines of x, up to the next multiple of STEP with zeros, from line `first` on. */
MOBA_INLINE void moba_hold(int chunks, int first, const unsigned short *x, i64 at, i64 ts, int n, int head_dim,
                           bool vectors) {
    ROLLED
    for (int e = LANE; e < (n + STEP - 1) / STEP * STEP * chunks; e += 128) {
        int row = e / chunks, c = e % chunks;
        moba_put((first + row) * chunks + (c ^ row % 8), x, at + row * ts + c * 8, row < n ? head_dim - c * 8 : 0,
                 vectors);
    }
    COPY_COMMIT;
}

/* Keys and values of SPAN keys from k0 on. */
#define HOLD(k0)                                                                                                       \
    {                                                                                                                  \
        int n_ = MIN64(TO_I32(LIST_KEY_END) - (k0), SPAN);                                                             \
        moba_hold(DT / 8, 0, k, LIST_K + (k0)*k_ts, k_ts, n_, head_dim, k_vectors);                                    \
        moba_hold(DT / 8, SPAN, v, LIST_V + (k0)*v_ts, v_ts, n_, head_dim, v_vectors);                                 \
    }
/* A block that fits is held for all tiles of its list, and waves go their own ways between two lists. */
#define FITS (block_size <= SPAN)
#define HOLD_LIST                                                                                                      \
    if (FITS) HOLD(TO_I32(LIST_KEY_BEGIN))
#define LIST_IS_HELD                                                                                                   \
    COPY_WAIT(0);                                                                                                      \
    BARRIER;
#define HOLD_KEYS(k0, n)                                                                                               \
    if (!FITS) {                                                                                                       \
        BARRIER;                                                                                                       \
        HOLD(k0)                                                                                                       \
        COPY_WAIT(0);                                                                                                  \
        BARRIER;                                                                                                       \
    }
#define HOLD_VALUES(k0, n)
#define VALUES_ARE_HELD
#define VALUES_ARE_READ
#define ROWS_ARE_FOUND SYNC_WAVE;
/* The last that a row of the wave sees, or where waves must meet, the last of the block. */
#define LAST_KEY(last)                                                                                                 \
    last = TO_I32(LIST_KEY_END);                                                                                       \
    if (FITS) {                                                                                                        \
        i64 rows_ = LIST_END - LIST_AT - tile * TO_I64(64) - WAVE_ID * 16;                                             \
        last = rows_ > 0 ? MIN64(row_sees[tile % 4 * 64 + WAVE_ID * 16 + (rows_ < 16 ? TO_I32(rows_) : 16) - 1], last) \
                         : 0;                                                                                          \
    }

/* Keys 16 part .. and dims 16 d .. of the span. */
#define LOAD_KEYS(f, part, d)                                                                                          \
    moba_load(f[0], f[1], f[2], f[3],                                                                                  \
              (WAVE_LANE / 16 * 8 + WAVE_LANE % 8) * (DT / 8) +                                                        \
                  ((WAVE_LANE / 8 % 2 ^ WAVE_LANE % 8) ^ ((d) % 4 * 2)) + (part)*16 * (DT / 8) + (d) / 4 * 8);
#define LOAD_VALUES(f, part, d)                                                                                        \
    moba_load_transposed(f[0], f[1], f[2], f[3],                                                                       \
                         (SPAN + WAVE_LANE % 16) * (DT / 8) + ((WAVE_LANE / 16 ^ WAVE_LANE % 8) ^ ((d) % 4 * 2)) +     \
                             (part)*16 * (DT / 8) + (d) / 4 * 8);

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
