/* SPDX-License-Identifier: Apache-2.0
 *
 * Native handles of the HIP backend. No HIP header is needed; handles are passed as void *.
 *
 *   moba_buffer.handle  a device address (what hipMalloc gave)
 *   moba_stream.native  a hipStream_t of the context's device; NULL is the default stream
 *   moba_event.native   a hipEvent_t
 *
 * HIP keeps one context a device, the one PyTorch uses too, so its pointers and streams can be passed straight in and
 * there is no context to hand over. Devices have HIP's own numbers, after HIP_VISIBLE_DEVICES.
 */
#ifndef MOBA_MOBA_HIP_H
#define MOBA_MOBA_HIP_H

#include "moba/moba.h"

#ifdef __cplusplus
extern "C" {
#endif

/** What moba_context_options.native points to when `backend` is "hip". Read during the call only. Without it the best
 *  device is taken, or moba_context_options.device. */
typedef struct moba_hip_handles {
    size_t struct_size;
    /** HIP's number of the device to run on; -1: the calling thread's current one. moba_context_options.device must be
     *  the same device, or -1. */
    int32_t device;
} moba_hip_handles;
#define MOBA_HIP_HANDLES_INIT                                                                                          \
    { sizeof(moba_hip_handles), -1 }

#ifdef __cplusplus
}
#endif
#endif
