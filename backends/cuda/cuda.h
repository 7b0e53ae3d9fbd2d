/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the CUDA backend share: the device, the embedded kernels, and launching.
 */
#ifndef MOBAI_CUDA_CUDA_H
#define MOBAI_CUDA_CUDA_H

#include "backends/cuda/driver.h"
#include "backends/cuda/kernels/sm90/params.h"
#include "core/backend.h"

/** Embedded code: one fatbin for each stage's source file. */
typedef enum cuda_module_id {
    CUDA_MODULE_CENTROID,
    CUDA_MODULE_GATE,
    CUDA_MODULE_INDEX,
    CUDA_MODULE_ATTEND,
    CUDA_MODULE_COMBINE,
    CUDA_MODULE_DELTA,
    CUDA_MODULE_ATTEND_BWD,
    CUDA_MODULE_DQ_SUM,
    CUDA_MODULE_COUNT
} cuda_module_id;

/** Kernels of the index module; after COUNT, count and scatter for up to 8, 16 and 32 picks. */
enum { CUDA_INDEX_SCAN, CUDA_INDEX_CUT, CUDA_INDEX_ITEMS, CUDA_INDEX_COUNT };

/** Kernels of the attend_bwd module; from FINISH and MAIN on, one for each type, head_dim and alignment. */
enum { CUDA_BWD_CUT, CUDA_BWD_ITEMS, CUDA_BWD_FINISH, CUDA_BWD_MAIN = CUDA_BWD_FINISH + 4 };

/** Most kernels of one module. */
#define CUDA_MAX_KERNELS 28

typedef struct cuda_kernel {
    const char *name;
    unsigned dynamic_shared; /* bytes; the largest a launch asks for */
} cuda_kernel;

typedef struct cuda_module {
    const char *name;
    const unsigned char *image;
    cuda_kernel kernels[CUDA_MAX_KERNELS]; /* ends with a NULL name */
} cuda_module;
extern const cuda_module cuda_modules[CUDA_MODULE_COUNT];

/** Generated kernels: the number of .kern files, those on matrix cores too, and of the rows of the variants table. */
enum {
    CUDA_N_SIMT_KERNELS = 0
#define SIMT_KERNEL(name) +1
#include "simt_kernels.inc"
#undef SIMT_KERNEL
    ,
    CUDA_N_NATIVE_VARIANTS = 29 + 16, /* sm_90a, then mma.sync */
    CUDA_N_VARIANTS = CUDA_N_NATIVE_VARIANTS
#define MOBAI_SIMT_ROW(row, stage, dtypes, flow, m, n, cost, scratch) +1
#include "simt_rows.inc"
#undef MOBAI_SIMT_ROW
};

struct mobai_device {
    mobai_driver_device base;
    cu_device device;
    cu_context context;
    int index;
    int owns_primary; /* the primary context was retained */
    int n_multiprocessors;
    mobai_caps caps;
    cu_module modules[CUDA_MODULE_COUNT];
    cu_function functions[CUDA_MODULE_COUNT][CUDA_MAX_KERNELS];
    cu_module simt_modules[CUDA_N_SIMT_KERNELS];
};

/** How a native variant is launched: its mobai_variant.code. */
typedef struct cuda_code {
    cuda_module_id module;
    int head_dim; /* 0: any */
    int bf16;
    moba_status (*launch)(mobai_device *device, cu_stream stream, const struct cuda_code *code,
                          const mobai_stage_args *args);
} cuda_code;

/** Makes the device's context current on this thread; pair with cuda_leave(). */
moba_status cuda_enter(const mobai_device *device);
void cuda_leave(void);

/** Loads a module and looks up its kernels; idempotent. The context must be current. */
moba_status cuda_load(mobai_device *device, cuda_module_id module);
void cuda_unload_all(mobai_device *device);

/* launch.c: what it shares with launch_bwd.c */
typedef struct cuda_grid {
    unsigned x, y, z, threads, shared;
} cuda_grid;
/** Kernel parameters of a stage; the backward's own are left 0. */
mobai_sm90_params cuda_params_of(const mobai_stage_args *args);
mobai_sm90_tensor cuda_tensor(const moba_tensor *t, int64_t seqlen, bool packed);
/** Rows can be moved 16 bytes at a time. */
bool cuda_is_aligned(const mobai_sm90_tensor *t);
/** Place of a kernel in its BY_ELEMENT_AND_DIM group. */
int cuda_kernel_place(const cuda_code *code, bool aligned);
unsigned cuda_shared_of(cuda_module_id module, int kernel);
moba_status cuda_run(mobai_device *device, cu_stream stream, cuda_module_id module, int kernel, cuda_grid g,
                     mobai_sm90_params *p);

/* launch.c */
moba_status cuda_launch_centroid(mobai_device *, cu_stream, const cuda_code *, const mobai_stage_args *);
moba_status cuda_launch_gate(mobai_device *, cu_stream, const cuda_code *, const mobai_stage_args *);
moba_status cuda_launch_index(mobai_device *, cu_stream, const cuda_code *, const mobai_stage_args *);
moba_status cuda_launch_attend(mobai_device *, cu_stream, const cuda_code *, const mobai_stage_args *);
moba_status cuda_launch_combine(mobai_device *, cu_stream, const cuda_code *, const mobai_stage_args *);

/* launch_bwd.c */
moba_status cuda_launch_delta(mobai_device *, cu_stream, const cuda_code *, const mobai_stage_args *);
moba_status cuda_launch_attend_bwd(mobai_device *, cu_stream, const cuda_code *, const mobai_stage_args *);
moba_status cuda_launch_dq_sum(mobai_device *, cu_stream, const cuda_code *, const mobai_stage_args *);

/** Variants of launch.c and launch_bwd.c, whose code is a cuda_code. */
static inline bool cuda_is_native(const mobai_variant *variant) { return (variant->needs & MOBAI_CAP_WGMMA) != 0; }
/** Variants on matrix cores, over mma.sync, whose code is a mobai_driver_matrix. The code of the others is a program.
 */
static inline bool cuda_is_matrix(const mobai_variant *variant) { return (variant->needs & MOBAI_CAP_MMA) != 0; }

/* simt.c: the context must be current. */
moba_status cuda_simt_module(mobai_device *device, const char *kernel, void **module);
void cuda_simt_unload(mobai_device *device);

/** Scratch of the index for runs up to these bounds. */
size_t cuda_index_scratch(int64_t n_kv_heads, int64_t n_rows, int64_t n_slots, int32_t top_k);
/** Attend's pieces of work for the kv heads of one slice. */
size_t cuda_slice_item_bytes(const mobai_shape *shape);
/** Attend's pieces of work that the index leaves: of all kv heads and query ranges, unless the ranges are many. */
size_t cuda_all_item_bytes(const mobai_shape *shape);
/** The index's map of where each pick went. */
size_t cuda_map_bytes(int64_t n_q_heads, int64_t total_q, int32_t top_k);
size_t cuda_attend_bwd_scratch(const mobai_shape *shape);
/** Key tiles of a block in the backward: each writes a partial of dQ for every pick. */
int32_t cuda_key_tiles(int32_t block_size);

/** mobai_backend.kept_bytes: what the index leaves for attend and combine: its map of picks, then attend's items of all
 *  kv heads. */
size_t cuda_kept_bytes(const mobai_variant *variant, const mobai_shape *shape);

extern const mobai_variant cuda_variants[CUDA_N_VARIANTS];

#endif
