/* SPDX-License-Identifier: Apache-2.0
 *
 * Copy bandwidth by the best of several large copies; the CPU backend's own probe of its matrix rate.
 */
#include "cli/bench_rates.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "core/context.h"

enum {
    /* Beyond any cache; an eighth of the memory at most. */
    COPY_BYTES = 256 << 20,
    N_COPIES = 8,
    MAX_THREADS = 64,
};

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        const moba_status status_ = (call);                                                                            \
        if (status_ != MOBA_OK) return status_;                                                                        \
    } while (0)

typedef struct copy_buffers {
    moba_buffer from, to;
    moba_stream stream;
    moba_event begin, end;
    bool has_stream, has_begin, has_end;
    size_t bytes;
} copy_buffers;

/* ------------------------------------------------------------------------------------------------- host -- */

typedef struct host_copy {
    char *to;
    const char *from;
    size_t bytes;
} host_copy;

static void *copy_part(void *argument) {
    const host_copy *part = argument;
    memcpy(part->to, part->from, part->bytes);
    return NULL;
}

/** One copy by as many threads as compute: one alone does not fill the memory bus. */
static double time_host_copy(const copy_buffers *buffers, int32_t n_threads) {
    host_copy parts[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    bool started[MAX_THREADS] = {false};
    const size_t n = n_threads < 1 ? 1 : n_threads > MAX_THREADS ? MAX_THREADS : (size_t)n_threads;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (size_t i = 0; i < n; i++) {
        const size_t first = buffers->bytes / n * i;
        parts[i].from = (const char *)(uintptr_t)(buffers->from.handle + buffers->from.offset) + first;
        parts[i].to = (char *)(uintptr_t)(buffers->to.handle + buffers->to.offset) + first;
        parts[i].bytes = (i + 1 < n ? buffers->bytes / n * (i + 1) : buffers->bytes) - first;
        started[i] = i + 1 < n && pthread_create(&threads[i], NULL, copy_part, &parts[i]) == 0;
        if (!started[i]) copy_part(&parts[i]);
    }
    for (size_t i = 0; i < n; i++)
        if (started[i]) pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);
    return 1e3 * (double)(end.tv_sec - begin.tv_sec) + 1e-6 * (double)(end.tv_nsec - begin.tv_nsec);
}

/* ----------------------------------------------------------------------------------------------- device -- */

static moba_status time_device_copy(moba_context *context, const copy_buffers *buffers, double *ms) {
    TRY(moba_event_record(context, buffers->stream, buffers->begin));
    TRY(context->backend->buffer_copy(context->device, buffers->stream, buffers->from, buffers->to, buffers->bytes));
    TRY(moba_event_record(context, buffers->stream, buffers->end));
    TRY(moba_stream_synchronize(context, buffers->stream));
    return moba_event_elapsed(context, buffers->begin, buffers->end, ms);
}

static moba_status measure_copy(moba_context *context, copy_buffers *buffers, double *gbytes) {
    const bool is_host = strcmp(moba_context_backend(context), "cpu") == 0;
    buffers->bytes =
        context->caps.memory_bytes / 8 < COPY_BYTES ? context->caps.memory_bytes / 8 & ~(size_t)4095 : COPY_BYTES;
    TRY(moba_buffer_create(context, buffers->bytes, &buffers->from));
    TRY(moba_buffer_create(context, buffers->bytes, &buffers->to));
    TRY(moba_stream_create(context, &buffers->stream));
    buffers->has_stream = true;
    TRY(moba_event_create(context, &buffers->begin));
    buffers->has_begin = true;
    TRY(moba_event_create(context, &buffers->end));
    buffers->has_end = true;
    TRY(moba_buffer_fill(context, buffers->stream, buffers->from, 1, buffers->bytes));
    TRY(moba_buffer_fill(context, buffers->stream, buffers->to, 2, buffers->bytes));
    double best = INFINITY;
    for (int i = 0; i < N_COPIES; i++) {
        double ms = 0.0;
        if (is_host) {
            ms = time_host_copy(buffers, context->caps.n_compute_units);
        } else {
            TRY(time_device_copy(context, buffers, &ms));
        }
        if (ms > 0.0 && ms < best) best = ms;
    }
    *gbytes = isfinite(best) ? 2e-6 * (double)buffers->bytes / best : NAN;
    return MOBA_OK;
}

moba_status mobai_bench_rates(moba_context *context, mobai_device_rates *out) {
    *out = (mobai_device_rates){NAN, NAN};
    copy_buffers buffers = {.bytes = 0};
    const moba_status status = measure_copy(context, &buffers, &out->copy_gbytes);
    if (buffers.has_end) moba_event_destroy(context, buffers.end);
    if (buffers.has_begin) moba_event_destroy(context, buffers.begin);
    if (buffers.has_stream) moba_stream_destroy(context, buffers.stream);
    moba_buffer_destroy(context, buffers.to);
    moba_buffer_destroy(context, buffers.from);
    /* Other backends hold a figure from data sheets, which is no measurement. */
    if (strcmp(moba_context_backend(context), "cpu") == 0) out->matrix_tflops = 1e-3 * context->caps.matrix_gflops;
    return status;
}
