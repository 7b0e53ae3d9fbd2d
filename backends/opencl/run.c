/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory, queues, events and launches. Queues are in order, so dependent launches need nothing between them.
 */
#include <stdlib.h>

#include "backends/opencl/opencl.h"
#include "core/status.h"

#define TRY_CL(call, what)                                                                                             \
    do {                                                                                                               \
        cl_int try_code = (call);                                                                                      \
        if (try_code != CL_SUCCESS) return mobai_cl_fail(try_code, what);                                              \
    } while (0)

static cl_mem memory(moba_buffer buffer) { return (cl_mem)(uintptr_t)buffer.handle; }

moba_status mobai_cl_buffer_create(mobai_device *device, size_t bytes, moba_buffer *out) {
    if (bytes > device->max_alloc_bytes)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "a buffer of %zu bytes was asked for; %s allows %llu at once",
                          bytes, device->name, (unsigned long long)device->max_alloc_bytes);
    cl_int code;
    cl_mem mem = cl.clCreateBuffer(device->context, CL_MEM_READ_WRITE, bytes, NULL, &code);
    if (code == CL_DEVICE_NOT_AVAILABLE) return mobai_cl_fail(code, "clCreateBuffer");
    if (code != CL_SUCCESS)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a buffer of %zu bytes on %s (OpenCL error %d)",
                          bytes, device->name, (int)code);
    out->handle = (uint64_t)(uintptr_t)mem;
    out->offset = 0;
    return MOBA_OK;
}

void mobai_cl_buffer_destroy(mobai_device *device, moba_buffer buffer) {
    (void)device;
    cl.clReleaseMemObject(memory(buffer));
}

moba_status mobai_cl_buffer_write(mobai_device *device, moba_stream stream, moba_buffer buffer, const void *data,
                                  size_t bytes) {
    TRY_CL(cl.clEnqueueWriteBuffer(mobai_cl_queue(device, stream), memory(buffer), CL_TRUE, buffer.offset, bytes, data,
                                   0, NULL, NULL),
           "clEnqueueWriteBuffer");
    return MOBA_OK;
}

moba_status mobai_cl_buffer_read(mobai_device *device, moba_stream stream, moba_buffer buffer, void *data,
                                 size_t bytes) {
    TRY_CL(cl.clEnqueueReadBuffer(mobai_cl_queue(device, stream), memory(buffer), CL_TRUE, buffer.offset, bytes, data,
                                  0, NULL, NULL),
           "clEnqueueReadBuffer");
    return MOBA_OK;
}

moba_status mobai_cl_buffer_fill(mobai_device *device, moba_stream stream, moba_buffer buffer, uint8_t value,
                                 size_t bytes) {
    TRY_CL(cl.clEnqueueFillBuffer(mobai_cl_queue(device, stream), memory(buffer), &value, 1, buffer.offset, bytes, 0,
                                  NULL, NULL),
           "clEnqueueFillBuffer");
    return MOBA_OK;
}

moba_status mobai_cl_buffer_copy(mobai_device *device, moba_stream stream, moba_buffer from, moba_buffer to,
                                 size_t bytes) {
    TRY_CL(cl.clEnqueueCopyBuffer(mobai_cl_queue(device, stream), memory(from), memory(to), from.offset, to.offset,
                                  bytes, 0, NULL, NULL),
           "clEnqueueCopyBuffer");
    return MOBA_OK;
}

moba_status mobai_cl_stream_create(mobai_device *device, moba_stream *out) {
    cl_int code;
    cl_command_queue queue = cl.clCreateCommandQueue(device->context, device->id, CL_QUEUE_PROFILING_ENABLE, &code);
    if (code != CL_SUCCESS) return mobai_cl_fail(code, "clCreateCommandQueue");
    out->native = queue;
    return MOBA_OK;
}

void mobai_cl_stream_destroy(mobai_device *device, moba_stream stream) {
    (void)device;
    if (stream.native) cl.clReleaseCommandQueue(stream.native);
}

moba_status mobai_cl_stream_synchronize(mobai_device *device, moba_stream stream) {
    TRY_CL(cl.clFinish(mobai_cl_queue(device, stream)), "clFinish");
    return MOBA_OK;
}

/** What moba_event.native points to. */
typedef struct recorded {
    cl_event marker; /* NULL: never recorded */
} recorded;

moba_status mobai_cl_event_create(mobai_device *device, moba_event *out) {
    (void)device;
    recorded *e = calloc(1, sizeof *e);
    if (!e) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for an event of %zu bytes", sizeof *e);
    out->native = e;
    return MOBA_OK;
}

void mobai_cl_event_destroy(mobai_device *device, moba_event event) {
    (void)device;
    recorded *e = event.native;
    if (!e) return;
    if (e->marker) cl.clReleaseEvent(e->marker);
    free(e);
}

moba_status mobai_cl_event_record(mobai_device *device, moba_stream stream, moba_event event) {
    recorded *e = event.native;
    if (e->marker) cl.clReleaseEvent(e->marker);
    e->marker = NULL;
    TRY_CL(cl.clEnqueueMarkerWithWaitList(mobai_cl_queue(device, stream), 0, NULL, &e->marker),
           "clEnqueueMarkerWithWaitList");
    TRY_CL(cl.clFlush(mobai_cl_queue(device, stream)), "clFlush");
    return MOBA_OK;
}

static moba_status event_time(moba_event event, cl_ulong *nanoseconds) {
    recorded *e = event.native;
    if (!e || !e->marker) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "the event was never recorded");
    TRY_CL(cl.clWaitForEvents(1, &e->marker), "clWaitForEvents");
    cl_int code =
        cl.clGetEventProfilingInfo(e->marker, CL_PROFILING_COMMAND_END, sizeof *nanoseconds, nanoseconds, NULL);
    if (code == CL_PROFILING_INFO_NOT_AVAILABLE)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED,
                          "the event was recorded in a queue without CL_QUEUE_PROFILING_ENABLE");
    if (code != CL_SUCCESS) return mobai_cl_fail(code, "clGetEventProfilingInfo");
    return MOBA_OK;
}

moba_status mobai_cl_event_elapsed(mobai_device *device, moba_event begin, moba_event end, double *ms) {
    (void)device;
    cl_ulong from = 0, to = 0;
    MOBAI_TRY(event_time(begin, &from));
    MOBAI_TRY(event_time(end, &to));
    *ms = ((double)to - (double)from) * 1e-6;
    return MOBA_OK;
}

/* --------------------------------------------------------------------------------------------- launches -- */

moba_status mobai_cl_prepare(mobai_device *device, const mobai_variant *variant, const moba_problem *problem) {
    (void)problem;
    const mobai_simt_program *program = variant->code;
    moba_status status = MOBA_OK;
    pthread_mutex_lock(&device->lock);
    for (int32_t i = 0; i < program->n_steps && status == MOBA_OK; i++)
        status = mobai_cl_build(device, program->steps[i]);
    pthread_mutex_unlock(&device->lock);
    return status;
}

static cl_int set_arguments(cl_kernel kernel, const mobai_simt_instance *instance, const mobai_launch *launch) {
    cl_uint at = 0;
    cl_int code = CL_SUCCESS;
    for (int32_t i = 0; i < launch->n_buffers && code == CL_SUCCESS; i++) {
        cl_mem mem = memory(launch->buffers[i]);
        cl_ulong offset = launch->buffers[i].offset;
        code = cl.clSetKernelArg(kernel, at++, sizeof mem, mem ? &mem : NULL);
        if (code == CL_SUCCESS) code = cl.clSetKernelArg(kernel, at++, sizeof offset, &offset);
    }
    for (int32_t i = 0; i < launch->n_wide && code == CL_SUCCESS; i++)
        code = cl.clSetKernelArg(kernel, at++, sizeof(cl_long), &launch->wide[i]);
    int32_t n_narrow = instance->kernel->n_params - launch->n_buffers - launch->n_wide;
    for (int32_t i = 0; i < n_narrow && code == CL_SUCCESS; i++)
        code = cl.clSetKernelArg(kernel, at++, sizeof(cl_int), &launch->narrow[i]);
    return code;
}

moba_status mobai_cl_launch(mobai_device *device, moba_stream stream, const mobai_variant *variant,
                            const mobai_stage_args *args) {
    const mobai_simt_program *program = variant->code;
    cl_command_queue queue = mobai_cl_queue(device, stream);
    for (int32_t i = 0; i < program->n_steps; i++) {
        const mobai_simt_instance *instance = &mobai_simt_instances[program->steps[i]];
        mobai_launch launch;
        mobai_simt_pack(instance, args, &launch);
        if (launch.groups[0] <= 0 || launch.groups[1] <= 0 || launch.groups[2] <= 0) continue;
        size_t lanes[3] = {(size_t)instance->lanes, 1, 1};
        size_t all[3] = {(size_t)launch.groups[0] * lanes[0], (size_t)launch.groups[1], (size_t)launch.groups[2]};
        pthread_mutex_lock(&device->lock);
        cl_kernel kernel = device->kernels[program->steps[i]];
        cl_int code = set_arguments(kernel, instance, &launch);
        if (code == CL_SUCCESS) code = cl.clEnqueueNDRangeKernel(queue, kernel, 3, NULL, all, lanes, 0, NULL, NULL);
        pthread_mutex_unlock(&device->lock);
        if (code != CL_SUCCESS) return mobai_cl_fail(code, instance->name);
    }
    return MOBA_OK;
}

moba_status mobai_cl_run_end(mobai_device *device, moba_stream stream) {
    TRY_CL(cl.clFlush(mobai_cl_queue(device, stream)), "clFlush");
    return MOBA_OK;
}
