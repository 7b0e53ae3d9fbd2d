/* SPDX-License-Identifier: Apache-2.0
 *
 * What only the Vulkan backend has: tensors longer than a storage buffer binding, allocations past the device's limit,
 * the pipeline cache, timestamps, odd fills, streams, and MOBA_VALIDATE on device data.
 */
#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../parity/harness.h"
#include "own_device.h"

static moba_context *open_context(const char *mask) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = "vulkan";
    if (mask) setenv("MOBA_CAPS_MASK", mask, 1);
    moba_status status = moba_context_create(&options, &context);
    unsetenv("MOBA_CAPS_MASK");
    if (status != MOBA_OK) th_fatal("%s: %s", moba_status_name(status), moba_last_error());
    return context;
}

static th_session session_of(moba_context *context, const char *mask) {
    th_session s;
    memset(&s, 0, sizeof s);
    strcpy(s.backend, "vulkan");
    if (mask) snprintf(s.mask, sizeof s.mask, "%s", mask);
    s.context = context;
    return s;
}

static const moba_stream no_stream = {NULL};

/* ------------------------------------------------------------------------------------------- large tensors -- */

/** maxStorageBufferRange of the first device, cut to a power of two, as the backend's windows are. */
static uint64_t window_bytes(void) {
    own_device d;
    uint64_t window = 1;
    own_device_open(&d, true);
    while (window * 2 <= d.limits.maxStorageBufferRange && window < UINT64_C(1) << 31)
        window *= 2;
    own_device_close(&d);
    return window;
}

/** q, k, v and o spread over `bytes` each by their token strides, against packed ones: same bits. */
static moba_status run_spread(const th_session *session, const th_case *c, uint64_t bytes) {
    th_exec *e = th_open(session, c, NULL);
    th_result r;
    cr_assert_not_null(e);
    cr_assert(th_run(e, TH_FORWARD | TH_BACKWARD, NULL, &r));
    th_result_free(&r);
    const th_buffer *packed[4] = {&e->q, &e->k, &e->v, &e->o};
    const int64_t heads[4] = {c->shape.n_q_heads, c->shape.n_kv_heads, c->shape.n_kv_heads, c->shape.n_q_heads};
    const int64_t rows = c->shape.total_q;
    moba_forward_args f = th_forward_args(e);
    moba_tensor *tensors[4] = {&f.in.q, &f.in.k, &f.in.v, &f.o};
    const int64_t stride = (int64_t)(bytes / 2) / (rows - 1);
    for (int x = 0; x < 4; x++) {
        const size_t row_bytes = (size_t)(heads[x] * c->shape.head_dim) * 2;
        moba_tensor *t = tensors[x];
        t->token_stride = stride;
        moba_status status = moba_buffer_create(session->context, bytes + row_bytes, &t->buffer);
        cr_assert_eq(status, MOBA_OK, "%s", moba_last_error());
        for (int64_t row = 0; row < rows && x < 3; row++) {
            moba_buffer at = {t->buffer.handle, (uint64_t)(row * stride) * 2};
            th_ok(session, c,
                  moba_buffer_write(session->context, no_stream, at,
                                    packed[x]->image + TH_GUARD + (size_t)row * row_bytes, row_bytes),
                  "moba_buffer_write");
        }
    }
    moba_status status = moba_forward(e->plan, no_stream, &f);
    const size_t row_bytes = (size_t)(heads[3] * c->shape.head_dim) * 2;
    unsigned char *near = th_allocate(row_bytes, 1), *far = th_allocate(row_bytes, 1);
    for (int64_t row = 0; row < rows && status == MOBA_OK; row++) {
        moba_buffer at = {f.o.buffer.handle, (uint64_t)(row * stride) * 2}, from = e->o.data;
        from.offset += (uint64_t)row * row_bytes;
        th_ok(session, c, moba_buffer_read(session->context, no_stream, at, far, row_bytes), "moba_buffer_read");
        th_ok(session, c, moba_buffer_read(session->context, no_stream, from, near, row_bytes), "moba_buffer_read");
        if (memcmp(near, far, row_bytes) != 0)
            th_fail(session, c, "row %lld of o, %llu bytes in, differs from the packed run", (long long)row,
                    (unsigned long long)at.offset);
    }
    free(near);
    free(far);
    for (int x = 0; x < 4; x++)
        moba_buffer_destroy(session->context, tensors[x]->buffer);
    th_close(e);
    return status;
}

/* Tensors of one and a half bindings are read and written whole; what no set of bindings reaches is refused. */
static void check_large(const char *mask) {
    moba_context *context = open_context(mask);
    th_session session = session_of(context, mask);
    th_case *c = th_case_new("b1q60k60h2g1d64B16t3c,f16", th_seed());
    const uint64_t window = window_bytes();
    cr_expect_eq(run_spread(&session, c, window / 2 * 3), MOBA_OK, "%s", moba_last_error());
    if (mask && window * 16 < UINT64_C(1) << 32) {
        moba_problem p = c->problem;
        moba_plan *plan = NULL;
        th_exec *e = th_open(&session, c, NULL);
        cr_assert_not_null(e);
        cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_OK, "%s", moba_last_error());
        moba_forward_args f = th_forward_args(e);
        f.in.q.token_stride = (int64_t)(window * 17 / 2) / 59; /* past every window; nothing may be launched on it */
        cr_expect_eq(moba_forward(plan, no_stream, &f), MOBA_ERROR_UNSUPPORTED);
        cr_expect_not_null(strstr(moba_last_error(), "spans"), "%s", moba_last_error());
        cr_expect_eq(moba_stream_synchronize(context, no_stream), MOBA_OK, "%s", moba_last_error());
        f = th_forward_args(e);
        cr_expect_eq(moba_forward(plan, no_stream, &f), MOBA_OK, "after a refusal: %s", moba_last_error());
        cr_expect_eq(moba_stream_synchronize(context, no_stream), MOBA_OK, "%s", moba_last_error());
        moba_plan_destroy(plan);
        th_close(e);
    }
    th_case_free(c);
    moba_context_destroy(context);
    th_finish();
}

Test(vulkan, tensors_longer_than_a_binding_by_address) { check_large(NULL); }
Test(vulkan, tensors_longer_than_a_binding_bound) { check_large("-bda"); }

/* Past maxMemoryAllocationSize: a sparse buffer whose both ends work, or a refusal that names the size. */
Test(vulkan, allocations_past_the_limit) {
    moba_context *context = open_context(NULL);
    moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
    cr_assert_eq(moba_context_device(context, &device), MOBA_OK);
    const size_t asked[] = {(size_t)9 << 29, (size_t)1 << 46};
    for (int i = 0; i < 2; i++) {
        moba_buffer b;
        char word[64], in[8] = "to here", out[8] = "";
        moba_status status = moba_buffer_create(context, asked[i], &b);
        snprintf(word, sizeof word, "%zu", asked[i]);
        if (status != MOBA_OK) {
            cr_expect_eq(status, MOBA_ERROR_OUT_OF_MEMORY);
            cr_expect_not_null(strstr(moba_last_error(), word), "%s", moba_last_error());
            continue;
        }
        cr_expect_lt(asked[i], device.memory_bytes);
        for (size_t at = 0; at < asked[i]; at += asked[i] - sizeof in) {
            moba_buffer end = {b.handle, at};
            cr_expect_eq(moba_buffer_write(context, no_stream, end, in, sizeof in), MOBA_OK, "%s", moba_last_error());
            cr_expect_eq(moba_buffer_read(context, no_stream, end, out, sizeof out), MOBA_OK, "%s", moba_last_error());
            cr_expect_str_eq(in, out, "byte %zu of %zu", at, asked[i]);
            if (at > 0) break;
        }
        moba_buffer_destroy(context, b);
    }
    moba_context_destroy(context);
}

/* ---------------------------------------------------------------------------------------------- small parts -- */

/* Fills of any length at any offset touch that range only. */
Test(vulkan, fills_of_any_alignment) {
    moba_context *context = open_context(NULL);
    moba_buffer b;
    unsigned char expected[64], got[64];
    cr_assert_eq(moba_buffer_create(context, sizeof got, &b), MOBA_OK, "%s", moba_last_error());
    for (size_t offset = 0; offset < 9; offset++)
        for (size_t bytes = 1; bytes < 20; bytes++) {
            memset(expected, 0x11, sizeof expected);
            memset(expected + offset, 0xa7, bytes);
            moba_buffer at = {b.handle, offset};
            cr_assert_eq(moba_buffer_fill(context, no_stream, b, 0x11, sizeof got), MOBA_OK, "%s", moba_last_error());
            cr_assert_eq(moba_buffer_fill(context, no_stream, at, 0xa7, bytes), MOBA_OK, "%s", moba_last_error());
            cr_assert_eq(moba_buffer_read(context, no_stream, b, got, sizeof got), MOBA_OK, "%s", moba_last_error());
            cr_assert_eq(memcmp(got, expected, sizeof got), 0, "%zu bytes at %zu", bytes, offset);
        }
    moba_buffer_destroy(context, b);
    moba_context_destroy(context);
}

/* Runs on two streams, interleaved, agree with runs on the default one; timestamps of each enclose its work. */
Test(vulkan, streams_and_timestamps) {
    moba_context *context = open_context(NULL);
    th_session session = session_of(context, NULL);
    th_case *c = th_case_new("b1q130k130h4g2d64B32t3c,f16", th_seed());
    th_exec *e[2] = {th_open(&session, c, NULL), th_open(&session, c, NULL)};
    th_result r[2];
    moba_stream streams[2];
    moba_event events[2][3];
    for (int i = 0; i < 2; i++) {
        cr_assert_not_null(e[i]);
        cr_assert(th_run(e[i], TH_FORWARD, NULL, &r[i]));
        cr_assert_eq(moba_stream_create(context, &streams[i]), MOBA_OK, "%s", moba_last_error());
        for (int x = 0; x < 3; x++)
            cr_assert_eq(moba_event_create(context, &events[i][x]), MOBA_OK, "%s", moba_last_error());
        cr_assert_eq(moba_buffer_fill(context, streams[i], e[i]->o.data, 0xff, e[i]->o.bytes), MOBA_OK);
    }
    double ms = 0.0;
    cr_expect_eq(moba_event_elapsed(context, events[0][0], events[0][1], &ms), MOBA_ERROR_INVALID_ARGUMENT);
    for (int repeat = 0; repeat < 12; repeat++) /* more than a stream's ring of command buffers */
        for (int i = 0; i < 2; i++) {
            moba_forward_args f = th_forward_args(e[i]);
            cr_assert_eq(moba_event_record(context, streams[i], events[i][0]), MOBA_OK, "%s", moba_last_error());
            cr_assert_eq(moba_event_record(context, streams[i], events[i][1]), MOBA_OK, "%s", moba_last_error());
            cr_assert_eq(moba_forward(e[i]->plan, streams[i], &f), MOBA_OK, "%s", moba_last_error());
            cr_assert_eq(moba_event_record(context, streams[i], events[i][2]), MOBA_OK, "%s", moba_last_error());
        }
    for (int i = 0; i < 2; i++) {
        double before, all, back;
        cr_assert_eq(moba_stream_synchronize(context, streams[i]), MOBA_OK, "%s", moba_last_error());
        cr_assert_eq(moba_event_elapsed(context, events[i][0], events[i][1], &before), MOBA_OK);
        cr_assert_eq(moba_event_elapsed(context, events[i][0], events[i][2], &all), MOBA_OK);
        cr_assert_eq(moba_event_elapsed(context, events[i][2], events[i][0], &back), MOBA_OK);
        cr_expect(before >= 0.0 && all > before && all < 60e3, "%g of %g ms", before, all);
        cr_expect_float_eq(back, -all, 1e-9);
        size_t bytes = e[i]->o.bytes;
        unsigned char *o[2] = {th_allocate(bytes, 1), th_allocate(bytes, 1)};
        for (int x = 0; x < 2; x++)
            cr_assert_eq(moba_buffer_read(context, streams[i], e[x]->o.data, o[x], bytes), MOBA_OK);
        cr_expect_eq(memcmp(o[0], o[1], bytes), 0, "two streams differ");
        free(o[0]);
        free(o[1]);
    }
    th_check_same_result(&session, c, "two executions", &r[0], &r[1]);
    for (int i = 0; i < 2; i++) {
        for (int x = 0; x < 3; x++)
            moba_event_destroy(context, events[i][x]);
        moba_stream_destroy(context, streams[i]);
        th_result_free(&r[i]);
        th_close(e[i]);
    }
    th_case_free(c);
    moba_context_destroy(context);
    th_finish();
}

static int count_files(const char *dir, char *name, size_t capacity) {
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *x = d ? readdir(d) : NULL; x; x = readdir(d)) {
        if (x->d_name[0] == '.') continue;
        n++;
        snprintf(name, capacity, "%s/%s", dir, x->d_name);
    }
    if (d) closedir(d);
    return n;
}

static void run_once(void) {
    moba_context *context = open_context(NULL);
    th_session session = session_of(context, NULL);
    th_case *c = th_case_new("b1q64k64h2g1d32B16t2c,f32", th_seed());
    th_result r;
    cr_assert(th_once(&session, c, NULL, TH_FORWARD, NULL, &r));
    th_expected *x = th_expect(c, r.selection, false);
    th_check_forward(&session, c, x, &r);
    th_expected_free(x);
    th_result_free(&r);
    th_case_free(c);
    moba_context_destroy(context);
}

/* The cache is one file; a damaged one is replaced, and a folder that cannot be written is not an error. */
Test(vulkan, pipeline_cache) {
    char dir[] = "/tmp/moba_cache_XXXXXX", name[512], damaged[64];
    cr_assert_not_null(mkdtemp(dir));
    setenv("MOBA_CACHE_DIR", dir, 1);
    run_once();
    cr_assert_eq(count_files(dir, name, sizeof name), 1, "the cache is not one file");
    for (int i = 0; i < 2; i++) {
        memset(damaged, i ? 0xff : 0, sizeof damaged);
        FILE *f = fopen(name, "wb");
        cr_assert_not_null(f);
        cr_assert_eq(fwrite(damaged, 1, sizeof damaged, f), sizeof damaged);
        fclose(f);
        run_once();
        f = fopen(name, "rb");
        char again[sizeof damaged];
        cr_assert_not_null(f);
        size_t n = fread(again, 1, sizeof again, f);
        fclose(f);
        cr_expect(n > 16 && memcmp(again, damaged, n) != 0, "a damaged cache was left alone");
    }
    run_once();
    cr_assert_eq(count_files(dir, name, sizeof name), 1);
    remove(name);
    rmdir(dir);
    run_once(); /* MOBA_CACHE_DIR does not exist any more */
    unsetenv("MOBA_CACHE_DIR");
    th_finish();
}

/* Software devices are used only when Vulkan is named. */
Test(vulkan, software_devices_are_taken_only_by_name) {
    moba_context *context = NULL, *named = open_context(NULL);
    moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
    cr_assert_eq(moba_context_device(named, &device), MOBA_OK);
    cr_assert_eq(moba_context_create(NULL, &context), MOBA_OK, "%s", moba_last_error());
    if (device.is_software) cr_expect_str_neq(moba_context_backend(context), "vulkan");
    moba_context_destroy(context);
    moba_context_destroy(named);
}

/* ------------------------------------------------------------------------------------------- MOBA_VALIDATE -- */

static void write_ids(moba_context *context, const th_buffer *b, size_t index, int32_t value) {
    moba_buffer at = {b->data.handle, b->data.offset + index * sizeof value};
    cr_assert_eq(moba_buffer_write(context, no_stream, at, &value, sizeof value), MOBA_OK, "%s", moba_last_error());
}

static void expect_invalid(const th_exec *e, bool validate, const char *word) {
    moba_attend_args a = th_attend_args(e);
    moba_status status = moba_attend(e->plan, no_stream, &a);
    cr_expect_eq(status, validate ? MOBA_ERROR_INVALID_DATA : MOBA_OK, "%s (%s): %s", word,
                 validate ? "validated" : "not validated", moba_status_name(status));
    if (validate) cr_expect_not_null(strstr(moba_last_error(), word), "%s", moba_last_error());
    cr_expect_eq(moba_stream_synchronize(e->context, no_stream), MOBA_OK, "%s", moba_last_error());
}

/* With MOBA_VALIDATE=1 bad cu_seqlens and selections in device memory are reported; without, they are ignored safely
 * (the parity tests judge what comes out). */
static void check_validate(const char *mask, bool validate) {
    setenv("MOBA_VALIDATE", validate ? "1" : "0", 1);
    moba_context *context = open_context(mask);
    unsetenv("MOBA_VALIDATE");
    th_session session = session_of(context, mask);
    th_case *c = th_case_new("b2q40k60h2g1d32B16t3c,f16,lens=40+20/60+20", th_seed());
    th_exec *e = th_open(&session, c, NULL);
    th_result r;
    cr_assert_not_null(e);
    cr_assert(th_run(e, TH_ATTEND, c->selection, &r), "legal data is refused");
    th_result_free(&r);
    write_ids(context, &e->selection, 0, 99);
    expect_invalid(e, validate, "selection[0][0][0] is 99");
    write_ids(context, &e->selection, 0, -7);
    expect_invalid(e, validate, "selection[0][0][0] is -7");
    write_ids(context, &e->selection, 0, 0);
    write_ids(context, &e->selection, 1, 0);
    expect_invalid(e, validate, "holds block 0 twice");
    write_ids(context, &e->selection, 1, -1);
    write_ids(context, &e->cu_q, 1, 1000000);
    expect_invalid(e, validate, "cu_seqlens_q");
    write_ids(context, &e->cu_q, 1, 40);
    write_ids(context, &e->cu_k, 0, -5);
    expect_invalid(e, validate, "cu_seqlens_k[0] is -5");
    write_ids(context, &e->cu_k, 0, 0);
    write_ids(context, &e->cu_k, 2, 10);
    expect_invalid(e, validate, "cu_seqlens_k[2] is 10");
    th_close(e);
    th_case_free(c);
    moba_context_destroy(context);
    th_finish();
}

Test(vulkan, validation_by_address) {
    check_validate(NULL, true);
    check_validate(NULL, false);
}
Test(vulkan, validation_bound) {
    check_validate("-bda", true);
    check_validate("-bda", false);
}
