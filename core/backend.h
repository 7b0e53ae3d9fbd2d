/* SPDX-License-Identifier: Apache-2.0
 *
 * The seam between the core and the backends: capabilities, the stage contract, kernel variants, and the table
 * of functions a backend fills. The core calls a backend only through this header; see backends/README.md.
 */
#ifndef MOBAI_BACKEND_H
#define MOBAI_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moba/moba.h"

/* ----------------------------------------------------------------------------------------- capabilities -- */

/** What a device can do, as bits. The names are those of MOBA_CAPS_MASK (core/caps.c). */
typedef uint64_t mobai_cap_set;
#define MOBAI_CAP_AVX2 (1ull << 0)       /* AVX2, FMA, F16C */
#define MOBAI_CAP_AVX512 (1ull << 1)     /* AVX-512 F, BW, VL, DQ */
#define MOBAI_CAP_AVX512BF16 (1ull << 2) /* AVX-512 BF16 dot products */
#define MOBAI_CAP_MMA (1ull << 3)        /* mma.sync, sm_80 and later */
#define MOBAI_CAP_WGMMA (1ull << 4)      /* sm_90a */
#define MOBAI_CAP_MFMA (1ull << 5)       /* CDNA matrix cores */
#define MOBAI_CAP_WMMA (1ull << 6)       /* RDNA matrix cores */
#define MOBAI_CAP_COOPMAT (1ull << 7)    /* Vulkan cooperative matrix */
#define MOBAI_CAP_FP16 (1ull << 8)       /* half arithmetic in generated kernels */
#define MOBAI_CAP_SUBGROUPS (1ull << 9)  /* subgroup shuffles and reductions */
#define MOBAI_CAP_BDA (1ull << 10)       /* Vulkan buffer device addresses */

/** Device limits and rates that variants reject on and costs are made of. */
typedef struct mobai_caps {
    mobai_cap_set set;          /* after MOBA_CAPS_MASK */
    int32_t n_compute_units;    /* threads (CPU), multiprocessors, compute units */
    int32_t subgroup_size;      /* lanes; 1 on the CPU */
    int32_t max_workgroup_size; /* lanes; 1 on the CPU */
    size_t local_memory_bytes;  /* shared memory of one work-group; the CPU's L2 */
    size_t memory_bytes;        /* total device memory */
    double matrix_gflops;       /* best dense rate of the device for f32 (CPU) or 16-bit (GPU) products */
    double copy_gbytes;         /* read + write, per second */
    size_t default_workspace_limit;
} mobai_caps;

/** Writes the names of `set`, separated by spaces. */
void mobai_caps_format(mobai_cap_set set, char *text, size_t capacity);

/** One name of MOBA_CAPS_MASK. */
typedef struct mobai_cap_name {
    const char *name;
    mobai_cap_set bit;
} mobai_cap_name;
extern const mobai_cap_name mobai_cap_names[];
extern const size_t mobai_n_cap_names;

/* --------------------------------------------------------------------------------------- stage contract -- */

/** Pipeline stages in launch order; the order of names in core/plan.c. */
typedef enum mobai_stage {
    MOBAI_STAGE_KCONV,
    MOBAI_STAGE_CENTROID,
    MOBAI_STAGE_GATE,
    MOBAI_STAGE_INDEX,
    MOBAI_STAGE_ATTEND,
    MOBAI_STAGE_COMBINE,
    MOBAI_STAGE_DELTA,
    MOBAI_STAGE_ATTEND_BWD,
    MOBAI_STAGE_DQ_SUM,
    MOBAI_STAGE_KCONV_BWD,
    MOBAI_STAGE_COUNT
} mobai_stage;

/**
 * Everything a stage may read, the same structure for all stages and backends: a generated kernel's header names
 * its members, and the packing table holds their offsets.
 *
 * Block slots: block j of sequence b is slot cu_k[b] / block_size + b + j, where without cu_seqlens
 * cu[b] = b * seqlen. Slots of different sequences never collide, n_slots = total_k / block_size + batch bounds them,
 * and no prefix sum is needed (core/geometry.h). Slots that no sequence owns have empty lists.
 *
 * Index: for kv head g and slot s the gathered rows that chose s are
 * index_rows[g * index_row_stride + x], x in [index_offsets[g * (n_slots + 1) + s], index_offsets[g * (n_slots + 1) + s
 * + 1]), ascending; a row is t * group + (h - g * group) for query row t and query head h. index_ranks, in parallel, is
 * the row's position in its selection list: row r's pick of rank m is selection[(t * n_q_heads + h) * top_k + m].
 *
 * What each stage writes:
 *   kconv       kprime of the slice's kv heads, rounded to dtype.
 *   centroid    centroids[g][s][head_dim], dtype; zeros in slots without keys.
 *   gate        selection for the slice's heads, every storage row; rows outside all sequences are all -1.
 *   index       index_offsets, index_rows, index_ranks of the slice's kv heads, from selection, ignoring illegal
 *               ids (out of the row's sequence, repeated: the first counts; causal: past the own block).
 *   attend      flow ONE_PASS: o and lse of the slice's rows. Other flows: partials and partial_ml.
 *   combine     o and lse of the slice's rows from the partials.
 *   delta       delta[h][t] = sum_d dout * o, float32.
 *   attend_bwd  dk (or dkprime with a key convolution) and dv of the slice's kv heads; flow ONE_PASS also dq;
 *               other flows dq partials. Only these are cut by query range: the ranges of a slice's kv heads come in
 *               ascending order, what keys have from ranges so far is kept in dkv_sums, and the last range that has
 *               rows of a key, or any later one, writes its dk and dv.
 *   dq_sum      dq from the partials, in rank order.
 *   kconv_bwd   dk and dkconv_weight of the slice's kv heads from dkprime.
 * Rows without keys get o = 0, lse = -inf; storage rows past the last sequence likewise; unselected keys and
 * storage rows past the last sequence get zero gradients. cu_seqlens are read through mobai_seq_rows(), which
 * clamps, so illegal ones cannot cause an access outside the tensors.
 */
typedef struct mobai_stage_args {
    /* problem */
    int32_t dtype;                        /* moba_dtype */
    int32_t n_q_heads, n_kv_heads, group; /* group = n_q_heads / n_kv_heads */
    int32_t head_dim, block_size, top_k;
    int32_t n_sink_blocks, n_local_blocks; /* n_local_blocks >= 1 when causal: the own block counts */
    int32_t kconv_width, causal, dense, deterministic;
    float softmax_scale; /* never 0 */
    /* run */
    int64_t batch, total_q, total_k;
    int64_t seqlen_q, seqlen_k; /* total / batch; read only when cu_seqlens are none */
    int64_t n_slots;
    /* slice: kv heads [kv_head_begin, kv_head_end), query rows [query_begin, query_end) */
    int32_t kv_head_begin, kv_head_end;
    int64_t query_begin, query_end;
    int32_t slice_kv_heads; /* of each of the pass's slices, the last one may have fewer; never 0 */
    int64_t slice_queries;  /* rows of each of the pass's query ranges, the last one shorter; never 0 */
    int32_t keeps_routing;  /* selection and index are read by later runs */
    /* caller's tensors; k is kprime for every stage after kconv except kconv_bwd */
    moba_tensor q, k, v, o, dout, dq, dk, dv;
    moba_tensor kprime; /* out of kconv; in a backward it has memory for the slice's kv heads alone */
    moba_buffer lse, kconv_weight, dkconv_weight, cu_seqlens_q, cu_seqlens_k;
    /* intermediates, laid out by the core */
    moba_buffer centroids;     /* dtype [n_kv_heads][n_slots][head_dim] */
    moba_buffer selection;     /* int32 [total_q][n_q_heads][top_k]; none in a backward that has pick_masks */
    moba_buffer index_offsets; /* int64 [n_kv_heads][n_slots + 1] */
    moba_buffer index_rows;    /* uint32 [n_kv_heads][index_row_stride] */
    moba_buffer index_ranks;   /* uint16 [n_kv_heads][index_row_stride] */
    moba_buffer pick_masks;    /* uint8 [n_kv_heads][total_q * group][mobai_pick_mask_bytes()]: bit m % 8 of byte m / 8
                                  is set when the row's pick of rank m is in the index. None in most runs */
    int64_t index_row_stride;
    moba_buffer partials;   /* flow's own format, mobai_variant.partial_bytes for each pick of the slice */
    moba_buffer partial_ml; /* float32 [picks of the slice][2]: max of the scores in the flow's own unit, sum */
    moba_buffer dkv_sums;   /* attend_bwd's own, none in runs of one query range: float32 [2][kv heads of the
                               slice][total_k][head_dim]. Kept from one query range to the next */
    moba_buffer delta;      /* float32 [n_q_heads][total_q] */
    moba_buffer dkprime;    /* float32 [total_k][slice_kv_heads][head_dim]: kv heads from kv_head_begin on */
    moba_buffer scratch;    /* mobai_variant.scratch_bytes, for this launch only */
    size_t scratch_bytes;
    moba_buffer kept; /* mobai_backend.kept_bytes, from the launch of the variant that has them to the end of the run */
} mobai_stage_args;

/** Index of the first pick of (row t, head h of kv head g) in partials and partial_ml of a slice:
 *  (((g - kv_head_begin) * (query_end - query_begin) + t - query_begin) * group + h - g * group) * top_k; + rank. */

/* --------------------------------------------------------------------------------------------- variants -- */

/** How attend hands its results on. attend and combine (attend_bwd and dq_sum) of a chain have the same flow. */
typedef enum mobai_flow {
    MOBAI_FLOW_ONE_PASS,      /* writes final results; no combine, no dq_sum */
    MOBAI_FLOW_PARTIALS_F32,  /* float32 [pick][head_dim], normalised by the pick's own sum */
    MOBAI_FLOW_PARTIALS_SM90, /* the sm_90a kernels' private 16-bit layout */
    MOBAI_FLOW_COUNT
} mobai_flow;

/** Shape a variant is planned for: the problem at its upper bounds, cut to one slice. */
typedef struct mobai_shape {
    const moba_problem *problem; /* normalised: no zero that means "default" is left */
    const mobai_caps *caps;
    int64_t n_slots;
    int32_t n_slice_kv_heads;
    int64_t n_slice_queries;
} mobai_shape;

/** One kernel of one stage. Rows are const data in backends/<name>/variants.c, best first. */
typedef struct mobai_variant {
    const char *name; /* <stage>_<dtype>_d<head_dim>__<arch>_<method>_m<M>n<N>; parts that are free are left out */
    mobai_stage stage;
    uint32_t dtypes;     /* bit 1 << moba_dtype */
    mobai_cap_set needs; /* all of these */
    mobai_flow flow;
    int32_t tile_m, tile_n; /* 0 where it has none; shown by explain */
    /** index: writes mobai_stage_args.pick_masks where they are given; dq_sum: it and attend_bwd of its flow need no
     *  selection where these are given. With both in a plan, `saved` holds pick_masks in place of the selection. */
    bool pick_masks;
    /** Reason this problem cannot be served, static text; NULL: it can. Optional: serves all. */
    const char *(*reject)(const moba_problem *problem, const mobai_caps *caps);
    /** Predicted microseconds of one pass over the whole shape. */
    double (*cost)(const mobai_shape *shape);
    /** Scratch bytes of one launch. Optional: 0. Must not decrease when a bound grows. */
    size_t (*scratch_bytes)(const mobai_shape *shape);
    /** Bytes of one partial. Optional: 0 for ONE_PASS, head_dim * 4 for PARTIALS_F32. */
    size_t (*partial_bytes)(const mobai_shape *shape);
    const void *code; /* the backend's own: function, grid, argument packing */
} mobai_variant;

/* ---------------------------------------------------------------------------------------------- backend -- */

typedef struct mobai_device mobai_device; /* defined by each backend */

/**
 * One backend. All slots are required unless marked optional. Functions set the error sentence with mobai_fail()
 * (core/status.h) and return its status. They may be called from several threads at once, except open and close.
 */
typedef struct mobai_backend {
    const char *name;
    bool address_handles; /* moba_buffer.handle is an address, so alignment is that of handle + offset */

    /** Number of devices; 0 with a reason in `reason` when none can be used. Loads libraries, never fails hard. */
    int32_t (*probe)(char *reason, size_t capacity);
    /** Describes a device found by probe. `n_threads` as in moba_context_options (0: default). */
    moba_status (*describe)(int32_t index, moba_device_description *out);
    /** Opens device `options->device` (already resolved, >= 0) or adopts options->native. */
    moba_status (*open)(const moba_context_options *options, mobai_device **out);
    void (*close)(mobai_device *device);
    /** Probe AND allow-list; constant for the device's life. The core applies MOBA_CAPS_MASK to `set`. */
    const mobai_caps *(*caps)(const mobai_device *device);
    /** Describes an open device. */
    void (*device_info)(const mobai_device *device, moba_device_description *out);

    moba_status (*buffer_create)(mobai_device *device, size_t bytes, moba_buffer *out);
    void (*buffer_destroy)(mobai_device *device, moba_buffer buffer);
    moba_status (*buffer_write)(mobai_device *device, moba_stream stream, moba_buffer buffer, const void *data,
                                size_t bytes);
    moba_status (*buffer_read)(mobai_device *device, moba_stream stream, moba_buffer buffer, void *data, size_t bytes);
    moba_status (*buffer_fill)(mobai_device *device, moba_stream stream, moba_buffer buffer, uint8_t value,
                               size_t bytes);
    /** Enqueues a copy inside the device; the ranges do not overlap. */
    moba_status (*buffer_copy)(mobai_device *device, moba_stream stream, moba_buffer from, moba_buffer to,
                               size_t bytes);

    moba_status (*stream_create)(mobai_device *device, moba_stream *out);
    void (*stream_destroy)(mobai_device *device, moba_stream stream);
    moba_status (*stream_synchronize)(mobai_device *device, moba_stream stream);
    /** Optional (NULL: never capturing): 1 while `stream` is being captured into a graph. */
    bool (*stream_capturing)(mobai_device *device, moba_stream stream);

    moba_status (*event_create)(mobai_device *device, moba_event *out);
    void (*event_destroy)(mobai_device *device, moba_event event);
    moba_status (*event_record)(mobai_device *device, moba_stream stream, moba_event event);
    moba_status (*event_elapsed)(mobai_device *device, moba_event begin, moba_event end, double *ms);

    /** Optional: makes a chosen variant ready (module load, program build); called at plan creation, idempotent. */
    moba_status (*prepare)(mobai_device *device, const mobai_variant *variant, const moba_problem *problem);
    /** Enqueues one stage over one slice. Work of one stream runs in order; the backend inserts what its API needs
     *  between dependent launches. */
    moba_status (*launch)(mobai_device *device, moba_stream stream, const mobai_variant *variant,
                          const mobai_stage_args *args);
    /** Optional: called once before the first and after the last launch of a run. */
    moba_status (*run_begin)(mobai_device *device, moba_stream stream);
    moba_status (*run_end)(mobai_device *device, moba_stream stream);

    /** Optional: bytes that `variant` leaves in mobai_stage_args.kept for later stages of the same run, for all heads
     * and rows of the shape's problem. At most one variant of a chain has them. */
    size_t (*kept_bytes)(const mobai_variant *variant, const mobai_shape *shape);
    /** Rank when nothing is named: the usable backend with the highest wins; 0: only when named. */
    int32_t (*rank)(int32_t device_index);
    const mobai_variant *variants;
    size_t n_variants;
} mobai_backend;

/** One entry of the registry (core/registry.c): every backend this version knows, in order of preference. */
typedef struct mobai_backend_entry {
    const char *name;
    const mobai_backend *backend; /* NULL: not built in */
    const char *not_built;        /* why; what to install */
} mobai_backend_entry;
extern const mobai_backend_entry mobai_backends[];
extern const size_t mobai_n_backends;

#endif
