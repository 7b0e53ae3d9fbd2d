/* SPDX-License-Identifier: Apache-2.0
 *
 * Included after device.h before the texts of kernels that are to run on fragments_mma.h: NVIDIA's instructions as the
 * emulator has them. Fragment layouts are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16" and "ldmatrix",
 * read from the matrix's side; fragments_mma.h has them from the lane's.
 */
#ifndef MOBA_TESTS_DEVICE_MMA_H
#define MOBA_TESTS_DEVICE_MMA_H

#include "tests/hip/device.h"

#define MOBA_MMA_EMULATED
#define MOBA_INLINE static inline
typedef u32 words4 __attribute__((ext_vector_type(4)));
static words4 moba_held[(2 * 128 + 64) * 16];

/* Value `index` of the pair. */
inline float emu_half(int is_f16, u32 two, int index) {
    const unsigned short bits = (unsigned short)(two >> 16 * index);
    return is_f16 ? emu_float(__builtin_bit_cast(_Float16, bits)) : emu_float((short)bits);
}

EMU_UNCHECKED __attribute__((noinline)) static void emu_mma(int is_f16, float *c, const u32 *ab) {
    struct operands {
        u32 a[4], b[2];
    } mine;
    __builtin_memcpy(&mine, ab, sizeof mine);
    const operands *all = static_cast<const operands *>(emu_exchange(&mine, sizeof mine));
    const int lane = emu_wave_lane();
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; k++) {
            /* element (row, k) of a; element (k, column) of b */
            const u32 a = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
            const u32 b = all[column * 4 + k % 8 / 2].b[k / 8];
            sum += emu_half(is_f16, a, k % 2) * emu_half(is_f16, b, k % 2);
        }
        c[i] = sum;
    }
}
static inline void moba_mma(int is_f16, float &c0, float &c1, float &c2, float &c3, u32 a0, u32 a1, u32 a2, u32 a3,
                            u32 b0, u32 b1) {
    float c[4] = {c0, c1, c2, c3};
    const u32 ab[6] = {a0, a1, a2, a3, b0, b1};
    emu_mma(is_f16, c, ab);
    c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
}

/* A lane's own row of each matrix is read here, checked; then the lanes exchange them. */
EMU_UNCHECKED __attribute__((noinline)) static void emu_load(u32 *f, const u32 *row, bool transposed) {
    struct line {
        u32 w[4];
    } mine;
    __builtin_memcpy(&mine, row, sizeof mine);
    const line *all = static_cast<const line *>(emu_exchange(&mine, sizeof mine));
    const int lane = emu_wave_lane();
    for (int i = 0; i < 4; i++) {
        if (!transposed) {
            f[i] = all[8 * i + lane / 4].w[lane % 4];
            continue;
        }
        f[i] = 0;
        for (int h = 0; h < 2; h++) {
            const u32 two = all[8 * i + lane % 4 * 2 + h].w[lane / 4 / 2];
            f[i] |= (two >> 16 * (lane / 4 % 2) & 0xffffu) << 16 * h;
        }
    }
}
#define EMU_LOAD(name, transposed)                                                                                     \
    static inline void name(u32 &w, u32 &x, u32 &y, u32 &z, int at) {                                                  \
        const words4 line = moba_held[at];                                                                             \
        const u32 row[4] = {line.x, line.y, line.z, line.w};                                                           \
        u32 f[4];                                                                                                      \
        emu_load(f, row, transposed);                                                                                  \
        w = f[0], x = f[1], y = f[2], z = f[3];                                                                        \
    }
EMU_LOAD(moba_load, false)
EMU_LOAD(moba_load_transposed, true)

static inline void moba_copy16(int to, const unsigned short *from, bool real) {
    words4 x = {0, 0, 0, 0};
    if (real) x = *(const words4 *)from;
    moba_held[to] = x;
}
/* The emulator knows no order within a wave alone. */
#define SYNC_WAVE BARRIER
#define COPY_COMMIT ((void)0)
#define COPY_WAIT(n) ((void)0)

EMU_UNCHECKED __attribute__((noinline)) static u32 emu_shuffle(u32 x, int bit) {
    return static_cast<const u32 *>(emu_exchange(&x, sizeof x))[emu_wave_lane() ^ bit];
}
#define OTHER_U32(x, bit) emu_shuffle(x, bit)
static inline float moba_exp2(float x) { return __builtin_exp2f(x); }
static inline u32 moba_pack(int is_f16, float low, float high) {
    return is_f16 ? moba_f16(low) | (u32)moba_f16(high) << 16 : moba_bf16(low) | (u32)moba_bf16(high) << 16;
}
static inline void moba_store4(float *to, float x, float y, float z, float w) {
    to[0] = x, to[1] = y, to[2] = z, to[3] = w;
}

#endif
