/* SPDX-License-Identifier: Apache-2.0
 *
 * OpenCL backend, internal: the functions of libOpenCL.so.1, opened at run time, and the device.
 */
#ifndef MOBAI_OPENCL_H
#define MOBAI_OPENCL_H

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <pthread.h>

#include "codegen/host/simt.h"

#define MOBAI_CL_FUNCTIONS(X)                                                                                          \
    X(clGetPlatformIDs)                                                                                                \
    X(clGetPlatformInfo)                                                                                               \
    X(clGetDeviceIDs)                                                                                                  \
    X(clGetDeviceInfo)                                                                                                 \
    X(clCreateContext)                                                                                                 \
    X(clRetainContext)                                                                                                 \
    X(clReleaseContext)                                                                                                \
    X(clCreateCommandQueue)                                                                                            \
    X(clRetainCommandQueue)                                                                                            \
    X(clReleaseCommandQueue)                                                                                           \
    X(clGetCommandQueueInfo)                                                                                           \
    X(clCreateBuffer)                                                                                                  \
    X(clReleaseMemObject)                                                                                              \
    X(clEnqueueWriteBuffer)                                                                                            \
    X(clEnqueueReadBuffer)                                                                                             \
    X(clEnqueueFillBuffer)                                                                                             \
    X(clEnqueueCopyBuffer)                                                                                             \
    X(clCreateProgramWithSource)                                                                                       \
    X(clCreateProgramWithBinary)                                                                                       \
    X(clBuildProgram)                                                                                                  \
    X(clGetProgramInfo)                                                                                                \
    X(clGetProgramBuildInfo)                                                                                           \
    X(clReleaseProgram)                                                                                                \
    X(clCreateKernel)                                                                                                  \
    X(clReleaseKernel)                                                                                                 \
    X(clSetKernelArg)                                                                                                  \
    X(clEnqueueNDRangeKernel)                                                                                          \
    X(clEnqueueMarkerWithWaitList)                                                                                     \
    X(clWaitForEvents)                                                                                                 \
    X(clGetEventInfo)                                                                                                  \
    X(clGetEventProfilingInfo)                                                                                         \
    X(clReleaseEvent)                                                                                                  \
    X(clFlush)                                                                                                         \
    X(clFinish)

typedef struct mobai_cl_functions {
#define X(name) __typeof__(&name) name;
    MOBAI_CL_FUNCTIONS(X)
#undef X
} mobai_cl_functions;

/** Filled by mobai_cl_load(). */
extern mobai_cl_functions cl;

/** Opens the library once. NULL, or why it cannot be used (static text). */
const char *mobai_cl_load(void);

struct mobai_device {
    cl_device_id id;
    cl_context context;
    cl_command_queue queue;
    mobai_caps caps;
    char name[128];
    char driver[128];
    uint64_t memory_bytes, max_alloc_bytes;
    bool software;
    pthread_mutex_t lock; /* kernels: building, and arguments of a launch */
    cl_kernel *kernels;   /* by instance; NULL until built */
};

/** The queue that `stream` means. */
static inline cl_command_queue mobai_cl_queue(const mobai_device *device, moba_stream stream) {
    return stream.native ? (cl_command_queue)stream.native : device->queue;
}

/** What an error code of OpenCL means. */
moba_status mobai_cl_status(cl_int code);
/** Sets the sentence "<what> failed: <name> (<code>)" and returns the status that the code means. */
moba_status mobai_cl_fail(cl_int code, const char *what);

/** Builds the kernel of an instance unless it is there. Caller holds the lock. */
moba_status mobai_cl_build(mobai_device *device, size_t instance);

/** Text of a device property, cut to fit. */
void mobai_cl_device_text(cl_device_id id, cl_device_info what, char *out, size_t capacity);

/* memory, queues and launches: backends/opencl/run.c */
moba_status mobai_cl_buffer_create(mobai_device *device, size_t bytes, moba_buffer *out);
void mobai_cl_buffer_destroy(mobai_device *device, moba_buffer buffer);
moba_status mobai_cl_buffer_write(mobai_device *device, moba_stream stream, moba_buffer buffer, const void *data,
                                  size_t bytes);
moba_status mobai_cl_buffer_read(mobai_device *device, moba_stream stream, moba_buffer buffer, void *data,
                                 size_t bytes);
moba_status mobai_cl_buffer_fill(mobai_device *device, moba_stream stream, moba_buffer buffer, uint8_t value,
                                 size_t bytes);
moba_status mobai_cl_buffer_copy(mobai_device *device, moba_stream stream, moba_buffer from, moba_buffer to,
                                 size_t bytes);
moba_status mobai_cl_stream_create(mobai_device *device, moba_stream *out);
void mobai_cl_stream_destroy(mobai_device *device, moba_stream stream);
moba_status mobai_cl_stream_synchronize(mobai_device *device, moba_stream stream);
moba_status mobai_cl_event_create(mobai_device *device, moba_event *out);
void mobai_cl_event_destroy(mobai_device *device, moba_event event);
moba_status mobai_cl_event_record(mobai_device *device, moba_stream stream, moba_event event);
moba_status mobai_cl_event_elapsed(mobai_device *device, moba_event begin, moba_event end, double *ms);
moba_status mobai_cl_prepare(mobai_device *device, const mobai_variant *variant, const moba_problem *problem);
moba_status mobai_cl_launch(mobai_device *device, moba_stream stream, const mobai_variant *variant,
                            const mobai_stage_args *args);
moba_status mobai_cl_run_end(mobai_device *device, moba_stream stream);

#endif
