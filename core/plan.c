/* SPDX-License-Identifier: Apache-2.0
 *
 * Plan creation: layouts, slices, and the queries of moba.h.
 */
#include "core/plan.h"

#include <stdlib.h>
#include <string.h>

#include "core/convert.h"
#include "core/geometry.h"
#include "core/status.h"

static const char *const stage_names[MOBAI_STAGE_COUNT] = {
    "kconv", "centroid", "gate", "index", "attend", "combine", "delta", "attend_bwd", "dq_sum", "kconv_bwd",
};

const char *mobai_stage_name(mobai_stage stage) { return stage_names[stage]; }

mobai_stage mobai_stage_from_name(const char *name) {
    int i = 0;
    while (i < MOBAI_STAGE_COUNT && strcmp(name, stage_names[i]) != 0)
        i++;
    return (mobai_stage)i;
}

/* ----------------------------------------------------------------------------------------------- layout -- */

/** A bump allocator over offsets. It never holds memory: sizes are counted, and offsets are what a run adds to its
 *  buffer. */
typedef struct arena {
    size_t used;
    bool overflow;
} arena;

/** Takes the product of the factors, aligned. */
static mobai_region take(arena *a, size_t x, size_t y, size_t z, size_t element_bytes) {
    mobai_region region = {a->used, 0};
    size_t bytes, padded;
    if (!mobai_mul_size(x, y, &bytes) || !mobai_mul_size(bytes, z, &bytes) ||
        !mobai_mul_size(bytes, element_bytes, &bytes) || !mobai_add_size(bytes, MOBAI_ALIGNMENT - 1, &padded) ||
        !mobai_add_size(a->used, padded / MOBAI_ALIGNMENT * MOBAI_ALIGNMENT, &padded)) {
        a->overflow = true;
        return region;
    }
    region.bytes = bytes;
    a->used = padded;
    return region;
}

static mobai_saved_layout take_routing(const moba_plan *plan, arena *a, bool as_masks) {
    const moba_problem *p = &plan->problem;
    mobai_saved_layout s = {0};
    if (p->dense) return s;
    size_t rows = (size_t)p->max_total_q, kv_heads = (size_t)p->n_kv_heads;
    if (as_masks)
        s.pick_masks = take(a, rows, (size_t)p->n_q_heads, (size_t)mobai_pick_mask_bytes(p->top_k), 1);
    else
        s.selection = take(a, rows, (size_t)p->n_q_heads, (size_t)p->top_k, sizeof(int32_t));
    s.index_offsets = take(a, kv_heads, (size_t)plan->n_slots + 1, 1, sizeof(int64_t));
    s.index_rows = take(a, kv_heads, (size_t)plan->index_row_stride, 1, sizeof(uint32_t));
    s.index_ranks = take(a, kv_heads, (size_t)plan->index_row_stride, 1, sizeof(uint16_t));
    s.bytes = a->used;
    return s;
}

bool mobai_layout_saved(const moba_plan *plan, mobai_saved_layout *out) {
    arena a = {0, false};
    *out = (mobai_saved_layout){0};
    const mobai_variant *index = plan->chain[MOBAI_STAGE_INDEX], *dq_sum = plan->chain[MOBAI_STAGE_DQ_SUM];
    const bool as_masks = index && index->pick_masks && dq_sum && dq_sum->pick_masks;
    if (!plan->problem.inference) *out = take_routing(plan, &a, as_masks);
    out->bytes = a.used;
    return !a.overflow;
}

mobai_shape mobai_plan_shape(const moba_plan *plan, int32_t slice_kv_heads, int64_t slice_queries) {
    mobai_shape shape = {&plan->problem, &plan->context->caps, plan->n_slots, slice_kv_heads, slice_queries};
    return shape;
}

static bool is_backward_stage(mobai_stage stage) { return stage >= MOBAI_STAGE_DELTA; }

bool mobai_layout_pass(const moba_plan *plan, mobai_pass pass, int32_t slice_kv_heads, int64_t slice_queries,
                       mobai_layout *out) {
    const moba_problem *p = &plan->problem;
    size_t element = mobai_dtype_bytes(p->dtype), rows_q = (size_t)p->max_total_q, rows_k = (size_t)p->max_total_k;
    size_t kv_heads = (size_t)p->n_kv_heads, head_dim = (size_t)p->head_dim;
    arena a = {0, false};
    mobai_layout l = {.slice_kv_heads = slice_kv_heads, .slice_queries = slice_queries};

    if (p->kconv_width) {
        const bool sliced = pass == MOBAI_PASS_BACKWARD;
        l.kprime_heads = sliced ? slice_kv_heads : p->n_kv_heads;
        size_t heads = (size_t)l.kprime_heads, room = sliced ? 2 * ((kv_heads + heads - 1) / heads) : 0;
        l.kprime = take(&a, rows_k + room, heads, head_dim, element);
    }
    const mobai_variant *attend = plan->chain[MOBAI_STAGE_ATTEND];
    if (pass == MOBAI_PASS_FORWARD) {
        if (!p->dense) l.centroids = take(&a, kv_heads, (size_t)plan->n_slots, head_dim, element);
        l.routing = take_routing(plan, &a, false);
    } else {
        l.delta = take(&a, (size_t)p->n_q_heads, rows_q, 1, sizeof(float));
        if (p->kconv_width) l.dkprime = take(&a, rows_k, (size_t)slice_kv_heads, head_dim, sizeof(float));
        attend = plan->chain[MOBAI_STAGE_ATTEND_BWD];
    }
    mobai_shape shape = mobai_plan_shape(plan, slice_kv_heads, slice_queries);
    if (attend->flow != MOBAI_FLOW_ONE_PASS) {
        size_t picks = 0, each = attend->partial_bytes ? attend->partial_bytes(&shape) : head_dim * sizeof(float);
        if (!mobai_mul_size((size_t)slice_kv_heads * (size_t)plan->group, (size_t)slice_queries, &picks))
            a.overflow = true;
        l.partials = take(&a, picks, (size_t)p->top_k, each, 1);
        if (pass == MOBAI_PASS_FORWARD)
            l.partial_ml = take(&a, picks, (size_t)p->top_k, 2, sizeof(float));
        else if (slice_queries < p->max_total_q)
            l.dkv_sums = take(&a, 2 * (size_t)slice_kv_heads, rows_k, head_dim, sizeof(float));
    }
    size_t scratch = 0, kept = 0;
    for (int s = 0; s < MOBAI_STAGE_COUNT; s++) {
        const mobai_variant *variant = plan->chain[s];
        bool in_pass = is_backward_stage((mobai_stage)s) == (pass == MOBAI_PASS_BACKWARD) || s == MOBAI_STAGE_KCONV;
        if (!variant || !in_pass) continue;
        size_t bytes = variant->scratch_bytes ? variant->scratch_bytes(&shape) : 0;
        if (bytes > scratch) scratch = bytes;
        const mobai_backend *backend = plan->context->backend;
        bytes = backend->kept_bytes ? backend->kept_bytes(variant, &shape) : 0;
        if (bytes > kept) kept = bytes;
    }
    l.scratch = take(&a, scratch, 1, 1, 1);
    l.kept = take(&a, kept, 1, 1, 1);
    l.bytes = a.used;
    *out = l;
    return !a.overflow;
}

static moba_status too_large(const moba_plan *plan, const char *what) {
    const moba_problem *p = &plan->problem;
    return mobai_fail(
        MOBA_ERROR_UNSUPPORTED,
        "the %s for max_total_q %lld, max_total_k %lld, %d heads, top_k %d and head_dim %d does not fit in "
        "%zu bits",
        what, (long long)p->max_total_q, (long long)p->max_total_k, p->n_q_heads, p->top_k, p->head_dim,
        8 * sizeof(size_t));
}

/** Query rows of a slice when all are cut into `n` ranges as equal as their granularity allows. */
static int64_t range_queries(const moba_plan *plan, int64_t n) {
    int64_t rows = mobai_ceil_div(plan->problem.max_total_q, n);
    return mobai_min64(mobai_ceil_div(rows, MOBAI_MIN_SLICE_QUERIES) * MOBAI_MIN_SLICE_QUERIES,
                       plan->problem.max_total_q);
}

/** Lays out the smallest slices there are: one kv head, and the fewest query rows, or all of them where the sums that
 *  the backward keeps between query ranges would take more than cutting saves. */
static bool lay_out_least(const moba_plan *plan, mobai_pass pass, mobai_layout *least) {
    mobai_layout whole;
    int64_t rows = plan->problem.max_total_q;
    bool cut = mobai_layout_pass(plan, pass, 1, mobai_min64(MOBAI_MIN_SLICE_QUERIES, rows), least);
    if (!mobai_layout_pass(plan, pass, 1, rows, &whole)) return cut;
    if (!cut || whole.bytes <= least->bytes) *least = whole;
    return true;
}

/**
 * Finds the fewest slices whose workspace stays within the limit: first by whole kv heads, then, with one kv head
 * a slice, by query range. Kernels that write no partials have nothing to cut.
 */
static moba_status choose_slices(moba_plan *plan, mobai_pass pass, mobai_stage attend_stage) {
    const moba_problem *p = &plan->problem;
    mobai_layout *layout = &plan->layout[pass], least;
    if (plan->chain[attend_stage]->flow == MOBAI_FLOW_ONE_PASS) {
        if (!mobai_layout_pass(plan, pass, p->n_kv_heads, p->max_total_q, &least)) return too_large(plan, "workspace");
    } else if (!lay_out_least(plan, pass, &least)) {
        return too_large(plan, "workspace");
    }
    uint64_t limit = p->workspace_limit ? p->workspace_limit : plan->context->caps.default_workspace_limit;
    if (limit == 0) limit = MOBA_WORKSPACE_UNLIMITED;
    /* one buffer serves both passes: where the forward takes more than a default, so may the backward */
    if (!p->workspace_limit && limit < plan->workspace_bytes) limit = plan->workspace_bytes;
    if (p->workspace_limit && least.bytes > limit)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED,
                          "workspace_limit is %llu bytes; the %s of this problem needs at least %zu",
                          (unsigned long long)limit, pass == MOBAI_PASS_FORWARD ? "forward" : "backward", least.bytes);
    *layout = least;
    if (plan->chain[attend_stage]->flow == MOBAI_FLOW_ONE_PASS) return MOBA_OK;
    /* a default is no reason for slices of a few rows: half of it is always left for what slices bound */
    if (!p->workspace_limit && limit != MOBA_WORKSPACE_UNLIMITED && least.bytes > limit / 2)
        limit = least.bytes + limit / 2;

    int32_t heads = 0;
    for (int32_t n = 1; n <= p->n_kv_heads; n++) {
        if (heads == (int32_t)mobai_ceil_div(p->n_kv_heads, n)) continue;
        heads = (int32_t)mobai_ceil_div(p->n_kv_heads, n);
        if (mobai_layout_pass(plan, pass, heads, p->max_total_q, layout) && layout->bytes <= limit) return MOBA_OK;
    }
    /* `few` ranges are too large; `many` are the least, which fit */
    int64_t few = 1, many = mobai_ceil_div(p->max_total_q, MOBAI_MIN_SLICE_QUERIES);
    *layout = least;
    while (many - few > 1) {
        mobai_layout cut;
        int64_t middle = few + (many - few) / 2;
        if (mobai_layout_pass(plan, pass, 1, range_queries(plan, middle), &cut) && cut.bytes <= limit) {
            *layout = cut;
            many = middle;
        } else {
            few = middle;
        }
    }
    return MOBA_OK;
}

/* --------------------------------------------------------------------------------------------- creation -- */

static moba_status fill_plan(moba_plan *plan) {
    moba_problem *p = &plan->problem;
    MOBAI_TRY(mobai_normalise_problem(p));
    plan->group = p->n_q_heads / p->n_kv_heads;
    plan->n_slots = mobai_n_slots(p->max_total_k, p->block_size, p->max_batch);
    plan->max_blocks = mobai_n_blocks(p->max_seqlen_k, p->block_size);
    /* Bounded by all keys, not by max_seqlen_k: cu_seqlens that break that bound must not overflow the lists. */
    int64_t picks = mobai_min64(p->top_k, mobai_n_blocks(p->max_total_k, p->block_size));
    plan->index_row_stride = p->max_total_q * plan->group * picks;
    MOBAI_TRY(mobai_choose_chain(plan));
    if (!mobai_layout_saved(plan, &plan->saved)) return too_large(plan, "saved buffer");
    MOBAI_TRY(choose_slices(plan, MOBAI_PASS_FORWARD, MOBAI_STAGE_ATTEND));
    plan->workspace_bytes = plan->layout[MOBAI_PASS_FORWARD].bytes;
    if (plan->has_backward) {
        MOBAI_TRY(choose_slices(plan, MOBAI_PASS_BACKWARD, MOBAI_STAGE_ATTEND_BWD));
        if (plan->layout[MOBAI_PASS_BACKWARD].bytes > plan->workspace_bytes)
            plan->workspace_bytes = plan->layout[MOBAI_PASS_BACKWARD].bytes;
    }
    const mobai_backend *backend = plan->context->backend;
    for (int s = 0; backend->prepare && s < MOBAI_STAGE_COUNT; s++)
        if (plan->chain[s]) MOBAI_TRY(backend->prepare(plan->context->device, plan->chain[s], p));
    return mobai_explain_plan(plan);
}

moba_status moba_plan_create(moba_context *context, const moba_problem *problem, moba_plan **out) {
    if (!out) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "out is NULL");
    *out = NULL;
    if (!context) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "context is NULL");
    moba_problem copy;
    MOBAI_TRY(mobai_copy_struct(&copy, sizeof copy, problem, "moba_problem"));
    moba_plan *plan = calloc(1, sizeof *plan);
    if (!plan) return mobai_fail(MOBA_ERROR_OUT_OF_MEMORY, "no memory for a plan of %zu bytes", sizeof *plan);
    plan->context = context;
    plan->problem = copy;
    moba_status status = fill_plan(plan);
    if (status != MOBA_OK) {
        moba_plan_destroy(plan);
        return status;
    }
    if (mobai_log_enabled(MOBA_LOG_PLAN))
        for (const char *line = plan->explanation; *line;) {
            int length = (int)strcspn(line, "\n");
            mobai_log(MOBA_LOG_PLAN, "%.*s", length, line);
            line += length + (line[length] == '\n');
        }
    *out = plan;
    return MOBA_OK;
}

void moba_plan_destroy(moba_plan *plan) {
    if (!plan) return;
    free(plan->why_no_backward);
    free(plan->explanation);
    free(plan);
}

/* ---------------------------------------------------------------------------------------------- queries -- */

static moba_status check_query(const moba_plan *plan, const void *out, const char *name) {
    if (!plan) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "plan is NULL");
    if (!out) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "%s is NULL", name);
    return MOBA_OK;
}

moba_status moba_plan_workspace(const moba_plan *plan, size_t *bytes) {
    MOBAI_TRY(check_query(plan, bytes, "bytes"));
    *bytes = plan->workspace_bytes;
    return MOBA_OK;
}

moba_status moba_plan_saved(const moba_plan *plan, size_t *bytes) {
    MOBAI_TRY(check_query(plan, bytes, "bytes"));
    *bytes = plan->saved.bytes;
    return MOBA_OK;
}

moba_status moba_plan_explain(const moba_plan *plan, char *text, size_t capacity) {
    if (!plan) return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "plan is NULL");
    size_t needed = strlen(plan->explanation) + 1;
    if (!text || capacity == 0)
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "text is NULL or capacity 0; %zu bytes hold the whole text",
                          needed);
    size_t kept = needed <= capacity ? needed : capacity;
    memcpy(text, plan->explanation, kept);
    text[kept - 1] = '\0';
    return MOBA_OK;
}

const char *moba_plan_kernel(const moba_plan *plan, const char *stage) {
    if (!plan || !stage) return NULL;
    mobai_stage s = mobai_stage_from_name(stage);
    return s < MOBAI_STAGE_COUNT && plan->chain[s] ? plan->chain[s]->name : NULL;
}

moba_status moba_plan_cost(const moba_plan *plan, const char *pass, double *microseconds) {
    MOBAI_TRY(check_query(plan, microseconds, "microseconds"));
    int first, last;
    if (pass && strcmp(pass, "fwd") == 0) {
        first = MOBAI_STAGE_KCONV, last = MOBAI_STAGE_COMBINE;
    } else if (pass && strcmp(pass, "route") == 0) {
        first = MOBAI_STAGE_KCONV, last = MOBAI_STAGE_GATE;
    } else if (pass && strcmp(pass, "bwd") == 0) {
        if (!plan->has_backward) return mobai_fail(MOBA_ERROR_UNSUPPORTED, "no backward: %s", plan->why_no_backward);
        first = MOBAI_STAGE_DELTA, last = MOBAI_STAGE_KCONV_BWD;
    } else {
        return mobai_fail(MOBA_ERROR_INVALID_ARGUMENT, "pass is \"%s\"; it must be fwd, bwd or route",
                          pass ? pass : "NULL");
    }
    double sum = 0;
    for (int s = first; s <= last; s++)
        sum += plan->cost_us[s];
    if (first == MOBAI_STAGE_DELTA) sum += plan->cost_us[MOBAI_STAGE_KCONV]; /* the backward computes k' again */
    *microseconds = sum;
    return MOBA_OK;
}
