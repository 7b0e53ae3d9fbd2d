/* SPDX-License-Identifier: Apache-2.0
 *
 * Loading a driver's symbols, and the memory, stream and event slots over a driver's table.
 */
#include <dlfcn.h>
#include <string.h>

#include "backends/driver/driver.h"
#include "core/status.h"

const char *mobai_driver_lookup(void *library, const mobai_driver_symbol *symbols, size_t n) {
    const char *missing = NULL;
    for (size_t i = 0; i < n; i++) {
        void *address = dlsym(library, symbols[i].name);
        if (!address && !missing) missing = symbols[i].name;
        memcpy(symbols[i].member, &address, sizeof address);
    }
    return missing;
}

moba_status mobai_driver_device_begin(mobai_driver_device *base, const mobai_driver *driver) {
    if (mobai_n_simt_instances > MOBAI_DRIVER_MAX_SIMT_INSTANCES)
        return mobai_fail(MOBA_ERROR_INTERNAL, "%zu generated kernels; a device has room for %d",
                          mobai_n_simt_instances, MOBAI_DRIVER_MAX_SIMT_INSTANCES);
    if (pthread_mutex_init(&base->lock, NULL) != 0) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no lock for a device");
    base->driver = driver;
    return MOBA_OK;
}

void mobai_driver_device_end(mobai_driver_device *base) { pthread_mutex_destroy(&base->lock); }

void mobai_driver_complete_caps(mobai_caps *caps) {
    if (!(caps->copy_gbytes > 0)) caps->copy_gbytes = 500.0;
    if (!(caps->matrix_gflops > 0)) caps->matrix_gflops = 50e3;
    caps->default_workspace_limit = (size_t)1126 << 20;
    if (caps->default_workspace_limit > caps->memory_bytes / 8) caps->default_workspace_limit = caps->memory_bytes / 8;
}

/** Every mobai_device of this layer begins with its mobai_driver_device. */
static const mobai_driver *driver_of(const mobai_device *device) {
    return ((const mobai_driver_device *)(const void *)device)->driver;
}

static uint64_t address(moba_buffer b) { return b.handle + b.offset; }

/* Evaluates a call of the driver `d` with the device current. */
#define WITHIN(device, call, what)                                                                                     \
    do {                                                                                                               \
        MOBAI_TRY(d->enter(device));                                                                                   \
        int within_result = (call);                                                                                    \
        d->leave();                                                                                                    \
        if (within_result != MOBAI_DRIVER_SUCCESS) return d->fail(within_result, what);                                \
    } while (0)

moba_status mobai_driver_buffer_create(mobai_device *device, size_t bytes, moba_buffer *out) {
    const mobai_driver *d = driver_of(device);
    MOBAI_TRY(d->enter(device));
    uint64_t p = 0;
    int result = d->memory_alloc(&p, bytes);
    size_t available = 0, total = 0;
    if (result == MOBAI_DRIVER_OUT_OF_MEMORY) d->memory_info(&available, &total);
    d->leave();
    if (result == MOBAI_DRIVER_OUT_OF_MEMORY)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "%zu bytes of device memory were asked for; %zu of %zu are free",
                          bytes, available, total);
    if (result != MOBAI_DRIVER_SUCCESS) return d->fail(result, "allocate device memory");
    *out = (moba_buffer){p, 0};
    return MOBA_OK;
}

void mobai_driver_buffer_destroy(mobai_device *device, moba_buffer buffer) {
    const mobai_driver *d = driver_of(device);
    if (d->enter(device) != MOBA_OK) return;
    d->memory_free(buffer.handle);
    d->leave();
}

moba_status mobai_driver_buffer_write(mobai_device *device, moba_stream stream, moba_buffer buffer, const void *data,
                                      size_t bytes) {
    const mobai_driver *d = driver_of(device);
    /* pageable memory is staged before the call returns, pinned memory is not: wait, so that `data` is free again */
    WITHIN(device, d->copy_to_device(address(buffer), data, bytes, stream.native), "copy to the device");
    WITHIN(device, d->stream_synchronize(stream.native), "copy to the device");
    return MOBA_OK;
}

moba_status mobai_driver_buffer_read(mobai_device *device, moba_stream stream, moba_buffer buffer, void *data,
                                     size_t bytes) {
    const mobai_driver *d = driver_of(device);
    WITHIN(device, d->copy_to_host(data, address(buffer), bytes, stream.native), "copy to the host");
    WITHIN(device, d->stream_synchronize(stream.native), "copy to the host");
    return MOBA_OK;
}

moba_status mobai_driver_buffer_fill(mobai_device *device, moba_stream stream, moba_buffer buffer, uint8_t value,
                                     size_t bytes) {
    const mobai_driver *d = driver_of(device);
    WITHIN(device, d->fill8(address(buffer), value, bytes, stream.native), "fill device memory");
    return MOBA_OK;
}

moba_status mobai_driver_buffer_copy(mobai_device *device, moba_stream stream, moba_buffer from, moba_buffer to,
                                     size_t bytes) {
    const mobai_driver *d = driver_of(device);
    WITHIN(device, d->copy_inside(address(to), address(from), bytes, stream.native), "copy inside the device");
    return MOBA_OK;
}

moba_status mobai_driver_stream_create(mobai_device *device, moba_stream *out) {
    const mobai_driver *d = driver_of(device);
    void *stream = NULL;
    WITHIN(device, d->stream_create(&stream, MOBAI_DRIVER_STREAM_NON_BLOCKING), "create a stream");
    out->native = stream;
    return MOBA_OK;
}

void mobai_driver_stream_destroy(mobai_device *device, moba_stream stream) {
    const mobai_driver *d = driver_of(device);
    if (!stream.native || d->enter(device) != MOBA_OK) return;
    d->stream_destroy(stream.native);
    d->leave();
}

moba_status mobai_driver_stream_synchronize(mobai_device *device, moba_stream stream) {
    const mobai_driver *d = driver_of(device);
    WITHIN(device, d->stream_synchronize(stream.native), "finish the stream's work");
    return MOBA_OK;
}

bool mobai_driver_stream_capturing(mobai_device *device, moba_stream stream) {
    const mobai_driver *d = driver_of(device);
    int state = MOBAI_DRIVER_NOT_CAPTURING;
    if (d->enter(device) != MOBA_OK) return false;
    int result = d->stream_capture(stream.native, &state);
    d->leave();
    return result == MOBAI_DRIVER_SUCCESS && state != MOBAI_DRIVER_NOT_CAPTURING;
}

moba_status mobai_driver_event_create(mobai_device *device, moba_event *out) {
    const mobai_driver *d = driver_of(device);
    void *event = NULL;
    WITHIN(device, d->event_create(&event, 0), "create an event");
    out->native = event;
    return MOBA_OK;
}

void mobai_driver_event_destroy(mobai_device *device, moba_event event) {
    const mobai_driver *d = driver_of(device);
    if (!event.native || d->enter(device) != MOBA_OK) return;
    d->event_destroy(event.native);
    d->leave();
}

moba_status mobai_driver_event_record(mobai_device *device, moba_stream stream, moba_event event) {
    const mobai_driver *d = driver_of(device);
    WITHIN(device, d->event_record(event.native, stream.native), "record an event");
    return MOBA_OK;
}

moba_status mobai_driver_event_elapsed(mobai_device *device, moba_event begin, moba_event end, double *ms) {
    const mobai_driver *d = driver_of(device);
    float elapsed = 0.0f;
    WITHIN(device, d->event_synchronize(begin.native), "wait for an event");
    WITHIN(device, d->event_synchronize(end.native), "wait for an event");
    WITHIN(device, d->event_elapsed(&elapsed, begin.native, end.native), "read the time of events");
    *ms = (double)elapsed;
    return MOBA_OK;
}
