/* SPDX-License-Identifier: Apache-2.0
 *
 * The generated (simt) tier as the backends see it: kernels with their parameters, instances, and the rows of the
 * variants table. A backend holds the device code of each instance, in the order of mobai_simt_instances; to run a
 * variant it packs and launches the instances of its program one after the other, with whatever its API needs between
 * dependent launches.
 *
 *   #include "simt_table.h"
 *   static const mobai_variant variants[] = {
 *   #include "simt_rows.inc"       (after #include "codegen/host/simt_row.h")
 *   };
 */
#ifndef MOBAI_SIMT_H
#define MOBAI_SIMT_H

#include "core/backend.h"
#include "core/geometry.h"

typedef enum mobai_param_kind {
    MOBAI_PARAM_BUFFER,  /* offset: of a moba_buffer */
    MOBAI_PARAM_I64,     /* offset: of an int64_t */
    MOBAI_PARAM_BATCH_Q, /* i64; offset: of a moba_tensor over query rows. What b adds to t * token_stride: 0 with */
    MOBAI_PARAM_BATCH_K, /*      cu_seqlens, else batch_stride - seqlen * token_stride */
    MOBAI_PARAM_DERIVED_I64, /* offset: index of the derived value */
    MOBAI_PARAM_32,          /* offset: of an int32_t or float */
    MOBAI_PARAM_PRESENT,     /* i32; offset: of a moba_buffer; 1 when it is not none */
    MOBAI_PARAM_DERIVED_I32
} mobai_param_kind;

/** Parameters stand in the order buffers, 64-bit scalars, 32-bit scalars. */
typedef struct mobai_kernel_param {
    uint8_t kind;
    uint8_t writes; /* buffers: the kernel writes it */
    uint16_t offset;
    const char *name;
} mobai_kernel_param;

enum { MOBAI_MAX_DERIVED = 8, MOBAI_MAX_KERNEL_PARAMS = 64, MOBAI_MAX_STEPS = 8, MOBAI_MAX_AXES = 4 };

/** One .kern file. */
typedef struct mobai_kernel {
    const char *name;
    const mobai_kernel_param *params;
    int32_t n_params;
    int32_t block_bytes; /* of all parameters one after the other, buffers as 8-byte addresses; a multiple of 8 */
    /** Fills the derived values and the number of work-groups in x, y and z. */
    void (*launch)(const mobai_stage_args *args, const int32_t *axes, int64_t *derived, int64_t *groups);
} mobai_kernel;

/** One dtype and tile of a kernel. `name` is its device function. */
typedef struct mobai_simt_instance {
    const char *name;
    const mobai_kernel *kernel;
    int32_t lanes;
    int32_t shared_bytes;
    int32_t axes[MOBAI_MAX_AXES]; /* values, in the order of the .kern file */
} mobai_simt_instance;
extern const mobai_simt_instance mobai_simt_instances[];
extern const size_t mobai_n_simt_instances;

/** The instances a variant launches, in order: mobai_variant.code of its row. */
typedef struct mobai_simt_program {
    int32_t n_steps;
    uint16_t steps[MOBAI_MAX_STEPS];
} mobai_simt_program;

/** Device code, in the order of the instances. Each is linked only where its backend is built. */
typedef struct mobai_simt_words {
    const uint32_t *words;
    size_t bytes;
} mobai_simt_words;
extern const char *const mobai_simt_opencl[];
extern const mobai_simt_words mobai_simt_spirv[];
extern const mobai_simt_words mobai_simt_spirv_bound[]; /* buffers as descriptors */

/** One launch, ready to be handed to an API. */
typedef struct mobai_launch {
    moba_buffer buffers[MOBAI_MAX_KERNEL_PARAMS]; /* the first n_buffers parameters */
    int32_t n_buffers, n_wide;                    /* n_wide: 64-bit scalars after the buffers */
    int64_t wide[MOBAI_MAX_KERNEL_PARAMS];
    uint32_t narrow[MOBAI_MAX_KERNEL_PARAMS]; /* the other n_params - n_buffers - n_wide, as bits */
    int64_t groups[3];                        /* a zero anywhere: nothing to launch */
} mobai_launch;

void mobai_simt_pack(const mobai_simt_instance *instance, const mobai_stage_args *args, mobai_launch *out);

/** Writes the parameter block: addresses[i] of each buffer, wide, then narrow scalars. `block` has kernel->block_bytes.
 */
void mobai_simt_fill_block(const mobai_simt_instance *instance, const mobai_launch *launch, const uint64_t *addresses,
                           void *block);

/* ---------------------------------------------- what the headers of .kern files call, and the rows name -- */

#define CEIL_DIV(a, b) mobai_ceil_div(a, b)
/** Work-groups n as x by y, with x no more than every device takes. Kernels read GROUP_XY. */
#define FOLD_X(n) mobai_min64(n, 32768)
#define FOLD_Y(n) mobai_ceil_div(n, 32768)

/** Query rows that one lane of the index stage walks. At most 512 chunks, so that their counts stay small. */
int64_t mobai_simt_chunk_queries(int64_t total_q);
/** Picks of the slice: rows times top_k. */
int64_t mobai_simt_slice_picks(const mobai_stage_args *args);
/** At least the number of 64-row tiles that any routing of one kv head gives. */
int64_t mobai_simt_tiles(const mobai_stage_args *args);

const char *mobai_simt_reject(const mobai_simt_program *program, const moba_problem *p, const mobai_caps *c,
                              int32_t dim_tile);
const char *mobai_simt_reject_gate(const moba_problem *p, int32_t tile_m);
const char *mobai_simt_reject_sparse(const moba_problem *p, int32_t tile_m);
const char *mobai_simt_reject_dense(const moba_problem *p, int32_t tile_m);
/** tile_m: TAPS of kconv_taps.kinc. */
const char *mobai_simt_reject_kconv(const moba_problem *p, int32_t tile_m);

size_t mobai_simt_scratch_index(const mobai_shape *shape);
size_t mobai_simt_scratch_schedule(const mobai_shape *shape);
size_t mobai_simt_scratch_kconv_bwd(const mobai_shape *shape);

double mobai_simt_cost_kconv(const mobai_shape *shape);
double mobai_simt_cost_centroid(const mobai_shape *shape);
double mobai_simt_cost_gate(const mobai_shape *shape);
double mobai_simt_cost_index(const mobai_shape *shape);
double mobai_simt_cost_attend(const mobai_shape *shape);
double mobai_simt_cost_combine(const mobai_shape *shape);
double mobai_simt_cost_delta(const mobai_shape *shape);
double mobai_simt_cost_attend_bwd(const mobai_shape *shape);
double mobai_simt_cost_dq_sum(const mobai_shape *shape);
double mobai_simt_cost_kconv_bwd(const mobai_shape *shape);

#endif
