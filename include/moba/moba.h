/* SPDX-License-Identifier: Apache-2.0
 *
 * libmoba: Mixture-of-Block-Attention on CPUs and GPUs.
 *
 * Each query attends to a few key blocks, chosen by the mean key of each block (MoBA, arXiv 2502.13189;
 * FlashMoBA, arXiv 2511.11571). docs/spec.md defines every result; this header defines how to ask for it.
 *
 * How the pieces fit:
 *   1. moba_context_create() opens one backend on one device.
 *   2. moba_plan_create() takes a moba_problem (shapes as upper bounds), chooses kernels and lays out memory.
 *   3. The caller allocates moba_plan_workspace() bytes (and moba_plan_saved() bytes to train).
 *   4. moba_forward() / moba_backward() run on the caller's buffers and stream. A run allocates nothing and, on
 *      a GPU, only enqueues work.
 *
 * Conventions
 *   - Strides and counts are in elements, sizes whose name ends in _bytes are in bytes.
 *   - Every function that can fail returns a moba_status. On failure moba_last_error() holds one sentence, for
 *     the calling thread, that names the argument, its value and the limit. Outputs are then unspecified,
 *     but nothing outside the caller's buffers was written.
 *   - The library never aborts, exits, or prints, except to stderr when MOBA_VERBOSE asks for it and no
 *     callback is set with moba_set_log().
 *   - Thread safety: contexts and plans are immutable after creation and may be used from several threads at
 *     once; each concurrent run needs its own workspace. Creating and destroying one object is not to be
 *     overlapped with its use. moba_set_log() is to be called before other threads use the library.
 *   - Structures that start with struct_size grow at their end only. Initialise them with their _INIT macro
 *     (or zero them and set struct_size = sizeof); a library newer than the caller reads the missing fields as
 *     zero, a library older than the caller refuses what it does not know unless it is zero.
 */
#ifndef MOBA_MOBA_H
#define MOBA_MOBA_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MOBA_API
#else
#define MOBA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define MOBA_VERSION_MAJOR 0
#define MOBA_VERSION_MINOR 1
#define MOBA_VERSION_PATCH 0

/* ---------------------------------------------------------------------------------------------- status -- */

/** Result of a call. Numbers are frozen; new ones are added at the end. */
typedef enum moba_status {
    MOBA_OK = 0,
    MOBA_ERROR_INVALID_ARGUMENT = 1,    /**< a value the API forbids: null pointer, negative stride, head_dim 0 */
    MOBA_ERROR_UNSUPPORTED = 2,         /**< legal in itself, but beyond docs/spec.md section 8 or this device */
    MOBA_ERROR_OUT_OF_MEMORY = 3,       /**< host or device memory could not be had */
    MOBA_ERROR_WORKSPACE_TOO_SMALL = 4, /**< workspace or saved buffer shorter than the plan's query said */
    MOBA_ERROR_UNKNOWN_BACKEND = 5,     /**< no backend of that name exists */
    MOBA_ERROR_BACKEND_UNAVAILABLE = 6, /**< the backends asked for exist, but none is built in or usable here */
    MOBA_ERROR_WRONG_CONTEXT = 7,       /**< stream or buffer of another context, where the backend can tell */
    MOBA_ERROR_INVALID_DATA = 8,        /**< validation found a bad selection or bad cu_seqlens */
    MOBA_ERROR_LAUNCH_FAILED = 9,       /**< the device refused or failed a launch; the context is still usable */
    MOBA_ERROR_DEVICE_LOST = 10,        /**< the device is gone; destroy the context */
    MOBA_ERROR_CAPTURE = 11,            /**< the call cannot be made while the stream is being captured */
    MOBA_ERROR_BAD_ENVIRONMENT = 12,    /**< a MOBA_* environment variable holds a value that cannot be read */
    MOBA_ERROR_INTERNAL = 13            /**< a defect in libmoba; please report the sentence */
} moba_status;

/** Static name of a status, such as "MOBA_ERROR_UNSUPPORTED"; "MOBA_ERROR_UNKNOWN" for other numbers. */
MOBA_API const char *moba_status_name(moba_status status);

/** The last error sentence of the calling thread; "" when none. Valid until the thread's next libmoba call. */
MOBA_API const char *moba_last_error(void);

/** Version of the library that is loaded, as "major.minor.patch"; static. */
MOBA_API const char *moba_version(void);

/** How much the library says; each level contains the ones before it. */
typedef enum moba_log_level {
    MOBA_LOG_NONE = 0,
    MOBA_LOG_ERROR = 1,    /**< failures, as in moba_last_error() */
    MOBA_LOG_DISPATCH = 2, /**< which backend was taken, and why others were not */
    MOBA_LOG_PLAN = 3,     /**< what moba_plan_explain() says, at plan creation */
    MOBA_LOG_RUN = 4,      /**< one line a run and a launch */
    MOBA_LOG_ALL = 5
} moba_log_level;

/** Receives one line, without a newline. May be called from any thread that calls the library. */
typedef void (*moba_log_fn)(void *user, moba_log_level level, const char *line);

/**
 * Sends log lines up to `level` to `fn`; NULL restores the default (stderr, level from MOBA_VERBOSE, else
 * none). `user` is passed through and stays the caller's.
 */
MOBA_API void moba_set_log(moba_log_fn fn, void *user, moba_log_level level);

/* ------------------------------------------------------------------------------------- backends, devices -- */

/** What moba_backend_info() and `moba info` show of one backend. Strings live as long as the library. */
typedef struct moba_backend_description {
    size_t struct_size;
    const char *name;  /**< "cpu", "cuda", "hip", "opencl", "vulkan" */
    int32_t built;     /**< 1 when this library contains it */
    int32_t usable;    /**< 1 when at least one device can be opened now */
    int32_t n_devices; /**< devices found */
    char reason[256];  /**< why it is not usable; "" when it is */
} moba_backend_description;
#define MOBA_BACKEND_DESCRIPTION_INIT                                                                                  \
    {                                                                                                                  \
        sizeof(moba_backend_description), NULL, 0, 0, 0, { 0 }                                                         \
    }

/** One device of one backend. */
typedef struct moba_device_description {
    size_t struct_size;
    char name[128];          /**< as the driver gives it */
    char driver[128];        /**< driver name and version */
    char capabilities[256];  /**< space-separated names that MOBA_CAPS_MASK accepts */
    uint64_t memory_bytes;   /**< total device memory */
    int32_t n_compute_units; /**< cores, multiprocessors, compute units; CPU: threads the context would use; 0 where
                                 the driver does not tell (Vulkan) */
    int32_t is_software;     /**< 1: a GPU API run by the CPU (PoCL, lavapipe) */
} moba_device_description;
#define MOBA_DEVICE_DESCRIPTION_INIT                                                                                   \
    { sizeof(moba_device_description), {0}, {0}, {0}, 0, 0, 0 }

/** Number of backends this version knows, built in or not. */
MOBA_API int32_t moba_backend_count(void);

/** Describes backend `index` in 0..moba_backend_count()-1. Probes devices, so the first call may take a while. */
MOBA_API moba_status moba_backend_info(int32_t index, moba_backend_description *out);

/** Describes device `device` of backend `index`. */
MOBA_API moba_status moba_device_info(int32_t index, int32_t device, moba_device_description *out);

/* ---------------------------------------------------------------------------------------------- context -- */

typedef struct moba_context moba_context; /**< one backend, one device; the parent of plans, buffers, streams */
typedef struct moba_plan moba_plan;       /**< one problem shape: kernels chosen, memory laid out */

typedef struct moba_context_options {
    size_t struct_size;
    /** Backend name or comma-separated list, tried in order. NULL: MOBA_BACKEND, else the best usable device:
     *  cuda, hip, vulkan, opencl (no software devices), else cpu. */
    const char *backend;
    /** Device index within the backend; -1: MOBA_DEVICE, else the backend's best. */
    int32_t device;
    /** CPU backend: threads that compute, the caller included; 0: all the process may run on. At most 1024. */
    int32_t n_threads;
    /** Native handles to adopt instead of opening a device: a moba_<backend>_handles of moba_<backend>.h, which
     *  stays the caller's. NULL: the library opens its own. `backend` must then name that one backend. */
    const void *native;
} moba_context_options;
#define MOBA_CONTEXT_OPTIONS_INIT                                                                                      \
    { sizeof(moba_context_options), NULL, -1, 0, NULL }

/**
 * Opens a context. `options` NULL means MOBA_CONTEXT_OPTIONS_INIT. A backend that is named (by `options` or by
 * MOBA_BACKEND) never falls back to one that is not.
 * Errors: UNKNOWN_BACKEND, BACKEND_UNAVAILABLE (the sentence lists every backend tried and its reason),
 * INVALID_ARGUMENT, BAD_ENVIRONMENT, OUT_OF_MEMORY.
 */
MOBA_API moba_status moba_context_create(const moba_context_options *options, moba_context **out);

/** Closes a context; NULL is allowed. Plans, buffers and streams made from it must be destroyed before. */
MOBA_API void moba_context_destroy(moba_context *context);

/** Name of the context's backend; lives as long as the library. */
MOBA_API const char *moba_context_backend(const moba_context *context);

/** Describes the context's own device, after MOBA_CAPS_MASK. */
MOBA_API moba_status moba_context_device(const moba_context *context, moba_device_description *out);

/* -------------------------------------------------------------------------------------- buffers, streams -- */

/** A place in device memory. `handle` 0 means "none". */
typedef struct moba_buffer {
    uint64_t handle; /**< an address (CPU, CUDA, HIP), a cl_mem, a VkBuffer */
    uint64_t offset; /**< bytes past it */
} moba_buffer;
#define MOBA_BUFFER_NULL                                                                                               \
    { 0, 0 }

/** A 3-d view [token][head][head_dim] with head_dim contiguous. Strides in elements, none negative. */
typedef struct moba_tensor {
    moba_buffer buffer;
    int64_t token_stride;
    int64_t head_stride;
    int64_t batch_stride; /**< from one sequence to the next; read only where cu_seqlens is none */
} moba_tensor;

/** An ordered queue of work. */
typedef struct moba_stream {
    void *native; /**< CUstream, hipStream_t, cl_command_queue, VkCommandBuffer; NULL: the default one, always so on the
                     CPU */
} moba_stream;

/** A moment in a stream, for timing. */
typedef struct moba_event {
    void *native;
} moba_event;

/** Allocates `bytes` (> 0) of device memory, aligned to at least 256 bytes, contents unspecified. */
MOBA_API moba_status moba_buffer_create(moba_context *context, size_t bytes, moba_buffer *out);

/** Frees what moba_buffer_create() gave; a none buffer is allowed. Work that uses it must have finished. */
MOBA_API void moba_buffer_destroy(moba_context *context, moba_buffer buffer);

/** Copies `bytes` from host memory into `buffer`. Ordered after earlier work of `stream`; returns when `data` may be
 * reused. */
MOBA_API moba_status moba_buffer_write(moba_context *context, moba_stream stream, moba_buffer buffer, const void *data,
                                       size_t bytes);

/** Copies `bytes` from `buffer` to host memory. Waits for earlier work of `stream`. */
MOBA_API moba_status moba_buffer_read(moba_context *context, moba_stream stream, moba_buffer buffer, void *data,
                                      size_t bytes);

/** Sets `bytes` bytes to `value`. Ordered in `stream`. On some devices offset and bytes must be multiples of 4. */
MOBA_API moba_status moba_buffer_fill(moba_context *context, moba_stream stream, moba_buffer buffer, uint8_t value,
                                      size_t bytes);

/** Creates a stream of the context's device. On the CPU every stream is the default one and runs are synchronous. */
MOBA_API moba_status moba_stream_create(moba_context *context, moba_stream *out);
/** Destroys what moba_stream_create() gave; a NULL stream is allowed. Work of it must have finished. */
MOBA_API void moba_stream_destroy(moba_context *context, moba_stream stream);

/** Waits until all work of `stream` has finished; reports what failed in it. */
MOBA_API moba_status moba_stream_synchronize(moba_context *context, moba_stream stream);

/** Creates an event. It must be recorded before it is read. */
MOBA_API moba_status moba_event_create(moba_context *context, moba_event *out);
/** Destroys an event; a NULL one is allowed. */
MOBA_API void moba_event_destroy(moba_context *context, moba_event event);

/** Marks the present end of `stream`. An event may be recorded again. */
MOBA_API moba_status moba_event_record(moba_context *context, moba_stream stream, moba_event event);

/** Milliseconds of device time between two recorded events; waits for both. */
MOBA_API moba_status moba_event_elapsed(moba_context *context, moba_event begin, moba_event end, double *ms);

/* ---------------------------------------------------------------------------------------------- problem -- */

/** Element type of q, k, v, o and their gradients. */
typedef enum moba_dtype {
    MOBA_F32 = 0, /**< IEEE binary32 */
    MOBA_F16 = 1, /**< IEEE binary16 */
    MOBA_BF16 = 2 /**< upper half of binary32 */
} moba_dtype;

/** moba_problem.workspace_limit: as large as the fastest layout wants. */
#define MOBA_WORKSPACE_UNLIMITED UINT64_MAX

/**
 * What is to be computed, with upper bounds for the run-time shapes. Symbols as in docs/spec.md section 1.
 * Limits: docs/spec.md section 8. An over-large bound never changes a bit of the output.
 */
typedef struct moba_problem {
    size_t struct_size;
    moba_dtype dtype;
    int32_t n_q_heads;        /**< a multiple of n_kv_heads */
    int32_t n_kv_heads;       /**< query head h reads key-value head h / (n_q_heads / n_kv_heads) */
    int32_t head_dim;         /**< 1..256 */
    int32_t block_size;       /**< keys in a routed block, >= 16; ignored when dense */
    int32_t top_k;            /**< blocks a row attends to, own and forced ones included: 1..128, or at least the
                                   number of blocks of the longest key sequence (dense attention); ignored when dense */
    int32_t n_sink_blocks;    /**< first blocks of the sequence that are always taken; ignored when dense */
    int32_t n_local_blocks;   /**< most recent blocks, own included, always taken; needs causal; ignored when
                                   dense */
    int32_t kconv_width;      /**< taps of the key convolution: 0 (none) or 2..8 (arXiv 2511.11571 appendix C) */
    int32_t causal;           /**< 1: bottom-right aligned causal mask; 0: none */
    int32_t dense;            /**< 1: every key, no routing (for hybrid models) */
    int32_t deterministic;    /**< 1: moba_backward() must be bit-identical from run to run; refused if it cannot be */
    float softmax_scale;      /**< factor on <q, k>; 0: 1 / sqrt(head_dim). Must be finite */
    int64_t max_batch;        /**< sequences a run may have, >= 1 */
    int64_t max_total_q;      /**< query rows over all sequences, storage rows included, < 2^31 */
    int64_t max_total_k;      /**< key rows over all sequences, < 2^31 */
    int64_t max_seqlen_q;     /**< longest query sequence; 0: max_total_q */
    int64_t max_seqlen_k;     /**< longest key sequence; 0: max_total_k */
    uint64_t workspace_limit; /**< bytes; 0: the backend's default, MOBA_WORKSPACE_UNLIMITED: no limit. A limit
                                   below the least possible is refused, with the least in the sentence */
    int32_t inference;        /**< 1: no backward will be run, so that workspace and workspace_limit are the forward's
                                   alone and nothing is saved; moba_backward() is then refused */
    int32_t reserved;         /**< 0 */
} moba_problem;
#define MOBA_PROBLEM_INIT                                                                                              \
    { sizeof(moba_problem), MOBA_F32, 1, 1, 64, 128, 8, 0, 0, 0, 1, 0, 0, 0.0f, 1, 0, 0, 0, 0, 0, 0, 0 }

/* ------------------------------------------------------------------------------------------------- plan -- */

/**
 * Chooses kernels and lays out memory for `problem` (copied). No device work is started.
 * Errors: INVALID_ARGUMENT and UNSUPPORTED name the field, its value and the limit; OUT_OF_MEMORY.
 */
MOBA_API moba_status moba_plan_create(moba_context *context, const moba_problem *problem, moba_plan **out);

/** Frees a plan; NULL is allowed. Runs made with it may still be executing on the device. */
MOBA_API void moba_plan_destroy(moba_plan *plan);

/** Exact bytes of workspace that any single run of this plan needs (may be 0). Align it to 256 bytes. */
MOBA_API moba_status moba_plan_workspace(const moba_plan *plan, size_t *bytes);

/** Exact bytes of the saved buffer: the routing of one forward (which picks count, block index), kept by the caller
 *  until its backward. 0 for a dense or an inference plan. Align it to 256 bytes. */
MOBA_API moba_status moba_plan_saved(const moba_plan *plan, size_t *bytes);

/**
 * Writes the plan in words: problem, device, kernel per stage with its cost in microseconds, slices, memory, and
 * every kernel that was rejected with its reason. Always terminates `text`; a text longer than `capacity` is cut.
 * `text` NULL with capacity 0 is refused with the bytes that are needed in the sentence.
 */
MOBA_API moba_status moba_plan_explain(const moba_plan *plan, char *text, size_t capacity);

/** Name of the kernel chosen for `stage` ("kconv", "centroid", "gate", "index", "attend", "combine", "delta",
 *  "attend_bwd", "dq_sum", "kconv_bwd"); NULL when the plan has no such stage. Lives as long as the plan. */
MOBA_API const char *moba_plan_kernel(const moba_plan *plan, const char *stage);

/** Model cost in microseconds of one pass at the plan's upper bounds: "fwd", "bwd" or "route". */
MOBA_API moba_status moba_plan_cost(const moba_plan *plan, const char *pass, double *microseconds);

/* ------------------------------------------------------------------------------------------------- runs -- */

/** What every run reads. Part of the argument structures below; its layout is frozen. */
typedef struct moba_inputs {
    moba_tensor q;            /**< [total_q][n_q_heads][head_dim] */
    moba_tensor k;            /**< [total_k][n_kv_heads][head_dim]; raw keys, before the key convolution */
    moba_tensor v;            /**< like k; not read by moba_route() */
    moba_buffer kconv_weight; /**< dtype [n_kv_heads][head_dim][kconv_width], tap l looks l keys back; none when
                                 kconv_width is 0 */
    moba_buffer cu_seqlens_q; /**< int32 [batch + 1] ascending from 0, in device memory; none: `batch` sequences of
                                 equal length */
    moba_buffer cu_seqlens_k; /**< likewise for keys; both or neither */
    int64_t batch;            /**< sequences, 1..max_batch */
    int64_t total_q;          /**< storage rows of q, 0..max_total_q; without cu_seqlens a multiple of batch */
    int64_t total_k;          /**< storage rows of k and v */
} moba_inputs;

/** A forward: routing, attention, o and lse. */
typedef struct moba_forward_args {
    size_t struct_size;
    moba_inputs in;
    moba_tensor o;         /**< out, like q */
    moba_buffer lse;       /**< out, float32 [n_q_heads][total_q], natural log; none allowed for inference */
    moba_buffer selection; /**< out, int32 [total_q][n_q_heads][top_k], ascending, padded with -1; none allowed */
    moba_buffer saved;     /**< out, moba_plan_saved() bytes for moba_backward(); none: inference */
    size_t saved_bytes;
    moba_buffer workspace; /**< moba_plan_workspace() bytes, contents irrelevant before and after */
    size_t workspace_bytes;
} moba_forward_args;
#define MOBA_FORWARD_ARGS_INIT                                                                                         \
    { .struct_size = sizeof(moba_forward_args) }

/** The gate alone: the selection (spec.md sections 2 to 4). */
typedef struct moba_route_args {
    size_t struct_size;
    moba_inputs in;
    moba_buffer selection; /**< out, as above; required */
    moba_buffer workspace; /**< as above */
    size_t workspace_bytes;
} moba_route_args;
#define MOBA_ROUTE_ARGS_INIT                                                                                           \
    { .struct_size = sizeof(moba_route_args) }

/** Attention over a selection the caller prescribes (spec.md sections 4 and 5). */
typedef struct moba_attend_args {
    size_t struct_size;
    moba_inputs in;
    moba_buffer selection; /**< in; ids out of range or repeated in a row are ignored (MOBA_VALIDATE=1: an error) */
    moba_tensor o;         /**< out; this and what follows as in moba_forward_args */
    moba_buffer lse;
    moba_buffer saved;
    size_t saved_bytes;
    moba_buffer workspace;
    size_t workspace_bytes;
} moba_attend_args;
#define MOBA_ATTEND_ARGS_INIT                                                                                          \
    { .struct_size = sizeof(moba_attend_args) }

/** Gradients with the forward's selection held fixed (spec.md section 6). */
typedef struct moba_backward_args {
    size_t struct_size;
    moba_inputs in;    /**< as given to the forward */
    moba_tensor o;     /**< in: the forward's output */
    moba_buffer lse;   /**< in: the forward's lse */
    moba_tensor dout;  /**< in: gradient of o, like q */
    moba_buffer saved; /**< in: the forward's saved buffer; none only for a dense plan */
    size_t saved_bytes;
    moba_tensor dq;            /**< out, like q */
    moba_tensor dk;            /**< out, like k; gradient of the raw keys */
    moba_tensor dv;            /**< out, like v */
    moba_buffer dkconv_weight; /**< out, float32 [n_kv_heads][head_dim][kconv_width]; none when kconv_width is 0 */
    moba_buffer workspace;
    size_t workspace_bytes;
} moba_backward_args;
#define MOBA_BACKWARD_ARGS_INIT                                                                                        \
    { .struct_size = sizeof(moba_backward_args) }

/**
 * Enqueue one pass of `plan` on `stream`. Buffers must stay valid until the stream has passed this work, and no
 * output may overlap an input, another output or the workspace. On the CPU the call returns when all is done.
 * Common errors: INVALID_ARGUMENT (missing or misaligned buffer, negative stride, shapes that disagree), UNSUPPORTED
 * (a shape past the plan's bounds), WORKSPACE_TOO_SMALL, INVALID_DATA and CAPTURE (with MOBA_VALIDATE=1 only),
 * LAUNCH_FAILED, DEVICE_LOST, OUT_OF_MEMORY.
 */
MOBA_API moba_status moba_forward(const moba_plan *plan, moba_stream stream, const moba_forward_args *args);
MOBA_API moba_status moba_backward(const moba_plan *plan, moba_stream stream, const moba_backward_args *args);
MOBA_API moba_status moba_route(const moba_plan *plan, moba_stream stream, const moba_route_args *args);
MOBA_API moba_status moba_attend(const moba_plan *plan, moba_stream stream, const moba_attend_args *args);

/* ----------------------------------------------------------------------------------------------- theory -- */

/**
 * Signal-to-noise ratio of block routing, Dmu_eff * sqrt(head_dim / (2 block_size)) with
 * Dmu_eff = delta_mu + (cluster_size - 1) * cluster_delta (arXiv 2511.11571 section 3; docs/theory.md).
 * `delta_mu`: mean affinity of the relevant key above the others, for keys and queries of unit norm.
 * `cluster_size` >= 1: keys of the relevant block that share a raised affinity, `cluster_delta` above the others.
 * NaN for head_dim < 1, block_size < 1 or cluster_size < 1.
 */
MOBA_API double moba_snr(int32_t head_dim, int64_t block_size, double delta_mu, int64_t cluster_size,
                         double cluster_delta);

/** Probability Phi(-snr) that one given noise block outscores the relevant one. */
MOBA_API double moba_snr_failure(double snr);

/** The SNR above which top_k of n_blocks is reliable: Phi^-1(1 - top_k / n_blocks); -inf when top_k >= n_blocks. */
MOBA_API double moba_snr_required(int64_t n_blocks, int64_t top_k);

/** Probability that the relevant block is among the top_k of n_blocks when each noise block beats it
 *  independently given its score: a one-dimensional integral over the relevant block's score. */
MOBA_API double moba_snr_recall(double snr, int64_t n_blocks, int64_t top_k);

/** One choice that moba_advise() considered. */
typedef struct moba_advice {
    size_t struct_size;
    int32_t block_size;
    int32_t top_k;
    double snr;          /**< of this block size */
    double snr_required; /**< by this top_k at this length */
    double recall;       /**< moba_snr_recall() */
    double forward_us;   /**< cost model, microseconds */
    double backward_us;
    double dense_forward_us; /**< the same problem with dense = 1 */
    double dense_backward_us;
    int64_t break_even; /**< least sequence length from which this forward is faster than dense; -1: none up to 2^24 */
} moba_advice;

/**
 * Ranks choices of block_size and top_k for `problem` (whose block_size and top_k are ignored) on the context's
 * device: reliable ones (recall >= 0.99 at `delta_mu`) by forward time, then the rest by recall. Equal shares of keys
 * are compared through top_k * block_size <= `max_keys` (0: 1024 or the length, whichever is less).
 * `out` holds `capacity` entries, each with struct_size set in the first; `*n` becomes the number written.
 */
MOBA_API moba_status moba_advise(moba_context *context, const moba_problem *problem, double delta_mu, int64_t max_keys,
                                 moba_advice *out, int32_t capacity, int32_t *n);

#ifdef __cplusplus
}
#endif
#endif
