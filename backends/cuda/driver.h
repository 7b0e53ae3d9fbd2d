/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of the CUDA driver API that the backend uses, opened at run time: neither the toolkit's headers nor its
 * libraries are needed to build or link. Types and numbers are those of the driver's frozen C interface.
 */
#ifndef MOBAI_CUDA_DRIVER_H
#define MOBAI_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

#include "backends/driver/driver.h"
#include "moba/moba.h"

typedef int cu_result;
typedef int cu_device;
typedef struct cu_context_object *cu_context;
typedef void *cu_stream;
typedef void *cu_module;
typedef void *cu_function;

enum {
    CU_SUCCESS = 0,
    CU_INVALID_VALUE = 1,
    CU_NO_DEVICE = 100,
    CU_INVALID_HANDLE = 400,
    CU_CONTEXT_IS_DESTROYED = 709
};

enum { /* device attributes */
       CU_ATTRIBUTE_MAX_SHARED_MEMORY_OPTIN = 97,
       CU_ATTRIBUTE_MULTIPROCESSORS = 16,
       CU_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 1,
       CU_ATTRIBUTE_CLOCK_KHZ = 13,
       CU_ATTRIBUTE_MEMORY_CLOCK_KHZ = 36,
       CU_ATTRIBUTE_MEMORY_BUS_BITS = 37,
       CU_ATTRIBUTE_MAJOR = 75,
       CU_ATTRIBUTE_MINOR = 76
};
enum { CU_FUNCTION_MAX_DYNAMIC_SHARED = 8 };

/* Symbols of the shared table: X(member, symbol). */
#define MOBAI_CUDA_SHARED_API(X)                                                                                       \
    X(init, cuInit)                                                                                                    \
    X(driver_version, cuDriverGetVersion)                                                                              \
    X(device_count, cuDeviceGetCount)                                                                                  \
    X(device_get, cuDeviceGet)                                                                                         \
    X(device_name, cuDeviceGetName)                                                                                    \
    X(device_memory, cuDeviceTotalMem_v2)                                                                              \
    X(device_attribute, cuDeviceGetAttribute)                                                                          \
    X(memory_alloc, cuMemAlloc_v2)                                                                                     \
    X(memory_free, cuMemFree_v2)                                                                                       \
    X(memory_info, cuMemGetInfo_v2)                                                                                    \
    X(copy_to_device, cuMemcpyHtoDAsync_v2)                                                                            \
    X(copy_to_host, cuMemcpyDtoHAsync_v2)                                                                              \
    X(copy_inside, cuMemcpyDtoDAsync_v2)                                                                               \
    X(fill8, cuMemsetD8Async)                                                                                          \
    X(stream_create, cuStreamCreate)                                                                                   \
    X(stream_destroy, cuStreamDestroy_v2)                                                                              \
    X(stream_synchronize, cuStreamSynchronize)                                                                         \
    X(stream_capture, cuStreamIsCapturing)                                                                             \
    X(event_create, cuEventCreate)                                                                                     \
    X(event_destroy, cuEventDestroy_v2)                                                                                \
    X(event_record, cuEventRecord)                                                                                     \
    X(event_synchronize, cuEventSynchronize)                                                                           \
    X(event_elapsed, cuEventElapsedTime)                                                                               \
    X(module_load, cuModuleLoadData)                                                                                   \
    X(module_unload, cuModuleUnload)                                                                                   \
    X(module_function, cuModuleGetFunction)                                                                            \
    X(launch, cuLaunchKernel)

/* The rest: X(member, symbol, arguments). */
#define MOBAI_CUDA_API(X)                                                                                              \
    X(error_name, cuGetErrorName, (cu_result, const char **))                                                          \
    X(error_string, cuGetErrorString, (cu_result, const char **))                                                      \
    X(primary_retain, cuDevicePrimaryCtxRetain, (cu_context *, cu_device))                                             \
    X(primary_release, cuDevicePrimaryCtxRelease_v2, (cu_device))                                                      \
    X(context_push, cuCtxPushCurrent_v2, (cu_context))                                                                 \
    X(context_pop, cuCtxPopCurrent_v2, (cu_context *))                                                                 \
    X(context_current, cuCtxGetCurrent, (cu_context *))                                                                \
    X(context_device, cuCtxGetDevice, (cu_device *))                                                                   \
    X(stream_context, cuStreamGetCtx, (cu_stream, cu_context *))                                                       \
    X(function_set, cuFuncSetAttribute, (cu_function, int, int))

typedef struct cuda_driver {
    mobai_driver api;
    void *library;
    int version;      /* as cuDriverGetVersion: 1000 * major + 10 * minor */
    int n_devices;    /* that can be used */
    char reason[256]; /* why there is none; "" otherwise */
#define MOBAI_CUDA_MEMBER(member, symbol, arguments) cu_result(*member) arguments;
    MOBAI_CUDA_API(MOBAI_CUDA_MEMBER)
#undef MOBAI_CUDA_MEMBER
} cuda_driver;

/** The driver, opened by the first call; never NULL. Without devices n_devices is 0 and `reason` says why. */
const cuda_driver *cuda_driver_get(void);

/** Oldest driver that loads the embedded code, as cuda_driver.version: of the major version of the compiler that made
 * it, which the build names. */
#define MOBAI_CUDA_MIN_DRIVER (1000 * MOBA_CUDA_COMPILER_MAJOR)

/** Sets the error sentence for a failed call and returns its status. `what` completes "CUDA could not ...". */
moba_status cuda_fail(cu_result result, const char *what);

#endif
