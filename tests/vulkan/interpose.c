/* SPDX-License-Identifier: Apache-2.0
 *
 * Stands in for libvulkan.so.1 between libmoba and the loader named by MOBA_TEST_VULKAN. MOBA_TEST_DROP=N drops the
 * barriers between the N-th dispatch of the process and the one before it. At exit, one line on stderr says what was
 * recorded: "recorded B barriers (D dropped), X dispatches, push constants up to P bytes".
 */
#define VK_NO_PROTOTYPES
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vulkan.h>

static PFN_vkGetInstanceProcAddr real_instance_proc;
static PFN_vkGetDeviceProcAddr real_device_proc;
static PFN_vkCmdPipelineBarrier real_barrier;
static PFN_vkCmdDispatch real_dispatch;
static PFN_vkCmdPushConstants real_push;
static unsigned n_barriers, n_dropped, n_dispatches, most_pushed;

static VKAPI_ATTR void VKAPI_CALL barrier(VkCommandBuffer commands, VkPipelineStageFlags from, VkPipelineStageFlags to,
                                          VkDependencyFlags flags, uint32_t n_memory, const VkMemoryBarrier *memory,
                                          uint32_t n_buffers, const VkBufferMemoryBarrier *buffers, uint32_t n_images,
                                          const VkImageMemoryBarrier *images) {
    const char *drop = getenv("MOBA_TEST_DROP");
    if (drop && n_dispatches > 0 && strtoul(drop, NULL, 10) == n_dispatches) {
        n_dropped++;
        return;
    }
    n_barriers++;
    real_barrier(commands, from, to, flags, n_memory, memory, n_buffers, buffers, n_images, images);
}

static VKAPI_ATTR void VKAPI_CALL dispatch(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
    n_dispatches++;
    real_dispatch(commands, x, y, z);
}

static VKAPI_ATTR void VKAPI_CALL push(VkCommandBuffer commands, VkPipelineLayout layout, VkShaderStageFlags stages,
                                       uint32_t offset, uint32_t bytes, const void *values) {
    if (offset + bytes > most_pushed) most_pushed = offset + bytes;
    real_push(commands, layout, stages, offset, bytes, values);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_proc(VkDevice device, const char *name) {
    PFN_vkVoidFunction f = real_device_proc(device, name);
    if (!f) return NULL;
#define WRAP(vulkan_name, real, own)                                                                                   \
    if (strcmp(name, vulkan_name) == 0) {                                                                              \
        memcpy(&real, &f, sizeof f);                                                                                   \
        return (PFN_vkVoidFunction)own;                                                                                \
    }
    WRAP("vkCmdPipelineBarrier", real_barrier, barrier)
    WRAP("vkCmdDispatch", real_dispatch, dispatch)
    WRAP("vkCmdPushConstants", real_push, push)
    return f;
}

__attribute__((visibility("default"))) VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL
vkGetInstanceProcAddr(VkInstance instance, const char *name) {
    if (!real_instance_proc) {
        const char *path = getenv("MOBA_TEST_VULKAN");
        void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
        void *symbol = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
        if (!symbol) return NULL;
        memcpy(&real_instance_proc, &symbol, sizeof symbol);
    }
    PFN_vkVoidFunction f = real_instance_proc(instance, name);
    if (f && strcmp(name, "vkGetDeviceProcAddr") == 0) {
        memcpy(&real_device_proc, &f, sizeof f);
        return (PFN_vkVoidFunction)device_proc;
    }
    return f;
}

__attribute__((destructor)) static void report(void) {
    fprintf(stderr, "recorded %u barriers (%u dropped), %u dispatches, push constants up to %u bytes\n", n_barriers,
            n_dropped, n_dispatches, most_pushed);
}
