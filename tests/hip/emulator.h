/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs generated HIP kernels on the CPU: one work-group after the other, one fiber a lane. Every access of a kernel to
 * memory goes through check functions (the compiler's instrumentation for kernel address sanitizers calls them), so
 * that these are reported, each with kernel, work-group and lane:
 *   - accesses outside the device's allocations, and outside the array in shared memory that is meant;
 *   - barriers that not every lane of the work-group reaches, or that lanes reach at different places;
 *   - operations of a wave (shuffles, matrix products) that not every lane of it reaches;
 *   - accesses of two lanes to one word of shared memory, at least one of them a store, without a barrier between.
 */
#ifndef MOBA_TESTS_EMULATOR_H
#define MOBA_TESTS_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** One instance of a kernel. */
typedef struct emu_kernel {
    const char *name;
    void (*call)(void **arguments); /* each points to the value of a parameter */
    int lanes;
    int n_arguments;
    const uint8_t *argument_sizes;
    size_t argument_bytes; /* one after the other, aligned */
} emu_kernel;

/** Called by constructors of the kernels' texts. */
void emu_register(const emu_kernel *kernel);
/** NULL: there is none of that name. */
const emu_kernel *emu_find(const char *name);

/** Memory that kernels may touch. */
void emu_memory_add(const void *begin, size_t bytes);
/** False: no allocation begins there. */
bool emu_memory_remove(const void *begin);

/** Runs a grid with waves of `wave` lanes. False after the first fault; *fault then says what happened, until the next
 *  run. */
bool emu_run(const emu_kernel *kernel, const unsigned groups[3], int wave, void **arguments, const char **fault);

/* What kernels call, through device.h. */
int emu_lane(void) __attribute__((pure));
unsigned emu_group(int axis) __attribute__((pure));
unsigned emu_groups_x(void) __attribute__((pure));
/** `line` identifies the barrier in its text. */
void emu_barrier(int line);
/** Lanes of a wave; this one's place in its wave. */
int emu_wave(void) __attribute__((pure));
int emu_wave_lane(void) __attribute__((pure));
/** Every lane of a wave brings `bytes` bytes and gets those of all lanes, in the order of the lanes. What it gets lasts
 *  until its next call. A wave some of whose lanes do not come is a fault. */
enum { EMU_EXCHANGE_BYTES = 80 };
const void *emu_exchange(const void *mine, size_t bytes);
/** Ends the run because of what the current lane did. Does not return to it. */
void emu_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif
#endif
