/* SPDX-License-Identifier: Apache-2.0
 *
 * Native handles of the CUDA backend. No CUDA header is needed; handles are passed as void *.
 *
 *   moba_buffer.handle  a device address (CUdeviceptr, or what cudaMalloc gave)
 *   moba_stream.native  a CUstream or cudaStream_t; NULL is the legacy default stream. It must not have been destroyed:
 *                       the driver itself reads freed memory when it is asked about such a stream
 *   moba_event.native   a CUevent
 *
 * Without these handles moba_context_create() uses the device's primary context, the one the CUDA runtime and PyTorch
 * use, so their pointers and streams can be passed straight in.
 */
#ifndef MOBA_MOBA_CUDA_H
#define MOBA_MOBA_CUDA_H

#include "moba/moba.h"

#ifdef __cplusplus
extern "C" {
#endif

/** What moba_context_options.native points to when `backend` is "cuda". Read during the call only. */
typedef struct moba_cuda_handles {
    size_t struct_size;
    /** CUcontext to run in; stays the caller's and must outlive the moba_context. NULL: the calling thread's current
     *  one. moba_context_options.device must be its device's index, or -1. */
    void *context;
} moba_cuda_handles;
#define MOBA_CUDA_HANDLES_INIT                                                                                         \
    { sizeof(moba_cuda_handles), NULL }

#ifdef __cplusplus
}
#endif
#endif
