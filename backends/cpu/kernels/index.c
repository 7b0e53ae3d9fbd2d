/* SPDX-License-Identifier: Apache-2.0
 *
 * Index stage: from each row's selection to the ascending list of gathered rows under each key block.
 *
 * Count, scan, stable scatter. The query rows of a kv head are cut into a fixed number of ranges, so the work is
 * parallel with one kv head too, and ranges are laid out in order, so the result does not depend on who ran them.
 */
#include <string.h>

#include "backends/cpu/kernels/stages.h"
#include "backends/cpu/simd.h"
#include "backends/cpu/kernels/sequence.h"

enum { MAX_RANGES = 64 };

typedef struct index_job {
    const mobai_stage_args *a;
    int32_t n_ranges;
    uint32_t *cursors; /* [kv head of the slice][range][slot]: counts, then places within the slot's list */
} index_job;

static int32_t ranges_per_head(int32_t n_kv_heads) {
    int32_t n = MAX_RANGES / n_kv_heads;
    return n < 4 ? 4 : n;
}

size_t MOBAI_ISA_FN(mobai_cpu_index_scratch)(const mobai_shape *shape) {
    size_t ranges = (size_t)ranges_per_head(shape->problem->n_kv_heads);
    return (size_t)shape->n_slice_kv_heads * ranges * (size_t)shape->n_slots * sizeof(uint32_t);
}

/** True when `id` stands in row[0, m). */
static bool repeated(const int32_t *row, int32_t m, int32_t id) {
    for (int32_t i = 0; i < m; i++)
        if (row[i] == id) return true;
    return false;
}

/**
 * Walks the legal picks of rows [begin, end) of kv head g in ascending order. Counts them per slot, or, when `scatter`,
 * writes each to its place. A query row belongs to the first sequence that covers it, so that overlapping
 * (illegal) cu_seqlens cannot give more picks than the lists hold.
 */
static inline void walk(const mobai_stage_args *a, int32_t g, int64_t begin, int64_t end, uint32_t *cursor,
                        bool scatter) {
    const int32_t group = a->group, top_k = a->top_k;
    const int32_t *selection = (const int32_t *)mobai_cpu_address(a->selection);
    const int64_t *offsets = (const int64_t *)mobai_cpu_address(a->index_offsets) + (int64_t)g * (a->n_slots + 1);
    uint32_t *rows = (uint32_t *)mobai_cpu_address(a->index_rows) + (int64_t)g * a->index_row_stride;
    uint16_t *ranks = (uint16_t *)mobai_cpu_address(a->index_ranks) + (int64_t)g * a->index_row_stride;
    const int32_t *cu = (const int32_t *)mobai_cpu_address(a->cu_seqlens_q);
    int64_t covered = begin;
    for (int64_t b = mobai_cpu_sequence_past(cu, a->seqlen_q, a->total_q, a->batch, begin);
         b < a->batch && covered < end; b++) {
        const mobai_cpu_blocks s = mobai_cpu_blocks_at(a, b);
        const int64_t first = mobai_max64(s.q.begin, covered), last = mobai_min64(s.q.end, end);
        for (int64_t t = first; t < last; t++) {
            int64_t limit = s.n_blocks;
            if (a->causal) {
                const int64_t position = mobai_cpu_position(&s, t);
                if (position < 0) continue;
                limit = mobai_min64(limit, position / a->block_size + 1);
            }
            for (int32_t h = 0; h < group; h++) {
                const int32_t *row = selection + (t * a->n_q_heads + (int64_t)g * group + h) * top_k;
                int32_t highest = -1;
                for (int32_t m = 0; m < top_k; m++) {
                    const int32_t id = row[m];
                    if (id < 0 || id >= limit) continue;
                    if (id > highest)
                        highest = id;
                    else if (repeated(row, m, id))
                        continue;
                    const int64_t slot = s.first_slot + id;
                    if (scatter) {
                        const int64_t place = offsets[slot] + cursor[slot];
                        rows[place] = (uint32_t)(t * group + h);
                        ranks[place] = (uint16_t)m;
                    }
                    cursor[slot]++;
                }
            }
        }
        covered = mobai_max64(covered, last);
    }
}

static void range_of(const index_job *job, int64_t task, int32_t *g, int64_t *begin, int64_t *end, uint32_t **cursor) {
    const mobai_stage_args *a = job->a;
    const int64_t range = task % job->n_ranges, length = a->query_end - a->query_begin;
    *g = a->kv_head_begin + (int32_t)(task / job->n_ranges);
    *begin = a->query_begin + length * range / job->n_ranges;
    *end = a->query_begin + length * (range + 1) / job->n_ranges;
    *cursor = job->cursors + task * a->n_slots;
}

static void count_range(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const index_job *job = (const index_job *)context;
    int32_t g;
    int64_t begin, end;
    uint32_t *cursor;
    range_of(job, task, &g, &begin, &end, &cursor);
    memset(cursor, 0, (size_t)job->a->n_slots * sizeof *cursor);
    walk(job->a, g, begin, end, cursor, false);
}

static void scatter_range(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const index_job *job = (const index_job *)context;
    int32_t g;
    int64_t begin, end;
    uint32_t *cursor;
    range_of(job, task, &g, &begin, &end, &cursor);
    walk(job->a, g, begin, end, cursor, true);
}

/** Offsets of one kv head; turns each range's counts into its places within the lists. */
static void scan_head(void *context, int64_t task, int32_t thread) {
    (void)thread;
    const index_job *job = (const index_job *)context;
    const mobai_stage_args *a = job->a;
    const int64_t g = a->kv_head_begin + task;
    int64_t *offsets = (int64_t *)mobai_cpu_address(a->index_offsets) + g * (a->n_slots + 1);
    uint32_t *cursors = job->cursors + task * job->n_ranges * a->n_slots;
    int64_t total = 0;
    for (int64_t slot = 0; slot < a->n_slots; slot++) {
        uint32_t in_slot = 0;
        offsets[slot] = total;
        for (int32_t range = 0; range < job->n_ranges; range++) {
            const uint32_t count = cursors[range * a->n_slots + slot];
            cursors[range * a->n_slots + slot] = in_slot;
            in_slot += count;
        }
        total += in_slot;
    }
    offsets[a->n_slots] = total;
}

moba_status MOBAI_ISA_FN(mobai_cpu_index)(const mobai_stage_args *args, mobai_cpu_pool *pool) {
    index_job job = {args, ranges_per_head(args->n_kv_heads), (uint32_t *)mobai_cpu_address(args->scratch)};
    const int64_t n_heads = args->kv_head_end - args->kv_head_begin;
    mobai_cpu_parallel_for(pool, n_heads * job.n_ranges, count_range, &job);
    mobai_cpu_parallel_for(pool, n_heads, scan_head, &job);
    mobai_cpu_parallel_for(pool, n_heads * job.n_ranges, scatter_range, &job);
    return MOBA_OK;
}
