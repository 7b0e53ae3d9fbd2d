/* SPDX-License-Identifier: Apache-2.0
 *
 * Two alike CUDA devices that can be opened and compute nothing: FAKE_CUDA_DEVICE="CAPABILITY SHARED", such as
 * "80 166912", is their compute capability and the shared memory a work-group may have. fake_cuda_log() tells what was
 * asked of their kernels: lines "allow KERNEL BYTES" and "launch KERNEL BYTES", bytes of shared memory beside the
 * kernel's own. A stream is the address of a pointer to its context, NULL for a destroyed one.
 */
#define _POSIX_C_SOURCE 200809L /* posix_memalign */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, INVALID_DEVICE = 101 };
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

/* Calls of each symbol, and the result that the next ones of a symbol have: fake_cuda_fail(). */
typedef struct symbol_state {
    const char *name;
    int calls, result, times;
} symbol_state;
static symbol_state symbols[64];

static symbol_state *state_of(const char *name) {
    int i = 0;
    while (i < 63 && symbols[i].name && strcmp(symbols[i].name, name) != 0)
        i++;
    symbols[i].name = name;
    return &symbols[i];
}

/** Lets the next `times` calls of `name`, a string that stays, return `result`. */
void fake_cuda_fail(const char *name, int result, int times);
void fake_cuda_fail(const char *name, int result, int times) {
    state_of(name)->result = result;
    state_of(name)->times = times;
}

/** Calls so far, of all symbols but those that make a context current, launch, or clear memory in a stream. */
int fake_cuda_other_calls(void);
int fake_cuda_other_calls(void) {
    static const char *const of_a_run[] = {"cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuStreamGetCtx",
                                           "cuLaunchKernel", "cuMemsetD8Async"};
    int n = 0;
    for (int i = 0; i < 64 && symbols[i].name; i++)
        n += symbols[i].calls;
    for (int i = 0; i < 5; i++)
        n -= state_of(of_a_run[i])->calls;
    return n;
}

static int enter(const char *name) {
    symbol_state *s = state_of(name);
    s->calls++;
    return s->times > 0 && s->times-- > 0 ? s->result : SUCCESS;
}

static char contexts[2];  /* primary ones, by device */
static void *current[64]; /* those made current, the last one on top */
static int n_current;

static int capability(void) { return atoi(getenv("FAKE_CUDA_DEVICE")); }

#define CALL(name, ...)                                                                                                \
    int name(__VA_ARGS__);                                                                                             \
    int name(__VA_ARGS__)
#define BEGIN                                                                                                          \
    do {                                                                                                               \
        const int forced = enter(__func__);                                                                            \
        if (forced != SUCCESS) return forced;                                                                          \
    } while (0)

CALL(cuDeviceGet, int *device, int index) {
    BEGIN;
    *device = index;
    return index >= 0 && index < 2 ? SUCCESS : INVALID_DEVICE;
}
CALL(cuDeviceGetName, char *name, int capacity, int device) {
    BEGIN;
    snprintf(name, (size_t)capacity, "Fake GPU %d", device);
    return SUCCESS;
}
CALL(cuDeviceTotalMem_v2, size_t *bytes, int device) {
    BEGIN;
    (void)device;
    *bytes = (size_t)16 << 30;
    return SUCCESS;
}
CALL(cuDeviceGetAttribute, int *value, int which, int device) {
    BEGIN;
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
    BEGIN;
    *context = &contexts[device];
    return SUCCESS;
}
CALL(cuDevicePrimaryCtxRelease_v2, int device) {
    BEGIN;
    (void)device;
    return SUCCESS;
}
CALL(cuCtxPushCurrent_v2, void *context) {
    BEGIN;
    current[n_current++ % 64] = context;
    return SUCCESS;
}
CALL(cuCtxPopCurrent_v2, void **context) {
    BEGIN;
    if (n_current == 0) return INVALID_CONTEXT;
    *context = current[--n_current];
    return SUCCESS;
}
CALL(cuCtxGetCurrent, void **context) {
    BEGIN;
    *context = n_current > 0 ? current[n_current - 1] : NULL;
    return SUCCESS;
}
CALL(cuCtxGetDevice, int *device) {
    BEGIN;
    if (n_current == 0) return INVALID_CONTEXT;
    *device = current[n_current - 1] == &contexts[1];
    return SUCCESS;
}
CALL(cuStreamGetCtx, void **stream, void **context) {
    BEGIN;
    *context = *stream;
    return *context ? SUCCESS : INVALID_HANDLE;
}
CALL(cuStreamSynchronize, void *stream) {
    BEGIN;
    (void)stream;
    return SUCCESS;
}
CALL(cuMemGetInfo_v2, size_t *available, size_t *total) {
    BEGIN;
    *available = (size_t)1 << 30;
    *total = (size_t)16 << 30;
    return SUCCESS;
}
CALL(cuMemsetD8Async, uint64_t address, unsigned char value, size_t bytes, void *stream) {
    BEGIN;
    (void)address, (void)value, (void)bytes, (void)stream;
    return SUCCESS;
}
CALL(cuMemAlloc_v2, uint64_t *address, size_t bytes) {
    BEGIN;
    void *p = NULL;
    if (posix_memalign(&p, 256, bytes ? bytes : 1)) return 2;
    *address = (uintptr_t)p;
    return SUCCESS;
}
CALL(cuMemFree_v2, uint64_t address) {
    BEGIN;
    free((void *)(uintptr_t)address);
    return SUCCESS;
}
CALL(cuModuleLoadData, void **module, const void *image) {
    BEGIN;
    *module = calls;
    return image ? SUCCESS : NOT_FOUND;
}
CALL(cuModuleUnload, void *module) {
    BEGIN;
    (void)module;
    return SUCCESS;
}
/* A function is its name. */
CALL(cuModuleGetFunction, void **function, void *module, const char *name) {
    BEGIN;
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
    BEGIN;
    (void)attribute;
    note("allow", function, (unsigned)value);
    return SUCCESS;
}
CALL(cuLaunchKernel, void *function, unsigned x, unsigned y, unsigned z, unsigned lanes, unsigned ly, unsigned lz,
     unsigned shared, void *stream, void **arguments, void **more) {
    BEGIN;
    (void)lanes, (void)ly, (void)lz, (void)stream, (void)more;
    note("launch", function, shared);
    if (watch) watch(function, (const unsigned[3]){x, y, z}, arguments);
    return SUCCESS;
}
CALL(cuStreamIsCapturing, void *stream, int *state) {
    BEGIN;
    (void)stream;
    *state = 0;
    return SUCCESS;
}
