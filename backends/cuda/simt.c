/* SPDX-License-Identifier: Apache-2.0
 *
 * The generated tier on CUDA: one embedded fatbin for each .kern file, loaded when a plan first uses it.
 */
#include <stdio.h>
#include <string.h>

#include "backends/cuda/cuda.h"
#include "core/status.h"

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

moba_status cuda_simt_module(mobai_device *device, const char *kernel, void **module) {
    for (int i = 0; i < CUDA_N_SIMT_KERNELS; i++) {
        if (strcmp(images[i].kernel, kernel) != 0) continue;
        if (!device->simt_modules[i]) {
            cu_result result = device->base.driver->module_load(&device->simt_modules[i], images[i].image);
            if (result != CU_SUCCESS) {
                char what[200];
                snprintf(what, sizeof what, "load the generated kernel %s", kernel);
                device->simt_modules[i] = NULL;
                return cuda_fail(result, what);
            }
        }
        *module = device->simt_modules[i];
        return MOBA_OK;
    }
    return mobai_fail(MOBA_ERROR_INTERNAL, "the generated kernel %s is not embedded", kernel);
}

void cuda_simt_unload(mobai_device *device) {
    for (int i = 0; i < CUDA_N_SIMT_KERNELS; i++)
        if (device->simt_modules[i]) device->base.driver->module_unload(device->simt_modules[i]);
}
