/* SPDX-License-Identifier: Apache-2.0
 *
 * Attend backward: dQ, dK and dV with the selection held fixed (docs/spec.md section 6), in five products, without
 * atomics, the same bits at any thread count.
 *
 * A unit's dK and dV accumulate over query rows in ascending order, a row's dQ over units in ascending order. Two
 * schedules keep both orders, and differ in what runs at the same time:
 *   - a lane that is a small share of the work is one task: its units one after another, each with all its rows;
 *   - a large lane is cut into ranges and walked in waves: at step s, range r meets unit s - r. The cells of one step
 * have different units and different ranges, so they share nothing. Several heads are walked at the same time. dQ
 * accumulates in the dq tensor where that is float32 with whole vectors, else in scratch, a bounded number of lanes at
 * a time.
 */
#include "backends/cpu/kernels/attend_bwd_cell.h"

enum {
    BLOCKS_PER_THREAD = 4, /* units kept in packed form: cells of one step, for balance among threads */
    MIN_RANGE = 64,        /* query rows of a range, times group */
    ROWS_PER_TASK = 256    /* query rows of a task that clears or stores dQ */
};

typedef struct bwd_job {
    const mobai_stage_args *a;
    mobai_bwd_extent e;
    int64_t n_heads; /* kv heads of the slice */
    int32_t n_threads;
    bool accumulate_in_place;
    float *blocks, *tiles, *dq;
    int64_t dq_floats;
    /* one wave */
    mobai_cpu_blocks s;
    int64_t first_head, n_lanes, n_ranges, step, n_units, lane_floats;
    mobai_bwd_sums sums;
    bool clear;
} bwd_job;

static bool in_place(int32_t dtype, int32_t head_dim) { return dtype == MOBA_F32 && head_dim % MOBAI_VL == 0; }

static size_t fixed_floats(const mobai_bwd_extent *e, int64_t n_threads) {
    return (size_t)n_threads * (BLOCKS_PER_THREAD * e->block + e->tile);
}

/** Packed units, tiles, and accumulators of dQ: a lane for each thread, within the limit. */
size_t MOBAI_ISA_FN(mobai_cpu_attend_bwd_scratch)(const mobai_shape *shape) {
    const moba_problem *p = shape->problem;
    const mobai_bwd_extent e = mobai_bwd_extent_of(p->head_dim);
    const int64_t n_threads = shape->caps->n_compute_units, group = p->n_q_heads / p->n_kv_heads;
    int64_t dq_floats = 0;
    if (!in_place((int32_t)p->dtype, p->head_dim)) {
        const int64_t n_lanes = mobai_min64(n_threads, shape->n_slice_kv_heads * p->max_batch);
        dq_floats = mobai_min64(p->max_seqlen_q * group * e.row * n_lanes, mobai_cpu_dq_floats_limit(shape));
        dq_floats = mobai_max64(dq_floats, n_threads * MIN_RANGE * group * e.row);
    }
    return (fixed_floats(&e, n_threads) + (size_t)dq_floats) * sizeof(float);
}

/** First index in ascending rows[0, n) whose row is >= row. */
static int64_t lower_bound(const uint32_t *rows, int64_t n, int64_t row) {
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (rows[middle] < row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int64_t units_per_block(const bwd_job *job) {
    return mobai_ceil_div(mobai_min64(job->a->block_size, mobai_max64(job->s.k.end - job->s.k.begin, 1)),
                          job->e.n_keys);
}

static mobai_bwd_unit unit_at(const bwd_job *job, const mobai_cpu_blocks *s, int64_t per_block, int64_t index) {
    const int64_t block = index / per_block, begin = block * job->a->block_size + index % per_block * job->e.n_keys;
    const int64_t end = mobai_min64(begin + job->e.n_keys, (block + 1) * job->a->block_size);
    const mobai_bwd_unit unit = {s->first_slot + block, begin, mobai_min64(end, s->k.end - s->k.begin)};
    return unit;
}

/** Adds the rows of queries [from, to) to the unit; *loaded says whether the unit is packed. */
static void cell(const bwd_job *job, const mobai_bwd_lane *lane, const mobai_bwd_unit *unit,
                 const mobai_bwd_block *block, mobai_bwd_tile *tile, int64_t from, int64_t to, bool *loaded) {
    const mobai_stage_args *a = job->a;
    const mobai_cpu_blocks *s = &lane->s;
    if (a->causal) /* the first query at or past the unit's first key */
        from = mobai_max64(from, unit->begin - mobai_cpu_position(s, s->q.begin) + s->q.begin);
    if (from >= to || unit->begin >= unit->end) return;
    const uint32_t *rows = NULL;
    int64_t first = from * a->group, n = (to - from) * a->group;
    if (!a->dense) {
        const int64_t *offsets =
            (const int64_t *)mobai_cpu_address(a->index_offsets) + lane->g * (a->n_slots + 1) + unit->slot;
        rows = (const uint32_t *)mobai_cpu_address(a->index_rows) + lane->g * a->index_row_stride + offsets[0];
        const int64_t all = offsets[1] - offsets[0], skip = lower_bound(rows, all, first);
        n = lower_bound(rows, all, to * a->group) - skip;
        rows += skip;
    }
    if (n == 0) return;
    if (!*loaded) mobai_bwd_load_unit(a, lane, unit, block);
    *loaded = true;
    const int64_t n_tiles = mobai_ceil_div(n, MOBAI_BWD_TILE);
    const int64_t length = mobai_ceil_div(mobai_ceil_div(n, n_tiles), MOBAI_GEMM_MR) * MOBAI_GEMM_MR;
    for (int64_t x = 0; x < n; x += length)
        mobai_bwd_add_tile(a, &job->e, lane, unit, block, tile, rows ? rows + x : NULL, first + x,
                           mobai_min64(length, n - x), mobai_max64(0, mobai_min64(length, n - x - length)));
}

static void clear_block(const bwd_job *job, const mobai_bwd_block *block) {
    memset(block->dk, 0, (size_t)(job->e.n_keys * job->e.row) * sizeof(float));
    memset(block->dv, 0, (size_t)(job->e.n_keys * job->e.row) * sizeof(float));
}

/** Clears dQ of query rows [from, to) of a lane where it accumulates, or moves it into the dq tensor. */
static void clear_dq(const bwd_job *job, const mobai_bwd_lane *lane, int64_t from, int64_t to) {
    const mobai_stage_args *a = job->a;
    const int64_t n = (to - from) * a->group * job->e.row;
    if (lane->dq) {
        memset(lane->dq + (from - lane->dq_begin) * a->group * job->e.row, 0, (size_t)n * sizeof(float));
        return;
    }
    for (int64_t t = from; t < to; t++)
        for (int64_t h = lane->g * a->group; h < (lane->g + 1) * a->group; h++)
            memset(mobai_cpu_row(a, &a->dq, a->seqlen_q, t, h), 0, (size_t)a->head_dim * sizeof(float));
}

static void store_dq(const bwd_job *job, const mobai_bwd_lane *lane, int64_t from, int64_t to) {
    const mobai_stage_args *a = job->a;
    for (int64_t t = from; lane->dq && t < to; t++)
        for (int64_t h = 0; h < a->group; h++)
            mobai_row_store(mobai_cpu_row(a, &a->dq, a->seqlen_q, t, lane->g * a->group + h),
                            lane->dq + ((t - lane->dq_begin) * a->group + h) * job->e.row, (moba_dtype)a->dtype,
                            a->head_dim);
}

/* -------------------------------------------------------------------------------------------- small lanes -- */

static int64_t lane_work(const mobai_stage_args *a, const mobai_cpu_blocks *s) {
    return (s->q.end - s->q.begin) * (a->dense ? s->n_blocks : mobai_min64(s->n_blocks, a->top_k));
}

/** A lane small enough for one thread: its sequence's share of the work leaves each thread several, and its dQ fits. */
static bool is_small(const bwd_job *job, const mobai_cpu_blocks *s, int64_t all_work) {
    const int64_t floats = (s->q.end - s->q.begin) * job->a->group * job->e.row;
    if (!job->accumulate_in_place && floats > job->dq_floats / job->n_threads) return false;
    return job->n_threads == 1 || lane_work(job->a, s) * 4 * job->n_threads <= all_work * job->n_heads;
}

static int64_t all_work(const mobai_stage_args *a) {
    int64_t work = 0;
    for (int64_t b = 0; b < a->batch; b++) {
        const mobai_cpu_blocks s = mobai_cpu_blocks_at(a, b);
        work += lane_work(a, &s);
    }
    return work;
}

typedef struct small_lanes {
    bwd_job *job;
    int64_t all_work;
} small_lanes;

static void small_lane(void *context, int64_t task, int32_t thread) {
    const small_lanes *lanes = (const small_lanes *)context;
    bwd_job job = *lanes->job;
    const mobai_stage_args *a = job.a;
    const mobai_cpu_blocks s = mobai_cpu_blocks_at(a, task / job.n_heads);
    if (!is_small(&job, &s, lanes->all_work)) return;
    mobai_bwd_lane lane = {s, a->kv_head_begin + task % job.n_heads, MOBAI_BWD_ALL, NULL, s.q.begin};
    if (!job.accumulate_in_place) lane.dq = job.dq + thread * (job.dq_floats / job.n_threads);
    mobai_bwd_tile tile;
    mobai_bwd_tile_init(&tile, job.tiles + (size_t)thread * job.e.tile, &job.e);
    const mobai_bwd_block block = mobai_bwd_block_at(job.blocks + (size_t)thread * job.e.block, &job.e, a->head_dim);
    job.s = s;
    const int64_t per_block = units_per_block(&job);
    clear_dq(&job, &lane, s.q.begin, s.q.end);
    for (int64_t u = 0; u < s.n_blocks * per_block; u++) {
        const mobai_bwd_unit unit = unit_at(&job, &s, per_block, u);
        bool loaded = false;
        clear_block(&job, &block);
        cell(&job, &lane, &unit, &block, &tile, s.q.begin, s.q.end, &loaded);
        mobai_bwd_store_unit(a, &job.e, &lane, &unit, &block);
    }
    store_dq(&job, &lane, s.q.begin, s.q.end);
}

/* ------------------------------------------------------------------------------------------------- waves -- */

static mobai_bwd_lane wave_lane(const bwd_job *job, int64_t index) {
    mobai_bwd_lane lane = {job->s, job->a->kv_head_begin + job->first_head + index, job->sums, NULL, job->s.q.begin};
    if (!job->accumulate_in_place && job->sums == MOBAI_BWD_ALL) lane.dq = job->dq + index * job->lane_floats;
    return lane;
}

static void wave_cell(void *context, int64_t task, int32_t thread) {
    const bwd_job *job = (const bwd_job *)context;
    const mobai_stage_args *a = job->a;
    const int64_t range = task / job->n_lanes, index = task % job->n_lanes, u = job->step - range;
    if (u < 0 || u >= job->n_units) return;
    const mobai_cpu_blocks *s = &job->s;
    const mobai_bwd_lane lane = wave_lane(job, index);
    const mobai_bwd_unit unit = unit_at(job, s, units_per_block(job), u);
    const int64_t place = index * job->n_ranges + u % job->n_ranges;
    const mobai_bwd_block block = mobai_bwd_block_at(job->blocks + (size_t)place * job->e.block, &job->e, a->head_dim);
    mobai_bwd_tile tile;
    mobai_bwd_tile_init(&tile, job->tiles + (size_t)thread * job->e.tile, &job->e);
    if (range == 0) {
        clear_block(job, &block);
        mobai_bwd_load_unit(a, &lane, &unit, &block);
    }
    const int64_t length = s->q.end - s->q.begin;
    bool loaded = true;
    cell(job, &lane, &unit, &block, &tile, s->q.begin + length * range / job->n_ranges,
         s->q.begin + length * (range + 1) / job->n_ranges, &loaded);
    if (range == job->n_ranges - 1) mobai_bwd_store_unit(a, &job->e, &lane, &unit, &block);
}

static void wave_dq(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const bwd_job *job = (const bwd_job *)context;
    const mobai_bwd_lane lane = wave_lane(job, task % job->n_lanes);
    const int64_t from = job->s.q.begin + task / job->n_lanes * ROWS_PER_TASK;
    const int64_t to = mobai_min64(from + ROWS_PER_TASK, job->s.q.end);
    if (job->clear)
        clear_dq(job, &lane, from, to);
    else
        store_dq(job, &lane, from, to);
}

/** dQ of one span of query rows of a lane whose dK and dV are done: every unit with these rows. */
static void query_range(void *context, int64_t task, int32_t thread) {
    const bwd_job *job = (const bwd_job *)context;
    const mobai_stage_args *a = job->a;
    const int64_t range_floats = job->dq_floats / job->n_threads, length = range_floats / (a->group * job->e.row);
    const int64_t from = job->s.q.begin + task / job->n_heads * length, to = mobai_min64(from + length, job->s.q.end);
    const mobai_bwd_lane lane = {job->s, a->kv_head_begin + task % job->n_heads, MOBAI_BWD_QUERIES,
                                 job->dq + thread * range_floats, from};
    mobai_bwd_tile tile;
    mobai_bwd_tile_init(&tile, job->tiles + (size_t)thread * job->e.tile, &job->e);
    const mobai_bwd_block block = mobai_bwd_block_at(job->blocks + (size_t)thread * job->e.block, &job->e, a->head_dim);
    clear_dq(job, &lane, from, to);
    for (int64_t u = 0; u < job->n_units; u++) {
        const mobai_bwd_unit unit = unit_at(job, &job->s, units_per_block(job), u);
        bool loaded = false;
        cell(job, &lane, &unit, &block, &tile, from, to, &loaded);
    }
    store_dq(job, &lane, from, to);
}

static void run_waves(bwd_job *job, mobai_cpu_pool *pool) {
    const int64_t n_blocks = BLOCKS_PER_THREAD * (int64_t)job->n_threads, n_rows = job->s.q.end - job->s.q.begin;
    const int64_t dq_tasks = mobai_ceil_div(n_rows, ROWS_PER_TASK);
    job->lane_floats = n_rows * job->a->group * job->e.row;
    job->n_units = job->s.n_blocks * units_per_block(job);
    int64_t most = mobai_min64(job->n_heads, n_blocks);
    job->sums = MOBAI_BWD_ALL;
    if (!job->accumulate_in_place && job->lane_floats > job->dq_floats)
        job->sums = MOBAI_BWD_KEYS;
    else if (!job->accumulate_in_place && job->lane_floats > 0)
        most = mobai_min64(most, job->dq_floats / job->lane_floats);
    for (job->first_head = 0; job->first_head < job->n_heads; job->first_head += job->n_lanes) {
        job->n_lanes = mobai_min64(most, job->n_heads - job->first_head);
        job->n_ranges = mobai_min64(n_blocks / job->n_lanes, mobai_ceil_div(n_rows * job->a->group, MIN_RANGE));
        job->n_ranges = mobai_max64(1, job->n_ranges);
        job->clear = true;
        if (job->sums == MOBAI_BWD_ALL) mobai_cpu_parallel_for(pool, dq_tasks * job->n_lanes, wave_dq, job);
        for (job->step = 0; job->step < job->n_units + job->n_ranges - 1; job->step++)
            mobai_cpu_parallel_for(pool, job->n_ranges * job->n_lanes, wave_cell, job);
        job->clear = false;
        if (job->sums == MOBAI_BWD_ALL) mobai_cpu_parallel_for(pool, dq_tasks * job->n_lanes, wave_dq, job);
    }
    if (job->sums == MOBAI_BWD_ALL) return;
    const int64_t length = job->dq_floats / job->n_threads / (job->a->group * job->e.row);
    mobai_cpu_parallel_for(pool, mobai_ceil_div(n_rows, length) * job->n_heads, query_range, job);
}

/** Zero gradients of kv head `task` for storage rows past the last sequence. */
static void clear_tail(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const bwd_job *job = (const bwd_job *)context;
    const mobai_stage_args *a = job->a;
    if (a->cu_seqlens_q.handle == 0) return;
    const mobai_cpu_blocks last = mobai_cpu_blocks_at(a, a->batch - 1);
    const size_t bytes = (size_t)a->head_dim * mobai_dtype_bytes((moba_dtype)a->dtype);
    const int64_t g = a->kv_head_begin + task;
    for (int64_t t = last.q.end; t < a->total_q; t++)
        for (int64_t h = g * a->group; h < (g + 1) * a->group; h++)
            memset(mobai_cpu_row(a, &a->dq, a->seqlen_q, t, h), 0, bytes);
    for (int64_t t = last.k.end; t < a->total_k; t++) {
        memset(mobai_cpu_row(a, &a->dv, a->seqlen_k, t, g), 0, bytes);
        if (a->kconv_width)
            memset(mobai_cpu_dkprime_row(a, t, g), 0, (size_t)a->head_dim * sizeof(float));
        else
            memset(mobai_cpu_row(a, &a->dk, a->seqlen_k, t, g), 0, bytes);
    }
}

moba_status MOBAI_ISA_FN(mobai_cpu_attend_bwd)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    bwd_job job = {.a = args, .e = mobai_bwd_extent_of(args->head_dim)};
    job.n_heads = args->kv_head_end - args->kv_head_begin;
    job.n_threads = mobai_cpu_pool_threads(pool);
    job.accumulate_in_place = in_place(args->dtype, args->head_dim);
    const size_t fixed = fixed_floats(&job.e, job.n_threads);
    job.blocks = (float *)mobai_cpu_address(args->scratch);
    job.tiles = job.blocks + (size_t)job.n_threads * BLOCKS_PER_THREAD * job.e.block;
    job.dq = job.blocks + fixed;
    job.dq_floats = (int64_t)(args->scratch_bytes / sizeof(float) - fixed);
    small_lanes lanes = {&job, all_work(args)};
    mobai_cpu_parallel_for(pool, args->batch * job.n_heads, small_lane, &lanes);
    for (int64_t b = 0; b < args->batch; b++) {
        job.s = mobai_cpu_blocks_at(args, b);
        if (!is_small(&job, &job.s, lanes.all_work)) run_waves(&job, pool);
    }
    mobai_cpu_parallel_for(pool, job.n_heads, clear_tail, &job);
    return MOBA_OK;
}
