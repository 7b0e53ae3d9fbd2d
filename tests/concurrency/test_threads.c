/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads: one plan run by several threads with their own workspaces, contexts that live and die side by side, and
 * error sentences that stay with their thread. A plain program, so that ThreadSanitizer can watch it.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moba/moba.h"

enum { TOKENS = 320, HEADS = 2, DIM = 32, ELEMENTS = TOKENS * HEADS * DIM, N_THREADS = 4, N_ROUNDS = 6 };

/** Forward and backward of the shared plan: o, dq, dk, dv. */
typedef struct results {
    float o[ELEMENTS], dq[ELEMENTS], dk[ELEMENTS], dv[ELEMENTS];
} results;

static float q[ELEMENTS], k[ELEMENTS], v[ELEMENTS], dout[ELEMENTS];
static results expected;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, moba_last_error());
    exit(1);
}
static void check(moba_status status, const char *what) {
    if (status != MOBA_OK) fail(what);
}

static moba_context *open_context(int32_t n_threads) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "cpu";
    options.n_threads = n_threads;
    moba_context *context;
    check(moba_context_create(&options, &context), "context");
    return context;
}

static moba_plan *make_plan(moba_context *context) {
    moba_problem problem = MOBA_PROBLEM_INIT;
    problem.n_q_heads = problem.n_kv_heads = HEADS;
    problem.head_dim = DIM;
    problem.block_size = 32;
    problem.top_k = 4;
    problem.deterministic = 1;
    problem.max_total_q = problem.max_total_k = TOKENS;
    moba_plan *plan;
    check(moba_plan_create(context, &problem, &plan), "plan");
    return plan;
}

static moba_tensor tensor(float *data) {
    moba_tensor t = {{(uint64_t)(uintptr_t)data, 0}, HEADS * DIM, DIM, 0};
    return t;
}

static void run(moba_context *context, const moba_plan *plan, results *r) {
    static _Thread_local float lse[HEADS * TOKENS];
    moba_stream stream = {NULL};
    moba_buffer workspace, saved;
    size_t workspace_bytes, saved_bytes;
    check(moba_plan_workspace(plan, &workspace_bytes), "workspace query");
    check(moba_plan_saved(plan, &saved_bytes), "saved query");
    check(moba_buffer_create(context, workspace_bytes, &workspace), "workspace");
    check(moba_buffer_create(context, saved_bytes, &saved), "saved");
    memset(r, 0xff, sizeof *r);
    moba_forward_args forward = MOBA_FORWARD_ARGS_INIT;
    forward.in =
        (moba_inputs){.q = tensor(q), .k = tensor(k), .v = tensor(v), .batch = 1, .total_q = TOKENS, .total_k = TOKENS};
    forward.o = tensor(r->o);
    forward.lse = (moba_buffer){(uint64_t)(uintptr_t)lse, 0};
    forward.saved = saved;
    forward.saved_bytes = saved_bytes;
    forward.workspace = workspace;
    forward.workspace_bytes = workspace_bytes;
    check(moba_forward(plan, stream, &forward), "forward");
    moba_backward_args backward = MOBA_BACKWARD_ARGS_INIT;
    backward.in = forward.in;
    backward.o = forward.o;
    backward.lse = forward.lse;
    backward.dout = tensor(dout);
    backward.saved = saved;
    backward.saved_bytes = saved_bytes;
    backward.dq = tensor(r->dq);
    backward.dk = tensor(r->dk);
    backward.dv = tensor(r->dv);
    backward.workspace = workspace;
    backward.workspace_bytes = workspace_bytes;
    check(moba_backward(plan, stream, &backward), "backward");
    moba_buffer_destroy(context, workspace);
    moba_buffer_destroy(context, saved);
}

static void compare(const results *r, const char *what) {
    if (memcmp(r, &expected, sizeof *r) != 0) {
        fprintf(stderr, "%s: the results differ from those of one thread alone\n", what);
        exit(1);
    }
}

typedef struct shared_plan {
    moba_context *context;
    moba_plan *plan;
} shared_plan;

/** Runs the shared plan again and again; even rounds also fail a call, whose sentence must be this thread's own. */
static void *use_shared_plan(void *argument) {
    const shared_plan *s = (const shared_plan *)argument;
    results *r = malloc(sizeof *r);
    if (!r) fail("no memory for results");
    for (int round = 0; round < N_ROUNDS; round++) {
        int32_t unusual = (int32_t)(1000 + (uintptr_t)(void *)r % 7919 + (uintptr_t)round);
        if (moba_device_info(unusual, 0, NULL) == MOBA_OK) fail("an impossible backend index was accepted");
        run(s->context, s->plan, r);
        compare(r, "shared plan");
        char number[16];
        snprintf(number, sizeof number, "%d", unusual);
        if (!strstr(moba_last_error(), number)) fail("another thread's sentence");
    }
    free(r);
    return NULL;
}

/** A context and plan of its own each round. */
static void *use_own_context(void *argument) {
    int32_t n_threads = *(const int32_t *)argument;
    results *r = malloc(sizeof *r);
    if (!r) fail("no memory for results");
    for (int round = 0; round < N_ROUNDS; round++) {
        moba_context *context = open_context(n_threads);
        moba_plan *plan = make_plan(context);
        run(context, plan, r);
        compare(r, "own context");
        moba_plan_destroy(plan);
        moba_context_destroy(context);
    }
    free(r);
    return NULL;
}

static void start(pthread_t *thread, void *(*work)(void *), void *argument) {
    if (pthread_create(thread, NULL, work, argument) != 0) fail("pthread_create");
}

int main(void) {
    uint32_t state = 1;
    float *const inputs[] = {q, k, v, dout};
    for (int x = 0; x < 4; x++)
        for (int i = 0; i < ELEMENTS; i++) {
            state = state * 1664525u + 1013904223u;
            inputs[x][i] = (float)(state >> 8) / 8388608.0f - 1.0f;
        }
    moba_context *alone = open_context(1);
    moba_plan *plan_alone = make_plan(alone);
    run(alone, plan_alone, &expected);
    moba_plan_destroy(plan_alone);
    moba_context_destroy(alone);

    pthread_t threads[N_THREADS];
    shared_plan shared = {.context = open_context(3)};
    shared.plan = make_plan(shared.context);
    for (int i = 0; i < N_THREADS; i++)
        start(&threads[i], use_shared_plan, &shared);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    moba_plan_destroy(shared.plan);
    moba_context_destroy(shared.context);

    int32_t counts[N_THREADS] = {1, 2, 3, 4};
    for (int i = 0; i < N_THREADS; i++)
        start(&threads[i], use_own_context, &counts[i]);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("%d threads on one plan and %d contexts side by side: identical results\n", N_THREADS, N_THREADS);
    return 0;
}
