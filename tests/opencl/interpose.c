/* SPDX-License-Identifier: Apache-2.0
 *
 * Stands in for libOpenCL.so.1 between libmoba and the loader named by MOBA_TEST_OPENCL. Calls that can fail are
 * counted and can be made to (tests/vulkan/faults.h); those that wait do wait first.
 */
#define CL_TARGET_OPENCL_VERSION 120
#define CL_USE_DEPRECATED_OPENCL_1_2_APIS
#include <CL/cl.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "tests/vulkan/faults.h"

static void *find(const char *name) {
    static void *library;
    const char *path = getenv("MOBA_TEST_OPENCL");
    if (!library && path) library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, name) : NULL;
    if (!symbol) abort();
    return symbol;
}

/** The loader's function of this name. */
#define REAL(name)                                                                                                     \
    static __typeof__(&name) real;                                                                                     \
    if (!real) {                                                                                                       \
        void *symbol = find(#name);                                                                                    \
        memcpy(&real, &symbol, sizeof real);                                                                           \
    }

#define EXPORT __attribute__((visibility("default"))) CL_API_ENTRY
#define PASS(name, parameters, arguments)                                                                              \
    EXPORT cl_int CL_API_CALL name parameters {                                                                        \
        REAL(name)                                                                                                     \
        return real arguments;                                                                                         \
    }
#define FALLIBLE(name, parameters, arguments)                                                                          \
    EXPORT cl_int CL_API_CALL name parameters {                                                                        \
        REAL(name)                                                                                                     \
        int code = fault_here(#name);                                                                                  \
        return code ? code : real arguments;                                                                           \
    }
#define WAITING(name, parameters, arguments)                                                                           \
    EXPORT cl_int CL_API_CALL name parameters {                                                                        \
        REAL(name)                                                                                                     \
        int code = fault_here(#name);                                                                                  \
        cl_int result = real arguments;                                                                                \
        return code ? code : result;                                                                                   \
    }
#define MAKING(type, name, parameters, arguments)                                                                      \
    EXPORT type CL_API_CALL name parameters {                                                                          \
        REAL(name)                                                                                                     \
        int code = fault_here(#name);                                                                                  \
        if (!code) return real arguments;                                                                              \
        if (error) *error = code;                                                                                      \
        return NULL;                                                                                                   \
    }

PASS(clGetPlatformIDs, (cl_uint n, cl_platform_id *p, cl_uint *found), (n, p, found))
PASS(clGetPlatformInfo, (cl_platform_id p, cl_platform_info i, size_t n, void *v, size_t *r), (p, i, n, v, r))
PASS(clGetDeviceIDs, (cl_platform_id p, cl_device_type t, cl_uint n, cl_device_id *d, cl_uint *found),
     (p, t, n, d, found))
PASS(clGetDeviceInfo, (cl_device_id d, cl_device_info i, size_t n, void *v, size_t *r), (d, i, n, v, r))
PASS(clRetainContext, (cl_context c), (c))
PASS(clReleaseContext, (cl_context c), (c))
PASS(clRetainCommandQueue, (cl_command_queue q), (q))
PASS(clReleaseCommandQueue, (cl_command_queue q), (q))
PASS(clGetCommandQueueInfo, (cl_command_queue q, cl_command_queue_info i, size_t n, void *v, size_t *r),
     (q, i, n, v, r))
PASS(clReleaseMemObject, (cl_mem m), (m))
PASS(clGetProgramInfo, (cl_program p, cl_program_info i, size_t n, void *v, size_t *r), (p, i, n, v, r))
PASS(clGetProgramBuildInfo, (cl_program p, cl_device_id d, cl_program_build_info i, size_t n, void *v, size_t *r),
     (p, d, i, n, v, r))
PASS(clReleaseProgram, (cl_program p), (p))
PASS(clReleaseKernel, (cl_kernel k), (k))
PASS(clGetEventInfo, (cl_event e, cl_event_info i, size_t n, void *v, size_t *r), (e, i, n, v, r))
PASS(clReleaseEvent, (cl_event e), (e))

MAKING(cl_context, clCreateContext,
       (const cl_context_properties *p, cl_uint n, const cl_device_id *d,
        void(CL_CALLBACK *f)(const char *, const void *, size_t, void *), void *u, cl_int *error),
       (p, n, d, f, u, error))
MAKING(cl_command_queue, clCreateCommandQueue,
       (cl_context c, cl_device_id d, cl_command_queue_properties p, cl_int *error), (c, d, p, error))
MAKING(cl_mem, clCreateBuffer, (cl_context c, cl_mem_flags f, size_t n, void *host, cl_int *error),
       (c, f, n, host, error))
MAKING(cl_program, clCreateProgramWithSource, (cl_context c, cl_uint n, const char **s, const size_t *l, cl_int *error),
       (c, n, s, l, error))
MAKING(cl_program, clCreateProgramWithBinary,
       (cl_context c, cl_uint n, const cl_device_id *d, const size_t *l, const unsigned char **b, cl_int *s,
        cl_int *error),
       (c, n, d, l, b, s, error))
MAKING(cl_kernel, clCreateKernel, (cl_program p, const char *name, cl_int *error), (p, name, error))
FALLIBLE(clBuildProgram,
         (cl_program p, cl_uint n, const cl_device_id *d, const char *o, void(CL_CALLBACK *f)(cl_program, void *),
          void *u),
         (p, n, d, o, f, u))
FALLIBLE(clSetKernelArg, (cl_kernel k, cl_uint i, size_t n, const void *v), (k, i, n, v))
FALLIBLE(clEnqueueFillBuffer,
         (cl_command_queue q, cl_mem m, const void *v, size_t vn, size_t at, size_t n, cl_uint w, const cl_event *l,
          cl_event *e),
         (q, m, v, vn, at, n, w, l, e))
FALLIBLE(clEnqueueCopyBuffer,
         (cl_command_queue q, cl_mem a, cl_mem b, size_t x, size_t y, size_t n, cl_uint w, const cl_event *l,
          cl_event *e),
         (q, a, b, x, y, n, w, l, e))
FALLIBLE(clEnqueueNDRangeKernel,
         (cl_command_queue q, cl_kernel k, cl_uint n, const size_t *o, const size_t *g, const size_t *s, cl_uint w,
          const cl_event *l, cl_event *e),
         (q, k, n, o, g, s, w, l, e))
FALLIBLE(clEnqueueMarkerWithWaitList, (cl_command_queue q, cl_uint w, const cl_event *l, cl_event *e), (q, w, l, e))
FALLIBLE(clGetEventProfilingInfo, (cl_event e, cl_profiling_info i, size_t n, void *v, size_t *r), (e, i, n, v, r))
FALLIBLE(clFlush, (cl_command_queue q), (q))
WAITING(clEnqueueWriteBuffer,
        (cl_command_queue q, cl_mem m, cl_bool b, size_t at, size_t n, const void *v, cl_uint w, const cl_event *l,
         cl_event *e),
        (q, m, b, at, n, v, w, l, e))
WAITING(clEnqueueReadBuffer,
        (cl_command_queue q, cl_mem m, cl_bool b, size_t at, size_t n, void *v, cl_uint w, const cl_event *l,
         cl_event *e),
        (q, m, b, at, n, v, w, l, e))
WAITING(clWaitForEvents, (cl_uint n, const cl_event *e), (n, e))
WAITING(clFinish, (cl_command_queue q), (q))
