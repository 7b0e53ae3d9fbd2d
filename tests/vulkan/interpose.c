/* SPDX-License-Identifier: Apache-2.0
 *
 * Stands in for libvulkan.so.1 between libmoba and the loader named by MOBA_TEST_VULKAN. MOBA_TEST_DROP=N drops the
 * barriers between the N-th dispatch of the process and the one before it. At exit, one line on stderr says what was
 * recorded: "recorded B barriers (D dropped), X dispatches, push constants up to P bytes". Calls that can fail are
 * counted and can be made to (tests/vulkan/faults.h).
 */
#define VK_NO_PROTOTYPES
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vulkan.h>

#include "tests/vulkan/faults.h"

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

/* ------------------------------------------------------------------------------------------------- faults -- */

#define FALLIBLE(X)                                                                                                    \
    X(vkCreateDescriptorSetLayout,                                                                                     \
      (VkDevice d, const VkDescriptorSetLayoutCreateInfo *i, const VkAllocationCallbacks *a,                           \
       VkDescriptorSetLayout *o),                                                                                      \
      (d, i, a, o))                                                                                                    \
    X(vkCreateDescriptorPool,                                                                                          \
      (VkDevice d, const VkDescriptorPoolCreateInfo *i, const VkAllocationCallbacks *a, VkDescriptorPool *o),          \
      (d, i, a, o))                                                                                                    \
    X(vkAllocateDescriptorSets, (VkDevice d, const VkDescriptorSetAllocateInfo *i, VkDescriptorSet *o), (d, i, o))     \
    X(vkCreateBuffer, (VkDevice d, const VkBufferCreateInfo *i, const VkAllocationCallbacks *a, VkBuffer *o),          \
      (d, i, a, o))                                                                                                    \
    X(vkAllocateMemory,                                                                                                \
      (VkDevice d, const VkMemoryAllocateInfo *i, const VkAllocationCallbacks *a, VkDeviceMemory *o), (d, i, a, o))    \
    X(vkBindBufferMemory, (VkDevice d, VkBuffer b, VkDeviceMemory m, VkDeviceSize o), (d, b, m, o))                    \
    X(vkMapMemory, (VkDevice d, VkDeviceMemory m, VkDeviceSize at, VkDeviceSize n, VkMemoryMapFlags f, void **o),      \
      (d, m, at, n, f, o))                                                                                             \
    X(vkCreateCommandPool,                                                                                             \
      (VkDevice d, const VkCommandPoolCreateInfo *i, const VkAllocationCallbacks *a, VkCommandPool *o), (d, i, a, o))  \
    X(vkAllocateCommandBuffers, (VkDevice d, const VkCommandBufferAllocateInfo *i, VkCommandBuffer *o), (d, i, o))     \
    X(vkBeginCommandBuffer, (VkCommandBuffer c, const VkCommandBufferBeginInfo *i), (c, i))                            \
    X(vkEndCommandBuffer, (VkCommandBuffer c), (c))                                                                    \
    X(vkQueueSubmit, (VkQueue q, uint32_t n, const VkSubmitInfo *i, VkFence f), (q, n, i, f))                          \
    X(vkCreateFence, (VkDevice d, const VkFenceCreateInfo *i, const VkAllocationCallbacks *a, VkFence *o),             \
      (d, i, a, o))                                                                                                    \
    X(vkResetFences, (VkDevice d, uint32_t n, const VkFence *f), (d, n, f))                                            \
    X(vkCreateShaderModule,                                                                                            \
      (VkDevice d, const VkShaderModuleCreateInfo *i, const VkAllocationCallbacks *a, VkShaderModule *o),              \
      (d, i, a, o))                                                                                                    \
    X(vkCreatePipelineLayout,                                                                                          \
      (VkDevice d, const VkPipelineLayoutCreateInfo *i, const VkAllocationCallbacks *a, VkPipelineLayout *o),          \
      (d, i, a, o))                                                                                                    \
    X(vkCreatePipelineCache,                                                                                           \
      (VkDevice d, const VkPipelineCacheCreateInfo *i, const VkAllocationCallbacks *a, VkPipelineCache *o),            \
      (d, i, a, o))                                                                                                    \
    X(vkCreateComputePipelines,                                                                                        \
      (VkDevice d, VkPipelineCache c, uint32_t n, const VkComputePipelineCreateInfo *i,                                \
       const VkAllocationCallbacks *a, VkPipeline *o),                                                                 \
      (d, c, n, i, a, o))                                                                                              \
    X(vkCreateQueryPool, (VkDevice d, const VkQueryPoolCreateInfo *i, const VkAllocationCallbacks *a, VkQueryPool *o), \
      (d, i, a, o))                                                                                                    \
    X(vkGetQueryPoolResults,                                                                                           \
      (VkDevice d, VkQueryPool p, uint32_t q, uint32_t n, size_t s, void *o, VkDeviceSize t, VkQueryResultFlags f),    \
      (d, p, q, n, s, o, t, f))

#define X(name, parameters, arguments)                                                                                 \
    static PFN_##name real_##name;                                                                                     \
    static VKAPI_ATTR VkResult VKAPI_CALL fallible_##name parameters {                                                 \
        int code = fault_here(#name);                                                                                  \
        return code ? (VkResult)code : real_##name arguments;                                                          \
    }
FALLIBLE(X)
#undef X

/** Waits even so: what a caller gives back after a failed wait must not be in use, which a lost device guarantees. */
static PFN_vkWaitForFences real_wait;
static VKAPI_ATTR VkResult VKAPI_CALL wait(VkDevice d, uint32_t n, const VkFence *f, VkBool32 all, uint64_t ns) {
    int code = fault_here("vkWaitForFences");
    VkResult result = real_wait(d, n, f, all, ns);
    return code ? (VkResult)code : result;
}

static PFN_vkCreateDevice real_create_device;
static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice p, const VkDeviceCreateInfo *i,
                                                    const VkAllocationCallbacks *a, VkDevice *o) {
    int code = fault_here("vkCreateDevice");
    return code ? (VkResult)code : real_create_device(p, i, a, o);
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
    WRAP("vkWaitForFences", real_wait, wait)
#define X(vulkan_name, parameters, arguments) WRAP(#vulkan_name, real_##vulkan_name, fallible_##vulkan_name)
    FALLIBLE(X)
#undef X
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
    if (f && strcmp(name, "vkCreateDevice") == 0) {
        memcpy(&real_create_device, &f, sizeof f);
        return (PFN_vkVoidFunction)create_device;
    }
    return f;
}

__attribute__((destructor)) static void report(void) {
    fprintf(stderr, "recorded %u barriers (%u dropped), %u dispatches, push constants up to %u bytes\n", n_barriers,
            n_dropped, n_dispatches, most_pushed);
}
