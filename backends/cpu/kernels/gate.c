/* SPDX-License-Identifier: Apache-2.0
 *
 * Gate stage: scores of query rows against centroids and the top-k of each row, fused (docs/spec.md section 4).
 *
 * Centroids are packed once, in groups of 64 slots. A task takes one query head and a tile of query rows, walks the
 * groups its rows may choose from, most recent first, and keeps each row's best blocks in a short sorted list.
 * The scores of one (tile, group) live in the first-level cache only. Since blocks come in descending order, a score
 * that equals the list's least loses, which is the rule for ties; and a row whose list is full compares 64 scores in a
 * few instructions.
 */
#include <math.h>
#include <string.h>

#include "backends/cpu/gemm.h"
#include "backends/cpu/kernels/sequence.h"

enum {
    GROUP = 64,     /* slots scored at once: one bit each in a 64-bit mask */
    TILE = 48,      /* query rows of a task: a multiple of MOBAI_GEMM_MR whose scores fit the first-level cache */
    MAX_PICKS = 128 /* top_k of a row that has more candidates than picks (docs/spec.md section 8) */
};
_Static_assert(GROUP % MOBAI_GEMM_PANEL == 0, "a group is made of whole panels");

typedef struct gate_job {
    const mobai_stage_args *a;
    int64_t n_groups, n_tiles;
    float *centroids;       /* [kv head of the slice][group][head_dim][GROUP], panel by panel */
    unsigned char *threads; /* thread_bytes() each */
    size_t thread_bytes;
} gate_job;

/** What a query row may pick. */
typedef struct gate_row {
    int64_t visible;   /* blocks it may see */
    int64_t low, high; /* candidates among them */
    int32_t quota;     /* candidates it takes */
    int32_t n_sinks, n_locals;
    int32_t n_listed;
    bool take_all;  /* no more candidates than quota: only NaN scores are left out */
    int32_t *picks; /* where its row of the selection begins */
} gate_row;

/** Scratch of one thread. */
typedef struct gate_tile {
    gate_row rows[TILE];
    float q[TILE * MOBAI_CPU_MAX_HEAD_DIM];
    float scores[TILE][GROUP];
    float list_scores[TILE][MAX_PICKS]; /* descending */
    int32_t list_ids[TILE][MAX_PICKS];
} gate_tile;

static size_t centroid_floats(int64_t n_slots, int32_t head_dim) {
    return (size_t)mobai_ceil_div(n_slots, GROUP) * GROUP * (size_t)head_dim;
}

size_t MOBAI_ISA_FN(mobai_cpu_gate_scratch)(const mobai_shape *shape) {
    const size_t packed = centroid_floats(shape->n_slots, shape->problem->head_dim) * (size_t)shape->n_slice_kv_heads;
    return mobai_cpu_align64(packed * sizeof(float)) +
           (size_t)shape->caps->n_compute_units * mobai_cpu_align64(sizeof(gate_tile));
}

static void pack_group(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const gate_job *job = (const gate_job *)context;
    const mobai_stage_args *a = job->a;
    const int64_t g = a->kv_head_begin + task / job->n_groups, first = task % job->n_groups * GROUP;
    const int64_t n = mobai_min64(GROUP, a->n_slots - first), row_bytes = a->head_dim * (a->dtype == MOBA_F32 ? 4 : 2);
    const unsigned char *rows = (const unsigned char *)mobai_cpu_address(a->centroids);
    float *out = job->centroids + task * GROUP * a->head_dim;
    const int64_t used = mobai_gemm_padded(n) * a->head_dim, all = (int64_t)GROUP * a->head_dim;
    mobai_gemm_pack_transposed(out, rows + (g * a->n_slots + first) * row_bytes, row_bytes, (moba_dtype)a->dtype, n,
                               a->head_dim);
    memset(out + used, 0, (size_t)(all - used) * sizeof *out);
}

/** Bit c is set when scores[c] > threshold; with `any`, when scores[c] is not NaN. */
static inline uint64_t passing(const float *scores, float threshold, bool any) {
    uint64_t bits = 0;
    const mobai_vf least = mobai_v_set1(threshold);
    for (int c = 0; c < GROUP; c += MOBAI_VL) {
        const mobai_vf s = mobai_v_load(scores + c);
#if MOBAI_TIER >= 2
        const uint64_t part = any ? _mm512_cmp_ps_mask((__m512)s, (__m512)s, _CMP_ORD_Q)
                                  : _mm512_cmp_ps_mask((__m512)s, (__m512)least, _CMP_GT_OQ);
#elif MOBAI_TIER == 1
        const __m256 pass =
            any ? _mm256_cmp_ps((__m256)s, (__m256)s, _CMP_ORD_Q) : _mm256_cmp_ps((__m256)s, (__m256)least, _CMP_GT_OQ);
        const uint64_t part = (uint64_t)(uint32_t)_mm256_movemask_ps(pass);
#else
        const mobai_vi pass = any ? s == s : s > least;
        uint64_t part = 0;
        for (int i = 0; i < MOBAI_VL; i++)
            part |= (uint64_t)(pass[i] & 1) << i;
#endif
        bits |= part << c;
    }
    return bits;
}

/** Bits [from, to) of a group, both clamped to it. */
static inline uint64_t bit_range(int64_t from, int64_t to) {
    from = mobai_max64(from, 0);
    to = mobai_min64(to, GROUP);
    if (from >= to) return 0;
    return (UINT64_MAX >> (GROUP - (to - from))) << from;
}

/* ------------------------------------------------------------------------------------------ a row's list -- */

#if MOBAI_TIER >= 2
/** List of a quota of at most 16: the best scores so far, descending, NaN behind them, in one vector. */
static inline void insert_16(float *list_scores, int32_t *list_ids, uint64_t bits, const float *scores, int32_t first) {
    __m512 list = _mm512_loadu_ps(list_scores);
    __m512i ids = _mm512_loadu_si512(list_ids);
    while (bits != 0) {
        const int bit = 63 - __builtin_clzll(bits);
        bits ^= 1ull << bit;
        const __m512 score = _mm512_set1_ps(scores[bit]);
        /* Entries that stay in front are a prefix, so adding 1 to their mask gives the place of the new one. */
        const uint32_t front = _mm512_cmp_ps_mask(list, score, _CMP_GE_OQ), place = front + 1;
        list = _mm512_mask_expand_ps(score, (__mmask16)~place, list);
        ids = _mm512_mask_expand_epi32(_mm512_set1_epi32(first + bit), (__mmask16)~place, ids);
    }
    _mm512_storeu_ps(list_scores, list);
    _mm512_storeu_si512(list_ids, ids);
}
#endif

/** Puts (score, id) behind every entry of the list that is not less; the list then holds at most quota entries. */
static inline void insert(gate_row *row, float *list_scores, int32_t *list_ids, float score, int32_t id) {
    int32_t place = row->n_listed < row->quota ? row->n_listed++ : row->quota - 1;
    for (; place > 0 && score > list_scores[place - 1]; place--) {
        list_scores[place] = list_scores[place - 1];
        list_ids[place] = list_ids[place - 1];
    }
    list_scores[place] = score;
    list_ids[place] = id;
}

/**
 * Offers the blocks of `bits` to a list that is not full. *guess is a score that about twice the quota of an
 * earlier row's blocks passed: where at least the quota passes it here too, the others need not be looked at.
 */
static void fill_list(gate_row *row, const float *scores, float *list_scores, int32_t *list_ids, int64_t first,
                      uint64_t bits, float *guess) {
    if (row->n_listed == 0) {
        const uint64_t likely = bits & passing(scores, *guess, false);
        if (__builtin_popcountll(likely) >= row->quota) bits = likely;
    }
#if MOBAI_TIER >= 2
    if (row->quota <= 16) {
        const int32_t total = row->n_listed + __builtin_popcountll(bits);
        insert_16(list_scores, list_ids, bits, scores, (int32_t)first);
        const int32_t rank = 2 * row->quota < 16 ? 2 * row->quota - 1 : 15;
        /* Fewer than twice the quota passed: the guess was too high for a row like this one, so go below the least. */
        const float least = list_scores[total < 16 ? total - 1 : 15];
        *guess = total > rank ? list_scores[rank] : least - 0.25f * fabsf(least);
        row->n_listed = total < row->quota ? total : row->quota;
        return;
    }
#endif
    while (bits != 0) {
        const int bit = 63 - __builtin_clzll(bits);
        bits ^= 1ull << bit;
        if (row->n_listed < row->quota || scores[bit] > list_scores[row->quota - 1])
            insert(row, list_scores, list_ids, scores[bit], (int32_t)(first + bit));
    }
    *guess = row->n_listed == row->quota ? list_scores[row->quota - 1] : -INFINITY;
}

/** Offers blocks [first, first + GROUP) with their scores to a row, most recent first. */
static void offer(gate_row *row, const float *scores, float *list_scores, int32_t *list_ids, int64_t first,
                  float *guess) {
    const uint64_t candidates = bit_range(row->low - first, row->high - first);
    if (candidates == 0) return;
    if (row->take_all) {
        for (uint64_t bits = candidates & passing(scores, 0.0f, true); bits != 0;) {
            const int bit = 63 - __builtin_clzll(bits);
            bits ^= 1ull << bit;
            row->picks[row->n_sinks + row->n_listed++] = (int32_t)(first + bit);
        }
        return;
    }
    if (row->n_listed < row->quota) {
        const uint64_t numbers = candidates & passing(scores, 0.0f, true);
        if (numbers != 0) fill_list(row, scores, list_scores, list_ids, first, numbers, guess);
        return;
    }
    uint64_t bits = candidates & passing(scores, list_scores[row->quota - 1], false);
#if MOBAI_TIER >= 2
    if (row->quota <= 16) {
        if (bits != 0) insert_16(list_scores, list_ids, bits, scores, (int32_t)first);
        return;
    }
#endif
    while (bits != 0) {
        const int bit = 63 - __builtin_clzll(bits);
        bits ^= 1ull << bit;
        if (scores[bit] > list_scores[row->quota - 1])
            insert(row, list_scores, list_ids, scores[bit], (int32_t)(first + bit));
    }
}

/* ------------------------------------------------------------------------------------------------- rows -- */

static gate_row row_limits(const mobai_stage_args *a, const mobai_cpu_blocks *s, int64_t t, int32_t *picks) {
    gate_row row = {0};
    row.picks = picks;
    const int64_t position = mobai_cpu_position(s, t);
    if (a->causal && position < 0) return row;
    const int64_t visible = a->causal ? mobai_min64(position / a->block_size + 1, s->n_blocks) : s->n_blocks;
    row.visible = visible;
    row.n_sinks = (int32_t)mobai_min64(a->n_sink_blocks, visible);
    if (a->causal) row.n_locals = (int32_t)mobai_min64(mobai_max64(a->n_local_blocks, 1), visible - row.n_sinks);
    row.low = row.n_sinks;
    row.high = visible - row.n_locals;
    row.quota = a->top_k - row.n_sinks - row.n_locals;
    row.take_all = row.high - row.low <= row.quota;
    if (!row.take_all && row.quota > MAX_PICKS) row.quota = MAX_PICKS;
    if (row.quota <= 0) row.high = row.low;
    return row;
}

/** The picks of a row in ascending order: sinks, listed blocks, locals, then -1. */
static void write_row(const mobai_stage_args *a, const gate_row *row, const int32_t *list_ids) {
    int32_t *out = row->picks, n = 0;
    for (; n < row->n_sinks; n++)
        out[n] = n;
    int32_t *chosen = out + n;
    for (int32_t i = 0; i < row->n_listed; i++) {
        if (row->take_all) {
            const int32_t mirror = row->n_listed - 1 - i;
            if (mirror <= i) break;
            const int32_t id = chosen[i];
            chosen[i] = chosen[mirror];
            chosen[mirror] = id;
            continue;
        }
        int32_t place = i;
        for (; place > 0 && chosen[place - 1] > list_ids[i]; place--)
            chosen[place] = chosen[place - 1];
        chosen[place] = list_ids[i];
    }
    n += row->n_listed;
    for (int32_t i = 0; i < row->n_locals; i++)
        out[n++] = (int32_t)(row->visible - row->n_locals) + i;
    for (; n < a->top_k; n++)
        out[n] = -1;
}

/** Selection of query rows [begin, end) of one sequence, at most TILE of them, for head h. */
static void gate_rows(const gate_job *job, gate_tile *tile, const mobai_cpu_blocks *s, int64_t begin, int64_t end,
                      int64_t h) {
    const mobai_stage_args *a = job->a;
    const int32_t d = a->head_dim;
    const int64_t n = end - begin, g = h / a->group;
    int32_t *selection = (int32_t *)mobai_cpu_address(a->selection);
    int64_t low = INT64_MAX, high = 0;
    for (int64_t i = 0; i < n; i++) {
        gate_row *row = &tile->rows[i];
        *row = row_limits(a, s, begin + i, selection + ((begin + i) * a->n_q_heads + h) * a->top_k);
        if (row->low >= row->high) continue;
        low = mobai_min64(low, row->low);
        high = mobai_max64(high, row->high);
        for (int x = 0; x < 16; x++)
            tile->list_scores[i][x] = NAN;
        mobai_row_load(tile->q + i * d, mobai_cpu_q_row(a, &a->q, begin + i, h), (moba_dtype)a->dtype, d, d);
    }
    if (low < high) {
        float guess = -INFINITY;
        const float *packed = job->centroids + (g - a->kv_head_begin) * job->n_groups * GROUP * d;
        for (int64_t group = (s->first_slot + high - 1) / GROUP; group >= (s->first_slot + low) / GROUP; group--) {
            const int64_t first = group * GROUP - s->first_slot; /* the group's first block, as this sequence counts */
            int64_t skip = 0;
            while (skip < n && tile->rows[skip].high <= first)
                skip++; /* rows before the group's blocks */
            mobai_gemm(n - skip, GROUP, d, tile->q + skip * d, d, 1, packed + group * GROUP * d,
                       (int64_t)d * MOBAI_GEMM_PANEL, tile->scores[skip], GROUP, 0);
            for (int64_t i = skip; i < n; i++)
                offer(&tile->rows[i], tile->scores[i], tile->list_scores[i], tile->list_ids[i], first, &guess);
        }
    }
    for (int64_t i = 0; i < n; i++)
        write_row(a, &tile->rows[i], tile->list_ids[i]);
}

/** Rows outside all sequences pick nothing. */
static void clear_rows(const mobai_stage_args *a, int64_t begin, int64_t end, int64_t h) {
    int32_t *selection = (int32_t *)mobai_cpu_address(a->selection);
    for (int64_t t = begin; t < end; t++) {
        int32_t *row = selection + (t * a->n_q_heads + h) * a->top_k;
        for (int32_t m = 0; m < a->top_k; m++)
            row[m] = -1;
    }
}

static void gate_task(void *context, int64_t task, int32_t thread) {
    const gate_job *job = (const gate_job *)context;
    const mobai_stage_args *a = job->a;
    const int32_t *cu = (const int32_t *)mobai_cpu_address(a->cu_seqlens_q);
    gate_tile *tile = (gate_tile *)(void *)(job->threads + (size_t)thread * job->thread_bytes);
    const int64_t h =
        (int64_t)a->kv_head_begin * a->group + task % (a->group * (int64_t)(a->kv_head_end - a->kv_head_begin));
    /* Late rows have the most candidates: hand them out first. */
    const int64_t order = task / (a->group * (int64_t)(a->kv_head_end - a->kv_head_begin));
    const int64_t begin = a->query_begin + (job->n_tiles - 1 - order) * TILE,
                  end = mobai_min64(begin + TILE, a->query_end);
    int64_t covered = begin;
    for (int64_t b = mobai_cpu_sequence_past(cu, a->seqlen_q, a->total_q, a->batch, begin);
         b < a->batch && covered < end; b++) {
        const mobai_cpu_blocks s = mobai_cpu_blocks_at(a, b);
        const int64_t from = mobai_max64(s.q.begin, covered), to = mobai_min64(s.q.end, end);
        if (from >= to) continue;
        clear_rows(a, covered, from, h);
        gate_rows(job, tile, &s, from, to, h);
        covered = to;
    }
    clear_rows(a, covered, end, h);
}

moba_status MOBAI_ISA_FN(mobai_cpu_gate)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    const int64_t n_heads = args->kv_head_end - args->kv_head_begin;
    const size_t packed = centroid_floats(args->n_slots, args->head_dim) * (size_t)n_heads;
    float *scratch = (float *)mobai_cpu_address(args->scratch);
    gate_job job = {args,
                    mobai_ceil_div(args->n_slots, GROUP),
                    mobai_ceil_div(args->query_end - args->query_begin, TILE),
                    scratch,
                    (unsigned char *)scratch + mobai_cpu_align64(packed * sizeof(float)),
                    mobai_cpu_align64(sizeof(gate_tile))};
    mobai_cpu_parallel_for(pool, n_heads * job.n_groups, pack_group, &job);
    mobai_cpu_parallel_for(pool, n_heads * args->group * job.n_tiles, gate_task, &job);
    return MOBA_OK;
}
