/* SPDX-License-Identifier: Apache-2.0
 *
 * Buffers, streams, transfers and timestamps. Transfers pass through one staging buffer and wait.
 */
#include <stdlib.h>
#include <string.h>

#include "backends/vulkan/vulkan.h"
#include "core/status.h"

moba_status mobai_vk_fail(VkResult result, const char *what) {
    moba_status status = MOBA_ERROR_LAUNCH_FAILED;
    if (result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY)
        status = MOBA_ERROR_OUT_OF_MEMORY;
    if (result == VK_ERROR_DEVICE_LOST) status = MOBA_ERROR_DEVICE_LOST;
    if (result == VK_ERROR_INITIALIZATION_FAILED || result == VK_ERROR_INCOMPATIBLE_DRIVER)
        status = MOBA_ERROR_BACKEND_UNAVAILABLE;
    return mobai_fail(status, "%s failed: VkResult %d%s", what, (int)result,
                      result == VK_ERROR_DEVICE_LOST ? " (device lost; destroy the context)" : "");
}

/* ------------------------------------------------------------------------------------------------ memory -- */

/** Most that one allocation of a sparse buffer takes. */
enum { PIECE_BYTES = 1 << 30 };

/** Index of a memory type with `flags`; -1: none. */
static int memory_type(const mobai_device *d, uint32_t allowed, VkMemoryPropertyFlags flags) {
    for (uint32_t i = 0; i < d->memory_types.memoryTypeCount; i++)
        if ((allowed >> i & 1) && (d->memory_types.memoryTypes[i].propertyFlags & flags) == flags) return (int)i;
    return -1;
}

/** One allocation for `out`, which already has its buffer. */
static VkResult allocate_whole(mobai_device *d, const VkMemoryRequirements *needs, uint32_t type, bool host,
                               mobai_vk_memory *out) {
    VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                       .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                     .pNext = d->bda && !host ? &flags : NULL,
                                     .allocationSize = needs->size,
                                     .memoryTypeIndex = type};
    VkResult result = d->vk.vkAllocateMemory(d->device, &allocate, NULL, &out->memory);
    if (result == VK_SUCCESS) result = d->vk.vkBindBufferMemory(d->device, out->buffer, out->memory, 0);
    if (result == VK_SUCCESS && host)
        result = d->vk.vkMapMemory(d->device, out->memory, 0, VK_WHOLE_SIZE, 0, &out->mapped);
    return result;
}

/** Several allocations for the sparse buffer of `out`, bound one behind the other. Caller holds the lock. */
static VkResult allocate_pieces(mobai_device *d, const VkMemoryRequirements *needs, uint32_t type,
                                mobai_vk_memory *out) {
    VkDeviceSize piece = d->max_alloc_bytes < PIECE_BYTES ? d->max_alloc_bytes : PIECE_BYTES;
    piece = piece / needs->alignment * needs->alignment;
    uint32_t n = (uint32_t)((needs->size + piece - 1) / piece);
    VkSparseMemoryBind *binds = calloc(n, sizeof *binds);
    out->more = calloc(n, sizeof *out->more);
    VkResult result = binds && out->more ? VK_SUCCESS : VK_ERROR_OUT_OF_HOST_MEMORY;
    VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                       .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    for (uint32_t i = 0; i < n && result == VK_SUCCESS; i++) {
        VkDeviceSize at = i * piece, bytes = needs->size - at < piece ? needs->size - at : piece;
        VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                         .pNext = d->bda ? &flags : NULL,
                                         .allocationSize = bytes,
                                         .memoryTypeIndex = type};
        result = d->vk.vkAllocateMemory(d->device, &allocate, NULL, &out->more[i]);
        if (result != VK_SUCCESS) break;
        out->n_more = i + 1;
        binds[i] = (VkSparseMemoryBind){.resourceOffset = at, .size = bytes, .memory = out->more[i]};
    }
    VkFence fence = VK_NULL_HANDLE;
    VkFenceCreateInfo fence_info = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    if (result == VK_SUCCESS) result = d->vk.vkCreateFence(d->device, &fence_info, NULL, &fence);
    VkSparseBufferMemoryBindInfo buffer = {out->buffer, n, binds};
    VkBindSparseInfo info = {
        .sType = VK_STRUCTURE_TYPE_BIND_SPARSE_INFO, .bufferBindCount = 1, .pBufferBinds = &buffer};
    if (result == VK_SUCCESS) result = d->vk.vkQueueBindSparse(d->queue, 1, &info, fence);
    if (result == VK_SUCCESS) result = d->vk.vkWaitForFences(d->device, 1, &fence, VK_TRUE, UINT64_MAX);
    if (fence) d->vk.vkDestroyFence(d->device, fence, NULL);
    free(binds);
    return result;
}

moba_status mobai_vk_allocate(mobai_device *d, size_t bytes, bool host, mobai_vk_memory *out) {
    memset(out, 0, sizeof *out);
    bool sparse = bytes > d->max_alloc_bytes;
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .flags = sparse ? VK_BUFFER_CREATE_SPARSE_BINDING_BIT : 0,
                               .size = (bytes + 3) / 4 * 4,
                               .usage = VK_BUFFER_USAGE_TRANSFER_SRC_BIT | VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    if (!host) info.usage |= VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT;
    if (!host && d->bda) info.usage |= VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
    VkResult result = d->vk.vkCreateBuffer(d->device, &info, NULL, &out->buffer);
    if (result == VK_SUCCESS) {
        VkMemoryRequirements needs;
        d->vk.vkGetBufferMemoryRequirements(d->device, out->buffer, &needs);
        /* Cached memory first: reading back from uncached memory is slow. Every device has a coherent type. */
        const VkMemoryPropertyFlags coherent =
            VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
        int type =
            memory_type(d, needs.memoryTypeBits,
                        host ? coherent | VK_MEMORY_PROPERTY_HOST_CACHED_BIT : VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
        if (type < 0 && host) type = memory_type(d, needs.memoryTypeBits, coherent);
        if (type < 0)
            result = VK_ERROR_OUT_OF_DEVICE_MEMORY;
        else if (sparse)
            result = allocate_pieces(d, &needs, (uint32_t)type, out);
        else
            result = allocate_whole(d, &needs, (uint32_t)type, host, out);
    } else {
        out->buffer = VK_NULL_HANDLE;
    }
    if (result != VK_SUCCESS) {
        mobai_vk_free(d, out);
        if (result == VK_ERROR_DEVICE_LOST) return mobai_vk_fail(result, "vkAllocateMemory");
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a buffer of %zu bytes on %s (VkResult %d)", bytes,
                          d->name, (int)result);
    }
    if (!host && d->bda) {
        VkBufferDeviceAddressInfo at = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = out->buffer};
        out->address = d->vk.vkGetBufferDeviceAddress(d->device, &at);
    }
    return MOBA_OK;
}

void mobai_vk_free(mobai_device *d, mobai_vk_memory *m) {
    if (m->buffer) d->vk.vkDestroyBuffer(d->device, m->buffer, NULL);
    if (m->memory) d->vk.vkFreeMemory(d->device, m->memory, NULL);
    for (uint32_t i = 0; i < m->n_more; i++)
        d->vk.vkFreeMemory(d->device, m->more[i], NULL);
    free(m->more);
    memset(m, 0, sizeof *m);
}

static VkBuffer vk_buffer(moba_buffer b) {
    VkBuffer out;
    memcpy(&out, &b.handle, sizeof out);
    return out;
}

moba_status mobai_vk_buffer_create(mobai_device *d, size_t bytes, moba_buffer *out) {
    if (bytes > d->max_alloc_bytes && !d->sparse)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY,
                          "a buffer of %zu bytes was asked for; %s allows %llu in one allocation and has no sparse "
                          "buffers made of several",
                          bytes, d->name, (unsigned long long)d->max_alloc_bytes);
    if (bytes > d->memory_bytes)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "a buffer of %zu bytes was asked for; %s has %llu bytes of memory",
                          bytes, d->name, (unsigned long long)d->memory_bytes);
    mobai_vk_owned *owned = calloc(1, sizeof *owned);
    if (!owned)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a buffer's record of %zu bytes", sizeof *owned);
    pthread_mutex_lock(&d->lock); /* binding a sparse buffer uses the queue */
    moba_status status = mobai_vk_allocate(d, bytes, false, &owned->memory);
    if (status == MOBA_OK) {
        owned->next = d->owned;
        d->owned = owned;
    }
    pthread_mutex_unlock(&d->lock);
    if (status != MOBA_OK) {
        free(owned);
        return status;
    }
    out->offset = 0;
    memcpy(&out->handle, &owned->memory.buffer, sizeof out->handle);
    return MOBA_OK;
}

void mobai_vk_buffer_destroy(mobai_device *d, moba_buffer buffer) {
    pthread_mutex_lock(&d->lock);
    for (mobai_vk_owned **at = &d->owned; *at; at = &(*at)->next) {
        mobai_vk_owned *owned = *at;
        if (owned->memory.buffer != vk_buffer(buffer)) continue;
        *at = owned->next;
        mobai_vk_free(d, &owned->memory);
        free(owned);
        break;
    }
    pthread_mutex_unlock(&d->lock);
}

/* ----------------------------------------------------------------------------------------------- streams -- */

moba_status mobai_vk_new_stream(mobai_device *d, mobai_vk_stream **out) {
    mobai_vk_stream *s = calloc(1, sizeof *s);
    if (!s) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a stream of %zu bytes", sizeof *s);
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                    .queueFamilyIndex = d->queue_family};
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkResult result = d->vk.vkCreateCommandPool(d->device, &pool, NULL, &s->pool);
    VkCommandBufferAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                            .commandPool = s->pool,
                                            .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                            .commandBufferCount = MOBAI_VK_RING};
    if (result == VK_SUCCESS) result = d->vk.vkAllocateCommandBuffers(d->device, &allocate, s->commands);
    for (int i = 0; i < MOBAI_VK_RING && result == VK_SUCCESS; i++)
        result = d->vk.vkCreateFence(d->device, &fence, NULL, &s->fences[i]);
    if (result != VK_SUCCESS) {
        mobai_vk_free_stream(d, s);
        return mobai_vk_fail(result, "creating a stream");
    }
    *out = s;
    return MOBA_OK;
}

void mobai_vk_free_stream(mobai_device *d, mobai_vk_stream *s) {
    for (int i = 0; i < MOBAI_VK_RING; i++) {
        if (s->in_flight[i]) d->vk.vkWaitForFences(d->device, 1, &s->fences[i], VK_TRUE, UINT64_MAX);
        if (s->fences[i]) d->vk.vkDestroyFence(d->device, s->fences[i], NULL);
        mobai_vk_free_sets(d, &s->sets[i]);
    }
    if (s->pool) d->vk.vkDestroyCommandPool(d->device, s->pool, NULL);
    free(s);
}

static moba_status wait_slot(mobai_device *d, mobai_vk_stream *s, int32_t i) {
    if (!s->in_flight[i]) return MOBA_OK;
    MOBAI_TRY_VK(d->vk.vkWaitForFences(d->device, 1, &s->fences[i], VK_TRUE, UINT64_MAX), "vkWaitForFences");
    MOBAI_TRY_VK(d->vk.vkResetFences(d->device, 1, &s->fences[i]), "vkResetFences");
    s->in_flight[i] = false;
    return MOBA_OK;
}

void mobai_vk_barrier(mobai_device *d, VkCommandBuffer commands) {
    VkMemoryBarrier all = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER};
    all.srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    all.dstAccessMask = VK_ACCESS_UNIFORM_READ_BIT | VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT |
                        VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    VkPipelineStageFlags stages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    d->vk.vkCmdPipelineBarrier(commands, stages, stages, 0, 1, &all, 0, NULL, 0, NULL);
}

/** The library's stream that `stream` means; NULL: it is a caller's command buffer. */
static mobai_vk_stream *find_stream(const mobai_device *d, moba_stream stream) {
    mobai_vk_stream *s = d->streams;
    while (s && (stream.native ? (void *)s != stream.native : s->next != NULL))
        s = s->next;
    return s;
}

moba_status mobai_vk_commands(mobai_device *d, moba_stream native, mobai_vk_stream **stream, VkCommandBuffer *out) {
    mobai_vk_stream *s = *stream = find_stream(d, native);
    if (!s) {
        *out = native.native;
        mobai_vk_barrier(d, *out);
        return MOBA_OK;
    }
    *out = s->commands[s->current];
    if (s->recording) return MOBA_OK;
    MOBAI_TRY(wait_slot(d, s, s->current));
    mobai_vk_reset_sets(d, &s->sets[s->current]);
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                      .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    MOBAI_TRY_VK(d->vk.vkBeginCommandBuffer(*out, &begin), "vkBeginCommandBuffer");
    s->recording = true;
    mobai_vk_barrier(d, *out);
    return MOBA_OK;
}

moba_status mobai_vk_submit(mobai_device *d, mobai_vk_stream *s, bool wait) {
    if (s->recording) {
        s->recording = false;
        VkCommandBuffer commands = s->commands[s->current];
        MOBAI_TRY_VK(d->vk.vkEndCommandBuffer(commands), "vkEndCommandBuffer");
        VkSubmitInfo submit = {
            .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
        MOBAI_TRY_VK(d->vk.vkQueueSubmit(d->queue, 1, &submit, s->fences[s->current]), "vkQueueSubmit");
        s->in_flight[s->current] = true;
        s->current = (s->current + 1) % MOBAI_VK_RING;
    }
    for (int32_t i = 0; wait && i < MOBAI_VK_RING; i++)
        MOBAI_TRY(wait_slot(d, s, i));
    return MOBA_OK;
}

moba_status mobai_vk_stream_create(mobai_device *d, moba_stream *out) {
    mobai_vk_stream *s = NULL;
    MOBAI_TRY(mobai_vk_new_stream(d, &s));
    pthread_mutex_lock(&d->lock);
    s->next = d->streams; /* NOLINT(clang-analyzer-core.NullDereference): set unless the call above failed */
    d->streams = s;
    pthread_mutex_unlock(&d->lock);
    out->native = s;
    return MOBA_OK;
}

void mobai_vk_stream_destroy(mobai_device *d, moba_stream stream) {
    pthread_mutex_lock(&d->lock);
    for (mobai_vk_stream **at = &d->streams; *at; at = &(*at)->next) {
        mobai_vk_stream *s = *at;
        if ((void *)s != stream.native || !s->next) continue;
        *at = s->next;
        mobai_vk_free_stream(d, s);
        break;
    }
    pthread_mutex_unlock(&d->lock);
}

static moba_status no_caller_stream(const mobai_vk_stream *s) {
    if (s) return MOBA_OK;
    return mobai_fail(MOBA_ERROR_UNSUPPORTED,
                      "the stream is a VkCommandBuffer of the caller; this call waits for the device and "
                      "needs a stream of the library");
}

moba_status mobai_vk_stream_synchronize(mobai_device *d, moba_stream stream) {
    pthread_mutex_lock(&d->lock);
    mobai_vk_stream *s = find_stream(d, stream);
    moba_status status = no_caller_stream(s);
    if (status == MOBA_OK) status = mobai_vk_submit(d, s, true);
    pthread_mutex_unlock(&d->lock);
    return status;
}

bool mobai_vk_stream_capturing(mobai_device *d, moba_stream stream) {
    pthread_mutex_lock(&d->lock);
    bool caller = !find_stream(d, stream);
    pthread_mutex_unlock(&d->lock);
    return caller;
}

/* --------------------------------------------------------------------------------------------- transfers -- */

static moba_status transfer(mobai_device *d, moba_stream stream, moba_buffer buffer, const void *from, void *to,
                            size_t bytes) {
    mobai_vk_stream *s;
    VkCommandBuffer commands;
    for (size_t done = 0; done < bytes;) {
        size_t n = bytes - done < MOBAI_VK_STAGING_BYTES ? bytes - done : MOBAI_VK_STAGING_BYTES;
        MOBAI_TRY(no_caller_stream(find_stream(d, stream)));
        MOBAI_TRY(mobai_vk_commands(d, stream, &s, &commands));
        VkBufferCopy copy = {.size = n};
        mobai_vk_barrier(d, commands);
        if (from) {
            memcpy(d->staging.mapped, (const char *)from + done, n);
            copy.dstOffset = buffer.offset + done;
            d->vk.vkCmdCopyBuffer(commands, d->staging.buffer, vk_buffer(buffer), 1, &copy);
        } else {
            copy.srcOffset = buffer.offset + done;
            d->vk.vkCmdCopyBuffer(commands, vk_buffer(buffer), d->staging.buffer, 1, &copy);
            VkMemoryBarrier host = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                                    .srcAccessMask = VK_ACCESS_TRANSFER_WRITE_BIT,
                                    .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
            d->vk.vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_TRANSFER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1,
                                       &host, 0, NULL, 0, NULL);
        }
        MOBAI_TRY(mobai_vk_submit(d, s, true));
        if (to) memcpy((char *)to + done, d->staging.mapped, n);
        done += n;
    }
    return MOBA_OK;
}

static moba_status locked_transfer(mobai_device *d, moba_stream stream, moba_buffer buffer, const void *from, void *to,
                                   size_t bytes) {
    pthread_mutex_lock(&d->lock);
    moba_status status = transfer(d, stream, buffer, from, to, bytes);
    pthread_mutex_unlock(&d->lock);
    return status;
}

moba_status mobai_vk_buffer_write(mobai_device *d, moba_stream stream, moba_buffer buffer, const void *data,
                                  size_t bytes) {
    return locked_transfer(d, stream, buffer, data, NULL, bytes);
}

moba_status mobai_vk_buffer_read(mobai_device *d, moba_stream stream, moba_buffer buffer, void *data, size_t bytes) {
    return locked_transfer(d, stream, buffer, NULL, data, bytes);
}

/** vkCmdFillBuffer takes multiples of 4 bytes; what sticks out at either end is written from the host. */
static moba_status fill_ends(mobai_device *d, moba_stream stream, moba_buffer *buffer, uint8_t value, size_t *bytes) {
    const uint8_t values[3] = {value, value, value};
    size_t head = (4 - buffer->offset % 4) % 4;
    if (head > *bytes) head = *bytes;
    MOBAI_TRY(transfer(d, stream, *buffer, values, NULL, head));
    buffer->offset += head;
    *bytes -= head;
    size_t tail = *bytes % 4;
    *bytes -= tail;
    return transfer(d, stream, (moba_buffer){buffer->handle, buffer->offset + *bytes}, values, NULL, tail);
}

moba_status mobai_vk_buffer_fill(mobai_device *d, moba_stream stream, moba_buffer buffer, uint8_t value, size_t bytes) {
    mobai_vk_stream *s = NULL;
    VkCommandBuffer commands;
    pthread_mutex_lock(&d->lock);
    moba_status status = fill_ends(d, stream, &buffer, value, &bytes);
    if (status == MOBA_OK && bytes > 0) {
        status = mobai_vk_commands(d, stream, &s, &commands);
        if (status == MOBA_OK) {
            mobai_vk_barrier(d, commands);
            d->vk.vkCmdFillBuffer(commands, vk_buffer(buffer), buffer.offset, bytes, value * 0x01010101u);
            mobai_vk_barrier(d, commands);
            if (s) status = mobai_vk_submit(d, s, false);
        }
    }
    pthread_mutex_unlock(&d->lock);
    return status;
}

moba_status mobai_vk_buffer_copy(mobai_device *d, moba_stream stream, moba_buffer from, moba_buffer to, size_t bytes) {
    mobai_vk_stream *s;
    VkCommandBuffer commands;
    pthread_mutex_lock(&d->lock);
    moba_status status = mobai_vk_commands(d, stream, &s, &commands);
    if (status == MOBA_OK) {
        VkBufferCopy copy = {.srcOffset = from.offset, .dstOffset = to.offset, .size = bytes};
        mobai_vk_barrier(d, commands);
        d->vk.vkCmdCopyBuffer(commands, vk_buffer(from), vk_buffer(to), 1, &copy);
        mobai_vk_barrier(d, commands);
    }
    pthread_mutex_unlock(&d->lock);
    return status;
}

/* -------------------------------------------------------------------------------------------- timestamps -- */

/** What moba_event.native points to. */
typedef struct recorded {
    VkQueryPool pool;
    bool done;
    bool callers; /* in a command buffer of the caller */
} recorded;

moba_status mobai_vk_event_create(mobai_device *d, moba_event *out) {
    if (d->timestamp_ns <= 0) return mobai_fail(MOBA_ERROR_UNSUPPORTED, "the queue of %s has no timestamps", d->name);
    recorded *e = calloc(1, sizeof *e);
    if (!e) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for an event of %zu bytes", sizeof *e);
    VkQueryPoolCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = 1};
    VkResult result = d->vk.vkCreateQueryPool(d->device, &info, NULL, &e->pool);
    if (result != VK_SUCCESS) {
        free(e);
        return mobai_vk_fail(result, "vkCreateQueryPool");
    }
    /* Asking for the result is legal only after a reset, also when what records the event has not been submitted. */
    mobai_vk_stream *s;
    VkCommandBuffer commands;
    pthread_mutex_lock(&d->lock);
    moba_status status = mobai_vk_commands(d, (moba_stream){NULL}, &s, &commands);
    if (status == MOBA_OK) {
        d->vk.vkCmdResetQueryPool(commands, e->pool, 0, 1);
        status = mobai_vk_submit(d, s, true);
    }
    pthread_mutex_unlock(&d->lock);
    out->native = e;
    if (status != MOBA_OK) mobai_vk_event_destroy(d, *out);
    return status;
}

void mobai_vk_event_destroy(mobai_device *d, moba_event event) {
    recorded *e = event.native;
    if (!e) return;
    d->vk.vkDestroyQueryPool(d->device, e->pool, NULL);
    free(e);
}

moba_status mobai_vk_event_record(mobai_device *d, moba_stream stream, moba_event event) {
    recorded *e = event.native;
    mobai_vk_stream *s;
    VkCommandBuffer commands;
    pthread_mutex_lock(&d->lock);
    moba_status status = mobai_vk_commands(d, stream, &s, &commands);
    if (status == MOBA_OK) {
        d->vk.vkCmdResetQueryPool(commands, e->pool, 0, 1);
        d->vk.vkCmdWriteTimestamp(commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, e->pool, 0);
        e->done = true;
        e->callers = !s;
        if (s) status = mobai_vk_submit(d, s, false);
    }
    pthread_mutex_unlock(&d->lock);
    return status;
}

static moba_status event_time(mobai_device *d, moba_event event, uint64_t *ticks) {
    recorded *e = event.native;
    if (!e || !e->done) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "the event was never recorded");
    VkQueryResultFlags flags = VK_QUERY_RESULT_64_BIT | (e->callers ? 0 : VK_QUERY_RESULT_WAIT_BIT);
    VkResult result = d->vk.vkGetQueryPoolResults(d->device, e->pool, 0, 1, sizeof *ticks, ticks, sizeof *ticks, flags);
    if (result == VK_NOT_READY)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT,
                          "the event is not reached: submit the command buffer it was recorded into, and wait for it");
    if (result != VK_SUCCESS) return mobai_vk_fail(result, "vkGetQueryPoolResults");
    return MOBA_OK;
}

moba_status mobai_vk_event_elapsed(mobai_device *d, moba_event begin, moba_event end, double *ms) {
    uint64_t from = 0, to = 0;
    MOBAI_TRY(event_time(d, begin, &from));
    MOBAI_TRY(event_time(d, end, &to));
    uint64_t forth = (to - from) & d->timestamp_mask, back = (from - to) & d->timestamp_mask;
    *ms = (forth <= back ? (double)forth : -(double)back) * d->timestamp_ns * 1e-6;
    return MOBA_OK;
}
