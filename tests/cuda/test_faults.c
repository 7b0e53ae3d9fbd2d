/* SPDX-License-Identifier: Apache-2.0
 *
 * What can go wrong between the CUDA backend and its driver, played by fake_device.c: each a status and a sentence, and
 * where the device is still there the next run succeeds. And what a run asks of the driver: launches and nothing that
 * allocates, waits or reads back.
 */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moba/moba_cuda.h"

enum { TOKENS = 2048, Q_HEADS = 8, KV_HEADS = 4, HEAD_DIM = 128, N_TENSORS = 8 };

static int failed;
static void (*fail_calls)(const char *, int, int);
static int (*other_calls)(void);
static int (*context_push)(void *);
static int (*context_pop)(void **);
static int (*primary_retain)(void **, int);

#define COMPLAIN(...) (failed = 1, fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))

/** `status` is `wanted`, and the last error has all of `words`, which are separated by '|'. */
static void expect(const char *what, moba_status status, moba_status wanted, const char *words) {
    char copy[400];
    snprintf(copy, sizeof copy, "%s", words);
    if (status != wanted) COMPLAIN("%s: %s, wanted %s", what, moba_status_name(status), moba_status_name(wanted));
    for (char *save = NULL, *word = strtok_r(copy, "|", &save); word; word = strtok_r(NULL, "|", &save))
        if (!strstr(moba_last_error(), word)) COMPLAIN("%s: no \"%s\" in: %s", what, word, moba_last_error());
}

static void expect_ok(const char *what, moba_status status) {
    if (status != MOBA_OK) COMPLAIN("%s: %s: %s", what, moba_status_name(status), moba_last_error());
}

static void look_up(void *library, const char *name, void *member) {
    void *symbol = dlsym(library, name);
    if (!symbol) COMPLAIN("the driver of the test has no %s", name);
    memcpy(member, &symbol, sizeof symbol);
}

static moba_problem problem(void) {
    moba_problem p = MOBA_PROBLEM_INIT;
    p.dtype = MOBA_BF16;
    p.n_q_heads = Q_HEADS;
    p.n_kv_heads = KV_HEADS;
    p.head_dim = HEAD_DIM;
    p.max_total_q = p.max_total_k = TOKENS;
    return p;
}

static moba_context *open_context(const char *mask) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    setenv("MOBA_CAPS_MASK", mask, 1);
    options.backend = "cuda";
    options.device = 0;
    expect_ok("a context", moba_context_create(&options, &context));
    return context;
}

/** A plan with the arguments of its passes; nothing computes, so no tensor has memory. */
typedef struct job {
    moba_plan *plan;
    moba_forward_args forward;
    moba_backward_args backward;
} job;

static job open_job(moba_context *context, const moba_problem *p) {
    static const moba_buffer far = {(uint64_t)1 << 40, 0};
    job j = {NULL, MOBA_FORWARD_ARGS_INIT, MOBA_BACKWARD_ARGS_INIT};
    expect_ok("a plan", moba_plan_create(context, p, &j.plan));
    moba_tensor t[N_TENSORS]; /* q, o, dout, dq, k, v, dk, dv */
    for (int i = 0; i < N_TENSORS; i++) {
        const int64_t heads = i < 4 ? Q_HEADS : KV_HEADS;
        t[i] = (moba_tensor){{((uint64_t)i + 2) << 40, 0}, heads * HEAD_DIM, HEAD_DIM, 0};
    }
    const moba_inputs in = {.q = t[0], .k = t[4], .v = t[5], .batch = 1, .total_q = TOKENS, .total_k = TOKENS};
    j.forward.in = j.backward.in = in;
    j.forward.o = j.backward.o = t[1];
    j.backward.dout = t[2];
    j.backward.dq = t[3];
    j.backward.dk = t[6];
    j.backward.dv = t[7];
    j.forward.lse = j.backward.lse = (moba_buffer){far.handle >> 1, 0};
    j.forward.saved = j.backward.saved = (moba_buffer){far.handle >> 2, 0};
    j.forward.workspace = j.backward.workspace = (moba_buffer){far.handle >> 3, 0};
    expect_ok("workspace", moba_plan_workspace(j.plan, &j.forward.workspace_bytes));
    expect_ok("saved", moba_plan_saved(j.plan, &j.forward.saved_bytes));
    j.backward.workspace_bytes = j.forward.workspace_bytes;
    j.backward.saved_bytes = j.forward.saved_bytes;
    return j;
}

static moba_status run(const job *j, void *stream) { return moba_forward(j->plan, (moba_stream){stream}, &j->forward); }

/* ------------------------------------------------------------------------------------------------- tests -- */

/** Both passes, of the sm_90a kernels and of the generated ones, in one slice and in many. */
static void check_calls_of_a_run(void) {
    static const char *const masks[] = {"", "-wgmma", "-wgmma,-mma"};
    static const uint64_t limits[] = {MOBA_WORKSPACE_UNLIMITED, 24 << 20};
    for (int i = 0; i < 6; i++) {
        moba_context *context = open_context(masks[i / 2]);
        moba_problem p = problem();
        p.workspace_limit = limits[i % 2];
        const job j = open_job(context, &p);
        const int before = other_calls();
        expect_ok("a forward", run(&j, NULL));
        expect_ok("a backward", moba_backward(j.plan, (moba_stream){NULL}, &j.backward));
        if (other_calls() != before)
            COMPLAIN("mask '%s': runs made %d calls that allocate, wait or read", masks[i / 2], other_calls() - before);
        moba_plan_destroy(j.plan);
        moba_context_destroy(context);
    }
}

static void check_contexts(void) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_cuda_handles handles = MOBA_CUDA_HANDLES_INIT;
    moba_context *context = NULL;
    options.backend = "cuda";
    options.native = &handles;
    primary_retain(&handles.context, 1);
    options.device = 0;
    expect("a context of another device", moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT,
           "belongs to device 1|name device 0");
    options.device = 1;
    expect_ok("the context's own device", moba_context_create(&options, &context));
    moba_context_destroy(context);
    options.device = -1;
    expect_ok("the context alone", moba_context_create(&options, &context));
    moba_context_destroy(context);

    void *given = handles.context;
    handles.context = NULL;
    expect("no current context", moba_context_create(&options, &context), MOBA_ERROR_INVALID_ARGUMENT,
           "handles.context is NULL|no current CUDA context");
    context_push(given);
    expect_ok("the current context", moba_context_create(&options, &context));
    moba_context_destroy(context);
    context_pop(&given);
    options.native = NULL;
    options.device = 2;
    moba_status status = moba_context_create(&options, &context);
    if (status == MOBA_OK) COMPLAIN("device 2 of 2 was opened");
    expect("device 2 of 2", status, status, "2");
}

static void check_streams(const job *j) {
    void *own = NULL, *other = NULL, *none = NULL;
    primary_retain(&own, 0);
    primary_retain(&other, 1);
    expect_ok("a stream of the context", run(j, &own));
    expect("a stream of another context", run(j, &other), MOBA_ERROR_WRONG_CONTEXT, "belongs to CUDA context|device 0");
    expect("a destroyed stream", run(j, &none), MOBA_ERROR_WRONG_CONTEXT, "not a CUDA stream, or was destroyed");
    expect_ok("a stream of the context, later", run(j, &own));
}

static void check_memory(moba_context *context) {
    moba_buffer buffer = MOBA_BUFFER_NULL;
    fail_calls("cuMemAlloc_v2", 2, 1);
    expect("no device memory", moba_buffer_create(context, 12345, &buffer), MOBA_ERROR_OUT_OF_MEMORY,
           "12345 bytes of device memory|1073741824 of 17179869184 are free");
    expect_ok("memory, later", moba_buffer_create(context, 12345, &buffer));
    moba_buffer_destroy(context, buffer);
}

/** Kernels are loaded by the first plan that takes them: a context of its own for each. */
static void check_loading(void) {
    static const struct {
        const char *symbol;
        int result;
        moba_status status;
        const char *words;
    } faults[] = {
        {"cuModuleLoadData", 2, MOBA_ERROR_OUT_OF_MEMORY, "load the|kernels"},
        {"cuModuleLoadData", 209, MOBA_ERROR_UNSUPPORTED, "load the|the installed one is CUDA 99.2|needs a newer one"},
        {"cuModuleLoadData", 222, MOBA_ERROR_UNSUPPORTED, "load the|needs a newer one"},
        {"cuModuleGetFunction", 500, MOBA_ERROR_LAUNCH_FAILED, "find the kernel"},
        {"cuFuncSetAttribute", 1, MOBA_ERROR_LAUNCH_FAILED, "bytes of shared memory"},
        {"cuCtxPushCurrent_v2", 709, MOBA_ERROR_DEVICE_LOST, "every later call in this process"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        moba_context *context = open_context("");
        const moba_problem p = problem();
        moba_plan *plan = NULL;
        fail_calls(faults[i].symbol, faults[i].result, 1);
        expect(faults[i].symbol, moba_plan_create(context, &p, &plan), faults[i].status, faults[i].words);
        if (plan) COMPLAIN("%s: a refused plan was handed out", faults[i].symbol);
        expect_ok("the same plan, later", moba_plan_create(context, &p, &plan));
        moba_plan_destroy(plan);
        moba_context_destroy(context);
    }
}

/** Each launch of a forward in turn fails once. */
static void check_launches(moba_context *context, const job *j) {
    static const int sticky[] = {700, 702, 710, 714, 715, 716, 717, 718, 719};
    fail_calls("cuLaunchKernel", 2, 1);
    expect("a launch without memory", run(j, NULL), MOBA_ERROR_OUT_OF_MEMORY, "CUDA could not launch|on a grid of");
    fail_calls("cuLaunchKernel", 901, 1);
    expect("a launch in a capture", run(j, NULL), MOBA_ERROR_CAPTURE, "while the stream is being captured");
    fail_calls("cuLaunchKernel", 1, 1);
    expect("a launch of wrong values", run(j, NULL), MOBA_ERROR_LAUNCH_FAILED, "CUDA could not launch");
    expect_ok("a forward, later", run(j, NULL));
    for (size_t i = 0; i < sizeof sticky / sizeof *sticky; i++) {
        fail_calls("cuLaunchKernel", sticky[i], 2);
        for (int again = 0; again < 2; again++)
            expect("a lost device", run(j, NULL), MOBA_ERROR_DEVICE_LOST,
                   "the error stays with the device's CUDA context|every later call in this process will fail too");
    }
    fail_calls("cuStreamSynchronize", 719, 1);
    expect("a wait", moba_stream_synchronize(context, (moba_stream){NULL}), MOBA_ERROR_DEVICE_LOST,
           "finish the stream's work|every later call");
    fail_calls("cuMemsetD8Async", 719, 1);
    expect("a backward", moba_backward(j->plan, (moba_stream){NULL}, &j->backward), MOBA_ERROR_DEVICE_LOST,
           "every later call");
}

int main(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
        COMPLAIN("no driver: %s", dlerror());
        return 1;
    }
    look_up(library, "fake_cuda_fail", &fail_calls);
    look_up(library, "fake_cuda_other_calls", &other_calls);
    look_up(library, "cuCtxPushCurrent_v2", &context_push);
    look_up(library, "cuCtxPopCurrent_v2", &context_pop);
    look_up(library, "cuDevicePrimaryCtxRetain", &primary_retain);
    if (failed) return 1;
    setenv("FAKE_CUDA_DEVICE", "90 232448", 1);
    check_calls_of_a_run();
    check_contexts();
    check_loading();
    moba_context *context = open_context("");
    const moba_problem p = problem();
    const job j = open_job(context, &p);
    check_streams(&j);
    check_memory(context);
    check_launches(context, &j);
    moba_plan_destroy(j.plan);
    moba_context_destroy(context);
    return failed;
}
