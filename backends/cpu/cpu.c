/* SPDX-License-Identifier: Apache-2.0
 *
 * The CPU backend: one device, the machine this process runs on. Streams are synchronous: a launch returns when its
 * stage is done.
 */
#define _GNU_SOURCE
#include "backends/cpu/cpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "backends/cpu/kernels/rate.h"

enum { BUFFER_ALIGNMENT = 256 };

struct mobai_device {
    mobai_cpu_pool *pool;
    mobai_caps caps;
};

/** A point in time; what moba_event.native points to. */
typedef struct cpu_event {
    struct timespec time;
    int recorded;
} cpu_event;

/* ------------------------------------------------------------------------------------------------ probing -- */

mobai_cap_set mobai_cpu_probe_caps(void) {
    mobai_cap_set set = 0;
#if defined(__x86_64__)
    unsigned int a, b, c = 0, d;
    __builtin_cpu_init();
    /* __builtin_cpu_supports() also asks the operating system whether it keeps the wide registers. */
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c) set |= MOBAI_CAP_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        set |= MOBAI_CAP_AVX512;
#if defined(MOBAI_CPU_TIER_3)
    if ((set & MOBAI_CAP_AVX512) && __builtin_cpu_supports("avx512bf16")) set |= MOBAI_CAP_AVX512BF16;
#endif
#endif
    return set;
}

static pthread_once_t rates_once = PTHREAD_ONCE_INIT;
static double rates[MOBAI_CPU_TIERS] = {16.0, 64.0, 128.0};

static void measure_rates(void) {
    rates[MOBAI_CPU_PLAIN] = mobai_cpu_rate_plain();
#if defined(MOBAI_CPU_TIER_2)
    const mobai_cap_set set = mobai_cpu_probe_caps();
    if ((set & MOBAI_CPU_NEEDS_AVX2) == MOBAI_CPU_NEEDS_AVX2) rates[MOBAI_CPU_AVX2] = mobai_cpu_rate_avx2();
    if ((set & MOBAI_CPU_NEEDS_AVX512) == MOBAI_CPU_NEEDS_AVX512) rates[MOBAI_CPU_AVX512] = mobai_cpu_rate_avx512();
#endif
    /* A measurement that another process disturbed must not change which tier is cheapest, and with it the bits. */
    for (int tier = 1; tier < MOBAI_CPU_TIERS; tier++)
        if (rates[tier] < 1.25 * rates[tier - 1]) rates[tier] = 1.25 * rates[tier - 1];
}

double mobai_cpu_tier_gflops(mobai_cpu_tier tier) {
    pthread_once(&rates_once, measure_rates);
    return rates[tier];
}

static void fill_caps(mobai_caps *caps, int32_t n_threads) {
    memset(caps, 0, sizeof *caps);
    caps->set = mobai_cpu_probe_caps();
    caps->n_compute_units = n_threads;
    caps->subgroup_size = 1;
    caps->max_workgroup_size = 1;
    long l2 = -1;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    caps->local_memory_bytes = l2 > 0 ? (size_t)l2 : (size_t)1 << 20;
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) caps->memory_bytes = (size_t)pages * (size_t)page;
    mobai_cpu_tier tier = MOBAI_CPU_PLAIN;
    if ((caps->set & MOBAI_CPU_NEEDS_AVX2) == MOBAI_CPU_NEEDS_AVX2) tier = MOBAI_CPU_AVX2;
    if ((caps->set & MOBAI_CPU_NEEDS_AVX512) == MOBAI_CPU_NEEDS_AVX512) tier = MOBAI_CPU_AVX512;
    caps->matrix_gflops = mobai_cpu_tier_gflops(tier) * n_threads;
    /* A core draws about 10 GB/s, and eight of them what common memory gives. */
    caps->copy_gbytes = 10.0 * (n_threads < 8 ? n_threads : 8);
    caps->default_workspace_limit = caps->memory_bytes / 4;
}

static void read_model_name(char *name, size_t capacity) {
    snprintf(name, capacity, "CPU");
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (f == NULL) return;
    char line[256];
    while (fgets(line, sizeof line, f) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        colon++;
        while (*colon == ' ')
            colon++;
        snprintf(name, capacity, "%.*s", (int)strcspn(colon, "\n"), colon);
        break;
    }
    fclose(f);
}

static void fill_description(const mobai_caps *caps, moba_device_description *out) {
    read_model_name(out->name, sizeof out->name);
    snprintf(out->driver, sizeof out->driver, "libmoba %s, %d threads", moba_version(), (int)caps->n_compute_units);
    mobai_caps_format(caps->set, out->capabilities, sizeof out->capabilities);
    out->memory_bytes = caps->memory_bytes;
    out->n_compute_units = caps->n_compute_units;
    out->is_software = 0;
}

static int32_t cpu_probe(char *reason, size_t capacity) {
    if (capacity > 0) reason[0] = '\0';
    return 1;
}

static moba_status cpu_describe(int32_t index, moba_device_description *out) {
    if (index != 0)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "device is %d; backend cpu has device 0 only", (int)index);
    mobai_caps caps;
    fill_caps(&caps, mobai_cpu_default_threads());
    fill_description(&caps, out);
    return MOBA_OK;
}

/* ------------------------------------------------------------------------------------------------- device -- */

static moba_status cpu_open(const moba_context_options *options, mobai_device **out) {
    if (options->device != 0)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "device is %d; backend cpu has device 0 only",
                          (int)options->device);
    if (options->native != NULL)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "native handles are given; backend cpu has none to adopt");
    mobai_device *device = calloc(1, sizeof *device);
    if (device == NULL)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a device of %zu bytes", sizeof *device);
    const int32_t n_threads = options->n_threads > 0 ? options->n_threads : mobai_cpu_default_threads();
    const moba_status status = mobai_cpu_pool_create(n_threads, &device->pool);
    if (status != MOBA_OK) {
        free(device);
        return status;
    }
    fill_caps(&device->caps, n_threads);
    *out = device;
    return MOBA_OK;
}

static void cpu_close(mobai_device *device) {
    if (device == NULL) return;
    mobai_cpu_pool_destroy(device->pool);
    free(device);
}

static const mobai_caps *cpu_caps(const mobai_device *device) { return &device->caps; }

static void cpu_device_info(const mobai_device *device, moba_device_description *out) {
    fill_description(&device->caps, out);
}

/* ------------------------------------------------------------------------------------------------- memory -- */

static void *address(moba_buffer buffer) { return (void *)(uintptr_t)(buffer.handle + buffer.offset); }

static moba_status cpu_buffer_create(mobai_device *device, size_t bytes, moba_buffer *out) {
    void *memory = NULL;
    if (posix_memalign(&memory, BUFFER_ALIGNMENT, bytes) != 0 || memory == NULL)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a buffer of %zu bytes; the machine has %zu", bytes,
                          device->caps.memory_bytes);
    out->handle = (uint64_t)(uintptr_t)memory;
    out->offset = 0;
    return MOBA_OK;
}

static void cpu_buffer_destroy(mobai_device *device, moba_buffer buffer) {
    (void)device;
    free((void *)(uintptr_t)buffer.handle);
}

static moba_status cpu_buffer_write(mobai_device *device, moba_stream stream, moba_buffer buffer, const void *data,
                                    size_t bytes) {
    (void)device, (void)stream;
    memcpy(address(buffer), data, bytes);
    return MOBA_OK;
}

static moba_status cpu_buffer_read(mobai_device *device, moba_stream stream, moba_buffer buffer, void *data,
                                   size_t bytes) {
    (void)device, (void)stream;
    memcpy(data, address(buffer), bytes);
    return MOBA_OK;
}

static moba_status cpu_buffer_fill(mobai_device *device, moba_stream stream, moba_buffer buffer, uint8_t value,
                                   size_t bytes) {
    (void)device, (void)stream;
    memset(address(buffer), value, bytes);
    return MOBA_OK;
}

static moba_status cpu_buffer_copy(mobai_device *device, moba_stream stream, moba_buffer from, moba_buffer to,
                                   size_t bytes) {
    (void)device, (void)stream;
    memcpy(address(to), address(from), bytes);
    return MOBA_OK;
}

/* --------------------------------------------------------------------------------------- streams, events -- */

static moba_status cpu_stream_create(mobai_device *device, moba_stream *out) {
    (void)device;
    out->native = NULL;
    return MOBA_OK;
}

static void cpu_stream_destroy(mobai_device *device, moba_stream stream) { (void)device, (void)stream; }

static moba_status cpu_stream_synchronize(mobai_device *device, moba_stream stream) {
    (void)device, (void)stream;
    return MOBA_OK;
}

static moba_status cpu_event_create(mobai_device *device, moba_event *out) {
    (void)device;
    cpu_event *event = calloc(1, sizeof *event);
    if (event == NULL)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for an event of %zu bytes", sizeof *event);
    out->native = event;
    return MOBA_OK;
}

static void cpu_event_destroy(mobai_device *device, moba_event event) {
    (void)device;
    free(event.native);
}

static moba_status cpu_event_record(mobai_device *device, moba_stream stream, moba_event event) {
    (void)device, (void)stream;
    cpu_event *e = event.native;
    if (e == NULL) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "event is none");
    clock_gettime(CLOCK_MONOTONIC, &e->time);
    e->recorded = 1;
    return MOBA_OK;
}

static moba_status cpu_event_elapsed(mobai_device *device, moba_event begin, moba_event end, double *ms) {
    (void)device;
    const cpu_event *b = begin.native, *e = end.native;
    if (b == NULL || e == NULL || !b->recorded || !e->recorded)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "an event of the pair was never recorded");
    *ms = 1e3 * (double)(e->time.tv_sec - b->time.tv_sec) + 1e-6 * (double)(e->time.tv_nsec - b->time.tv_nsec);
    return MOBA_OK;
}

/* ------------------------------------------------------------------------------------------------- launch -- */

/** The CPU has the default stream only, so any other is some other backend's. */
static moba_status cpu_run_begin(mobai_device *device, moba_stream stream) {
    (void)device;
    if (stream.native == NULL) return MOBA_OK;
    return mobai_fail(MOBA_ERROR_WRONG_CONTEXT, "stream %p is of another context; the CPU's only stream is NULL",
                      stream.native);
}

static moba_status cpu_launch(mobai_device *device, moba_stream stream, const mobai_variant *variant,
                              const mobai_stage_args *args) {
    (void)stream;
    const mobai_cpu_code *code = variant->code;
    return code->run(args, device->pool);
}

static int32_t cpu_rank(int32_t device_index) {
    (void)device_index;
    return 1; /* behind every GPU */
}

extern const mobai_backend mobai_backend_cpu;
const mobai_backend mobai_backend_cpu = {
    .name = "cpu",
    .address_handles = true,
    .probe = cpu_probe,
    .describe = cpu_describe,
    .open = cpu_open,
    .close = cpu_close,
    .caps = cpu_caps,
    .device_info = cpu_device_info,
    .buffer_create = cpu_buffer_create,
    .buffer_destroy = cpu_buffer_destroy,
    .buffer_write = cpu_buffer_write,
    .buffer_read = cpu_buffer_read,
    .buffer_fill = cpu_buffer_fill,
    .buffer_copy = cpu_buffer_copy,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_synchronize = cpu_stream_synchronize,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .event_record = cpu_event_record,
    .event_elapsed = cpu_event_elapsed,
    .run_begin = cpu_run_begin,
    .launch = cpu_launch,
    .rank = cpu_rank,
    .variants = mobai_cpu_variants,
    .n_variants = MOBAI_CPU_N_VARIANTS,
};
