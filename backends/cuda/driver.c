/* SPDX-License-Identifier: Apache-2.0
 *
 * Opens libcuda.so.1 once a process and turns its errors into statuses.
 */
#include "backends/cuda/cuda.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "core/status.h"

static cuda_driver driver;
static pthread_once_t driver_once = PTHREAD_ONCE_INIT;

static int allow_shared(void *function, unsigned bytes) {
    return cuda_driver_get()->function_set(function, CU_FUNCTION_MAX_DYNAMIC_SHARED, (int)bytes);
}

/** Its first release for Linux, in words. */
static const char *release_of(int version) {
    return version == 12000 ? " (driver 525 or newer)" : version == 13000 ? " (driver 580 or newer)" : "";
}

static void open_driver(void) {
    driver.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver.library) {
        snprintf(driver.reason, sizeof driver.reason, "libcuda.so.1 was not found: no NVIDIA driver is installed");
        return;
    }
    const mobai_driver_symbol symbols[] = {
#define SHARED(member, symbol) {#symbol, &driver.api.member},
        MOBAI_CUDA_SHARED_API(SHARED)
#undef SHARED
#define OWN(member, symbol, arguments) {#symbol, &driver.member},
            MOBAI_CUDA_API(OWN)
#undef OWN
    };
    const char *missing = mobai_driver_lookup(driver.library, symbols, sizeof symbols / sizeof symbols[0]);
    if (driver.api.driver_version) driver.api.driver_version(&driver.version);
    if (missing || driver.version < MOBAI_CUDA_MIN_DRIVER) {
        snprintf(driver.reason, sizeof driver.reason,
                 "the NVIDIA driver supports CUDA %d.%d%s%s; CUDA %d.%d is needed%s", driver.version / 1000,
                 driver.version % 1000 / 10, missing ? " and has no " : "", missing ? missing : "",
                 MOBAI_CUDA_MIN_DRIVER / 1000, MOBAI_CUDA_MIN_DRIVER % 1000 / 10, release_of(MOBAI_CUDA_MIN_DRIVER));
        return;
    }
    cu_result result = driver.api.init(0);
    int n = 0;
    if (result == CU_SUCCESS) result = driver.api.device_count(&n);
    if (result == CU_NO_DEVICE || (result == CU_SUCCESS && n == 0)) {
        snprintf(driver.reason, sizeof driver.reason, "the NVIDIA driver finds no device");
        return;
    }
    if (result != CU_SUCCESS) {
        const char *text = NULL;
        driver.error_string(result, &text);
        snprintf(driver.reason, sizeof driver.reason, "the NVIDIA driver does not start: %s (error %d)",
                 text ? text : "unknown", result);
        return;
    }
    driver.api.fail = cuda_fail;
    driver.api.enter = cuda_enter;
    driver.api.leave = cuda_leave;
    driver.api.simt_module = cuda_simt_module;
    driver.api.allow_shared = allow_shared;
    driver.n_devices = n;
}

const cuda_driver *cuda_driver_get(void) {
    pthread_once(&driver_once, open_driver);
    return &driver;
}

moba_status cuda_fail(cu_result result, const char *what) {
    const cuda_driver *d = cuda_driver_get();
    mobai_driver_error e = {"CUDA", result, NULL, NULL, d->version / 1000, d->version % 1000 / 10};
    d->error_name(result, &e.name);
    d->error_string(result, &e.text);
    return mobai_driver_fail(&e, what);
}
