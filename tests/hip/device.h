/* SPDX-License-Identifier: Apache-2.0
 *
 * Included before the texts of generated HIP kernels when they are compiled as C++ for the emulator: the dialect's own
 * prelude over the builtins as the emulator has them, then what a lane and shared memory are here.
 */
#ifndef MOBA_TESTS_DEVICE_H
#define MOBA_TESTS_DEVICE_H

#include <utility>

#include "tests/hip/emulator.h"

#define __builtin_amdgcn_workitem_id_x() emu_lane()
#define __builtin_amdgcn_workgroup_id_x() emu_group(0)
#define __builtin_amdgcn_workgroup_id_y() emu_group(1)
#define __builtin_amdgcn_workgroup_id_z() emu_group(2)
#define __builtin_amdgcn_grid_size_x() (emu_groups_x() * LANES)
#define __builtin_amdgcn_rcpf(x) (1.0f / (x))
#define __builtin_amdgcn_fence(order, scope) ((void)0)
#define __builtin_amdgcn_s_barrier() emu_barrier(0)
#include "codegen/dialect/hip.h"

#undef __global__
#undef __device__
#undef __shared__
/* the kernels' attributes */
#define amdgpu_flat_work_group_size(low, high) used
#define amdgpu_waves_per_eu(n) used
#define __global__
#define __device__
#define __shared__ static
#undef BARRIER
#define BARRIER emu_barrier(__LINE__)

/* Arguments lie in the host's memory, which kernels may not touch. */
#define EMU_UNCHECKED __attribute__((no_sanitize("kernel-address")))

/* Matrix products of a wave: where element (row, inner) of a, or (inner, column) of b, is held, and which rows of its
 * column of c a lane holds. The tables of AMD's instruction set guides read from the matrix's side; fragments.h has
 * them from the lane's. */
struct emu_mfma { /* CDNA, v_mfma_f32_16x16x16: 64 lanes, 4 values of a and b, 4 of c */
    static constexpr int n = 4;
    static int lane(int row, int inner) { return row + 16 * (inner / 4); }
    static int index(int inner) { return inner % 4; }
    static int row(int lane, int i) { return 4 * (lane / 16) + i; }
};
struct emu_wmma_rdna3 { /* v_wmma_f32_16x16x16 of 32 lanes: all of a row in lane row and lane row + 16 */
    static constexpr int n = 8;
    static int lane(int row, int) { return row; }
    static int index(int inner) { return inner; }
    static int row(int lane, int i) { return 2 * i + lane / 16; }
};
struct emu_wmma_rdna4 { /* likewise, half of a row in each */
    static constexpr int n = 8;
    static int lane(int row, int inner) { return row + 16 * (inner / 8); }
    static int index(int inner) { return inner % 8; }
    static int row(int lane, int i) { return 8 * (lane / 16) + i; }
};

inline float emu_float(_Float16 x) { return (float)x; }
inline float emu_float(short x) { return __builtin_bit_cast(float, (unsigned)(unsigned short)x << 16); }

template <class Layout, class F, class A> EMU_UNCHECKED __attribute__((noinline)) A emu_product(F a, F b, A c) {
    struct operands {
        F a, b;
    } mine = {a, b};
    static_assert(sizeof mine <= EMU_EXCHANGE_BYTES, "");
    const operands *all = static_cast<const operands *>(emu_exchange(&mine, sizeof mine));
    const int self = emu_wave_lane(), column = self % 16;
    if (Layout::lane(0, 15) == 0 && __builtin_memcmp(&all[column], &all[column + 16], sizeof mine) != 0)
        emu_fault("lanes %d and %d hold different rows of a matrix", column, column + 16);
    for (int i = 0; i < Layout::n; i++) {
        const int row = Layout::row(self, i);
        float sum = c[i];
        for (int k = 0; k < 16; k++)
            sum += emu_float(all[Layout::lane(row, k)].a[Layout::index(k)]) *
                   emu_float(all[Layout::lane(column, k)].b[Layout::index(k)]);
        c[i] = sum;
    }
    return c;
}

EMU_UNCHECKED __attribute__((noinline)) static inline int emu_bpermute(int at, int x) {
    return static_cast<const int *>(emu_exchange(&x, sizeof x))[at / 4 % emu_wave()];
}

#define __builtin_amdgcn_ds_bpermute(at, x) emu_bpermute(at, x)
#define __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, c, x, y, z) emu_product<emu_mfma>(a, b, c)
#define __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(a, b, c, x, y, z) emu_product<emu_mfma>(a, b, c)
#define __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, c) emu_product<emu_wmma_rdna3>(a, b, c)
#define __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(a, b, c) emu_product<emu_wmma_rdna3>(a, b, c)
#define __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(a, b, c) emu_product<emu_wmma_rdna4>(a, b, c)
#define __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12(a, b, c) emu_product<emu_wmma_rdna4>(a, b, c)

template <class F> struct emu_thunk;
template <class... A> struct emu_thunk<void(A...)> {
    template <std::size_t... I> EMU_UNCHECKED static void call(void (*f)(A...), void **p, std::index_sequence<I...>) {
        f(*static_cast<A *>(p[I])...);
    }
    EMU_UNCHECKED static void call(void (*f)(A...), void **p) { call(f, p, std::index_sequence_for<A...>()); }
    static constexpr std::size_t bytes() {
        std::size_t at = 0;
        ((at = (at + alignof(A) - 1) / alignof(A) * alignof(A) + sizeof(A)), ...);
        return at;
    }
    static constexpr int count = sizeof...(A);
    static constexpr uint8_t sizes[] = {sizeof(A)...};
};

/** Registers the instance whose text was included last. */
#define EMU_KERNEL(function)                                                                                           \
    EMU_UNCHECKED static void call_##function(void **p) { emu_thunk<decltype(function)>::call(function, p); }          \
    __attribute__((constructor)) static void register_##function(void) {                                               \
        using thunk = emu_thunk<decltype(function)>;                                                                   \
        static constexpr emu_kernel kernel = {#function,    call_##function, LANES,                                    \
                                              thunk::count, thunk::sizes,    thunk::bytes()};                          \
        emu_register(&kernel);                                                                                         \
    }

#endif
