/* SPDX-License-Identifier: Apache-2.0
 *
 * Opens libamdhip64.so once a process, finds its devices, and turns its errors into statuses.
 */
#include "backends/hip/runtime.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backends/hip/hip.h"

static hip_runtime runtime;
static pthread_once_t runtime_once = PTHREAD_ONCE_INIT;

/** True when a library cannot be opened because it is not there, rather than another that it needs. */
static bool is_absent(const char *name, const char *why) {
    const size_t length = strlen(name);
    return strncmp(why, name, length) == 0 && why[length] == ':' && strstr(why, "No such file") != NULL;
}

/** A copy that the process has loaded already (PyTorch brings its own) comes first: two of them would not share
 * devices' memory. Then the newest; ROCm's folder is not always in the linker's path. */
static void *open_library(char *reason, size_t capacity) {
    static const char *const names[] = {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so",
                                        "/opt/rocm/lib/libamdhip64.so"};
    enum { N_NAMES = sizeof names / sizeof names[0] };
    void *library = NULL;
    for (int i = 0; i < N_NAMES && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    snprintf(reason, capacity, "libamdhip64.so (.7, .6 or .5) was not found: no ROCm is installed");
    for (int i = 0; i < N_NAMES && !library; i++) {
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        const char *why = library ? NULL : dlerror();
        if (why && !is_absent(names[i], why)) snprintf(reason, capacity, "ROCm's library cannot be opened: %s", why);
    }
    return library;
}

/** Copies the architecture's name out of the device's properties. The structure differs between releases (so the name
 *  stands elsewhere), but it always begins with 256 bytes of device name, and nothing before the architecture is text.
 */
static void find_arch(int device, char *arch) {
    enum { NAME_BYTES = 256 };
    union {
        char bytes[16384]; /* the largest so far is 1472 */
        double alignment;
    } properties;
    memset(&properties, 0, sizeof properties);
    arch[0] = '\0';
    if (runtime.device_properties(&properties, device) != HIP_SUCCESS) return;
    const char *end = properties.bytes + sizeof properties.bytes - HIP_MAX_ARCH;
    for (const char *at = properties.bytes + NAME_BYTES; at < end; at++) {
        if (memcmp(at, "gfx", 3) != 0 || at[3] < '0' || at[3] > '9') continue;
        snprintf(arch, HIP_MAX_ARCH, "%.*s", HIP_MAX_ARCH - 1, at);
        return;
    }
}

static bool find_symbols(char *reason, size_t capacity) {
    const mobai_driver_symbol symbols[] = {
#define SHARED(member, symbol) {#symbol, &runtime.api.member},
        MOBAI_HIP_SHARED_API(SHARED)
#undef SHARED
#define OWN(result, member, symbol, arguments) {#symbol, &runtime.member},
            MOBAI_HIP_API(OWN)
#undef OWN
    };
    const mobai_driver_symbol newer[] = {{"hipGetDevicePropertiesR0600", &runtime.device_properties},
                                         {"hipStreamGetDevice", &runtime.stream_device}};
    const mobai_driver_symbol older[] = {{"hipGetDeviceProperties", &runtime.device_properties}};
    const char *missing = mobai_driver_lookup(runtime.library, symbols, sizeof symbols / sizeof symbols[0]);
    mobai_driver_lookup(runtime.library, newer, 2);
    if (!runtime.device_properties && mobai_driver_lookup(runtime.library, older, 1)) missing = older[0].name;
    if (missing) snprintf(reason, capacity, "libamdhip64.so has no %s; HIP 5.2 (ROCm 5.2) or newer is needed", missing);
    return !missing;
}

/** Writes why no device can be used when this build has code for none of the `n`. */
static bool any_usable(int n, char *reason, size_t capacity) {
    for (int i = 0; i < n; i++)
        if (runtime.found[i].code) return true;
    char archs[160] = "";
    for (size_t i = 0; i < hip_n_codes; i++) {
        size_t used = strlen(archs);
        snprintf(archs + used, sizeof archs - used, "%s%s", i > 0 ? " " : "", hip_codes[i].arch);
    }
    snprintf(reason, capacity, "device 0 is a %.24s; this build has kernels for %s",
             runtime.found[0].arch[0] ? runtime.found[0].arch : "GPU of unknown architecture", archs);
    return false;
}

/** Nearly always a GPU's file that is missing in a container, or that is open to another group only. */
static void no_device(char *reason, size_t capacity) {
    static const char file[] = "/dev/kfd";
    snprintf(reason, capacity, "the HIP runtime finds no device");
    if (access(file, R_OK | W_OK) != 0)
        snprintf(reason, capacity, "the HIP runtime finds no device; %s cannot be opened: %s", file, strerror(errno));
}

static void open_runtime(void) {
    char *reason = runtime.reason;
    const size_t capacity = sizeof runtime.reason;
    runtime.library = open_library(reason, capacity);
    if (!runtime.library) return;
    reason[0] = '\0';
    if (!find_symbols(reason, capacity)) return;
    /* Where there is no GPU, hipInit of some releases says that a device is invalid; the count then says it plainly. */
    int n = 0, started = runtime.api.init(0), result = started;
    if (started == HIP_SUCCESS || started == HIP_INVALID_DEVICE) result = runtime.api.device_count(&n);
    if (result == MOBAI_DRIVER_NO_DEVICE || (result == HIP_SUCCESS && n == 0)) {
        no_device(reason, capacity);
        return;
    }
    if (started != HIP_SUCCESS) result = started;
    if (result != HIP_SUCCESS) {
        const char *text = runtime.error_string(result);
        snprintf(reason, capacity, "the HIP runtime does not start: %s (error %d)", text ? text : "unknown", result);
        return;
    }
    if (n > HIP_MAX_DEVICES) n = HIP_MAX_DEVICES;
    runtime.api.driver_version(&runtime.version);
    for (int i = 0; i < n; i++) {
        find_arch(i, runtime.found[i].arch);
        runtime.found[i].code = hip_find_code(runtime.found[i].arch);
    }
    if (!any_usable(n, reason, capacity)) return;
    runtime.api.fail = hip_fail;
    runtime.api.enter = hip_enter;
    runtime.api.leave = hip_leave;
    runtime.api.simt_module = hip_simt_module;
    runtime.n_devices = n;
}

const hip_runtime *hip_runtime_get(void) {
    pthread_once(&runtime_once, open_runtime);
    return &runtime;
}

moba_status hip_fail(int result, const char *what) {
    const hip_runtime *r = hip_runtime_get();
    mobai_driver_error e = {.api = "HIP",
                            .result = result,
                            .name = r->error_name(result),
                            .text = r->error_string(result),
                            .major = r->version / 10000000,
                            .minor = r->version / 100000 % 100};
    return mobai_driver_fail(&e, what);
}
