/* SPDX-License-Identifier: Apache-2.0
 *
 * Each kind of call into the driver fails in turn, at its first, second and last place: a status and a sentence, no
 * crash, and unless the device is lost the same context then gives the same bits as before. MOBA_TEST_BACKENDS names
 * the backend; its loader is one that fails on demand (faults.h).
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moba/moba.h"
#define FAULTS_TEST
#include "faults.h"

enum { ROWS = 40, DIM = 16, BYTES = ROWS * DIM * 4, N_BUFFERS = 4 };
static const moba_stream no_stream = {NULL};
static fault_arm_function *arm;
static fault_call_function *call_name;
static const char *backend;

static int n_bad;

#define EXPECT(condition, ...)                                                                                         \
    do {                                                                                                               \
        if (condition) break;                                                                                          \
        n_bad++;                                                                                                       \
        fprintf(stderr, "FAILED: " __VA_ARGS__);                                                                       \
        fputc('\n', stderr);                                                                                           \
    } while (0)
#define REQUIRE(condition, ...)                                                                                        \
    do {                                                                                                               \
        EXPECT(condition, __VA_ARGS__);                                                                                \
        if (n_bad) exit(1);                                                                                            \
    } while (0)

/** What a run has open. */
typedef struct run {
    moba_context *context;
    moba_plan *plan;
    moba_buffer q, o, lse, workspace;
    moba_event begin, end;
    bool has[N_BUFFERS], has_begin, has_end;
    unsigned char result[BYTES];
} run;

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        moba_status try_status = (call);                                                                               \
        if (try_status != MOBA_OK) return try_status;                                                                  \
    } while (0)

static moba_status make(run *r, int i, moba_buffer *b, size_t bytes) {
    moba_status status = moba_buffer_create(r->context, bytes, b);
    r->has[i] = status == MOBA_OK;
    return status;
}

/** Everything after the context: a plan, buffers, a forward between two events, the result. */
static moba_status go(run *r) {
    static float data[ROWS * DIM];
    moba_problem p = MOBA_PROBLEM_INIT;
    moba_forward_args f = MOBA_FORWARD_ARGS_INIT;
    double ms;
    p.n_q_heads = p.n_kv_heads = 1;
    p.head_dim = p.block_size = DIM;
    p.top_k = 2;
    p.inference = 1;
    p.max_total_q = p.max_total_k = ROWS;
    for (int i = 0; i < ROWS * DIM; i++)
        data[i] = (float)(i * 7 % 31) * 0.05f;
    TRY(moba_plan_create(r->context, &p, &r->plan));
    TRY(moba_plan_workspace(r->plan, &f.workspace_bytes));
    TRY(make(r, 0, &r->q, BYTES));
    TRY(make(r, 1, &r->o, BYTES));
    TRY(make(r, 2, &r->lse, ROWS * 4));
    TRY(make(r, 3, &r->workspace, f.workspace_bytes));
    TRY(moba_buffer_write(r->context, no_stream, r->q, data, BYTES));
    TRY(moba_buffer_fill(r->context, no_stream, r->o, 0xff, BYTES));
    const moba_tensor q = {r->q, DIM, DIM, 0}, o = {r->o, DIM, DIM, 0};
    f.in.q = f.in.k = f.in.v = q;
    f.in.batch = 1;
    f.in.total_q = f.in.total_k = ROWS;
    f.o = o;
    f.lse = r->lse;
    f.workspace = r->workspace;
    TRY(moba_event_create(r->context, &r->begin));
    r->has_begin = true;
    TRY(moba_event_create(r->context, &r->end));
    r->has_end = true;
    TRY(moba_event_record(r->context, no_stream, r->begin));
    TRY(moba_forward(r->plan, no_stream, &f));
    TRY(moba_event_record(r->context, no_stream, r->end));
    TRY(moba_stream_synchronize(r->context, no_stream));
    TRY(moba_event_elapsed(r->context, r->begin, r->end, &ms));
    return moba_buffer_read(r->context, no_stream, r->o, r->result, BYTES);
}

/** Gives back what go() made, once nothing uses it any more; the context stays. */
static void drop(run *r) {
    moba_buffer *all[N_BUFFERS] = {&r->q, &r->o, &r->lse, &r->workspace};
    moba_status idle = moba_stream_synchronize(r->context, no_stream);
    EXPECT(idle == MOBA_OK, "waiting for what was enqueued: %s", moba_last_error());
    if (r->has_begin) moba_event_destroy(r->context, r->begin);
    if (r->has_end) moba_event_destroy(r->context, r->end);
    r->has_begin = r->has_end = false;
    for (int i = 0; i < N_BUFFERS; i++) {
        if (r->has[i]) moba_buffer_destroy(r->context, *all[i]);
        r->has[i] = false;
    }
    moba_plan_destroy(r->plan);
    r->plan = NULL;
}

static moba_status open_context(run *r) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = backend;
    return moba_context_create(&options, &r->context);
}

typedef struct fault {
    int code;
    moba_status status;
} fault;

/** Fails call `at`, named `name`; true when the library told so. */
static bool check(int at, const char *name, const fault *f, const unsigned char *expected) {
    run r;
    memset(&r, 0, sizeof r);
    arm(at, f->code);
    moba_status status = open_context(&r);
    if (status == MOBA_OK) status = go(&r);
    bool told = status != MOBA_OK;
    bool right = !told || status == f->status || (!r.context && status == MOBA_ERROR_BACKEND_UNAVAILABLE);
    EXPECT(right, "%s (call %d) gives %d: %s: %s", name, at, f->code, moba_status_name(status), moba_last_error());
    EXPECT(!told || strlen(moba_last_error()) > 20, "%s: '%s'", name, moba_last_error());
    EXPECT(told || memcmp(r.result, expected, BYTES) == 0, "%s (call %d) changes the result", name, at);
    arm(-1, 0);
    if (!r.context) return told;
    drop(&r);
    if (f->status != MOBA_ERROR_DEVICE_LOST) {
        moba_status again = go(&r);
        EXPECT(again == MOBA_OK, "after %s (call %d): %s", name, at, moba_last_error());
        EXPECT(again != MOBA_OK || memcmp(r.result, expected, BYTES) == 0, "after %s (call %d)", name, at);
        drop(&r);
    }
    moba_context_destroy(r.context);
    return told;
}

static void check_all(const char *library, const fault *faults, int n_faults) {
    void *loader = dlopen(library, RTLD_NOW);
    void *symbols[2] = {loader ? dlsym(loader, "fault_arm") : NULL, loader ? dlsym(loader, "fault_call") : NULL};
    REQUIRE(symbols[0] && symbols[1], "%s is not the one that fails on demand", library);
    memcpy(&arm, &symbols[0], sizeof arm);
    memcpy(&call_name, &symbols[1], sizeof call_name);
    run r;
    memset(&r, 0, sizeof r);
    moba_status status = open_context(&r); /* probes */
    REQUIRE(status == MOBA_OK, "%s", moba_last_error());
    moba_context_destroy(r.context);
    arm(-1, 0);
    status = open_context(&r);
    if (status == MOBA_OK) status = go(&r);
    REQUIRE(status == MOBA_OK, "%s", moba_last_error());
    unsigned char expected[BYTES];
    memcpy(expected, r.result, BYTES);
    static const char *names[FAULT_MAX_CALLS];
    int n = 0, n_failed = 0, n_told = 0;
    while (n < FAULT_MAX_CALLS && (names[n] = call_name(n)) != NULL)
        n++;
    drop(&r);
    moba_context_destroy(r.context);
    REQUIRE(n > 40 && n < FAULT_MAX_CALLS, "%d calls", n);
    for (int i = 0; i < n; i++) {
        int before = 0, behind = 0;
        for (int x = 0; x < n; x++) {
            if (strcmp(names[x], names[i]) != 0) continue;
            before += x < i;
            behind += x > i;
        }
        if (before > 1 && behind > 0) continue;
        if (getenv("MOBA_TEST_TRACE")) fprintf(stderr, "call %d: %s\n", i, names[i]);
        for (int x = 0; x < n_faults; x++) {
            n_failed++;
            n_told += check(i, names[i], &faults[x], expected);
        }
    }
    /* A cache that cannot be made or read costs time alone. */
    EXPECT(n_told * 10 >= n_failed * 9, "%d of %d failures were told", n_told, n_failed);
    printf("%d of %d failures, in %d calls, were told\n", n_told, n_failed, n);
}

int main(void) {
    static const fault vulkan[] = {{-2 /* VK_ERROR_OUT_OF_DEVICE_MEMORY */, MOBA_ERROR_OUT_OF_MEMORY},
                                   {-4 /* VK_ERROR_DEVICE_LOST */, MOBA_ERROR_DEVICE_LOST}};
    static const fault opencl[] = {{-4 /* CL_MEM_OBJECT_ALLOCATION_FAILURE */, MOBA_ERROR_OUT_OF_MEMORY},
                                   {-2 /* CL_DEVICE_NOT_AVAILABLE */, MOBA_ERROR_DEVICE_LOST}};
    backend = getenv("MOBA_TEST_BACKENDS");
    unsetenv("MOBA_CACHE_DIR");
    if (backend && strcmp(backend, "vulkan") == 0)
        check_all("libvulkan.so.1", vulkan, 2);
    else if (backend && strcmp(backend, "opencl") == 0)
        check_all("libOpenCL.so.1", opencl, 2);
    else
        EXPECT(false, "MOBA_TEST_BACKENDS is neither vulkan nor opencl");
    printf("%d complaints\n", n_bad);
    return n_bad > 0;
}
