/* SPDX-License-Identifier: Apache-2.0
 *
 * Builds the embedded OpenCL C of an instance, or takes its binary from MOBA_CACHE_DIR. A cached binary is named by a
 * hash of the text, the options, the device and its driver, so that a stale one is never asked for.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/opencl/opencl.h"
#include "codegen/host/cache_file.h"
#include "core/env.h"
#include "core/status.h"

static const char *build_options(const mobai_device *device) {
    return device->software ? "-cl-std=CL1.2 -DMOBA_NO_UNROLL" : "-cl-std=CL1.2";
}

/** Path of the instance's binary; false: no cache is wanted. */
static bool cache_path(const mobai_device *device, size_t instance, char *path, size_t capacity) {
    const char *dir = mobai_env_get(MOBAI_ENV_CACHE_DIR);
    if (!dir) return false;
    char version[128];
    mobai_cl_device_text(device->id, CL_DEVICE_VERSION, version, sizeof version);
    const char *const key[] = {mobai_simt_opencl[instance], build_options(device), device->name, device->driver,
                               version};
    uint64_t h = MOBAI_HASH_BEGIN;
    for (size_t i = 0; i < sizeof key / sizeof *key; i++)
        h = mobai_hash_string(h, key[i]);
    int n = snprintf(path, capacity, "%s/opencl-%s-%016" PRIx64 ".bin", dir, mobai_simt_instances[instance].name, h);
    return n > 0 && (size_t)n < capacity;
}

static void store_binary(cl_program program, const char *path) {
    size_t bytes = 0;
    if (cl.clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof bytes, &bytes, NULL) != CL_SUCCESS || bytes == 0)
        return;
    unsigned char *data = malloc(bytes);
    if (!data) return;
    if (cl.clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof data, &data, NULL) == CL_SUCCESS)
        mobai_cache_write(path, data, bytes);
    free(data);
}

/** The cached program, built; NULL when there is none that the driver takes. */
static cl_program load_binary(mobai_device *device, const char *path) {
    size_t bytes = 0;
    unsigned char *data = mobai_cache_read(path, &bytes);
    if (!data) return NULL;
    cl_int code, loaded = CL_SUCCESS;
    const unsigned char *binary = data;
    cl_program program = cl.clCreateProgramWithBinary(device->context, 1, &device->id, &bytes, &binary, &loaded, &code);
    free(data);
    if (code != CL_SUCCESS) return NULL;
    if (loaded == CL_SUCCESS &&
        cl.clBuildProgram(program, 1, &device->id, build_options(device), NULL, NULL) == CL_SUCCESS)
        return program;
    cl.clReleaseProgram(program);
    return NULL;
}

static moba_status build_failed(mobai_device *device, cl_program program, size_t instance, cl_int code) {
    char log[4096] = "";
    cl.clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL);
    for (const char *line = log; *line;) {
        int length = (int)strcspn(line, "\n");
        mobai_log(MOBA_LOG_ERROR, "%.*s", length, line);
        line += length + (line[length] == '\n');
    }
    log[strcspn(log, "\n")] = '\0';
    return mobai_fail(mobai_cl_status(code), "%s does not build on %s (OpenCL error %d): %.200s",
                      mobai_simt_instances[instance].name, device->name, (int)code, log);
}

static moba_status build_source(mobai_device *device, size_t instance, cl_program *out) {
    cl_int code;
    const char *text = mobai_simt_opencl[instance];
    cl_program program = cl.clCreateProgramWithSource(device->context, 1, &text, NULL, &code);
    if (code != CL_SUCCESS) return mobai_cl_fail(code, "clCreateProgramWithSource");
    code = cl.clBuildProgram(program, 1, &device->id, build_options(device), NULL, NULL);
    if (code != CL_SUCCESS) {
        moba_status status = build_failed(device, program, instance, code);
        cl.clReleaseProgram(program);
        return status;
    }
    *out = program;
    return MOBA_OK;
}

/* Texts carry reqd_work_group_size: a driver that cannot give that many lanes fails the build.
 * CL_KERNEL_WORK_GROUP_SIZE is not asked, for rusticl answers with the 32 lanes it would prefer. */
moba_status mobai_cl_build(mobai_device *device, size_t instance) {
    if (device->kernels[instance]) return MOBA_OK;
    char path[1024];
    bool cached = cache_path(device, instance, path, sizeof path);
    cl_program program = cached ? load_binary(device, path) : NULL;
    if (!program) {
        MOBAI_TRY(build_source(device, instance, &program));
        if (cached) store_binary(program, path);
    }
    cl_int code;
    cl_kernel kernel = cl.clCreateKernel(program, mobai_simt_instances[instance].name, &code);
    cl.clReleaseProgram(program); /* the kernel keeps it */
    if (code != CL_SUCCESS) return mobai_cl_fail(code, "clCreateKernel");
    device->kernels[instance] = kernel;
    return MOBA_OK;
}
