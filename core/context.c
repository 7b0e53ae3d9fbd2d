/* SPDX-License-Identifier: Apache-2.0
 *
 * Contexts: which backend and device, and the thin entry points for buffers, streams and events.
 */
#include "core/context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/env.h"
#include "core/status.h"

moba_status mobai_copy_struct(void *to, size_t to_size, const void *from, const char *name) {
    if (!from) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "%s is NULL", name);
    size_t size;
    memcpy(&size, from, sizeof size);
    if (size < sizeof size)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT,
                          "%s.struct_size is %zu; set it to sizeof, or use the _INIT macro", name, size);
    const unsigned char *bytes = from;
    for (size_t i = to_size; i < size; i++)
        if (bytes[i] != 0)
            return mobai_fail(
                MOBA_ERROR_INVALID_ARGUMENT,
                "%s.struct_size is %zu and byte %zu is set, but libmoba %s knows %zu bytes: the caller was "
                "built for a newer version",
                name, size, i, moba_version(), to_size);
    memset(to, 0, to_size);
    memcpy(to, from, size < to_size ? size : to_size);
    memcpy(to, &to_size, sizeof to_size);
    return MOBA_OK;
}

/** Fills the caller's *out (whose struct_size is set) from `full`. */
static moba_status give_struct(void *out, const void *full, size_t full_size, const char *name) {
    if (!out) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "%s is NULL", name);
    size_t size;
    memcpy(&size, out, sizeof size);
    if (size < sizeof size)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "%s->struct_size is %zu; set it to sizeof", name, size);
    memcpy(out, full, size < full_size ? size : full_size);
    memcpy(out, &size, sizeof size);
    return MOBA_OK;
}

/* --------------------------------------------------------------------------------------------- backends -- */

int32_t moba_backend_count(void) { return (int32_t)mobai_n_backends; }

static moba_status check_backend_index(int32_t index) {
    if (index < 0 || (size_t)index >= mobai_n_backends)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "backend index is %d; it must be 0..%zu", index,
                          mobai_n_backends - 1);
    return MOBA_OK;
}

moba_status moba_backend_info(int32_t index, moba_backend_description *out) {
    MOBAI_TRY(check_backend_index(index));
    const mobai_backend_entry *entry = &mobai_backends[index];
    moba_backend_description full = MOBA_BACKEND_DESCRIPTION_INIT;
    full.name = entry->name;
    if (entry->backend) {
        full.built = 1;
        full.n_devices = entry->backend->probe(full.reason, sizeof full.reason);
        full.usable = full.n_devices > 0;
        if (full.usable) full.reason[0] = '\0';
    } else {
        snprintf(full.reason, sizeof full.reason, "%s", entry->not_built);
    }
    return give_struct(out, &full, sizeof full, "moba_backend_description");
}

moba_status moba_device_info(int32_t index, int32_t device, moba_device_description *out) {
    MOBAI_TRY(check_backend_index(index));
    const mobai_backend_entry *entry = &mobai_backends[index];
    if (!entry->backend)
        return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "backend %s: %s", entry->name, entry->not_built);
    char reason[256];
    int32_t n = entry->backend->probe(reason, sizeof reason);
    if (device < 0 || device >= n)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "device is %d; backend %s has %d", device, entry->name, n);
    moba_device_description full = MOBA_DEVICE_DESCRIPTION_INIT;
    MOBAI_TRY(entry->backend->describe(device, &full));
    return give_struct(out, &full, sizeof full, "moba_device_description");
}

/* --------------------------------------------------------------------------------------------- creation -- */

static moba_status read_environment(moba_context *context) {
    const char *text = mobai_env_get(MOBAI_ENV_CAPS_MASK);
    char bad[160];
    if (text) {
        mobai_cap_set hidden;
        if (!mobai_env_parse_caps_mask(text, &hidden, bad, sizeof bad)) {
            char names[256];
            mobai_caps_format(~(mobai_cap_set)0, names, sizeof names);
            return mobai_fail(MOBA_ERROR_BAD_ENVIRONMENT, "MOBA_CAPS_MASK: \"%s\" is not -NAME with NAME one of: %s",
                              bad, names);
        }
        context->caps.set &= ~hidden;
    }
    text = mobai_env_get(MOBAI_ENV_VALIDATE);
    if (text && !mobai_env_parse_flag(text, &context->validate))
        return mobai_fail(MOBA_ERROR_BAD_ENVIRONMENT, "MOBA_VALIDATE is \"%s\"; it must be 0 or 1", text);
    text = mobai_env_get(MOBAI_ENV_KERNEL);
    if (text) {
        if (!mobai_env_check_kernel(text, bad, sizeof bad))
            return mobai_fail(MOBA_ERROR_BAD_ENVIRONMENT, "MOBA_KERNEL: \"%s\" is not STAGE=PATTERN with a known stage",
                              bad);
        size_t bytes = strlen(text) + 1;
        context->kernel = malloc(bytes);
        if (!context->kernel) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for %zu bytes", bytes);
        memcpy(context->kernel, text, bytes);
    }
    return MOBA_OK;
}

/** The device index to open, or -1 with a reason when the backend has none. */
static moba_status resolve_device(const mobai_backend *backend, int32_t asked, int32_t *out) {
    char reason[256] = "";
    int32_t n = backend->probe(reason, sizeof reason);
    if (n <= 0) return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "%s", reason[0] ? reason : "no device");
    if (asked < 0) {
        const char *text = mobai_env_get(MOBAI_ENV_DEVICE);
        if (text && !mobai_env_parse_device(text, &asked))
            return mobai_fail(MOBA_ERROR_BAD_ENVIRONMENT, "MOBA_DEVICE is \"%s\"; it must be a device index 0..1023",
                              text);
    }
    if (asked >= n)
        return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "device %d was asked for, but there are %d", asked, n);
    if (asked < 0) {
        asked = 0;
        for (int32_t i = 1; i < n; i++)
            if (backend->rank(i) > backend->rank(asked)) asked = i;
    }
    *out = asked;
    return MOBA_OK;
}

moba_status mobai_context_open(const mobai_backend *backend, const moba_context_options *options, moba_context **out) {
    moba_context_options resolved = *options;
    if (!resolved.native) MOBAI_TRY(resolve_device(backend, options->device, &resolved.device));
    moba_context *context = calloc(1, sizeof *context);
    if (!context) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a context of %zu bytes", sizeof *context);
    context->backend = backend;
    moba_status status = backend->open(&resolved, &context->device);
    if (status == MOBA_OK) {
        context->caps = *backend->caps(context->device);
        status = read_environment(context);
        if (status != MOBA_OK) backend->close(context->device);
    }
    if (status != MOBA_OK) {
        free(context->kernel);
        free(context);
        return status;
    }
    *out = context;
    return MOBA_OK;
}

static const mobai_backend_entry *find_entry(const char *name) {
    for (size_t i = 0; i < mobai_n_backends; i++)
        if (strcmp(name, mobai_backends[i].name) == 0) return &mobai_backends[i];
    return NULL;
}

static moba_status check_names(const char *list) {
    for (const char *rest = list; rest;) {
        char name[64];
        rest = mobai_env_next_item(rest, name, sizeof name);
        if (!find_entry(name)) {
            char known[256] = "";
            for (size_t i = 0, used = 0; i < mobai_n_backends && used < sizeof known; i++)
                used +=
                    (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", mobai_backends[i].name);
            return mobai_fail(MOBA_ERROR_UNKNOWN_BACKEND, "backend \"%s\" is unknown; known are %s", name, known);
        }
    }
    return MOBA_OK;
}

/** Tries one entry; on failure appends "name: reason" to `reasons`. */
static moba_status try_entry(const mobai_backend_entry *entry, const moba_context_options *options, moba_context **out,
                             char *reasons, size_t capacity) {
    moba_status status;
    char why[1024];
    if (entry->backend) {
        status = mobai_context_open(entry->backend, options, out);
        if (status == MOBA_OK) {
            mobai_log(MOBA_LOG_DISPATCH, "backend %s taken", entry->name);
            return MOBA_OK;
        }
        snprintf(why, sizeof why, "%s", moba_last_error());
    } else {
        status = MOBA_ERROR_BACKEND_UNAVAILABLE;
        snprintf(why, sizeof why, "%s", entry->not_built);
    }
    mobai_log(MOBA_LOG_DISPATCH, "backend %s skipped: %s", entry->name, why);
    size_t used = strlen(reasons);
    snprintf(reasons + used, capacity - used, "%s%s: %s", used ? "; " : "", entry->name, why);
    return status;
}

/** Only "cannot be used here" moves on to the next backend; a bad argument or variable is the caller's to know. */
static bool may_skip(moba_status status) {
    return status == MOBA_ERROR_BACKEND_UNAVAILABLE || status == MOBA_ERROR_UNSUPPORTED ||
           status == MOBA_ERROR_DEVICE_LOST;
}

static moba_status create_named(const char *list, const moba_context_options *options, moba_context **out) {
    MOBAI_TRY(check_names(list));
    if (options->native && strchr(list, ','))
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "native handles need one backend name; backend is \"%s\"", list);
    char reasons[1536] = "";
    for (const char *rest = list; rest;) {
        char name[64];
        rest = mobai_env_next_item(rest, name, sizeof name);
        moba_status status = try_entry(find_entry(name), options, out, reasons, sizeof reasons);
        if (status == MOBA_OK || !may_skip(status)) return status;
    }
    return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "no usable backend in \"%s\": %s", list, reasons);
}

static moba_status create_best(const moba_context_options *options, moba_context **out) {
    const mobai_backend_entry *order[16];
    int32_t ranks[16];
    size_t n = 0;
    for (size_t i = 0; i < mobai_n_backends && n < 16; i++) {
        const mobai_backend *backend = mobai_backends[i].backend;
        if (!backend) continue;
        char reason[256];
        int32_t n_devices = backend->probe(reason, sizeof reason), best = 0;
        for (int32_t d = 0; d < n_devices; d++)
            if (backend->rank(d) > best) best = backend->rank(d);
        if (best == 0) {
            mobai_log(MOBA_LOG_DISPATCH, "backend %s skipped: %s", mobai_backends[i].name,
                      n_devices > 0 ? "only software devices, used when named" : reason);
            continue;
        }
        size_t at = n++;
        for (; at > 0 && ranks[at - 1] < best; at--) {
            order[at] = order[at - 1];
            ranks[at] = ranks[at - 1];
        }
        order[at] = &mobai_backends[i];
        ranks[at] = best;
    }
    char reasons[1536] = "";
    for (size_t i = 0; i < n; i++) {
        moba_status status = try_entry(order[i], options, out, reasons, sizeof reasons);
        if (status == MOBA_OK || !may_skip(status)) return status;
    }
    return mobai_fail(MOBA_ERROR_BACKEND_UNAVAILABLE, "no usable backend: %s", reasons);
}

moba_status moba_context_create(const moba_context_options *options, moba_context **out) {
    if (!out) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    moba_context_options full = MOBA_CONTEXT_OPTIONS_INIT;
    if (options) MOBAI_TRY(mobai_copy_struct(&full, sizeof full, options, "moba_context_options"));
    if (full.device < -1 || full.device > 1023)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "device is %d; it must be -1 (best) or 0..1023", full.device);
    if (full.n_threads < 0 || full.n_threads > 1024)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "n_threads is %d; it must be 0 (all) or 1..1024",
                          full.n_threads);
    const char *verbose = mobai_env_get(MOBAI_ENV_VERBOSE);
    moba_log_level level;
    if (verbose && !mobai_env_parse_level(verbose, &level))
        return mobai_fail(MOBA_ERROR_BAD_ENVIRONMENT,
                          "MOBA_VERBOSE is \"%s\"; it must be none, error, dispatch, plan, run or all", verbose);
    const char *list = full.backend ? full.backend : mobai_env_get(MOBAI_ENV_BACKEND);
    if (full.native && !full.backend)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "native handles are given, but backend is NULL");
    return list ? create_named(list, &full, out) : create_best(&full, out);
}

void moba_context_destroy(moba_context *context) {
    if (!context) return;
    context->backend->close(context->device);
    free(context->kernel);
    free(context);
}

const char *moba_context_backend(const moba_context *context) { return context ? context->backend->name : ""; }

#define MOBAI_NEED(pointer)                                                                                            \
    do {                                                                                                               \
        if (!(pointer)) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, #pointer " is NULL");                           \
    } while (0)

moba_status moba_context_device(const moba_context *context, moba_device_description *out) {
    MOBAI_NEED(context);
    moba_device_description full = MOBA_DEVICE_DESCRIPTION_INIT;
    context->backend->device_info(context->device, &full);
    mobai_caps_format(context->caps.set, full.capabilities, sizeof full.capabilities);
    return give_struct(out, &full, sizeof full, "moba_device_description");
}

/* ----------------------------------------------------------------------------- buffers, streams, events -- */

moba_status moba_buffer_create(moba_context *context, size_t bytes, moba_buffer *out) {
    MOBAI_NEED(context);
    MOBAI_NEED(out);
    *out = (moba_buffer)MOBA_BUFFER_NULL;
    if (bytes == 0) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "bytes is 0; a buffer needs at least 1");
    return context->backend->buffer_create(context->device, bytes, out);
}

void moba_buffer_destroy(moba_context *context, moba_buffer buffer) {
    if (context && buffer.handle) context->backend->buffer_destroy(context->device, buffer);
}

moba_status moba_buffer_write(moba_context *context, moba_stream stream, moba_buffer buffer, const void *data,
                              size_t bytes) {
    MOBAI_NEED(context);
    if (bytes == 0) return MOBA_OK;
    MOBAI_NEED(data);
    MOBAI_NEED(buffer.handle);
    return context->backend->buffer_write(context->device, stream, buffer, data, bytes);
}

moba_status moba_buffer_read(moba_context *context, moba_stream stream, moba_buffer buffer, void *data, size_t bytes) {
    MOBAI_NEED(context);
    if (bytes == 0) return MOBA_OK;
    MOBAI_NEED(data);
    MOBAI_NEED(buffer.handle);
    return context->backend->buffer_read(context->device, stream, buffer, data, bytes);
}

moba_status moba_buffer_fill(moba_context *context, moba_stream stream, moba_buffer buffer, uint8_t value,
                             size_t bytes) {
    MOBAI_NEED(context);
    if (bytes == 0) return MOBA_OK;
    MOBAI_NEED(buffer.handle);
    return context->backend->buffer_fill(context->device, stream, buffer, value, bytes);
}

moba_status moba_stream_create(moba_context *context, moba_stream *out) {
    MOBAI_NEED(context);
    MOBAI_NEED(out);
    out->native = NULL;
    return context->backend->stream_create(context->device, out);
}

void moba_stream_destroy(moba_context *context, moba_stream stream) {
    if (context && stream.native) context->backend->stream_destroy(context->device, stream);
}

moba_status moba_stream_synchronize(moba_context *context, moba_stream stream) {
    MOBAI_NEED(context);
    return context->backend->stream_synchronize(context->device, stream);
}

moba_status moba_event_create(moba_context *context, moba_event *out) {
    MOBAI_NEED(context);
    MOBAI_NEED(out);
    out->native = NULL;
    return context->backend->event_create(context->device, out);
}

void moba_event_destroy(moba_context *context, moba_event event) {
    if (context && event.native) context->backend->event_destroy(context->device, event);
}

moba_status moba_event_record(moba_context *context, moba_stream stream, moba_event event) {
    MOBAI_NEED(context);
    MOBAI_NEED(event.native);
    return context->backend->event_record(context->device, stream, event);
}

moba_status moba_event_elapsed(moba_context *context, moba_event begin, moba_event end, double *ms) {
    MOBAI_NEED(context);
    MOBAI_NEED(begin.native);
    MOBAI_NEED(end.native);
    MOBAI_NEED(ms);
    return context->backend->event_elapsed(context->device, begin, end, ms);
}
