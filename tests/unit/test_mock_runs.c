/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs on the mock: order of stages, failing launches, a device lost in mid-run, capture, validation mode, exact sizes.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mock.h"

#define HAS(text, part) cr_assert_not_null(strstr((text), (part)), "\"%s\" lacks \"%s\"", (text), (part))

enum { ROWS = 300 };

typedef struct fixture {
    moba_context *context;
    moba_plan *plan;
    moba_forward_args f;
    moba_backward_args b;
    moba_route_args r;
    moba_attend_args a;
    moba_buffer selection;
} fixture;

static const moba_stream stream = {NULL};

static moba_buffer buffer(moba_context *context, size_t bytes) {
    moba_buffer out;
    cr_assert_eq(moba_buffer_create(context, bytes, &out), MOBA_OK, "%s", moba_last_error());
    return out;
}

static fixture make(int kconv, int deterministic) {
    fixture x;
    memset(&x, 0, sizeof x);
    x.context = mock_open();
    moba_problem p = mock_problem(ROWS);
    p.kconv_width = kconv;
    p.deterministic = deterministic;
    p.max_batch = 4;
    cr_assert_eq(moba_plan_create(x.context, &p, &x.plan), MOBA_OK, "%s", moba_last_error());
    x.f = mock_forward_args(x.context, x.plan, ROWS, ROWS);
    x.selection = buffer(x.context, ROWS * 4 * 4 * 4);
    moba_buffer_fill(x.context, stream, x.selection, 0xff, ROWS * 4 * 4 * 4);
    x.r = (moba_route_args)MOBA_ROUTE_ARGS_INIT;
    x.r.in = x.f.in;
    x.r.selection = x.selection;
    x.r.workspace = x.f.workspace;
    x.r.workspace_bytes = x.f.workspace_bytes;
    x.a = (moba_attend_args)MOBA_ATTEND_ARGS_INIT;
    x.a.in = x.f.in;
    x.a.selection = x.selection;
    x.a.o = x.f.o;
    x.a.lse = x.f.lse;
    x.a.workspace = x.f.workspace;
    x.a.workspace_bytes = x.f.workspace_bytes;
    x.b = (moba_backward_args)MOBA_BACKWARD_ARGS_INIT;
    x.b.in = x.f.in;
    x.b.o = x.f.o;
    x.b.lse = x.f.lse;
    x.b.dout = x.f.o;
    x.b.dq = x.f.o;
    x.b.dk = x.f.in.k;
    x.b.dv = x.f.in.v;
    x.b.saved = x.f.saved;
    x.b.saved_bytes = x.f.saved_bytes;
    x.b.workspace = x.f.workspace;
    x.b.workspace_bytes = x.f.workspace_bytes;
    if (kconv > 0) x.b.dkconv_weight = buffer(x.context, 2 * 64 * 4 * (size_t)kconv);
    return x;
}

static void drop(fixture *x) {
    mock_free_args(x->context, &x->f);
    moba_buffer_destroy(x->context, x->selection);
    moba_buffer_destroy(x->context, x->b.dkconv_weight);
    moba_plan_destroy(x->plan);
    moba_context_destroy(x->context);
    cr_assert_eq(mock.n_buffers, 0);
    cr_assert_eq(mock.n_open, 0);
}

static void expect_stages(const mobai_stage *stages, int n) {
    cr_assert_eq(mock.n_launches, n, "%d launches", mock.n_launches);
    for (int i = 0; i < n; i++)
        cr_assert_eq(mock.launches[i].variant->stage, stages[i], "launch %d", i);
    cr_assert_eq(mock.n_begun, 1);
    cr_assert_eq(mock.n_ended, 1);
    mock.n_launches = mock.n_begun = mock.n_ended = 0;
}

Test(runs, stages_come_in_their_order) {
    static const mobai_stage forward[] = {MOBAI_STAGE_KCONV, MOBAI_STAGE_CENTROID, MOBAI_STAGE_GATE,
                                          MOBAI_STAGE_INDEX, MOBAI_STAGE_ATTEND,   MOBAI_STAGE_COMBINE};
    static const mobai_stage attend[] = {MOBAI_STAGE_KCONV, MOBAI_STAGE_INDEX, MOBAI_STAGE_ATTEND, MOBAI_STAGE_COMBINE};
    static const mobai_stage backward[] = {MOBAI_STAGE_DELTA, MOBAI_STAGE_KCONV, MOBAI_STAGE_ATTEND_BWD,
                                           MOBAI_STAGE_DQ_SUM, MOBAI_STAGE_KCONV_BWD};
    fixture x = make(3, 1);
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_OK, "%s", moba_last_error());
    expect_stages(forward, 6);
    cr_assert_eq(moba_route(x.plan, stream, &x.r), MOBA_OK, "%s", moba_last_error());
    expect_stages(forward, 3);
    cr_assert_eq(moba_attend(x.plan, stream, &x.a), MOBA_OK, "%s", moba_last_error());
    expect_stages(attend, 4);
    cr_assert_eq(moba_backward(x.plan, stream, &x.b), MOBA_OK, "%s", moba_last_error());
    expect_stages(backward, 5);
    drop(&x);
}

Test(runs, stages_read_the_convolved_keys_except_its_own_backward) {
    fixture x = make(3, 1);
    cr_assert_eq(moba_backward(x.plan, stream, &x.b), MOBA_OK, "%s", moba_last_error());
    uint64_t raw = x.f.in.k.buffer.handle;
    cr_assert_eq(mock.launches[1].args.k.buffer.handle, raw);
    cr_assert_eq(mock.launches[2].args.k.buffer.handle, mock.launches[1].args.kprime.buffer.handle);
    cr_assert_eq(mock.launches[2].args.k.buffer.offset, mock.launches[1].args.kprime.buffer.offset);
    cr_assert_eq(mock.launches[4].args.k.buffer.handle, raw);
    drop(&x);
}

/* The selection of a forward that saves masks lies in the workspace or is the caller's; its backward has none. */
Test(runs, masks_take_the_place_of_a_saved_selection) {
    setenv("MOBA_KERNEL", "index=*masks,dq_sum=*masks", 1);
    fixture x = make(0, 1);
    unsetenv("MOBA_KERNEL");
    for (int own = 0; own < 2; own++) {
        moba_buffer given = x.selection;
        if (!own) given = (moba_buffer)MOBA_BUFFER_NULL;
        x.f.selection = given;
        mock.n_launches = 0;
        cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_OK, "%s", moba_last_error());
        for (int i = 0; i < mock.n_launches; i++) {
            const mobai_stage_args *a = &mock.launches[i].args;
            cr_assert_eq(a->selection.handle, own ? given.handle : x.f.workspace.handle, "launch %d", i);
            cr_assert_eq(a->pick_masks.handle, x.f.saved.handle, "launch %d", i);
        }
    }
    mock.n_launches = 0;
    cr_assert_eq(moba_backward(x.plan, stream, &x.b), MOBA_OK, "%s", moba_last_error());
    for (int i = 0; i < mock.n_launches; i++) {
        cr_assert_eq(mock.launches[i].args.selection.handle, 0);
        cr_assert_eq(mock.launches[i].args.pick_masks.handle, x.b.saved.handle);
    }
    mock.n_launches = 0;
    moba_buffer saved = x.f.saved;
    x.f.saved = (moba_buffer)MOBA_BUFFER_NULL;
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_OK, "%s", moba_last_error());
    cr_assert_gt(mock.n_launches, 0);
    cr_assert_eq(mock.launches[0].args.pick_masks.handle, 0, "nothing is saved");
    x.f.saved = saved;
    x.f.selection = (moba_buffer)MOBA_BUFFER_NULL;
    drop(&x);
}

/* Each launch in turn fails: the status comes back, the run stops there and is closed, and the context still works. */
Test(runs, a_failed_launch_is_reported_and_the_context_stays_usable) {
    fixture x = make(3, 1);
    for (int pass = 0; pass < 2; pass++) {
        int n = pass == 0 ? 6 : 5;
        for (int i = 0; i < n; i++) {
            mock.n_launches = mock.n_begun = mock.n_ended = 0;
            mock.fail_at_launch = i;
            mock.fail_with = i % 2 == 0 ? MOBA_ERROR_LAUNCH_FAILED : MOBA_ERROR_OUT_OF_MEMORY;
            moba_status status = pass == 0 ? moba_forward(x.plan, stream, &x.f) : moba_backward(x.plan, stream, &x.b);
            cr_assert_eq(status, mock.fail_with, "launch %d: %s", i, moba_status_name(status));
            HAS(moba_last_error(), "of the mock failed");
            cr_assert_eq(mock.n_launches, i + 1, "nothing is launched after a failure");
            cr_assert_eq(mock.n_begun, mock.n_ended);
            mock.fail_at_launch = -1;
            mock.n_launches = 0;
            cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_OK, "%s", moba_last_error());
        }
    }
    drop(&x);
}

Test(runs, a_device_lost_in_mid_run_stays_lost) {
    fixture x = make(0, 0);
    mock.fail_at_launch = 2;
    mock.fail_with = MOBA_ERROR_DEVICE_LOST;
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_ERROR_DEVICE_LOST);
    cr_assert_eq(mock.n_launches, 3);
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_ERROR_DEVICE_LOST);
    cr_assert_eq(moba_stream_synchronize(x.context, stream), MOBA_ERROR_DEVICE_LOST);
    moba_buffer b;
    cr_assert_eq(moba_buffer_create(x.context, 100, &b), MOBA_ERROR_DEVICE_LOST);
    HAS(moba_last_error(), "lost");
    moba_plan *plan = NULL;
    moba_problem p = mock_problem(100);
    cr_assert_eq(moba_plan_create(x.context, &p, &plan), MOBA_ERROR_DEVICE_LOST);
    cr_assert_null(plan);
    drop(&x); /* destroying still works */
}

Test(runs, workspace_and_saved_are_exact_to_the_byte) {
    fixture x = make(3, 1);
    size_t workspace = x.f.workspace_bytes, saved = x.f.saved_bytes;
    char text[32];
    x.f.workspace_bytes = workspace - 1;
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_ERROR_WORKSPACE_TOO_SMALL);
    HAS(moba_last_error(), "workspace_bytes");
    snprintf(text, sizeof text, "%zu", workspace - 1);
    HAS(moba_last_error(), text);
    snprintf(text, sizeof text, "%zu", workspace);
    HAS(moba_last_error(), text);
    x.f.workspace_bytes = workspace;
    x.f.saved_bytes = saved - 1;
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_ERROR_WORKSPACE_TOO_SMALL);
    HAS(moba_last_error(), "saved_bytes");
    x.b.saved_bytes = saved - 1;
    cr_assert_eq(moba_backward(x.plan, stream, &x.b), MOBA_ERROR_WORKSPACE_TOO_SMALL);
    x.b.saved_bytes = saved;
    x.b.workspace_bytes = 0;
    cr_assert_eq(moba_backward(x.plan, stream, &x.b), MOBA_ERROR_WORKSPACE_TOO_SMALL);
    x.a.workspace_bytes = workspace - 1;
    cr_assert_eq(moba_attend(x.plan, stream, &x.a), MOBA_ERROR_WORKSPACE_TOO_SMALL);
    x.r.workspace_bytes = workspace - 1;
    cr_assert_eq(moba_route(x.plan, stream, &x.r), MOBA_ERROR_WORKSPACE_TOO_SMALL);
    cr_assert_eq(mock.n_launches, 0);
    drop(&x);
}

Test(runs, inference_saves_nothing) {
    fixture x = make(3, 1);
    moba_problem p = x.plan->problem;
    p.inference = 1;
    moba_plan *plan = NULL;
    cr_assert_eq(moba_plan_create(x.context, &p, &plan), MOBA_OK, "%s", moba_last_error());
    cr_assert_eq(moba_forward(plan, stream, &x.f), MOBA_ERROR_INVALID_ARGUMENT);
    HAS(moba_last_error(), "saved is given");
    cr_assert_eq(moba_backward(plan, stream, &x.b), MOBA_ERROR_UNSUPPORTED);
    HAS(moba_last_error(), "inference");
    cr_assert_eq(mock.n_launches, 0);
    x.f.saved = (moba_buffer)MOBA_BUFFER_NULL;
    x.f.saved_bytes = 0;
    cr_assert_eq(moba_forward(plan, stream, &x.f), MOBA_OK, "%s", moba_last_error());
    cr_assert_gt(mock.n_launches, 0);
    moba_plan_destroy(plan);
    x.f.saved = x.b.saved;
    drop(&x);
}

/* ----------------------------------------------------------------------------------------------- validation -- */

static void set_lengths(fixture *x, const int32_t *q, const int32_t *k) {
    moba_inputs *in[] = {&x->f.in, &x->r.in, &x->a.in, &x->b.in};
    moba_buffer_write(x->context, stream, x->f.in.cu_seqlens_q, q, 4 * sizeof *q);
    moba_buffer_write(x->context, stream, x->f.in.cu_seqlens_k, k, 4 * sizeof *k);
    for (size_t i = 0; i < 4; i++) {
        in[i]->cu_seqlens_q = x->f.in.cu_seqlens_q;
        in[i]->cu_seqlens_k = x->f.in.cu_seqlens_k;
        in[i]->batch = 3;
    }
}

static void expect_data_error(const fixture *x, const char *name, const char *value) {
    moba_status all[] = {moba_forward(x->plan, stream, &x->f), moba_route(x->plan, stream, &x->r),
                         moba_attend(x->plan, stream, &x->a), moba_backward(x->plan, stream, &x->b)};
    for (size_t i = 0; i < 4; i++)
        cr_assert_eq(all[i], MOBA_ERROR_INVALID_DATA, "run %zu: %s", i, moba_status_name(all[i]));
    HAS(moba_last_error(), name);
    HAS(moba_last_error(), value);
    cr_assert_eq(mock.n_launches, 0);
}

Test(runs, validation_reports_bad_lengths) {
    static const int32_t good[] = {0, 100, 100, 300};
    static const struct {
        int32_t cu[4];
        const char *value;
    } bad[] = {{{1, 100, 200, 300}, "1"},
               {{0, 100, 99, 300}, "99"},
               {{0, 100, 200, 301}, "301"},
               {{0, -5, 200, 300}, "-5"},
               {{0, 100, 200, INT32_MIN}, "-2147483648"}};
    setenv("MOBA_VALIDATE", "1", 1);
    fixture x = make(0, 1);
    x.f.in.cu_seqlens_q = buffer(x.context, 16);
    x.f.in.cu_seqlens_k = buffer(x.context, 16);
    set_lengths(&x, good, good);
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_OK, "%s", moba_last_error());
    cr_assert_eq(moba_attend(x.plan, stream, &x.a), MOBA_OK, "%s", moba_last_error());
    mock.n_launches = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        set_lengths(&x, bad[i].cu, good);
        expect_data_error(&x, "cu_seqlens_q", bad[i].value);
        set_lengths(&x, good, bad[i].cu);
        expect_data_error(&x, "cu_seqlens_k", bad[i].value);
    }
    moba_buffer_destroy(x.context, x.f.in.cu_seqlens_q);
    moba_buffer_destroy(x.context, x.f.in.cu_seqlens_k);
    drop(&x);
}

Test(runs, validation_reports_sequences_past_the_longest) {
    setenv("MOBA_VALIDATE", "1", 1);
    static const int32_t cu[] = {0, 100, 100, 300};
    fixture x = make(0, 1);
    moba_problem p = mock_problem(ROWS);
    p.max_batch = 4;
    p.max_seqlen_k = 199;
    moba_plan_destroy(x.plan);
    cr_assert_eq(moba_plan_create(x.context, &p, &x.plan), MOBA_OK);
    x.f.in.cu_seqlens_q = buffer(x.context, 16);
    x.f.in.cu_seqlens_k = buffer(x.context, 16);
    set_lengths(&x, cu, cu);
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_ERROR_INVALID_DATA);
    HAS(moba_last_error(), "200");
    HAS(moba_last_error(), "199");
    moba_buffer_destroy(x.context, x.f.in.cu_seqlens_q);
    moba_buffer_destroy(x.context, x.f.in.cu_seqlens_k);
    drop(&x);
}

Test(runs, validation_reports_bad_selections) {
    static const struct {
        int32_t ids[4];
        const char *part;
    } bad[] = {{{10, -1, -1, -1}, "10"},
               {{-2, -1, -1, -1}, "-2"},
               {{3, 3, -1, -1}, "3 twice"},
               {{0, 2, INT32_MAX, -1}, "2147483647"}};
    setenv("MOBA_VALIDATE", "1", 1);
    fixture x = make(0, 1);
    moba_buffer last = x.selection;
    last.offset = (ROWS * 4 - 1) * 16; /* the last row's last head */
    cr_assert_eq(moba_attend(x.plan, stream, &x.a), MOBA_OK, "%s", moba_last_error());
    mock.n_launches = 0;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        moba_buffer_write(x.context, stream, last, bad[i].ids, sizeof bad[i].ids);
        cr_assert_eq(moba_attend(x.plan, stream, &x.a), MOBA_ERROR_INVALID_DATA);
        HAS(moba_last_error(), "selection[299][3]");
        HAS(moba_last_error(), bad[i].part);
        cr_assert_eq(mock.n_launches, 0);
    }
    drop(&x);
    setenv("MOBA_VALIDATE", "0", 1);
    x = make(0, 1);
    last = x.selection;
    moba_buffer_write(x.context, stream, last, bad[0].ids, sizeof bad[0].ids);
    cr_assert_eq(moba_attend(x.plan, stream, &x.a), MOBA_OK, "without validation bad ids are ignored: %s",
                 moba_last_error());
    drop(&x);
}

Test(runs, validation_is_refused_inside_capture) {
    setenv("MOBA_VALIDATE", "1", 1);
    fixture x = make(0, 1);
    mock.capturing = true;
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_ERROR_CAPTURE);
    HAS(moba_last_error(), "MOBA_VALIDATE");
    cr_assert_eq(mock.n_launches, 0);
    mock.capturing = false;
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_OK, "%s", moba_last_error());
    drop(&x);
    unsetenv("MOBA_VALIDATE");
    x = make(0, 1);
    mock.capturing = true;
    cr_assert_eq(moba_forward(x.plan, stream, &x.f), MOBA_OK, "without validation a run can be captured: %s",
                 moba_last_error());
    drop(&x);
}
