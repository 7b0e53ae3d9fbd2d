/* SPDX-License-Identifier: Apache-2.0
 *
 * Pipelines and launches. Every kernel takes its parameters as push constants or, past 128 bytes, through the address
 * of a block that is written by the command buffer itself, so a recorded run needs nothing of the host any more.
 */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/vulkan/vulkan.h"
#include "core/env.h"
#include "core/status.h"

/** Caller holds the lock. */
static moba_status build(mobai_device *d, size_t instance) {
    if (d->pipelines[instance]) return MOBA_OK;
    VkShaderModuleCreateInfo module_info = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                            .codeSize = mobai_simt_spirv[instance].bytes,
                                            .pCode = mobai_simt_spirv[instance].words};
    VkShaderModule module;
    MOBAI_TRY_VK(d->vk.vkCreateShaderModule(d->device, &module_info, NULL, &module), "vkCreateShaderModule");
    VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO, .layout = d->layout};
    info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
    info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
    info.stage.module = module;
    info.stage.pName = "main";
    VkResult result = d->vk.vkCreateComputePipelines(d->device, d->cache, 1, &info, NULL, &d->pipelines[instance]);
    d->vk.vkDestroyShaderModule(d->device, module, NULL);
    if (result != VK_SUCCESS) {
        d->pipelines[instance] = VK_NULL_HANDLE;
        return mobai_vk_fail(result, mobai_simt_instances[instance].name);
    }
    return MOBA_OK;
}

moba_status mobai_vk_prepare(mobai_device *d, const mobai_variant *variant, const moba_problem *problem) {
    (void)problem;
    const mobai_simt_program *program = variant->code;
    moba_status status = MOBA_OK;
    pthread_mutex_lock(&d->lock);
    for (int32_t i = 0; i < program->n_steps && status == MOBA_OK; i++)
        status = build(d, program->steps[i]);
    pthread_mutex_unlock(&d->lock);
    return status;
}

static uint64_t address(mobai_device *d, moba_buffer b) {
    if (!b.handle) return 0;
    VkBufferDeviceAddressInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO};
    memcpy(&info.buffer, &b.handle, sizeof info.buffer);
    return d->vk.vkGetBufferDeviceAddress(d->device, &info) + b.offset;
}

/** Records one kernel behind a barrier. Caller holds the lock. */
static moba_status record(mobai_device *d, VkCommandBuffer commands, size_t index, const mobai_launch *launch) {
    const mobai_simt_instance *instance = &mobai_simt_instances[index];
    for (int x = 0; x < 3; x++)
        if (launch->groups[x] > (int64_t)d->max_groups[x])
            return mobai_fail(MOBA_ERROR_UNSUPPORTED, "%s needs %lld work-groups in dimension %d; %s allows %u",
                              instance->name, (long long)launch->groups[x], x, d->name, (unsigned)d->max_groups[x]);
    uint64_t addresses[MOBAI_MAX_KERNEL_PARAMS], block[MOBAI_MAX_KERNEL_PARAMS];
    for (int32_t i = 0; i < launch->n_buffers; i++)
        addresses[i] = address(d, launch->buffers[i]);
    mobai_simt_fill_block(instance, launch, addresses, block);
    uint32_t bytes = (uint32_t)instance->kernel->block_bytes;
    mobai_vk_barrier(d, commands);
    const void *pushed = block;
    uint64_t at;
    if (bytes > 128) {
        if (d->params_used + bytes > MOBAI_VK_PARAMS_BYTES) d->params_used = 0;
        d->vk.vkCmdUpdateBuffer(commands, d->params.buffer, d->params_used, bytes, block);
        mobai_vk_barrier(d, commands);
        at = d->params.address + d->params_used;
        d->params_used += (bytes + 15) / 16 * 16;
        pushed = &at;
        bytes = sizeof at;
    }
    d->vk.vkCmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, d->pipelines[index]);
    d->vk.vkCmdPushConstants(commands, d->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, bytes, pushed);
    d->vk.vkCmdDispatch(commands, (uint32_t)launch->groups[0], (uint32_t)launch->groups[1],
                        (uint32_t)launch->groups[2]);
    return MOBA_OK;
}

moba_status mobai_vk_launch(mobai_device *d, moba_stream native, const mobai_variant *variant,
                            const mobai_stage_args *args) {
    const mobai_simt_program *program = variant->code;
    mobai_vk_stream *stream;
    VkCommandBuffer commands;
    pthread_mutex_lock(&d->lock);
    moba_status status = mobai_vk_commands(d, native, &stream, &commands);
    for (int32_t i = 0; i < program->n_steps && status == MOBA_OK; i++) {
        mobai_launch launch;
        mobai_simt_pack(&mobai_simt_instances[program->steps[i]], args, &launch);
        if (launch.groups[0] <= 0 || launch.groups[1] <= 0 || launch.groups[2] <= 0) continue;
        status = record(d, commands, program->steps[i], &launch);
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
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (const char *s = d->name; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    for (const char *s = d->driver; *s; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    int n = snprintf(path, capacity, "%s/vulkan-%016" PRIx64 ".bin", dir, h);
    return n > 0 && (size_t)n < capacity;
}

void mobai_vk_load_cache(mobai_device *d) {
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    char path[1024];
    void *data = NULL;
    FILE *f = cache_path(d, path, sizeof path) ? fopen(path, "rb") : NULL;
    if (f) {
        long size = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
        if (size > 0 && fseek(f, 0, SEEK_SET) == 0 && (data = malloc((size_t)size)) != NULL &&
            fread(data, 1, (size_t)size, f) == (size_t)size) {
            info.initialDataSize = (size_t)size; /* the driver checks its header */
            info.pInitialData = data;
        }
        fclose(f);
    }
    if (d->vk.vkCreatePipelineCache(d->device, &info, NULL, &d->cache) != VK_SUCCESS) d->cache = VK_NULL_HANDLE;
    free(data);
}

void mobai_vk_store_cache(mobai_device *d) {
    char path[1024], temporary[1100];
    size_t bytes = 0;
    if (!d->cache || !cache_path(d, path, sizeof path)) return;
    if (d->vk.vkGetPipelineCacheData(d->device, d->cache, &bytes, NULL) != VK_SUCCESS || bytes == 0) return;
    void *data = malloc(bytes);
    if (data && d->vk.vkGetPipelineCacheData(d->device, d->cache, &bytes, data) == VK_SUCCESS) {
        snprintf(temporary, sizeof temporary, "%s.%ld", path, (long)getpid());
        FILE *f = fopen(temporary, "wb");
        if (f) {
            bool ok = fwrite(data, 1, bytes, f) == bytes;
            if (fclose(f) != 0 || !ok || rename(temporary, path) != 0) remove(temporary);
        }
    }
    free(data);
}
