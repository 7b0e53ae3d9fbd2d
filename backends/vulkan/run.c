/* SPDX-License-Identifier: Apache-2.0
 *
 * Pipelines and launches. Every kernel takes its parameters as push constants or, past 128 bytes, from a block that is
 * written by the command buffer itself, so a recorded run needs nothing of the host any more.
 */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backends/vulkan/vulkan.h"
#include "codegen/host/cache_file.h"
#include "core/env.h"
#include "core/status.h"

/** Work worth storing at once, for a process that never closes its device; writing the file takes some milliseconds. */
enum { STORE_MS = 300 };

static mobai_vk_pipeline *pipeline_of(mobai_device *d, size_t instance, bool bound) {
    return &d->pipelines[instance + (bound ? mobai_n_simt_instances : 0)];
}

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/** Caller holds the lock. */
static moba_status build(mobai_device *d, size_t instance, bool bound) {
    mobai_vk_pipeline *out = pipeline_of(d, instance, bound);
    if (out->pipeline) return MOBA_OK;
    if (bound && !out->layout) MOBAI_TRY(mobai_vk_bound_layout(d, &mobai_simt_instances[instance], out));
    const mobai_simt_words *code = bound ? &mobai_simt_spirv_bound[instance] : &mobai_simt_spirv[instance];
    VkShaderModuleCreateInfo module_info = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = code->bytes, .pCode = code->words};
    VkShaderModule module;
    MOBAI_TRY_VK(d->vk.vkCreateShaderModule(d->device, &module_info, NULL, &module), "vkCreateShaderModule");
    VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                        .layout = bound ? out->layout : d->layout};
    info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
    info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
    info.stage.module = module;
    info.stage.pName = "main";
    /* WINDOWS and WINDOW_SHIFT of the prelude */
    const uint32_t constants[2] = {out->n_windows, d->window_shift};
    const VkSpecializationMapEntry entries[2] = {{0, 0, sizeof(uint32_t)}, {1, sizeof(uint32_t), sizeof(uint32_t)}};
    VkSpecializationInfo specialization = {2, entries, sizeof constants, constants};
    if (bound) info.stage.pSpecializationInfo = &specialization;
    double begin = now_ms();
    VkResult result = d->vk.vkCreateComputePipelines(d->device, d->cache, 1, &info, NULL, &out->pipeline);
    double ms = now_ms() - begin;
    d->vk.vkDestroyShaderModule(d->device, module, NULL);
    if (result != VK_SUCCESS) {
        out->pipeline = VK_NULL_HANDLE;
        return mobai_vk_fail(result, mobai_simt_instances[instance].name);
    }
    mobai_log(MOBA_LOG_PLAN, "pipeline %s%s: %.0f ms", mobai_simt_instances[instance].name, bound ? " (bound)" : "",
              ms);
    d->unsaved_ms += ms;
    return MOBA_OK;
}

moba_status mobai_vk_prepare(mobai_device *d, const mobai_variant *variant, const moba_problem *problem) {
    (void)problem;
    const mobai_vk_code *code = variant->code;
    moba_status status = MOBA_OK;
    pthread_mutex_lock(&d->lock);
    for (int32_t i = 0; i < code->program->n_steps && status == MOBA_OK; i++)
        status = build(d, code->program->steps[i], code->bound);
    if (d->unsaved_ms > STORE_MS) mobai_vk_store_cache(d);
    pthread_mutex_unlock(&d->lock);
    return status;
}

static uint64_t address(mobai_device *d, moba_buffer b) {
    if (!b.handle) return 0;
    VkBufferDeviceAddressInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO};
    memcpy(&info.buffer, &b.handle, sizeof info.buffer);
    return d->vk.vkGetBufferDeviceAddress(d->device, &info) + b.offset;
}

/** One step of a program about to be recorded. */
typedef struct step {
    size_t index; /* of its instance */
    bool bound;
    mobai_vk_sets *sets;
} step;

static moba_status check_groups(const mobai_device *d, const char *name, const mobai_launch *launch) {
    for (int x = 0; x < 3; x++)
        if (launch->groups[x] > (int64_t)d->max_groups[x])
            return mobai_fail(MOBA_ERROR_UNSUPPORTED, "%s needs %lld work-groups in dimension %d; %s allows %u", name,
                              (long long)launch->groups[x], x, d->name, (unsigned)d->max_groups[x]);
    return MOBA_OK;
}

/** Records one kernel behind a barrier. Caller holds the lock. */
static moba_status record(mobai_device *d, VkCommandBuffer commands, const step *s, const mobai_launch *launch,
                          const mobai_stage_args *args) {
    const mobai_simt_instance *instance = &mobai_simt_instances[s->index];
    const mobai_vk_pipeline *pipeline = pipeline_of(d, s->index, s->bound);
    MOBAI_TRY(check_groups(d, instance->name, launch));
    uint64_t addresses[MOBAI_MAX_KERNEL_PARAMS], block[MOBAI_MAX_KERNEL_PARAMS];
    uint32_t params = 0;
    for (int32_t i = 0; i < launch->n_buffers; i++)
        addresses[i] = s->bound ? mobai_vk_bound_distance(launch->buffers[i]) : address(d, launch->buffers[i]);
    mobai_simt_fill_block(instance, launch, addresses, block);
    const uint32_t bytes = (uint32_t)instance->kernel->block_bytes;
    const bool pushed = bytes <= MOBAI_VK_PUSH_BYTES;
    mobai_vk_barrier(d, commands);
    if (!pushed) {
        if (d->params_used + MOBAI_VK_BLOCK_BYTES > MOBAI_VK_PARAMS_BYTES) d->params_used = 0;
        params = d->params_used;
        d->params_used += (bytes + MOBAI_VK_BIND_ALIGNMENT - 1) / MOBAI_VK_BIND_ALIGNMENT * MOBAI_VK_BIND_ALIGNMENT;
        d->vk.vkCmdUpdateBuffer(commands, d->params.buffer, params, bytes, block);
        mobai_vk_barrier(d, commands);
    }
    VkPipelineLayout layout = s->bound ? pipeline->layout : d->layout;
    d->vk.vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline->pipeline);
    if (s->bound) MOBAI_TRY(mobai_vk_bind(d, commands, s->sets, instance, pipeline, launch, args, params));
    if (pushed)
        d->vk.vkCmdPushConstants(commands, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, bytes, block);
    else if (!s->bound)
        d->vk.vkCmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, layout, 0, 1, &d->block_set, 1,
                                      &params);
    d->vk.vkCmdDispatch(commands, (uint32_t)launch->groups[0], (uint32_t)launch->groups[1],
                        (uint32_t)launch->groups[2]);
    return MOBA_OK;
}

moba_status mobai_vk_launch(mobai_device *d, moba_stream native, const mobai_variant *variant,
                            const mobai_stage_args *args) {
    const mobai_vk_code *code = variant->code;
    mobai_vk_stream *stream;
    VkCommandBuffer commands;
    pthread_mutex_lock(&d->lock);
    moba_status status = mobai_vk_commands(d, native, &stream, &commands);
    for (int32_t i = 0; i < code->program->n_steps && status == MOBA_OK; i++) {
        step s = {code->program->steps[i], code->bound, stream ? &stream->sets[stream->current] : &d->caller_sets};
        mobai_launch launch;
        mobai_simt_pack(&mobai_simt_instances[s.index], args, &launch);
        if (launch.groups[0] <= 0 || launch.groups[1] <= 0 || launch.groups[2] <= 0) continue;
        status = record(d, commands, &s, &launch, args);
    }
    pthread_mutex_unlock(&d->lock);
    return status;
}

moba_status mobai_vk_run_end(mobai_device *d, moba_stream native) {
    mobai_vk_stream *stream;
    VkCommandBuffer commands;
    pthread_mutex_lock(&d->lock);
    moba_status status = mobai_vk_commands(d, native, &stream, &commands);
    if (status == MOBA_OK) mobai_vk_barrier(d, commands);
    if (status == MOBA_OK && stream) status = mobai_vk_submit(d, stream, false);
    pthread_mutex_unlock(&d->lock);
    return status;
}

/* ---------------------------------------------------------------------------------------- pipeline cache -- */

static bool cache_path(const mobai_device *d, char *path, size_t capacity) {
    const char *dir = mobai_env_get(MOBAI_ENV_CACHE_DIR);
    if (!dir) return false;
    uint64_t h = mobai_hash_string(mobai_hash_string(MOBAI_HASH_BEGIN, d->name), d->driver);
    int n = snprintf(path, capacity, "%s/vulkan-%016" PRIx64 ".bin", dir, h);
    return n > 0 && (size_t)n < capacity;
}

/** A cache with what the file at `path` holds (NULL: nothing); VK_NULL_HANDLE: there is no memory. */
static VkPipelineCache read_cache(mobai_device *d, const char *path) {
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    VkPipelineCache cache = VK_NULL_HANDLE;
    /* The driver knows by the header whether the data is its own. */
    void *data = path ? mobai_cache_read(path, &info.initialDataSize) : NULL;
    if (!data) info.initialDataSize = 0;
    info.pInitialData = data;
    if (d->vk.vkCreatePipelineCache(d->device, &info, NULL, &cache) != VK_SUCCESS) cache = VK_NULL_HANDLE;
    free(data);
    return cache;
}

void mobai_vk_load_cache(mobai_device *d) {
    char path[1024];
    d->cache = read_cache(d, cache_path(d, path, sizeof path) ? path : NULL);
}

void mobai_vk_store_cache(mobai_device *d) {
    char path[1024];
    size_t bytes = 0;
    bool fresh = d->unsaved_ms > 0.0;
    d->unsaved_ms = 0.0;
    if (!fresh || !d->cache || !cache_path(d, path, sizeof path)) return;
    VkPipelineCache others = read_cache(d, path); /* what other processes stored meanwhile */
    if (others) {
        d->vk.vkMergePipelineCaches(d->device, d->cache, 1, &others);
        d->vk.vkDestroyPipelineCache(d->device, others, NULL);
    }
    if (d->vk.vkGetPipelineCacheData(d->device, d->cache, &bytes, NULL) != VK_SUCCESS || bytes == 0) return;
    void *data = malloc(bytes);
    if (data && d->vk.vkGetPipelineCacheData(d->device, d->cache, &bytes, data) == VK_SUCCESS)
        mobai_cache_write(path, data, bytes);
    free(data);
}
