/* SPDX-License-Identifier: Apache-2.0
 *
 * Opens libOpenCL.so.1 and names its error codes.
 */
#include <dlfcn.h>
#include <string.h>

#include "backends/opencl/opencl.h"
#include "core/status.h"

mobai_cl_functions cl;

static pthread_once_t load_once = PTHREAD_ONCE_INIT;
static const char *load_failure;

static void load(void) {
    void *library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        load_failure = "libOpenCL.so.1 cannot be opened; install an OpenCL loader (ocl-icd-libopencl1) and a driver";
        return;
    }
    void *symbol;
#define X(name)                                                                                                        \
    symbol = dlsym(library, #name);                                                                                    \
    if (!symbol) {                                                                                                     \
        load_failure = "libOpenCL.so.1 lacks " #name "; OpenCL 1.2 is needed";                                         \
        return;                                                                                                        \
    }                                                                                                                  \
    memcpy(&cl.name, &symbol, sizeof symbol);
    MOBAI_CL_FUNCTIONS(X)
#undef X
}

const char *mobai_cl_load(void) {
    pthread_once(&load_once, load);
    return load_failure;
}

static const char *code_name(cl_int code) {
    switch (code) {
    case CL_DEVICE_NOT_FOUND:
        return "CL_DEVICE_NOT_FOUND";
    case CL_DEVICE_NOT_AVAILABLE:
        return "CL_DEVICE_NOT_AVAILABLE";
    case CL_MEM_OBJECT_ALLOCATION_FAILURE:
        return "CL_MEM_OBJECT_ALLOCATION_FAILURE";
    case CL_OUT_OF_RESOURCES:
        return "CL_OUT_OF_RESOURCES";
    case CL_OUT_OF_HOST_MEMORY:
        return "CL_OUT_OF_HOST_MEMORY";
    case CL_BUILD_PROGRAM_FAILURE:
        return "CL_BUILD_PROGRAM_FAILURE";
    case CL_PROFILING_INFO_NOT_AVAILABLE:
        return "CL_PROFILING_INFO_NOT_AVAILABLE";
    case CL_INVALID_VALUE:
        return "CL_INVALID_VALUE";
    case CL_INVALID_CONTEXT:
        return "CL_INVALID_CONTEXT";
    case CL_INVALID_COMMAND_QUEUE:
        return "CL_INVALID_COMMAND_QUEUE";
    case CL_INVALID_MEM_OBJECT:
        return "CL_INVALID_MEM_OBJECT";
    case CL_INVALID_BUFFER_SIZE:
        return "CL_INVALID_BUFFER_SIZE";
    case CL_INVALID_ARG_VALUE:
        return "CL_INVALID_ARG_VALUE";
    case CL_INVALID_KERNEL_ARGS:
        return "CL_INVALID_KERNEL_ARGS";
    case CL_INVALID_WORK_GROUP_SIZE:
        return "CL_INVALID_WORK_GROUP_SIZE";
    case CL_INVALID_EVENT:
        return "CL_INVALID_EVENT";
    default:
        return "see CL/cl.h";
    }
}

moba_status mobai_cl_status(cl_int code) {
    if (code == CL_MEM_OBJECT_ALLOCATION_FAILURE || code == CL_OUT_OF_HOST_MEMORY || code == CL_INVALID_BUFFER_SIZE)
        return MOBA_ERROR_OUT_OF_MEMORY;
    if (code == CL_INVALID_MEM_OBJECT || code == CL_INVALID_COMMAND_QUEUE || code == CL_INVALID_CONTEXT)
        return MOBA_ERROR_WRONG_CONTEXT;
    return code == CL_DEVICE_NOT_AVAILABLE ? MOBA_ERROR_DEVICE_LOST : MOBA_ERROR_LAUNCH_FAILED;
}

moba_status mobai_cl_fail(cl_int code, const char *what) {
    return mobai_fail(mobai_cl_status(code), "%s failed: OpenCL error %d (%s)", what, (int)code, code_name(code));
}
