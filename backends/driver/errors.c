/* SPDX-License-Identifier: Apache-2.0
 *
 * Errors of the driver APIs as statuses. HIP took its numbers from CUDA, so one classification serves both.
 */
#include "backends/driver/driver.h"
#include "core/status.h"

enum {
    DEINITIALIZED = 4,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    ECC_UNCORRECTABLE = 214,
    INVALID_KERNEL_FILE = 218,
    NVLINK_UNCORRECTABLE = 220,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_TIMEOUT = 702,
    CONTEXT_IS_DESTROYED = 709,
    ASSERT_FAILED = 710,
    HARDWARE_STACK_ERROR = 714,
    ILLEGAL_INSTRUCTION = 715,
    MISALIGNED_ADDRESS = 716,
    INVALID_ADDRESS_SPACE = 717,
    INVALID_PC = 718,
    LAUNCH_FAILED = 719,
    FIRST_CAPTURE_ERROR = 900,
    LAST_CAPTURE_ERROR = 908
};

/** Errors after which every call in the context fails until the process ends. */
static bool is_sticky(int result) {
    switch (result) {
    case DEINITIALIZED:
    case ECC_UNCORRECTABLE:
    case NVLINK_UNCORRECTABLE:
    case ILLEGAL_ADDRESS:
    case LAUNCH_TIMEOUT:
    case CONTEXT_IS_DESTROYED:
    case ASSERT_FAILED:
    case HARDWARE_STACK_ERROR:
    case ILLEGAL_INSTRUCTION:
    case MISALIGNED_ADDRESS:
    case INVALID_ADDRESS_SPACE:
    case INVALID_PC:
    case LAUNCH_FAILED:
        return true;
    default:
        return false;
    }
}

moba_status mobai_driver_fail(const mobai_driver_error *e, const char *what) {
    const char *name = e->name ? e->name : "unknown error", *text = e->text ? e->text : "no description";
    if (is_sticky(e->result))
        return mobai_fail(
            MOBA_ERROR_DEVICE_LOST,
            "%s could not %s: %s (%s, %d); the error stays with the device's %s context, so every later call in this "
            "process will fail too",
            e->api, what, text, name, e->result, e->api);
    if (e->result == MOBAI_DRIVER_OUT_OF_MEMORY)
        return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "%s could not %s: %s (%s)", e->api, what, text, name);
    if (e->result >= FIRST_CAPTURE_ERROR && e->result <= LAST_CAPTURE_ERROR)
        return mobai_fail(MOBA_ERROR_CAPTURE, "%s could not %s while the stream is being captured: %s (%s)", e->api,
                          what, text, name);
    if (e->result == INVALID_HANDLE || e->result == INVALID_CONTEXT)
        return mobai_fail(MOBA_ERROR_WRONG_CONTEXT,
                          "%s could not %s: %s (%s, %d); the stream, event or context was destroyed or is not %s's",
                          e->api, what, text, name, e->result, e->api);
    if (e->result == NO_BINARY_FOR_GPU || e->result == UNSUPPORTED_PTX_VERSION || e->result == INVALID_KERNEL_FILE ||
        e->result == INVALID_IMAGE)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED,
                          "%s could not %s: %s (%s); the installed one is %s %d.%d, and this code needs a newer one or "
                          "another device",
                          e->api, what, text, name, e->api, e->major, e->minor);
    return mobai_fail(MOBA_ERROR_LAUNCH_FAILED, "%s could not %s: %s (%s, %d)", e->api, what, text, name, e->result);
}
