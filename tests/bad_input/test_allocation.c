/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory and threads that cannot be had, at every place in turn. The linker puts this file between the library and its
 * allocation functions. A scenario (context, plan, buffers, runs) is repeated with the n-th allocation refused, for n
 * from 1 until it is not reached: each time the call that failed must return a status and a sentence, whatever was
 * created must be destroyed without a leak, and the scenario must pass afterwards.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moba/moba.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **out, size_t alignment, size_t size);
void __real_free(void *p);
int __real_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*function)(void *), void *argument);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **out, size_t alignment, size_t size);
void __wrap_free(void *p);
int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*function)(void *), void *argument);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long n_calls, fail_at, n_live; /* fail_at 0: none */

/* Counts one request; true when it is to be refused. */
static bool refuse(void) {
    pthread_mutex_lock(&lock);
    bool refused = ++n_calls == fail_at;
    pthread_mutex_unlock(&lock);
    return refused;
}

static void *counted(void *p) {
    pthread_mutex_lock(&lock);
    n_live += p != NULL;
    pthread_mutex_unlock(&lock);
    return p;
}

void *__wrap_malloc(size_t size) { return refuse() ? NULL : counted(__real_malloc(size)); }
void *__wrap_calloc(size_t n, size_t size) { return refuse() ? NULL : counted(__real_calloc(n, size)); }
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return refuse() ? NULL : counted(__real_aligned_alloc(alignment, size));
}

void *__wrap_realloc(void *old, size_t size) {
    if (refuse()) return NULL;
    void *p = __real_realloc(old, size);
    return old == NULL ? counted(p) : p;
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t size) {
    if (refuse()) return ENOMEM;
    int result = __real_posix_memalign(out, alignment, size);
    if (result == 0) counted(*out);
    return result;
}

void __wrap_free(void *p) {
    pthread_mutex_lock(&lock);
    n_live -= p != NULL;
    pthread_mutex_unlock(&lock);
    __real_free(p);
}

int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*function)(void *), void *argument) {
    return refuse() ? EAGAIN : __real_pthread_create(out, attributes, function, argument);
}

/* ----------------------------------------------------------------------------------------------- scenario -- */

enum { ROWS = 70, HEADS = 4, KV_HEADS = 2, DIM = 32, TOP_K = 3, N_BUFFERS = 15 };

static int n_bad;

static void complain(const char *what, moba_status status) {
    n_bad++;
    fprintf(stderr, "refused allocation %ld: %s: %s: \"%s\"\n", fail_at, what, moba_status_name(status),
            moba_last_error());
}

/* True when the scenario may go on. A failure must be OUT_OF_MEMORY with a sentence, and only when one was provoked. */
static bool fine(const char *what, moba_status status) {
    if (status == MOBA_OK) return true;
    if (status != MOBA_ERROR_OUT_OF_MEMORY || moba_last_error()[0] == '\0' || fail_at == 0) complain(what, status);
    return false;
}

static moba_tensor tensor(moba_buffer b, int64_t heads) {
    moba_tensor t = {b, heads * DIM, DIM, ROWS * heads * DIM};
    return t;
}

static bool run(moba_context *context, const moba_plan *plan, const moba_buffer *b, const size_t *bytes) {
    moba_stream stream = {NULL};
    static const int32_t cu[] = {0, 50, ROWS};
    bool ok = fine("write", moba_buffer_write(context, stream, b[11], cu, sizeof cu));
    for (int i = 0; i < 3 && ok; i++)
        ok = fine("fill", moba_buffer_fill(context, stream, b[i], 0, bytes[i]));
    moba_forward_args f = MOBA_FORWARD_ARGS_INIT;
    f.in.q = tensor(b[0], HEADS);
    f.in.k = tensor(b[1], KV_HEADS);
    f.in.v = tensor(b[2], KV_HEADS);
    f.in.kconv_weight = b[3];
    f.in.cu_seqlens_q = f.in.cu_seqlens_k = b[11];
    f.in.batch = 2;
    f.in.total_q = f.in.total_k = ROWS;
    f.o = tensor(b[4], HEADS);
    f.lse = b[5];
    f.selection = b[6];
    f.saved = b[12];
    f.saved_bytes = bytes[12];
    f.workspace = b[13];
    f.workspace_bytes = bytes[13];
    ok = ok && fine("fill", moba_buffer_fill(context, stream, b[3], 0, bytes[3]));
    ok = ok && fine("forward", moba_forward(plan, stream, &f));
    moba_attend_args a = MOBA_ATTEND_ARGS_INIT;
    a.in = f.in;
    a.selection = f.selection;
    a.o = f.o;
    a.lse = f.lse;
    a.saved = f.saved;
    a.saved_bytes = f.saved_bytes;
    a.workspace = f.workspace;
    a.workspace_bytes = f.workspace_bytes;
    ok = ok && fine("attend", moba_attend(plan, stream, &a));
    moba_backward_args w = MOBA_BACKWARD_ARGS_INIT;
    w.in = f.in;
    w.o = f.o;
    w.lse = f.lse;
    w.dout = f.o;
    w.saved = f.saved;
    w.saved_bytes = f.saved_bytes;
    w.dq = tensor(b[7], HEADS);
    w.dk = tensor(b[8], KV_HEADS);
    w.dv = tensor(b[9], KV_HEADS);
    w.dkconv_weight = b[10];
    w.workspace = f.workspace;
    w.workspace_bytes = f.workspace_bytes;
    return ok && fine("backward", moba_backward(plan, stream, &w));
}

static bool buffers_and_run(moba_context *context, const moba_plan *plan) {
    const size_t q = ROWS * HEADS * DIM * 4, k = ROWS * KV_HEADS * DIM * 4, w = KV_HEADS * DIM * 3 * 4;
    size_t bytes[N_BUFFERS] = {q, k, k, w, q, ROWS * HEADS * 4, ROWS * HEADS * TOP_K * 4, q, k, k, w, 12, 0, 0, 1};
    moba_buffer b[N_BUFFERS];
    memset(b, 0, sizeof b);
    bool ok =
        fine("saved", moba_plan_saved(plan, &bytes[12])) && fine("workspace", moba_plan_workspace(plan, &bytes[13]));
    for (int i = 0; i < N_BUFFERS && ok; i++)
        ok = fine("moba_buffer_create", moba_buffer_create(context, bytes[i], &b[i]));
    ok = ok && run(context, plan, b, bytes);
    for (int i = 0; i < N_BUFFERS; i++)
        moba_buffer_destroy(context, b[i]);
    return ok;
}

/* Makes a plan for each choice, so the n-th allocation is much like the (n + 10)-th: see main(). */
static bool advise(moba_context *context, moba_problem p) {
    moba_advice advice[4];
    int32_t n_advice;
    memset(advice, 0, sizeof advice);
    advice[0].struct_size = sizeof *advice;
    p.max_total_q = p.max_total_k = 4096;
    p.max_batch = 1;
    return fine("moba_advise", moba_advise(context, &p, 0.5, 0, advice, 4, &n_advice));
}

static bool with_advice;

static bool with_context(moba_context *context) {
    moba_problem p = MOBA_PROBLEM_INIT;
    moba_plan *plan = NULL;
    moba_stream stream = {NULL};
    moba_event event = {NULL};
    p.n_q_heads = HEADS;
    p.n_kv_heads = KV_HEADS;
    p.head_dim = DIM;
    p.block_size = 16;
    p.top_k = TOP_K;
    p.kconv_width = 3;
    p.max_batch = 2;
    p.max_total_q = p.max_total_k = ROWS;
    bool ok = fine("moba_plan_create", moba_plan_create(context, &p, &plan)) && buffers_and_run(context, plan);
    if (plan == NULL && ok) complain("moba_plan_create gave no plan", MOBA_OK);
    moba_plan_destroy(plan);
    ok = ok && fine("moba_stream_create", moba_stream_create(context, &stream));
    ok = ok && fine("moba_event_create", moba_event_create(context, &event));
    moba_event_destroy(context, event);
    moba_stream_destroy(context, stream);
    return ok && (!with_advice || advise(context, p));
}

/* The whole life of a context; false when some call failed. */
static bool scenario(void) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = "cpu";
    options.n_threads = 3;
    bool ok = fine("moba_context_create", moba_context_create(&options, &context));
    if (ok != (context != NULL)) complain("moba_context_create: status and context disagree", MOBA_OK);
    ok = ok && with_context(context);
    moba_context_destroy(context);
    return ok;
}

static long tried, failed;

/* Refuses every step-th allocation of the scenario, one at a time. */
static void refuse_in_turn(long step) {
    long live = n_live;
    for (long n = 1;; n += step) {
        n_calls = 0;
        fail_at = n;
        bool ok = scenario();
        bool reached = n_calls >= n;
        if (reached && n_live != live) {
            complain("allocations leaked", MOBA_OK);
            n_live = live;
        }
        fail_at = 0;
        if (!reached) return;
        tried++;
        failed += !ok;
        if (!scenario()) complain("the scenario fails after the refusal", MOBA_OK);
    }
}

int main(void) {
    setenv("MOBA_VALIDATE", "1", 1);
    setenv("MOBA_KERNEL", "attend=*", 1);
    if (!scenario()) return 1; /* also creates what the library keeps for the life of the process */
    refuse_in_turn(1);
    with_advice = true;
    if (!scenario()) return 1;
    refuse_in_turn(41);
    printf("%ld allocations and threads refused in turn, %ld of them failed a call, %d complaints\n", tried, failed,
           n_bad);
    return n_bad > 0 || tried < 10 || failed < 5;
}
