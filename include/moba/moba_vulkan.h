/* SPDX-License-Identifier: Apache-2.0
 *
 * libmoba on Vulkan: native handles. No Vulkan header is needed: dispatchable handles cross as void *.
 *
 * Buffers: moba_buffer.handle is a VkBuffer cast to uint64_t, offset is in bytes. A caller's own buffer needs the
 * usages STORAGE_BUFFER, TRANSFER_SRC, TRANSFER_DST and, on a device with bufferDeviceAddress, SHADER_DEVICE_ADDRESS
 * and memory allocated with DEVICE_ADDRESS.
 *
 * Streams: moba_stream.native is a stream of the library (NULL: its default one), or a VkCommandBuffer of the caller in
 * the recording state, outside a render pass: a run is then recorded into it, with the barriers between its own steps
 * and one before the first and after the last. The caller submits it, to the queue of the context, before the context
 * is destroyed. Reading, writing, synchronising and MOBA_VALIDATE=1 need a stream of the library. Without
 * bufferDeviceAddress, each recording takes descriptor sets that are given back when the context is destroyed.
 */
#ifndef MOBA_MOBA_VULKAN_H
#define MOBA_MOBA_VULKAN_H

#include "moba/moba.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * For moba_context_options.native with backend "vulkan". Everything stays the caller's and must outlive the context.
 * The device needs Vulkan 1.2 and these features enabled: shaderInt64, shaderInt16, storageBuffer16BitAccess, and
 * bufferDeviceAddress or, with without_buffer_device_address set, shaderStorageBufferArrayDynamicIndexing. The library
 * submits to the queue from calls on its own streams; the caller keeps other threads off the queue meanwhile.
 */
typedef struct moba_vulkan_handles {
    size_t struct_size;
    void *instance;                         /**< VkInstance; required, as are all of these */
    void *physical_device;                  /**< VkPhysicalDevice */
    void *device;                           /**< VkDevice */
    void *queue;                            /**< VkQueue with compute */
    uint32_t queue_family;                  /**< its family */
    uint32_t without_buffer_device_address; /**< 1: the device was created without the feature bufferDeviceAddress */
} moba_vulkan_handles;
#define MOBA_VULKAN_HANDLES_INIT                                                                                       \
    { sizeof(moba_vulkan_handles), NULL, NULL, NULL, NULL, 0, 0 }

#ifdef __cplusplus
}
#endif
#endif
