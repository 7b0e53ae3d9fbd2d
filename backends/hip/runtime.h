/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of the HIP runtime that the backend uses, opened at run time: neither ROCm's headers nor its libraries are
 * needed to build or link. Numbers are those of HIP 5.2 to 7, whose enumerations keep a place for what was removed.
 */
#ifndef MOBAI_HIP_RUNTIME_H
#define MOBAI_HIP_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#include "backends/driver/driver.h"

enum {
    HIP_SUCCESS = 0,
    HIP_INVALID_VALUE = 1,
    HIP_INVALID_DEVICE = 101,
    HIP_INVALID_HANDLE = 400,
    HIP_CONTEXT_IS_DESTROYED = 709
};

enum { /* device attributes */
       HIP_ATTRIBUTE_CLOCK_KHZ = 5,
       HIP_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 56,
       HIP_ATTRIBUTE_MEMORY_BUS_BITS = 59,
       HIP_ATTRIBUTE_MEMORY_CLOCK_KHZ = 60,
       HIP_ATTRIBUTE_MULTIPROCESSORS = 63,
       HIP_ATTRIBUTE_SHARED_MEMORY = 74,
       HIP_ATTRIBUTE_WARP_SIZE = 87
};

/* Symbols of the shared table: X(member, symbol). */
#define MOBAI_HIP_SHARED_API(X)                                                                                        \
    X(init, hipInit)                                                                                                   \
    X(driver_version, hipDriverGetVersion)                                                                             \
    X(device_count, hipGetDeviceCount)                                                                                 \
    X(device_get, hipDeviceGet)                                                                                        \
    X(device_name, hipDeviceGetName)                                                                                   \
    X(device_memory, hipDeviceTotalMem)                                                                                \
    X(device_attribute, hipDeviceGetAttribute)                                                                         \
    X(memory_alloc, hipMalloc)                                                                                         \
    X(memory_free, hipFree)                                                                                            \
    X(memory_info, hipMemGetInfo)                                                                                      \
    X(copy_to_device, hipMemcpyHtoDAsync)                                                                              \
    X(copy_to_host, hipMemcpyDtoHAsync)                                                                                \
    X(copy_inside, hipMemcpyDtoDAsync)                                                                                 \
    X(fill8, hipMemsetD8Async)                                                                                         \
    X(stream_create, hipStreamCreateWithFlags)                                                                         \
    X(stream_destroy, hipStreamDestroy)                                                                                \
    X(stream_synchronize, hipStreamSynchronize)                                                                        \
    X(stream_capture, hipStreamIsCapturing)                                                                            \
    X(event_create, hipEventCreateWithFlags)                                                                           \
    X(event_destroy, hipEventDestroy)                                                                                  \
    X(event_record, hipEventRecord)                                                                                    \
    X(event_synchronize, hipEventSynchronize)                                                                          \
    X(event_elapsed, hipEventElapsedTime)                                                                              \
    X(module_load, hipModuleLoadData)                                                                                  \
    X(module_unload, hipModuleUnload)                                                                                  \
    X(module_function, hipModuleGetFunction)                                                                           \
    X(launch, hipModuleLaunchKernel)

/* The rest: X(result, member, symbol, arguments). */
#define MOBAI_HIP_API(X)                                                                                               \
    X(const char *, error_name, hipGetErrorName, (int))                                                                \
    X(const char *, error_string, hipGetErrorString, (int))                                                            \
    X(int, current_device, hipGetDevice, (int *))                                                                      \
    X(int, set_device, hipSetDevice, (int))

enum { HIP_MAX_DEVICES = 64, HIP_MAX_ARCH = 64 };

struct hip_code;

/** One device as probed. */
typedef struct hip_found {
    char arch[HIP_MAX_ARCH];     /* as HIP names it, such as "gfx90a:sramecc+:xnack-" */
    const struct hip_code *code; /* NULL: this build has none for it */
} hip_found;

typedef struct hip_runtime {
    mobai_driver api;
    void *library;
    int version;      /* as hipDriverGetVersion: 10^7 * major + 10^5 * minor + patch */
    int n_devices;    /* 0 when none can be used */
    char reason[256]; /* why none can; "" otherwise */
    hip_found found[HIP_MAX_DEVICES];
    int (*device_properties)(void *properties, int device);
    int (*stream_device)(void *stream, int *device); /* NULL where HIP is too old to have it */
#define MOBAI_HIP_MEMBER(result, member, symbol, arguments) result(*member) arguments;
    MOBAI_HIP_API(MOBAI_HIP_MEMBER)
#undef MOBAI_HIP_MEMBER
} hip_runtime;

/** The runtime, opened by the first call; never NULL. Without usable devices n_devices is 0 and `reason` says why. */
const hip_runtime *hip_runtime_get(void);

/** Sets the error sentence for a failed call and returns its status. `what` completes "HIP could not ...". */
moba_status hip_fail(int result, const char *what);

#endif
