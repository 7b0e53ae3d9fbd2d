/* SPDX-License-Identifier: Apache-2.0
 *
 * OpenCL backend: platforms, devices, and the backend table. Devices of every type are listed, in the order of the
 * platforms; platforms without devices are skipped.
 */
#include "backends/opencl/opencl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codegen/host/simt_row.h"
#include "core/status.h"
#include "moba/moba_opencl.h"

enum { MAX_PLATFORMS = 16, MAX_DEVICES = 64 };

static pthread_once_t probe_once = PTHREAD_ONCE_INIT;
static cl_device_id devices[MAX_DEVICES];
static int32_t n_devices;
static char probe_reason[256];

static cl_ulong device_number(cl_device_id id, cl_device_info what, size_t bytes) {
    cl_ulong wide = 0;
    cl_uint narrow = 0;
    if (bytes == sizeof narrow) {
        cl.clGetDeviceInfo(id, what, sizeof narrow, &narrow, NULL);
        return narrow;
    }
    cl.clGetDeviceInfo(id, what, sizeof wide, &wide, NULL);
    return wide;
}

void mobai_cl_device_text(cl_device_id id, cl_device_info what, char *out, size_t capacity) {
    char text[1024] = "";
    cl.clGetDeviceInfo(id, what, sizeof text - 1, text, NULL);
    snprintf(out, capacity, "%.*s", (int)capacity - 1, text);
}

/** NULL, or why the generated kernels cannot run there. */
static const char *device_reject(cl_device_id id) {
    cl_bool available = CL_FALSE, compiler = CL_FALSE, little = CL_FALSE;
    cl.clGetDeviceInfo(id, CL_DEVICE_AVAILABLE, sizeof available, &available, NULL);
    cl.clGetDeviceInfo(id, CL_DEVICE_COMPILER_AVAILABLE, sizeof compiler, &compiler, NULL);
    cl.clGetDeviceInfo(id, CL_DEVICE_ENDIAN_LITTLE, sizeof little, &little, NULL);
    char version[64];
    int major = 0, minor = 0;
    mobai_cl_device_text(id, CL_DEVICE_VERSION, version, sizeof version);
    if (!available) return "it is not available";
    if (!compiler) return "it has no compiler";
    if (!little) return "it is big-endian";
    if (sscanf(version, "OpenCL %d.%d", &major, &minor) != 2 || major * 10 + minor < 12)
        return "it is older than OpenCL 1.2";
    return NULL;
}

static void probe_devices(void) {
    const char *why = mobai_cl_load();
    if (why) {
        snprintf(probe_reason, sizeof probe_reason, "%s", why);
        return;
    }
    cl_platform_id platforms[MAX_PLATFORMS];
    cl_uint n_platforms = 0;
    if (cl.clGetPlatformIDs(MAX_PLATFORMS, platforms, &n_platforms) != CL_SUCCESS) n_platforms = 0;
    snprintf(probe_reason, sizeof probe_reason, "no OpenCL device was found on %u platforms", (unsigned)n_platforms);
    for (cl_uint p = 0; p < n_platforms && p < MAX_PLATFORMS; p++) {
        cl_device_id found[MAX_DEVICES];
        cl_uint n = 0;
        if (cl.clGetDeviceIDs(platforms[p], CL_DEVICE_TYPE_ALL, MAX_DEVICES, found, &n) != CL_SUCCESS) continue;
        for (cl_uint d = 0; d < n && d < MAX_DEVICES && n_devices < MAX_DEVICES; d++) {
            why = device_reject(found[d]);
            if (!why) {
                devices[n_devices++] = found[d];
                continue;
            }
            char name[96];
            mobai_cl_device_text(found[d], CL_DEVICE_NAME, name, sizeof name);
            snprintf(probe_reason, sizeof probe_reason, "OpenCL device %s cannot be used: %s", name, why);
        }
    }
}

static int32_t cl_probe(char *reason, size_t capacity) {
    pthread_once(&probe_once, probe_devices);
    if (capacity > 0) snprintf(reason, capacity, "%s", n_devices > 0 ? "" : probe_reason);
    return n_devices;
}

/* -------------------------------------------------------------------------------------------- properties -- */

/** Fills everything that follows from the device's id. */
static void fill_properties(mobai_device *d) {
    cl_device_type type = 0;
    cl.clGetDeviceInfo(d->id, CL_DEVICE_TYPE, sizeof type, &type, NULL);
    mobai_cl_device_text(d->id, CL_DEVICE_NAME, d->name, sizeof d->name);
    char version[64], driver[64];
    mobai_cl_device_text(d->id, CL_DEVICE_VERSION, version, sizeof version);
    mobai_cl_device_text(d->id, CL_DRIVER_VERSION, driver, sizeof driver);
    snprintf(d->driver, sizeof d->driver, "%.60s, driver %.50s", version, driver);
    d->memory_bytes = device_number(d->id, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(cl_ulong));
    d->max_alloc_bytes = device_number(d->id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof(cl_ulong));
    d->software = (type & CL_DEVICE_TYPE_GPU) == 0 || strstr(d->name, "llvmpipe") != NULL;
    cl_bool unified = CL_FALSE;
    cl.clGetDeviceInfo(d->id, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof unified, &unified, NULL);
    size_t workgroup = 0;
    cl.clGetDeviceInfo(d->id, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof workgroup, &workgroup, NULL);
    double units = (double)device_number(d->id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(cl_uint));
    double mhz = (double)device_number(d->id, CL_DEVICE_MAX_CLOCK_FREQUENCY, sizeof(cl_uint));
    mobai_caps *c = &d->caps;
    c->n_compute_units = (int32_t)units;
    c->subgroup_size = 1; /* OpenCL 1.2 has none */
    c->max_workgroup_size = workgroup < 1u << 20 ? (int32_t)workgroup : 1 << 20;
    c->local_memory_bytes = (size_t)device_number(d->id, CL_DEVICE_LOCAL_MEM_SIZE, sizeof(cl_ulong));
    c->memory_bytes = (size_t)d->memory_bytes;
    /* No query gives rates. A GPU's compute unit is taken to have 128 lanes of fused multiply-add beside a 16 times
     * faster matrix unit, a processor's 8 lanes; memory 1000 GB/s where it is the device's own, 50 where it is the
     * host's. */
    c->matrix_gflops = units * mhz * 1e-3 * 2 * (d->software ? 8.0 : 128.0) * (d->software ? 1.0 : 16.0);
    c->copy_gbytes = unified || d->software ? 50.0 : 1000.0;
    uint64_t limit = d->memory_bytes / 4;
    c->default_workspace_limit = (size_t)(limit < d->max_alloc_bytes ? limit : d->max_alloc_bytes);
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
    int32_t n = cl_probe(reason, sizeof reason);
    if (n == 0) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "%s", reason);
    if (index < 0 || index >= n)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "device is %d; OpenCL has %d devices here", (int)index, (int)n);
    return MOBA_OK;
}

static moba_status cl_describe(int32_t index, moba_device_description *out) {
    MOBAI_TRY(check_index(index));
    mobai_device d;
    memset(&d, 0, sizeof d);
    d.id = devices[index];
    fill_properties(&d);
    fill_description(&d, out);
    return MOBA_OK;
}

/* ---------------------------------------------------------------------------------------- open and close -- */

static void cl_close(mobai_device *d) {
    if (!d) return;
    for (size_t i = 0; d->kernels && i < mobai_n_simt_instances; i++)
        if (d->kernels[i]) cl.clReleaseKernel(d->kernels[i]);
    free(d->kernels);
    if (d->queue) cl.clReleaseCommandQueue(d->queue);
    if (d->context) cl.clReleaseContext(d->context);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static moba_status adopt(mobai_device *d, const moba_opencl_handles *native) {
    if (native->struct_size < sizeof *native)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT,
                          "moba_opencl_handles.struct_size is %zu; it must be at least %zu", native->struct_size,
                          sizeof *native);
    if (!native->device || !native->context)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "moba_opencl_handles.%s is NULL",
                          native->device ? "context" : "device");
    d->id = native->device;
    const char *why = device_reject(d->id);
    if (why) return mobai_fail(MOBA_ERROR_UNSUPPORTED, "the OpenCL device cannot be used: %s", why);
    cl_command_queue_properties properties = 0;
    if (native->queue) {
        cl_int code =
            cl.clGetCommandQueueInfo(native->queue, CL_QUEUE_PROPERTIES, sizeof properties, &properties, NULL);
        if (code != CL_SUCCESS) return mobai_cl_fail(code, "clGetCommandQueueInfo");
        if (properties & CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE)
            return mobai_fail(MOBA_ERROR_UNSUPPORTED, "moba_opencl_handles.queue is out of order; it must be in order");
    }
    cl_int code = cl.clRetainContext(native->context);
    if (code != CL_SUCCESS) return mobai_cl_fail(code, "clRetainContext");
    d->context = native->context;
    if (native->queue && (code = cl.clRetainCommandQueue(native->queue)) != CL_SUCCESS)
        return mobai_cl_fail(code, "clRetainCommandQueue");
    d->queue = native->queue;
    return MOBA_OK;
}

static moba_status fill_device(mobai_device *d, const moba_context_options *options) {
    if (options->native) {
        const char *why = mobai_cl_load();
        if (why) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "%s", why);
        MOBAI_TRY(adopt(d, options->native));
    } else {
        MOBAI_TRY(check_index(options->device));
        d->id = devices[options->device];
        cl_int code;
        d->context = cl.clCreateContext(NULL, 1, &d->id, NULL, NULL, &code);
        if (code != CL_SUCCESS) {
            d->context = NULL;
            return mobai_cl_fail(code, "clCreateContext");
        }
    }
    fill_properties(d);
    if (!d->queue) {
        moba_stream stream;
        MOBAI_TRY(mobai_cl_stream_create(d, &stream));
        d->queue = stream.native;
    }
    d->kernels = calloc(mobai_n_simt_instances, sizeof(cl_kernel));
    if (!d->kernels) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for %zu kernels", mobai_n_simt_instances);
    return MOBA_OK;
}

static moba_status cl_open(const moba_context_options *options, mobai_device **out) {
    mobai_device *d = calloc(1, sizeof *d);
    if (!d) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a device of %zu bytes", sizeof *d);
    pthread_mutex_init(&d->lock, NULL);
    moba_status status = fill_device(d, options);
    if (status != MOBA_OK) {
        cl_close(d);
        return status;
    }
    *out = d;
    return MOBA_OK;
}

static const mobai_caps *cl_caps(const mobai_device *d) { return &d->caps; }

/** GPUs before the CPU, behind what other backends see of them; software devices only when OpenCL is named. */
static int32_t cl_rank(int32_t index) {
    mobai_device d;
    if (check_index(index) != MOBA_OK) return 0;
    memset(&d, 0, sizeof d);
    d.id = devices[index];
    fill_properties(&d);
    return d.software ? 0 : 2;
}

/** The generated tier only. */
static const mobai_variant variants[] = {
#include "simt_rows.inc"
};

extern const mobai_backend mobai_backend_opencl;
const mobai_backend mobai_backend_opencl = {
    .name = "opencl",
    .address_handles = false,
    .probe = cl_probe,
    .describe = cl_describe,
    .open = cl_open,
    .close = cl_close,
    .caps = cl_caps,
    .device_info = fill_description,
    .buffer_create = mobai_cl_buffer_create,
    .buffer_destroy = mobai_cl_buffer_destroy,
    .buffer_write = mobai_cl_buffer_write,
    .buffer_read = mobai_cl_buffer_read,
    .buffer_fill = mobai_cl_buffer_fill,
    .buffer_copy = mobai_cl_buffer_copy,
    .stream_create = mobai_cl_stream_create,
    .stream_destroy = mobai_cl_stream_destroy,
    .stream_synchronize = mobai_cl_stream_synchronize,
    .event_create = mobai_cl_event_create,
    .event_destroy = mobai_cl_event_destroy,
    .event_record = mobai_cl_event_record,
    .event_elapsed = mobai_cl_event_elapsed,
    .prepare = mobai_cl_prepare,
    .launch = mobai_cl_launch,
    .run_end = mobai_cl_run_end,
    .rank = cl_rank,
    .variants = variants,
    .n_variants = sizeof variants / sizeof variants[0],
};
