/* SPDX-License-Identifier: Apache-2.0
 *
 * The least device that the generated kernels promise to run on: work-groups of 256 lanes, 32 KiB of shared memory; and
 * every text through the compiler of the first device, which is asked what it made of it.
 */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <criterion/criterion.h>

#include "codegen/host/simt.h"

extern const char *const mobai_simt_opencl[];

Test(kernels, fit_the_least_device) {
    cr_assert_gt(mobai_n_simt_instances, 50);
    for (size_t i = 0; i < mobai_n_simt_instances; i++) {
        const mobai_simt_instance *k = &mobai_simt_instances[i];
        cr_expect(k->lanes >= 1 && k->lanes <= 256, "%s: %d lanes", k->name, (int)k->lanes);
        cr_expect(k->shared_bytes >= 0 && k->shared_bytes <= 32768, "%s: %d bytes", k->name, (int)k->shared_bytes);
    }
}

/** The first device of any platform. */
static cl_device_id first_device(void) {
    cl_platform_id platforms[16];
    cl_uint n_platforms = 0, n = 0;
    cl_device_id device;
    cr_assert_eq(clGetPlatformIDs(16, platforms, &n_platforms), CL_SUCCESS);
    for (cl_uint p = 0; p < n_platforms && p < 16; p++)
        if (clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, 1, &device, &n) == CL_SUCCESS && n > 0) return device;
    cr_assert_fail("no platform has a device");
    return NULL;
}

Test(kernels, build_on_the_device) {
    cl_device_id device = first_device();
    cl_int code;
    cl_context context = clCreateContext(NULL, 1, &device, NULL, NULL, &code);
    cr_assert_eq(code, CL_SUCCESS);
    for (size_t i = 0; i < mobai_n_simt_instances; i++) {
        const mobai_simt_instance *k = &mobai_simt_instances[i];
        const char *text = mobai_simt_opencl[i];
        char log[2048] = "";
        cl_program program = clCreateProgramWithSource(context, 1, &text, NULL, &code);
        cr_assert_eq(code, CL_SUCCESS);
        code = clBuildProgram(program, 1, &device, "-cl-std=CL1.2 -DMOBA_NO_UNROLL", NULL, NULL);
        clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, sizeof log - 1, log, NULL);
        cr_assert_eq(code, CL_SUCCESS, "%s does not build: %s", k->name, log);
        cl_kernel kernel = clCreateKernel(program, k->name, &code);
        cr_assert_eq(code, CL_SUCCESS, "%s is not in its program", k->name);
        cl_ulong local = 0;
        size_t lanes[3] = {0};
        clGetKernelWorkGroupInfo(kernel, device, CL_KERNEL_LOCAL_MEM_SIZE, sizeof local, &local, NULL);
        clGetKernelWorkGroupInfo(kernel, device, CL_KERNEL_COMPILE_WORK_GROUP_SIZE, sizeof lanes, lanes, NULL);
        cr_expect_leq(local, 32768, "%s takes %llu bytes of local memory", k->name, (unsigned long long)local);
        cr_expect(lanes[0] == (size_t)k->lanes && lanes[1] == 1 && lanes[2] == 1, "%s has %zu x %zu x %zu lanes",
                  k->name, lanes[0], lanes[1], lanes[2]);
        clReleaseKernel(kernel);
        clReleaseProgram(program);
    }
    clReleaseContext(context);
}
