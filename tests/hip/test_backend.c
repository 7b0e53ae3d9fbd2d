/* SPDX-License-Identifier: Apache-2.0
 *
 * The HIP backend's host side over the emulated runtime: reasons, devices, adoption, graphs, errors. Each test is a
 * process of its own, so each opens the runtime afresh under its own environment.
 */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moba/moba.h"
#include "moba/moba_hip.h"

#define OK(call) cr_assert_eq(call, MOBA_OK, "%s: %s", #call, moba_last_error())

static moba_context *open_hip(void) {
    moba_context *context = NULL;
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "hip";
    OK(moba_context_create(&options, &context));
    return context;
}

static void expect_sentence(const char *part) {
    cr_assert_not_null(strstr(moba_last_error(), part), "'%s' does not say '%s'", moba_last_error(), part);
}

/** Opening is refused as unavailable, and `moba info` gives the same reason. */
static void expect_unusable(const char *reason) {
    moba_context *context = NULL;
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "hip";
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_BACKEND_UNAVAILABLE, "%s", moba_last_error());
    expect_sentence(reason);
    for (int32_t i = 0; i < moba_backend_count(); i++) {
        moba_backend_description d = MOBA_BACKEND_DESCRIPTION_INIT;
        OK(moba_backend_info(i, &d));
        if (strcmp(d.name, "hip") != 0) continue;
        cr_assert(!d.usable);
        cr_assert_not_null(strstr(d.reason, reason), "'%s' does not say '%s'", d.reason, reason);
        return;
    }
    cr_assert_fail("there is no hip backend");
}

Test(hip_reasons, no_device) {
    setenv("FAKE_HIP_ARCHS", "", 1);
    expect_unusable("the HIP runtime finds no device");
}
Test(hip_reasons, no_device_by_error) {
    setenv("FAKE_HIP_FAIL", "hipGetDeviceCount=100", 1);
    expect_unusable("the HIP runtime finds no device");
}
/* What ROCm 5.2 answers on a machine without an AMD GPU. */
Test(hip_reasons, no_device_by_init) {
    setenv("FAKE_HIP_INIT", "101", 1);
    setenv("FAKE_HIP_FAIL", "hipGetDeviceCount=100", 1);
    expect_unusable("the HIP runtime finds no device");
}
Test(hip_reasons, no_device_file) {
    const bool open = access("/dev/kfd", R_OK | W_OK) == 0;
    setenv("FAKE_HIP_ARCHS", "", 1);
    expect_unusable(open ? "finds no device" : "finds no device; /dev/kfd cannot be opened: ");
}
Test(hip_reasons, unsupported_architecture) {
    setenv("FAKE_HIP_ARCHS", "gfx803", 1);
    expect_unusable("device 0 is a gfx803; this build has kernels for gfx");
}
Test(hip_reasons, init_fails) {
    setenv("FAKE_HIP_INIT", "101", 1);
    expect_unusable("the HIP runtime does not start: invalid device ordinal (error 101)");
}
Test(hip_reasons, init_and_count_fail) {
    setenv("FAKE_HIP_INIT", "3", 1);
    setenv("FAKE_HIP_FAIL", "hipGetDeviceCount=100", 1);
    expect_unusable("the HIP runtime does not start: an error of some kind (error 3)");
}

static moba_device_description describe(moba_context *context) {
    moba_device_description d = MOBA_DEVICE_DESCRIPTION_INIT;
    OK(moba_context_device(context, &d));
    return d;
}

Test(hip_devices, best_device_has_kernels) {
    setenv("FAKE_HIP_ARCHS", "gfx1036 gfx1100", 1);
    moba_context *context = open_hip();
    cr_assert_str_eq(describe(context).name, "Emulated GPU 1");
    cr_assert_str_eq(describe(context).driver, "HIP 6.1.40093, gfx1100");
    moba_context_destroy(context);
}
Test(hip_devices, device_without_kernels_is_refused) {
    setenv("FAKE_HIP_ARCHS", "gfx1036 gfx1100", 1);
    moba_context *context = NULL;
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "hip";
    options.device = 0;
    cr_assert_neq(moba_context_create(&options, &context), MOBA_OK);
    expect_sentence("HIP device 0 is a gfx1036, for which this build has no kernels");
}
Test(hip_devices, matrix_cores_by_architecture) {
    static const char *const archs[][2] = {{"gfx90a:sramecc+:xnack-", "mfma"}, {"gfx1100", "wmma"}};
    setenv("FAKE_HIP_ARCHS", "gfx90a:sramecc+:xnack- gfx1100", 1);
    for (int i = 0; i < 2; i++) {
        moba_context *context = NULL;
        moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
        options.backend = "hip";
        options.device = i;
        OK(moba_context_create(&options, &context));
        moba_device_description d = describe(context);
        cr_assert_not_null(strstr(d.capabilities, archs[i][1]), "%s: %s", archs[i][0], d.capabilities);
        cr_assert_eq(strstr(d.capabilities, "mfma") != NULL, i == 0);
        cr_assert_eq(strstr(d.capabilities, "wmma") != NULL, i == 1);
        moba_context_destroy(context);
    }
}

Test(hip_devices, adoption) {
    setenv("FAKE_HIP_ARCHS", "gfx90a gfx1100", 1);
    void *library = dlopen("libamdhip64.so.6", RTLD_NOW);
    int (*set_device)(int) = NULL, (*get_device)(int *) = NULL, current = -1;
    void *symbol = dlsym(library, "hipSetDevice");
    memcpy(&set_device, &symbol, sizeof symbol);
    symbol = dlsym(library, "hipGetDevice");
    memcpy(&get_device, &symbol, sizeof symbol);

    moba_hip_handles handles = MOBA_HIP_HANDLES_INIT;
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = "hip";
    options.native = &handles;
    set_device(1);
    OK(moba_context_create(&options, &context));
    cr_assert_str_eq(describe(context).name, "Emulated GPU 1");
    set_device(0);
    moba_buffer buffer;
    OK(moba_buffer_create(context, 100, &buffer));
    get_device(&current);
    cr_assert_eq(current, 0, "the caller's current device was changed to %d", current);
    moba_buffer_destroy(context, buffer);
    moba_context_destroy(context);

    handles.device = 1;
    options.device = 0;
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT);
    expect_sentence("moba_hip_handles.device means device 1, and the options name device 0");
    options.device = -1;
    handles.device = 2;
    cr_assert_eq(moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT);
    expect_sentence("device is 2; HIP has devices 0..1");
}

/* --------------------------------------------------------------------------------------------------- runs -- */

enum { ROWS = 40, HEADS = 2, DIM = 16, ELEMENTS = ROWS * HEADS * DIM };

typedef struct attention {
    moba_context *context;
    moba_plan *plan;
    moba_stream stream;
    moba_forward_args args;
    moba_buffer q, k, v, o, workspace;
    /* of begin_gradients() alone */
    moba_backward_args back;
    moba_buffer lse, saved, dout, dq, dk, dv;
} attention;

/** ELEMENTS numbers of f32 or bf16, in a buffer with room for f32. */
static moba_buffer filled(moba_context *context, moba_dtype dtype, uint32_t seed) {
    float data[ELEMENTS];
    uint16_t narrow[ELEMENTS];
    moba_buffer b;
    for (int i = 0; i < ELEMENTS; i++) {
        seed = seed * 1664525u + 1013904223u;
        data[i] = (float)(int32_t)seed * 0x1p-31f;
        uint32_t bits;
        memcpy(&bits, &data[i], sizeof bits);
        narrow[i] = (uint16_t)(bits >> 16);
    }
    OK(moba_buffer_create(context, sizeof data, &b));
    if (dtype == MOBA_F32)
        OK(moba_buffer_write(context, (moba_stream){NULL}, b, data, sizeof data));
    else
        OK(moba_buffer_write(context, (moba_stream){NULL}, b, narrow, sizeof narrow));
    return b;
}

static moba_tensor tensor(moba_buffer b) {
    return (moba_tensor){.buffer = b, .token_stride = HEADS * DIM, .head_stride = DIM, .batch_stride = 0};
}

static attention begin_with(moba_dtype dtype) {
    attention a;
    memset(&a, 0, sizeof a);
    a.context = open_hip();
    moba_problem problem = MOBA_PROBLEM_INIT;
    problem.dtype = dtype;
    problem.n_q_heads = problem.n_kv_heads = HEADS;
    problem.head_dim = DIM;
    problem.block_size = 16;
    problem.top_k = 2;
    problem.causal = 1;
    problem.max_batch = 1;
    problem.max_total_q = problem.max_total_k = problem.max_seqlen_q = problem.max_seqlen_k = ROWS;
    OK(moba_plan_create(a.context, &problem, &a.plan));
    size_t bytes = 0;
    OK(moba_plan_workspace(a.plan, &bytes));
    OK(moba_buffer_create(a.context, bytes, &a.workspace));
    OK(moba_stream_create(a.context, &a.stream));
    a.q = filled(a.context, dtype, 1);
    a.k = filled(a.context, dtype, 2);
    a.v = filled(a.context, dtype, 3);
    a.o = filled(a.context, dtype, 4);
    a.args = (moba_forward_args)MOBA_FORWARD_ARGS_INIT;
    a.args.in.q = tensor(a.q);
    a.args.in.k = tensor(a.k);
    a.args.in.v = tensor(a.v);
    a.args.in.batch = 1;
    a.args.in.total_q = a.args.in.total_k = ROWS;
    a.args.o = tensor(a.o);
    a.args.workspace = a.workspace;
    a.args.workspace_bytes = bytes;
    return a;
}

static attention begin(void) { return begin_with(MOBA_F32); }

/** With a backward too. */
static attention begin_gradients(moba_dtype dtype) {
    attention a = begin_with(dtype);
    size_t bytes = 0;
    OK(moba_plan_saved(a.plan, &bytes));
    OK(moba_buffer_create(a.context, bytes, &a.saved));
    OK(moba_buffer_create(a.context, ROWS * HEADS * sizeof(float), &a.lse));
    a.dout = filled(a.context, dtype, 5);
    a.dq = filled(a.context, dtype, 6);
    a.dk = filled(a.context, dtype, 7);
    a.dv = filled(a.context, dtype, 8);
    a.args.lse = a.lse;
    a.args.saved = a.saved;
    a.args.saved_bytes = bytes;
    a.back = (moba_backward_args)MOBA_BACKWARD_ARGS_INIT;
    a.back.in = a.args.in;
    a.back.o = a.args.o;
    a.back.lse = a.lse;
    a.back.dout = tensor(a.dout);
    a.back.saved = a.saved;
    a.back.saved_bytes = bytes;
    a.back.dq = tensor(a.dq);
    a.back.dk = tensor(a.dk);
    a.back.dv = tensor(a.dv);
    a.back.workspace = a.workspace;
    a.back.workspace_bytes = a.args.workspace_bytes;
    return a;
}

static void end_gradients(attention *a) {
    moba_buffer_destroy(a->context, a->lse);
    moba_buffer_destroy(a->context, a->saved);
    moba_buffer_destroy(a->context, a->dout);
    moba_buffer_destroy(a->context, a->dq);
    moba_buffer_destroy(a->context, a->dk);
    moba_buffer_destroy(a->context, a->dv);
}

static void end(attention *a) {
    moba_buffer_destroy(a->context, a->q);
    moba_buffer_destroy(a->context, a->k);
    moba_buffer_destroy(a->context, a->v);
    moba_buffer_destroy(a->context, a->o);
    moba_buffer_destroy(a->context, a->workspace);
    moba_stream_destroy(a->context, a->stream);
    moba_plan_destroy(a->plan);
    moba_context_destroy(a->context);
}

typedef struct graph_calls {
    int (*begin_capture)(void *, int), (*end_capture)(void *, void **), (*launch)(void *, void *), (*destroy)(void *);
} graph_calls;

static graph_calls find_graph_calls(void) {
    graph_calls calls;
    void *library = dlopen("libamdhip64.so.6", RTLD_NOW);
    void *symbols[] = {dlsym(library, "hipStreamBeginCapture"), dlsym(library, "hipStreamEndCapture"),
                       dlsym(library, "hipGraphLaunch"), dlsym(library, "hipGraphDestroy")};
    memcpy(&calls.begin_capture, &symbols[0], sizeof(void *));
    memcpy(&calls.end_capture, &symbols[1], sizeof(void *));
    memcpy(&calls.launch, &symbols[2], sizeof(void *));
    memcpy(&calls.destroy, &symbols[3], sizeof(void *));
    return calls;
}

typedef struct results {
    float o[ELEMENTS], dq[ELEMENTS], dk[ELEMENTS], dv[ELEMENTS];
} results;

static void read_results(attention *a, results *to) {
    OK(moba_buffer_read(a->context, a->stream, a->o, to->o, sizeof to->o));
    OK(moba_buffer_read(a->context, a->stream, a->dq, to->dq, sizeof to->dq));
    OK(moba_buffer_read(a->context, a->stream, a->dk, to->dk, sizeof to->dk));
    OK(moba_buffer_read(a->context, a->stream, a->dv, to->dv, sizeof to->dv));
}

/** Forward and backward run, then both captured in one graph: capturing runs nothing, launching the graph repeats the
 * results to the bit. */
static void expect_graph_repeats(moba_dtype dtype) {
    attention a = begin_gradients(dtype);
    static results first, second;
    OK(moba_forward(a.plan, a.stream, &a.args));
    OK(moba_backward(a.plan, a.stream, &a.back));
    read_results(&a, &first);

    const moba_buffer outputs[] = {a.o, a.dq, a.dk, a.dv};
    for (int i = 0; i < 4; i++)
        OK(moba_buffer_fill(a.context, a.stream, outputs[i], 0xff, ELEMENTS * (dtype == MOBA_F32 ? 4 : 2)));
    OK(moba_buffer_fill(a.context, a.stream, a.workspace, 0xff, a.args.workspace_bytes));
    OK(moba_buffer_fill(a.context, a.stream, a.saved, 0xff, a.args.saved_bytes));
    const graph_calls calls = find_graph_calls();
    void *graph = NULL;
    cr_assert_eq(calls.begin_capture(a.stream.native, 0), 0);
    /* these allocate and wait for nothing, or capture would refuse it */
    OK(moba_forward(a.plan, a.stream, &a.args));
    OK(moba_backward(a.plan, a.stream, &a.back));
    cr_assert_eq(moba_stream_synchronize(a.context, a.stream), MOBA_ERROR_CAPTURE);
    cr_assert_eq(calls.end_capture(a.stream.native, &graph), 0);
    read_results(&a, &second);
    cr_assert_neq(memcmp(first.o, second.o, sizeof first.o), 0, "capturing ran the forward");
    cr_assert_neq(memcmp(first.dv, second.dv, sizeof first.dv), 0, "capturing ran the backward");
    cr_assert_eq(calls.launch(graph, a.stream.native), 0);
    read_results(&a, &second);
    cr_assert_eq(memcmp(&first, &second, sizeof first), 0);
    cr_assert_eq(calls.destroy(graph), 0);
    end_gradients(&a);
    end(&a);
}

Test(hip_runs, a_graph_repeats_generated_kernels) { expect_graph_repeats(MOBA_F32); }
Test(hip_runs, a_graph_repeats_matrix_kernels) {
    setenv("MOBA_KERNEL", "attend=*mfma*,gate=*mfma*", 1);
    expect_graph_repeats(MOBA_BF16);
}

Test(hip_runs, faults_lose_the_device) {
    attention a = begin();
    a.args.o.head_stride = (int64_t)1 << 30; /* legal to ask for; the tensor is not that large */
    OK(moba_forward(a.plan, a.stream, &a.args));
    cr_assert_eq(moba_stream_synchronize(a.context, a.stream), MOBA_ERROR_DEVICE_LOST);
    expect_sentence("unspecified launch failure (hipErrorLaunchFailure, 719)");
}

Test(hip_runs, errors_are_mapped) {
    attention a = begin();
    moba_buffer b;
    cr_assert_eq(moba_buffer_create(a.context, (size_t)1 << 40, &b), MOBA_ERROR_OUT_OF_MEMORY);
    expect_sentence("1099511627776 bytes of device memory were asked for");
    setenv("FAKE_HIP_FAIL", "hipModuleLaunchKernel=1", 1);
    cr_assert_eq(moba_forward(a.plan, a.stream, &a.args), MOBA_ERROR_LAUNCH_FAILED);
    expect_sentence("HIP could not launch moba_");
    setenv("FAKE_HIP_FAIL", "hipModuleLaunchKernel=906", 1);
    cr_assert_eq(moba_forward(a.plan, a.stream, &a.args), MOBA_ERROR_CAPTURE);
    setenv("FAKE_HIP_FAIL", "hipStreamSynchronize=400", 1);
    cr_assert_eq(moba_stream_synchronize(a.context, a.stream), MOBA_ERROR_WRONG_CONTEXT);
    setenv("FAKE_HIP_FAIL", "hipSetDevice=101", 1);
    cr_assert_eq(moba_forward(a.plan, a.stream, &a.args), MOBA_ERROR_LAUNCH_FAILED);
    expect_sentence("HIP could not make the device current: invalid device ordinal");
    unsetenv("FAKE_HIP_FAIL");
    OK(moba_forward(a.plan, a.stream, &a.args));
    OK(moba_stream_synchronize(a.context, a.stream));
    end(&a);
}

Test(hip_runs, a_module_that_does_not_load) {
    setenv("FAKE_HIP_FAIL", "hipModuleLoadData=209", 1);
    moba_context *context = open_hip();
    moba_problem problem = MOBA_PROBLEM_INIT;
    moba_plan *plan = NULL;
    problem.dtype = MOBA_F32;
    problem.n_q_heads = problem.n_kv_heads = 1;
    problem.head_dim = problem.block_size = 16;
    problem.top_k = 1;
    problem.max_batch = 1;
    problem.max_total_q = problem.max_total_k = problem.max_seqlen_q = problem.max_seqlen_k = 32;
    cr_assert_eq(moba_plan_create(context, &problem, &plan), MOBA_ERROR_UNSUPPORTED);
    expect_sentence("HIP could not load the gfx90a kernels");
    moba_context_destroy(context);
}

/* As PyTorch would call: a context of the current device, memory and a stream that the caller made with HIP. */
Test(hip_runs, memory_and_stream_of_the_caller) {
    attention a = begin();
    float ours[ELEMENTS], callers[ELEMENTS];
    OK(moba_forward(a.plan, a.stream, &a.args));
    OK(moba_buffer_read(a.context, a.stream, a.o, ours, sizeof ours));

    void *library = dlopen("libamdhip64.so.6", RTLD_NOW), *memory = NULL;
    void *symbols[] = {dlsym(library, "hipMalloc"), dlsym(library, "hipStreamCreateWithFlags"),
                       dlsym(library, "hipMemcpyDtoHAsync")};
    int (*allocate)(void **, size_t) = NULL, (*create)(void **, unsigned) = NULL,
                             (*copy)(void *, void *, size_t, void *) = NULL;
    memcpy(&allocate, &symbols[0], sizeof(void *));
    memcpy(&create, &symbols[1], sizeof(void *));
    memcpy(&copy, &symbols[2], sizeof(void *));
    moba_stream stream;
    cr_assert_eq(allocate(&memory, sizeof callers), 0);
    cr_assert_eq(create(&stream.native, 0), 0);
    a.args.o = tensor((moba_buffer){.handle = (uintptr_t)memory, .offset = 0});
    OK(moba_forward(a.plan, stream, &a.args));
    cr_assert_eq(copy(callers, memory, sizeof callers, stream.native), 0);
    cr_assert_eq(memcmp(ours, callers, sizeof ours), 0);
    end(&a);
}

Test(hip_runs, streams_of_another_device) {
    setenv("FAKE_HIP_ARCHS", "gfx90a gfx1100", 1);
    attention a = begin();
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *other = NULL;
    moba_stream stream;
    options.backend = "hip";
    options.device = 1;
    OK(moba_context_create(&options, &other));
    OK(moba_stream_create(other, &stream));
    cr_assert_eq(moba_forward(a.plan, stream, &a.args), MOBA_ERROR_WRONG_CONTEXT);
    expect_sentence("belongs to HIP device 1; this moba_context runs on device 0");
    moba_stream_destroy(other, stream);
    moba_context_destroy(other);
    end(&a);
}
