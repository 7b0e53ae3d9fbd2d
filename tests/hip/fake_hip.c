/* SPDX-License-Identifier: Apache-2.0
 *
 * A libamdhip64.so for tests: HIP's signatures over host memory, with launches by the emulator. Modules are checked as
 * a loader would: the ELF header's machine, code-object version and architecture, the kernel's descriptor and the size
 * of its arguments.
 *
 * Environment: FAKE_HIP_ARCHS (space-separated, one a device; default "gfx90a:sramecc+:xnack-"), FAKE_HIP_VERSION
 * (default 60140093), FAKE_HIP_INIT (what hipInit returns), FAKE_HIP_FAIL (NAME=ERROR: that function fails with ERROR),
 * FAKE_HIP_RAN (a file to which the names of the kernels that run are appended).
 */
#include <elf.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/hip/emulator.h"

typedef int hipError_t;
typedef int hipDevice_t;
typedef void *hipDeviceptr_t;
typedef struct stream *hipStream_t;
typedef struct event *hipEvent_t;
typedef struct module *hipModule_t;
typedef struct function *hipFunction_t;
typedef struct graph *hipGraph_t;
typedef struct graph *hipGraphExec_t;

enum {
    hipSuccess = 0,
    hipErrorInvalidValue = 1,
    hipErrorOutOfMemory = 2,
    hipErrorInvalidDevice = 101,
    hipErrorInvalidImage = 200,
    hipErrorNoBinaryForGpu = 209,
    hipErrorInvalidHandle = 400,
    hipErrorNotFound = 500,
    hipErrorLaunchFailure = 719,
    hipErrorStreamCaptureUnsupported = 900
};

#define API __attribute__((visibility("default")))

enum { MAX_DEVICES = 8, MAX_ARGUMENTS = 64 };
static const size_t DEVICE_BYTES = (size_t)8 << 30;

/** Error that stays, after a kernel's fault. */
static hipError_t sticky;
static _Thread_local int current;
static size_t allocated_bytes;

/** The error that FAKE_HIP_FAIL asks of `name`, else the sticky one. */
static hipError_t forced(const char *name) {
    const char *text = getenv("FAKE_HIP_FAIL");
    size_t length = strlen(name);
    if (text && strncmp(text, name, length) == 0 && text[length] == '=') return atoi(text + length + 1);
    return sticky;
}

/* One call at a time, so that programs may have threads: the emulator has but one set of lanes. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int take_turn(void) { return pthread_mutex_lock(&turn); }
static void end_turn(int *taken) {
    if (*taken == 0) pthread_mutex_unlock(&turn);
}
#define ALONE __attribute__((cleanup(end_turn))) int turn_taken = take_turn()
#define ENTER(name)                                                                                                    \
    ALONE;                                                                                                             \
    hipError_t enter_error = forced(name);                                                                             \
    if (enter_error != hipSuccess) return enter_error

/* ----------------------------------------------------------------------------------------------- devices -- */

static int find_archs(char archs[MAX_DEVICES][64]) {
    const char *text = getenv("FAKE_HIP_ARCHS");
    if (!text) text = "gfx90a:sramecc+:xnack-";
    int n = 0;
    for (text += strspn(text, " "); *text && n < MAX_DEVICES; text += strspn(text, " ")) {
        int length = (int)strcspn(text, " ");
        snprintf(archs[n++], 64, "%.*s", length, text);
        text += length;
    }
    return n;
}

static const char *arch_of(int device) {
    static _Thread_local char archs[MAX_DEVICES][64];
    find_archs(archs);
    return archs[device];
}

static bool is_device(int device) {
    char archs[MAX_DEVICES][64];
    return device >= 0 && device < find_archs(archs);
}

/** CDNA runs waves of 64 lanes, RDNA of 32. */
static int wave_of(int device) { return strncmp(arch_of(device), "gfx9", 4) == 0 ? 64 : 32; }

API hipError_t hipInit(unsigned flags) {
    const char *text = getenv("FAKE_HIP_INIT");
    (void)flags;
    return text ? atoi(text) : hipSuccess;
}
API hipError_t hipDriverGetVersion(int *version) {
    const char *text = getenv("FAKE_HIP_VERSION");
    *version = text ? atoi(text) : 60140093;
    return hipSuccess;
}
API const char *hipGetErrorName(hipError_t error) {
    switch (error) {
    case hipErrorOutOfMemory:
        return "hipErrorOutOfMemory";
    case hipErrorInvalidDevice:
        return "hipErrorInvalidDevice";
    case hipErrorNoBinaryForGpu:
        return "hipErrorNoBinaryForGpu";
    case hipErrorLaunchFailure:
        return "hipErrorLaunchFailure";
    default:
        return "hipErrorOfSomeKind";
    }
}
API const char *hipGetErrorString(hipError_t error) {
    switch (error) {
    case hipErrorOutOfMemory:
        return "out of memory";
    case hipErrorInvalidDevice:
        return "invalid device ordinal";
    case hipErrorNoBinaryForGpu:
        return "no kernel image is available for execution on the device";
    case hipErrorLaunchFailure:
        return "unspecified launch failure";
    default:
        return "an error of some kind";
    }
}
API hipError_t hipGetDeviceCount(int *n) {
    char archs[MAX_DEVICES][64];
    ENTER("hipGetDeviceCount");
    *n = find_archs(archs);
    return hipSuccess;
}
API hipError_t hipDeviceGet(hipDevice_t *device, int ordinal) {
    *device = ordinal;
    return is_device(ordinal) ? hipSuccess : hipErrorInvalidDevice;
}
API hipError_t hipDeviceGetName(char *name, int bytes, hipDevice_t device) {
    snprintf(name, (size_t)bytes, "Emulated GPU %d", device);
    return hipSuccess;
}
API hipError_t hipDeviceTotalMem(size_t *bytes, hipDevice_t device) {
    (void)device;
    *bytes = DEVICE_BYTES;
    return hipSuccess;
}
API hipError_t hipDeviceGetAttribute(int *value, int which, int device) {
    if (!is_device(device)) return hipErrorInvalidDevice;
    switch (which) {
    case 5: /* ClockRate */
        *value = 1700000;
        return hipSuccess;
    case 56: /* MaxThreadsPerBlock */
        *value = 1024;
        return hipSuccess;
    case 59: /* MemoryBusWidth */
        *value = 4096;
        return hipSuccess;
    case 60: /* MemoryClockRate */
        *value = 1600000;
        return hipSuccess;
    case 63: /* MultiprocessorCount */
        *value = 104;
        return hipSuccess;
    case 74: /* MaxSharedMemoryPerBlock */
        *value = 65536;
        return hipSuccess;
    case 87: /* WarpSize */
        *value = wave_of(device);
        return hipSuccess;
    default:
        return hipErrorInvalidValue;
    }
}
/** The two layouts of hipDeviceProp_t differ in where gcnArchName is: at byte 1160 since HIP 6, at 396 before. */
static hipError_t properties(char *to, size_t arch_at, int device) {
    if (!is_device(device)) return hipErrorInvalidDevice;
    memset(to, 0, arch_at + 256);
    hipDeviceGetName(to, 256, device);
    snprintf(to + arch_at, 256, "%s", arch_of(device));
    return hipSuccess;
}
#ifdef FAKE_HIP_5
API hipError_t hipGetDeviceProperties(void *to, int device) { return properties(to, 396, device); }
#else
API hipError_t hipGetDevicePropertiesR0600(void *to, int device) { return properties(to, 1160, device); }
#endif
API hipError_t hipGetDevice(int *device) {
    *device = current;
    return hipSuccess;
}
API hipError_t hipSetDevice(int device) {
    ENTER("hipSetDevice");
    if (!is_device(device)) return hipErrorInvalidDevice;
    current = device;
    return hipSuccess;
}

/* ------------------------------------------------------------------------------------------------ streams -- */

/** One launch of a captured graph. */
typedef struct node {
    hipFunction_t function;
    unsigned groups[3];
    uint64_t values[MAX_ARGUMENTS];
    struct node *next;
} node;

struct graph {
    node *first, **last;
};
struct stream {
    int device;
    hipGraph_t capture; /* NULL: not capturing */
};
struct event {
    double ms;
};
static bool is_capturing(hipStream_t s) { return s && s->capture; }
static int captures; /* streams that capture */

API hipError_t hipStreamCreateWithFlags(hipStream_t *stream, unsigned flags) {
    (void)flags;
    ENTER("hipStreamCreateWithFlags");
    *stream = calloc(1, sizeof **stream);
    if (!*stream) return hipErrorOutOfMemory;
    (*stream)->device = current;
    return hipSuccess;
}
API hipError_t hipStreamDestroy(hipStream_t stream) {
    free(stream);
    return hipSuccess;
}
API hipError_t hipStreamSynchronize(hipStream_t stream) {
    ENTER("hipStreamSynchronize");
    return is_capturing(stream) ? hipErrorStreamCaptureUnsupported : hipSuccess;
}
API hipError_t hipStreamIsCapturing(hipStream_t stream, int *state) {
    *state = is_capturing(stream);
    return hipSuccess;
}
#ifndef FAKE_HIP_5
API hipError_t hipStreamGetDevice(hipStream_t stream, hipDevice_t *device) {
    *device = stream->device;
    return hipSuccess;
}
#endif
API hipError_t hipEventCreateWithFlags(hipEvent_t *event, unsigned flags) {
    (void)flags;
    ENTER("hipEventCreateWithFlags");
    *event = calloc(1, sizeof **event);
    return *event ? hipSuccess : hipErrorOutOfMemory;
}
API hipError_t hipEventDestroy(hipEvent_t event) {
    free(event);
    return hipSuccess;
}
API hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream) {
    struct timespec now;
    (void)stream;
    ENTER("hipEventRecord");
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
    return hipSuccess;
}
API hipError_t hipEventSynchronize(hipEvent_t event) {
    ALONE;
    (void)event;
    return sticky;
}
API hipError_t hipEventElapsedTime(float *ms, hipEvent_t begin, hipEvent_t end) {
    ALONE;
    *ms = (float)(end->ms - begin->ms);
    return sticky;
}

/* ------------------------------------------------------------------------------------------------- memory -- */

/** Every allocation is preceded by its size. */
enum { HEADER_BYTES = 256 };

API hipError_t hipMalloc(void **p, size_t bytes) {
    ENTER("hipMalloc");
    if (captures > 0) return hipErrorStreamCaptureUnsupported;
    if (bytes > DEVICE_BYTES - allocated_bytes) return hipErrorOutOfMemory;
    size_t rounded = (bytes + HEADER_BYTES - 1) / HEADER_BYTES * HEADER_BYTES;
    char *base = aligned_alloc(HEADER_BYTES, HEADER_BYTES + rounded);
    if (!base) return hipErrorOutOfMemory;
    memcpy(base, &bytes, sizeof bytes);
    *p = base + HEADER_BYTES;
    allocated_bytes += bytes;
    emu_memory_add(*p, bytes);
    return hipSuccess;
}
API hipError_t hipFree(void *p) {
    ALONE;
    if (!p) return hipSuccess;
    if (!emu_memory_remove(p)) return hipErrorInvalidValue;
    char *base = (char *)p - HEADER_BYTES;
    size_t bytes;
    memcpy(&bytes, base, sizeof bytes);
    allocated_bytes -= bytes;
    free(base);
    return hipSuccess;
}
API hipError_t hipMemGetInfo(size_t *available, size_t *total) {
    ALONE;
    *total = DEVICE_BYTES;
    *available = DEVICE_BYTES - allocated_bytes;
    return hipSuccess;
}
API hipError_t hipMemcpyHtoDAsync(hipDeviceptr_t to, void *from, size_t bytes, hipStream_t stream) {
    ENTER("hipMemcpyHtoDAsync");
    if (is_capturing(stream)) return hipErrorStreamCaptureUnsupported;
    memcpy(to, from, bytes);
    return hipSuccess;
}
API hipError_t hipMemcpyDtoHAsync(void *to, hipDeviceptr_t from, size_t bytes, hipStream_t stream) {
    ENTER("hipMemcpyDtoHAsync");
    if (is_capturing(stream)) return hipErrorStreamCaptureUnsupported;
    memcpy(to, from, bytes);
    return hipSuccess;
}
API hipError_t hipMemcpyDtoDAsync(hipDeviceptr_t to, hipDeviceptr_t from, size_t bytes, hipStream_t stream) {
    ENTER("hipMemcpyDtoDAsync");
    if (is_capturing(stream)) return hipErrorStreamCaptureUnsupported;
    memcpy(to, from, bytes);
    return hipSuccess;
}
API hipError_t hipMemsetD8Async(hipDeviceptr_t to, unsigned char value, size_t bytes, hipStream_t stream) {
    ENTER("hipMemsetD8Async");
    if (is_capturing(stream)) return hipErrorStreamCaptureUnsupported;
    memset(to, value, bytes);
    return hipSuccess;
}

/* ------------------------------------------------------------------------------------------------ modules -- */

struct function {
    const emu_kernel *kernel;
    bool noted; /* in FAKE_HIP_RAN */
    hipModule_t module;
    struct function *next;
};
struct module {
    int device;
    char *image;
    hipFunction_t functions;
};

/** Bits 0..7 of the ELF header's flags name the architecture (LLVM, "User Guide for AMDGPU Backend"). */
static unsigned machine_of(const char *arch) {
    static const struct {
        const char *name;
        unsigned machine;
    } machines[] = {{"gfx90a", 0x3f},  {"gfx942", 0x4c},  {"gfx950", 0x4f},  {"gfx1030", 0x36}, {"gfx1100", 0x41},
                    {"gfx1101", 0x46}, {"gfx1151", 0x4a}, {"gfx1200", 0x48}, {"gfx1201", 0x4e}};
    for (size_t i = 0; i < sizeof machines / sizeof machines[0]; i++)
        if (strncmp(arch, machines[i].name, strcspn(arch, ":")) == 0 && machines[i].name[strcspn(arch, ":")] == '\0')
            return machines[i].machine;
    return 0;
}

API hipError_t hipModuleLoadData(hipModule_t *module, const void *image) {
    enum { EM_AMDGPU_ = 224, ABI_HSA = 64, ABI_VERSION_5 = 3 };
    Elf64_Ehdr header;
    ENTER("hipModuleLoadData");
    memcpy(&header, image, sizeof header);
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_machine != EM_AMDGPU_) return hipErrorInvalidImage;
    if (header.e_ident[EI_OSABI] != ABI_HSA || header.e_ident[EI_ABIVERSION] != ABI_VERSION_5 ||
        (header.e_flags & 0xff) != machine_of(arch_of(current)))
        return hipErrorNoBinaryForGpu;
    size_t bytes = header.e_shoff + (size_t)header.e_shentsize * header.e_shnum;
    hipModule_t m = calloc(1, sizeof *m);
    if (!m) return hipErrorOutOfMemory;
    m->device = current;
    m->image = malloc(bytes);
    if (!m->image) {
        free(m);
        return hipErrorOutOfMemory;
    }
    memcpy(m->image, image, bytes); /* the caller may free his */
    *module = m;
    return hipSuccess;
}
API hipError_t hipModuleUnload(hipModule_t module) {
    ALONE;
    for (hipFunction_t f = module->functions, next; f; f = next) {
        next = f->next;
        free(f);
    }
    free(module->image);
    free(module);
    return hipSuccess;
}

/** The kernel's 64-byte descriptor, symbol NAME.kd of the dynamic symbol table. */
static const unsigned char *find_descriptor(const char *image, const char *name) {
    const Elf64_Ehdr *header = (const void *)image;
    const Elf64_Shdr *sections = (const void *)(image + header->e_shoff);
    char wanted[200];
    snprintf(wanted, sizeof wanted, "%s.kd", name);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_DYNSYM) continue;
        const Elf64_Sym *symbols = (const void *)(image + sections[i].sh_offset);
        const char *strings = image + sections[sections[i].sh_link].sh_offset;
        for (size_t s = 0; s < sections[i].sh_size / sizeof *symbols; s++) {
            if (strcmp(strings + symbols[s].st_name, wanted) != 0) continue;
            const Elf64_Shdr *home = &sections[symbols[s].st_shndx];
            return (const unsigned char *)image + home->sh_offset + (symbols[s].st_value - home->sh_addr);
        }
    }
    return NULL;
}

API hipError_t hipModuleGetFunction(hipFunction_t *function, hipModule_t module, const char *name) {
    ENTER("hipModuleGetFunction");
    const unsigned char *descriptor = find_descriptor(module->image, name);
    /* Kernels on matrix cores are compiled for each kind of them. FAKE_HIP_MATRIX names another kind than the device's,
     * of waves as wide. */
    char of_kind[200];
    const char *arch = arch_of(module->device), *kind = getenv("FAKE_HIP_MATRIX");
    if (!kind) kind = strncmp(arch, "gfx9", 4) == 0 ? "cdna" : strncmp(arch, "gfx11", 5) == 0 ? "rdna3" : "rdna4";
    snprintf(of_kind, sizeof of_kind, "%.8s_%.150s", kind, name);
    const emu_kernel *kernel = emu_find(of_kind);
    if (!kernel) kernel = emu_find(name);
    if (!descriptor || !kernel) return hipErrorNotFound;
    uint32_t sizes[3]; /* of shared memory, of a lane's own memory, of the arguments */
    memcpy(sizes, descriptor, sizeof sizes);
    if (sizes[0] > 65536 || sizes[2] < kernel->argument_bytes) {
        fprintf(stderr,
                "fake HIP: %s: descriptor of %u bytes of shared memory and %u of arguments; the kernel has %zu\n", name,
                sizes[0], sizes[2], kernel->argument_bytes);
        return hipErrorInvalidImage;
    }
    hipFunction_t f = calloc(1, sizeof *f);
    if (!f) return hipErrorOutOfMemory;
    f->kernel = kernel;
    f->module = module;
    f->next = module->functions;
    module->functions = f;
    *function = f;
    return hipSuccess;
}

static void note_run(hipFunction_t f) {
    const char *path = getenv("FAKE_HIP_RAN");
    FILE *file = path && !f->noted ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "%s\n", f->kernel->name);
    fclose(file);
    f->noted = true;
}

static hipError_t launch(hipFunction_t f, const unsigned groups[3], void **arguments) {
    const char *fault = NULL;
    note_run(f);
    if (emu_run(f->kernel, groups, wave_of(f->module->device), arguments, &fault)) return hipSuccess;
    fprintf(stderr, "emulator: %s\n", fault);
    sticky = hipErrorLaunchFailure; /* as on a device, later calls tell */
    return hipSuccess;
}

static hipError_t record(hipStream_t stream, hipFunction_t f, const unsigned groups[3], void **arguments) {
    node *n = calloc(1, sizeof *n);
    if (!n) return hipErrorOutOfMemory;
    n->function = f;
    memcpy(n->groups, groups, sizeof n->groups);
    for (int i = 0; i < f->kernel->n_arguments; i++)
        memcpy(&n->values[i], arguments[i], f->kernel->argument_sizes[i]);
    *stream->capture->last = n;
    stream->capture->last = &n->next;
    return hipSuccess;
}

API hipError_t hipModuleLaunchKernel(hipFunction_t f, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                     unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                     hipStream_t stream, void **arguments, void **extra) {
    ENTER("hipModuleLaunchKernel");
    const unsigned groups[3] = {grid_x, grid_y, grid_z};
    if (!arguments || extra || shared || block_x != (unsigned)f->kernel->lanes || block_y != 1 || block_z != 1 ||
        f->kernel->n_arguments > MAX_ARGUMENTS || (uint64_t)grid_x * block_x > UINT32_MAX || grid_y > 65535 ||
        grid_z > 65535)
        return hipErrorInvalidValue;
    if (f->module->device != current || (stream && stream->device != current)) return hipErrorInvalidHandle;
    if (is_capturing(stream)) return record(stream, f, groups, arguments);
    return launch(f, groups, arguments);
}

/* ------------------------------------------------------------------------------------------------- graphs -- */

API hipError_t hipStreamBeginCapture(hipStream_t stream, int mode) {
    (void)mode;
    if (!stream || stream->capture) return hipErrorInvalidValue;
    stream->capture = calloc(1, sizeof *stream->capture);
    if (!stream->capture) return hipErrorOutOfMemory;
    stream->capture->last = &stream->capture->first;
    captures++;
    return hipSuccess;
}
API hipError_t hipStreamEndCapture(hipStream_t stream, hipGraph_t *graph) {
    if (!is_capturing(stream)) return hipErrorInvalidValue;
    *graph = stream->capture;
    stream->capture = NULL;
    captures--;
    return hipSuccess;
}
API hipError_t hipGraphLaunch(hipGraphExec_t graph, hipStream_t stream) {
    ENTER("hipGraphLaunch");
    (void)stream;
    for (node *n = graph->first; n; n = n->next) {
        void *arguments[MAX_ARGUMENTS];
        for (int i = 0; i < n->function->kernel->n_arguments; i++)
            arguments[i] = &n->values[i];
        launch(n->function, n->groups, arguments);
    }
    return hipSuccess;
}
API hipError_t hipGraphDestroy(hipGraph_t graph) {
    ALONE;
    for (node *n = graph->first, *next; n; n = next) {
        next = n->next;
        free(n);
    }
    free(graph);
    return hipSuccess;
}
