/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA backend's table and its devices. Memory, streams and events are those of backends/driver.
 */
#include "backends/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/status.h"
#include "moba/moba_cuda.h"

static moba_status check(cu_result result, const char *what) {
    return result == CU_SUCCESS ? MOBA_OK : cuda_fail(result, what);
}

moba_status cuda_enter(const mobai_device *device) {
    return check(cuda_driver_get()->context_push(device->context), "make its context current");
}
void cuda_leave(void) {
    cu_context popped;
    cuda_driver_get()->context_pop(&popped);
}

/* ----------------------------------------------------------------------------------------------- devices -- */

static int attribute(cu_device device, int which) {
    int value = 0;
    return cuda_driver_get()->api.device_attribute(&value, which, device) == CU_SUCCESS ? value : 0;
}

/** Dense 16-bit products a multiprocessor completes in a clock, as multiply and add, by compute capability. */
static double matrix_flops_per_clock(int capability) {
    if (capability >= 90) return 8192.0 / 2.0;
    return capability == 80 ? 2048.0 : 1024.0;
}

/** Probe and allow-list: wgmma is sm_90a code, which runs on compute capability 9.0 alone. */
static mobai_caps caps_of(cu_device device) {
    const cuda_driver *d = cuda_driver_get();
    mobai_caps caps;
    memset(&caps, 0, sizeof caps);
    const int capability = 10 * attribute(device, CU_ATTRIBUTE_MAJOR) + attribute(device, CU_ATTRIBUTE_MINOR);
    caps.set = MOBAI_CAP_SUBGROUPS | MOBAI_CAP_FP16;
    if (capability >= 80) caps.set |= MOBAI_CAP_MMA;
    caps.local_memory_bytes = (size_t)attribute(device, CU_ATTRIBUTE_MAX_SHARED_MEMORY_OPTIN);
    if (capability == 90 && caps.local_memory_bytes >= 227 * 1024) caps.set |= MOBAI_CAP_WGMMA;
    caps.n_compute_units = attribute(device, CU_ATTRIBUTE_MULTIPROCESSORS);
    caps.subgroup_size = 32;
    caps.max_workgroup_size = attribute(device, CU_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
    d->api.device_memory(&caps.memory_bytes, device);
    const double clock_ghz = 1e-6 * attribute(device, CU_ATTRIBUTE_CLOCK_KHZ);
    caps.matrix_gflops = caps.n_compute_units * clock_ghz * matrix_flops_per_clock(capability);
    /* two transfers a clock; 0.9 of it is what copies reach */
    caps.copy_gbytes = 0.9 * 2e-6 * attribute(device, CU_ATTRIBUTE_MEMORY_CLOCK_KHZ) *
                       (attribute(device, CU_ATTRIBUTE_MEMORY_BUS_BITS) / 8.0);
    mobai_driver_complete_caps(&caps);
    return caps;
}

static void fill_description(cu_device device, const mobai_caps *caps, moba_device_description *out) {
    const cuda_driver *d = cuda_driver_get();
    if (d->api.device_name(out->name, (int)sizeof out->name, device) != CU_SUCCESS) out->name[0] = '\0';
    snprintf(out->driver, sizeof out->driver, "CUDA %d.%d, compute capability %d.%d", d->version / 1000,
             d->version % 1000 / 10, attribute(device, CU_ATTRIBUTE_MAJOR), attribute(device, CU_ATTRIBUTE_MINOR));
    mobai_caps_format(caps->set, out->capabilities, sizeof out->capabilities);
    out->memory_bytes = caps->memory_bytes;
    out->n_compute_units = caps->n_compute_units;
    out->is_software = 0;
}

static int32_t cuda_probe(char *reason, size_t capacity) {
    const cuda_driver *d = cuda_driver_get();
    snprintf(reason, capacity, "%s", d->reason);
    return d->n_devices;
}

static moba_status cuda_describe(int32_t index, moba_device_description *out) {
    cu_device device;
    MOBAI_TRY(check(cuda_driver_get()->api.device_get(&device, index), "find the device"));
    mobai_caps caps = caps_of(device);
    fill_description(device, &caps, out);
    return MOBA_OK;
}

static void cuda_device_info(const mobai_device *device, moba_device_description *out) {
    fill_description(device->device, &device->caps, out);
}

/** Takes the caller's context: it must exist and belong to the device that was named. */
static moba_status adopt(const moba_context_options *options, mobai_device *device) {
    const cuda_driver *d = cuda_driver_get();
    moba_cuda_handles handles;
    MOBAI_TRY(mobai_copy_struct(&handles, sizeof handles, options->native, "moba_cuda_handles"));
    device->context = (cu_context)handles.context;
    if (!device->context) MOBAI_TRY(check(d->context_current(&device->context), "read the current context"));
    if (!device->context)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT,
                          "moba_cuda_handles.context is NULL and this thread has no current CUDA context");
    MOBAI_TRY(cuda_enter(device));
    cu_result result = d->context_device(&device->device);
    cuda_leave();
    MOBAI_TRY(check(result, "find the device of the context that was given"));
    cu_device named = device->device;
    if (options->device >= 0) MOBAI_TRY(check(d->api.device_get(&named, options->device), "find the device"));
    if (named != device->device)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT,
                          "moba_cuda_handles.context belongs to device %d, and the options name device %d",
                          device->device, options->device);
    return MOBA_OK;
}

static moba_status open_device(const moba_context_options *options, mobai_device *device) {
    const cuda_driver *d = cuda_driver_get();
    if (d->n_devices == 0) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "%s", d->reason);
    if (options->native) {
        MOBAI_TRY(adopt(options, device));
    } else {
        MOBAI_TRY(check(d->api.device_get(&device->device, options->device), "find the device"));
        MOBAI_TRY(check(d->primary_retain(&device->context, device->device), "open the device's primary context"));
        device->owns_primary = 1;
    }
    device->index = device->device;
    device->caps = caps_of(device->device);
    device->n_multiprocessors = device->caps.n_compute_units;
    return MOBA_OK;
}

static moba_status cuda_open(const moba_context_options *options, mobai_device **out) {
    mobai_device *device = calloc(1, sizeof *device);
    if (!device) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no host memory for a CUDA device");
    moba_status status = mobai_driver_device_begin(&device->base, &cuda_driver_get()->api);
    if (status == MOBA_OK) {
        status = open_device(options, device);
        if (status != MOBA_OK) mobai_driver_device_end(&device->base);
    }
    if (status != MOBA_OK) {
        free(device);
        return status;
    }
    *out = device;
    return MOBA_OK;
}

static void cuda_close(mobai_device *device) {
    if (cuda_enter(device) == MOBA_OK) {
        cuda_unload_all(device);
        cuda_simt_unload(device);
        cuda_leave();
    }
    if (device->owns_primary) cuda_driver_get()->primary_release(device->device);
    mobai_driver_device_end(&device->base);
    free(device);
}

static const mobai_caps *cuda_caps(const mobai_device *device) { return &device->caps; }

static int32_t cuda_rank(int32_t index) {
    (void)index;
    return 4; /* before hip, vulkan, opencl and the CPU */
}

/* ------------------------------------------------------------------------------------------------ kernels -- */

static moba_status cuda_prepare(mobai_device *device, const mobai_variant *variant, const moba_problem *problem) {
    (void)problem;
    MOBAI_TRY(cuda_enter(device));
    moba_status status = cuda_is_native(variant)   ? cuda_load(device, ((const cuda_code *)variant->code)->module)
                         : cuda_is_matrix(variant) ? mobai_driver_matrix_load(device, variant->code)
                                                   : mobai_driver_simt_load(device, variant->code);
    cuda_leave();
    return status;
}

/** The special handles NULL, 1 (legacy) and 2 (per thread) belong to whichever context is current. */
static bool is_default_stream(cu_stream s) { return (uintptr_t)s <= 2; }

static moba_status cuda_run_begin(mobai_device *device, moba_stream stream) {
    const cuda_driver *d = cuda_driver_get();
    MOBAI_TRY(cuda_enter(device));
    if (is_default_stream(stream.native)) return MOBA_OK;
    cu_context owner = NULL;
    cu_result result = d->stream_context(stream.native, &owner);
    if (result == CU_SUCCESS && owner == device->context) return MOBA_OK;
    cuda_leave();
    if (result == CU_INVALID_VALUE || result == CU_INVALID_HANDLE || result == CU_CONTEXT_IS_DESTROYED)
        return mobai_fail(MOBA_ERROR_WRONG_CONTEXT, "the stream %p is not a CUDA stream, or was destroyed",
                          stream.native);
    if (result != CU_SUCCESS) return cuda_fail(result, "read the stream's context");
    return mobai_fail(MOBA_ERROR_WRONG_CONTEXT,
                      "the stream %p belongs to CUDA context %p; this moba_context runs in %p (device %d)",
                      stream.native, (void *)owner, (void *)device->context, device->index);
}

static moba_status cuda_run_end(mobai_device *device, moba_stream stream) {
    (void)device;
    (void)stream;
    cuda_leave();
    return MOBA_OK;
}

static moba_status cuda_launch(mobai_device *device, moba_stream stream, const mobai_variant *variant,
                               const mobai_stage_args *args) {
    if (cuda_is_matrix(variant)) return mobai_driver_matrix_launch(device, stream.native, variant->code, args);
    if (!cuda_is_native(variant)) return mobai_driver_simt_launch(device, stream.native, variant, args);
    const cuda_code *code = variant->code;
    return code->launch(device, stream.native, code, args);
}

extern const mobai_backend mobai_backend_cuda;
const mobai_backend mobai_backend_cuda = {
    .name = "cuda",
    .address_handles = true,
    .probe = cuda_probe,
    .describe = cuda_describe,
    .open = cuda_open,
    .close = cuda_close,
    .caps = cuda_caps,
    .device_info = cuda_device_info,
    .buffer_create = mobai_driver_buffer_create,
    .buffer_destroy = mobai_driver_buffer_destroy,
    .buffer_write = mobai_driver_buffer_write,
    .buffer_read = mobai_driver_buffer_read,
    .buffer_fill = mobai_driver_buffer_fill,
    .buffer_copy = mobai_driver_buffer_copy,
    .stream_create = mobai_driver_stream_create,
    .stream_destroy = mobai_driver_stream_destroy,
    .stream_synchronize = mobai_driver_stream_synchronize,
    .stream_capturing = mobai_driver_stream_capturing,
    .event_create = mobai_driver_event_create,
    .event_destroy = mobai_driver_event_destroy,
    .event_record = mobai_driver_event_record,
    .event_elapsed = mobai_driver_event_elapsed,
    .prepare = cuda_prepare,
    .launch = cuda_launch,
    .run_begin = cuda_run_begin,
    .run_end = cuda_run_end,
    .kept_bytes = cuda_kept_bytes,
    .rank = cuda_rank,
    .variants = cuda_variants,
    .n_variants = CUDA_N_VARIANTS,
};
