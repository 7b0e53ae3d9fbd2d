/* SPDX-License-Identifier: Apache-2.0
 *
 * Arguments of a run that must be refused: the status, and a sentence that names the argument and the limit. After
 * every refusal the same context and plan still run.
 */
#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moba/moba.h"

enum {
    TOKENS = 64,
    HEADS = 4,
    KV_HEADS = 2,
    DIM = 16,
    TOP_K = 2,
    Q_SIZE = TOKENS * HEADS * DIM,
    K_SIZE = TOKENS * KV_HEADS * DIM
};

/** A plan with a key convolution, and arguments that are all in order. */
typedef struct fixture {
    moba_context *context;
    moba_plan *plan;
    moba_forward_args forward;
    moba_attend_args attend;
    moba_route_args route;
    moba_backward_args backward;
    moba_buffer memory;
    size_t used;
} fixture;

static void ok(moba_status status) {
    cr_assert_eq(status, MOBA_OK, "%s: %s", moba_status_name(status), moba_last_error());
}

static moba_buffer take(fixture *f, size_t bytes) {
    moba_buffer b = {f->memory.handle, f->used};
    f->used += (bytes + 255) / 256 * 256;
    return b;
}
static moba_tensor take_tensor(fixture *f, int heads) {
    moba_tensor t = {take(f, (size_t)(TOKENS * heads * DIM) * sizeof(float)), heads * DIM, DIM, TOKENS * heads * DIM};
    return t;
}

static fixture setup(bool validate) {
    fixture f = {0};
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "cpu";
    options.n_threads = 2;
    setenv("MOBA_VALIDATE", validate ? "1" : "0", 1);
    ok(moba_context_create(&options, &f.context));
    moba_problem p = MOBA_PROBLEM_INIT;
    p.n_q_heads = HEADS;
    p.n_kv_heads = KV_HEADS;
    p.head_dim = DIM;
    p.block_size = 16;
    p.top_k = TOP_K;
    p.kconv_width = 3;
    p.max_batch = 2;
    p.max_total_q = p.max_total_k = TOKENS;
    ok(moba_plan_create(f.context, &p, &f.plan));
    size_t workspace, saved, all = 1u << 20;
    ok(moba_plan_workspace(f.plan, &workspace));
    ok(moba_plan_saved(f.plan, &saved));
    ok(moba_buffer_create(f.context, all + workspace + saved, &f.memory));
    moba_stream stream = {NULL};
    ok(moba_buffer_fill(f.context, stream, f.memory, 0, all + workspace + saved));

    moba_inputs in = {.q = take_tensor(&f, HEADS),
                      .k = take_tensor(&f, KV_HEADS),
                      .v = take_tensor(&f, KV_HEADS),
                      .kconv_weight = take(&f, KV_HEADS * DIM * 3 * sizeof(float)),
                      .batch = 1,
                      .total_q = TOKENS,
                      .total_k = TOKENS};
    in.cu_seqlens_q = take(&f, 3 * sizeof(int32_t));
    in.cu_seqlens_k = take(&f, 3 * sizeof(int32_t));
    in.batch = 2;
    int32_t cu[3] = {0, 24, TOKENS};
    ok(moba_buffer_write(f.context, stream, in.cu_seqlens_q, cu, sizeof cu));
    ok(moba_buffer_write(f.context, stream, in.cu_seqlens_k, cu, sizeof cu));
    f.forward = (moba_forward_args)MOBA_FORWARD_ARGS_INIT;
    f.forward.in = in;
    f.forward.o = take_tensor(&f, HEADS);
    f.forward.lse = take(&f, HEADS * TOKENS * sizeof(float));
    f.forward.selection = take(&f, HEADS * TOKENS * TOP_K * sizeof(int32_t));
    f.forward.saved = take(&f, saved);
    f.forward.saved_bytes = saved;
    f.forward.workspace = take(&f, workspace);
    f.forward.workspace_bytes = workspace;
    f.attend = (moba_attend_args){.struct_size = sizeof f.attend,
                                  .in = in,
                                  .selection = f.forward.selection,
                                  .o = f.forward.o,
                                  .lse = f.forward.lse,
                                  .workspace = f.forward.workspace,
                                  .workspace_bytes = workspace};
    f.route = (moba_route_args){.struct_size = sizeof f.route,
                                .in = in,
                                .selection = f.forward.selection,
                                .workspace = f.forward.workspace,
                                .workspace_bytes = workspace};
    f.backward = (moba_backward_args){.struct_size = sizeof f.backward,
                                      .in = in,
                                      .o = f.forward.o,
                                      .lse = f.forward.lse,
                                      .dout = take_tensor(&f, HEADS),
                                      .saved = f.forward.saved,
                                      .saved_bytes = saved,
                                      .dq = take_tensor(&f, HEADS),
                                      .dk = take_tensor(&f, KV_HEADS),
                                      .dv = take_tensor(&f, KV_HEADS),
                                      .dkconv_weight = take(&f, KV_HEADS * DIM * 3 * sizeof(float)),
                                      .workspace = f.forward.workspace,
                                      .workspace_bytes = workspace};
    return f;
}

static void teardown(fixture *f) {
    moba_buffer_destroy(f->context, f->memory);
    moba_plan_destroy(f->plan);
    moba_context_destroy(f->context);
}

static void expect(moba_status got, moba_status status, const char *name, const char *limit) {
    cr_assert_eq(got, status, "%s: got %s (%s), expected %s", name, moba_status_name(got), moba_last_error(),
                 moba_status_name(status));
    cr_assert_not_null(strstr(moba_last_error(), name), "\"%s\" does not name %s", moba_last_error(), name);
    cr_assert_not_null(strstr(moba_last_error(), limit), "\"%s\" does not say \"%s\"", moba_last_error(), limit);
}

/** The unharmed arguments still run, all four passes. */
static void expect_alive(const fixture *f) {
    moba_stream stream = {NULL};
    ok(moba_forward(f->plan, stream, &f->forward));
    ok(moba_route(f->plan, stream, &f->route));
    ok(moba_attend(f->plan, stream, &f->attend));
    ok(moba_forward(f->plan, stream, &f->forward));
    ok(moba_backward(f->plan, stream, &f->backward));
}

#define BAD MOBA_ERROR_INVALID_ARGUMENT
#define NO MOBA_ERROR_UNSUPPORTED
#define SMALL MOBA_ERROR_WORKSPACE_TOO_SMALL

/** Runs PASS with a copy of its arguments after CHANGE to `a`, and expects a refusal. */
#define REFUSED(pass, change, status, name, limit)                                                                     \
    do {                                                                                                               \
        moba_##pass##_args a = f.pass;                                                                                 \
        change;                                                                                                        \
        expect(moba_##pass(f.plan, (moba_stream){NULL}, &a), status, name, limit);                                     \
    } while (0)

Test(arguments, missing_and_misaligned_buffers) {
    fixture f = setup(false);
    expect_alive(&f);
    REFUSED(forward, a.in.q.buffer.handle = 0, BAD, "q", "none");
    REFUSED(forward, a.in.k.buffer.handle = 0, BAD, "k", "none");
    REFUSED(forward, a.in.v.buffer.handle = 0, BAD, "v", "none");
    REFUSED(forward, a.o.buffer.handle = 0, BAD, "o", "none");
    REFUSED(forward, a.in.kconv_weight.handle = 0, BAD, "kconv_weight", "none");
    REFUSED(forward, a.workspace.handle = 0, SMALL, "workspace_bytes", "0");
    REFUSED(forward, a.in.q.buffer.offset += 2, BAD, "q", "multiple of 4");
    REFUSED(forward, a.lse.offset += 1, BAD, "lse", "multiple of 4");
    REFUSED(forward, a.selection.offset += 2, BAD, "selection", "multiple of 4");
    REFUSED(forward, a.saved.offset += 64, BAD, "saved", "multiple of 256");
    REFUSED(forward, a.workspace.offset += 16, BAD, "workspace", "multiple of 256");
    REFUSED(forward, a.in.cu_seqlens_q.offset += 1, BAD, "cu_seqlens_q", "multiple of 4");
    REFUSED(forward, a.in.cu_seqlens_q.handle = 0, BAD, "cu_seqlens_q", "both or neither");
    REFUSED(forward, a.in.cu_seqlens_k.handle = 0, BAD, "cu_seqlens_k", "both or neither");
    REFUSED(route, a.selection.handle = 0, BAD, "selection", "none");
    REFUSED(attend, a.selection.handle = 0, BAD, "selection", "none");
    REFUSED(backward, a.saved.handle = 0, BAD, "saved", "none");
    REFUSED(backward, a.dout.buffer.handle = 0, BAD, "dout", "none");
    REFUSED(backward, a.dq.buffer.handle = 0, BAD, "dq", "none");
    REFUSED(backward, a.dk.buffer.handle = 0, BAD, "dk", "none");
    REFUSED(backward, a.dv.buffer.handle = 0, BAD, "dv", "none");
    REFUSED(backward, a.lse.handle = 0, BAD, "lse", "none");
    REFUSED(backward, a.dkconv_weight.handle = 0, BAD, "dkconv_weight", "none");
    expect_alive(&f);
    teardown(&f);
}

Test(arguments, strides) {
    fixture f = setup(false);
    REFUSED(forward, a.in.q.token_stride = -1, BAD, "q.token_stride", "-1");
    REFUSED(forward, a.in.k.head_stride = -DIM, BAD, "k.head_stride", "-16");
    REFUSED(forward, a.in.v.token_stride = INT64_MAX / 4, BAD, "v.token_stride", "2^63");
    REFUSED(forward, a.o.token_stride = DIM - 1, BAD, "o.token_stride", "16");
    REFUSED(forward, a.o.head_stride = 0, BAD, "o.head_stride", "16");
    REFUSED(backward, a.dq.token_stride = 1, BAD, "dq.token_stride", "16");
    REFUSED(backward, a.dk.head_stride = 3, BAD, "dk.head_stride", "16");
    REFUSED(forward, (a.in.cu_seqlens_q.handle = a.in.cu_seqlens_k.handle = 0, a.in.q.batch_stride = -5), BAD,
            "q.batch_stride", "-5");
    expect_alive(&f);
    teardown(&f);
}

Test(arguments, shapes) {
    fixture f = setup(false);
    REFUSED(forward, a.in.batch = 0, BAD, "batch", "at least 1");
    REFUSED(forward, a.in.batch = 3, NO, "batch", "max_batch is 2");
    REFUSED(forward, a.in.total_q = -1, BAD, "total_q", "negative");
    REFUSED(forward, a.in.total_k = -64, BAD, "total_k", "negative");
    REFUSED(forward, a.in.total_q = TOKENS + 1, NO, "total_q", "max_total_q is 64");
    REFUSED(forward, a.in.total_k = TOKENS + 1, NO, "total_k", "max_total_k is 64");
    REFUSED(forward, (a.in.cu_seqlens_q.handle = a.in.cu_seqlens_k.handle = 0, a.in.total_q = 63), BAD, "total_q",
            "multiple of batch");
    REFUSED(forward, (a.in.cu_seqlens_q.handle = a.in.cu_seqlens_k.handle = 0, a.in.total_k = 33), BAD, "total_k",
            "multiple of batch");
    expect_alive(&f);
    teardown(&f);
}

Test(arguments, sizes) {
    fixture f = setup(false);
    char needed[32];
    snprintf(needed, sizeof needed, "%zu", f.forward.workspace_bytes);
    REFUSED(forward, a.workspace_bytes--, SMALL, "workspace_bytes", needed);
    REFUSED(route, a.workspace_bytes--, SMALL, "workspace_bytes", needed);
    REFUSED(attend, a.workspace_bytes--, SMALL, "workspace_bytes", needed);
    REFUSED(backward, a.workspace_bytes--, SMALL, "workspace_bytes", needed);
    snprintf(needed, sizeof needed, "%zu", f.forward.saved_bytes);
    REFUSED(forward, a.saved_bytes--, SMALL, "saved_bytes", needed);
    REFUSED(backward, a.saved_bytes--, SMALL, "saved_bytes", needed);
    expect_alive(&f);
    teardown(&f);
}

Test(arguments, null_pointers_and_foreign_objects) {
    fixture f = setup(false);
    moba_stream stream = {NULL};
    int elsewhere = 0;
    moba_context *context = NULL;
    size_t bytes;
    expect(moba_forward(NULL, stream, &f.forward), BAD, "plan", "NULL");
    expect(moba_forward(f.plan, stream, NULL), BAD, "moba_forward_args", "NULL");
    expect(moba_backward(f.plan, stream, NULL), BAD, "moba_backward_args", "NULL");
    expect(moba_route(f.plan, stream, NULL), BAD, "moba_route_args", "NULL");
    expect(moba_attend(f.plan, stream, NULL), BAD, "moba_attend_args", "NULL");
    expect(moba_plan_workspace(NULL, &bytes), BAD, "plan", "NULL");
    expect(moba_plan_saved(f.plan, NULL), BAD, "bytes", "NULL");
    expect(moba_context_create(NULL, NULL), BAD, "out", "NULL");
    expect(moba_buffer_create(f.context, 0, &f.memory), BAD, "bytes", "at least 1");
    stream.native = &elsewhere;
    expect(moba_forward(f.plan, stream, &f.forward), MOBA_ERROR_WRONG_CONTEXT, "stream", "another context");
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "abacus";
    expect(moba_context_create(&options, &context), MOBA_ERROR_UNKNOWN_BACKEND, "abacus", "cpu");
    options.backend = "cpu,abacus";
    expect(moba_context_create(&options, &context), MOBA_ERROR_UNKNOWN_BACKEND, "abacus", "cpu");
    cr_assert_null(context);
    setenv("MOBA_BACKEND", "abacus", 1);
    expect(moba_context_create(NULL, &context), MOBA_ERROR_UNKNOWN_BACKEND, "abacus", "cpu");
    unsetenv("MOBA_BACKEND");
    teardown(&(fixture){.context = f.context, .plan = f.plan, .memory = {f.forward.in.q.buffer.handle, 0}});
}

static void write_cu(const fixture *f, moba_buffer buffer, int32_t a, int32_t b, int32_t c) {
    int32_t cu[3] = {a, b, c};
    ok(moba_buffer_write(f->context, (moba_stream){NULL}, buffer, cu, sizeof cu));
}

Test(arguments, validation_of_cu_seqlens) {
    fixture f = setup(true);
    moba_stream stream = {NULL};
    static const struct {
        int32_t cu[3];
        const char *says;
    } rows[] = {{{1, 24, TOKENS}, "[0] is 1"},
                {{0, 40, 24}, "[2] is 24"},
                {{0, 24, TOKENS + 1}, "[2] is 65"},
                {{0, -3, TOKENS}, "[1] is -3"},
                {{INT32_MIN, 0, TOKENS}, "-2147483648"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        write_cu(&f, f.forward.in.cu_seqlens_q, rows[i].cu[0], rows[i].cu[1], rows[i].cu[2]);
        expect(moba_forward(f.plan, stream, &f.forward), MOBA_ERROR_INVALID_DATA, "cu_seqlens_q", rows[i].says);
        write_cu(&f, f.forward.in.cu_seqlens_q, 0, 24, TOKENS);
        write_cu(&f, f.forward.in.cu_seqlens_k, rows[i].cu[0], rows[i].cu[1], rows[i].cu[2]);
        expect(moba_backward(f.plan, stream, &f.backward), MOBA_ERROR_INVALID_DATA, "cu_seqlens_k", rows[i].says);
        write_cu(&f, f.forward.in.cu_seqlens_k, 0, 24, TOKENS);
        expect_alive(&f);
    }
    teardown(&f);
}

Test(arguments, validation_of_selections) {
    fixture f = setup(true);
    moba_stream stream = {NULL};
    /* Row 30 is in the second sequence, which has 40 keys: blocks 0..2. */
    static const struct {
        int32_t ids[TOP_K];
        const char *says;
    } rows[] = {{{0, 3}, "is 3"}, {{-2, 0}, "is -2"}, {{1, 1}, "block 1 twice"}, {{INT32_MAX, -1}, "2147483647"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        expect_alive(&f);
        moba_buffer at = f.attend.selection;
        at.offset += (30 * HEADS + 1) * TOP_K * sizeof(int32_t);
        ok(moba_buffer_write(f.context, stream, at, rows[i].ids, sizeof rows[i].ids));
        expect(moba_attend(f.plan, stream, &f.attend), MOBA_ERROR_INVALID_DATA, "selection[30][1]", rows[i].says);
    }
    expect_alive(&f);
    teardown(&f);
}

/** Without validation, illegal data gives bad numbers at worst: no crash, and nothing outside the buffers (ASan). */
Test(arguments, illegal_data_without_validation) {
    fixture f = setup(false);
    moba_stream stream = {NULL};
    static const int32_t cu[][3] = {{5, 1, 90}, {-7, -8, -9}, {0, INT32_MAX, INT32_MIN}, {60, 20, 64}, {0, 64, 0}};
    for (size_t i = 0; i < sizeof cu / sizeof cu[0]; i++) {
        write_cu(&f, f.forward.in.cu_seqlens_q, cu[i][0], cu[i][1], cu[i][2]);
        write_cu(&f, f.forward.in.cu_seqlens_k, cu[i][2], cu[i][0], cu[i][1]);
        expect_alive(&f);
    }
    write_cu(&f, f.forward.in.cu_seqlens_q, 0, 24, TOKENS);
    write_cu(&f, f.forward.in.cu_seqlens_k, 0, 24, TOKENS);
    int32_t ids[HEADS * TOKENS * TOP_K];
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++)
        ids[i] = (int32_t)(i * 2654435761u) >> (i % 31);
    moba_attend_args a = f.attend;
    a.saved = f.forward.saved;
    a.saved_bytes = f.forward.saved_bytes;
    ok(moba_buffer_write(f.context, stream, a.selection, ids, sizeof ids));
    ok(moba_attend(f.plan, stream, &a));
    ok(moba_backward(f.plan, stream, &f.backward));
    teardown(&f);
}
