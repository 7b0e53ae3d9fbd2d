/* SPDX-License-Identifier: Apache-2.0
 *
 * The HIP backend's table and its devices. Memory, streams, events and generated kernels are those of backends/driver.
 */
#include "backends/hip/hip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/context.h"
#include "core/status.h"
#include "moba/moba_hip.h"

static moba_status check(int result, const char *what) {
    return result == HIP_SUCCESS ? MOBA_OK : hip_fail(result, what);
}

/** Calls nest on one device: a run is entered once, and memory may be touched inside it. */
static _Thread_local struct { int depth, previous; } entered;

moba_status hip_enter(const mobai_device *device) {
    const hip_runtime *r = hip_runtime_get();
    if (entered.depth == 0) MOBAI_TRY(check(r->current_device(&entered.previous), "read the current device"));
    MOBAI_TRY(check(r->set_device(device->index), "make the device current"));
    entered.depth++;
    return MOBA_OK;
}
void hip_leave(void) {
    if (--entered.depth == 0) hip_runtime_get()->set_device(entered.previous);
}

/* ----------------------------------------------------------------------------------------------- devices -- */

static int attribute(int device, int which) {
    int value = 0;
    return hip_runtime_get()->api.device_attribute(&value, which, device) == HIP_SUCCESS ? value : 0;
}

/** Probe and allow-list: matrix cores by the architecture's name. */
static mobai_caps caps_of(int device) {
    const hip_runtime *r = hip_runtime_get();
    const hip_arch *arch = hip_find_arch(r->found[device].arch);
    mobai_caps caps;
    memset(&caps, 0, sizeof caps);
    caps.set = MOBAI_CAP_SUBGROUPS | MOBAI_CAP_FP16 | arch->matrix;
    caps.local_memory_bytes = (size_t)attribute(device, HIP_ATTRIBUTE_SHARED_MEMORY);
    caps.n_compute_units = attribute(device, HIP_ATTRIBUTE_MULTIPROCESSORS);
    caps.subgroup_size = attribute(device, HIP_ATTRIBUTE_WARP_SIZE);
    caps.max_workgroup_size = attribute(device, HIP_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
    r->api.device_memory(&caps.memory_bytes, device);
    const double clock_ghz = 1e-6 * attribute(device, HIP_ATTRIBUTE_CLOCK_KHZ);
    caps.matrix_gflops = caps.n_compute_units * clock_ghz * arch->flops_per_clock;
    /* 0.8 of the peak is what copies reach */
    caps.copy_gbytes = 0.8 * arch->transfers * 1e-6 * attribute(device, HIP_ATTRIBUTE_MEMORY_CLOCK_KHZ) *
                       (attribute(device, HIP_ATTRIBUTE_MEMORY_BUS_BITS) / 8.0);
    mobai_driver_complete_caps(&caps);
    return caps;
}

static void fill_description(int device, const mobai_caps *caps, moba_device_description *out) {
    const hip_runtime *r = hip_runtime_get();
    if (r->api.device_name(out->name, (int)sizeof out->name, device) != HIP_SUCCESS) out->name[0] = '\0';
    snprintf(out->driver, sizeof out->driver, "HIP %d.%d.%d, %s%s", r->version / 10000000, r->version / 100000 % 100,
             r->version % 100000, r->found[device].arch, r->found[device].code ? "" : " (no kernels in this build)");
    mobai_caps_format(caps->set, out->capabilities, sizeof out->capabilities);
    out->memory_bytes = caps->memory_bytes;
    out->n_compute_units = caps->n_compute_units;
    out->is_software = 0;
}

static int32_t hip_probe(char *reason, size_t capacity) {
    const hip_runtime *r = hip_runtime_get();
    snprintf(reason, capacity, "%s", r->reason);
    return r->n_devices;
}

static moba_status hip_describe(int32_t index, moba_device_description *out) {
    mobai_caps caps = caps_of(index);
    fill_description(index, &caps, out);
    return MOBA_OK;
}

static void hip_device_info(const mobai_device *device, moba_device_description *out) {
    fill_description(device->index, &device->caps, out);
}

/** The device that the caller's handles mean. */
static moba_status adopt(const moba_context_options *options, int *index) {
    moba_hip_handles handles;
    MOBAI_TRY(mobai_copy_struct(&handles, sizeof handles, options->native, "moba_hip_handles"));
    *index = handles.device;
    if (*index == -1) MOBAI_TRY(check(hip_runtime_get()->current_device(index), "read the current device"));
    if (options->device != -1 && options->device != *index)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT,
                          "moba_hip_handles.device means device %d, and the options name device %d", *index,
                          options->device);
    return MOBA_OK;
}

static moba_status open_device(const moba_context_options *options, mobai_device *device) {
    const hip_runtime *r = hip_runtime_get();
    if (r->n_devices == 0) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "%s", r->reason);
    device->index = options->device;
    if (options->native) MOBAI_TRY(adopt(options, &device->index));
    if (device->index < 0 || device->index >= r->n_devices)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "device is %d; HIP has devices 0..%d", device->index,
                          r->n_devices - 1);
    device->code = r->found[device->index].code;
    if (!device->code)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED, "HIP device %d is a %s, for which this build has no kernels",
                          device->index, r->found[device->index].arch);
    device->caps = caps_of(device->index);
    return mobai_driver_device_begin(&device->base, &r->api);
}

static moba_status hip_open(const moba_context_options *options, mobai_device **out) {
    mobai_device *device = calloc(1, sizeof *device);
    if (!device) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no host memory for a HIP device");
    moba_status status = open_device(options, device);
    if (status != MOBA_OK) {
        free(device);
        return status;
    }
    *out = device;
    return MOBA_OK;
}

static void hip_close(mobai_device *device) {
    if (device->module && hip_enter(device) == MOBA_OK) {
        device->base.driver->module_unload(device->module);
        hip_leave();
    }
    mobai_driver_device_end(&device->base);
    free(device);
}

static const mobai_caps *hip_caps(const mobai_device *device) { return &device->caps; }

static int32_t hip_rank(int32_t index) {
    return hip_runtime_get()->found[index].code ? 3 : 0; /* after cuda, before vulkan, opencl and the CPU */
}

/* ------------------------------------------------------------------------------------------------ kernels -- */

static moba_status hip_prepare(mobai_device *device, const mobai_variant *variant, const moba_problem *problem) {
    (void)problem;
    MOBAI_TRY(hip_enter(device));
    moba_status status = hip_is_matrix(variant) ? mobai_driver_matrix_load(device, variant->code)
                                                : mobai_driver_simt_load(device, variant->code);
    hip_leave();
    return status;
}

/** The special handles NULL, 1 (legacy) and 2 (per thread) belong to whichever device is current. */
static bool is_default_stream(const void *s) { return (uintptr_t)s <= 2; }

static moba_status hip_run_begin(mobai_device *device, moba_stream stream) {
    const hip_runtime *r = hip_runtime_get();
    MOBAI_TRY(hip_enter(device));
    if (is_default_stream(stream.native) || !r->stream_device) return MOBA_OK;
    int owner = -1, result = r->stream_device(stream.native, &owner);
    if (result == HIP_SUCCESS && owner == device->index) return MOBA_OK;
    hip_leave();
    if (result == HIP_INVALID_VALUE || result == HIP_INVALID_HANDLE || result == HIP_CONTEXT_IS_DESTROYED)
        return mobai_fail(MOBA_ERROR_WRONG_CONTEXT, "the stream %p is not a HIP stream, or was destroyed",
                          stream.native);
    if (result != HIP_SUCCESS) return hip_fail(result, "read the stream's device");
    return mobai_fail(MOBA_ERROR_WRONG_CONTEXT,
                      "the stream %p belongs to HIP device %d; this moba_context runs on device %d", stream.native,
                      owner, device->index);
}

static moba_status hip_run_end(mobai_device *device, moba_stream stream) {
    (void)device;
    (void)stream;
    hip_leave();
    return MOBA_OK;
}

static moba_status hip_launch(mobai_device *device, moba_stream stream, const mobai_variant *variant,
                              const mobai_stage_args *args) {
    if (hip_is_matrix(variant)) return mobai_driver_matrix_launch(device, stream.native, variant->code, args);
    return mobai_driver_simt_launch(device, stream.native, variant, args);
}

extern const mobai_backend mobai_backend_hip;
const mobai_backend mobai_backend_hip = {
    .name = "hip",
    .address_handles = true,
    .probe = hip_probe,
    .describe = hip_describe,
    .open = hip_open,
    .close = hip_close,
    .caps = hip_caps,
    .device_info = hip_device_info,
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
    .prepare = hip_prepare,
    .launch = hip_launch,
    .run_begin = hip_run_begin,
    .run_end = hip_run_end,
    .rank = hip_rank,
    .variants = hip_variants,
    .n_variants = HIP_N_VARIANTS,
};
