/* SPDX-License-Identifier: Apache-2.0
 *
 * Every backend this version knows, in order of preference. Adding one is one line here and one folder in backends/
 * (backends/README.md). Nothing else in core/ names a backend.
 */
#include "core/backend.h"

/* Generated: MOBAI_HAVE_<NAME>, or MOBAI_WHY_NOT_<NAME> with the reason (cmake/MobaModules.cmake). */
#include "built_backends.h"

#define MOBAI_NOT_BUILT(why) "not built in: " why

extern const mobai_backend mobai_backend_cpu;
#ifdef MOBAI_HAVE_CUDA
extern const mobai_backend mobai_backend_cuda;
#define MOBAI_CUDA                                                                                                     \
    { "cuda", &mobai_backend_cuda, NULL }
#else
#define MOBAI_CUDA                                                                                                     \
    { "cuda", NULL, MOBAI_NOT_BUILT(MOBAI_WHY_NOT_CUDA) }
#endif
#ifdef MOBAI_HAVE_HIP
extern const mobai_backend mobai_backend_hip;
#define MOBAI_HIP                                                                                                      \
    { "hip", &mobai_backend_hip, NULL }
#else
#define MOBAI_HIP                                                                                                      \
    { "hip", NULL, MOBAI_NOT_BUILT(MOBAI_WHY_NOT_HIP) }
#endif
#ifdef MOBAI_HAVE_VULKAN
extern const mobai_backend mobai_backend_vulkan;
#define MOBAI_VULKAN                                                                                                   \
    { "vulkan", &mobai_backend_vulkan, NULL }
#else
#define MOBAI_VULKAN                                                                                                   \
    { "vulkan", NULL, MOBAI_NOT_BUILT(MOBAI_WHY_NOT_VULKAN) }
#endif
#ifdef MOBAI_HAVE_OPENCL
extern const mobai_backend mobai_backend_opencl;
#define MOBAI_OPENCL                                                                                                   \
    { "opencl", &mobai_backend_opencl, NULL }
#else
#define MOBAI_OPENCL                                                                                                   \
    { "opencl", NULL, MOBAI_NOT_BUILT(MOBAI_WHY_NOT_OPENCL) }
#endif

const mobai_backend_entry mobai_backends[] = {
    MOBAI_CUDA, MOBAI_HIP, MOBAI_VULKAN, MOBAI_OPENCL, {"cpu", &mobai_backend_cpu, NULL},
};
const size_t mobai_n_backends = sizeof mobai_backends / sizeof mobai_backends[0];
