/* SPDX-License-Identifier: Apache-2.0
 *
 * Vulkan backend: loader, physical devices, and the backend table.
 */
#include "backends/vulkan/vulkan.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/status.h"
#include "moba/moba_vulkan.h"
#include "simt_table.h"

enum { MAX_DEVICES = 16 };

static pthread_once_t load_once = PTHREAD_ONCE_INIT, probe_once = PTHREAD_ONCE_INIT;
static PFN_vkGetInstanceProcAddr get_instance_proc;
static const char *load_failure; /* why there is none */
static VkInstance instance;      /* of the process, made by the first probe */
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
    load_failure = !library  ? "libvulkan.so.1 cannot be opened; install a Vulkan loader (libvulkan1) and a driver"
                   : !symbol ? "libvulkan.so.1 lacks vkGetInstanceProcAddr: it is no Vulkan loader"
                             : NULL;
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

typedef struct features {
    VkPhysicalDeviceFeatures2 core;
    VkPhysicalDeviceVulkan11Features v11;
    VkPhysicalDeviceVulkan12Features v12;
} features;

static void chain_features(features *x) {
    memset(x, 0, sizeof *x);
    x->core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    x->v11.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES;
    x->v12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES;
    x->core.pNext = &x->v11;
    x->v11.pNext = &x->v12;
}

static void read_features(const instance_functions *f, VkPhysicalDevice physical, features *x) {
    chain_features(x);
    f->vkGetPhysicalDeviceFeatures2(physical, &x->core);
}

enum { MAX_FAMILIES = 16 };

/** Family with compute, one without graphics first; -1: none. */
static int32_t compute_family(const instance_functions *f, VkPhysicalDevice physical) {
    VkQueueFamilyProperties families[MAX_FAMILIES];
    uint32_t n = MAX_FAMILIES;
    int32_t best = -1;
    f->vkGetPhysicalDeviceQueueFamilyProperties(physical, &n, families);
    for (uint32_t i = 0; i < n; i++) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT)) continue;
        bool only = !(families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT);
        if (best < 0 || only) best = (int32_t)i;
        if (only) break;
    }
    return best;
}

/** NULL, or why the generated kernels cannot run there. `bda`: whether buffer addresses may be used. */
static const char *physical_reject(const instance_functions *f, VkPhysicalDevice physical, bool bda) {
    properties p;
    features x;
    read_properties(f, physical, &p);
    if (p.core.properties.apiVersion < VK_API_VERSION_1_2) return "it is older than Vulkan 1.2";
    read_features(f, physical, &x);
    if (!x.core.features.shaderInt64) return "it lacks shaderInt64";
    if (!x.core.features.shaderInt16) return "it lacks shaderInt16";
    if (!x.v11.storageBuffer16BitAccess) return "it lacks storageBuffer16BitAccess";
    if (compute_family(f, physical) < 0) return "it has no compute queue";
    if (bda && x.v12.bufferDeviceAddress) return NULL;
    return mobai_vk_bound_reject(&p.core.properties.limits, &x.core.features);
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
    if (load_failure) {
        snprintf(probe_reason, sizeof probe_reason, "%s", load_failure);
        return;
    }
    if (!make_instance()) return;
    VkPhysicalDevice found[MAX_DEVICES];
    uint32_t n = MAX_DEVICES;
    VkResult result = own.vkEnumeratePhysicalDevices(instance, &n, found);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE) n = 0;
    snprintf(probe_reason, sizeof probe_reason, "no Vulkan device was found");
    for (uint32_t i = 0; i < n; i++) {
        const char *why = physical_reject(&own, found[i], true);
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

/** Everything that follows from d->physical, d->queue_family and d->adopted. `bda`: buffer addresses may be used. */
static void fill_properties(const instance_functions *f, mobai_device *d, bool bda) {
    properties p;
    features x;
    read_properties(f, d->physical, &p);
    read_features(f, d->physical, &x);
    const VkPhysicalDeviceLimits *limits = &p.core.properties.limits;
    VkQueueFamilyProperties families[MAX_FAMILIES];
    uint32_t n_families = MAX_FAMILIES;
    f->vkGetPhysicalDeviceQueueFamilyProperties(d->physical, &n_families, families);
    const VkQueueFamilyProperties *family = &families[d->queue_family];
    d->bda = bda && x.v12.bufferDeviceAddress;
    d->no_bound = mobai_vk_bound_reject(limits, &x.core.features);
    d->max_bindings = mobai_vk_max_bindings(limits);
    for (d->window_shift = 0; d->window_shift < 31 && limits->maxStorageBufferRange >> (d->window_shift + 1);)
        d->window_shift++;
    /* What an adopted device has enabled cannot be asked. */
    d->sparse = !d->adopted && x.core.features.sparseBinding && (family->queueFlags & VK_QUEUE_SPARSE_BINDING_BIT);
    d->timestamp_ns = family->timestampValidBits ? (double)limits->timestampPeriod : 0.0;
    d->timestamp_mask = family->timestampValidBits < 64 ? ((uint64_t)1 << family->timestampValidBits) - 1 : UINT64_MAX;
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
    c->set = d->bda ? MOBAI_CAP_BDA : 0;
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
    if (limit > d->max_alloc_bytes) limit = d->max_alloc_bytes;
    /* So that what lies in a workspace of the default size can also be bound, should addresses be hidden. */
    uint64_t reach = (uint64_t)mobai_vk_bound_windows(limits) << d->window_shift;
    if (!d->no_bound && limit > reach) limit = reach;
    c->default_workspace_limit = (size_t)limit;
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
    d.queue_family = (uint32_t)compute_family(&own, d.physical);
    fill_properties(&own, &d, true);
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
        for (size_t i = 0; d->pipelines && i < 2 * mobai_n_simt_instances; i++) {
            const mobai_vk_pipeline *x = &d->pipelines[i];
            if (x->pipeline) d->vk.vkDestroyPipeline(d->device, x->pipeline, NULL);
            if (x->layout) d->vk.vkDestroyPipelineLayout(d->device, x->layout, NULL);
            if (x->set_layout) d->vk.vkDestroyDescriptorSetLayout(d->device, x->set_layout, NULL);
        }
        mobai_vk_free_sets(d, &d->caller_sets);
        if (d->cache) d->vk.vkDestroyPipelineCache(d->device, d->cache, NULL);
        if (d->layout) d->vk.vkDestroyPipelineLayout(d->device, d->layout, NULL);
        if (d->block_pool) d->vk.vkDestroyDescriptorPool(d->device, d->block_pool, NULL);
        if (d->block_layout) d->vk.vkDestroyDescriptorSetLayout(d->device, d->block_layout, NULL);
        mobai_vk_free(d, &d->params);
        mobai_vk_free(d, &d->staging);
        mobai_vk_free(d, &d->unused);
        if (!d->adopted) d->vk.vkDestroyDevice(d->device, NULL);
    }
    free(d->pipelines);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static moba_status create_device(mobai_device *d) {
    float priority = 1.0f;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = d->queue_family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    features x;
    chain_features(&x);
    x.core.features.shaderInt64 = x.core.features.shaderInt16 = VK_TRUE;
    x.v11.storageBuffer16BitAccess = VK_TRUE;
    x.v12.bufferDeviceAddress = d->bda;
    x.core.features.shaderStorageBufferArrayDynamicIndexing = !d->no_bound;
    x.core.features.sparseBinding = d->sparse;
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = &x.core,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue};
    MOBAI_TRY_VK(own.vkCreateDevice(d->physical, &info, NULL, &d->device), "vkCreateDevice");
    return MOBA_OK;
}

static moba_status adopt(mobai_device *d, const void *handles, instance_functions *f) {
    moba_vulkan_handles native;
    MOBAI_TRY(mobai_copy_struct(&native, sizeof native, handles, "moba_vulkan_handles"));
    if (!native.instance || !native.physical_device || !native.device || !native.queue)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "moba_vulkan_handles.%s is NULL",
                          !native.instance          ? "instance"
                          : !native.physical_device ? "physical_device"
                          : !native.device          ? "device"
                                                    : "queue");
    pthread_once(&load_once, load_library);
    if (load_failure) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "%s", load_failure);
    if (!load_instance(native.instance, f))
        return mobai_fail(MOBA_ERROR_UNSUPPORTED, "the VkInstance lacks a function of Vulkan 1.2");
    d->adopted = true;
    d->physical = native.physical_device;
    VkQueueFamilyProperties families[MAX_FAMILIES];
    uint32_t n = MAX_FAMILIES;
    f->vkGetPhysicalDeviceQueueFamilyProperties(d->physical, &n, families);
    if (native.queue_family >= n || !(families[native.queue_family].queueFlags & VK_QUEUE_COMPUTE_BIT))
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT,
                          "moba_vulkan_handles.queue_family is %u; it must be one of the device's %u families with "
                          "compute",
                          (unsigned)native.queue_family, (unsigned)n);
    const char *why = physical_reject(f, d->physical, !native.without_buffer_device_address);
    if (why) return mobai_fail(MOBA_ERROR_UNSUPPORTED, "the VkPhysicalDevice cannot be used: %s", why);
    d->queue_family = native.queue_family;
    fill_properties(f, d, !native.without_buffer_device_address);
    d->device = native.device;
    d->queue = native.queue;
    return MOBA_OK;
}

/** Layout of the kernels by address, and the set that shows them a block of d->params. */
static moba_status make_layout(mobai_device *d) {
    VkDescriptorSetLayoutBinding block = {.descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER_DYNAMIC,
                                          .descriptorCount = 1,
                                          .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    VkDescriptorSetLayoutCreateInfo set_layout = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = 1, .pBindings = &block};
    MOBAI_TRY_VK(d->vk.vkCreateDescriptorSetLayout(d->device, &set_layout, NULL, &d->block_layout),
                 "vkCreateDescriptorSetLayout");
    VkPushConstantRange range = {VK_SHADER_STAGE_COMPUTE_BIT, 0, MOBAI_VK_PUSH_BYTES};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                         .setLayoutCount = 1,
                                         .pSetLayouts = &d->block_layout,
                                         .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &range};
    MOBAI_TRY_VK(d->vk.vkCreatePipelineLayout(d->device, &layout, NULL, &d->layout), "vkCreatePipelineLayout");
    VkDescriptorPoolSize size = {VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER_DYNAMIC, 1};
    VkDescriptorPoolCreateInfo pool = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO, .maxSets = 1, .poolSizeCount = 1, .pPoolSizes = &size};
    MOBAI_TRY_VK(d->vk.vkCreateDescriptorPool(d->device, &pool, NULL, &d->block_pool), "vkCreateDescriptorPool");
    VkDescriptorSetAllocateInfo allocate = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                            .descriptorPool = d->block_pool,
                                            .descriptorSetCount = 1,
                                            .pSetLayouts = &d->block_layout};
    MOBAI_TRY_VK(d->vk.vkAllocateDescriptorSets(d->device, &allocate, &d->block_set), "vkAllocateDescriptorSets");
    VkDescriptorBufferInfo buffer = {d->params.buffer, 0, MOBAI_VK_BLOCK_BYTES};
    VkWriteDescriptorSet write = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                  .dstSet = d->block_set,
                                  .descriptorCount = 1,
                                  .descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER_DYNAMIC,
                                  .pBufferInfo = &buffer};
    d->vk.vkUpdateDescriptorSets(d->device, 1, &write, 0, NULL);
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
        d->queue_family = (uint32_t)compute_family(&own, d->physical);
        fill_properties(f, d, true);
        MOBAI_TRY(create_device(d));
    }
    PFN_vkVoidFunction symbol;
#define X(function)                                                                                                    \
    symbol = f->vkGetDeviceProcAddr(d->device, #function);                                                             \
    if (!symbol) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "the driver of %s lacks " #function, d->name);      \
    memcpy(&d->vk.function, &symbol, sizeof symbol);
    MOBAI_VK_DEVICE_FUNCTIONS(X) /* NOLINT(clang-analyzer-core.CallAndMessage): load_instance() loaded it */
#undef X
    if (!d->queue) d->vk.vkGetDeviceQueue(d->device, d->queue_family, 0, &d->queue);
    d->pipelines = calloc(2 * mobai_n_simt_instances, sizeof *d->pipelines);
    if (!d->pipelines)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for %zu pipelines", 2 * mobai_n_simt_instances);
    mobai_vk_load_cache(d);
    MOBAI_TRY(mobai_vk_allocate(d, MOBAI_VK_PARAMS_BYTES, false, &d->params));
    MOBAI_TRY(make_layout(d));
    MOBAI_TRY(mobai_vk_allocate(d, MOBAI_VK_STAGING_BYTES, true, &d->staging));
    MOBAI_TRY(mobai_vk_allocate(d, MOBAI_VK_BIND_ALIGNMENT, false, &d->unused));
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

/** Discrete before other GPUs, between HIP and OpenCL; software devices only when Vulkan is named. */
static int32_t vk_rank(int32_t index) {
    char reason[256];
    if (index < 0 || index >= vk_probe(reason, sizeof reason)) return 0;
    properties p;
    read_properties(&own, devices[index], &p);
    switch (p.core.properties.deviceType) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return 3;
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return 2;
    default:
        return 0;
    }
}

/* The generated tier only: each row by address, and behind it the same with bound buffers. */
#define MOBAI_SIMT_ROW(row, stage_name, dtype_set, flow_name, m, n, cost_fn, scratch_fn)                               \
    static const mobai_vk_code code_##row = {&mobai_program_##row, false};                                             \
    static const mobai_vk_code bound_##row = {&mobai_program_##row, true};
#include "simt_rows.inc"
#undef MOBAI_SIMT_ROW

#define VK_ROW(row_name, row, stage_name, dtype_set, flow_name, m, n, cost_fn, scratch_fn, caps, row_code)             \
    {.name = row_name,                                                                                                 \
     .stage = MOBAI_STAGE_##stage_name,                                                                                \
     .dtypes = dtype_set,                                                                                              \
     .needs = caps,                                                                                                    \
     .flow = MOBAI_FLOW_##flow_name,                                                                                   \
     .tile_m = m,                                                                                                      \
     .tile_n = n,                                                                                                      \
     .reject = mobai_reject_##row,                                                                                     \
     .cost = cost_fn,                                                                                                  \
     .scratch_bytes = scratch_fn,                                                                                      \
     .code = row_code},
#define MOBAI_SIMT_ROW(row, stage_name, dtype_set, flow_name, m, n, cost_fn, scratch_fn)                               \
    VK_ROW(#row, row, stage_name, dtype_set, flow_name, m, n, cost_fn, scratch_fn, MOBAI_CAP_BDA, &code_##row)         \
    VK_ROW(#row "_bound", row, stage_name, dtype_set, flow_name, m, n, cost_fn, scratch_fn, 0, &bound_##row)
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
    .stream_capturing = mobai_vk_stream_capturing,
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
