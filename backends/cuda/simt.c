/* SPDX-License-Identifier: Apache-2.0
 *
 * The generated tier on CUDA: one embedded fatbin for each .kern file, loaded when a plan first uses it.
 */
#include <stdio.h>
#include <string.h>

#include "backends/cuda/cuda.h"
#include "core/status.h"
#include "simt_table.h"

/* The build lists the kernels in simt_kernels.inc: SIMT_KERNEL(name) for each. */
#define SIMT_KERNEL(name) extern const unsigned char mobai_cuda_simt_##name[];
#include "simt_kernels.inc"
#undef SIMT_KERNEL

typedef struct simt_image {
    const char *kernel;
    const unsigned char *image;
} simt_image;

static const simt_image images[CUDA_N_SIMT_KERNELS] = {
#define SIMT_KERNEL(name) {#name, mobai_cuda_simt_##name},
#include "simt_kernels.inc"
#undef SIMT_KERNEL
};

static moba_status load_instance(mobai_device *device, uint16_t number) {
    if (device->simt_functions[number]) return MOBA_OK;
    const cuda_driver *d = cuda_driver_get();
    const mobai_simt_instance *instance = &mobai_simt_instances[number];
    char what[200];
    for (int i = 0; i < CUDA_N_SIMT_KERNELS; i++) {
        if (strcmp(images[i].kernel, instance->kernel->name) != 0) continue;
        if (!device->simt_modules[i]) {
            snprintf(what, sizeof what, "load the generated kernel %s", images[i].kernel);
            cu_result result = d->module_load(&device->simt_modules[i], images[i].image);
            if (result != CU_SUCCESS) {
                device->simt_modules[i] = NULL;
                return cuda_fail(result, what);
            }
        }
        cu_result result = d->module_function(&device->simt_functions[number], device->simt_modules[i], instance->name);
        if (result == CU_SUCCESS) return MOBA_OK;
        device->simt_functions[number] = NULL;
        snprintf(what, sizeof what, "find the generated kernel %s", instance->name);
        return cuda_fail(result, what);
    }
    return mobai_fail(MOBA_ERROR_INTERNAL, "the generated kernel %s is not embedded", instance->kernel->name);
}

moba_status cuda_simt_load(mobai_device *device, const mobai_variant *variant) {
    const mobai_simt_program *program = variant->code;
    moba_status status = MOBA_OK;
    pthread_mutex_lock(&device->lock);
    for (int32_t i = 0; i < program->n_steps && status == MOBA_OK; i++)
        status = load_instance(device, program->steps[i]);
    pthread_mutex_unlock(&device->lock);
    return status;
}

void cuda_simt_unload(mobai_device *device) {
    for (int i = 0; i < CUDA_N_SIMT_KERNELS; i++)
        if (device->simt_modules[i]) cuda_driver_get()->module_unload(device->simt_modules[i]);
}

moba_status cuda_simt_launch(mobai_device *device, cu_stream stream, const mobai_variant *variant,
                             const mobai_stage_args *args) {
    const mobai_simt_program *program = variant->code;
    for (int32_t i = 0; i < program->n_steps; i++) {
        const mobai_simt_instance *instance = &mobai_simt_instances[program->steps[i]];
        mobai_launch launch;
        mobai_simt_pack(instance, args, &launch);
        if (launch.groups[0] <= 0 || launch.groups[1] <= 0 || launch.groups[2] <= 0) continue;
        uint64_t addresses[MOBAI_MAX_KERNEL_PARAMS];
        void *arguments[MOBAI_MAX_KERNEL_PARAMS];
        int32_t n = 0;
        for (int32_t b = 0; b < launch.n_buffers; b++) {
            addresses[b] = launch.buffers[b].handle ? launch.buffers[b].handle + launch.buffers[b].offset : 0;
            arguments[n++] = &addresses[b];
        }
        for (int32_t w = 0; w < launch.n_wide; w++)
            arguments[n++] = &launch.wide[w];
        for (int32_t w = 0; n < instance->kernel->n_params; w++)
            arguments[n++] = &launch.narrow[w];
        cu_result result = cuda_driver_get()->launch(
            device->simt_functions[program->steps[i]], (unsigned)launch.groups[0], (unsigned)launch.groups[1],
            (unsigned)launch.groups[2], (unsigned)instance->lanes, 1, 1, 0, stream, arguments, NULL);
        if (result != CU_SUCCESS) {
            char what[200];
            snprintf(what, sizeof what, "launch %s on a grid of %lld x %lld x %lld", instance->name,
                     (long long)launch.groups[0], (long long)launch.groups[1], (long long)launch.groups[2]);
            return cuda_fail(result, what);
        }
    }
    return MOBA_OK;
}
