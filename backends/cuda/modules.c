/* SPDX-License-Identifier: Apache-2.0
 *
 * The embedded kernels and their loading. Kernel order within a module is what launch.c counts on.
 */
#include <stdio.h>

#include "backends/cuda/cuda.h"
#include "core/status.h"

extern const unsigned char mobai_cuda_sm90_centroid[], mobai_cuda_sm90_gate[], mobai_cuda_sm90_index[],
    mobai_cuda_sm90_attend[], mobai_cuda_sm90_combine[], mobai_cuda_sm90_delta[], mobai_cuda_sm90_attend_bwd[],
    mobai_cuda_sm90_dq_sum[];

/* Shared memory as laid out in kernels/sm90: gate_layout, attend_layout and bwd_layout. */
/* pieces of centroids; of each consumer: Q, scores, lists of `capacity` entries */
#define GATE_BYTES(d, consumers, capacity)                                                                             \
    (3 * 64 * (d)*2 + (consumers) * (64 * (d)*2 + 64 * 128 * 4 + 4 * 256 * (capacity)) + 1024)
#define ATTEND_BYTES(d, keys) (2 * (keys) * (d)*2 + 2 * 64 * (d)*2 + 1024)
#define ATTEND_BWD_BYTES(d, keys)                                                                                      \
    (2 * (keys) * (d)*2 + ((keys) == 128 ? 3 : 4) * 32768 + 2 * (keys) * (8192 / (d)) * 2 +                            \
     ((keys) == 64 ? 256 * (d) : 0) + 1024)
#define INDEX_COUNT_BYTES (MOBAI_SM90_INDEX_WINDOW * 4)
#define INDEX_SCATTER_BYTES                                                                                            \
    (MOBAI_SM90_INDEX_WINDOW * (8 + 2 * MOBAI_SM90_SCATTER_WARPS) +                                                    \
     MOBAI_SM90_SCATTER_WARPS * MOBAI_SM90_SCATTER_PASSES * 32 * 4)

#define BY_ELEMENT_AND_DIM(stage, suffix, bytes64, bytes128)                                                           \
    {stage "_f16_d64" suffix, bytes64}, {stage "_f16_d64" suffix "_strided", bytes64},                                 \
        {stage "_f16_d128" suffix, bytes128}, {stage "_f16_d128" suffix "_strided", bytes128},                         \
        {stage "_bf16_d64" suffix, bytes64}, {stage "_bf16_d64" suffix "_strided", bytes64},                           \
        {stage "_bf16_d128" suffix, bytes128}, {                                                                       \
        stage "_bf16_d128" suffix "_strided", bytes128                                                                 \
    }

const cuda_module cuda_modules[CUDA_MODULE_COUNT] = {
    [CUDA_MODULE_CENTROID] = {"centroid",
                              mobai_cuda_sm90_centroid,
                              {BY_ELEMENT_AND_DIM("centroid", "", 0, 0), {NULL, 0}}},
    [CUDA_MODULE_GATE] = {"gate",
                          mobai_cuda_sm90_gate,
                          {BY_ELEMENT_AND_DIM("gate", "_k8", GATE_BYTES(64, 3, 11), GATE_BYTES(128, 3, 11)),
                           BY_ELEMENT_AND_DIM("gate", "_k16", GATE_BYTES(64, 2, 32), GATE_BYTES(128, 2, 32)),
                           BY_ELEMENT_AND_DIM("gate", "_k32", GATE_BYTES(64, 2, 40), GATE_BYTES(128, 2, 40)),
                           {NULL, 0}}},
    [CUDA_MODULE_INDEX] = {"index",
                           mobai_cuda_sm90_index,
                           {{"index_scan", 0},
                            {"index_cut", 0},
                            {"index_items", 0},
                            {"index_count_k8", INDEX_COUNT_BYTES},
                            {"index_scatter_k8", INDEX_SCATTER_BYTES},
                            {"index_count_k16", INDEX_COUNT_BYTES},
                            {"index_scatter_k16", INDEX_SCATTER_BYTES},
                            {"index_count_k32", INDEX_COUNT_BYTES},
                            {"index_scatter_k32", INDEX_SCATTER_BYTES},
                            {NULL, 0}}},
    [CUDA_MODULE_ATTEND] = {"attend",
                            mobai_cuda_sm90_attend,
                            {{"attend_places", 0},
                             BY_ELEMENT_AND_DIM("attend", "_n64", ATTEND_BYTES(64, 64), ATTEND_BYTES(128, 64)),
                             BY_ELEMENT_AND_DIM("attend", "_n128", ATTEND_BYTES(64, 128), ATTEND_BYTES(128, 128)),
                             BY_ELEMENT_AND_DIM("attend", "_stream", ATTEND_BYTES(64, 128), ATTEND_BYTES(128, 128)),
                             {NULL, 0}}},
    [CUDA_MODULE_COMBINE] = {"combine", mobai_cuda_sm90_combine, {BY_ELEMENT_AND_DIM("combine", "", 0, 0), {NULL, 0}}},
    [CUDA_MODULE_DELTA] = {"delta", mobai_cuda_sm90_delta, {BY_ELEMENT_AND_DIM("delta", "", 0, 0), {NULL, 0}}},
    [CUDA_MODULE_ATTEND_BWD] =
        {"attend_bwd",
         mobai_cuda_sm90_attend_bwd,
         {{"attend_bwd_cut", 0},
          {"attend_bwd_items", 0},
          {"attend_bwd_finish_f16", 0},
          {"attend_bwd_finish_f16_strided", 0},
          {"attend_bwd_finish_bf16", 0},
          {"attend_bwd_finish_bf16_strided", 0},
          BY_ELEMENT_AND_DIM("attend_bwd", "_n64", ATTEND_BWD_BYTES(64, 64), ATTEND_BWD_BYTES(128, 64)),
          BY_ELEMENT_AND_DIM("attend_bwd", "_n128", ATTEND_BWD_BYTES(64, 128), ATTEND_BWD_BYTES(128, 128)),
          {NULL, 0}}},
    [CUDA_MODULE_DQ_SUM] = {"dq_sum", mobai_cuda_sm90_dq_sum, {BY_ELEMENT_AND_DIM("dq_sum", "", 0, 0), {NULL, 0}}},
};

static moba_status load(mobai_device *device, cuda_module_id id) {
    const cuda_driver *d = cuda_driver_get();
    const cuda_module *m = &cuda_modules[id];
    char what[160];
    cu_module module = NULL;
    snprintf(what, sizeof what, "load the %s kernels", m->name);
    cu_result result = d->api.module_load(&module, m->image);
    if (result != CU_SUCCESS) return cuda_fail(result, what);
    for (int i = 0; i < CUDA_MAX_KERNELS && m->kernels[i].name; i++) {
        snprintf(what, sizeof what, "find the kernel %s", m->kernels[i].name);
        result = d->api.module_function(&device->functions[id][i], module, m->kernels[i].name);
        if (result == CU_SUCCESS && m->kernels[i].dynamic_shared > 48 * 1024) {
            snprintf(what, sizeof what, "give the kernel %s %u bytes of shared memory", m->kernels[i].name,
                     m->kernels[i].dynamic_shared);
            result = d->function_set(device->functions[id][i], CU_FUNCTION_MAX_DYNAMIC_SHARED,
                                     (int)m->kernels[i].dynamic_shared);
        }
        if (result != CU_SUCCESS) {
            d->api.module_unload(module);
            return cuda_fail(result, what);
        }
    }
    device->modules[id] = module;
    return MOBA_OK;
}

moba_status cuda_load(mobai_device *device, cuda_module_id id) {
    pthread_mutex_lock(&device->base.lock);
    moba_status status = device->modules[id] ? MOBA_OK : load(device, id);
    /* attend cuts lists with the index's kernels where the index has not */
    if (status == MOBA_OK && id == CUDA_MODULE_ATTEND && !device->modules[CUDA_MODULE_INDEX])
        status = load(device, CUDA_MODULE_INDEX);
    pthread_mutex_unlock(&device->base.lock);
    return status;
}

void cuda_unload_all(mobai_device *device) {
    for (int i = 0; i < CUDA_MODULE_COUNT; i++)
        if (device->modules[i]) cuda_driver_get()->api.module_unload(device->modules[i]);
}
