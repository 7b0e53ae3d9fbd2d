/* SPDX-License-Identifier: Apache-2.0
 *
 * Vulkan backend, internal: functions of libvulkan.so.1, opened at run time, the device and its streams. Every kernel
 * is there twice: reaching buffers through 64-bit addresses, where nothing limits a tensor but its allocation, and,
 * where bufferDeviceAddress is missing or hidden (-bda), through descriptors (bind.c).
 */
#ifndef MOBAI_VULKAN_H
#define MOBAI_VULKAN_H

#define VK_NO_PROTOTYPES
#include <pthread.h>
#include <vulkan/vulkan.h>

#include "codegen/host/simt.h"

#define MOBAI_VK_INSTANCE_FUNCTIONS(X)                                                                                 \
    X(vkEnumeratePhysicalDevices)                                                                                      \
    X(vkGetPhysicalDeviceProperties2)                                                                                  \
    X(vkGetPhysicalDeviceFeatures2)                                                                                    \
    X(vkGetPhysicalDeviceMemoryProperties)                                                                             \
    X(vkGetPhysicalDeviceQueueFamilyProperties)                                                                        \
    X(vkCreateDevice)                                                                                                  \
    X(vkGetDeviceProcAddr)

#define MOBAI_VK_DEVICE_FUNCTIONS(X)                                                                                   \
    X(vkDestroyDevice)                                                                                                 \
    X(vkQueueBindSparse)                                                                                               \
    X(vkCreateDescriptorSetLayout)                                                                                     \
    X(vkDestroyDescriptorSetLayout)                                                                                    \
    X(vkCreateDescriptorPool)                                                                                          \
    X(vkDestroyDescriptorPool)                                                                                         \
    X(vkResetDescriptorPool)                                                                                           \
    X(vkAllocateDescriptorSets)                                                                                        \
    X(vkUpdateDescriptorSets)                                                                                          \
    X(vkCmdBindDescriptorSets)                                                                                         \
    X(vkGetDeviceQueue)                                                                                                \
    X(vkCreateBuffer)                                                                                                  \
    X(vkDestroyBuffer)                                                                                                 \
    X(vkGetBufferMemoryRequirements)                                                                                   \
    X(vkAllocateMemory)                                                                                                \
    X(vkFreeMemory)                                                                                                    \
    X(vkBindBufferMemory)                                                                                              \
    X(vkMapMemory)                                                                                                     \
    X(vkGetBufferDeviceAddress)                                                                                        \
    X(vkCreateCommandPool)                                                                                             \
    X(vkDestroyCommandPool)                                                                                            \
    X(vkAllocateCommandBuffers)                                                                                        \
    X(vkBeginCommandBuffer)                                                                                            \
    X(vkEndCommandBuffer)                                                                                              \
    X(vkQueueSubmit)                                                                                                   \
    X(vkCreateFence)                                                                                                   \
    X(vkDestroyFence)                                                                                                  \
    X(vkWaitForFences)                                                                                                 \
    X(vkResetFences)                                                                                                   \
    X(vkCmdPipelineBarrier)                                                                                            \
    X(vkCmdCopyBuffer)                                                                                                 \
    X(vkCmdFillBuffer)                                                                                                 \
    X(vkCmdUpdateBuffer)                                                                                               \
    X(vkCmdBindPipeline)                                                                                               \
    X(vkCmdPushConstants)                                                                                              \
    X(vkCmdDispatch)                                                                                                   \
    X(vkCreateShaderModule)                                                                                            \
    X(vkDestroyShaderModule)                                                                                           \
    X(vkCreatePipelineLayout)                                                                                          \
    X(vkDestroyPipelineLayout)                                                                                         \
    X(vkCreatePipelineCache)                                                                                           \
    X(vkDestroyPipelineCache)                                                                                          \
    X(vkMergePipelineCaches)                                                                                           \
    X(vkGetPipelineCacheData)                                                                                          \
    X(vkCreateComputePipelines)                                                                                        \
    X(vkDestroyPipeline)                                                                                               \
    X(vkCreateQueryPool)                                                                                               \
    X(vkDestroyQueryPool)                                                                                              \
    X(vkCmdResetQueryPool)                                                                                             \
    X(vkCmdWriteTimestamp)                                                                                             \
    X(vkGetQueryPoolResults)

typedef struct mobai_vk_functions {
#define X(name) PFN_##name name;
    MOBAI_VK_DEVICE_FUNCTIONS(X)
#undef X
} mobai_vk_functions;

/** Memory bound to one VkBuffer: one allocation, or several where the buffer is larger than an allocation may be. */
typedef struct mobai_vk_memory {
    VkBuffer buffer;
    VkDeviceMemory memory;
    VkDeviceMemory *more; /* sparse buffers: n_more allocations, and `memory` is none */
    uint32_t n_more;
    VkDeviceAddress address; /* 0: the device has none */
    void *mapped;            /* staging only */
} mobai_vk_memory;

/** mobai_variant.code: a generated program, with buffers by address or bound. */
typedef struct mobai_vk_code {
    const mobai_simt_program *program;
    bool bound;
} mobai_vk_code;

/** One kernel ready to be launched. */
typedef struct mobai_vk_pipeline {
    VkPipeline pipeline;
    /* bound kernels only */
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    uint32_t n_windows; /* of each buffer */
} mobai_vk_pipeline;

/** Descriptor sets of bound launches: taken one by one, given back all at once. */
typedef struct mobai_vk_pool {
    VkDescriptorPool pool;
    struct mobai_vk_pool *next;
} mobai_vk_pool;
typedef struct mobai_vk_sets {
    mobai_vk_pool *first, *current;
} mobai_vk_sets;

/** Command buffers of a stream, used in turn, so that recording need not wait for the ones in flight. */
enum { MOBAI_VK_RING = 8 };

typedef struct mobai_vk_stream {
    VkCommandPool pool;
    VkCommandBuffer commands[MOBAI_VK_RING];
    VkFence fences[MOBAI_VK_RING];
    mobai_vk_sets sets[MOBAI_VK_RING];
    bool in_flight[MOBAI_VK_RING];
    int32_t current;
    bool recording;
    struct mobai_vk_stream *next;
} mobai_vk_stream;

/** What a library-made VkBuffer is backed by; a list, because buffers are few and freed rarely. */
typedef struct mobai_vk_owned {
    mobai_vk_memory memory;
    struct mobai_vk_owned *next;
} mobai_vk_owned;

struct mobai_device {
    mobai_vk_functions vk;
    VkPhysicalDevice physical;
    VkDevice device;
    VkQueue queue;
    uint32_t queue_family;
    bool adopted; /* device and queue are the caller's */
    bool bda;     /* buffers have addresses */
    bool sparse;  /* the queue binds sparse buffers */
    mobai_caps caps;
    char name[128], driver[128];
    bool software;
    uint64_t memory_bytes, max_alloc_bytes;
    double timestamp_ns;     /* 0: the queue has no timestamps */
    uint64_t timestamp_mask; /* of the bits that count */
    const char *no_bound;    /* why bound kernels cannot run; NULL: they can */
    uint32_t max_bindings;   /* storage buffers that one kernel may bind */
    uint32_t window_shift;   /* a window is 2^window_shift bytes, at most maxStorageBufferRange */
    uint32_t max_groups[3];
    VkPhysicalDeviceMemoryProperties memory_types;
    pthread_mutex_t lock;    /* all that follows, the queue and every stream */
    VkPipelineLayout layout; /* of kernels by address: push constants, and block_set */
    VkDescriptorSetLayout block_layout;
    VkDescriptorPool block_pool;
    VkDescriptorSet block_set; /* one block of params, at a dynamic offset */
    VkPipelineCache cache;
    double unsaved_ms;            /* the driver took for pipelines that the file of the cache lacks */
    mobai_vk_pipeline *pipelines; /* by instance: by address, then as many bound */
    mobai_vk_sets caller_sets;    /* recorded into callers' command buffers: kept until the device is closed */
    mobai_vk_stream *streams;     /* the last one is the default stream */
    mobai_vk_owned *owned;
    mobai_vk_memory params; /* parameter blocks too long for push constants, used in turn */
    uint32_t params_used;
    mobai_vk_memory staging, unused; /* unused: bound for buffers that a run does not have */
};
enum {
    MOBAI_VK_PARAMS_BYTES = 1 << 20,
    MOBAI_VK_STAGING_BYTES = 8 << 20,
    MOBAI_VK_PUSH_BYTES = 128,                          /* what every device has */
    MOBAI_VK_BLOCK_BYTES = 8 * MOBAI_MAX_KERNEL_PARAMS, /* the longest parameter block */
    MOBAI_VK_BIND_ALIGNMENT = 256, /* a multiple of every device's minStorageBufferOffsetAlignment */
    MOBAI_VK_MAX_WINDOWS = 4       /* more make kernels slow to compile; a window is 128 MiB or more */
};

moba_status mobai_vk_fail(VkResult result, const char *what);
#define MOBAI_TRY_VK(call, what)                                                                                       \
    do {                                                                                                               \
        VkResult try_result = (call);                                                                                  \
        if (try_result != VK_SUCCESS) return mobai_vk_fail(try_result, what);                                          \
    } while (0)

/* memory, streams and launches: backends/vulkan/run.c and memory.c */
moba_status mobai_vk_allocate(mobai_device *d, size_t bytes, bool host, mobai_vk_memory *out);
void mobai_vk_free(mobai_device *d, mobai_vk_memory *memory);
moba_status mobai_vk_new_stream(mobai_device *d, mobai_vk_stream **out);
void mobai_vk_free_stream(mobai_device *d, mobai_vk_stream *stream);
/** Command buffer to record into, begun if it is the library's. `*stream` is NULL for a caller's. Caller holds the
 * lock. */
moba_status mobai_vk_commands(mobai_device *d, moba_stream native, mobai_vk_stream **stream, VkCommandBuffer *out);
/** Submits what was recorded; with `wait`, also waits for all of the stream. Caller holds the lock. */
moba_status mobai_vk_submit(mobai_device *d, mobai_vk_stream *stream, bool wait);
/** Everything before is finished and visible to everything after. */
void mobai_vk_barrier(mobai_device *d, VkCommandBuffer commands);

/** Storage buffers that one kernel may bind, and the least number of windows a buffer of any kernel then has. */
uint32_t mobai_vk_max_bindings(const VkPhysicalDeviceLimits *limits);
uint32_t mobai_vk_bound_windows(const VkPhysicalDeviceLimits *limits);
/** Why kernels with bound buffers cannot run on a device of these limits and features; NULL: they can. */
const char *mobai_vk_bound_reject(const VkPhysicalDeviceLimits *limits, const VkPhysicalDeviceFeatures *features);
/** Bytes from the begin of the buffer at `offset` of mobai_stage_args that a kernel may touch; UINT64_MAX: unknown. */
uint64_t mobai_vk_extent(const mobai_stage_args *args, size_t offset);
/** Layouts of a bound kernel, and how many windows each of its buffers has. */
moba_status mobai_vk_bound_layout(mobai_device *d, const mobai_simt_instance *instance, mobai_vk_pipeline *out);
/** Records a descriptor set with the buffers of a launch and, for kernels whose parameter block is not pushed, the
 * block at `params` of mobai_device.params. Caller holds the lock. */
moba_status mobai_vk_bind(mobai_device *d, VkCommandBuffer commands, mobai_vk_sets *sets,
                          const mobai_simt_instance *instance, const mobai_vk_pipeline *pipeline,
                          const mobai_launch *launch, const mobai_stage_args *args, uint64_t params);
/** What the kernel adds to the element offsets of a bound buffer, in bytes. */
uint64_t mobai_vk_bound_distance(moba_buffer buffer);
void mobai_vk_reset_sets(mobai_device *d, mobai_vk_sets *sets);
void mobai_vk_free_sets(mobai_device *d, mobai_vk_sets *sets);

moba_status mobai_vk_buffer_create(mobai_device *d, size_t bytes, moba_buffer *out);
void mobai_vk_buffer_destroy(mobai_device *d, moba_buffer buffer);
moba_status mobai_vk_buffer_write(mobai_device *d, moba_stream stream, moba_buffer buffer, const void *data,
                                  size_t bytes);
moba_status mobai_vk_buffer_read(mobai_device *d, moba_stream stream, moba_buffer buffer, void *data, size_t bytes);
moba_status mobai_vk_buffer_fill(mobai_device *d, moba_stream stream, moba_buffer buffer, uint8_t value, size_t bytes);
moba_status mobai_vk_buffer_copy(mobai_device *d, moba_stream stream, moba_buffer from, moba_buffer to, size_t bytes);
moba_status mobai_vk_stream_create(mobai_device *d, moba_stream *out);
void mobai_vk_stream_destroy(mobai_device *d, moba_stream stream);
moba_status mobai_vk_stream_synchronize(mobai_device *d, moba_stream stream);
/** Command buffers of the caller count as being captured: nothing recorded there has run when a call returns. */
bool mobai_vk_stream_capturing(mobai_device *d, moba_stream stream);
moba_status mobai_vk_event_create(mobai_device *d, moba_event *out);
void mobai_vk_event_destroy(mobai_device *d, moba_event event);
moba_status mobai_vk_event_record(mobai_device *d, moba_stream stream, moba_event event);
moba_status mobai_vk_event_elapsed(mobai_device *d, moba_event begin, moba_event end, double *ms);
moba_status mobai_vk_prepare(mobai_device *d, const mobai_variant *variant, const moba_problem *problem);
moba_status mobai_vk_launch(mobai_device *d, moba_stream stream, const mobai_variant *variant,
                            const mobai_stage_args *args);
moba_status mobai_vk_run_end(mobai_device *d, moba_stream stream);

/** Pipeline cache in MOBA_CACHE_DIR, named after device and driver. */
void mobai_vk_load_cache(mobai_device *d);
void mobai_vk_store_cache(mobai_device *d);

#endif
