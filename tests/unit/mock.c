/* SPDX-License-Identifier: Apache-2.0 */
#include "mock.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"

mock_state mock;

struct mobai_device {
    mobai_caps caps;
};

static moba_status check_lost(void) {
    return mock.lost ? mobai_fail(MOBA_ERROR_DEVICE_LOST, "the mock device is lost") : MOBA_OK;
}

static int32_t probe(char *reason, size_t capacity) {
    snprintf(reason, capacity, "%s", mock.reason);
    return mock.n_devices;
}

static moba_status describe(int32_t index, moba_device_description *out) {
    snprintf(out->name, sizeof out->name, "mock device %d", index);
    return MOBA_OK;
}

static moba_status open_device(const moba_context_options *options, mobai_device **out) {
    (void)options;
    if (mock.refuse_open) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "the mock refuses to open");
    *out = calloc(1, sizeof **out);
    (*out)->caps.set = MOBAI_CAP_AVX512 | MOBAI_CAP_WGMMA;
    (*out)->caps.n_compute_units = 4;
    mock.n_open++;
    return MOBA_OK;
}

static void close_device(mobai_device *device) {
    mock.n_open--;
    free(device);
}

static const mobai_caps *caps(const mobai_device *device) { return &device->caps; }

static void device_info(const mobai_device *device, moba_device_description *out) {
    (void)device;
    snprintf(out->name, sizeof out->name, "mock device");
    snprintf(out->driver, sizeof out->driver, "none");
}

static moba_status buffer_create(mobai_device *device, size_t bytes, moba_buffer *out) {
    (void)device;
    MOBAI_TRY(check_lost());
    void *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (p == NULL) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for %zu bytes", bytes);
    out->handle = (uint64_t)(uintptr_t)p;
    mock.n_buffers++;
    return MOBA_OK;
}

static void buffer_destroy(mobai_device *device, moba_buffer buffer) {
    (void)device;
    mock.n_buffers--;
    free((void *)(uintptr_t)buffer.handle);
}

static void *address(moba_buffer b) { return (void *)(uintptr_t)(b.handle + b.offset); }

static moba_status buffer_write(mobai_device *device, moba_stream stream, moba_buffer to, const void *data,
                                size_t bytes) {
    (void)device, (void)stream;
    MOBAI_TRY(check_lost());
    memcpy(address(to), data, bytes);
    return MOBA_OK;
}

static moba_status buffer_read(mobai_device *device, moba_stream stream, moba_buffer from, void *data, size_t bytes) {
    (void)device, (void)stream;
    MOBAI_TRY(check_lost());
    memcpy(data, address(from), bytes);
    return MOBA_OK;
}

static moba_status buffer_fill(mobai_device *device, moba_stream stream, moba_buffer to, uint8_t value, size_t bytes) {
    (void)device, (void)stream;
    MOBAI_TRY(check_lost());
    memset(address(to), value, bytes);
    return MOBA_OK;
}

static moba_status buffer_copy(mobai_device *device, moba_stream stream, moba_buffer from, moba_buffer to,
                               size_t bytes) {
    (void)device, (void)stream;
    MOBAI_TRY(check_lost());
    memcpy(address(to), address(from), bytes);
    return MOBA_OK;
}

static moba_status stream_create(mobai_device *device, moba_stream *out) {
    (void)device;
    out->native = NULL;
    return check_lost();
}

static void stream_destroy(mobai_device *device, moba_stream stream) { (void)device, (void)stream; }

static moba_status stream_synchronize(mobai_device *device, moba_stream stream) {
    (void)device, (void)stream;
    return check_lost();
}

static bool stream_capturing(mobai_device *device, moba_stream stream) {
    (void)device, (void)stream;
    return mock.capturing;
}

static moba_status event_create(mobai_device *device, moba_event *out) {
    out->native = device;
    return check_lost();
}

static void event_destroy(mobai_device *device, moba_event event) { (void)device, (void)event; }

static moba_status event_record(mobai_device *device, moba_stream stream, moba_event event) {
    (void)device, (void)stream, (void)event;
    return check_lost();
}

static moba_status event_elapsed(mobai_device *device, moba_event begin, moba_event end, double *ms) {
    (void)device, (void)begin, (void)end;
    *ms = 1;
    return check_lost();
}

static moba_status prepare(mobai_device *device, const mobai_variant *variant, const moba_problem *problem) {
    (void)device, (void)variant, (void)problem;
    mock.n_prepared++;
    return check_lost();
}

static moba_status launch(mobai_device *device, moba_stream stream, const mobai_variant *variant,
                          const mobai_stage_args *args) {
    (void)device, (void)stream;
    MOBAI_TRY(check_lost());
    cr_assert_lt(mock.n_launches, MOCK_MAX_LAUNCHES);
    int number = mock.n_launches++;
    mock.launches[number] = (mock_launch){variant, *args};
    if (number != mock.fail_at_launch) return MOBA_OK;
    mock.lost = mock.fail_with == MOBA_ERROR_DEVICE_LOST;
    return mobai_fail(mock.fail_with, "launch %d of the mock failed", number);
}

static moba_status run_begin(mobai_device *device, moba_stream stream) {
    (void)device, (void)stream;
    mock.n_begun++;
    return check_lost();
}

static moba_status run_end(mobai_device *device, moba_stream stream) {
    (void)device, (void)stream;
    mock.n_ended++;
    return MOBA_OK;
}

static int32_t rank(int32_t device) {
    (void)device;
    return 0;
}

/* ----------------------------------------------------------------------------------------------- variants -- */

static double cost_1(const mobai_shape *shape) { return (double)shape->n_slice_kv_heads; }
static double cost_10(const mobai_shape *shape) {
    (void)shape;
    return 10;
}
static double cost_5(const mobai_shape *shape) {
    (void)shape;
    return 5;
}
static double attend_one_pass_cost(const mobai_shape *shape) {
    (void)shape;
    return mock.attend_one_pass_cost;
}
static double attend_partials_cost(const mobai_shape *shape) {
    (void)shape;
    return mock.attend_partials_cost;
}
static double combine_cost(const mobai_shape *shape) {
    (void)shape;
    return mock.combine_cost;
}
static size_t scratch_bytes(const mobai_shape *shape) { return mock.scratch * (size_t)shape->n_slice_kv_heads; }
static size_t half_partials(const mobai_shape *shape) { return (size_t)shape->problem->head_dim * 2; }

static const char *only_128(const moba_problem *problem, const mobai_caps *c) {
    (void)c;
    return problem->head_dim == 128 ? NULL : "head_dim is not 128";
}

static const char *backward_off(const moba_problem *problem, const mobai_caps *c) {
    (void)problem, (void)c;
    return mock.backward ? NULL : "the mock's backward is switched off";
}

static const char *not_deterministic(const moba_problem *problem, const mobai_caps *c) {
    (void)c;
    if (problem->deterministic) return "adds with atomics, in no fixed order";
    return backward_off(problem, c);
}

enum { ALL = 7, BF16_ONLY = 4 };

static const mobai_variant variants[] = {
    {.name = "kconv__mock", .stage = MOBAI_STAGE_KCONV, .dtypes = ALL, .cost = cost_1},
    {.name = "centroid__mock", .stage = MOBAI_STAGE_CENTROID, .dtypes = ALL, .cost = cost_1},
    {.name = "gate__first", .stage = MOBAI_STAGE_GATE, .dtypes = ALL, .cost = cost_10},
    {.name = "gate__tie", .stage = MOBAI_STAGE_GATE, .dtypes = ALL, .cost = cost_10},
    {.name = "gate__avx512", .stage = MOBAI_STAGE_GATE, .dtypes = ALL, .needs = MOBAI_CAP_AVX512, .cost = cost_5},
    {.name = "gate__mma", .stage = MOBAI_STAGE_GATE, .dtypes = ALL, .needs = MOBAI_CAP_MMA, .cost = cost_1},
    {.name = "index__mock", .stage = MOBAI_STAGE_INDEX, .dtypes = ALL, .cost = cost_1},
    {.name = "index__masks", .stage = MOBAI_STAGE_INDEX, .dtypes = ALL, .cost = cost_10, .pick_masks = true},
    {.name = "attend__one_pass",
     .stage = MOBAI_STAGE_ATTEND,
     .dtypes = ALL,
     .flow = MOBAI_FLOW_ONE_PASS,
     .cost = attend_one_pass_cost,
     .scratch_bytes = scratch_bytes},
    {.name = "attend__partials",
     .stage = MOBAI_STAGE_ATTEND,
     .dtypes = ALL,
     .flow = MOBAI_FLOW_PARTIALS_F32,
     .cost = attend_partials_cost,
     .scratch_bytes = scratch_bytes},
    {.name = "attend_bf16_d128__sm90",
     .stage = MOBAI_STAGE_ATTEND,
     .dtypes = BF16_ONLY,
     .needs = MOBAI_CAP_WGMMA,
     .flow = MOBAI_FLOW_PARTIALS_SM90,
     .reject = only_128,
     .cost = cost_1,
     .partial_bytes = half_partials},
    {.name = "combine__f32",
     .stage = MOBAI_STAGE_COMBINE,
     .dtypes = ALL,
     .flow = MOBAI_FLOW_PARTIALS_F32,
     .cost = combine_cost},
    {.name = "combine__sm90",
     .stage = MOBAI_STAGE_COMBINE,
     .dtypes = ALL,
     .flow = MOBAI_FLOW_PARTIALS_SM90,
     .cost = cost_1},
    {.name = "delta__mock", .stage = MOBAI_STAGE_DELTA, .dtypes = ALL, .cost = cost_1},
    {.name = "attend_bwd__atomics",
     .stage = MOBAI_STAGE_ATTEND_BWD,
     .dtypes = ALL,
     .flow = MOBAI_FLOW_ONE_PASS,
     .reject = not_deterministic,
     .cost = cost_1},
    {.name = "attend_bwd__ordered",
     .stage = MOBAI_STAGE_ATTEND_BWD,
     .dtypes = 1 << MOBA_F32,
     .flow = MOBAI_FLOW_PARTIALS_F32,
     .reject = backward_off,
     .cost = cost_10},
    {.name = "dq_sum__mock",
     .stage = MOBAI_STAGE_DQ_SUM,
     .dtypes = ALL,
     .flow = MOBAI_FLOW_PARTIALS_F32,
     .cost = cost_1},
    {.name = "dq_sum__masks",
     .stage = MOBAI_STAGE_DQ_SUM,
     .dtypes = ALL,
     .flow = MOBAI_FLOW_PARTIALS_F32,
     .cost = cost_10,
     .pick_masks = true},
    {.name = "kconv_bwd__mock", .stage = MOBAI_STAGE_KCONV_BWD, .dtypes = ALL, .cost = cost_1},
};

const mobai_backend mock_backend = {
    .name = "mock",
    .address_handles = true,
    .probe = probe,
    .describe = describe,
    .open = open_device,
    .close = close_device,
    .caps = caps,
    .device_info = device_info,
    .buffer_create = buffer_create,
    .buffer_destroy = buffer_destroy,
    .buffer_write = buffer_write,
    .buffer_read = buffer_read,
    .buffer_fill = buffer_fill,
    .buffer_copy = buffer_copy,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_synchronize = stream_synchronize,
    .stream_capturing = stream_capturing,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_elapsed = event_elapsed,
    .prepare = prepare,
    .launch = launch,
    .run_begin = run_begin,
    .run_end = run_end,
    .rank = rank,
    .variants = variants,
    .n_variants = sizeof variants / sizeof *variants,
};

/* ------------------------------------------------------------------------------------------------- helpers -- */

void mock_reset(void) {
    memset(&mock, 0, sizeof mock);
    mock.n_devices = 1;
    mock.reason = "no mock device";
    mock.backward = true;
    mock.attend_one_pass_cost = 100;
    mock.attend_partials_cost = 20;
    mock.combine_cost = 30;
    mock.fail_at_launch = -1;
}

moba_context *mock_open(void) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    mock_reset();
    cr_assert_eq(mobai_context_open(&mock_backend, &options, &context), MOBA_OK, "%s", moba_last_error());
    return context;
}

moba_problem mock_problem(int64_t total) {
    moba_problem p = MOBA_PROBLEM_INIT;
    p.n_q_heads = 4;
    p.n_kv_heads = 2;
    p.head_dim = 64;
    p.block_size = 32;
    p.top_k = 4;
    p.max_total_q = total;
    p.max_total_k = total;
    return p;
}

static moba_buffer make(moba_context *context, size_t bytes) {
    moba_buffer b = MOBA_BUFFER_NULL;
    if (bytes > 0) cr_assert_eq(moba_buffer_create(context, bytes, &b), MOBA_OK, "%s", moba_last_error());
    return b;
}

moba_forward_args mock_forward_args(moba_context *context, const moba_plan *plan, int64_t total_q, int64_t total_k) {
    const moba_problem *p = &plan->problem;
    moba_forward_args a = MOBA_FORWARD_ARGS_INIT;
    size_t q_bytes = (size_t)(total_q * p->n_q_heads * p->head_dim) * 4,
           k_bytes = (size_t)(total_k * p->n_kv_heads * p->head_dim) * 4;
    moba_tensor like_q = {MOBA_BUFFER_NULL, p->n_q_heads * p->head_dim, p->head_dim,
                          total_q * p->n_q_heads * p->head_dim};
    moba_tensor like_k = {MOBA_BUFFER_NULL, p->n_kv_heads * p->head_dim, p->head_dim,
                          total_k * p->n_kv_heads * p->head_dim};
    a.in.q = a.o = like_q;
    a.in.k = a.in.v = like_k;
    a.in.q.buffer = make(context, q_bytes);
    a.o.buffer = make(context, q_bytes);
    a.in.k.buffer = make(context, k_bytes);
    a.in.v.buffer = make(context, k_bytes);
    if (p->kconv_width > 0)
        a.in.kconv_weight = make(context, (size_t)(p->n_kv_heads * p->head_dim * p->kconv_width) * 4);
    a.in.batch = 1;
    a.in.total_q = total_q;
    a.in.total_k = total_k;
    a.lse = make(context, (size_t)(total_q * p->n_q_heads) * 4);
    moba_plan_saved(plan, &a.saved_bytes);
    moba_plan_workspace(plan, &a.workspace_bytes);
    a.saved = make(context, a.saved_bytes);
    a.workspace = make(context, a.workspace_bytes);
    return a;
}

void mock_free_args(moba_context *context, const moba_forward_args *a) {
    moba_buffer all[] = {a->in.q.buffer,     a->o.buffer, a->in.k.buffer, a->in.v.buffer,
                         a->in.kconv_weight, a->lse,      a->saved,       a->workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        moba_buffer_destroy(context, all[i]);
}
