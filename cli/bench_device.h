/* SPDX-License-Identifier: Apache-2.0
 *
 * One problem on one device: buffers, timed runs, and outputs read back for verification.
 */
#ifndef MOBAI_BENCH_DEVICE_H
#define MOBAI_BENCH_DEVICE_H

#include "cli/verify.h"

/** Device buffers, by what they hold. */
typedef enum mobai_bench_buffer {
    MOBAI_BENCH_Q,
    MOBAI_BENCH_K,
    MOBAI_BENCH_V,
    MOBAI_BENCH_DOUT,
    MOBAI_BENCH_WEIGHT,
    MOBAI_BENCH_CU_Q,
    MOBAI_BENCH_CU_K,
    MOBAI_BENCH_O,
    MOBAI_BENCH_LSE,
    MOBAI_BENCH_SELECTION,
    MOBAI_BENCH_DQ,
    MOBAI_BENCH_DK,
    MOBAI_BENCH_DV,
    MOBAI_BENCH_DW,
    MOBAI_BENCH_SAVED,
    MOBAI_BENCH_WORKSPACE,
    MOBAI_BENCH_BUFFER_COUNT
} mobai_bench_buffer;

typedef struct mobai_bench_device {
    const mobai_bench_problem *problem;
    const mobai_bench_inputs *inputs;
    moba_context *context; /* the caller's */
    moba_plan *plan;
    moba_stream stream;
    moba_event begin, end;
    bool has_stream, has_begin, has_end;
    moba_buffer buffers[MOBAI_BENCH_BUFFER_COUNT];
    size_t bytes[MOBAI_BENCH_BUFFER_COUNT]; /* what the tensor takes; 0: this problem has none */
    void *host[MOBAI_BENCH_BUFFER_COUNT];   /* outputs as read back */
    size_t workspace_bytes, saved_bytes;
} mobai_bench_device;

#define MOBAI_BENCH_MAX_REPEAT 1000

typedef struct mobai_timing {
    int32_t n;
    double min_ms, median_ms, p90_ms;
} mobai_timing;

/** Plans the problem, allocates everything and copies the inputs. `backward`: also what a backward needs. On failure
 * all is freed and moba_last_error() tells why. */
moba_status mobai_bench_open(moba_context *context, const mobai_bench_problem *problem,
                             const mobai_bench_inputs *inputs, bool backward, mobai_bench_device *out);
void mobai_bench_close(mobai_bench_device *device);

/**
 * Runs one pass: warm-up, then `repeat` timed runs (0: 50 where they take under 5 ms, 10 from half a second, else 20).
 * Outputs, saved data and workspace are filled with garbage before the first run and again before the last one, whose
 * outputs stay: NaN in floats, illegal ids in the selection. A backward needs the outputs of a forward.
 */
moba_status mobai_bench_time(mobai_bench_device *device, mobai_pass pass, int32_t repeat, mobai_timing *timing);

/** Reads what a pass wrote to the host. `outputs` points into the device object until it is closed. When the host has
 * no memory for it, `message` says so; else it is "" and a failure is the library's. */
moba_status mobai_bench_read(mobai_bench_device *device, mobai_pass pass, mobai_bench_outputs *outputs,
                             mobai_message *message);

#endif
