/* SPDX-License-Identifier: Apache-2.0
 *
 * Vulkan backend: loader, physical devices, and the backend table.
 */
#include "backends/vulkan/vulkan.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/host/simt_row.h"
#include "core/status.h"
#include "moba/moba_vulkan.h"

enum { MAX_DEVICES = 16 };

static pthread_once_t load_once = PTHREAD_ONCE_INIT, probe_once = PTHREAD_ONCE_INIT;
static PFN_vkGetInstanceProcAddr get_instance_proc;
static VkInstance instance; /* of the process, made by the first probe */
static VkPhysicalDevice devices[MAX_DEVICES];
static int32_t n_devices;
static char probe_reason[256];

typedef struct instance_functions {
#define X(name) PFN_##name name;
    MOBAI_VK_INSTANCE_FUNCTIONS(X)
#undef X
} instance_functions;
static instance_functions own; /* of `instance` */

static void load_library(void) {
    void *library = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
    if (symbol) memcpy(&get_instance_proc, &symbol, sizeof symbol);
}

static bool load_instance(VkInstance of, instance_functions *out) {
    bool all = true;
    PFN_vkVoidFunction f;
#define X(name)                                                                                                        \
    f = get_instance_proc(of, #name);                                                                                  \
    memcpy(&out->name, &f, sizeof f);                                                                                  \
    all = all && f;
    MOBAI_VK_INSTANCE_FUNCTIONS(X)
#undef X
    return all;
}

/** Everything the backend asks of a physical device. */
typedef struct properties {
    VkPhysicalDeviceProperties2 core;
    VkPhysicalDeviceVulkan11Properties v11;
    VkPhysicalDeviceVulkan12Properties v12;
} properties;

static void read_properties(const instance_functions *f, VkPhysicalDevice physical, properties *p) {
    memset(p, 0, sizeof *p);
    p->core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
    p->v11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES;
    p->v12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES;
    p->core.pNext = &p->v11;
    p->v11.pNext = &p->v12;
    /* Loaded before any device is asked; analysis does not follow that.
     * NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage) */
    f->vkGetPhysicalDeviceProperties2(physical, &p->core);
}

/** Family with compute, one without graphics first; -1: none. */
static int32_t compute_family(const instance_functions *f, VkPhysicalDevice physical, uint32_t *timestamp_bits) {
    VkQueueFamilyProperties families[16];
    uint32_t n = 16;
    int32_t best = -1;
    f->vkGetPhysicalDeviceQueueFamilyProperties(physical, &n, families);
    for (uint32_t i = 0; i < n; i++) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT)) continue;
        bool only = !(families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT);
        if (best >= 0 && !only) continue;
        best = (int32_t)i;
        *timestamp_bits = families[i].timestampValidBits;
        if (only) break;
    }
    return best;
}

/** NULL, or why the generated kernels cannot run there. */
static const char *physical_reject(const instance_functions *f, VkPhysicalDevice physical) {
    properties p;
    read_properties(f, physical, &p);
    if (p.core.properties.apiVersion < VK_API_VERSION_1_2) return "it is older than Vulkan 1.2";
    VkPhysicalDeviceVulkan12Features v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceVulkan11Features v11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
                                            .pNext = &v12};
    VkPhysicalDeviceFeatures2 core = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &v11};
    f->vkGetPhysicalDeviceFeatures2(physical, &core);
    uint32_t bits;
    if (!core.features.shaderInt64) return "it lacks shaderInt64";
    if (!core.features.shaderInt16) return "it lacks shaderInt16";
    if (!v11.storageBuffer16BitAccess) return "it lacks storageBuffer16BitAccess";
    if (!v12.bufferDeviceAddress) return "it lacks bufferDeviceAddress";
    if (compute_family(f, physical, &bits) < 0) return "it has no compute queue";
    return NULL;
}

static bool make_instance(void) {
    PFN_vkVoidFunction create = get_instance_proc(NULL, "vkCreateInstance");
    PFN_vkVoidFunction version = get_instance_proc(NULL, "vkEnumerateInstanceVersion");
    uint32_t loader = 0;
    if (!create || !version || ((PFN_vkEnumerateInstanceVersion)version)(&loader) != VK_SUCCESS ||
        loader < VK_API_VERSION_1_2) {
        snprintf(probe_reason, sizeof probe_reason, "the Vulkan loader is older than 1.2");
        return false;
    }
    VkApplicationInfo app = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .pEngineName = "libmoba", .apiVersion = VK_API_VERSION_1_2};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &app};
    VkResult result = ((PFN_vkCreateInstance)create)(&info, NULL, &instance);
    if (result != VK_SUCCESS) {
        snprintf(probe_reason, sizeof probe_reason, "vkCreateInstance failed: VkResult %d (no Vulkan driver?)",
                 (int)result);
        return false;
    }
    if (load_instance(instance, &own)) return true;
    snprintf(probe_reason, sizeof probe_reason, "the Vulkan loader lacks a function of Vulkan 1.2");
    return false;
}

static void probe_devices(void) {
    pthread_once(&load_once, load_library);
    if (!get_instance_proc) {
        snprintf(probe_reason, sizeof probe_reason,
                 "libvulkan.so.1 cannot be opened; install a Vulkan loader (libvulkan1) and a driver");
        return;
    }
    if (!make_instance()) return;
    VkPhysicalDevice found[MAX_DEVICES];
    uint32_t n = MAX_DEVICES;
    VkResult result = own.vkEnumeratePhysicalDevices(instance, &n, found);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE) n = 0;
    snprintf(probe_reason, sizeof probe_reason, "no Vulkan device was found");
    for (uint32_t i = 0; i < n; i++) {
        const char *why = physical_reject(&own, found[i]);
        if (!why) {
            devices[n_devices++] = found[i];
            continue;
        }
        properties p;
        read_properties(&own, found[i], &p);
        snprintf(probe_reason, sizeof probe_reason, "Vulkan device %.100s cannot be used: %s",
                 p.core.properties.deviceName, why);
    }
}

static int32_t vk_probe(char *reason, size_t capacity) {
    pthread_once(&probe_once, probe_devices);
    if (capacity > 0) snprintf(reason, capacity, "%s", n_devices > 0 ? "" : probe_reason);
    return n_devices;
}

/* -------------------------------------------------------------------------------------------- properties -- */

static void fill_properties(const instance_functions *f, mobai_device *d) {
    properties p;
    read_properties(f, d->physical, &p);
    const VkPhysicalDeviceLimits *limits = &p.core.properties.limits;
    f->vkGetPhysicalDeviceMemoryProperties(d->physical, &d->memory_types);
    snprintf(d->name, sizeof d->name, "%.127s", p.core.properties.deviceName);
    snprintf(d->driver, sizeof d->driver, "%.50s %.60s", p.v12.driverName, p.v12.driverInfo);
    d->software = p.core.properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    for (uint32_t i = 0; i < d->memory_types.memoryHeapCount; i++)
        if ((d->memory_types.memoryHeaps[i].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) &&
            d->memory_types.memoryHeaps[i].size > d->memory_bytes)
            d->memory_bytes = d->memory_types.memoryHeaps[i].size;
    d->max_alloc_bytes =
        p.v11.maxMemoryAllocationSize < d->memory_bytes ? p.v11.maxMemoryAllocationSize : d->memory_bytes;
    memcpy(d->max_groups, limits->maxComputeWorkGroupCount, sizeof d->max_groups);
    mobai_caps *c = &d->caps;
    c->n_compute_units = 0;
    c->subgroup_size = (int32_t)p.v11.subgroupSize;
    c->max_workgroup_size = (int32_t)(limits->maxComputeWorkGroupSize[0] < limits->maxComputeWorkGroupInvocations
                                          ? limits->maxComputeWorkGroupSize[0]
                                          : limits->maxComputeWorkGroupInvocations);
    c->local_memory_bytes = limits->maxComputeSharedMemorySize;
    c->memory_bytes = (size_t)d->memory_bytes;
    /* Vulkan tells no rates: a discrete GPU is taken for 200 TFLOP/s of matrix rate and 1000 GB/s, others for less. */
    bool discrete = p.core.properties.deviceType == VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
    c->matrix_gflops = discrete ? 200e3 : d->software ? 50.0 : 20e3;
    c->copy_gbytes = discrete ? 1000.0 : 50.0;
    uint64_t limit = d->memory_bytes / 4;
    c->default_workspace_limit = (size_t)(limit < d->max_alloc_bytes ? limit : d->max_alloc_bytes);
    uint32_t bits = 0;
    compute_family(f, d->physical, &bits);
    d->timestamp_ns = bits ? (double)limits->timestampPeriod : 0.0;
}

static void fill_description(const mobai_device *d, moba_device_description *out) {
    snprintf(out->name, sizeof out->name, "%s", d->name);
    snprintf(out->driver, sizeof out->driver, "%s", d->driver);
    mobai_caps_format(d->caps.set, out->capabilities, sizeof out->capabilities);
    out->memory_bytes = d->memory_bytes;
    out->n_compute_units = d->caps.n_compute_units;
    out->is_software = d->software;
}

static moba_status check_index(int32_t index) {
    char reason[256];
    int32_t n = vk_probe(reason, sizeof reason);
    if (n == 0) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "%s", reason);
    if (index < 0 || index >= n)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "device is %d; Vulkan has %d usable devices here", (int)index,
                          (int)n);
    return MOBA_OK;
}

static moba_status vk_describe(int32_t index, moba_device_description *out) {
    MOBAI_TRY(check_index(index));
    mobai_device d;
    memset(&d, 0, sizeof d);
    d.physical = devices[index];
    fill_properties(&own, &d);
    fill_description(&d, out);
    return MOBA_OK;
}

/* ---------------------------------------------------------------------------------------- open and close -- */

static void vk_close(mobai_device *d) {
    if (!d) return;
    while (d->streams) {
        mobai_vk_stream *s = d->streams;
        d->streams = s->next;
        mobai_vk_free_stream(d, s);
    }
    while (d->owned) {
        mobai_vk_owned *o = d->owned;
        d->owned = o->next;
        mobai_vk_free(d, &o->memory);
        free(o);
    }
    if (d->device && d->vk.vkDestroyDevice) {
        mobai_vk_store_cache(d);
        for (size_t i = 0; d->pipelines && i < mobai_n_simt_instances; i++)
            if (d->pipelines[i]) d->vk.vkDestroyPipeline(d->device, d->pipelines[i], NULL);
        if (d->cache) d->vk.vkDestroyPipelineCache(d->device, d->cache, NULL);
        if (d->layout) d->vk.vkDestroyPipelineLayout(d->device, d->layout, NULL);
        mobai_vk_free(d, &d->params);
        mobai_vk_free(d, &d->staging);
        if (!d->adopted) d->vk.vkDestroyDevice(d->device, NULL);
    }
    free(d->pipelines);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static moba_status create_device(mobai_device *d) {
    uint32_t bits;
    d->queue_family = (uint32_t)compute_family(&own, d->physical, &bits);
    float priority = 1.0f;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = d->queue_family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkPhysicalDeviceVulkan12Features v12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .bufferDeviceAddress = VK_TRUE};
    VkPhysicalDeviceVulkan11Features v11 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
                                            .pNext = &v12,
                                            .storageBuffer16BitAccess = VK_TRUE};
    VkPhysicalDeviceFeatures2 core = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &v11};
    core.features.shaderInt64 = core.features.shaderInt16 = VK_TRUE;
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &core,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue};
    MOBAI_TRY_VK(own.vkCreateDevice(d->physical, &info, NULL, &d->device), "vkCreateDevice");
    return MOBA_OK;
}

static moba_status adopt(mobai_device *d, const moba_vulkan_handles *native, instance_functions *f) {
    if (native->struct_size < sizeof *native)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT,
                          "moba_vulkan_handles.struct_size is %zu; it must be at least %zu", native->struct_size,
                          sizeof *native);
    if (!native->instance || !native->physical_device || !native->device || !native->queue)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "a handle of moba_vulkan_handles is NULL");
    pthread_once(&load_once, load_library);
    if (!get_instance_proc) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "libvulkan.so.1 cannot be opened");
    if (!load_instance(native->instance, f))
        return mobai_fail(MOBA_ERROR_UNSUPPORTED, "the VkInstance lacks a function of Vulkan 1.2");
    const char *why = physical_reject(f, native->physical_device);
    if (why) return mobai_fail(MOBA_ERROR_UNSUPPORTED, "the VkPhysicalDevice cannot be used: %s", why);
    d->adopted = true;
    d->physical = native->physical_device;
    d->device = native->device;
    d->queue = native->queue;
    d->queue_family = native->queue_family;
    return MOBA_OK;
}

static moba_status fill_device(mobai_device *d, const moba_context_options *options) {
    instance_functions adopted = {0}, *f = &own;
    if (options->native) {
        f = &adopted;
        MOBAI_TRY(adopt(d, options->native, f));
    } else {
        MOBAI_TRY(check_index(options->device));
        d->physical = devices[options->device];
    }
    fill_properties(f, d);
    if (!options->native) MOBAI_TRY(create_device(d));
    PFN_vkVoidFunction symbol;
#define X(function)                                                                                                    \
    symbol = f->vkGetDeviceProcAddr(d->device, #function);                                                             \
    if (!symbol) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "the driver of %s lacks " #function, d->name);      \
    memcpy(&d->vk.function, &symbol, sizeof symbol);
    MOBAI_VK_DEVICE_FUNCTIONS(X)
#undef X
    if (!d->queue) d->vk.vkGetDeviceQueue(d->device, d->queue_family, 0, &d->queue);
    VkPushConstantRange range = {VK_SHADER_STAGE_COMPUTE_BIT, 0, 128};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &range};
    MOBAI_TRY_VK(d->vk.vkCreatePipelineLayout(d->device, &layout, NULL, &d->layout), "vkCreatePipelineLayout");
    d->pipelines = calloc(mobai_n_simt_instances, sizeof *d->pipelines);
    if (!d->pipelines)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for %zu pipelines", mobai_n_simt_instances);
    mobai_vk_load_cache(d);
    MOBAI_TRY(mobai_vk_allocate(d, MOBAI_VK_PARAMS_BYTES, false, &d->params));
    MOBAI_TRY(mobai_vk_allocate(d, MOBAI_VK_STAGING_BYTES, true, &d->staging));
    return mobai_vk_new_stream(d, &d->streams);
}

static moba_status vk_open(const moba_context_options *options, mobai_device **out) {
    mobai_device *d = calloc(1, sizeof *d);
    if (!d) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a device of %zu bytes", sizeof *d);
    pthread_mutex_init(&d->lock, NULL);
    moba_status status = fill_device(d, options);
    if (status != MOBA_OK) {
        vk_close(d);
        return status;
    }
    *out = d;
    return MOBA_OK;
}

static const mobai_caps *vk_caps(const mobai_device *d) { return &d->caps; }

/** Only when named. */
static int32_t vk_rank(int32_t index) {
    (void)index;
    return 0;
}

/** The generated tier only. */
static const mobai_variant variants[] = {
#include "simt_rows.inc"
};

extern const mobai_backend mobai_backend_vulkan;
const mobai_backend mobai_backend_vulkan = {
    .name = "vulkan",
    .address_handles = false,
    .probe = vk_probe,
    .describe = vk_describe,
    .open = vk_open,
    .close = vk_close,
    .caps = vk_caps,
    .device_info = fill_description,
    .buffer_create = mobai_vk_buffer_create,
    .buffer_destroy = mobai_vk_buffer_destroy,
    .buffer_write = mobai_vk_buffer_write,
    .buffer_read = mobai_vk_buffer_read,
    .buffer_fill = mobai_vk_buffer_fill,
    .buffer_copy = mobai_vk_buffer_copy,
    .stream_create = mobai_vk_stream_create,
    .stream_destroy = mobai_vk_stream_destroy,
    .stream_synchronize = mobai_vk_stream_synchronize,
    .event_create = mobai_vk_event_create,
    .event_destroy = mobai_vk_event_destroy,
    .event_record = mobai_vk_event_record,
    .event_elapsed = mobai_vk_event_elapsed,
    .prepare = mobai_vk_prepare,
    .launch = mobai_vk_launch,
    .run_end = mobai_vk_run_end,
    .rank = vk_rank,
    .variants = variants,
    .n_variants = sizeof variants / sizeof variants[0],
};
