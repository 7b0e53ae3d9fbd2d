/* SPDX-License-Identifier: Apache-2.0
 *
 * The least device that the generated kernels promise to run on: work-groups of 256 lanes, 32 KiB of shared memory; and
 * every text through the compiler of the first device, which is asked what it made of it.
 */
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <criterion/criterion.h>

#include "codegen/host/simt_row.h"

static const mobai_variant variants[] = {
#include "simt_rows.inc"
};
enum { N_VARIANTS = sizeof variants / sizeof variants[0] };

Test(kernels, fit_the_least_device) {
    cr_assert_gt(mobai_n_simt_instances, 50);
    for (size_t i = 0; i < mobai_n_simt_instances; i++) {
        const mobai_simt_instance *k = &mobai_simt_instances[i];
        cr_expect(k->lanes >= 1 && k->lanes <= 256, "%s: %d lanes", k->name, (int)k->lanes);
        cr_expect(k->shared_bytes >= 0 && k->shared_bytes <= 32768, "%s: %d bytes", k->name, (int)k->shared_bytes);
    }
}

/** A row of `stage` that serves the problem; NULL with the last reason in *why. */
static const mobai_variant *serving(mobai_stage stage, const moba_problem *p, const mobai_caps *caps,
                                    const char **why) {
    for (int i = 0; i < N_VARIANTS; i++) {
        const mobai_variant *v = &variants[i];
        if (v->stage != stage || !(v->dtypes & (1u << p->dtype))) continue;
        if (p->dense && v->flow != MOBAI_FLOW_ONE_PASS) continue;
        const char *reason = v->reject(p, caps);
        if (!reason) return v;
        *why = reason;
    }
    return NULL;
}

/* Every supported shape has a kernel for every stage on the least device, and none on a smaller one. */
Test(kernels, serve_every_shape_on_the_least_device) {
    static const int32_t dims[] = {1, 31, 32, 33, 64, 65, 127, 128, 129, 200, 256},
                         picks[] = {1, 2, 31, 32, 33, 128, 1000};
    static const mobai_stage dense[] = {MOBAI_STAGE_KCONV, MOBAI_STAGE_ATTEND, MOBAI_STAGE_DELTA,
                                        MOBAI_STAGE_ATTEND_BWD, MOBAI_STAGE_KCONV_BWD};
    const mobai_caps least = {.max_workgroup_size = 256, .local_memory_bytes = 32768};
    const mobai_caps narrow = {.max_workgroup_size = 63, .local_memory_bytes = 32768};
    const mobai_caps small = {.max_workgroup_size = 256, .local_memory_bytes = 1024};
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (size_t k = 0; k < sizeof picks / sizeof *picks; k++)
            for (int32_t dtype = 0; dtype < 3; dtype++)
                for (int32_t x = 0; x < 2; x++) {
                    const moba_problem p = {.dtype = (moba_dtype)dtype,
                                            .head_dim = dims[d],
                                            .block_size = 17,
                                            .top_k = picks[k],
                                            .dense = x,
                                            .n_q_heads = 2,
                                            .n_kv_heads = 1,
                                            .kconv_width = 3};
                    const char *why = "there is none";
                    for (int s = 0; s < (x ? 5 : MOBAI_STAGE_COUNT); s++) {
                        mobai_stage stage = x ? dense[s] : (mobai_stage)s;
                        cr_expect_not_null(serving(stage, &p, &least, &why),
                                           "stage %d, head_dim %d, top_k %d, dtype %d: %s", stage, dims[d], picks[k],
                                           dtype, why);
                    }
                    cr_expect_null(serving(MOBAI_STAGE_ATTEND, &p, &narrow, &why));
                    cr_expect_null(serving(MOBAI_STAGE_ATTEND, &p, &small, &why));
                }
    const moba_problem p = {.head_dim = 64, .block_size = 64, .top_k = 8};
    const char *why;
    const mobai_variant *attend = serving(MOBAI_STAGE_ATTEND, &p, &least, &why);
    cr_assert_not_null(attend);
    cr_expect_str_eq(attend->reject(&p, &narrow), "the device's work-groups are too small");
    cr_expect_str_eq(attend->reject(&p, &small), "the device's shared memory is too small");
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
