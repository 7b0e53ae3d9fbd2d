/* SPDX-License-Identifier: Apache-2.0
 *
 * The parts of `moba run`: options (run.c), input files and their checks (run_inputs.c), the run on a device and its
 * outputs (run_device.c).
 */
#ifndef MOBAI_JOB_H
#define MOBAI_JOB_H

#include "cli/safetensors.h"
#include "cli/tensor_file.h"

/** Input tensors, in the order of run_inputs.c's table of names. */
typedef enum mobai_job_tensor {
    MOBAI_JOB_Q,
    MOBAI_JOB_K,
    MOBAI_JOB_V,
    MOBAI_JOB_DO,
    MOBAI_JOB_KCONV_WEIGHT,
    MOBAI_JOB_SELECTION,
    MOBAI_JOB_CU_SEQLENS_Q,
    MOBAI_JOB_CU_SEQLENS_K,
    MOBAI_JOB_TENSOR_COUNT
} mobai_job_tensor;

/** What the command line says. */
typedef struct mobai_job_options {
    const char *paths[MOBAI_JOB_TENSOR_COUNT]; /* NULL: not given */
    const char *input;                         /* the safetensors file; NULL: none */
    const char *out;
    const char *backend;
    bool has_block_size, has_top_k, has_dtype;
    moba_dtype dtype;
    int32_t block_size, top_k, n_sink_blocks, n_local_blocks;
    bool causal, dense, deterministic;
    float softmax_scale; /* 0: the default */
} mobai_job_options;

/** One input tensor; `fd` is -1 where there is none. */
typedef struct mobai_job_input {
    int fd;
    bool owns_fd;    /* not one that belongs to the safetensors file */
    char label[256]; /* for sentences: "q.npy", "q of x.safetensors" */
    mobai_tensor_view view;
} mobai_job_input;

/** Everything known once the inputs are checked. */
typedef struct mobai_job {
    mobai_job_options options;
    mobai_safetensors *file;
    mobai_job_input inputs[MOBAI_JOB_TENSOR_COUNT];
    moba_dtype dtype;
    int64_t total_q, total_k, batch, max_seqlen_q, max_seqlen_k;
    int32_t n_q_heads, n_kv_heads, head_dim, top_k, kconv_width;
    int32_t *cu_seqlens_q, *cu_seqlens_k, *selection; /* NULL: none */
} mobai_job;

static inline bool mobai_job_has(const mobai_job *job, mobai_job_tensor tensor) { return job->inputs[tensor].fd >= 0; }

/** Name of a tensor in a safetensors file ("kconv_weight") and as an option, without the dashes ("kconv-weight"). */
const char *mobai_job_tensor_name(mobai_job_tensor tensor);
const char *mobai_job_tensor_option(mobai_job_tensor tensor);

/** Opens the inputs of job->options, checks types, shapes, cu_seqlens and selection, and fills in the rest of `job`.
 *  Returns an exit code, having said what is wrong; mobai_job_close() is needed either way. */
int mobai_job_open(mobai_job *job);
void mobai_job_close(mobai_job *job);

/** Plans, uploads, runs, and writes the outputs. Returns an exit code, having said what failed. */
int mobai_job_execute(const mobai_job *job);

#endif
