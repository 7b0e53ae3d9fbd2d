/* SPDX-License-Identifier: Apache-2.0
 *
 * Attend stage, forward: softmax attention of each row over its selected blocks (docs/spec.md section 5).
 *
 * A task is a range of queries of one kv head. It walks the key blocks in ascending order. For each it packs a tile of
 * K and V once, and takes the rows of the range that chose the block through two matrix products,
 *
 *     gathered Q (rows x d)  K^T  ->  S,   softmax,   P (rows x keys)  V  ->  += O of the range, in scratch
 *
 * with the online softmax: a row keeps its running maximum m and sum l, and O is rescaled when m rises. A range is as
 * long as it takes for a visit to find enough rows to pay for the packing. A row meets its blocks in ascending order
 * and each sum runs in key order, so its result does not depend on ranges, tiles or threads.
 *
 * Scores stay unscaled; softmax_scale * log2(e) enters with the exponential, 2^(c s - m). A negative scale flips Q.
 */
#include <math.h>

#include "backends/cpu/kernels/attend.h"
#include "backends/cpu/kernels/attend_operand.h"
#include "backends/cpu/kernels/sequence.h"

enum {
    KEY_TILE = 128,   /* keys packed at a time: the two panels of K^T or V of d = 128 fill L1 one after the other */
    ROW_TILE = 96,    /* gathered rows at a time: a multiple of the register tile */
    VISIT_ROWS = 256, /* rows a visit of a block should find; packing then takes about 5 % */
    MAX_RANGE_ROWS = 8192, /* bounds O in scratch */
    GATHER_AHEAD = 8,      /* rows of Q asked for before they are copied */
    MIN_RANGE_ROWS = 64,
    DENSE_RANGE_ROWS = 2048,
    TASKS_PER_THREAD = 6 /* for balance: the first rows of a causal sequence have fewer blocks */
};

/** What one thread works in. */
typedef struct workspace {
    operand *keys, *values; /* packed tile: K^T, V */
    operand *rows;          /* gathered Q: ROW_TILE rows of d_padded */
    float *scores;          /* S: ROW_TILE x KEY_TILE */
    operand *weights;       /* P, likewise; in place of S when both are float32 */
    float *o;               /* unnormalised O of the range's rows (partials: of the block's rows), d_padded each */
    float *m, *l;           /* their running maximum (base 2) and sum */
} workspace;

typedef struct attend_job {
    const mobai_stage_args *a;
    bool partials;
    float scale; /* |softmax_scale| * log2(e) */
    int64_t range_queries, n_ranges;
    int64_t d_padded; /* head_dim in whole vectors */
    size_t thread_bytes;
} attend_job;

/** A key tile being attended to, and the rows that do. */
typedef struct visit {
    const attend_job *job;
    const workspace *w;
    mobai_cpu_blocks sequence;
    const unsigned char *q; /* row 0 of the sequence, head 0 of the group */
    int64_t g;
    const uint32_t *list; /* gathered rows, or NULL: row x is x itself (dense) */
    int64_t list_end;     /* position past the last one */
    int64_t first_row;    /* gathered row whose accumulator is 0, or with partials the list position */
    int64_t key_begin;    /* of the tile, within the sequence */
    int64_t n_keys;
    bool values_finite;
} visit;

static int64_t padded_head_dim(int64_t head_dim) { return (head_dim + MOBAI_VL - 1) / MOBAI_VL * MOBAI_VL; }

static size_t fixed_bytes(int64_t head_dim) {
    const int64_t weights = sizeof(operand) == sizeof(float) ? 0 : ROW_TILE * KEY_TILE;
    const int64_t operands =
        KEY_TILE * head_dim + KEY_TILE * mobai_gemm_padded(head_dim) + ROW_TILE * padded_head_dim(head_dim) + weights;
    return (size_t)operands * sizeof(operand) + ROW_TILE * KEY_TILE * sizeof(float);
}

static size_t row_bytes(int64_t head_dim) { return (size_t)(padded_head_dim(head_dim) + 2) * sizeof(float); }

/** Queries of a range. n_blocks: key blocks of a sequence; grows with every argument but top_k, group and n_threads. */
static int64_t range_queries(int64_t queries, int64_t n_kv_heads, int64_t group, int64_t n_blocks, int64_t top_k,
                             bool dense, int64_t n_threads) {
    int64_t rows = dense ? DENSE_RANGE_ROWS : VISIT_ROWS * n_blocks / top_k;
    rows = mobai_min64(mobai_max64(rows, DENSE_RANGE_ROWS), MAX_RANGE_ROWS);
    int64_t balanced = queries * n_kv_heads / (n_threads * TASKS_PER_THREAD) * group;
    rows = mobai_max64(mobai_min64(rows, balanced), MIN_RANGE_ROWS);
    return mobai_max64(1, mobai_min64(queries, rows / group));
}

size_t MOBAI_ISA_FN(mobai_cpu_attend_scratch)(const mobai_shape *shape) {
    const moba_problem *p = shape->problem;
    int64_t group = p->n_q_heads / p->n_kv_heads;
    int64_t queries = range_queries(shape->n_slice_queries, shape->n_slice_kv_heads, group, shape->n_slots, p->top_k,
                                    p->dense != 0, shape->caps->n_compute_units);
    size_t thread = fixed_bytes(p->head_dim) + (size_t)(queries * group) * row_bytes(p->head_dim);
    return (size_t)shape->caps->n_compute_units * mobai_cpu_align64(thread);
}

static workspace carve(const attend_job *job, int32_t thread) {
    const int64_t d = job->a->head_dim, n_rows = job->range_queries * job->a->group;
    unsigned char *base = (unsigned char *)mobai_cpu_address(job->a->scratch) + (size_t)thread * job->thread_bytes;
    workspace w;
    w.scores = (float *)(void *)base;
    w.o = w.scores + ROW_TILE * KEY_TILE;
    w.m = w.o + n_rows * job->d_padded;
    w.l = w.m + n_rows;
    w.keys = (operand *)(void *)(w.l + n_rows);
    w.values = w.keys + KEY_TILE * d;
    w.rows = w.values + KEY_TILE * mobai_gemm_padded(d);
    w.weights = sizeof(operand) == sizeof(float) ? (operand *)(void *)w.scores : w.rows + ROW_TILE * job->d_padded;
    return w;
}

/* --------------------------------------------------------------------------------------- one tile of rows -- */

/** Copies n rows, from list position x on, into w->rows; sets the row pointers of O and how many keys each row sees. */
static void gather(const visit *v, int64_t x, int64_t n, float **o, float **m, float **l, int32_t *limit) {
    const attend_job *job = v->job;
    const mobai_stage_args *a = job->a;
    const moba_dtype dtype = (moba_dtype)a->dtype;
    const uint32_t group = (uint32_t)a->group;
    const int64_t bytes = dtype == MOBA_F32 ? 4 : 2, d = a->head_dim;
    const bool flip = a->softmax_scale < 0.0f;
    for (int64_t i = 0; i < n; i++) {
        if (x + i + GATHER_AHEAD < v->list_end) {
            const uint32_t ahead = v->list != NULL ? v->list[x + i + GATHER_AHEAD] : (uint32_t)(x + i + GATHER_AHEAD);
            const int64_t t = ahead / group - v->sequence.q.begin, h = ahead % group;
            mobai_prefetch(v->q + (t * a->q.token_stride + h * a->q.head_stride) * bytes, d * bytes);
        }
        const uint32_t row = v->list != NULL ? v->list[x + i] : (uint32_t)(x + i);
        const int64_t t = row / group, h = row % group;
        const int64_t accumulator = (job->partials ? x + i : (int64_t)row) - v->first_row;
        const int64_t element = (t - v->sequence.q.begin) * a->q.token_stride + h * a->q.head_stride;
        operand_gather(v->w->rows + i * job->d_padded, v->q + element * bytes, dtype, d, flip);
        o[i] = v->w->o + accumulator * job->d_padded;
        m[i] = v->w->m + accumulator;
        l[i] = v->w->l + accumulator;
        int64_t seen = v->n_keys;
        if (a->causal) seen = mobai_min64(seen, mobai_cpu_position(&v->sequence, t) + 1 - v->key_begin);
        limit[i] = (int32_t)seen;
    }
}

/** S = Q K^T for the columns that a row of each register tile sees. */
static void compute_scores(const visit *v, int64_t n, const int32_t *limit) {
    const int64_t d = v->job->a->head_dim;
    for (int64_t j = 0; j < v->n_keys; j += MOBAI_GEMM_PANEL) {
        for (int64_t i = 0; i < n; i += MOBAI_GEMM_MR) {
            const int64_t rows = mobai_min64(n - i, MOBAI_GEMM_MR);
            const int64_t width = mobai_min64(limit[i + rows - 1] - j, MOBAI_GEMM_PANEL);
            if (width <= 0) continue;
            float *at[MOBAI_GEMM_MR];
            for (int64_t r = 0; r < rows; r++)
                at[r] = v->w->scores + (i + r) * KEY_TILE + j;
            operand_tile(rows, width, d, v->w->rows + i * v->job->d_padded, v->job->d_padded, v->w->keys + j * d, at,
                         NULL);
        }
    }
}

static mobai_vi lanes(void) {
    mobai_vi lane;
    for (int i = 0; i < MOBAI_VL; i++)
        lane[i] = i;
    return lane;
}

/**
 * S to P = 2^(scale S - m), with m the row's new maximum; l grows by the row's sum; alpha[i] is what the row's
 * earlier O and l are worth under the new maximum. Columns past the row's limit become 0 up to that of its register
 * tile.
 */
static void softmax(const visit *v, int64_t n, const int32_t *limit, float *const *m, float *const *l, float *alpha) {
    const float scale = v->job->scale;
    const mobai_vf c = mobai_v_set1(scale), nothing = mobai_v_set1(-INFINITY);
    const mobai_vi lane = lanes();
    float top[ROW_TILE];
    for (int64_t i = 0; i < n; i++) {
        float *s = v->w->scores + i * KEY_TILE;
        mobai_vf highest = nothing;
        const int64_t whole = limit[i] / MOBAI_VL * MOBAI_VL;
        for (int64_t j = 0; j < whole; j += MOBAI_VL)
            highest = mobai_v_max(highest, mobai_v_load(s + j));
        if (whole < limit[i]) {
            mobai_vf last = mobai_v_select(lane < (int32_t)(limit[i] - whole), mobai_v_load(s + whole), nothing);
            mobai_v_store(s + whole, last);
            highest = mobai_v_max(highest, last);
        }
        const float high = mobai_v_hmax(highest) * scale;
        top[i] = *m[i] > high ? *m[i] : high;
        alpha[i] = *m[i];
        *m[i] = top[i];
        /* A row that has met only scores of -inf: any finite maximum gives it sums of 0. */
        if (top[i] == -INFINITY) top[i] = 0.0f;
    }
    for (int64_t i = 0; i < n; i += MOBAI_VL)
        mobai_v_store(alpha + i, mobai_v_exp2(mobai_v_load(alpha + i) - mobai_v_load(top + i)));
    for (int64_t i = 0; i < n; i++) {
        const float *s = v->w->scores + i * KEY_TILE;
        operand *weights = v->w->weights + i * KEY_TILE;
        const mobai_vf minus = mobai_v_set1(-top[i]);
        const int64_t last_row = mobai_min64(n, (i / MOBAI_GEMM_MR + 1) * MOBAI_GEMM_MR) - 1;
        mobai_vf sum = {0};
        int64_t j = 0;
        for (; j < limit[i]; j += MOBAI_VL) {
            mobai_vf p = mobai_v_exp2(mobai_v_fma(mobai_v_load(s + j), c, minus));
            operand_store(weights + j, p);
            sum += p;
        }
        for (; j < limit[last_row]; j += MOBAI_VL)
            operand_store(weights + j, (mobai_vf){0});
        *l[i] = *l[i] * alpha[i] + mobai_v_sum(sum);
    }
}

/** O = alpha O + P V. A hidden key has P = 0; where V holds infinities or NaN, rows stop at their own limit instead. */
static void add_values(const visit *v, int64_t n, const int32_t *limit, float *const *o, const float *alpha) {
    const int64_t d = v->job->a->head_dim, packed_keys = operand_packed_keys(v->n_keys);
    for (int64_t j = 0; j < d; j += MOBAI_GEMM_PANEL) {
        const int64_t width = mobai_min64(d - j, MOBAI_GEMM_PANEL);
        operand *b = v->w->values + j * packed_keys;
        for (int64_t i = 0; i < n; i += v->values_finite ? MOBAI_GEMM_MR : 1) {
            const int64_t rows = mobai_min64(n - i, MOBAI_GEMM_MR);
            const operand *p = v->w->weights + i * KEY_TILE;
            float *at[MOBAI_GEMM_MR];
            for (int64_t r = 0; r < rows; r++)
                at[r] = o[i + r] + j;
            if (v->values_finite)
                operand_tile(rows, width, limit[i + rows - 1], p, KEY_TILE, b, at, alpha + i);
            else
                operand_tile_exact(width, limit[i], p, b, at, alpha + i);
        }
    }
}

/** Rows at list positions [x, x + n) meet the packed tile. */
static void attend_rows(const visit *v, int64_t x, int64_t n) {
    float *o[ROW_TILE], *m[ROW_TILE], *l[ROW_TILE];
    float alpha[ROW_TILE];
    int32_t limit[ROW_TILE];
    gather(v, x, n, o, m, l, limit);
    compute_scores(v, n, limit);
    softmax(v, n, limit, m, l, alpha);
    add_values(v, n, limit, o, alpha);
}

/* ------------------------------------------------------------------------------------------- one key block -- */

/** First position in list[lo, hi) whose row is at least `row`. */
static int64_t lower_bound(const uint32_t *list, int64_t lo, int64_t hi, int64_t row) {
    while (lo < hi) {
        const int64_t middle = lo + (hi - lo) / 2;
        if (list[middle] < row)
            lo = middle + 1;
        else
            hi = middle;
    }
    return lo;
}

/** Keys [begin, end) of the sequence for the rows at positions [x0, x1) of v->list, tile by tile. */
static void attend_block(visit *v, int64_t begin, int64_t end, int64_t x0, int64_t x1) {
    const mobai_stage_args *a = v->job->a;
    const moba_dtype dtype = (moba_dtype)a->dtype;
    const int64_t bytes = dtype == MOBA_F32 ? 4 : 2;
    v->list_end = x1;
    for (int64_t key = begin; key < end && x0 < x1; key += KEY_TILE) {
        v->key_begin = key;
        v->n_keys = mobai_min64(KEY_TILE, end - key);
        v->values_finite = true;
        if (a->causal) {
            /* Rows whose position is before the tile see none of it. */
            const int64_t row =
                (v->sequence.q.begin + key - mobai_cpu_position(&v->sequence, v->sequence.q.begin)) * a->group;
            x0 = v->list != NULL ? lower_bound(v->list, x0, x1, row) : mobai_max64(x0, row);
            if (x0 >= x1) return;
        }
        const int64_t storage = v->sequence.k.begin + key;
        operand_pack_keys(v->w->keys, mobai_cpu_k_row(a, &a->k, storage, v->g), a->k.token_stride * bytes, dtype,
                          v->n_keys, a->head_dim);
        operand_pack_values(v->w->values, mobai_cpu_k_row(a, &a->v, storage, v->g), a->v.token_stride * bytes, dtype,
                            v->n_keys, a->head_dim);
        if (a->causal)
            v->values_finite =
                operand_all_finite(v->w->values, operand_packed_keys(v->n_keys) * mobai_gemm_padded(a->head_dim));
        for (int64_t x = x0; x < x1; x += ROW_TILE)
            attend_rows(v, x, mobai_min64(ROW_TILE, x1 - x));
    }
}

static void clear(const attend_job *job, const workspace *w, int64_t n_rows) {
    memset(w->o, 0, (size_t)(n_rows * job->d_padded) * sizeof(float));
    memset(w->l, 0, (size_t)n_rows * sizeof(float));
    for (int64_t i = 0; i < n_rows; i++)
        w->m[i] = -INFINITY;
}

static void normalise(float *o, float l, int64_t d_padded) {
    if (l == 0.0f) {
        memset(o, 0, (size_t)d_padded * sizeof(float));
        return;
    }
    const mobai_vf sum = mobai_v_set1(l);
    for (int64_t c = 0; c < d_padded; c += MOBAI_VL)
        mobai_v_store(o + c, mobai_v_load(o + c) / sum);
}

/** Writes the partials of the rows at list positions [x0, x1), whose accumulators are 0 .. x1 - x0. */
static void write_partials(const visit *v, const uint16_t *ranks, int64_t x0, int64_t x1) {
    const mobai_stage_args *a = v->job->a;
    float *partials = (float *)mobai_cpu_address(a->partials), *ml = (float *)mobai_cpu_address(a->partial_ml);
    const int64_t n_queries = a->query_end - a->query_begin, d_padded = v->job->d_padded;
    for (int64_t x = x0; x < x1; x++) {
        const int64_t t = v->list[x] / (uint32_t)a->group, h = v->list[x] % (uint32_t)a->group;
        const int64_t pick =
            (((v->g - a->kv_head_begin) * n_queries + t - a->query_begin) * a->group + h) * a->top_k + ranks[x];
        float *o = v->w->o + (x - x0) * d_padded;
        normalise(o, v->w->l[x - x0], d_padded);
        memcpy(partials + pick * a->head_dim, o, (size_t)a->head_dim * sizeof(float));
        ml[2 * pick] = v->w->m[x - x0];
        ml[2 * pick + 1] = v->w->l[x - x0];
    }
}

/** The blocks of one sequence for queries [begin, end) of kv head g. */
static void attend_sequence(const attend_job *job, const workspace *w, int64_t b, int64_t g, int64_t range_begin,
                            int64_t begin, int64_t end) {
    const mobai_stage_args *a = job->a;
    visit v = {.job = job, .w = w, .g = g, .sequence = mobai_cpu_blocks_at(a, b), .first_row = range_begin * a->group};
    v.q = mobai_cpu_q_row(a, &a->q, v.sequence.q.begin, g * a->group);
    const int64_t n_keys = v.sequence.k.end - v.sequence.k.begin;
    if (a->dense) {
        for (int64_t key = 0; key < n_keys; key += KEY_TILE)
            attend_block(&v, key, mobai_min64(key + KEY_TILE, n_keys), begin * a->group, end * a->group);
        return;
    }
    const int64_t *offsets = (const int64_t *)mobai_cpu_address(a->index_offsets) + g * (a->n_slots + 1);
    const uint16_t *ranks = (const uint16_t *)mobai_cpu_address(a->index_ranks) + g * a->index_row_stride;
    v.list = (const uint32_t *)mobai_cpu_address(a->index_rows) + g * a->index_row_stride;
    for (int64_t j = 0; j < v.sequence.n_blocks; j++) {
        const int64_t slot = v.sequence.first_slot + j;
        const int64_t x0 = lower_bound(v.list, offsets[slot], offsets[slot + 1], begin * a->group);
        const int64_t x1 = lower_bound(v.list, x0, offsets[slot + 1], end * a->group);
        if (x0 == x1) continue;
        if (job->partials) {
            v.first_row = x0;
            clear(job, w, x1 - x0);
        }
        attend_block(&v, j * a->block_size, mobai_min64((j + 1) * a->block_size, n_keys), x0, x1);
        if (job->partials) write_partials(&v, ranks, x0, x1);
    }
}

/* ---------------------------------------------------------------------------------------------------- tasks -- */

static void write_outputs(const attend_job *job, const workspace *w, int64_t g, int64_t begin, int64_t end) {
    const mobai_stage_args *a = job->a;
    float *lse = (float *)mobai_cpu_address(a->lse);
    const float ln2 = 0.69314718055994530942f;
    for (int64_t t = begin; t < end; t++) {
        for (int32_t h = 0; h < a->group; h++) {
            const int64_t i = (t - begin) * a->group + h, head = g * a->group + h;
            float *o = w->o + i * job->d_padded;
            normalise(o, w->l[i], job->d_padded);
            mobai_row_store(mobai_cpu_row(a, &a->o, a->seqlen_q, t, head), o, (moba_dtype)a->dtype, a->head_dim);
            if (lse != NULL) lse[head * a->total_q + t] = w->l[i] == 0.0f ? -INFINITY : w->m[i] * ln2 + logf(w->l[i]);
        }
    }
}

static void attend_range(void *context, int64_t task, int32_t thread) {
    const attend_job *job = (const attend_job *)context;
    const mobai_stage_args *a = job->a;
    const int32_t *cu_q = (const int32_t *)mobai_cpu_address(a->cu_seqlens_q);
    const workspace w = carve(job, thread);
    const int64_t g = a->kv_head_begin + task / job->n_ranges;
    const int64_t begin = a->query_begin + task % job->n_ranges * job->range_queries;
    const int64_t end = mobai_min64(begin + job->range_queries, a->query_end);
    if (!job->partials) clear(job, &w, (end - begin) * a->group);
    /* Rows that illegal cu_seqlens give to several sequences belong to the first, as in the index stage. */
    int64_t next = begin;
    for (int64_t b = mobai_cpu_sequence_past(cu_q, a->seqlen_q, a->total_q, a->batch, begin);
         b < a->batch && next < end; b++) {
        const mobai_rows rows = mobai_seq_rows(cu_q, a->seqlen_q, a->total_q, b);
        if (rows.begin >= end) break;
        const int64_t last = mobai_min64(rows.end, end);
        next = mobai_max64(next, rows.begin);
        if (next < last) attend_sequence(job, &w, b, g, begin, next, last);
        next = mobai_max64(next, last);
    }
    if (!job->partials) write_outputs(job, &w, g, begin, end);
}

static moba_status attend(const mobai_stage_args *a, mobai_cpu_pool *pool, bool partials) {
    const int64_t queries = a->query_end - a->query_begin, n_heads = a->kv_head_end - a->kv_head_begin;
    const int32_t n_threads = mobai_cpu_pool_threads(pool);
    if (queries <= 0 || n_heads <= 0) return MOBA_OK;
    attend_job job = {.a = a, .partials = partials, .d_padded = padded_head_dim(a->head_dim)};
    job.scale = fabsf(a->softmax_scale) * 1.44269504088896340736f;
    const int64_t n_blocks = mobai_ceil_div(a->n_slots, a->batch);
    job.range_queries = range_queries(queries, n_heads, a->group, n_blocks, a->top_k, a->dense != 0, n_threads);
    job.thread_bytes = a->scratch_bytes / (size_t)n_threads / 64 * 64;
    const size_t fixed = fixed_bytes(a->head_dim), query_bytes = (size_t)a->group * row_bytes(a->head_dim);
    if (job.thread_bytes < fixed + query_bytes)
        return mobai_fail(MOBA_ERROR_INTERNAL, "scratch of %zu bytes for %d threads of attend; one needs %zu",
                          a->scratch_bytes, (int)n_threads, fixed + query_bytes);
    job.range_queries = mobai_min64(job.range_queries, (int64_t)((job.thread_bytes - fixed) / query_bytes));
    job.n_ranges = mobai_ceil_div(queries, job.range_queries);
    if (partials) {
        float *ml = (float *)mobai_cpu_address(a->partial_ml);
        for (int64_t pick = 0; pick < n_heads * queries * a->group * a->top_k; pick++) {
            ml[2 * pick] = -INFINITY;
            ml[2 * pick + 1] = 0.0f;
        }
    }
    mobai_cpu_parallel_for(pool, n_heads * job.n_ranges, attend_range, &job);
    return MOBA_OK;
}

moba_status MOBAI_ISA_FN(mobai_cpu_attend)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    return attend(args, pool, false);
}

moba_status MOBAI_ISA_FN(mobai_cpu_attend_partials)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    return attend(args, pool, true);
}
