/* SPDX-License-Identifier: Apache-2.0
 *
 * A VkInstance, VkDevice and VkQueue of the test's own, as a program that already uses Vulkan would hand them to
 * libmoba.
 */
#ifndef OWN_DEVICE_H
#define OWN_DEVICE_H

#define VK_NO_PROTOTYPES
#include <stdbool.h>
#include <stddef.h>
#include <vulkan/vulkan.h>

#include "moba/moba.h"
#include "moba/moba_vulkan.h"

#define OWN_DEVICE_FUNCTIONS(X)                                                                                        \
    X(vkGetPhysicalDeviceProperties)                                                                                   \
    X(vkGetPhysicalDeviceMemoryProperties)                                                                             \
    X(vkGetPhysicalDeviceQueueFamilyProperties)                                                                        \
    X(vkEnumeratePhysicalDevices)                                                                                      \
    X(vkDestroyInstance)                                                                                               \
    X(vkCreateDevice)                                                                                                  \
    X(vkDestroyDevice)                                                                                                 \
    X(vkGetDeviceQueue)                                                                                                \
    X(vkCreateBuffer)                                                                                                  \
    X(vkDestroyBuffer)                                                                                                 \
    X(vkGetBufferMemoryRequirements)                                                                                   \
    X(vkAllocateMemory)                                                                                                \
    X(vkFreeMemory)                                                                                                    \
    X(vkBindBufferMemory)                                                                                              \
    X(vkMapMemory)                                                                                                     \
    X(vkCreateCommandPool)                                                                                             \
    X(vkDestroyCommandPool)                                                                                            \
    X(vkAllocateCommandBuffers)                                                                                        \
    X(vkBeginCommandBuffer)                                                                                            \
    X(vkEndCommandBuffer)                                                                                              \
    X(vkCmdPipelineBarrier)                                                                                            \
    X(vkQueueSubmit)                                                                                                   \
    X(vkQueueWaitIdle)

typedef struct own_device {
    VkInstance instance;
    VkPhysicalDevice physical;
    VkDevice device;
    VkQueue queue;
    uint32_t family;
    bool bda;
    VkPhysicalDeviceLimits limits;
    VkPhysicalDeviceMemoryProperties memory;
    VkCommandPool pool;
#define X(name) PFN_##name name;
    OWN_DEVICE_FUNCTIONS(X)
#undef X
} own_device;

/** A buffer in memory that the host sees. */
typedef struct own_buffer {
    VkBuffer buffer;
    VkDeviceMemory memory;
    size_t bytes;
    void *mapped;
} own_buffer;

/** The first physical device with compute, with or without the feature bufferDeviceAddress. Ends the test on failure.
 */
void own_device_open(own_device *d, bool bda);
void own_device_close(own_device *d);
moba_vulkan_handles own_device_handles(const own_device *d);
moba_context *own_device_context(const own_device *d);

void own_buffer_create(const own_device *d, size_t bytes, own_buffer *out);
void own_buffer_destroy(const own_device *d, own_buffer *b);
moba_buffer own_buffer_handle(const own_buffer *b);

/** A command buffer in the recording state. */
VkCommandBuffer own_begin(const own_device *d);
/** Ends it, with what was written made visible to the host. */
void own_end(const own_device *d, VkCommandBuffer commands);
/** Submits it and waits. */
void own_submit(const own_device *d, VkCommandBuffer commands);

#endif
