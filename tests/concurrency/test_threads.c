/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads: one plan run by several with their own workspaces, several contexts at once, plans and buffers made in
 * parallel, errors that stay in their thread. Every concurrent result must be bit-identical to that of a run alone.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moba/moba.h"

enum { ROWS = 200, HEADS = 4, KV_HEADS = 2, DIM = 64, N_THREADS = 4, N_ROUNDS = 3 };
enum {
    Q_BYTES = ROWS * HEADS * DIM * 4,
    K_BYTES = ROWS * KV_HEADS * DIM * 4,
    RESULT_BYTES = 2 * Q_BYTES + 2 * K_BYTES
};

static const char *backend;
static int n_bad; /* guarded by lock */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void complain(const char *what) {
    pthread_mutex_lock(&lock);
    n_bad++;
    fprintf(stderr, "%s: %s: %s\n", backend, what, moba_last_error());
    pthread_mutex_unlock(&lock);
}

static bool ok(moba_status status, const char *what) {
    if (status != MOBA_OK) complain(what);
    return status == MOBA_OK;
}

static moba_context *open_context(int32_t n_threads) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = backend;
    options.n_threads = n_threads;
    ok(moba_context_create(&options, &context), "moba_context_create");
    return context;
}

static moba_plan *make_plan(moba_context *context) {
    moba_problem p = MOBA_PROBLEM_INIT;
    moba_plan *plan = NULL;
    p.n_q_heads = HEADS;
    p.n_kv_heads = KV_HEADS;
    p.head_dim = DIM;
    p.block_size = 32;
    p.top_k = 3;
    p.deterministic = 1;
    p.max_total_q = p.max_total_k = ROWS;
    ok(moba_plan_create(context, &p, &plan), "moba_plan_create");
    return plan;
}

static moba_buffer input(moba_context *context, size_t bytes, uint32_t seed) {
    moba_buffer b = MOBA_BUFFER_NULL;
    moba_stream stream = {NULL};
    float *values = malloc(bytes);
    if (values == NULL) abort();
    for (size_t i = 0; i < bytes / 4; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)seed * 0x1p-31f;
    }
    if (ok(moba_buffer_create(context, bytes, &b), "moba_buffer_create"))
        ok(moba_buffer_write(context, stream, b, values, bytes), "moba_buffer_write");
    free(values);
    return b;
}

static moba_buffer output(moba_context *context, size_t bytes) {
    moba_buffer b = MOBA_BUFFER_NULL;
    moba_stream stream = {NULL};
    if (bytes > 0 && ok(moba_buffer_create(context, bytes, &b), "moba_buffer_create"))
        ok(moba_buffer_fill(context, stream, b, 0xff, bytes), "moba_buffer_fill");
    ok(moba_stream_synchronize(context, stream), "moba_stream_synchronize"); /* runs use streams of their own */
    return b;
}

static moba_tensor view(moba_buffer b, int64_t heads) {
    moba_tensor t = {b, heads * DIM, DIM, ROWS * heads * DIM};
    return t;
}

/* Inputs that threads share. */
typedef struct shared {
    moba_context *context;
    const moba_plan *plan;
    moba_buffer q, k, v, dout;
} shared;

static shared make_shared(moba_context *context, const moba_plan *plan) {
    shared s = {context,
                plan,
                input(context, Q_BYTES, 1),
                input(context, K_BYTES, 2),
                input(context, K_BYTES, 3),
                input(context, Q_BYTES, 4)};
    return s;
}

static void free_shared(const shared *s) {
    moba_buffer all[] = {s->q, s->k, s->v, s->dout};
    for (size_t i = 0; i < 4; i++)
        moba_buffer_destroy(s->context, all[i]);
}

/* Forward and backward with buffers of its own; `result` receives o, dq, dk, dv. */
static void run(const shared *s, unsigned char *result) {
    moba_forward_args f = MOBA_FORWARD_ARGS_INIT;
    moba_backward_args b = MOBA_BACKWARD_ARGS_INIT;
    moba_stream stream = {NULL};
    ok(moba_stream_create(s->context, &stream), "moba_stream_create");
    ok(moba_plan_saved(s->plan, &f.saved_bytes), "moba_plan_saved");
    ok(moba_plan_workspace(s->plan, &f.workspace_bytes), "moba_plan_workspace");
    f.in.q = view(s->q, HEADS);
    f.in.k = view(s->k, KV_HEADS);
    f.in.v = view(s->v, KV_HEADS);
    f.in.batch = 1;
    f.in.total_q = f.in.total_k = ROWS;
    f.o = view(output(s->context, Q_BYTES), HEADS);
    f.lse = output(s->context, ROWS * HEADS * 4);
    f.saved = output(s->context, f.saved_bytes);
    f.workspace = output(s->context, f.workspace_bytes);
    b.in = f.in;
    b.o = f.o;
    b.lse = f.lse;
    b.dout = view(s->dout, HEADS);
    b.saved = f.saved;
    b.saved_bytes = f.saved_bytes;
    b.dq = view(output(s->context, Q_BYTES), HEADS);
    b.dk = view(output(s->context, K_BYTES), KV_HEADS);
    b.dv = view(output(s->context, K_BYTES), KV_HEADS);
    b.workspace = f.workspace;
    b.workspace_bytes = f.workspace_bytes;
    if (ok(moba_forward(s->plan, stream, &f), "moba_forward") &&
        ok(moba_backward(s->plan, stream, &b), "moba_backward") &&
        ok(moba_stream_synchronize(s->context, stream), "moba_stream_synchronize")) {
        const moba_buffer from[] = {f.o.buffer, b.dq.buffer, b.dk.buffer, b.dv.buffer};
        const size_t bytes[] = {Q_BYTES, Q_BYTES, K_BYTES, K_BYTES};
        for (size_t i = 0, at = 0; i < 4; at += bytes[i++])
            ok(moba_buffer_read(s->context, stream, from[i], result + at, bytes[i]), "moba_buffer_read");
    }
    const moba_buffer all[] = {f.o.buffer, f.lse, f.saved, f.workspace, b.dq.buffer, b.dk.buffer, b.dv.buffer};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        moba_buffer_destroy(s->context, all[i]);
    moba_stream_destroy(s->context, stream);
}

typedef struct worker {
    const shared *s; /* NULL: opens its own context */
    const unsigned char *expected;
    int number;
} worker;

static void compare(const unsigned char *result, const unsigned char *expected, const char *what) {
    if (memcmp(result, expected, RESULT_BYTES) != 0) complain(what);
}

static void *share_a_plan(void *argument) {
    const worker *w = argument;
    unsigned char *result = malloc(RESULT_BYTES);
    for (int round = 0; result != NULL && round < N_ROUNDS; round++) {
        memset(result, 0, RESULT_BYTES);
        run(w->s, result);
        compare(result, w->expected, "a concurrent run of one plan differs from the run alone");
    }
    free(result);
    return NULL;
}

static void *own_context(void *argument) {
    const worker *w = argument;
    unsigned char *result = malloc(RESULT_BYTES);
    for (int round = 0; result != NULL && round < 2; round++) {
        moba_context *context = open_context(1 + w->number % 3);
        if (context == NULL) break;
        moba_plan *plan = make_plan(context);
        shared s = make_shared(context, plan);
        memset(result, 0, RESULT_BYTES);
        run(&s, result);
        compare(result, w->expected, "a run of a context among others differs from the run alone");
        free_shared(&s);
        moba_plan_destroy(plan);
        moba_context_destroy(context);
    }
    free(result);
    return NULL;
}

/* Plans and failing calls on a context that others use. */
static void *plans_and_errors(void *argument) {
    const worker *w = argument;
    char text[4096], expected[64];
    for (int round = 0; round < 20; round++) {
        moba_plan *plan = make_plan(w->s->context), *none = NULL;
        if (!ok(moba_plan_explain(plan, text, sizeof text), "moba_plan_explain")) return NULL;
        moba_problem p = MOBA_PROBLEM_INIT;
        p.head_dim = 1000 * (w->number + 1) + round;
        if (moba_plan_create(w->s->context, &p, &none) != MOBA_ERROR_UNSUPPORTED) complain("head_dim in the thousands");
        snprintf(expected, sizeof expected, "head_dim is %d", p.head_dim);
        if (strstr(moba_last_error(), expected) == NULL) complain("the error of another thread");
        moba_plan_destroy(plan);
    }
    return NULL;
}

static void start(void *(*const *functions)(void *), worker *workers) {
    pthread_t threads[N_THREADS];
    for (int i = 0; i < N_THREADS; i++)
        if (pthread_create(&threads[i], NULL, functions[i], &workers[i]) != 0) abort();
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
}

static void check_backend(void) {
    void *(*const one_plan[N_THREADS])(void *) = {share_a_plan, share_a_plan, share_a_plan, share_a_plan};
    void *(*const contexts[N_THREADS])(void *) = {own_context, own_context, own_context, own_context};
    void *(*const mixed[N_THREADS])(void *) = {share_a_plan, plans_and_errors, own_context, plans_and_errors};
    moba_context *context = open_context(2);
    if (context == NULL) return;
    moba_plan *plan = make_plan(context);
    shared s = make_shared(context, plan);
    unsigned char *expected = malloc(RESULT_BYTES);
    if (expected == NULL) abort();
    run(&s, expected);
    worker workers[N_THREADS];
    for (int i = 0; i < N_THREADS; i++)
        workers[i] = (worker){&s, expected, i};
    start(one_plan, workers);
    start(contexts, workers);
    start(mixed, workers);
    free(expected);
    free_shared(&s);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

int main(void) {
    const char *list = getenv("MOBA_TEST_BACKENDS");
    char names[256];
    snprintf(names, sizeof names, "%s", list != NULL && *list != '\0' ? list : "cpu");
    for (char *save = NULL, *name = strtok_r(names, ",", &save); name != NULL; name = strtok_r(NULL, ",", &save)) {
        backend = name;
        check_backend();
    }
    printf("%d complaints\n", n_bad);
    return n_bad > 0;
}
