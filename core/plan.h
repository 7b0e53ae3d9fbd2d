/* SPDX-License-Identifier: Apache-2.0
 *
 * Plans: kernel chain, slices, and memory layout. A layout is made by one function that walks an arena; asking for
 * the size and laying out a run are the same walk, so the two cannot disagree.
 */
#ifndef MOBAI_PLAN_H
#define MOBAI_PLAN_H

#include "core/context.h"

/** Every region of a workspace or saved buffer starts at a multiple of this. */
#define MOBAI_ALIGNMENT 256u

/** Fewest query rows of a slice that is cut by query range. */
#define MOBAI_MIN_SLICE_QUERIES 256

const char *mobai_stage_name(mobai_stage stage);
/** MOBAI_STAGE_COUNT when no stage has that name. */
mobai_stage mobai_stage_from_name(const char *name);

typedef enum mobai_pass { MOBAI_PASS_FORWARD, MOBAI_PASS_BACKWARD, MOBAI_PASS_COUNT } mobai_pass;

/** A span of the workspace or of the saved buffer; bytes 0: not used by this plan. */
typedef struct mobai_region {
    size_t offset, bytes;
} mobai_region;

/** What a backward needs from its forward: the saved buffer, in this order. */
typedef struct mobai_saved_layout {
    mobai_region selection, pick_masks; /* one of the two */
    mobai_region index_offsets, index_rows, index_ranks;
    size_t bytes;
} mobai_saved_layout;

/** The workspace of one pass. */
typedef struct mobai_layout {
    mobai_region kprime;  /* in a backward with room for n_kv_heads more heads of one row before and after it */
    int32_t kprime_heads; /* kv heads of kprime: all of them in the forward, those of a slice in the backward */
    mobai_region centroids;
    mobai_saved_layout routing; /* used by runs without a saved buffer; offsets are within the workspace */
    mobai_region partials, partial_ml;
    mobai_region delta, dkprime, dkv_sums;
    mobai_region scratch;
    mobai_region kept;      /* of one stage, for the later ones of the run */
    int32_t slice_kv_heads; /* kv heads of one slice; the last may have fewer */
    int64_t slice_queries;  /* query rows of one slice */
    size_t bytes;
} mobai_layout;

struct moba_plan {
    moba_context *context;
    moba_problem problem; /* normalised */
    int32_t group;
    int64_t n_slots;                               /* bound */
    int64_t max_blocks;                            /* of one sequence */
    int64_t index_row_stride;                      /* picks of one kv head, bound */
    const mobai_variant *chain[MOBAI_STAGE_COUNT]; /* NULL: the plan has no such stage */
    double cost_us[MOBAI_STAGE_COUNT];
    bool has_backward;
    char *why_no_backward; /* "" when has_backward */
    char *explanation;
    mobai_saved_layout saved;
    mobai_layout layout[MOBAI_PASS_COUNT];
    size_t workspace_bytes;
};

/** Checks `problem` and replaces every zero that means a default (core/validate.c). */
moba_status mobai_normalise_problem(moba_problem *problem);

/** Lays out one pass with slices of the given size; false when a size overflows. */
bool mobai_layout_pass(const moba_plan *plan, mobai_pass pass, int32_t slice_kv_heads, int64_t slice_queries,
                       mobai_layout *out);
/** Lays out the saved buffer of the chosen chain; false when a size overflows. */
bool mobai_layout_saved(const moba_plan *plan, mobai_saved_layout *out);

/** Chooses the kernels of every stage (core/dispatch.c): fills chain, cost_us, has_backward, why_no_backward. */
moba_status mobai_choose_chain(moba_plan *plan);

/** Builds plan->explanation (core/explain.c). */
moba_status mobai_explain_plan(moba_plan *plan);

/** Why `variant` cannot serve the plan's problem; NULL: it can. */
const char *mobai_variant_reject(const moba_plan *plan, const mobai_variant *variant, char *text, size_t capacity);

/** Whether the plan's problem needs `stage` in some chain. */
bool mobai_stage_needed(const moba_plan *plan, mobai_stage stage);

/** The plan's shape, whole or cut to a slice, as cost and scratch callbacks take it. */
mobai_shape mobai_plan_shape(const moba_plan *plan, int32_t slice_kv_heads, int64_t slice_queries);

/* ------------------------------------------------------------------- checks of one run, core/validate.c -- */

/** Which tensors a run takes; the checks follow from it. */
typedef enum mobai_run_kind { MOBAI_RUN_FORWARD, MOBAI_RUN_ROUTE, MOBAI_RUN_ATTEND, MOBAI_RUN_BACKWARD } mobai_run_kind;

/** All arguments of a run in one form. Tensors and buffers that the kind does not have are none. */
typedef struct mobai_run {
    mobai_run_kind kind;
    moba_inputs in;
    moba_tensor o, dout, dq, dk, dv;
    moba_buffer lse, selection, saved, workspace, dkconv_weight;
    size_t saved_bytes, workspace_bytes;
} mobai_run;

moba_status mobai_check_run(const moba_plan *plan, const mobai_run *run);

/** MOBA_VALIDATE=1: reads cu_seqlens and a prescribed selection back and checks them. */
moba_status mobai_validate_data(const moba_plan *plan, moba_stream stream, const mobai_run *run);

#endif
