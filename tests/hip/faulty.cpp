/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels for test_emulator.c: one that is right, and one for each fault that the emulator must find.
 */
#define LANES 64
#include "tests/hip/device.h"

/* x[group] = the sum of the group's n values, by a tree in shared memory. */
extern "C" void right(float *x, const float *values, int n) {
    __shared__ float part[LANES];
    part[LANE] = LANE < n ? LDF(values, GROUP_X * n + LANE) : 0.0f;
    BARRIER;
    for (int step = LANES / 2; step > 0; step /= 2) {
        if (LANE < step) part[LANE] += part[LANE + step];
        BARRIER;
    }
    if (LANE == 0) STF(x, GROUP_X, part[0]);
}
EMU_KERNEL(right)

extern "C" void store_past_the_end(float *x, const float *, int n) {
    if (LANE == 5) STF(x, n, 1.0f);
}
EMU_KERNEL(store_past_the_end)

extern "C" void load_before_the_begin(float *x, const float *values, int n) { STF(x, LANE, LDF(values, LANE - n)); }
EMU_KERNEL(load_before_the_begin)

extern "C" void past_a_shared_array(float *x, const float *, int n) {
    __shared__ float first[LANES], second[LANES];
    first[LANE] = second[LANE] = 0.0f;
    BARRIER;
    if (LANE == 1) first[LANES + n] = 1.0f;
    BARRIER;
    STF(x, LANE, first[LANE] + second[LANE]);
}
EMU_KERNEL(past_a_shared_array)

extern "C" void no_barrier(float *x, const float *, int n) {
    __shared__ int part[LANES];
    part[LANE] = LANE;
    STF(x, LANE, (float)part[(LANE + n) % LANES]);
}
EMU_KERNEL(no_barrier)

extern "C" void store_over_loads(float *x, const float *, int n) {
    __shared__ int part[LANES];
    part[LANE] = LANE;
    BARRIER;
    int sum = part[0] + part[LANE];
    part[(LANE + n) % LANES] = sum;
    BARRIER;
    STF(x, LANE, (float)part[LANE]);
}
EMU_KERNEL(store_over_loads)

extern "C" void barrier_for_some(float *x, const float *, int n) {
    if (LANE < n) BARRIER;
    STF(x, LANE, 1.0f);
}
EMU_KERNEL(barrier_for_some)

extern "C" void two_barriers(float *x, const float *, int n) {
    if (LANE < n)
        BARRIER;
    else
        BARRIER;
    STF(x, LANE, 1.0f);
}
EMU_KERNEL(two_barriers)

extern "C" void return_before_a_barrier(float *x, const float *, int n) {
    if (LANE >= n) return;
    BARRIER;
    STF(x, LANE, 1.0f);
}
EMU_KERNEL(return_before_a_barrier)

/* Each lane's value becomes that of the lane n further in its wave, twice over. */
extern "C" void shuffle(float *x, const float *values, int n) {
    int value = (int)LDF(values, LANE);
    for (int i = 0; i < 2; i++) value = __builtin_amdgcn_ds_bpermute((LANE + n) * 4, value);
    STF(x, LANE, (float)value);
}
EMU_KERNEL(shuffle)

extern "C" void shuffle_for_some(float *x, const float *, int n) {
    int value = LANE;
    if (LANE < n) value = __builtin_amdgcn_ds_bpermute(0, value);
    STF(x, LANE, (float)value);
}
EMU_KERNEL(shuffle_for_some)
