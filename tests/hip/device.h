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
#define __builtin_amdgcn_fence(order, scope) ((void)0)
#define __builtin_amdgcn_s_barrier() emu_barrier(0)
#include "codegen/dialect/hip.h"

#undef __global__
#undef __device__
#undef __shared__
/* the kernels' attribute */
#define amdgpu_flat_work_group_size(low, high) used
#define __global__
#define __device__
#define __shared__ static
#undef BARRIER
#define BARRIER emu_barrier(__LINE__)

/* Arguments lie in the host's memory, which kernels may not touch. */
#define EMU_UNCHECKED __attribute__((no_sanitize("kernel-address")))

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
