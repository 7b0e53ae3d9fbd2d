/* SPDX-License-Identifier: Apache-2.0
 *
 * libmoba on OpenCL: native handles. No OpenCL header is needed: handles cross as void *.
 *
 * Buffers: moba_buffer.handle is a cl_mem cast to uint64_t, offset is in bytes. Streams: moba_stream.native is an
 * in-order cl_command_queue of the context (NULL: the library's own). Both may be made by the caller.
 */
#ifndef MOBA_MOBA_OPENCL_H
#define MOBA_MOBA_OPENCL_H

#include "moba/moba.h"

#ifdef __cplusplus
extern "C" {
#endif

/** For moba_context_options.native with backend "opencl". The library retains what it keeps. */
typedef struct moba_opencl_handles {
    size_t struct_size;
    void *device;  /**< cl_device_id; required, one of the context's devices */
    void *context; /**< cl_context; required */
    void *queue; /**< cl_command_queue, in order, that streams without a native handle mean; NULL: the library makes one
                  */
} moba_opencl_handles;
#define MOBA_OPENCL_HANDLES_INIT                                                                                       \
    { sizeof(moba_opencl_handles), NULL, NULL, NULL }

#ifdef __cplusplus
}
#endif
#endif
