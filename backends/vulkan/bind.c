/* SPDX-License-Identifier: Apache-2.0
 *
 * Buffers as descriptors, for devices without bufferDeviceAddress. A storage buffer binding may span no more than
 * maxStorageBufferRange, so each buffer of a kernel is bound as two or more consecutive windows of a power of two, from
 * the buffer's offset on; the prelude of the generated GLSL picks the window. How many windows there are follows from
 * how many bindings the device allows. Buffer k has the bindings 2k, its first window, and 2k + 1, the others.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "backends/vulkan/vulkan.h"
#include "core/convert.h"
#include "core/status.h"

enum { SETS_PER_POOL = 64 };

static int32_t n_buffers(const mobai_kernel *kernel) {
    int32_t n = 0;
    while (n < kernel->n_params && kernel->params[n].kind == MOBAI_PARAM_BUFFER)
        n++;
    return n;
}

static bool has_block(const mobai_kernel *kernel) { return kernel->block_bytes > MOBAI_VK_PUSH_BYTES; }

uint32_t mobai_vk_max_bindings(const VkPhysicalDeviceLimits *limits) {
    uint32_t enough = (MOBAI_MAX_KERNEL_PARAMS / 4) * MOBAI_VK_MAX_WINDOWS;
    uint32_t n = limits->maxPerStageDescriptorStorageBuffers;
    if (limits->maxDescriptorSetStorageBuffers < n) n = limits->maxDescriptorSetStorageBuffers;
    if (limits->maxPerStageResources < n) n = limits->maxPerStageResources;
    return n < enough ? n : enough;
}

static uint32_t kernel_windows(const mobai_kernel *kernel, uint32_t allowed) {
    uint32_t block = has_block(kernel), n = (uint32_t)n_buffers(kernel);
    if (n == 0 || allowed < block) return 0;
    uint32_t windows = (allowed - block) / n;
    return windows < MOBAI_VK_MAX_WINDOWS ? windows : MOBAI_VK_MAX_WINDOWS;
}

uint32_t mobai_vk_bound_windows(const VkPhysicalDeviceLimits *limits) {
    uint32_t least = MOBAI_VK_MAX_WINDOWS;
    for (size_t i = 0; i < mobai_n_simt_instances; i++) {
        uint32_t n = kernel_windows(mobai_simt_instances[i].kernel, mobai_vk_max_bindings(limits));
        if (n < least) least = n;
    }
    return least;
}

const char *mobai_vk_bound_reject(const VkPhysicalDeviceLimits *limits, const VkPhysicalDeviceFeatures *features) {
    if (!features->shaderStorageBufferArrayDynamicIndexing) return "it lacks shaderStorageBufferArrayDynamicIndexing";
    if (mobai_vk_bound_windows(limits) < 2) return "its shaders may use fewer storage buffers than a kernel binds";
    return NULL;
}

/* --------------------------------------------------------------------------------------------- extents -- */

static uint64_t tensor_extent(const mobai_stage_args *a, const moba_tensor *t, bool query) {
    int64_t rows = query ? a->total_q : a->total_k, heads = query ? a->n_q_heads : a->n_kv_heads;
    if (rows == 0) return 0;
    int64_t last = (heads - 1) * t->head_stride + a->head_dim;
    if ((query ? a->cu_seqlens_q : a->cu_seqlens_k).handle)
        last += (rows - 1) * t->token_stride;
    else
        last += (a->batch - 1) * t->batch_stride + (rows / a->batch - 1) * t->token_stride;
    return (uint64_t)last * mobai_dtype_bytes((moba_dtype)a->dtype);
}

uint64_t mobai_vk_extent(const mobai_stage_args *a, size_t offset) {
    const uint64_t element = mobai_dtype_bytes((moba_dtype)a->dtype), kv_heads = (uint64_t)a->n_kv_heads;
    const uint64_t head_dim = (uint64_t)a->head_dim, q_rows = (uint64_t)a->total_q * (uint64_t)a->n_q_heads;
    const uint64_t weights = kv_heads * head_dim * (uint64_t)a->kconv_width, slots = (uint64_t)a->n_slots;
    const uint64_t picks = (uint64_t)mobai_simt_slice_picks(a), listed = kv_heads * (uint64_t)a->index_row_stride;
#define TENSOR(name, query)                                                                                            \
    case offsetof(mobai_stage_args, name.buffer):                                                                      \
        return tensor_extent(a, &a->name, query)
#define BYTES(name, bytes)                                                                                             \
    case offsetof(mobai_stage_args, name):                                                                             \
        return bytes
    switch (offset) {
        TENSOR(q, true);
        TENSOR(k, false);
        TENSOR(v, false);
        TENSOR(o, true);
        TENSOR(dout, true);
        TENSOR(dq, true);
        TENSOR(dk, false);
        TENSOR(dv, false);
        TENSOR(kprime, false);
        BYTES(lse, q_rows * sizeof(float));
        BYTES(kconv_weight, weights * element);
        BYTES(dkconv_weight, weights * sizeof(float));
        BYTES(cu_seqlens_q, ((uint64_t)a->batch + 1) * sizeof(int32_t));
        BYTES(cu_seqlens_k, ((uint64_t)a->batch + 1) * sizeof(int32_t));
        BYTES(centroids, kv_heads * slots * head_dim * element);
        BYTES(selection, q_rows * (uint64_t)a->top_k * sizeof(int32_t));
        BYTES(index_offsets, kv_heads * (slots + 1) * sizeof(int64_t));
        BYTES(index_rows, listed * sizeof(uint32_t));
        BYTES(index_ranks, listed * sizeof(uint16_t));
        BYTES(partials, picks * head_dim * sizeof(float));
        BYTES(partial_ml, picks * 2 * sizeof(float));
        BYTES(delta, q_rows * sizeof(float));
        BYTES(dkprime, (uint64_t)a->total_k * (uint64_t)a->slice_kv_heads * head_dim * sizeof(float));
        BYTES(dkv_sums,
              2 * (uint64_t)(a->kv_head_end - a->kv_head_begin) * (uint64_t)a->total_k * head_dim * sizeof(float));
        BYTES(scratch, a->scratch_bytes);
    default:
        return UINT64_MAX; /* none of the generated kernels has another */
    }
#undef TENSOR
#undef BYTES
}

/* --------------------------------------------------------------------------------------------- layouts -- */

moba_status mobai_vk_bound_layout(mobai_device *d, const mobai_simt_instance *instance, mobai_vk_pipeline *out) {
    const mobai_kernel *kernel = instance->kernel;
    uint32_t n = (uint32_t)n_buffers(kernel), block = has_block(kernel);
    if (d->no_bound)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED, "%s cannot run %s without addresses: %s", d->name, instance->name,
                          d->no_bound);
    out->n_windows = kernel_windows(kernel, d->max_bindings);
    VkDescriptorSetLayoutBinding bindings[2 * MOBAI_MAX_KERNEL_PARAMS + 1];
    for (uint32_t i = 0; i < 2 * n + block; i++)
        bindings[i] = (VkDescriptorSetLayoutBinding){.binding = i,
                                                     .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                                     .descriptorCount = i % 2 ? out->n_windows - 1 : 1,
                                                     .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    VkDescriptorSetLayoutCreateInfo sets = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
                                            .bindingCount = 2 * n + block,
                                            .pBindings = bindings};
    if (!out->set_layout) /* left by an attempt that failed further on */
        MOBAI_TRY_VK(d->vk.vkCreateDescriptorSetLayout(d->device, &sets, NULL, &out->set_layout),
                     "vkCreateDescriptorSetLayout");
    VkPushConstantRange range = {VK_SHADER_STAGE_COMPUTE_BIT, 0, MOBAI_VK_PUSH_BYTES};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .setLayoutCount = 1,
                                         .pSetLayouts = &out->set_layout,
                                         .pushConstantRangeCount = block ? 0 : 1,
                                         .pPushConstantRanges = &range};
    MOBAI_TRY_VK(d->vk.vkCreatePipelineLayout(d->device, &layout, NULL, &out->layout), "vkCreatePipelineLayout");
    return MOBA_OK;
}

/* ------------------------------------------------------------------------------------------------ sets -- */

static moba_status new_pool(mobai_device *d, mobai_vk_pool **out) {
    mobai_vk_pool *p = calloc(1, sizeof *p);
    if (!p) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a descriptor pool of %zu bytes", sizeof *p);
    VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, SETS_PER_POOL * d->max_bindings};
    VkDescriptorPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                       .maxSets = SETS_PER_POOL,
                                       .poolSizeCount = 1,
                                       .pPoolSizes = &size};
    VkResult result = d->vk.vkCreateDescriptorPool(d->device, &info, NULL, &p->pool);
    if (result != VK_SUCCESS) {
        free(p);
        return mobai_vk_fail(result, "vkCreateDescriptorPool");
    }
    *out = p;
    return MOBA_OK;
}

static moba_status take_set(mobai_device *d, mobai_vk_sets *sets, VkDescriptorSetLayout layout, VkDescriptorSet *out) {
    mobai_vk_pool **at = sets->current ? &sets->current : &sets->first;
    for (;;) {
        bool fresh = !*at;
        if (fresh) MOBAI_TRY(new_pool(d, at));
        mobai_vk_pool *pool = *at;
        VkDescriptorSetAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                            /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): made above */
                                            .descriptorPool = pool->pool,
                                            .descriptorSetCount = 1,
                                            .pSetLayouts = &layout};
        VkResult result = d->vk.vkAllocateDescriptorSets(d->device, &info, out);
        sets->current = pool;
        if (result == VK_SUCCESS) return MOBA_OK;
        if (fresh || (result != VK_ERROR_OUT_OF_POOL_MEMORY && result != VK_ERROR_FRAGMENTED_POOL))
            return mobai_vk_fail(result, "vkAllocateDescriptorSets");
        at = &pool->next;
    }
}

void mobai_vk_reset_sets(mobai_device *d, mobai_vk_sets *sets) {
    for (mobai_vk_pool *p = sets->first; p; p = p->next)
        d->vk.vkResetDescriptorPool(d->device, p->pool, 0);
    sets->current = sets->first;
}

void mobai_vk_free_sets(mobai_device *d, mobai_vk_sets *sets) {
    while (sets->first) {
        mobai_vk_pool *p = sets->first;
        sets->first = p->next;
        d->vk.vkDestroyDescriptorPool(d->device, p->pool, NULL);
        free(p);
    }
    sets->current = NULL;
}

uint64_t mobai_vk_bound_distance(moba_buffer buffer) { return buffer.offset % MOBAI_VK_BIND_ALIGNMENT; }

/** The windows of one buffer; a window past its end repeats the first one. */
static moba_status fill_windows(const mobai_device *d, const mobai_kernel *kernel, int32_t index, moba_buffer buffer,
                                uint64_t extent, uint32_t n_windows, VkDescriptorBufferInfo *out) {
    if (!buffer.handle || extent == 0) {
        for (uint32_t w = 0; w < n_windows; w++)
            out[w] = (VkDescriptorBufferInfo){d->unused.buffer, 0, VK_WHOLE_SIZE};
        return MOBA_OK;
    }
    if (extent == UINT64_MAX)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED, "kernel %s binds %s, whose length mobai_vk_extent() does not know",
                          kernel->name, kernel->params[index].name);
    VkBuffer handle;
    memcpy(&handle, &buffer.handle, sizeof handle);
    uint64_t distance = mobai_vk_bound_distance(buffer), window = (uint64_t)1 << d->window_shift;
    uint64_t bytes = distance + extent;
    if ((bytes - 1) >> d->window_shift >= n_windows)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED,
                          "%s of kernel %s spans %llu bytes; without buffer addresses %s reaches %llu of a buffer (%u "
                          "bindings of %llu bytes): use smaller tensors or a smaller workspace_limit",
                          kernel->params[index].name, kernel->name, (unsigned long long)bytes, d->name,
                          (unsigned long long)(n_windows * window), n_windows, (unsigned long long)window);
    for (uint32_t w = 0; w < n_windows; w++) {
        uint64_t at = w * window < bytes ? w * window : 0;
        uint64_t range = bytes - at < window ? bytes - at : window;
        out[w] = (VkDescriptorBufferInfo){handle, buffer.offset - distance + at, range};
    }
    return MOBA_OK;
}

moba_status mobai_vk_bind(mobai_device *d, VkCommandBuffer commands, mobai_vk_sets *sets,
                          const mobai_simt_instance *instance, const mobai_vk_pipeline *pipeline,
                          const mobai_launch *launch, const mobai_stage_args *args, uint64_t params) {
    const mobai_kernel *kernel = instance->kernel;
    VkDescriptorBufferInfo infos[MOBAI_MAX_KERNEL_PARAMS * MOBAI_VK_MAX_WINDOWS + 1];
    VkWriteDescriptorSet writes[2 * MOBAI_MAX_KERNEL_PARAMS + 1];
    VkDescriptorSet set;
    uint32_t n = (uint32_t)launch->n_buffers, windows = pipeline->n_windows, block = has_block(kernel);
    for (uint32_t i = 0; i < n; i++)
        MOBAI_TRY(fill_windows(d, kernel, (int32_t)i, launch->buffers[i],
                               mobai_vk_extent(args, kernel->params[i].offset), windows, infos + i * windows));
    infos[n * windows] = (VkDescriptorBufferInfo){d->params.buffer, params, (uint64_t)kernel->block_bytes};
    MOBAI_TRY(take_set(d, sets, pipeline->set_layout, &set));
    for (uint32_t i = 0; i < 2 * n + block; i++)
        writes[i] = (VkWriteDescriptorSet){.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                           .dstSet = set,
                                           .dstBinding = i,
                                           .descriptorCount = i % 2 ? windows - 1 : 1,
                                           .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                           .pBufferInfo = infos + i / 2 * windows + i % 2};
    d->vk.vkUpdateDescriptorSets(d->device, 2 * n + block, writes, 0, NULL);
    d->vk.vkCmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline->layout, 0, 1, &set, 0, NULL);
    return MOBA_OK;
}
