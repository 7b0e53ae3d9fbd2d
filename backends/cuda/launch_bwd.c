/* SPDX-License-Identifier: Apache-2.0
 *
 * Launching the sm_90a stages of the backward.
 */
#include <math.h>

#include "backends/cuda/cuda.h"
#include "core/geometry.h"
#include "core/status.h"

/** Q and dO of one step of work stay in half of the L2 cache, beside the partials that pass through it. */
#define ITEM_STEP_BYTES (24 << 20)

int32_t cuda_key_tiles(int32_t block_size) { return block_size == 64 ? 1 : (block_size + 127) / 128; }

static mobai_sm90_params bwd_params_of(const mobai_stage_args *a) {
    const bool packed = a->cu_seqlens_q.handle != 0;
    mobai_sm90_params p = cuda_params_of(a);
    p.dout = cuda_tensor(&a->dout, a->seqlen_q, packed);
    p.dq = cuda_tensor(&a->dq, a->seqlen_q, packed);
    p.dk = cuda_tensor(&a->dk, a->seqlen_k, packed);
    p.dv = cuda_tensor(&a->dv, a->seqlen_k, packed);
    p.delta = a->delta.handle ? a->delta.handle + a->delta.offset : 0;
    p.dkprime = a->dkprime.handle ? a->dkprime.handle + a->dkprime.offset : 0;
    p.dkv_sums = a->dkv_sums.handle ? a->dkv_sums.handle + a->dkv_sums.offset : 0;
    p.slice_kv_heads = a->slice_kv_heads;
    p.head_dim = a->head_dim;
    p.n_key_tiles = cuda_key_tiles(a->block_size);
    p.row_tile = a->head_dim == 128 ? 64 : 128;
    p.softmax_scale = a->softmax_scale;
    return p;
}

moba_status cuda_launch_delta(mobai_device *device, cu_stream stream, const cuda_code *code,
                              const mobai_stage_args *a) {
    mobai_sm90_params p = bwd_params_of(a);
    const int64_t rows = (int64_t)(p.query_end - p.query_begin) * p.n_slice_kv_heads * p.group;
    if (rows == 0) return MOBA_OK;
    const int64_t groups = mobai_ceil_div(rows, 4 * (256 / (code->head_dim / 8)));
    if (groups > INT32_MAX)
        return mobai_fail(MOBA_ERROR_UNSUPPORTED, "%lld query rows of all heads; one launch of delta covers fewer",
                          (long long)rows);
    cuda_grid g = {(unsigned)groups, 1, 1, 256, 0};
    return cuda_run(device, stream, CUDA_MODULE_DELTA,
                    cuda_kernel_place(code, cuda_is_aligned(&p.o) && cuda_is_aligned(&p.dout)), g, &p);
}

/* ------------------------------------------------------------------------------------------- attend_bwd -- */

/** Most pieces that cut lists can have: lists are cut when longer than 1.5 limits, rounding to the nearest number of
 *  pieces, so a piece has at least 3/4 of a limit, of which a row tile may be nearly empty. */
static int64_t part_capacity(int64_t n_workers, int64_t n_tiles) {
    const double by_share = 1.4445 * MOBAI_SM90_BWD_SHARES * (double)n_workers;
    const double by_tiles = 1.4445 * (double)n_tiles / MOBAI_SM90_BWD_MIN_TILES;
    return (int64_t)ceil(by_share < by_tiles ? by_share : by_tiles) + 1;
}

typedef struct bwd_scratch {
    int64_t n_parts, n_items; /* items of one kv head */
    size_t parts_offset, bytes;
} bwd_scratch;

static bwd_scratch lay_out(const mobai_caps *caps, int64_t n_kv_heads, int64_t n_rows, int64_t n_slots, int32_t top_k,
                           int32_t block_size, int32_t head_dim) {
    const int64_t key_tiles = cuda_key_tiles(block_size), row_tile = head_dim == 128 ? 64 : 128;
    const size_t part = (size_t)(block_size == 64 ? 64 : 128) * (size_t)head_dim * 2 * sizeof(float);
    bwd_scratch s;
    s.n_parts = part_capacity(caps->n_compute_units, mobai_ceil_div(n_kv_heads * n_rows * top_k * key_tiles, row_tile));
    s.n_items = n_slots * key_tiles + s.n_parts;
    size_t used = MOBAI_SM90_BWD_ITEMS_OFFSET + (size_t)n_kv_heads * (size_t)s.n_items * sizeof(mobai_sm90_bwd_item) +
                  (size_t)n_kv_heads * (size_t)(n_slots * key_tiles) * sizeof(mobai_sm90_bwd_list);
    s.parts_offset = (used + 255) / 256 * 256;
    s.bytes = s.parts_offset + (size_t)s.n_parts * part;
    return s;
}

size_t cuda_attend_bwd_scratch(const mobai_shape *shape) {
    const moba_problem *p = shape->problem;
    return lay_out(shape->caps, shape->n_slice_kv_heads, shape->n_slice_queries * (p->n_q_heads / p->n_kv_heads),
                   shape->n_slots, p->top_k, p->block_size, p->head_dim)
        .bytes;
}

moba_status cuda_launch_attend_bwd(mobai_device *device, cu_stream stream, const cuda_code *code,
                                   const mobai_stage_args *a) {
    mobai_sm90_params p = bwd_params_of(a);
    if (p.n_slice_kv_heads == 0 || p.n_slots == 0) return MOBA_OK;
    const int64_t rows = (int64_t)(p.query_end - p.query_begin) * p.group;
    const bwd_scratch s =
        lay_out(&device->caps, p.n_slice_kv_heads, rows, p.n_slots, p.top_k, p.block_size, p.head_dim);
    p.n_item_capacity = (int32_t)s.n_items;
    p.parts = p.scratch + s.parts_offset;
    p.n_workers = device->n_multiprocessors;
    const int64_t total_rows = (int64_t)p.total_q * p.group;
    const int64_t steps =
        mobai_min64(mobai_ceil_div(total_rows * 4 * code->head_dim, ITEM_STEP_BYTES), MOBAI_SM90_ITEM_STEPS);
    p.item_step_rows = steps > 1 ? (uint32_t)mobai_ceil_div(total_rows, steps) : 0;
    const int result = device->base.driver->fill8(p.scratch, 0, 16, stream);
    if (result != MOBAI_DRIVER_SUCCESS) return cuda_fail(result, "clear the work counters of attend_bwd");
    cuda_grid cut = {((unsigned)p.n_slots + 127) / 128, (unsigned)p.n_slice_kv_heads, 1, 128, 0};
    cuda_grid items = {(unsigned)p.n_slice_kv_heads, 1, 1, 1024, 0};
    MOBAI_TRY(cuda_run(device, stream, CUDA_MODULE_ATTEND_BWD, CUDA_BWD_CUT, cut, &p));
    MOBAI_TRY(cuda_run(device, stream, CUDA_MODULE_ATTEND_BWD, CUDA_BWD_ITEMS, items, &p));
    const bool out_aligned = (p.dkprime || cuda_is_aligned(&p.dk)) && cuda_is_aligned(&p.dv);
    const bool aligned = cuda_is_aligned(&p.q) && cuda_is_aligned(&p.k) && cuda_is_aligned(&p.v) &&
                         cuda_is_aligned(&p.dout) && out_aligned;
    const int kernel = CUDA_BWD_MAIN + (p.block_size == 64 ? 0 : 8) + cuda_kernel_place(code, aligned);
    cuda_grid main_grid = {(unsigned)device->n_multiprocessors, 1, 1, 384,
                           cuda_shared_of(CUDA_MODULE_ATTEND_BWD, kernel)};
    if (rows > 0) MOBAI_TRY(cuda_run(device, stream, CUDA_MODULE_ATTEND_BWD, kernel, main_grid, &p));
    const int64_t finishers = mobai_ceil_div(2 * device->n_multiprocessors, p.n_slice_kv_heads);
    cuda_grid finish = {(unsigned)mobai_min64((int64_t)p.n_slots * p.n_key_tiles, finishers),
                        (unsigned)p.n_slice_kv_heads, 1, 512, 0};
    return cuda_run(device, stream, CUDA_MODULE_ATTEND_BWD, CUDA_BWD_FINISH + 2 * code->bf16 + !out_aligned, finish,
                    &p);
}

moba_status cuda_launch_dq_sum(mobai_device *device, cu_stream stream, const cuda_code *code,
                               const mobai_stage_args *a) {
    mobai_sm90_params p = bwd_params_of(a);
    const int64_t rows = (int64_t)(p.query_end - p.query_begin) * p.group;
    if (p.n_slice_kv_heads == 0 || rows == 0) return MOBA_OK;
    const int64_t rows_per_group = 256 / (code->head_dim / 8);
    cuda_grid g = {(unsigned)mobai_ceil_div(rows, rows_per_group), (unsigned)p.n_slice_kv_heads, 1, 256, 0};
    return cuda_run(device, stream, CUDA_MODULE_DQ_SUM, cuda_kernel_place(code, cuda_is_aligned(&p.dq)), g, &p);
}
