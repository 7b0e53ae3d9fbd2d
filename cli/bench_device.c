/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/bench_device.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/progress.h"
#include "cli/tensor_file.h"

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        const moba_status try_status = (call);                                                                         \
        if (try_status != MOBA_OK) return try_status;                                                                  \
    } while (0)

/** Warm-up lasts until both are reached: code, pages and clocks settle. A GPU that was idle while results were verified
 * may take hundreds of milliseconds back to its full clock. */
enum { WARM_UP_RUNS = 2, WARM_UP_MS = 50, WARM_UP_GPU_MS = 500 };

static double warm_up_ms(const mobai_bench_device *device) {
    moba_device_description d = MOBA_DEVICE_DESCRIPTION_INIT;
    const bool known = moba_context_device(device->context, &d) == MOBA_OK;
    const bool gpu = known && !d.is_software && strcmp(moba_context_backend(device->context), "cpu") != 0;
    return gpu ? WARM_UP_GPU_MS : WARM_UP_MS;
}

static size_t tensor_bytes(const mobai_bench_problem *problem, int64_t rows, int32_t heads) {
    return (size_t)rows * (size_t)heads * (size_t)problem->head_dim *
           mobai_element_bytes((mobai_element)problem->dtype);
}

/** Some devices fill whole words only, so buffers are whole words. */
static size_t whole_words(size_t bytes) { return (bytes + 3) / 4 * 4; }

/** Sizes of all buffers of the problem. */
static void size_buffers(mobai_bench_device *device, bool backward) {
    const mobai_bench_problem *problem = device->problem;
    const mobai_bench_inputs *in = device->inputs;
    size_t *bytes = device->bytes;
    const size_t q = tensor_bytes(problem, in->total_q, problem->n_q_heads);
    const size_t k = tensor_bytes(problem, in->total_k, problem->n_kv_heads);
    const size_t n_rows = (size_t)in->total_q * (size_t)problem->n_q_heads;
    const size_t n_weights = (size_t)problem->n_kv_heads * (size_t)problem->head_dim * (size_t)problem->kconv_width;
    bytes[MOBAI_BENCH_Q] = bytes[MOBAI_BENCH_O] = q;
    bytes[MOBAI_BENCH_K] = bytes[MOBAI_BENCH_V] = k;
    bytes[MOBAI_BENCH_WEIGHT] = n_weights * mobai_element_bytes((mobai_element)problem->dtype);
    if (in->cu_q != NULL) {
        bytes[MOBAI_BENCH_CU_Q] = bytes[MOBAI_BENCH_CU_K] = ((size_t)problem->batch + 1) * sizeof(int32_t);
    }
    bytes[MOBAI_BENCH_LSE] = n_rows * sizeof(float);
    if (!problem->dense) bytes[MOBAI_BENCH_SELECTION] = n_rows * (size_t)problem->top_k * sizeof(int32_t);
    if (backward) {
        bytes[MOBAI_BENCH_DOUT] = bytes[MOBAI_BENCH_DQ] = q;
        bytes[MOBAI_BENCH_DK] = bytes[MOBAI_BENCH_DV] = k;
        bytes[MOBAI_BENCH_DW] = n_weights * sizeof(float);
        bytes[MOBAI_BENCH_SAVED] = device->saved_bytes;
    }
    bytes[MOBAI_BENCH_WORKSPACE] = device->workspace_bytes;
}

static moba_status open_device(mobai_bench_device *device, bool backward) {
    const moba_problem bounds = mobai_problem_bounds(device->problem);
    TRY(moba_plan_create(device->context, &bounds, &device->plan));
    TRY(moba_plan_workspace(device->plan, &device->workspace_bytes));
    TRY(moba_plan_saved(device->plan, &device->saved_bytes));
    TRY(moba_stream_create(device->context, &device->stream));
    device->has_stream = true;
    TRY(moba_event_create(device->context, &device->begin));
    device->has_begin = true;
    TRY(moba_event_create(device->context, &device->end));
    device->has_end = true;
    size_buffers(device, backward);
    const void *const sources[MOBAI_BENCH_BUFFER_COUNT] = {
        [MOBAI_BENCH_Q] = device->inputs->q,
        [MOBAI_BENCH_K] = device->inputs->k,
        [MOBAI_BENCH_V] = device->inputs->v,
        [MOBAI_BENCH_DOUT] = device->inputs->dout,
        [MOBAI_BENCH_WEIGHT] = device->inputs->kconv_weight,
        [MOBAI_BENCH_CU_Q] = device->inputs->cu_q,
        [MOBAI_BENCH_CU_K] = device->inputs->cu_k,
    };
    /* A tensor without elements still gets a buffer, since most arguments may not be none. */
    const bool always[MOBAI_BENCH_BUFFER_COUNT] = {
        [MOBAI_BENCH_Q] = true,        [MOBAI_BENCH_K] = true,      [MOBAI_BENCH_V] = true,
        [MOBAI_BENCH_O] = true,        [MOBAI_BENCH_LSE] = true,    [MOBAI_BENCH_SELECTION] = !device->problem->dense,
        [MOBAI_BENCH_DOUT] = backward, [MOBAI_BENCH_DQ] = backward, [MOBAI_BENCH_DK] = backward,
        [MOBAI_BENCH_DV] = backward,
    };
    for (int i = 0; i < MOBAI_BENCH_BUFFER_COUNT; i++) {
        const size_t bytes = device->bytes[i];
        if (bytes == 0 && !always[i]) continue;
        TRY(moba_buffer_create(device->context, bytes > 0 ? whole_words(bytes) : 256, &device->buffers[i]));
        if (sources[i] != NULL && bytes > 0) {
            TRY(moba_buffer_write(device->context, device->stream, device->buffers[i], sources[i], bytes));
        }
    }
    return MOBA_OK;
}

moba_status mobai_bench_open(moba_context *context, const mobai_bench_problem *problem,
                             const mobai_bench_inputs *inputs, bool backward, mobai_bench_device *out) {
    *out = (mobai_bench_device){.problem = problem, .inputs = inputs, .context = context};
    const moba_status status = open_device(out, backward);
    if (status != MOBA_OK) mobai_bench_close(out);
    return status;
}

void mobai_bench_close(mobai_bench_device *device) {
    for (int i = 0; i < MOBAI_BENCH_BUFFER_COUNT; i++) {
        moba_buffer_destroy(device->context, device->buffers[i]);
        free(device->host[i]);
    }
    if (device->has_begin) moba_event_destroy(device->context, device->begin);
    if (device->has_end) moba_event_destroy(device->context, device->end);
    if (device->has_stream) moba_stream_destroy(device->context, device->stream);
    moba_plan_destroy(device->plan);
    *device = (mobai_bench_device){0};
}

/* ------------------------------------------------------------------------------------------------- runs -- */

static moba_tensor view(const mobai_bench_device *device, mobai_bench_buffer which, int32_t heads, int64_t seqlen) {
    const int64_t token = (int64_t)heads * device->problem->head_dim;
    return (moba_tensor){device->buffers[which], token, device->problem->head_dim, token * seqlen};
}

static moba_inputs make_inputs(const mobai_bench_device *device) {
    const mobai_bench_problem *problem = device->problem;
    return (moba_inputs){
        .q = view(device, MOBAI_BENCH_Q, problem->n_q_heads, problem->seqlen_q),
        .k = view(device, MOBAI_BENCH_K, problem->n_kv_heads, problem->seqlen_k),
        .v = view(device, MOBAI_BENCH_V, problem->n_kv_heads, problem->seqlen_k),
        .kconv_weight = device->buffers[MOBAI_BENCH_WEIGHT],
        .cu_seqlens_q = device->buffers[MOBAI_BENCH_CU_Q],
        .cu_seqlens_k = device->buffers[MOBAI_BENCH_CU_K],
        .batch = problem->batch,
        .total_q = device->inputs->total_q,
        .total_k = device->inputs->total_k,
    };
}

static moba_status run_pass(const mobai_bench_device *device, mobai_pass pass) {
    const mobai_bench_problem *problem = device->problem;
    const moba_buffer *buffers = device->buffers;
    if (pass == MOBAI_PASS_ROUTE) {
        moba_route_args args = MOBA_ROUTE_ARGS_INIT;
        args.in = make_inputs(device);
        args.selection = buffers[MOBAI_BENCH_SELECTION];
        args.workspace = buffers[MOBAI_BENCH_WORKSPACE];
        args.workspace_bytes = device->workspace_bytes;
        return moba_route(device->plan, device->stream, &args);
    }
    if (pass == MOBAI_PASS_FWD) {
        moba_forward_args args = MOBA_FORWARD_ARGS_INIT;
        args.in = make_inputs(device);
        args.o = view(device, MOBAI_BENCH_O, problem->n_q_heads, problem->seqlen_q);
        args.lse = buffers[MOBAI_BENCH_LSE];
        args.selection = buffers[MOBAI_BENCH_SELECTION];
        args.saved = buffers[MOBAI_BENCH_SAVED];
        args.saved_bytes = device->bytes[MOBAI_BENCH_SAVED];
        args.workspace = buffers[MOBAI_BENCH_WORKSPACE];
        args.workspace_bytes = device->workspace_bytes;
        return moba_forward(device->plan, device->stream, &args);
    }
    moba_backward_args args = MOBA_BACKWARD_ARGS_INIT;
    args.in = make_inputs(device);
    args.o = view(device, MOBAI_BENCH_O, problem->n_q_heads, problem->seqlen_q);
    args.lse = buffers[MOBAI_BENCH_LSE];
    args.dout = view(device, MOBAI_BENCH_DOUT, problem->n_q_heads, problem->seqlen_q);
    args.saved = buffers[MOBAI_BENCH_SAVED];
    args.saved_bytes = device->bytes[MOBAI_BENCH_SAVED];
    args.dq = view(device, MOBAI_BENCH_DQ, problem->n_q_heads, problem->seqlen_q);
    args.dk = view(device, MOBAI_BENCH_DK, problem->n_kv_heads, problem->seqlen_k);
    args.dv = view(device, MOBAI_BENCH_DV, problem->n_kv_heads, problem->seqlen_k);
    args.dkconv_weight = buffers[MOBAI_BENCH_DW];
    args.workspace = buffers[MOBAI_BENCH_WORKSPACE];
    args.workspace_bytes = device->workspace_bytes;
    return moba_backward(device->plan, device->stream, &args);
}

/** Buffers that a pass writes; WORKSPACE ends the list. */
static const mobai_bench_buffer *written_by(mobai_pass pass) {
    static const mobai_bench_buffer forward[] = {MOBAI_BENCH_O, MOBAI_BENCH_LSE, MOBAI_BENCH_SELECTION,
                                                 MOBAI_BENCH_SAVED, MOBAI_BENCH_WORKSPACE};
    static const mobai_bench_buffer backward[] = {MOBAI_BENCH_DQ, MOBAI_BENCH_DK, MOBAI_BENCH_DV, MOBAI_BENCH_DW,
                                                  MOBAI_BENCH_WORKSPACE};
    static const mobai_bench_buffer route[] = {MOBAI_BENCH_SELECTION, MOBAI_BENCH_WORKSPACE};
    return pass == MOBAI_PASS_FWD ? forward : pass == MOBAI_PASS_BWD ? backward : route;
}

/** 0xff bytes are NaN in every float type; 0x7f bytes are an id that no selection may hold. */
static moba_status spoil(const mobai_bench_device *device, mobai_pass pass) {
    const mobai_bench_buffer *at = written_by(pass);
    for (;; at++) {
        const uint8_t value = *at == MOBAI_BENCH_SELECTION ? 0x7f : 0xff;
        const size_t bytes = whole_words(device->bytes[*at]);
        if (bytes > 0) {
            TRY(moba_buffer_fill(device->context, device->stream, device->buffers[*at], value, bytes));
        }
        if (*at == MOBAI_BENCH_WORKSPACE) return MOBA_OK;
    }
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static int by_time(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

moba_status mobai_bench_time(mobai_bench_device *device, mobai_pass pass, int32_t repeat, mobai_timing *timing) {
    TRY(spoil(device, pass));
    const double start = now_ms(), least_ms = warm_up_ms(device);
    double last = start, run_ms = 0.0;
    for (int32_t i = 0; i < WARM_UP_RUNS || (last - start < least_ms && i < 5000); i++) {
        TRY(run_pass(device, pass));
        TRY(moba_stream_synchronize(device->context, device->stream));
        const double now = now_ms();
        run_ms = now - last;
        last = now;
        if (repeat == 1) break; /* a mere check needs no settled clocks */
    }
    const int32_t n = repeat > 0 ? repeat : run_ms < 5.0 ? 50 : run_ms >= 500.0 ? 10 : 20;
    double ms[MOBAI_BENCH_MAX_REPEAT];
    moba_status status = MOBA_OK;
    for (int32_t i = 0; status == MOBA_OK && i < n; i++) {
        if (i + 1 == n) status = spoil(device, pass);
        if (status == MOBA_OK) status = moba_event_record(device->context, device->stream, device->begin);
        if (status == MOBA_OK) status = run_pass(device, pass);
        if (status == MOBA_OK) status = moba_event_record(device->context, device->stream, device->end);
        if (status == MOBA_OK) status = moba_stream_synchronize(device->context, device->stream);
        if (status == MOBA_OK) status = moba_event_elapsed(device->context, device->begin, device->end, &ms[i]);
        mobai_progress_at((uint64_t)i + 1, (uint64_t)n);
    }
    if (status == MOBA_OK) {
        qsort(ms, (size_t)n, sizeof *ms, by_time);
        timing->n = n;
        timing->min_ms = ms[0];
        timing->median_ms = n % 2 != 0 ? ms[n / 2] : 0.5 * (ms[n / 2 - 1] + ms[n / 2]);
        timing->p90_ms = ms[(9 * (n - 1) + 9) / 10];
    }
    return status;
}

moba_status mobai_bench_read(mobai_bench_device *device, mobai_pass pass, mobai_bench_outputs *outputs,
                             mobai_message *message) {
    message->text[0] = '\0';
    for (const mobai_bench_buffer *at = written_by(pass); *at != MOBAI_BENCH_WORKSPACE; at++) {
        if (*at == MOBAI_BENCH_SAVED) continue;
        const size_t bytes = device->bytes[*at];
        if (device->host[*at] == NULL) device->host[*at] = malloc(bytes > 0 ? bytes : 1);
        if (device->host[*at] == NULL) {
            mobai_say_memory(message, "out of memory for %zu bytes of results on the host", bytes);
            return MOBA_ERROR_OUT_OF_MEMORY;
        }
        if (bytes == 0) continue;
        TRY(moba_buffer_read(device->context, device->stream, device->buffers[*at], device->host[*at], bytes));
    }
    outputs->o = device->host[MOBAI_BENCH_O];
    outputs->lse = device->host[MOBAI_BENCH_LSE];
    outputs->selection = device->host[MOBAI_BENCH_SELECTION];
    outputs->dq = device->host[MOBAI_BENCH_DQ];
    outputs->dk = device->host[MOBAI_BENCH_DK];
    outputs->dv = device->host[MOBAI_BENCH_DV];
    outputs->dw = device->host[MOBAI_BENCH_DW];
    return MOBA_OK;
}
