/* SPDX-License-Identifier: Apache-2.0
 *
 * What only the OpenCL backend has: the cache of compiled programs, adopted devices, queues and buffers
 * (moba_opencl.h), events, fills, and MOBA_VALIDATE on device data.
 */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../parity/harness.h"
#include "moba/moba_opencl.h"

static const moba_stream no_stream = {NULL};
static const char problem[] = "b2q70k90h4g2d64B32t2c,f16,det";

static moba_context *open_context(const moba_opencl_handles *native) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = "opencl";
    options.native = native;
    moba_status status = moba_context_create(&options, &context);
    if (status != MOBA_OK) th_fatal("%s: %s", moba_status_name(status), moba_last_error());
    return context;
}

static th_session session_of(moba_context *context) {
    th_session s;
    memset(&s, 0, sizeof s);
    strcpy(s.backend, "opencl");
    s.context = context;
    return s;
}

/* --------------------------------------------------------------------------------------------------- cache -- */

typedef enum damage { NONE, EMPTY, NO_PROGRAM, HALF, LAST_BYTE_GONE, BYTE_CHANGED, N_DAMAGES } damage;

static void damage_file(const char *path, damage how) {
    static unsigned char bytes[4 << 20];
    FILE *f = fopen(path, "rb");
    cr_assert_not_null(f);
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    cr_assert(n > 100 && n < sizeof bytes, "%s has %zu bytes", path, n);
    if (how == NO_PROGRAM) memcpy(bytes, "not a program", 14);
    if (how == BYTE_CHANGED) bytes[n / 2] ^= 0x55;
    n = how == EMPTY ? 0 : how == NO_PROGRAM ? 14 : how == HALF ? n / 2 : how == LAST_BYTE_GONE ? n - 1 : n;
    f = fopen(path, "wb");
    cr_assert_not_null(f);
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

typedef enum visit { COUNT_NEW, MAKE_OLD, ERASE } visit;

/** Walks the cached programs, damaging each first. MAKE_OLD dates them to 1970; COUNT_NEW counts those that are not. */
static int visit_cache(const char *dir, damage how, visit what) {
    DIR *d = opendir(dir);
    int n = 0;
    cr_assert_not_null(d);
    for (const struct dirent *entry; (entry = readdir(d)) != NULL;) {
        char path[600];
        struct stat status;
        const struct timespec old[2] = {{1, 0}, {1, 0}};
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        cr_expect(strncmp(entry->d_name, "opencl-moba_", 12) == 0 && strstr(entry->d_name, ".bin") != NULL, "%s", path);
        if (how != NONE) damage_file(path, how);
        cr_assert_eq(stat(path, &status), 0);
        n += what != COUNT_NEW || status.st_mtim.tv_sec > 1;
        if (what == MAKE_OLD) cr_assert_eq(utimensat(AT_FDCWD, path, old, 0), 0);
        if (what == ERASE) remove(path);
    }
    closedir(d);
    return n;
}

/** Forward alone: few kernels. */
static void run_once(th_result *r) {
    moba_context *context = open_context(NULL);
    th_session session = session_of(context);
    th_case *c = th_case_new("b1q40k60h2g1d16B16t2c,f32", th_seed());
    cr_assert(th_once(&session, c, NULL, TH_FORWARD, NULL, r));
    th_case_free(c);
    moba_context_destroy(context);
}

Test(opencl, program_cache) {
    char dir[] = "/tmp/moba_cache_XXXXXX";
    th_case *c = th_case_new("b1q40k60h2g1d16B16t2c,f32", th_seed());
    th_result first, again;
    cr_assert_not_null(mkdtemp(dir));
    setenv("MOBA_CACHE_DIR", dir, 1);
    run_once(&first);
    int n = visit_cache(dir, NONE, COUNT_NEW);
    cr_assert_gt(n, 5, "%d programs are cached", n);
    for (int how = NONE; how < N_DAMAGES; how++) {
        cr_expect_eq(visit_cache(dir, (damage)how, MAKE_OLD), n, "other programs are cached than the first time");
        run_once(&again);
        th_check_same_result(NULL, c, "a run from the cache", &first, &again);
        th_result_free(&again);
        int written = visit_cache(dir, NONE, COUNT_NEW);
        cr_expect_eq(written, how == NONE ? 0 : n, "damage %d: %d of %d programs were written", how, written, n);
    }
    visit_cache(dir, NONE, ERASE);
    rmdir(dir);
    run_once(&again); /* MOBA_CACHE_DIR does not exist any more */
    th_check_same_result(NULL, c, "a run without the cache's folder", &first, &again);
    th_result_free(&again);
    th_result_free(&first);
    th_case_free(c);
    unsetenv("MOBA_CACHE_DIR");
    th_finish();
}

/* ------------------------------------------------------------------------------------------------- adopted -- */

typedef struct own_handles {
    cl_device_id device;
    cl_context context;
    cl_command_queue queue;
    moba_opencl_handles handles;
} own_handles;

/** The device that the library would take, opened by the caller. */
static void own_open(own_handles *own, cl_command_queue_properties properties) {
    moba_context *context = open_context(NULL);
    moba_device_description description = MOBA_DEVICE_DESCRIPTION_INIT;
    cr_assert_eq(moba_context_device(context, &description), MOBA_OK);
    moba_context_destroy(context);
    cl_platform_id platforms[16];
    cl_uint n_platforms = 0;
    memset(own, 0, sizeof *own);
    cr_assert_eq(clGetPlatformIDs(16, platforms, &n_platforms), CL_SUCCESS);
    for (cl_uint p = 0; p < n_platforms && own->device == NULL; p++) {
        cl_device_id found[16];
        cl_uint n = 0;
        if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, 16, found, &n) != CL_SUCCESS) continue;
        for (cl_uint d = 0; d < n && own->device == NULL; d++) {
            char name[256] = "";
            clGetDeviceInfo(found[d], CL_DEVICE_NAME, sizeof name, name, NULL);
            if (strncmp(name, description.name, strlen(description.name)) == 0) own->device = found[d];
        }
    }
    cr_assert_not_null(own->device, "%s is on no platform", description.name);
    cl_int code;
    own->context = clCreateContext(NULL, 1, &own->device, NULL, NULL, &code);
    cr_assert_eq(code, CL_SUCCESS);
    own->queue = clCreateCommandQueue(own->context, own->device, properties, &code);
    cr_assert_eq(code, CL_SUCCESS);
    own->handles = (moba_opencl_handles)MOBA_OPENCL_HANDLES_INIT;
    own->handles.device = own->device;
    own->handles.context = own->context;
    own->handles.queue = own->queue;
}

static void own_close(own_handles *own) {
    cr_expect_eq(clFinish(own->queue), CL_SUCCESS, "the caller's queue is gone");
    cr_expect_eq(clReleaseCommandQueue(own->queue), CL_SUCCESS);
    cr_expect_eq(clReleaseContext(own->context), CL_SUCCESS);
}

enum { OFFSET = 48 };

static cl_mem own_buffer(const own_handles *own, const th_buffer *like, moba_buffer *out) {
    cl_int code;
    cl_mem mem = clCreateBuffer(own->context, CL_MEM_READ_WRITE, like->bytes + OFFSET, NULL, &code);
    cr_assert_eq(code, CL_SUCCESS);
    cr_assert_eq(
        clEnqueueWriteBuffer(own->queue, mem, CL_TRUE, OFFSET, like->bytes, like->image + TH_GUARD, 0, NULL, NULL),
        CL_SUCCESS);
    *out = (moba_buffer){(uint64_t)(uintptr_t)mem, OFFSET};
    return mem;
}

/* The caller's buffers for q, k, v and o, at another offset than the library's, on the caller's queue. */
static void check_own_buffers(const own_handles *own, moba_context *context, moba_stream stream) {
    th_session session = session_of(context);
    th_case *c = th_case_new(problem, th_seed());
    th_exec *e = th_open(&session, c, NULL);
    th_result r;
    cr_assert_not_null(e);
    cr_assert(th_run(e, TH_FORWARD, NULL, &r));
    moba_forward_args f = th_forward_args(e);
    cl_mem mem[4] = {own_buffer(own, &e->q, &f.in.q.buffer), own_buffer(own, &e->k, &f.in.k.buffer),
                     own_buffer(own, &e->v, &f.in.v.buffer), own_buffer(own, &e->o, &f.o.buffer)};
    unsigned char *expected = th_allocate(e->o.bytes, 1), *got = th_allocate(e->o.bytes, 1);
    th_ok(&session, c, moba_forward(e->plan, stream, &f), "moba_forward");
    cl_int code = clEnqueueReadBuffer(own->queue, mem[3], CL_TRUE, OFFSET, e->o.bytes, got, 0, NULL, NULL);
    cr_expect_eq(code, CL_SUCCESS);
    th_ok(&session, c, moba_buffer_read(context, no_stream, e->o.data, expected, e->o.bytes), "moba_buffer_read");
    cr_expect_arr_eq(got, expected, e->o.bytes, "o in the caller's buffer differs");
    for (int i = 0; i < 4; i++)
        cr_expect_eq(clReleaseMemObject(mem[i]), CL_SUCCESS);
    free(expected);
    free(got);
    th_result_free(&r);
    th_close(e);
    th_case_free(c);
}

Test(opencl, adopted_context_and_queue) {
    own_handles own;
    own_open(&own, 0);
    moba_context *context = open_context(&own.handles);
    check_own_buffers(&own, context, no_stream);
    check_own_buffers(&own, context, (moba_stream){own.queue});
    /* A queue without profiling has no times; that is said, not made up. */
    moba_event begin, end;
    double ms;
    cr_assert_eq(moba_event_create(context, &begin), MOBA_OK);
    cr_assert_eq(moba_event_create(context, &end), MOBA_OK);
    cr_expect_eq(moba_event_elapsed(context, begin, end, &ms), MOBA_ERROR_INVALID_ARGUMENT);
    cr_expect_eq(moba_event_record(context, no_stream, begin), MOBA_OK, "%s", moba_last_error());
    cr_expect_eq(moba_event_record(context, no_stream, end), MOBA_OK, "%s", moba_last_error());
    cr_expect_eq(moba_event_elapsed(context, begin, end, &ms), MOBA_ERROR_UNSUPPORTED);
    moba_event_destroy(context, begin);
    moba_event_destroy(context, end);
    moba_context_destroy(context);
    /* Without a queue the library makes one. */
    own.handles.queue = NULL;
    context = open_context(&own.handles);
    th_session session = session_of(context);
    th_case *c = th_case_new(problem, th_seed());
    th_result r;
    if (th_once(&session, c, NULL, TH_ATTEND, c->selection, &r)) {
        th_expected *x = th_expect(c, c->selection, false);
        th_check_forward(&session, c, x, &r);
        th_expected_free(x);
    }
    th_result_free(&r);
    th_case_free(c);
    moba_context_destroy(context);
    own_close(&own);
    th_finish();
}

static void refused(const moba_opencl_handles *h, moba_status expected, const char *word) {
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = "opencl";
    options.native = h;
    cr_expect_eq(moba_context_create(&options, &context), expected, "%s: %s", word, moba_last_error());
    cr_expect_not_null(strstr(moba_last_error(), word), "%s", moba_last_error());
    cr_expect_null(context);
}

Test(opencl, handles_that_cannot_be_adopted) {
    own_handles own;
    own_open(&own, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE);
    refused(&own.handles, MOBA_ERROR_BACKEND_UNAVAILABLE, "out of order"); /* no other backend may take its place */
    moba_opencl_handles h = own.handles;
    h.queue = NULL;
    h.struct_size = 8;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "struct_size is 8");
    h = own.handles;
    h.context = NULL;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "context is NULL");
    h.device = NULL;
    refused(&h, MOBA_ERROR_INVALID_ARGUMENT, "device is NULL");
    own_close(&own);
}

/* ---------------------------------------------------------------------------------------- memory and events -- */

Test(opencl, buffers_streams_and_events) {
    moba_context *context = open_context(NULL);
    moba_buffer buffer, none;
    unsigned char bytes[64], back[64];
    moba_stream stream;
    cr_assert_eq(moba_buffer_create(context, 64, &buffer), MOBA_OK, "%s", moba_last_error());
    cr_assert_eq(moba_stream_create(context, &stream), MOBA_OK, "%s", moba_last_error());
    memset(bytes, 0x5a, sizeof bytes);
    cr_assert_eq(moba_buffer_write(context, stream, buffer, bytes, sizeof bytes), MOBA_OK);
    moba_buffer inner = {buffer.handle, buffer.offset + 7};
    cr_assert_eq(moba_buffer_fill(context, stream, inner, 0xc3, 13), MOBA_OK, "%s", moba_last_error());
    memset(bytes + 7, 0xc3, 13);
    cr_assert_eq(moba_buffer_read(context, stream, buffer, back, sizeof back), MOBA_OK);
    cr_expect_arr_eq(bytes, back, sizeof bytes, "a fill wrote elsewhere");
    cr_expect_eq(moba_buffer_create(context, (size_t)1 << 60, &none), MOBA_ERROR_OUT_OF_MEMORY);
    moba_event begin, end;
    double ms = -1.0;
    cr_assert_eq(moba_event_create(context, &begin), MOBA_OK);
    cr_assert_eq(moba_event_create(context, &end), MOBA_OK);
    cr_expect_eq(moba_event_record(context, stream, begin), MOBA_OK);
    cr_assert_eq(moba_buffer_fill(context, stream, buffer, 0, 64), MOBA_OK);
    cr_expect_eq(moba_event_record(context, stream, end), MOBA_OK);
    cr_expect_eq(moba_event_elapsed(context, begin, end, &ms), MOBA_OK, "%s", moba_last_error());
    cr_expect(ms >= 0.0 && ms < 10e3, "%g ms", ms);
    moba_event_destroy(context, begin);
    moba_event_destroy(context, end);
    moba_stream_destroy(context, stream);
    moba_buffer_destroy(context, buffer);
    moba_context_destroy(context);
}

/* Software devices are used only when OpenCL is named. */
Test(opencl, software_devices_are_taken_only_by_name) {
    moba_context *context = NULL, *named = open_context(NULL);
    moba_device_description device = MOBA_DEVICE_DESCRIPTION_INIT;
    cr_assert_eq(moba_context_device(named, &device), MOBA_OK);
    cr_assert_eq(moba_context_create(NULL, &context), MOBA_OK, "%s", moba_last_error());
    if (device.is_software) cr_expect_str_neq(moba_context_backend(context), "opencl");
    moba_context_destroy(context);
    moba_context_destroy(named);
}

/* ---------------------------------------------------------------------------------------------- validation -- */

static void write_id(const th_exec *e, const th_buffer *to, int64_t index, int32_t value) {
    moba_buffer at = {to->data.handle, to->data.offset + (uint64_t)index * 4};
    cr_assert_eq(moba_buffer_write(e->context, no_stream, at, &value, 4), MOBA_OK, "%s", moba_last_error());
}

static void expect_invalid(const th_exec *e, bool validate, const char *word) {
    moba_attend_args a = th_attend_args(e);
    moba_status status = moba_attend(e->plan, no_stream, &a);
    cr_expect_eq(status, validate ? MOBA_ERROR_INVALID_DATA : MOBA_OK, "%s: %s", word, moba_status_name(status));
    if (validate) cr_expect_not_null(strstr(moba_last_error(), word), "%s", moba_last_error());
    cr_expect_eq(moba_stream_synchronize(e->context, no_stream), MOBA_OK, "%s", moba_last_error());
}

static void check_validate(bool validate) {
    setenv("MOBA_VALIDATE", validate ? "1" : "0", 1);
    moba_context *context = open_context(NULL);
    unsetenv("MOBA_VALIDATE");
    th_session session = session_of(context);
    th_case *c = th_case_new("b2q40k60h2g1d32B16t3c,f16,lens=40+20/60+20", th_seed());
    th_exec *e = th_open(&session, c, NULL);
    th_result r;
    cr_assert_not_null(e);
    cr_assert(th_run(e, TH_ATTEND, c->selection, &r), "legal data is refused");
    th_result_free(&r);
    write_id(e, &e->selection, 0, 99);
    expect_invalid(e, validate, "selection[0][0][0] is 99");
    write_id(e, &e->selection, 0, 0);
    write_id(e, &e->selection, 1, 0);
    expect_invalid(e, validate, "holds block 0 twice");
    write_id(e, &e->selection, 1, -1);
    write_id(e, &e->cu_q, 1, 1000000);
    expect_invalid(e, validate, "cu_seqlens_q");
    write_id(e, &e->cu_q, 1, 40);
    write_id(e, &e->cu_k, 0, -5);
    expect_invalid(e, validate, "cu_seqlens_k[0] is -5");
    th_close(e);
    th_case_free(c);
    moba_context_destroy(context);
    th_finish();
}

Test(opencl, validation) { check_validate(true); }
Test(opencl, illegal_data_is_ignored_without_validation) { check_validate(false); }
