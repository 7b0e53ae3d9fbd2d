/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory: layouts without overlap, sizes exact to the byte, slices by heads and by query range under workspace_limit,
 * and the bounds that the CPU backend promises.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mock.h"

#define HAS(text, part) cr_assert_not_null(strstr((text), (part)), "\"%s\" lacks \"%s\"", (text), (part))

static int by_offset(const void *a, const void *b) {
    size_t x = ((const mobai_region *)a)->offset, y = ((const mobai_region *)b)->offset;
    return x < y ? -1 : x > y;
}

/* Regions in use are aligned, disjoint, and the last one ends at the size that was asked for. */
static void check_layout(const moba_plan *plan, mobai_pass pass) {
    const mobai_layout *l = &plan->layout[pass];
    mobai_region all[] = {l->kprime,
                          l->centroids,
                          l->routing.selection,
                          l->routing.pick_masks,
                          l->routing.index_offsets,
                          l->routing.index_rows,
                          l->routing.index_ranks,
                          l->partials,
                          l->partial_ml,
                          l->delta,
                          l->dkprime,
                          l->dkv_sums,
                          l->scratch};
    size_t n = sizeof all / sizeof *all, end = 0;
    qsort(all, n, sizeof *all, by_offset);
    for (size_t i = 0; i < n; i++) {
        if (all[i].bytes == 0) continue;
        cr_assert_eq(all[i].offset % MOBAI_ALIGNMENT, 0);
        cr_assert_geq(all[i].offset, end, "regions overlap at %zu", all[i].offset);
        end = all[i].offset + all[i].bytes;
    }
    cr_assert_leq(end, l->bytes);
    cr_assert_lt(l->bytes - end, MOBAI_ALIGNMENT);
    mobai_layout again;
    cr_assert(mobai_layout_pass(plan, pass, l->slice_kv_heads, l->slice_queries, &again));
    cr_assert_eq(memcmp(&again, l, sizeof again), 0, "the walk that counts and the walk that fills differ");
}

static moba_plan *make(moba_context *context, const moba_problem *p) {
    moba_plan *plan = NULL;
    cr_assert_eq(moba_plan_create(context, p, &plan), MOBA_OK, "%s", moba_last_error());
    return plan;
}

Test(planner, layouts_are_disjoint_and_exact) {
    moba_context *context = mock_open();
    mock.scratch = 1000;
    for (int variant = 0; variant < 32; variant++) {
        moba_problem p = mock_problem(variant & 1 ? 777 : 4096);
        p.kconv_width = variant & 2 ? 3 : 0;
        p.dtype = variant & 4 ? MOBA_BF16 : MOBA_F32;
        p.dense = variant & 8 ? 1 : 0;
        p.deterministic = (variant & 16) && !(variant & 4) && !p.dense;
        moba_plan *plan = make(context, &p);
        size_t bytes, forward = plan->layout[MOBAI_PASS_FORWARD].bytes,
                      backward = plan->layout[MOBAI_PASS_BACKWARD].bytes;
        check_layout(plan, MOBAI_PASS_FORWARD);
        check_layout(plan, MOBAI_PASS_BACKWARD);
        cr_assert_eq(moba_plan_workspace(plan, &bytes), MOBA_OK);
        cr_assert_eq(bytes, forward > backward ? forward : backward);
        moba_plan_destroy(plan);
    }
    moba_context_destroy(context);
}

/* selection, index_offsets, index_rows, index_ranks, each aligned to 256 bytes. */
Test(planner, saved_buffer_has_its_documented_layout) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(1000); /* 32 blocks of 32, group 2, 33 slots at most */
    moba_plan *plan = make(context, &p);
    size_t bytes, offset = 0;
    mobai_region expected[] = {
        {0, 1000 * 4 * 4 * 4}, {0, 2 * (1000 / 32 + 1 + 1) * 8}, {0, 2 * 1000 * 2 * 4 * 4}, {0, 2 * 1000 * 2 * 4 * 2}};
    mobai_region got[] = {plan->saved.selection, plan->saved.index_offsets, plan->saved.index_rows,
                          plan->saved.index_ranks};
    for (size_t i = 0; i < 4; i++) {
        cr_assert_eq(got[i].offset, offset, "region %zu", i);
        cr_assert_eq(got[i].bytes, expected[i].bytes, "region %zu: %zu bytes", i, got[i].bytes);
        offset = (offset + expected[i].bytes + 255) / 256 * 256;
    }
    cr_assert_eq(moba_plan_saved(plan, &bytes), MOBA_OK);
    cr_assert_eq(bytes, offset);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

/* Masks of 2, 1 and 1 bytes a row in place of the selection, where the index and dq_sum both have them. */
Test(planner, saved_buffer_holds_masks_where_both_kernels_have_them) {
    static const char *const kernels[] = {"index=*masks,dq_sum=*masks", "index=*masks,dq_sum=*mock",
                                          "index=*mock,dq_sum=*masks"};
    static const int32_t tops[] = {9, 8, 4};
    static const size_t mask_bytes[] = {2, 1, 1};
    for (size_t i = 0; i < 3; i++) {
        setenv("MOBA_KERNEL", kernels[i], 1);
        moba_context *context = mock_open();
        for (size_t x = 0; x < 3; x++) {
            moba_problem p = mock_problem(1000);
            p.top_k = tops[x];
            p.deterministic = 1; /* the flow with partials */
            moba_plan *plan = make(context, &p);
            const mobai_saved_layout *s = &plan->saved;
            cr_assert_eq(s->selection.bytes, i == 0 ? 0 : 1000u * 4 * (size_t)tops[x] * 4, "%zu", s->selection.bytes);
            cr_assert_eq(s->pick_masks.bytes, i == 0 ? 1000 * 4 * mask_bytes[x] : 0, "%zu", s->pick_masks.bytes);
            cr_assert_eq(s->index_offsets.offset, (s->selection.bytes + s->pick_masks.bytes + 255) / 256 * 256);
            cr_assert_gt(plan->layout[MOBAI_PASS_FORWARD].routing.selection.bytes, 0);
            cr_assert_eq(plan->layout[MOBAI_PASS_FORWARD].routing.pick_masks.bytes, 0);
            check_layout(plan, MOBAI_PASS_FORWARD);
            moba_plan_destroy(plan);
        }
        moba_context_destroy(context);
    }
    unsetenv("MOBA_KERNEL");
}

/* The launches of `stage` cover every (kv head, query row) exactly once. */
static void check_cover(const moba_plan *plan, mobai_stage stage, int64_t total_q) {
    int64_t heads = plan->problem.n_kv_heads;
    unsigned char *seen = calloc((size_t)(heads * total_q), 1);
    for (int i = 0; i < mock.n_launches; i++) {
        const mobai_stage_args *a = &mock.launches[i].args;
        if (mock.launches[i].variant->stage != stage) continue;
        cr_assert(a->kv_head_begin >= 0 && a->kv_head_end <= heads && a->query_begin >= 0 && a->query_end <= total_q);
        for (int64_t g = a->kv_head_begin; g < a->kv_head_end; g++)
            for (int64_t t = a->query_begin; t < a->query_end; t++)
                seen[g * total_q + t]++;
    }
    for (int64_t x = 0; x < heads * total_q; x++)
        cr_assert_eq(seen[x], 1, "stage %d: item %lld is covered %d times", (int)stage, (long long)x, seen[x]);
    free(seen);
}

static int count(mobai_stage stage) {
    int n = 0;
    for (int i = 0; i < mock.n_launches; i++)
        n += mock.launches[i].variant->stage == stage;
    return n;
}

/* One forward under `limit`; returns the number of attend launches. */
static int run_under(moba_context *context, moba_problem p, uint64_t limit) {
    moba_stream stream = {NULL};
    p.workspace_limit = limit;
    moba_plan *plan = make(context, &p);
    size_t bytes;
    cr_assert_eq(moba_plan_workspace(plan, &bytes), MOBA_OK);
    cr_assert_leq(bytes, limit);
    check_layout(plan, MOBAI_PASS_FORWARD);
    moba_forward_args a = mock_forward_args(context, plan, p.max_total_q, p.max_total_k);
    mock.n_launches = 0;
    cr_assert_eq(moba_forward(plan, stream, &a), MOBA_OK, "%s", moba_last_error());
    check_cover(plan, MOBAI_STAGE_ATTEND, p.max_total_q);
    check_cover(plan, MOBAI_STAGE_COMBINE, p.max_total_q);
    check_cover(plan, MOBAI_STAGE_GATE, p.max_total_q);
    cr_assert_eq(count(MOBAI_STAGE_ATTEND), count(MOBAI_STAGE_COMBINE));
    int n = count(MOBAI_STAGE_ATTEND);
    mock_free_args(context, &a);
    moba_plan_destroy(plan);
    return n;
}

static size_t workspace_of(moba_context *context, const moba_problem *p) {
    size_t bytes;
    moba_plan *plan = make(context, p);
    cr_assert_eq(moba_plan_workspace(plan, &bytes), MOBA_OK);
    moba_plan_destroy(plan);
    return bytes;
}

Test(planner, limits_cut_by_heads_then_by_queries_and_the_least_is_exact) {
    moba_context *context = mock_open();
    moba_problem p = mock_problem(3000);
    mock.backward = false; /* the forward alone decides */
    mock.scratch = 300;
    p.n_q_heads = 16;
    p.n_kv_heads = 8;
    p.workspace_limit = MOBA_WORKSPACE_UNLIMITED;
    size_t whole = workspace_of(context, &p);
    cr_assert_eq(run_under(context, p, whole), 1, "the size asked for is enough for one slice");
    cr_assert_eq(run_under(context, p, whole - 1), 2, "one byte less needs a second slice");
    int before = 1;
    for (uint64_t limit = whole; limit > whole / 4; limit = limit * 9 / 10) {
        int n = run_under(context, p, limit);
        cr_assert_geq(n, before, "a smaller limit gave fewer slices");
        before = n;
    }
    p.workspace_limit = 1;
    moba_plan *plan = NULL;
    cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_ERROR_UNSUPPORTED);
    HAS(moba_last_error(), "workspace_limit is 1 bytes");
    const char *at = strstr(moba_last_error(), "at least ");
    cr_assert_not_null(at, "%s", moba_last_error());
    uint64_t least = strtoull(at + 9, NULL, 10);
    int n = run_under(context, p, least);
    cr_assert_gt(n, 8, "%d slices: one head at a time, and query ranges", n);
    p.workspace_limit = least - 1;
    cr_assert_eq(moba_plan_create(context, &p, &plan), MOBA_ERROR_UNSUPPORTED);
    moba_context_destroy(context);
}

/* Every element that a slice may address in k' (any head of any row, as a binding of the tensor would reach) lies in
 * the region, and its own heads are all of a row's memory. */
static void check_kprime(const moba_plan *plan, const mobai_stage_args *a) {
    const mobai_layout *l = &plan->layout[MOBAI_PASS_BACKWARD];
    const size_t element = plan->problem.dtype == MOBA_F32 ? 4 : 2;
    const moba_tensor *k = &a->k;
    cr_assert_eq(a->slice_kv_heads, l->slice_kv_heads);
    cr_assert_eq(k->token_stride, (int64_t)l->slice_kv_heads * a->head_dim);
    cr_assert_geq(k->buffer.offset, l->kprime.offset);
    size_t reach = (size_t)((a->total_k - 1) * k->token_stride + a->n_kv_heads * k->head_stride) * element;
    cr_assert_leq(k->buffer.offset + reach, l->kprime.offset + l->kprime.bytes);
}

/* One backward under `limit`; returns the number of attend_bwd launches. The query ranges of a kv head come in
 * ascending order, and dkv_sums is there exactly when there are several. */
static int run_backward_under(moba_context *context, moba_problem p, uint64_t limit) {
    moba_stream stream = {NULL};
    p.workspace_limit = limit;
    moba_plan *plan = make(context, &p);
    const mobai_layout *l = &plan->layout[MOBAI_PASS_BACKWARD];
    cr_assert_str_eq(moba_plan_kernel(plan, "attend_bwd"), "attend_bwd__ordered");
    cr_assert_leq(plan->workspace_bytes, limit);
    check_layout(plan, MOBAI_PASS_BACKWARD);
    bool ranges = l->slice_queries < p.max_total_q;
    if (ranges) cr_assert_eq(l->slice_kv_heads, 1);
    cr_assert_eq(l->dkv_sums.bytes, ranges ? (size_t)(2 * p.max_total_k * p.head_dim) * sizeof(float) : 0);
    moba_forward_args f = mock_forward_args(context, plan, p.max_total_q, p.max_total_k);
    moba_backward_args a = MOBA_BACKWARD_ARGS_INIT;
    a.in = f.in;
    a.o = a.dout = a.dq = f.o;
    a.dk = f.in.k;
    a.dv = f.in.v;
    a.lse = f.lse;
    a.saved = f.saved;
    a.saved_bytes = f.saved_bytes;
    a.workspace = f.workspace;
    a.workspace_bytes = f.workspace_bytes;
    if (p.kconv_width > 0)
        cr_assert_eq(
            moba_buffer_create(context, (size_t)(p.n_kv_heads * p.head_dim * p.kconv_width) * 4, &a.dkconv_weight),
            MOBA_OK);
    mock.n_launches = 0;
    cr_assert_eq(moba_backward(plan, stream, &a), MOBA_OK, "%s", moba_last_error());
    check_cover(plan, MOBAI_STAGE_DELTA, p.max_total_q);
    check_cover(plan, MOBAI_STAGE_ATTEND_BWD, p.max_total_q);
    check_cover(plan, MOBAI_STAGE_DQ_SUM, p.max_total_q);
    if (p.kconv_width > 0) {
        check_cover(plan, MOBAI_STAGE_KCONV, p.max_total_q);
        check_cover(plan, MOBAI_STAGE_KCONV_BWD, p.max_total_q);
    }
    int64_t next = 0;
    for (int i = 0; i < mock.n_launches; i++) {
        const mobai_stage_args *s = &mock.launches[i].args;
        if (mock.launches[i].variant->stage != MOBAI_STAGE_ATTEND_BWD) continue;
        cr_assert_eq(s->query_begin, next, "a range begins at %lld after %lld", (long long)s->query_begin,
                     (long long)next);
        cr_assert_eq(s->dkv_sums.handle != 0, ranges);
        if (p.kconv_width > 0) check_kprime(plan, s);
        next = s->query_end < p.max_total_q ? s->query_end : 0;
    }
    int n = count(MOBAI_STAGE_ATTEND_BWD);
    moba_buffer_destroy(context, a.dkconv_weight);
    mock_free_args(context, &f);
    moba_plan_destroy(plan);
    return n;
}

static moba_problem backward_problem(int64_t total) {
    moba_problem p = mock_problem(total);
    p.n_q_heads = 16;
    p.n_kv_heads = 4;
    p.deterministic = 1;           /* the mock's attend_bwd with partials */
    mock.attend_one_pass_cost = 1; /* the forward has none */
    return p;
}

/* What the refusal of a workspace that only the forward fits into says the backward needs; one byte less is refused. */
static size_t least_backward(moba_context *context, moba_problem p) {
    p.workspace_limit = MOBA_WORKSPACE_UNLIMITED;
    moba_plan *plan = make(context, &p), *none = NULL;
    p.workspace_limit = plan->layout[MOBAI_PASS_FORWARD].bytes;
    moba_plan_destroy(plan);
    cr_assert_eq(moba_plan_create(context, &p, &none), MOBA_ERROR_UNSUPPORTED);
    HAS(moba_last_error(), "the backward of this problem");
    const char *at = strstr(moba_last_error(), "at least ");
    cr_assert_not_null(at, "%s", moba_last_error());
    size_t least = strtoull(at + 9, NULL, 10);
    p.workspace_limit = least - 1;
    cr_assert_eq(moba_plan_create(context, &p, &none), MOBA_ERROR_UNSUPPORTED);
    return least;
}

Test(planner, the_backward_is_cut_by_heads_then_by_query_ranges_with_sums) {
    moba_context *context = mock_open();
    moba_problem p = backward_problem(5000);
    p.workspace_limit = MOBA_WORKSPACE_UNLIMITED;
    size_t whole = workspace_of(context, &p);
    cr_assert_eq(run_backward_under(context, p, whole), 1);
    cr_assert_eq(run_backward_under(context, p, whole - 1), 2, "one byte less needs a second slice");
    /* delta, one kv head's partials: 4 heads, 4 picks of 64 floats */
    size_t delta = 16 * 5000 * 4, partials = 5000 * 4 * 4 * 256, sums = 2 * 5000 * 64 * 4;
    cr_assert_eq(run_backward_under(context, p, delta + partials), 4);
    int n = run_backward_under(context, p, delta + partials - 1);
    cr_assert_eq(n, 8, "%d slices: the fewest are two ranges of each of the four heads", n);
    size_t half = 2560 * 4 * 4 * 256; /* 2500 rows, to a multiple of 256 */
    cr_assert_eq(run_backward_under(context, p, delta + half + sums), 8, "exact to the byte");
    cr_assert_eq(run_backward_under(context, p, delta + half + sums - 1), 12);
    int before = 0;
    for (uint64_t limit = whole; limit > whole / 20; limit = limit * 9 / 10) {
        n = run_backward_under(context, p, limit);
        cr_assert_geq(n, before, "a smaller limit gave fewer slices");
        before = n;
    }
    size_t least = least_backward(context, p);
    cr_assert_eq(least, delta + 256 * 4 * 4 * 256 + sums);
    n = run_backward_under(context, p, least);
    cr_assert_eq(n, 4 * 20, "%d slices", n);
    moba_context_destroy(context);
}

/* k' and its gradient are sliced with the partials; both lie between the stages that write and read them. */
Test(planner, a_sliced_backward_convolves_the_keys_of_its_slice) {
    moba_context *context = mock_open();
    moba_problem p = backward_problem(5000);
    p.kconv_width = 3;
    p.workspace_limit = MOBA_WORKSPACE_UNLIMITED;
    size_t whole = workspace_of(context, &p), head = 5000 * (4 * 4 * 256 + 64 * 4 + 64 * 4);
    cr_assert_eq(run_backward_under(context, p, whole), 1);
    cr_assert_eq(run_backward_under(context, p, whole - 2 * head + 4096), 2);
    cr_assert_eq(run_backward_under(context, p, whole - 3 * head + 4096), 4);
    cr_assert_gt(run_backward_under(context, p, whole - 3 * head - head / 2), 4);
    moba_context_destroy(context);
}

/* Both passes use one buffer, so a default below what the forward takes is no reason to cut the backward further. */
Test(planner, a_default_limit_leaves_the_backward_what_the_forward_takes) {
    moba_context *context = mock_open();
    context->caps.default_workspace_limit = 100000;
    moba_problem p = backward_problem(5000);
    p.top_k = 16;
    moba_plan *plan = make(context, &p);
    const mobai_layout *forward = &plan->layout[MOBAI_PASS_FORWARD], *backward = &plan->layout[MOBAI_PASS_BACKWARD];
    cr_assert_gt(forward->bytes, context->caps.default_workspace_limit);
    cr_assert_eq(plan->workspace_bytes, forward->bytes);
    cr_assert_gt(backward->slice_queries, MOBAI_MIN_SLICE_QUERIES);
    p.workspace_limit = forward->bytes;
    moba_plan *limited = make(context, &p);
    cr_assert_eq(limited->layout[MOBAI_PASS_BACKWARD].slice_queries, backward->slice_queries);
    moba_plan_destroy(limited);
    moba_plan_destroy(plan);
    moba_context_destroy(context);
}

/* 300 query rows against many keys: sums of all keys would be larger than the partials that a cut saves. */
Test(planner, query_ranges_whose_sums_cost_more_than_they_save_are_not_made) {
    moba_context *context = mock_open();
    moba_problem p = backward_problem(300);
    p.max_total_k = p.max_seqlen_k = 100000;
    p.top_k = 32;
    size_t least = least_backward(context, p);
    cr_assert_eq(least, 16 * 300 * 4 + 300 * 4 * 32 * 256);
    cr_assert_eq(run_backward_under(context, p, least), 4);
    moba_context_destroy(context);
}

Test(planner, inference_needs_the_forward_alone) {
    moba_context *context = mock_open();
    mock.scratch = 1000;
    moba_problem p = mock_problem(4096);
    p.dense = 1; /* no partials, so that dK' makes the backward the larger pass */
    p.kconv_width = 3;
    moba_plan *both = make(context, &p);
    p.inference = 1;
    moba_plan *forward = make(context, &p);
    cr_assert(!forward->has_backward);
    cr_assert_gt(both->workspace_bytes, both->layout[MOBAI_PASS_FORWARD].bytes);
    cr_assert_eq(forward->workspace_bytes, both->layout[MOBAI_PASS_FORWARD].bytes);
    cr_assert_eq(forward->saved.bytes, 0);
    HAS(forward->explanation, "no backward: inference is set");
    cr_assert_null(moba_plan_kernel(forward, "attend_bwd"));
    cr_assert_null(strstr(forward->explanation, "delta"), "no word of kernels that were not asked for");
    double cost;
    cr_assert_eq(moba_plan_cost(forward, "bwd", &cost), MOBA_ERROR_UNSUPPORTED);
    HAS(moba_last_error(), "inference");

    p.dense = 0;
    p.deterministic = 1; /* a promise about a pass that is not run */
    moba_plan *promised = make(context, &p);
    cr_assert_eq(promised->saved.bytes, 0);
    moba_plan_destroy(promised);

    mobai_run run = {.kind = MOBAI_RUN_BACKWARD};
    cr_assert_eq(mobai_check_run(forward, &run), MOBA_ERROR_UNSUPPORTED);
    HAS(moba_last_error(), "inference");
    moba_plan_destroy(both);
    moba_plan_destroy(forward);
    moba_context_destroy(context);
}

Test(planner, unlimited_never_slices_and_larger_bounds_never_need_less) {
    moba_context *context = mock_open();
    size_t before = 0;
    for (int64_t total = 1; total < 2000000; total = total * 3 + 1) {
        moba_problem p = mock_problem(total);
        p.workspace_limit = MOBA_WORKSPACE_UNLIMITED;
        moba_plan *plan = make(context, &p);
        cr_assert_eq(plan->layout[MOBAI_PASS_FORWARD].slice_kv_heads, p.n_kv_heads);
        cr_assert_eq(plan->layout[MOBAI_PASS_FORWARD].slice_queries, total);
        cr_assert_geq(plan->workspace_bytes, before);
        before = plan->workspace_bytes;
        moba_plan_destroy(plan);
    }
    moba_context_destroy(context);
}

/* Issue: at 64K the workspace is at most 15 % of q + k + v + o, and it never grows faster than N (MoBA#14,
 * flash-moba#7). */
Test(planner, cpu_workspace_is_bounded) {
    static const moba_dtype dtypes[] = {MOBA_F32, MOBA_F16, MOBA_BF16};
    moba_context_options options = MOBA_CONTEXT_OPTIONS_INIT;
    moba_context *context = NULL;
    options.backend = "cpu";
    cr_assert_eq(moba_context_create(&options, &context), MOBA_OK, "%s", moba_last_error());
    for (size_t d = 0; d < 3; d++) {
        size_t before = 0;
        for (int64_t n = 1024; n <= 1024 * 1024; n *= 2) {
            moba_problem p = mock_problem(n);
            p.dtype = dtypes[d];
            p.n_q_heads = p.n_kv_heads = 8;
            p.head_dim = 128;
            p.block_size = 128;
            p.top_k = 8;
            size_t bytes = workspace_of(context, &p),
                   tensors = (size_t)(4 * n * 8 * 128) * (p.dtype == MOBA_F32 ? 4u : 2u);
            if (n == 65536 && p.dtype == MOBA_F32)
                cr_assert_leq(bytes, tensors * 15 / 100, "%zu bytes of workspace for %zu of tensors", bytes, tensors);
            if (before > 0)
                cr_assert_leq(bytes, 2 * before, "%lld rows: %zu bytes, half as many: %zu", (long long)n, bytes,
                              before);
            before = bytes;
        }
    }
    moba_context_destroy(context);
}
