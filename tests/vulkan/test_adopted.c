/* SPDX-License-Identifier: Apache-2.0
 *
 * moba_vulkan.h: a device, a queue, buffers and a command buffer of the caller, with and without buffer addresses.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "../parity/harness.h"
#include "own_device.h"

static const char *const problems[] = {
    "b2q70k90h4g2d64B32t2c,f16,det",
    "b2q60k60h2g1d33B16t3c,f32,det,kconv=3",
    "b3q50k80h4g2d128B32t2c,bf16,det,lens=50+0+21/80+4+30",
    "b1q90k90h2g1d64B16t1c,f16,det,dense",
};
enum { N_PROBLEMS = sizeof problems / sizeof *problems, N_OWN = 9 };

static th_session session_of(moba_context *context) {
    th_session s;
    memset(&s, 0, sizeof s);
    strcpy(s.backend, "vulkan");
    s.context = context;
    return s;
}

/* ------------------------------------------------------------------------------- device and queue adopted -- */

static void check_device(bool bda) {
    own_device d;
    own_device_open(&d, bda);
    moba_context *context = own_device_context(&d);
    moba_device_description description = MOBA_DEVICE_DESCRIPTION_INIT;
    cr_assert_eq(moba_context_device(context, &description), MOBA_OK);
    cr_assert_eq(strstr(description.capabilities, "bda") != NULL, bda, "capabilities: %s", description.capabilities);
    th_session session = session_of(context);
    for (int i = 0; i < N_PROBLEMS; i++) {
        th_case *c = th_case_new(problems[i], th_seed());
        th_check_both(&session, 1, c);
        th_case_free(c);
    }
    moba_context_destroy(context);
    own_device_close(&d); /* still the caller's: the library must not have destroyed it */
    th_finish();
}

Test(adopted, device_with_addresses) { check_device(true); }
Test(adopted, device_without_addresses) { check_device(false); }

/* ---------------------------------------------------------------- buffers and a command buffer of the caller -- */

typedef struct replaced {
    const th_buffer *library;
    own_buffer own;
} replaced;

/** Own buffers in place of the library's for four inputs and five outputs. */
static void replace_buffers(const own_device *d, const th_exec *e, replaced *r, moba_forward_args *f,
                            moba_backward_args *b) {
    const th_buffer *all[N_OWN] = {&e->q, &e->k, &e->v, &e->dout, &e->o, &e->lse, &e->dq, &e->dk, &e->dv};
    moba_buffer handle[N_OWN];
    for (int i = 0; i < N_OWN; i++) {
        r[i].library = all[i];
        /* The offset of the data in it is unlike the library's buffers'. */
        own_buffer_create(d, all[i]->bytes + 48, &r[i].own);
        handle[i] = own_buffer_handle(&r[i].own);
        handle[i].offset = 48;
        memset(r[i].own.mapped, 0xff, r[i].own.bytes);
        if (i < 4) memcpy((char *)r[i].own.mapped + 48, all[i]->image + TH_GUARD, all[i]->bytes);
    }
    f->in.q.buffer = b->in.q.buffer = handle[0];
    f->in.k.buffer = b->in.k.buffer = handle[1];
    f->in.v.buffer = b->in.v.buffer = handle[2];
    b->dout.buffer = handle[3];
    f->o.buffer = b->o.buffer = handle[4];
    f->lse = b->lse = handle[5];
    b->dq.buffer = handle[6];
    b->dk.buffer = handle[7];
    b->dv.buffer = handle[8];
}

static void compare_outputs(const th_session *session, const th_case *c, const char *what, const replaced *r) {
    static const char *const names[N_OWN] = {"q", "k", "v", "dout", "o", "lse", "dq", "dk", "dv"};
    for (int i = 4; i < N_OWN; i++) {
        unsigned char *expected = th_allocate(r[i].library->bytes, 1);
        moba_stream stream = {NULL};
        th_ok(session, c, moba_buffer_read(session->context, stream, r[i].library->data, expected, r[i].library->bytes),
              "moba_buffer_read");
        if (memcmp(expected, (char *)r[i].own.mapped + 48, r[i].library->bytes) != 0)
            th_fail(session, c, "%s: %s differs from the library's own stream and buffers", what, names[i]);
        for (int x = 0; x < 48; x++)
            if (((unsigned char *)r[i].own.mapped)[x] != 0xff)
                th_fail(session, c, "%s: written before %s", what, names[i]);
        free(expected);
    }
}

static void check_recording(const own_device *d, const th_session *session, const th_case *c) {
    th_exec *e = th_open(session, c, NULL);
    th_result r;
    replaced own[N_OWN];
    if (e == NULL) return;
    if (!th_run(e, TH_FORWARD | TH_BACKWARD, NULL, &r)) th_fatal("the library's own stream failed");
    moba_forward_args f = th_forward_args(e);
    moba_backward_args b = th_backward_args(e);
    replace_buffers(d, e, own, &f, &b);
    moba_stream stream = {NULL};
    moba_event begin, end;
    double ms = -1.0;
    cr_assert_eq(moba_event_create(session->context, &begin), MOBA_OK, "%s", moba_last_error());
    cr_assert_eq(moba_event_create(session->context, &end), MOBA_OK, "%s", moba_last_error());

    /* The library's stream, the caller's buffers. */
    if (th_ok(session, c, moba_forward(e->plan, stream, &f), "moba_forward") &&
        th_ok(session, c, moba_backward(e->plan, stream, &b), "moba_backward") &&
        th_ok(session, c, moba_stream_synchronize(session->context, stream), "moba_stream_synchronize"))
        compare_outputs(session, c, "own buffers", own);

    /* The caller's command buffer, submitted twice. */
    VkCommandBuffer commands = own_begin(d);
    stream.native = commands;
    bool ok = th_ok(session, c, moba_event_record(session->context, stream, begin), "moba_event_record") &&
              th_ok(session, c, moba_forward(e->plan, stream, &f), "moba_forward") &&
              th_ok(session, c, moba_backward(e->plan, stream, &b), "moba_backward") &&
              th_ok(session, c, moba_event_record(session->context, stream, end), "moba_event_record");
    own_end(d, commands);
    cr_assert_eq(moba_event_elapsed(session->context, begin, end, &ms), MOBA_ERROR_INVALID_ARGUMENT,
                 "an event that was not reached has a time");
    for (int repeat = 0; repeat < 2 && ok; repeat++) {
        for (int i = 4; i < N_OWN; i++)
            memset(own[i].own.mapped, 0xff, own[i].own.bytes);
        own_submit(d, commands);
        compare_outputs(session, c, "own command buffer", own);
    }
    if (th_ok(session, c, moba_event_elapsed(session->context, begin, end, &ms), "moba_event_elapsed") &&
        !(ms > 0.0 && ms < 60e3))
        th_fail(session, c, "a recorded run took %g ms by its timestamps", ms);
    moba_event_destroy(session->context, begin);
    moba_event_destroy(session->context, end);
    for (int i = 0; i < N_OWN; i++)
        own_buffer_destroy(d, &own[i].own);
    th_result_free(&r);
    th_close(e);
}

static void check_recordings(bool bda) {
    own_device d;
    own_device_open(&d, bda);
    moba_context *context = own_device_context(&d);
    th_session session = session_of(context);
    for (int i = 0; i < N_PROBLEMS; i++) {
        th_case *c = th_case_new(problems[i], th_seed());
        check_recording(&d, &session, c);
        th_case_free(c);
    }
    moba_context_destroy(context);
    own_device_close(&d);
    th_finish();
}

Test(adopted, recording_with_addresses) { check_recordings(true); }
Test(adopted, recording_without_addresses) { check_recordings(false); }

/* ------------------------------------------------------------------------------------------------ refusals -- */

static void refused(const moba_vulkan_handles *h, moba_status expected, const char *word) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "vulkan";
    options.native = h;
    moba_context *context = NULL;
    moba_status status = moba_context_create(&options, &context);
    cr_assert_eq(status, expected, "%s: %s, %s", word, moba_status_name(status), moba_last_error());
    cr_assert_not_null(strstr(moba_last_error(), word), "\"%s\" does not name %s", moba_last_error(), word);
    cr_assert_null(context);
}

Test(adopted, bad_handles_are_refused) {
    own_device d;
    own_device_open(&d, true);
    moba_vulkan_handles good = own_device_handles(&d), h;
    h = good, h.struct_size = 4;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "struct_size");
    h = good, h.instance = NULL;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "instance");
    h = good, h.physical_device = NULL;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "physical_device");
    h = good, h.device = NULL;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "device");
    h = good, h.queue = NULL;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "queue");
    h = good, h.queue_family = 1000;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "queue_family");
    own_device_close(&d);
}

/* A caller built before without_buffer_device_address: it means 0. */
Test(adopted, shorter_handles_are_taken) {
    own_device d;
    own_device_open(&d, true);
    moba_vulkan_handles h = own_device_handles(&d);
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    h.struct_size = offsetof(moba_vulkan_handles, without_buffer_device_address);
    h.without_buffer_device_address = 1;
    options.backend = "vulkan";
    options.native = &h;
    cr_assert_eq(moba_context_create(&options, &context), MOBA_OK, "%s", moba_last_error());
    moba_device_description description = MOBA_DEVICE_DESCRIPTION_INIT;
    cr_assert_eq(moba_context_device(context, &description), MOBA_OK);
    cr_assert_not_null(strstr(description.capabilities, "bda"));
    moba_context_destroy(context);
    own_device_close(&d);
}

/* Calls that wait for the device cannot use a command buffer that the caller has not submitted. */
Test(adopted, waiting_on_a_callers_command_buffer_is_refused) {
    own_device d;
    own_device_open(&d, true);
    setenv("MOBA_VALIDATE", "1", 1);
    moba_context *context = own_device_context(&d);
    unsetenv("MOBA_VALIDATE");
    th_session session = session_of(context);
    th_case *c = th_case_new(problems[0], th_seed());
    th_exec *e = th_open(&session, c, NULL);
    cr_assert_not_null(e);
    moba_forward_args f = th_forward_args(e);
    VkCommandBuffer commands = own_begin(&d);
    moba_stream stream = {commands};
    char bytes[16] = {0};
    cr_expect_eq(moba_buffer_write(context, stream, e->q.data, bytes, sizeof bytes), MOBA_ERROR_UNSUPPORTED);
    cr_expect_eq(moba_buffer_read(context, stream, e->q.data, bytes, sizeof bytes), MOBA_ERROR_UNSUPPORTED);
    cr_expect_eq(moba_stream_synchronize(context, stream), MOBA_ERROR_UNSUPPORTED);
    cr_expect_not_null(strstr(moba_last_error(), "VkCommandBuffer"), "%s", moba_last_error());
    cr_expect_eq(moba_forward(e->plan, stream, &f), MOBA_ERROR_CAPTURE);
    cr_expect_not_null(strstr(moba_last_error(), "MOBA_VALIDATE"), "%s", moba_last_error());
    own_end(&d, commands);
    th_close(e);
    th_case_free(c);
    moba_context_destroy(context);
    own_device_close(&d);
    th_finish();
}
