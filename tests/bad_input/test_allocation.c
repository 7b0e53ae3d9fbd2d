/* SPDX-License-Identifier: Apache-2.0
 *
 * Out of memory at each allocation in turn. The linker sends the library's allocations and thread starts through the
 * __wrap functions below; a whole life of the library is then run with the first, the second, ... of them failing.
 * Each time: MOBA_ERROR_OUT_OF_MEMORY with a sentence, and everything that was allocated is freed. What was opened
 * before the failure is used afterwards.
 */
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moba/moba.h"

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t n, size_t bytes);
void *__real_realloc(void *p, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
int __real_posix_memalign(void **p, size_t alignment, size_t bytes);
void __real_free(void *p);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_realloc(void *p, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **p, size_t alignment, size_t bytes);
void __wrap_free(void *p);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument);

/* Only the main thread allocates in these calls, so plain counters will do. */
static long n_calls, fail_at, n_live;

static bool refuse(void) { return ++n_calls == fail_at; }

static void *counted(void *p) {
    n_live += p != NULL;
    return p;
}

void *__wrap_malloc(size_t bytes) { return refuse() ? NULL : counted(__real_malloc(bytes)); }
void *__wrap_calloc(size_t n, size_t bytes) { return refuse() ? NULL : counted(__real_calloc(n, bytes)); }
void *__wrap_realloc(void *p, size_t bytes) {
    if (refuse()) return NULL;
    void *moved = __real_realloc(p, bytes);
    n_live += p == NULL && moved != NULL;
    return moved;
}
void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    return refuse() ? NULL : counted(__real_aligned_alloc(alignment, bytes));
}
int __wrap_posix_memalign(void **p, size_t alignment, size_t bytes) {
    if (refuse()) return ENOMEM;
    int code = __real_posix_memalign(p, alignment, bytes);
    n_live += code == 0;
    return code;
}
void __wrap_free(void *p) {
    n_live -= p != NULL;
    __real_free(p);
}
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    return refuse() ? EAGAIN : __real_pthread_create(thread, attributes, start, argument);
}

/* ------------------------------------------------------------------------------------------ one whole life -- */

enum { TOKENS = 96, HEADS = 2, DIM = 16, ELEMENTS = TOKENS * HEADS * DIM, N_TENSORS = 8 };

typedef struct life {
    moba_context *context;
    moba_plan *plan;
    moba_stream stream;
    moba_event begin, end;
    moba_buffer tensors, lse, cu, selection, saved, workspace;
} life;

static moba_tensor tensor(const life *l, int i) {
    moba_tensor t = {l->tensors, HEADS * DIM, DIM, 0};
    t.buffer.offset += (uint64_t)i * ELEMENTS * sizeof(float);
    return t;
}

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        moba_status try_status = (call);                                                                               \
        if (try_status != MOBA_OK) return try_status;                                                                  \
    } while (0)

static moba_status open_all(life *l) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "cpu";
    options.n_threads = 3;
    TRY(moba_context_create(&options, &l->context));
    moba_problem problem = MOBA_PROBLEM_INIT;
    problem.n_q_heads = problem.n_kv_heads = HEADS;
    problem.head_dim = DIM;
    problem.block_size = 16;
    problem.top_k = 3;
    problem.max_batch = 2;
    problem.max_total_q = problem.max_total_k = TOKENS;
    TRY(moba_plan_create(l->context, &problem, &l->plan));
    TRY(moba_stream_create(l->context, &l->stream));
    TRY(moba_event_create(l->context, &l->begin));
    TRY(moba_event_create(l->context, &l->end));
    size_t workspace, saved;
    TRY(moba_plan_workspace(l->plan, &workspace));
    TRY(moba_plan_saved(l->plan, &saved));
    TRY(moba_buffer_create(l->context, N_TENSORS * ELEMENTS * sizeof(float), &l->tensors));
    TRY(moba_buffer_create(l->context, HEADS * TOKENS * sizeof(float), &l->lse));
    TRY(moba_buffer_create(l->context, 3 * sizeof(int32_t), &l->cu));
    TRY(moba_buffer_create(l->context, TOKENS * HEADS * 3 * sizeof(int32_t), &l->selection));
    TRY(moba_buffer_create(l->context, saved, &l->saved));
    return moba_buffer_create(l->context, workspace, &l->workspace);
}

/** Forward, prescribed attention with validation (the environment has MOBA_VALIDATE=1), and backward. */
static moba_status run_all(const life *l) {
    float host[ELEMENTS];
    int32_t cu[3] = {0, 40, TOKENS};
    for (int i = 0; i < ELEMENTS; i++)
        host[i] = (float)((i * 37) % 101) / 50.0f - 1.0f;
    TRY(moba_buffer_write(l->context, l->stream, l->cu, cu, sizeof cu));
    for (int i = 0; i < N_TENSORS; i++)
        TRY(moba_buffer_write(l->context, l->stream, tensor(l, i).buffer, host, sizeof host));
    size_t workspace_bytes, saved_bytes;
    TRY(moba_plan_workspace(l->plan, &workspace_bytes));
    TRY(moba_plan_saved(l->plan, &saved_bytes));
    moba_inputs in = {.q = tensor(l, 0),
                      .k = tensor(l, 1),
                      .v = tensor(l, 2),
                      .cu_seqlens_q = l->cu,
                      .cu_seqlens_k = l->cu,
                      .batch = 2,
                      .total_q = TOKENS,
                      .total_k = TOKENS};
    moba_forward_args forward = MOBA_FORWARD_ARGS_INIT;
    forward.in = in;
    forward.o = tensor(l, 3);
    forward.lse = l->lse;
    forward.selection = l->selection;
    forward.saved = l->saved;
    forward.saved_bytes = saved_bytes;
    forward.workspace = l->workspace;
    forward.workspace_bytes = workspace_bytes;
    TRY(moba_event_record(l->context, l->stream, l->begin));
    TRY(moba_forward(l->plan, l->stream, &forward));
    moba_attend_args attend = MOBA_ATTEND_ARGS_INIT;
    attend.in = in;
    attend.selection = l->selection;
    attend.o = tensor(l, 3);
    attend.lse = l->lse;
    attend.saved = l->saved;
    attend.saved_bytes = saved_bytes;
    attend.workspace = l->workspace;
    attend.workspace_bytes = workspace_bytes;
    TRY(moba_attend(l->plan, l->stream, &attend));
    moba_backward_args backward = MOBA_BACKWARD_ARGS_INIT;
    backward.in = in;
    backward.o = tensor(l, 3);
    backward.lse = l->lse;
    backward.dout = tensor(l, 4);
    backward.saved = l->saved;
    backward.saved_bytes = saved_bytes;
    backward.dq = tensor(l, 5);
    backward.dk = tensor(l, 6);
    backward.dv = tensor(l, 7);
    backward.workspace = l->workspace;
    backward.workspace_bytes = workspace_bytes;
    TRY(moba_backward(l->plan, l->stream, &backward));
    TRY(moba_event_record(l->context, l->stream, l->end));
    double ms;
    return moba_event_elapsed(l->context, l->begin, l->end, &ms);
}

static void close_all(life *l) {
    if (l->context) {
        moba_buffer_destroy(l->context, l->workspace);
        moba_buffer_destroy(l->context, l->saved);
        moba_buffer_destroy(l->context, l->selection);
        moba_buffer_destroy(l->context, l->cu);
        moba_buffer_destroy(l->context, l->lse);
        moba_buffer_destroy(l->context, l->tensors);
        moba_event_destroy(l->context, l->end);
        moba_event_destroy(l->context, l->begin);
        moba_stream_destroy(l->context, l->stream);
    }
    moba_plan_destroy(l->plan);
    moba_context_destroy(l->context);
}

int main(void) {
    setenv("MOBA_VALIDATE", "1", 1);
    long n_refused = 0;
    for (fail_at = 1;; fail_at++) {
        life l = {0};
        n_calls = 0;
        n_live = 0;
        moba_status status = open_all(&l);
        if (status == MOBA_OK) status = run_all(&l);
        bool refused = n_calls >= fail_at;
        if (refused && status != MOBA_ERROR_OUT_OF_MEMORY) {
            printf("allocation %ld failed: status %s, \"%s\"\n", fail_at, moba_status_name(status), moba_last_error());
            return 1;
        }
        if (refused && strlen(moba_last_error()) < 10) {
            printf("allocation %ld failed without a sentence\n", fail_at);
            return 1;
        }
        if (refused && l.workspace.handle) { /* it failed inside a run: the next one works */
            status = run_all(&l);
        }
        if ((!refused || l.workspace.handle) && status != MOBA_OK) {
            printf("after allocation %ld: status %s, \"%s\"\n", fail_at, moba_status_name(status), moba_last_error());
            return 1;
        }
        close_all(&l);
        if (n_live != 0) {
            printf("allocation %ld failed: %ld allocations were not freed\n", fail_at, n_live);
            return 1;
        }
        if (!refused) break;
        n_refused++;
    }
    printf("%ld allocations refused in turn\n", n_refused);
    return n_refused >= 10 ? 0 : 1;
}
