/* SPDX-License-Identifier: Apache-2.0
 *
 * The four runs of moba.h: check, point the stage arguments into the workspace, and launch the chain slice by slice.
 */
#include <string.h>

#include "core/convert.h"
#include "core/geometry.h"
#include "core/plan.h"
#include "core/status.h"

static moba_buffer at(moba_buffer base, mobai_region region) {
    if (region.bytes == 0) return (moba_buffer)MOBA_BUFFER_NULL;
    base.offset += region.offset;
    return base;
}

/** Arguments that are the same for every stage and slice of the run. */
static mobai_stage_args stage_args(const moba_plan *plan, const mobai_run *run, const mobai_layout *layout) {
    const moba_problem *p = &plan->problem;
    const moba_inputs *in = &run->in;
    mobai_stage_args a;
    memset(&a, 0, sizeof a);
    a.dtype = (int32_t)p->dtype;
    a.n_q_heads = p->n_q_heads;
    a.n_kv_heads = p->n_kv_heads;
    a.group = plan->group;
    a.head_dim = p->head_dim;
    a.block_size = p->block_size;
    a.top_k = p->top_k;
    a.n_sink_blocks = p->n_sink_blocks;
    a.n_local_blocks = p->n_local_blocks;
    a.kconv_width = p->kconv_width;
    a.causal = p->causal;
    a.dense = p->dense;
    a.deterministic = p->deterministic;
    a.softmax_scale = p->softmax_scale;
    a.batch = in->batch;
    a.total_q = in->total_q;
    a.total_k = in->total_k;
    a.seqlen_q = in->total_q / in->batch;
    a.seqlen_k = in->total_k / in->batch;
    a.n_slots = mobai_n_slots(in->total_k, p->block_size, in->batch);
    a.q = in->q;
    a.k = in->k;
    a.v = in->v;
    a.o = run->o;
    a.dout = run->dout;
    a.dq = run->dq;
    a.dk = run->dk;
    a.dv = run->dv;
    a.lse = run->lse;
    a.kconv_weight = in->kconv_weight;
    a.dkconv_weight = run->dkconv_weight;
    a.cu_seqlens_q = in->cu_seqlens_q;
    a.cu_seqlens_k = in->cu_seqlens_k;

    moba_buffer workspace = run->workspace;
    if (p->kconv_width) {
        a.kprime.buffer = at(workspace, layout->kprime);
        a.kprime.head_stride = p->head_dim;
        a.kprime.token_stride = (int64_t)layout->kprime_heads * p->head_dim;
        a.kprime.batch_stride = a.seqlen_k * a.kprime.token_stride;
    }
    a.centroids = at(workspace, layout->centroids);
    moba_buffer routing_base = run->saved.handle ? run->saved : workspace;
    const mobai_saved_layout *routing = run->saved.handle ? &plan->saved : &layout->routing;
    a.selection = at(routing_base, routing->selection);
    a.pick_masks = at(routing_base, routing->pick_masks);
    if (a.pick_masks.handle) a.selection = at(workspace, layout->routing.selection);
    a.index_offsets = at(routing_base, routing->index_offsets);
    a.index_rows = at(routing_base, routing->index_rows);
    a.index_ranks = at(routing_base, routing->index_ranks);
    a.index_row_stride = plan->index_row_stride;
    a.partials = at(workspace, layout->partials);
    a.partial_ml = at(workspace, layout->partial_ml);
    a.delta = at(workspace, layout->delta);
    a.dkprime = at(workspace, layout->dkprime);
    a.dkv_sums = at(workspace, layout->dkv_sums);
    a.slice_kv_heads = layout->slice_kv_heads > 0 ? layout->slice_kv_heads : 1;
    a.slice_queries = layout->slice_queries > 0 ? layout->slice_queries : 1;
    a.keeps_routing = run->saved.handle != 0;
    a.scratch = at(workspace, layout->scratch);
    a.scratch_bytes = layout->scratch.bytes;
    a.kept = at(workspace, layout->kept);
    return a;
}

typedef struct launcher {
    const moba_plan *plan;
    moba_stream stream;
} launcher;

/** Launches `stage` over kv heads [g0, g1) and query rows [t0, t1); nothing when the plan has no such stage. */
static moba_status launch(const launcher *l, mobai_stage stage, mobai_stage_args *a, int32_t g0, int32_t g1, int64_t t0,
                          int64_t t1) {
    const mobai_variant *variant = l->plan->chain[stage];
    if (!variant) return MOBA_OK;
    a->kv_head_begin = g0;
    a->kv_head_end = g1;
    a->query_begin = t0;
    a->query_end = t1;
    if (mobai_log_enabled(MOBA_LOG_RUN))
        mobai_log(MOBA_LOG_RUN, "launch %s kv heads [%d, %d) queries [%lld, %lld)", variant->name, g0, g1,
                  (long long)t0, (long long)t1);
    return l->plan->context->backend->launch(l->plan->context->device, l->stream, variant, a);
}

static moba_status launch_whole(const launcher *l, mobai_stage stage, mobai_stage_args *a) {
    return launch(l, stage, a, 0, a->n_kv_heads, 0, a->total_q);
}

/** One past the last kv head of the slice that begins with kv head g. */
static int32_t slice_end(const mobai_stage_args *a, int32_t g) {
    return (int32_t)mobai_min64((int64_t)g + a->slice_kv_heads, a->n_kv_heads);
}

/** Launches `stage` and then `merge` for each query range of kv heads [g0, g1): the slices reuse the partials. */
static moba_status launch_ranges(const launcher *l, mobai_stage stage, mobai_stage merge, mobai_stage_args *a,
                                 int32_t g0, int32_t g1) {
    int64_t queries = a->slice_queries, n_ranges = mobai_max64(1, mobai_ceil_div(a->total_q, queries));
    for (int64_t i = 0; i < n_ranges; i++) {
        int64_t t = i * queries, t_end = mobai_min64(t + queries, a->total_q);
        MOBAI_TRY(launch(l, stage, a, g0, g1, t, t_end));
        MOBAI_TRY(launch(l, merge, a, g0, g1, t, t_end));
    }
    return MOBA_OK;
}

/** Computes k' of kv heads [g0, g1) where the plan has a key convolution; every later stage then reads it as k. */
static moba_status launch_kconv(const launcher *l, mobai_stage_args *a, int32_t g0, int32_t g1) {
    MOBAI_TRY(launch(l, MOBAI_STAGE_KCONV, a, g0, g1, 0, a->total_q));
    if (a->kconv_width) a->k = a->kprime;
    return MOBA_OK;
}

static moba_status run_forward(const launcher *l, const mobai_run *run, mobai_stage_args *a) {
    const mobai_backend *backend = l->plan->context->backend;
    MOBAI_TRY(launch_kconv(l, a, 0, a->n_kv_heads));
    if (!a->dense) {
        moba_buffer kept = a->selection;
        if (run->selection.handle) a->selection = run->selection;
        if (run->kind != MOBAI_RUN_ATTEND) {
            MOBAI_TRY(launch_whole(l, MOBAI_STAGE_CENTROID, a));
            MOBAI_TRY(launch_whole(l, MOBAI_STAGE_GATE, a));
            if (run->kind == MOBAI_RUN_ROUTE) return MOBA_OK;
        }
        if (run->saved.handle && !a->pick_masks.handle && run->selection.handle && a->total_q > 0) {
            size_t bytes = (size_t)a->total_q * (size_t)a->n_q_heads * (size_t)a->top_k * sizeof(int32_t);
            MOBAI_TRY(backend->buffer_copy(l->plan->context->device, l->stream, run->selection, kept, bytes));
        }
        MOBAI_TRY(launch_whole(l, MOBAI_STAGE_INDEX, a));
    }
    for (int32_t g = 0; g < a->n_kv_heads; g = slice_end(a, g))
        MOBAI_TRY(launch_ranges(l, MOBAI_STAGE_ATTEND, MOBAI_STAGE_COMBINE, a, g, slice_end(a, g)));
    return MOBA_OK;
}

static moba_status run_backward(const launcher *l, const mobai_run *run, mobai_stage_args *a) {
    const size_t head_bytes = (size_t)a->head_dim * mobai_dtype_bytes(l->plan->problem.dtype);
    const size_t kprime_first = a->kprime.buffer.offset + (size_t)a->n_kv_heads * head_bytes;
    MOBAI_TRY(launch_whole(l, MOBAI_STAGE_DELTA, a));
    for (int32_t g = 0, end; g < a->n_kv_heads; g = end) {
        end = slice_end(a, g);
        /* k' has the slice's heads; the tensor begins where head 0 would be, in the room before them */
        if (a->kconv_width) a->kprime.buffer.offset = kprime_first - (size_t)g * head_bytes;
        MOBAI_TRY(launch_kconv(l, a, g, end));
        MOBAI_TRY(launch_ranges(l, MOBAI_STAGE_ATTEND_BWD, MOBAI_STAGE_DQ_SUM, a, g, end));
        a->k = run->in.k;
        MOBAI_TRY(launch(l, MOBAI_STAGE_KCONV_BWD, a, g, end, 0, a->total_q));
    }
    return MOBA_OK;
}

static moba_status run_all(const moba_plan *plan, moba_stream stream, const mobai_run *run) {
    MOBAI_TRY(mobai_check_run(plan, run));
    const mobai_backend *backend = plan->context->backend;
    mobai_device *device = plan->context->device;
    if (plan->context->validate) MOBAI_TRY(mobai_validate_data(plan, stream, run));
    bool backward = run->kind == MOBAI_RUN_BACKWARD;
    if (run->in.total_q == 0 && !backward) return MOBA_OK;
    launcher l = {plan, stream};
    mobai_stage_args a = stage_args(plan, run, &plan->layout[backward ? MOBAI_PASS_BACKWARD : MOBAI_PASS_FORWARD]);
    if (backend->run_begin) MOBAI_TRY(backend->run_begin(device, stream));
    moba_status status = backward ? run_backward(&l, run, &a) : run_forward(&l, run, &a);
    if (backend->run_end) {
        moba_status end = backend->run_end(device, stream);
        if (status == MOBA_OK) status = end;
    }
    return status;
}

static moba_status check_plan(const moba_plan *plan) {
    return plan ? MOBA_OK : mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "plan is NULL");
}

moba_status moba_forward(const moba_plan *plan, moba_stream stream, const moba_forward_args *args) {
    MOBAI_TRY(check_plan(plan));
    moba_forward_args f;
    MOBAI_TRY(mobai_copy_struct(&f, sizeof f, args, "moba_forward_args"));
    mobai_run run = {.kind = MOBAI_RUN_FORWARD,
                     .in = f.in,
                     .o = f.o,
                     .lse = f.lse,
                     .selection = f.selection,
                     .saved = f.saved,
                     .saved_bytes = f.saved_bytes,
                     .workspace = f.workspace,
                     .workspace_bytes = f.workspace_bytes};
    return run_all(plan, stream, &run);
}

moba_status moba_route(const moba_plan *plan, moba_stream stream, const moba_route_args *args) {
    MOBAI_TRY(check_plan(plan));
    moba_route_args r;
    MOBAI_TRY(mobai_copy_struct(&r, sizeof r, args, "moba_route_args"));
    mobai_run run = {.kind = MOBAI_RUN_ROUTE,
                     .in = r.in,
                     .selection = r.selection,
                     .workspace = r.workspace,
                     .workspace_bytes = r.workspace_bytes};
    return run_all(plan, stream, &run);
}

moba_status moba_attend(const moba_plan *plan, moba_stream stream, const moba_attend_args *args) {
    MOBAI_TRY(check_plan(plan));
    moba_attend_args t;
    MOBAI_TRY(mobai_copy_struct(&t, sizeof t, args, "moba_attend_args"));
    mobai_run run = {.kind = MOBAI_RUN_ATTEND,
                     .in = t.in,
                     .o = t.o,
                     .lse = t.lse,
                     .selection = t.selection,
                     .saved = t.saved,
                     .saved_bytes = t.saved_bytes,
                     .workspace = t.workspace,
                     .workspace_bytes = t.workspace_bytes};
    return run_all(plan, stream, &run);
}

moba_status moba_backward(const moba_plan *plan, moba_stream stream, const moba_backward_args *args) {
    MOBAI_TRY(check_plan(plan));
    moba_backward_args b;
    MOBAI_TRY(mobai_copy_struct(&b, sizeof b, args, "moba_backward_args"));
    mobai_run run = {.kind = MOBAI_RUN_BACKWARD,
                     .in = b.in,
                     .o = b.o,
                     .dout = b.dout,
                     .dq = b.dq,
                     .dk = b.dk,
                     .dv = b.dv,
                     .lse = b.lse,
                     .saved = b.saved,
                     .saved_bytes = b.saved_bytes,
                     .workspace = b.workspace,
                     .workspace_bytes = b.workspace_bytes,
                     .dkconv_weight = b.dkconv_weight};
    return run_all(plan, stream, &run);
}
