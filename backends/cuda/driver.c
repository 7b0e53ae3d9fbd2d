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
                 "the NVIDIA driver supports CUDA %d.%d%s%s; CUDA %d.%d is needed (driver 525 or newer)",
                 driver.version / 1000, driver.version % 1000 / 10, missing ? " and has no " : "",
                 missing ? missing : "", MOBAI_CUDA_MIN_DRIVER / 1000, MOBAI_CUDA_MIN_DRIVER % 1000 / 10);
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
    driver.n_devices = n;
}

const cuda_driver *cuda_driver_get(void) {
    pthread_once(&driver_once, open_driver);
    return &driver;
}

/** Errors after which every call in the context fails until the process ends. */
static bool is_sticky(cu_result r) {
    switch (r) {
    case CU_DEINITIALIZED:
    case CU_ECC_UNCORRECTABLE:
    case CU_NVLINK_UNCORRECTABLE:
    case CU_ILLEGAL_ADDRESS:
    case CU_LAUNCH_TIMEOUT:
    case CU_CONTEXT_IS_DESTROYED:
    case CU_ASSERT:
    case CU_HARDWARE_STACK_ERROR:
    case CU_ILLEGAL_INSTRUCTION:
    case CU_MISALIGNED_ADDRESS:
    case CU_INVALID_ADDRESS_SPACE:
    case CU_INVALID_PC:
    case CU_LAUNCH_FAILED:
        return true;
    default:
        return false;
    }
}

moba_status cuda_fail(cu_result result, const char *what) {
    const cuda_driver *d = cuda_driver_get();
    const char *name = NULL, *text = NULL;
    d->error_name(result, &name);
    d->error_string(result, &text);
    if (!name) name = "unknown error";
    if (!text) text = "no description";
    if (is_sticky(result))
        return mobai_fail(
            MOBA_ERROR_DEVICE_LOST,
            "CUDA could not %s: %s (%s, %d); the error stays with the device's CUDA context, so every later "
            "call in this process will fail too",
            what, text, name, result);
    if (result == CU_OUT_OF_MEMORY)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "CUDA could not %s: %s (%s)", what, text, name);
    if (result >= CU_STREAM_CAPTURE_UNSUPPORTED && result <= CU_STREAM_CAPTURE_WRONG_THREAD)
        return mobai_fail(MOBA_ERROR_CAPTURE, "CUDA could not %s while the stream is being captured: %s (%s)", what,
                          text, name);
    if (result == CU_INVALID_HANDLE || result == CU_INVALID_CONTEXT)
        return mobai_fail(MOBA_ERROR_WRONG_CONTEXT,
                          "CUDA could not %s: %s (%s, %d); the stream, event or context was destroyed or is not CUDA's",
                          what, text, name, result);
    if (result == CU_NO_BINARY_FOR_GPU || result == CU_UNSUPPORTED_PTX_VERSION)
        return mobai_fail(
            MOBA_ERROR_UNSUPPORTED,
            "CUDA could not %s: %s (%s); the driver supports CUDA %d.%d, and this code needs a newer one or "
            "another device",
            what, text, name, d->version / 1000, d->version % 1000 / 10);
    return mobai_fail(MOBA_ERROR_LAUNCH_FAILED, "CUDA could not %s: %s (%s, %d)", what, text, name, result);
}
