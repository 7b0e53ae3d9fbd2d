/* SPDX-License-Identifier: Apache-2.0 */
#include "own_device.h"

#include <dlfcn.h>
#include <string.h>

#include "../parity/harness.h"

static void must(VkResult result, const char *what) {
    if (result != VK_SUCCESS) th_fatal("%s: VkResult %d", what, (int)result);
}

static void make_instance(own_device *d) {
    void *library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
    PFN_vkGetInstanceProcAddr proc;
    if (!symbol) th_fatal("no Vulkan loader");
    memcpy(&proc, &symbol, sizeof proc);
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)proc(NULL, "vkCreateInstance");
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_2};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &app};
    must(create(&info, NULL, &d->instance), "vkCreateInstance");
#define X(name)                                                                                                        \
    d->name = (PFN_##name)proc(d->instance, #name);                                                                    \
    if (!d->name) th_fatal("no " #name);
    OWN_DEVICE_FUNCTIONS(X)
#undef X
}

void own_device_open(own_device *d, bool bda) {
    memset(d, 0, sizeof *d);
    d->bda = bda;
    make_instance(d);
    uint32_t n = 1;
    VkResult found = d->vkEnumeratePhysicalDevices(d->instance, &n, &d->physical);
    if (n == 0) must(found, "vkEnumeratePhysicalDevices found none");
    VkPhysicalDeviceProperties properties;
    d->vkGetPhysicalDeviceProperties(d->physical, &properties);
    d->limits = properties.limits;
    d->vkGetPhysicalDeviceMemoryProperties(d->physical, &d->memory);
    VkQueueFamilyProperties families[16];
    n = 16;
    d->vkGetPhysicalDeviceQueueFamilyProperties(d->physical, &n, families);
    while (d->family < n && !(families[d->family].queueFlags & VK_QUEUE_COMPUTE_BIT))
        d->family++;
    if (d->family == n) th_fatal("no queue family with compute");
    float priority = 1.0f;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = d->family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkPhysicalDeviceVulkan12Features v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .bufferDeviceAddress = bda};
    VkPhysicalDeviceVulkan11Features v11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
                                            .pNext = &v12,
                                            .storageBuffer16BitAccess = VK_TRUE};
    VkPhysicalDeviceFeatures2 core = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &v11};
    core.features.shaderInt64 = core.features.shaderInt16 = VK_TRUE;
    core.features.shaderStorageBufferArrayDynamicIndexing = !bda;
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &core,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue};
    must(d->vkCreateDevice(d->physical, &info, NULL, &d->device), "vkCreateDevice");
    d->vkGetDeviceQueue(d->device, d->family, 0, &d->queue);
    VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO, .queueFamilyIndex = d->family};
    must(d->vkCreateCommandPool(d->device, &pool, NULL, &d->pool), "vkCreateCommandPool");
}

void own_device_close(own_device *d) {
    d->vkDestroyCommandPool(d->device, d->pool, NULL);
    d->vkDestroyDevice(d->device, NULL);
    d->vkDestroyInstance(d->instance, NULL);
}

moba_vulkan_handles own_device_handles(const own_device *d) {
    moba_vulkan_handles h = MOBA_VULKAN_HANDLES_INIT;
    h.instance = d->instance;
    h.physical_device = d->physical;
    h.device = d->device;
    h.queue = d->queue;
    h.queue_family = d->family;
    h.without_buffer_device_address = !d->bda;
    return h;
}

moba_context *own_device_context(const own_device *d) {
    moba_vulkan_handles h = own_device_handles(d);
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    options.backend = "vulkan";
    options.native = &h;
    moba_context *context = NULL;
    moba_status status = moba_context_create(&options, &context);
    if (status != MOBA_OK) th_fatal("%s: %s", moba_status_name(status), moba_last_error());
    return context;
}

void own_buffer_create(const own_device *d, size_t bytes, own_buffer *out) {
    memset(out, 0, sizeof *out);
    out->bytes = bytes;
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .size = bytes,
                               .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                        VK_BUFFER_USAGE_TRANSFER_DST_BIT};
    if (d->bda) info.usage |= VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT;
    must(d->vkCreateBuffer(d->device, &info, NULL, &out->buffer), "vkCreateBuffer");
    VkMemoryRequirements needs;
    d->vkGetBufferMemoryRequirements(d->device, out->buffer, &needs);
    const VkMemoryPropertyFlags wanted = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    uint32_t type = 0;
    while (type < d->memory.memoryTypeCount &&
           !((needs.memoryTypeBits >> type & 1) && (d->memory.memoryTypes[type].propertyFlags & wanted) == wanted))
        type++;
    VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                       .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    VkMemoryAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                     .pNext = d->bda ? &flags : NULL,
                                     .allocationSize = needs.size,
                                     .memoryTypeIndex = type};
    must(d->vkAllocateMemory(d->device, &allocate, NULL, &out->memory), "vkAllocateMemory");
    must(d->vkBindBufferMemory(d->device, out->buffer, out->memory, 0), "vkBindBufferMemory");
    must(d->vkMapMemory(d->device, out->memory, 0, VK_WHOLE_SIZE, 0, &out->mapped), "vkMapMemory");
}

void own_buffer_destroy(const own_device *d, own_buffer *b) {
    d->vkDestroyBuffer(d->device, b->buffer, NULL);
    d->vkFreeMemory(d->device, b->memory, NULL);
}

moba_buffer own_buffer_handle(const own_buffer *b) {
    moba_buffer out = MOBA_BUFFER_NULL;
    memcpy(&out.handle, &b->buffer, sizeof out.handle);
    return out;
}

VkCommandBuffer own_begin(const own_device *d) {
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .commandPool = d->pool,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                        .commandBufferCount = 1};
    VkCommandBuffer commands;
    must(d->vkAllocateCommandBuffers(d->device, &info, &commands), "vkAllocateCommandBuffers");
    VkCommandBufferBeginInfo begin = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    must(d->vkBeginCommandBuffer(commands, &begin), "vkBeginCommandBuffer");
    return commands;
}

void own_end(const own_device *d, VkCommandBuffer commands) {
    VkMemoryBarrier host = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                            .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT,
                            .dstAccessMask = VK_ACCESS_HOST_READ_BIT};
    d->vkCmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &host, 0,
                            NULL, 0, NULL);
    must(d->vkEndCommandBuffer(commands), "vkEndCommandBuffer");
}

void own_submit(const own_device *d, VkCommandBuffer commands) {
    VkSubmitInfo submit = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = 1, .pCommandBuffers = &commands};
    must(d->vkQueueSubmit(d->queue, 1, &submit, VK_NULL_HANDLE), "vkQueueSubmit");
    must(d->vkQueueWaitIdle(d->queue), "vkQueueWaitIdle");
}
