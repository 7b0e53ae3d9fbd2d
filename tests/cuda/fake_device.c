/* SPDX-License-Identifier: Apache-2.0
 *
 * A CUDA device that can be opened and computes nothing: FAKE_CUDA_DEVICE="CAPABILITY SHARED", such as "80 166912", is
 * its compute capability and the shared memory a work-group may have. fake_cuda_log() tells what was asked of its
 * kernels: lines "allow KERNEL BYTES" and "launch KERNEL BYTES", bytes of shared memory beside the kernel's own.
 */
#define _POSIX_C_SOURCE 200809L /* posix_memalign */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_FOUND = 500 };
enum {
    MAX_THREADS = 1,
    CLOCK = 13,
    MULTIPROCESSORS = 16,
    MEMORY_CLOCK = 36,
    BUS = 37,
    MAJOR = 75,
    MINOR = 76,
    SHARED = 97
};

/** Called for each launch once fake_cuda_watch() has set it: the kernel, its grid and what it is given. */
typedef void (*watcher)(const char *kernel, const unsigned grid[3], void **arguments);
static watcher watch;
void fake_cuda_watch(watcher function);
void fake_cuda_watch(watcher function) { watch = function; }

static char calls[1 << 16];
const char *fake_cuda_log(void);
const char *fake_cuda_log(void) { return calls; }

static void note(const char *what, const char *kernel, unsigned bytes) {
    const size_t at = strlen(calls);
    snprintf(calls + at, sizeof calls - at, "%s %s %u\n", what, kernel, bytes);
}

static int capability(void) { return atoi(getenv("FAKE_CUDA_DEVICE")); }

#define CALL(name, ...)                                                                                                \
    int name(__VA_ARGS__);                                                                                             \
    int name(__VA_ARGS__)

CALL(cuDeviceGet, int *device, int index) {
    *device = index;
    return SUCCESS;
}
CALL(cuDeviceGetName, char *name, int capacity, int device) {
    snprintf(name, (size_t)capacity, "Fake GPU %d", device);
    return SUCCESS;
}
CALL(cuDeviceTotalMem_v2, size_t *bytes, int device) {
    (void)device;
    *bytes = (size_t)16 << 30;
    return SUCCESS;
}
CALL(cuDeviceGetAttribute, int *value, int which, int device) {
    const char *shared = strchr(getenv("FAKE_CUDA_DEVICE"), ' ');
    (void)device;
    *value = which == MAJOR             ? capability() / 10
             : which == MINOR           ? capability() % 10
             : which == SHARED          ? atoi(shared)
             : which == MULTIPROCESSORS ? 108
             : which == MAX_THREADS     ? 1024
             : which == CLOCK           ? 1410000
             : which == MEMORY_CLOCK    ? 1215000
             : which == BUS             ? 5120
                                        : 0;
    return SUCCESS;
}
CALL(cuDevicePrimaryCtxRetain, void **context, int device) {
    (void)device;
    *context = calls;
    return SUCCESS;
}
CALL(cuDevicePrimaryCtxRelease_v2, int device) {
    (void)device;
    return SUCCESS;
}
CALL(cuCtxPushCurrent_v2, void *context) {
    (void)context;
    return SUCCESS;
}
CALL(cuCtxPopCurrent_v2, void **context) {
    *context = NULL;
    return SUCCESS;
}
CALL(cuMemAlloc_v2, uint64_t *address, size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 256, bytes ? bytes : 1)) return 2;
    *address = (uintptr_t)p;
    return SUCCESS;
}
CALL(cuMemFree_v2, uint64_t address) {
    free((void *)(uintptr_t)address);
    return SUCCESS;
}
CALL(cuModuleLoadData, void **module, const void *image) {
    *module = calls;
    return image ? SUCCESS : NOT_FOUND;
}
CALL(cuModuleUnload, void *module) {
    (void)module;
    return SUCCESS;
}
/* A function is its name. */
CALL(cuModuleGetFunction, void **function, void *module, const char *name) {
    static char names[256][64];
    int i = 0;
    (void)module;
    while (i < 255 && names[i][0] && strcmp(names[i], name) != 0)
        i++;
    snprintf(names[i], sizeof names[i], "%s", name);
    *function = names[i];
    return SUCCESS;
}
CALL(cuFuncSetAttribute, void *function, int attribute, int value) {
    (void)attribute;
    note("allow", function, (unsigned)value);
    return SUCCESS;
}
CALL(cuLaunchKernel, void *function, unsigned x, unsigned y, unsigned z, unsigned lanes, unsigned ly, unsigned lz,
     unsigned shared, void *stream, void **arguments, void **more) {
    (void)lanes, (void)ly, (void)lz, (void)stream, (void)more;
    note("launch", function, shared);
    if (watch) watch(function, (const unsigned[3]){x, y, z}, arguments);
    return SUCCESS;
}
CALL(cuStreamIsCapturing, void *stream, int *state) {
    (void)stream;
    *state = 0;
    return SUCCESS;
}
