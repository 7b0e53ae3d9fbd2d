/* SPDX-License-Identifier: Apache-2.0
 *
 * Launching the sm_90a stages: stage arguments to kernel parameters, grids, and the kernel for the caller's alignment.
 */
#include <stdio.h>
#include <string.h>

#include "backends/cuda/cuda.h"
#include "core/geometry.h"
#include "core/status.h"

static size_t aligned(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

static uint64_t address(moba_buffer b) { return b.handle ? b.handle + b.offset : 0; }

mobai_sm90_tensor cuda_tensor(const moba_tensor *t, int64_t seqlen, bool packed) {
    return (mobai_sm90_tensor){address(t->buffer), t->token_stride, t->head_stride,
                               packed ? 0 : t->batch_stride - seqlen * t->token_stride};
}

/** Rows can be moved 16 bytes at a time. */
bool cuda_is_aligned(const mobai_sm90_tensor *t) {
    return t->address % 16 == 0 && (t->token_stride | t->head_stride | t->batch_shift) % 8 == 0;
}

/** umulhi(x, magic) >> shift is x / divisor for x < 2^31 and divisor > 1: the magic number is 2^(32 + shift) / divisor
 *  rounded up, where 2^shift < divisor <= 2^(shift + 1). */
static void set_divisor(uint32_t divisor, uint32_t *magic, uint32_t *shift) {
    uint32_t s = 0;
    while ((uint64_t)2 << s < divisor)
        s++;
    *magic = (uint32_t)((((uint64_t)1 << (32 + s)) + divisor - 1) / divisor);
    *shift = s;
}

mobai_sm90_params cuda_params_of(const mobai_stage_args *a) {
    const bool packed = a->cu_seqlens_q.handle != 0;
    mobai_sm90_params p;
    memset(&p, 0, sizeof p);
    p.q = cuda_tensor(&a->q, a->seqlen_q, packed);
    p.k = cuda_tensor(&a->k, a->seqlen_k, packed);
    p.v = cuda_tensor(&a->v, a->seqlen_k, packed);
    p.o = cuda_tensor(&a->o, a->seqlen_q, packed);
    p.lse = address(a->lse);
    p.cu_q = address(a->cu_seqlens_q);
    p.cu_k = address(a->cu_seqlens_k);
    p.centroids = address(a->centroids);
    p.selection = address(a->selection);
    p.index_offsets = address(a->index_offsets);
    p.index_rows = address(a->index_rows);
    p.index_ranks = address(a->index_ranks);
    p.pick_masks = address(a->pick_masks);
    p.partials = address(a->partials);
    p.partial_ml = address(a->partial_ml);
    p.scratch = address(a->scratch);
    p.places = address(a->kept);
    p.has_all_rows = a->query_begin == 0 && a->query_end == a->total_q;
    p.index_row_stride = a->index_row_stride;
    p.batch = (int32_t)a->batch;
    p.total_q = (int32_t)a->total_q;
    p.total_k = (int32_t)a->total_k;
    p.seqlen_q = (int32_t)a->seqlen_q;
    p.seqlen_k = (int32_t)a->seqlen_k;
    p.n_slots = (int32_t)a->n_slots;
    p.n_q_heads = a->n_q_heads;
    p.group = a->group;
    p.block_size = a->block_size;
    p.top_k = a->top_k;
    p.n_sink = a->n_sink_blocks;
    p.n_local = a->n_local_blocks;
    p.causal = a->causal;
    p.kv_head_begin = a->kv_head_begin;
    p.n_slice_kv_heads = a->kv_head_end - a->kv_head_begin;
    p.query_begin = (int32_t)a->query_begin;
    p.query_end = (int32_t)a->query_end;
    p.scale_log2 = a->softmax_scale * 1.44269504088896341f;
    if (a->group > 1) set_divisor((uint32_t)a->group, &p.group_magic, &p.group_shift);
    set_divisor((uint32_t)a->block_size, &p.block_magic, &p.block_shift);
    if (a->seqlen_q > 1) set_divisor((uint32_t)a->seqlen_q, &p.seqlen_magic, &p.seqlen_shift);
    return p;
}

moba_status cuda_run(mobai_device *device, cu_stream stream, cuda_module_id module, int kernel, cuda_grid g,
                     mobai_sm90_params *p) {
    void *arguments[] = {p};
    cu_result result = cuda_driver_get()->api.launch(device->functions[module][kernel], g.x, g.y, g.z, g.threads, 1, 1,
                                                     g.shared, stream, arguments, NULL);
    if (result == CU_SUCCESS) return MOBA_OK;
    char what[160];
    snprintf(what, sizeof what, "launch %s on a grid of %u x %u x %u", cuda_modules[module].kernels[kernel].name, g.x,
             g.y, g.z);
    return cuda_fail(result, what);
}

/** Place of a kernel in its BY_ELEMENT_AND_DIM group. */
int cuda_kernel_place(const cuda_code *code, bool aligned) {
    return code->bf16 * 4 + (code->head_dim == 128) * 2 + !aligned;
}

unsigned cuda_shared_of(cuda_module_id module, int kernel) {
    return cuda_modules[module].kernels[kernel].dynamic_shared;
}

moba_status cuda_launch_centroid(mobai_device *device, cu_stream stream, const cuda_code *code,
                                 const mobai_stage_args *a) {
    mobai_sm90_params p = cuda_params_of(a);
    int64_t groups = (int64_t)p.n_slots * p.n_slice_kv_heads;
    if (groups == 0) return MOBA_OK;
    if (groups > INT32_MAX)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED, "%lld (key block, kv head) pairs; one launch covers at most %d",
                          (long long)groups, INT32_MAX);
    cuda_grid g = {(unsigned)groups, 1, 1, 128, 0};
    return cuda_run(device, stream, CUDA_MODULE_CENTROID, cuda_kernel_place(code, cuda_is_aligned(&p.k)), g, &p);
}

moba_status cuda_launch_gate(mobai_device *device, cu_stream stream, const cuda_code *code, const mobai_stage_args *a) {
    mobai_sm90_params p = cuda_params_of(a);
    if (p.total_q == 0 || p.n_slice_kv_heads == 0) return MOBA_OK;
    const int routed = p.top_k - p.n_sink - (p.causal ? (p.n_local > 1 ? p.n_local : 1) : 0);
    const bool few = routed <= 8;
    const int kernel = cuda_kernel_place(code, cuda_is_aligned(&p.q)) + (few ? 0 : routed <= 16 ? 8 : 16);
    const int64_t rows = few ? 192 : 128;
    const int64_t tiles = mobai_ceil_div(p.total_q, rows) * p.n_slice_kv_heads * p.group;
    cuda_grid g = {(unsigned)mobai_min64(tiles, device->n_multiprocessors), 1, 1, few ? 512 : 384,
                   cuda_shared_of(CUDA_MODULE_GATE, kernel)};
    return cuda_run(device, stream, CUDA_MODULE_GATE, kernel, g, &p);
}

/* ------------------------------------------------------------------------------------------------- index -- */

#define SCATTER_PICKS (MOBAI_SM90_SCATTER_WARPS * MOBAI_SM90_SCATTER_PASSES * 32) /* of a round */

/** Lanes that read one row's picks, and so the rows of a round of scatter. */
static int32_t index_lanes(int32_t top_k) { return top_k <= 8 ? 8 : top_k <= 16 ? 16 : 32; }

static int64_t index_chunk_rows(int64_t n_kv_heads, int64_t n_rows, int64_t n_slots, int32_t top_k) {
    const int64_t windows = mobai_max64(1, mobai_ceil_div(n_slots, MOBAI_SM90_INDEX_WINDOW));
    const int64_t round = SCATTER_PICKS / index_lanes(top_k);
    int64_t rows = MOBAI_SM90_INDEX_PICKS / index_lanes(top_k);
    while (rows > round / 2 && n_kv_heads * windows * mobai_ceil_div(n_rows, rows) < MOBAI_SM90_INDEX_MIN_GROUPS)
        rows /= 2;
    return rows;
}

/** Of the index's scratch: tickets, then the counts. */
static size_t ticket_bytes(int64_t n_kv_heads) { return aligned((size_t)n_kv_heads * sizeof(uint32_t)); }

size_t cuda_index_scratch(int64_t n_kv_heads, int64_t n_rows, int64_t n_slots, int32_t top_k) {
    /* Smaller chunks are taken only while there are fewer than MIN_GROUPS of them, so halving gives at most twice that.
     */
    const int64_t most = MOBAI_SM90_INDEX_PICKS / index_lanes(top_k);
    const int64_t chunks =
        mobai_max64(n_kv_heads * mobai_ceil_div(n_rows, most), 2 * MOBAI_SM90_INDEX_MIN_GROUPS + n_kv_heads);
    return ticket_bytes(n_kv_heads) + (size_t)chunks * (size_t)n_slots * sizeof(uint32_t);
}

/* ------------------------------------------------------------------------------------------------- items -- */

#define ITEM_STEP_BYTES (12 << 20) /* of Q: what stays in the L2 cache beside the partials that pass through it */
#define ITEM_STEP_TILES 12 /* row tiles of a list and step on average: fewer lose more to key loads than Q gains */
#define ITEM_RANGES 8      /* more query ranges than these are cut one by one */

/** The form of attend's pieces of work for kv heads with up to `n_rows` gathered rows in a query range. */
typedef struct item_form {
    int64_t steps, lists, items; /* the last two: room for those of one kv head */
} item_form;

/** A smaller run of the same plan never needs more lists or items. */
static item_form item_form_of(int64_t n_rows, int64_t n_slots, int64_t batch, int32_t top_k, int32_t head_dim) {
    const int64_t fit = mobai_ceil_div(n_rows * 2 * head_dim, ITEM_STEP_BYTES);
    const int64_t most = mobai_max64(1, mobai_min64(fit, MOBAI_SM90_ITEM_STEPS));
    const int64_t useful = mobai_max64(n_slots, batch * n_rows * top_k / (64 * ITEM_STEP_TILES)); /* steps x slots */
    item_form f;
    f.steps = n_slots > 0 ? mobai_max64(1, mobai_min64(most, useful / n_slots)) : 1;
    f.lists = mobai_min64(most * n_slots, useful);
    f.items = f.lists + n_rows * top_k / (64 * MOBAI_SM90_ITEM_MIN_TILES) + 1;
    return f;
}

/** Bytes of the items of `n_heads` (kv head, query range) pairs. */
static size_t item_bytes(int64_t n_heads, const item_form *f) {
    return aligned((size_t)n_heads * sizeof(mobai_sm90_item_count)) +
           (size_t)n_heads * ((size_t)f->items * sizeof(mobai_sm90_item) + (size_t)f->lists * sizeof(mobai_sm90_list));
}

static item_form item_form_of_shape(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    return item_form_of(s->n_slice_queries * (p->n_q_heads / p->n_kv_heads), s->n_slots, p->max_batch, p->top_k,
                        p->head_dim);
}

static int64_t n_ranges(int64_t total_q, int64_t slice_queries) {
    return mobai_max64(1, mobai_ceil_div(total_q, mobai_max64(1, slice_queries)));
}

size_t cuda_slice_item_bytes(const mobai_shape *s) {
    const item_form f = item_form_of_shape(s);
    return item_bytes(s->n_slice_kv_heads, &f);
}

size_t cuda_all_item_bytes(const mobai_shape *s) {
    const item_form f = item_form_of_shape(s);
    /* also where there are too many: a shorter run may have few */
    const int64_t ranges = mobai_min64(n_ranges(s->problem->max_total_q, s->n_slice_queries), ITEM_RANGES);
    return item_bytes(s->problem->n_kv_heads * ranges, &f);
}

size_t cuda_map_bytes(int64_t n_q_heads, int64_t total_q, int32_t top_k) {
    return aligned((size_t)total_q * (size_t)n_q_heads * (size_t)top_k * sizeof(uint32_t));
}

/** Most row tiles of a piece for work-groups that have `share` tiles of the slice. Loads of keys cost about 2.4 tiles a
 * piece, and some three quarters of a piece are lost where the work-groups end: the sum is least at a square root. */
static int32_t item_tiles_of(int64_t share) {
    int32_t tiles = MOBAI_SM90_ITEM_MIN_TILES;
    while (tiles < MOBAI_SM90_ITEM_MAX_TILES && 5 * (int64_t)(tiles + 1) * (tiles + 1) <= 16 * share)
        tiles++;
    return tiles;
}

/** Places the items of `n_heads` (kv head, query range) pairs at `base`; the slice begins with pair `first`. */
static void place_items(mobai_sm90_params *p, const mobai_device *device, const mobai_stage_args *a, uint64_t base,
                        int64_t n_heads, int64_t first) {
    const int64_t range_rows = mobai_min64(a->slice_queries, a->total_q) * a->group;
    const item_form f = item_form_of(range_rows, a->n_slots, a->batch, a->top_k, a->head_dim);
    p->n_item_capacity = (int32_t)f.items;
    p->n_list_capacity = (int32_t)f.lists;
    p->n_item_steps = (int32_t)f.steps;
    p->item_tiles = item_tiles_of(range_rows * mobai_min64(a->slice_kv_heads, a->n_kv_heads) * a->top_k / 64 /
                                  (2 * device->n_multiprocessors));
    p->item_step_rows = (uint32_t)mobai_ceil_div(range_rows, f.steps);
    p->item_counts = base + (uint64_t)first * sizeof(mobai_sm90_item_count);
    base += aligned((size_t)n_heads * sizeof(mobai_sm90_item_count));
    p->items = base + (uint64_t)(first * f.items) * sizeof(mobai_sm90_item);
    base += (uint64_t)(n_heads * f.items) * sizeof(mobai_sm90_item);
    p->item_lists = base + (uint64_t)(first * f.lists) * sizeof(mobai_sm90_list);
}

/** Places the items of the slice: behind the map of picks where the index left one, for all kv heads and query ranges
 * where it cut these too; else in the scratch. Returns whether the index cut them. */
static bool place_slice_items(mobai_sm90_params *p, const mobai_device *device, const mobai_stage_args *a) {
    const int64_t ranges = n_ranges(a->total_q, a->slice_queries);
    if (!p->places) {
        place_items(p, device, a, p->scratch, p->n_slice_kv_heads, 0);
        return false;
    }
    const uint64_t base = p->places + cuda_map_bytes(a->n_q_heads, a->total_q, a->top_k);
    const bool all = ranges <= ITEM_RANGES;
    if (all)
        place_items(p, device, a, base, a->n_kv_heads * ranges,
                    a->query_begin / a->slice_queries * a->n_kv_heads + a->kv_head_begin);
    else
        place_items(p, device, a, base, p->n_slice_kv_heads, 0);
    return all;
}

/** Cuts the lists of the slice's kv heads and query rows, `n_ranges` ranges of them. */
static moba_status launch_items(mobai_device *device, cu_stream stream, mobai_sm90_params *p, int64_t ranges,
                                int64_t range_queries) {
    const int64_t lists = (int64_t)p->n_slots * p->n_item_steps;
    p->range_queries = (int32_t)range_queries;
    p->range_kv_heads = p->n_slice_kv_heads;
    cuda_grid cut = {(unsigned)mobai_ceil_div(lists, 128), (unsigned)p->n_slice_kv_heads, (unsigned)ranges, 128, 0};
    cuda_grid items = {(unsigned)p->n_slice_kv_heads, (unsigned)ranges, 1, 1024, 0};
    MOBAI_TRY(cuda_run(device, stream, CUDA_MODULE_INDEX, CUDA_INDEX_CUT, cut, p));
    return cuda_run(device, stream, CUDA_MODULE_INDEX, CUDA_INDEX_ITEMS, items, p);
}

moba_status cuda_launch_index(mobai_device *device, cu_stream stream, const cuda_code *code,
                              const mobai_stage_args *a) {
    (void)code;
    mobai_sm90_params p = cuda_params_of(a);
    const int64_t rows = (int64_t)p.total_q * p.group;
    if (p.n_slice_kv_heads == 0 || rows == 0) return MOBA_OK;
    p.index_chunk_rows = (int32_t)index_chunk_rows(p.n_slice_kv_heads, rows, p.n_slots, p.top_k);
    p.n_index_chunks = (int32_t)mobai_ceil_div(rows, p.index_chunk_rows);
    if (p.places && !a->keeps_routing) p.index_ranks = 0; /* attend reads the map instead */
    p.tickets = p.scratch;
    p.scratch += ticket_bytes(p.n_slice_kv_heads);
    const unsigned windows = (unsigned)mobai_max64(1, mobai_ceil_div(p.n_slots, MOBAI_SM90_INDEX_WINDOW));
    const unsigned window = (unsigned)mobai_min64(p.n_slots, MOBAI_SM90_INDEX_WINDOW);
    const int first = CUDA_INDEX_COUNT + (p.top_k <= 8 ? 0 : p.top_k <= 16 ? 2 : 4);
    const unsigned threads = MOBAI_SM90_SCATTER_WARPS * 32;
    cuda_grid count = {(unsigned)p.n_index_chunks, windows, (unsigned)p.n_slice_kv_heads, threads, window * 4};
    cuda_grid scan = {(unsigned)mobai_max64(1, mobai_ceil_div(p.n_slots, 1024)), (unsigned)p.n_slice_kv_heads, 1, 1024,
                      0};
    cuda_grid scatter = count;
    scatter.shared = ((window + 1) & ~1u) * (8 + 2 * MOBAI_SM90_SCATTER_WARPS) + SCATTER_PICKS * 4;
    MOBAI_TRY(cuda_run(device, stream, CUDA_MODULE_INDEX, first, count, &p));
    MOBAI_TRY(cuda_run(device, stream, CUDA_MODULE_INDEX, CUDA_INDEX_SCAN, scan, &p));
    MOBAI_TRY(cuda_run(device, stream, CUDA_MODULE_INDEX, first + 1, scatter, &p));
    if (!p.places || !place_slice_items(&p, device, a)) return MOBA_OK;
    return launch_items(device, stream, &p, n_ranges(a->total_q, a->slice_queries), a->slice_queries);
}

/* ---------------------------------------------------------------------------------------- attend, combine -- */

moba_status cuda_launch_attend(mobai_device *device, cu_stream stream, const cuda_code *code,
                               const mobai_stage_args *a) {
    mobai_sm90_params p = cuda_params_of(a);
    if (p.n_slice_kv_heads == 0 || p.query_end == p.query_begin) return MOBA_OK;
    if (p.q.token_stride > INT32_MAX || p.q.head_stride > INT32_MAX)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED,
                          "q has strides of %lld and %lld elements; this kernel takes at most %d",
                          (long long)p.q.token_stride, (long long)p.q.head_stride, INT32_MAX);
    if (!place_slice_items(&p, device, a))
        MOBAI_TRY(launch_items(device, stream, &p, 1, a->query_end - a->query_begin));
    if (!p.places) {
        cuda_grid places = {(unsigned)p.n_slots * (unsigned)p.n_item_steps, (unsigned)p.n_slice_kv_heads, 1, 128, 0};
        MOBAI_TRY(cuda_run(device, stream, CUDA_MODULE_ATTEND, 0, places, &p));
    }
    const bool vectors = cuda_is_aligned(&p.q) && cuda_is_aligned(&p.k) && cuda_is_aligned(&p.v);
    const int method = p.block_size == 64 ? 0 : p.block_size == 128 ? 1 : 2;
    const int kernel = 1 + method * 8 + cuda_kernel_place(code, vectors);
    const int per_multiprocessor = method < 2 && vectors ? 2 : 1;
    cuda_grid g = {(unsigned)mobai_min64((int64_t)p.n_item_capacity * p.n_slice_kv_heads,
                                         (int64_t)device->n_multiprocessors * per_multiprocessor),
                   1, 1, 256, cuda_shared_of(CUDA_MODULE_ATTEND, kernel)};
    return cuda_run(device, stream, CUDA_MODULE_ATTEND, kernel, g, &p);
}

moba_status cuda_launch_combine(mobai_device *device, cu_stream stream, const cuda_code *code,
                                const mobai_stage_args *a) {
    mobai_sm90_params p = cuda_params_of(a);
    const int64_t rows = (int64_t)(p.query_end - p.query_begin) * p.group;
    if (p.n_slice_kv_heads == 0 || rows == 0) return MOBA_OK;
    if (p.places) place_slice_items(&p, device, a);
    const int64_t rows_per_group = 256 / (code->head_dim / 8);
    cuda_grid g = {(unsigned)mobai_ceil_div(rows, rows_per_group), (unsigned)p.n_slice_kv_heads, 1, 256, 0};
    return cuda_run(device, stream, CUDA_MODULE_COMBINE, cuda_kernel_place(code, cuda_is_aligned(&p.o)), g, &p);
}
