/* SPDX-License-Identifier: Apache-2.0
 *
 * Bad arguments and bad device data: a status, a sentence that names the value and the limit, no access outside the
 * buffers, and a context that works afterwards.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../parity/harness.h"

#define COUNT(x) (sizeof(x) / sizeof *(x))

static const moba_stream stream = {NULL};

/* All four argument structures of one execution. */
typedef struct calls {
    moba_forward_args forward;
    moba_attend_args attend;
    moba_route_args route;
    moba_backward_args backward;
} calls;

static calls good_calls(const th_exec *e) {
    calls c = {th_forward_args(e), th_attend_args(e), th_route_args(e), th_backward_args(e)};
    return c;
}

typedef struct judge {
    const th_session *session;
    th_exec *e;
} judge;

static void expect(const judge *j, moba_status got, moba_status status, const char *what, const char *part) {
    const char *sentence = moba_last_error();
    if (got != status)
        th_fail(j->session, j->e->c, "%s: %s, expected %s (%s)", what, moba_status_name(got), moba_status_name(status),
                sentence);
    else if (strstr(sentence, part) == NULL)
        th_fail(j->session, j->e->c, "%s: the sentence \"%s\" lacks \"%s\"", what, sentence, part);
}

enum { FORWARD = 1, ATTEND = 2, ROUTE = 4, BACKWARD = 8, ALL = 15, WITH_V = 11 };

/* The runs in `which`, each expected to fail alike. */
static void expect_runs(const judge *j, const calls *c, unsigned which, moba_status status, const char *what,
                        const char *part) {
    const moba_plan *plan = j->e->plan;
    if (which & FORWARD) expect(j, moba_forward(plan, stream, &c->forward), status, what, part);
    if (which & ATTEND) expect(j, moba_attend(plan, stream, &c->attend), status, what, part);
    if (which & ROUTE) expect(j, moba_route(plan, stream, &c->route), status, what, part);
    if (which & BACKWARD) expect(j, moba_backward(plan, stream, &c->backward), status, what, part);
}

/* Applies `change` to the inputs of all four calls, expects their refusal, and undoes it. */
#define INPUTS(change, which, status, part)                                                                            \
    do {                                                                                                               \
        calls c = good_calls(j.e);                                                                                     \
        moba_inputs *all[] = {&c.forward.in, &c.attend.in, &c.route.in, &c.backward.in};                               \
        for (size_t x = 0; x < 4; x++) {                                                                               \
            moba_inputs *in = all[x];                                                                                  \
            change;                                                                                                    \
        }                                                                                                              \
        expect_runs(&j, &c, which, status, #change, part);                                                             \
    } while (0)

#define CALL(change, which, status, part)                                                                              \
    do {                                                                                                               \
        calls c = good_calls(j.e);                                                                                     \
        change;                                                                                                        \
        expect_runs(&j, &c, which, status, #change, part);                                                             \
    } while (0)

#define BAD MOBA_ERROR_INVALID_ARGUMENT
#define NO MOBA_ERROR_UNSUPPORTED
#define SMALL MOBA_ERROR_WORKSPACE_TOO_SMALL
#define NONE ((moba_buffer)MOBA_BUFFER_NULL)

static void missing_buffers(judge j) {
    INPUTS(in->q.buffer = NONE, ALL, BAD, "q is none");
    INPUTS(in->k.buffer = NONE, ALL, BAD, "k is none");
    INPUTS(in->v.buffer = NONE, WITH_V, BAD, "v is none");
    INPUTS(in->kconv_weight = NONE, ALL, BAD, "kconv_weight is none");
    INPUTS(in->cu_seqlens_q = NONE, ALL, BAD, "cu_seqlens_q");
    INPUTS(in->cu_seqlens_k = NONE, ALL, BAD, "cu_seqlens_k");
    CALL(c.forward.o.buffer = NONE, FORWARD, BAD, "o is none");
    CALL(c.attend.o.buffer = NONE, ATTEND, BAD, "o is none");
    CALL(c.attend.selection = NONE, ATTEND, BAD, "selection is none");
    CALL(c.route.selection = NONE, ROUTE, BAD, "selection is none");
    CALL(c.backward.o.buffer = NONE, BACKWARD, BAD, "o is none");
    CALL(c.backward.lse = NONE, BACKWARD, BAD, "lse is none");
    CALL(c.backward.dout.buffer = NONE, BACKWARD, BAD, "dout is none");
    CALL(c.backward.saved = NONE, BACKWARD, BAD, "saved is none");
    CALL(c.backward.dq.buffer = NONE, BACKWARD, BAD, "dq is none");
    CALL(c.backward.dk.buffer = NONE, BACKWARD, BAD, "dk is none");
    CALL(c.backward.dv.buffer = NONE, BACKWARD, BAD, "dv is none");
    CALL(c.backward.dkconv_weight = NONE, BACKWARD, BAD, "dkconv_weight is none");
    CALL((c.forward.workspace = c.attend.workspace = c.route.workspace = c.backward.workspace = NONE), ALL, SMALL,
         "workspace");
}

static void misaligned_buffers(judge j) {
    INPUTS(in->q.buffer.offset += 2, ALL, BAD, "multiple of 4");
    INPUTS(in->k.buffer.offset += 1, ALL, BAD, "k is at");
    INPUTS(in->v.buffer.offset += 3, WITH_V, BAD, "v is at");
    INPUTS(in->kconv_weight.offset += 2, ALL, BAD, "kconv_weight");
    INPUTS(in->cu_seqlens_q.offset += 2, ALL, BAD, "cu_seqlens_q");
    INPUTS(in->cu_seqlens_k.offset += 1, ALL, BAD, "cu_seqlens_k");
    CALL(c.forward.o.buffer.offset += 2, FORWARD, BAD, "o is at");
    CALL(c.forward.lse.offset += 2, FORWARD, BAD, "lse");
    CALL(c.forward.selection.offset += 1, FORWARD, BAD, "selection");
    CALL(c.attend.selection.offset += 2, ATTEND, BAD, "selection");
    CALL(c.forward.saved.offset += 128, FORWARD, BAD, "256");
    CALL(c.backward.saved.offset += 4, BACKWARD, BAD, "256");
    CALL(c.forward.workspace.offset += 64, FORWARD, BAD, "256");
    CALL(c.backward.workspace.offset += 1, BACKWARD, BAD, "workspace");
    CALL(c.backward.dq.buffer.offset += 1, BACKWARD, BAD, "dq");
    CALL(c.backward.dk.buffer.offset += 1, BACKWARD, BAD, "dk");
    CALL(c.backward.dv.buffer.offset += 2, BACKWARD, BAD, "dv");
    CALL(c.backward.dout.buffer.offset += 2, BACKWARD, BAD, "dout");
    CALL(c.backward.dkconv_weight.offset += 2, BACKWARD, BAD, "dkconv_weight");
}

static void bad_strides(judge j) {
    INPUTS(in->q.token_stride = -1, ALL, BAD, "q.token_stride is -1");
    INPUTS(in->q.head_stride = -64, ALL, BAD, "q.head_stride is -64");
    INPUTS(in->k.token_stride = INT64_MIN, ALL, BAD, "k.token_stride is -9223372036854775808");
    INPUTS(in->v.head_stride = -1, WITH_V, BAD, "v.head_stride is -1");
    INPUTS(in->q.token_stride = INT64_MAX, ALL, BAD, "9223372036854775807");
    INPUTS(in->k.head_stride = INT64_MAX / 2, ALL, BAD, "2^63");
    CALL(c.forward.o.token_stride = -5, FORWARD, BAD, "o.token_stride is -5");
    CALL(c.forward.o.token_stride = 1, FORWARD, BAD, "head_dim");
    CALL(c.forward.o.head_stride = 0, FORWARD, BAD, "head_dim");
    CALL(c.backward.dq.head_stride = -5, BACKWARD, BAD, "dq.head_stride is -5");
    CALL(c.backward.dk.token_stride = 0, BACKWARD, BAD, "dk.token_stride is 0");
    CALL(c.backward.dv.head_stride = 1, BACKWARD, BAD, "dv.head_stride is 1");
}

static void bad_shapes(judge j) {
    INPUTS(in->batch = 0, ALL, BAD, "batch is 0");
    INPUTS(in->batch = -1, ALL, BAD, "batch is -1");
    INPUTS(in->batch = 4, ALL, NO, "max_batch is 3");
    INPUTS(in->total_q = -1, ALL, BAD, "total_q is -1");
    INPUTS(in->total_k = -1, ALL, BAD, "total_k is -1");
    INPUTS(in->total_q += 1, ALL, NO, "max_total_q");
    INPUTS(in->total_k += 1, ALL, NO, "max_total_k");
    INPUTS(in->total_k = INT64_MAX, ALL, NO, "9223372036854775807");
    CALL(c.forward.workspace_bytes -= 1, FORWARD, SMALL, "workspace_bytes");
    CALL(c.attend.workspace_bytes = 0, ATTEND, SMALL, "workspace_bytes is 0");
    CALL(c.route.workspace_bytes -= 1, ROUTE, SMALL, "workspace_bytes");
    CALL(c.backward.workspace_bytes -= 1, BACKWARD, SMALL, "workspace_bytes");
    CALL(c.forward.saved_bytes -= 1, FORWARD, SMALL, "saved_bytes");
    CALL(c.backward.saved_bytes -= 1, BACKWARD, SMALL, "saved_bytes");
}

/* A plan without cu_seqlens, key convolution or selection, of the other kind of refusal. */
static void unequal_lengths(judge j) {
    INPUTS(in->total_q -= 1, ALL, BAD, "multiple of batch");
    INPUTS(in->total_k -= 1, ALL, BAD, "multiple of batch");
    INPUTS((in->batch = 1), ALL, NO, "max_seqlen");
    INPUTS(in->q.batch_stride = -1, ALL, BAD, "q.batch_stride is -1");
    INPUTS(in->kconv_weight = in->q.buffer, ALL, BAD, "kconv_width is 0");
    CALL(c.backward.dkconv_weight = c.backward.lse, BACKWARD, BAD, "kconv_width is 0");
}

static void dense_plan(judge j) {
    CALL(c.route.selection = c.forward.lse, ROUTE, BAD, "dense");
    CALL(c.attend.selection = c.forward.lse, ATTEND, BAD, "dense");
    CALL(c.forward.selection = c.forward.lse, FORWARD, BAD, "dense");
}

/* Runs the mutations of `check` and then a good run, which must still be right. */
static void with_session(const char *text, void (*check)(judge)) {
    size_t n;
    th_session *sessions = th_sessions_open(&n);
    for (size_t i = 0; i < n; i++) {
        th_case *c = th_case_new(text, th_seed());
        th_exec *e = th_open(&sessions[i], c, NULL);
        if (e != NULL) {
            th_result r;
            judge j = {&sessions[i], e};
            check(j);
            if (th_run(e, TH_FORWARD | TH_BACKWARD, NULL, &r)) {
                th_expected *x = th_expect(c, r.selection, true);
                th_check_forward(&sessions[i], c, x, &r);
                th_check_backward(&sessions[i], c, x, &r);
                th_expected_free(x);
            }
            th_result_free(&r);
        }
        th_close(e);
        th_case_free(c);
    }
    th_sessions_close(sessions, n);
    th_finish();
}

static const char packed[] = "b3q50k60h4g2d64B16t3c,f32,kconv=3,lens=50+0+9/60+4+9";

Test(arguments, missing_buffers) { with_session(packed, missing_buffers); }
Test(arguments, misaligned_buffers) { with_session(packed, misaligned_buffers); }
Test(arguments, bad_strides) { with_session(packed, bad_strides); }
Test(arguments, bad_shapes_and_sizes) { with_session(packed, bad_shapes); }
Test(arguments, unequal_lengths) { with_session("b2q50k60h4g2d64B16t3c,f32", unequal_lengths); }
Test(arguments, dense_plans_have_no_selection) { with_session("b1q50k60h4g2d64B16t3c,f32,dense", dense_plan); }

static void optional_outputs(judge j) {
    moba_forward_args f = th_forward_args(j.e);
    f.lse = f.selection = f.saved = NONE;
    f.saved_bytes = 0;
    th_ok(j.session, j.e->c, moba_forward(j.e->plan, stream, &f), "forward without lse, selection and saved");
    moba_attend_args a = th_attend_args(j.e);
    moba_buffer_fill(j.e->context, stream, j.e->selection.data, 0xff, j.e->selection.bytes);
    a.lse = a.saved = NONE;
    a.saved_bytes = 0;
    th_ok(j.session, j.e->c, moba_attend(j.e->plan, stream, &a), "attend without lse and saved");
}

Test(arguments, optional_outputs_may_be_none) { with_session(packed, optional_outputs); }

static void buffers(judge j) {
    moba_context *context = j.e->context;
    moba_buffer b = NONE;
    unsigned char byte = 0;
    expect(&j, moba_buffer_create(context, 0, &b), BAD, "0 bytes", "bytes is 0");
    expect(&j, moba_buffer_create(context, 1, NULL), BAD, "no out", "NULL");
    expect(&j, moba_buffer_create(NULL, 1, &b), BAD, "no context", "NULL");
    expect(&j, moba_buffer_create(context, SIZE_MAX, &b), MOBA_ERROR_OUT_OF_MEMORY, "SIZE_MAX bytes",
           "18446744073709551615");
    expect(&j, moba_buffer_create(context, SIZE_MAX - 300, &b), MOBA_ERROR_OUT_OF_MEMORY, "nearly SIZE_MAX bytes",
           "bytes");
    expect(&j, moba_buffer_create(context, (size_t)1 << 62, &b), MOBA_ERROR_OUT_OF_MEMORY, "2^62 bytes",
           "4611686018427387904");
    expect(&j, moba_buffer_write(context, stream, NONE, &byte, 1), BAD, "write to none", "NULL");
    expect(&j, moba_buffer_write(context, stream, j.e->q.base, NULL, 1), BAD, "write from NULL", "NULL");
    expect(&j, moba_buffer_read(context, stream, NONE, &byte, 1), BAD, "read of none", "NULL");
    expect(&j, moba_buffer_read(context, stream, j.e->q.base, NULL, 1), BAD, "read to NULL", "NULL");
    expect(&j, moba_buffer_fill(context, stream, NONE, 0, 1), BAD, "fill of none", "NULL");
    expect(&j, moba_forward(NULL, stream, NULL), BAD, "no plan", "plan is NULL");
    expect(&j, moba_forward(j.e->plan, stream, NULL), BAD, "no arguments", "moba_forward_args is NULL");
    expect(&j, moba_attend(j.e->plan, stream, NULL), BAD, "no arguments", "moba_attend_args is NULL");
    expect(&j, moba_route(j.e->plan, stream, NULL), BAD, "no arguments", "moba_route_args is NULL");
    expect(&j, moba_backward(j.e->plan, stream, NULL), BAD, "no arguments", "moba_backward_args is NULL");
    if (strcmp(j.session->backend, "cpu") == 0) { /* elsewhere a wild handle may bring the driver down */
        moba_forward_args foreign = th_forward_args(j.e);
        moba_stream other = {&foreign};
        expect(&j, moba_forward(j.e->plan, other, &foreign), MOBA_ERROR_WRONG_CONTEXT, "a foreign stream",
               "another context");
    }
    expect(&j, moba_stream_synchronize(NULL, stream), BAD, "no context", "NULL");
    expect(&j, moba_stream_create(context, NULL), BAD, "no out", "NULL");
    expect(&j, moba_event_create(context, NULL), BAD, "no out", "NULL");
    expect(&j, moba_event_record(context, stream, (moba_event){NULL}), BAD, "no event", "NULL");
    moba_buffer_destroy(context, NONE);
    moba_buffer_destroy(NULL, NONE);

    moba_stream own = {NULL};
    moba_event begin = {NULL}, end = {NULL};
    double ms = -1;
    th_ok(j.session, j.e->c, moba_stream_create(context, &own), "moba_stream_create");
    th_ok(j.session, j.e->c, moba_event_create(context, &begin), "moba_event_create");
    th_ok(j.session, j.e->c, moba_event_create(context, &end), "moba_event_create");
    th_ok(j.session, j.e->c, moba_event_record(context, own, begin), "moba_event_record");
    moba_forward_args f = th_forward_args(j.e);
    th_ok(j.session, j.e->c, moba_forward(j.e->plan, own, &f), "moba_forward on an own stream");
    th_ok(j.session, j.e->c, moba_event_record(context, own, end), "moba_event_record");
    th_ok(j.session, j.e->c, moba_event_elapsed(context, begin, end, &ms), "moba_event_elapsed");
    if (!(ms >= 0 && ms < 60000)) th_fail(j.session, j.e->c, "a small forward took %g ms", ms);
    expect(&j, moba_event_elapsed(context, begin, end, NULL), BAD, "no ms", "NULL");
    moba_event_destroy(context, begin);
    moba_event_destroy(context, end);
    moba_event_destroy(context, (moba_event){NULL});
    moba_stream_destroy(context, own);
}

Test(arguments, buffers_streams_events) { with_session(packed, buffers); }

/* ------------------------------------------------------------------------------------------- bad device data -- */

static int32_t wild(th_random *r, int32_t reasonable) {
    switch (th_integer(r, 0, 5)) {
    case 0:
        return INT32_MIN;
    case 1:
        return INT32_MAX;
    case 2:
        return -1;
    default:
        return (int32_t)th_integer(r, 0, reasonable);
    }
}

/* Lengths and selections of any content, unvalidated: wrong numbers are allowed, an access outside a buffer is not. */
static void run_wild(const th_session *session, th_case *c, th_random *r, bool short_bounds) {
    const ref_shape *s = &c->shape;
    moba_problem p = c->problem;
    if (short_bounds) p.max_seqlen_q = p.max_seqlen_k = 20;
    for (int64_t b = 0; b <= s->batch; b++) {
        c->cu_q[b] = wild(r, (int32_t)s->total_q);
        c->cu_k[b] = wild(r, (int32_t)s->total_k);
    }
    int32_t *selection = th_allocate((size_t)th_selection_elements(c), sizeof *selection);
    for (int64_t i = 0; i < th_selection_elements(c); i++)
        selection[i] = wild(r, 8);
    th_exec *e = th_open(session, c, &p);
    if (e != NULL) {
        th_result result;
        th_run(e, TH_FORWARD | TH_BACKWARD, NULL, &result);
        th_result_free(&result);
        if (!s->dense) {
            th_run(e, TH_ATTEND | TH_BACKWARD, selection, &result);
            th_result_free(&result);
        }
    }
    th_close(e);
    free(selection);
}

Test(data, wild_lengths_and_selections_stay_inside_the_buffers) {
    static const char *const problems[] = {
        "b3q50k60h4g2d32B16t3c,f32,lens=50+0+9/60+4+9",
        "b4q40k40h2g1d16B16t4n,bf16,kconv=3,lens=40+1+2+3/40+5+6+7",
        "b2q30k30h2g2d64B16t1c,f16,dense,lens=30+8/30+8",
        "b1q50k50h2g1d32B16t200c,f32,lens=50/50",
    };
    size_t n;
    th_session *sessions = th_sessions_open(&n);
    th_random random = {th_seed() * 77};
    for (size_t x = 0; x < COUNT(problems); x++)
        for (int round = 0; round < 24; round++)
            for (size_t i = 0; i < n; i++) {
                th_case *c = th_case_new(problems[x], th_seed());
                run_wild(&sessions[i], c, &random, round % 2 == 1);
                th_case_free(c);
            }
    th_sessions_close(sessions, n);
    th_finish();
}

/* The same with MOBA_VALIDATE=1: an error that names the array. */
Test(data, validation_names_what_is_wrong) {
    setenv("MOBA_VALIDATE", "1", 1);
    size_t n;
    th_session *sessions = th_sessions_open(&n);
    for (size_t i = 0; i < n; i++) {
        th_case *c = th_case_new("b2q50k60h4g2d32B16t3c,f32,lens=50+9/60+9", th_seed());
        th_exec *good = th_open(&sessions[i], c, NULL);
        judge j = {&sessions[i], good};
        moba_forward_args f = th_forward_args(good);
        th_ok(&sessions[i], c, moba_forward(good->plan, stream, &f), "good data");
        static const int32_t falling[] = {0, 59, 50};
        moba_buffer_write(good->context, stream, good->cu_k.data, falling, sizeof falling);
        expect(&j, moba_forward(good->plan, stream, &f), MOBA_ERROR_INVALID_DATA, "falling lengths",
               "cu_seqlens_k[2] is 50");
        moba_buffer_write(good->context, stream, good->cu_k.data, c->cu_k, sizeof falling);
        moba_attend_args a = th_attend_args(good);
        static const int32_t ids[] = {0, 4, 0};
        moba_buffer_fill(good->context, stream, good->selection.data, 0xff, good->selection.bytes);
        moba_buffer_write(good->context, stream, good->selection.data, ids, sizeof ids);
        expect(&j, moba_attend(good->plan, stream, &a), MOBA_ERROR_INVALID_DATA, "ids past the last block",
               "selection[0][0]");
        static const int32_t past_own[] = {3, -1, -1}; /* legal: the causal mask leaves no key of it */
        moba_buffer_write(good->context, stream, good->selection.data, past_own, sizeof past_own);
        th_ok(&sessions[i], c, moba_attend(good->plan, stream, &a), "a block past the own block");
        th_ok(&sessions[i], c, moba_stream_synchronize(good->context, stream), "moba_stream_synchronize");
        th_close(good);
        th_case_free(c);
    }
    th_sessions_close(sessions, n);
    th_finish();
}
