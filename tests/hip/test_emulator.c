/* SPDX-License-Identifier: Apache-2.0
 *
 * The emulator runs what is right, and finds each kind of fault.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/hip/emulator.h"

static float x[64], values[192];

static int wave = 64;

/** Runs `name` over x and values; NULL, or the fault. */
static const char *run(const char *name, unsigned groups, int n) {
    const emu_kernel *kernel = emu_find(name);
    cr_assert_not_null(kernel, "no kernel %s", name);
    float *to = x;
    const float *from = values;
    void *arguments[] = {&to, &from, &n};
    const char *fault = NULL;
    emu_memory_add(x, sizeof x);
    emu_memory_add(values, sizeof values);
    bool ok = emu_run(kernel, (unsigned[]){groups, 1, 1}, wave, arguments, &fault);
    cr_assert(emu_memory_remove(x) && emu_memory_remove(values));
    return ok ? NULL : fault;
}

static void expect_fault(const char *name, int n, const char *part) {
    const char *fault = run(name, 1, n);
    cr_assert_not_null(fault, "%s: no fault was found", name);
    cr_assert_not_null(strstr(fault, part), "%s: '%s' does not say '%s'", name, fault, part);
    cr_assert_eq(strncmp(fault, name, strlen(name)), 0, "%s", fault);
    cr_assert_null(run("right", 1, 3), "a right kernel after a faulty one");
}

Test(emulator, sums_by_groups) {
    for (int i = 0; i < 192; i++)
        values[i] = (float)(i % 7);
    cr_assert_null(run("right", 3, 50));
    for (int g = 0; g < 3; g++) {
        float sum = 0;
        for (int i = 0; i < 50; i++)
            sum += values[g * 50 + i];
        cr_assert_eq(x[g], sum);
    }
}

Test(emulator, arguments_are_described) {
    const emu_kernel *kernel = emu_find("right");
    cr_assert_eq(kernel->n_arguments, 3);
    cr_assert_eq(kernel->lanes, 64);
    cr_assert_eq(kernel->argument_bytes, 20);
    cr_assert_eq(kernel->argument_sizes[2], 4);
}

Test(emulator, accesses_outside) {
    expect_fault("store_past_the_end", 64, "lane 5: store of 4 bytes at byte 256 of an allocation of 256 bytes");
    expect_fault("load_before_the_begin", 1000000, "lane 0: load of 4 bytes");
    expect_fault("past_a_shared_array", 0, "lane 1: store of 4 bytes at byte 256 of the shared array");
}

Test(emulator, races) {
    expect_fault("no_barrier", 1, "lane 1: race on shared memory: a store of what lane 0 loaded");
    expect_fault("no_barrier", 63, "lane 1: race on shared memory: a load of what lane 0 stored");
    expect_fault("store_over_loads", 0, "lane 0: race on shared memory: a store of what several lanes loaded");
    cr_assert_null(run("no_barrier", 1, 0), "each lane has a word of its own");
}

Test(emulator, barrier_divergence) {
    expect_fault("barrier_for_some", 3, "barrier divergence");
    expect_fault("two_barriers", 3, "barrier divergence");
    expect_fault("return_before_a_barrier", 63, "barrier divergence");
    cr_assert_null(run("barrier_for_some", 1, 64));
    cr_assert_null(run("return_before_a_barrier", 1, 0));
}

Test(emulator, waves) {
    for (wave = 32; wave <= 64; wave *= 2) {
        for (int i = 0; i < 64; i++)
            values[i] = (float)i;
        cr_assert_null(run("shuffle", 1, 5));
        for (int i = 0; i < 64; i++)
            cr_assert_eq(x[i], (float)(i / wave * wave + (i + 10) % wave), "lane %d has %g", i, x[i]);
    }
    wave = 64;
    expect_fault("shuffle_for_some", 32, "wave divergence: lane 0 is at an operation of its wave, lane 32 at its end");
    wave = 32;
    cr_assert_null(run("shuffle_for_some", 1, 32), "one whole wave");
    expect_fault("shuffle_for_some", 33, "wave divergence: lane 32 is at");
}
