/* SPDX-License-Identifier: Apache-2.0
 *
 * What goes around attend_bwd:
 *   attend_bwd_cut     cuts every list into pieces: long lists into several, whose dK and dV are summed afterwards
 *   attend_bwd_items   puts the pieces in the order of work
 *   attend_bwd_finish  sums the pieces of cut lists, writes zeros for keys that nobody selected
 *
 * A list belongs to the slice's query range with the rows that it has there; item and list say in `sums` whether other
 * ranges have rows of it too.
 */
#ifndef MOBAI_SM90_ATTEND_BWD_LISTS_CUH
#define MOBAI_SM90_ATTEND_BWD_LISTS_CUH

#include "bwd.cuh"
#include "picks.cuh"

/* --------------------------------------------------------------------------------------------- work items -- */

/** Row tiles of a piece at most, but for lists that are not worth cutting. launch_bwd.c bounds the number of parts. */
static __device__ uint32_t piece_limit(const mobai_sm90_params &p) {
    __shared__ unsigned long long picks;
    if (threadIdx.x == 0) picks = 0;
    __syncthreads();
    for (int g = (int)threadIdx.x; g < p.n_slice_kv_heads; g += (int)blockDim.x)
        atomicAdd(&picks,
                  (unsigned long long)((const int64_t *)
                                           p.index_offsets)[(int64_t)(p.kv_head_begin + g + 1) * (p.n_slots + 1) - 1]);
    __syncthreads();
    const float most =
        (float)(p.query_end - p.query_begin) * (float)p.group * (float)p.top_k * (float)p.n_slice_kv_heads;
    const float tiles = fminf((float)picks, most) * (float)p.n_key_tiles / (float)p.row_tile;
    return max(MOBAI_SM90_BWD_MIN_TILES, (uint32_t)ceilf(tiles / (MOBAI_SM90_BWD_SHARES * (float)p.n_workers)));
}

/** A key tile's first key, counted from its sequence's, and its number of keys. */
struct key_tile_of {
    int key, n_keys;
    __device__ __forceinline__ key_tile_of(const mobai_sm90_params &p, const sequence &s, int slot, int key_tile) {
        key = (slot - s.first_slot) * p.block_size + key_tile * 128;
        n_keys = max(0, min(min(p.block_size - key_tile * 128, 128), s.n_k - key));
    }
};

/** Query row t sees the keys 0 .. t + pos_shift of a tile that begins with `key`. */
static __device__ __forceinline__ int pos_shift_of(const mobai_sm90_params &p, const sequence &s, int key) {
    return p.causal ? s.n_k - s.n_q - s.q_begin - key : 0x7fffffff - p.total_q;
}

/* A thread a slot: the searches are chains of loads, so many of them should be under way at once. */
extern "C" __global__ void __launch_bounds__(128) attend_bwd_cut(const __grid_constant__ mobai_sm90_params p) {
    const int slice_g = (int)blockIdx.y, g = p.kv_head_begin + slice_g, slot = (int)(blockIdx.x * 128 + threadIdx.x);
    const int64_t *offsets = (const int64_t *)p.index_offsets + (int64_t)g * (p.n_slots + 1);
    const uint32_t *rows = (const uint32_t *)p.index_rows + g * p.index_row_stride;
    const uint32_t limit = piece_limit(p);
    if (slot >= p.n_slots) return;
    mobai_sm90_bwd_list list = {};
    list.first = offsets[slot];
    int64_t n = p.query_end > p.query_begin ? offsets[slot + 1] - list.first : 0;
    if (n > 0 && (p.query_begin > 0 || p.query_end < p.total_q)) {
        const int64_t a = rows_below(rows + list.first, n, (int64_t)p.query_begin * p.group);
        const int64_t b = a + rows_below(rows + list.first + a, n - a, (int64_t)p.query_end * p.group);
        list.sums = (a > 0 ? MOBAI_SM90_BWD_EARLIER : 0) | (b < n ? MOBAI_SM90_BWD_LATER : 0);
        list.first += a;
        n = b - a;
    }
    list.n_rows = (uint32_t)n;
    const uint32_t tiles = (uint32_t)((n + p.row_tile - 1) / p.row_tile);
    const uint32_t pieces = tiles > limit + limit / 2 ? (tiles + limit / 2) / limit : 1;
    list.per = (tiles + pieces - 1) / pieces;
    list.n_pieces = tiles ? (int)((tiles + list.per - 1) / list.per) : 0;
    const sequence s = sequence_of_slot(p, slot);
    for (int key_tile = 0; key_tile < p.n_key_tiles; key_tile++) {
        const key_tile_of keys(p, s, slot, key_tile);
        list.first_part = list.n_pieces > 1 ? atomicAdd((int *)p.scratch + 1, list.n_pieces) : -1;
        list.n_masked = 0;
        if (keys.n_keys < (p.block_size == 64 ? 64 : 128))
            list.n_masked = (uint32_t)n;
        else if (p.causal)
            list.n_masked = (uint32_t)rows_below(rows + list.first, n,
                                                 ((int64_t)keys.n_keys - 1 - pos_shift_of(p, s, keys.key)) * p.group);
        bwd_lists(p, slice_g)[slot * p.n_key_tiles + key_tile] = list;
    }
}

/* Pieces are ordered by the query rows they begin with, in steps whose Q and dO stay in the L2 cache, then long ones
   first; long lists, which pass through many steps anyway, by length before step, or the last to begin are the last to
   end. Places within a bucket are taken as they come: the order of work changes no result. */
extern "C" __global__ void __launch_bounds__(1024) attend_bwd_items(const __grid_constant__ mobai_sm90_params p) {
    constexpr int CLASSES = MOBAI_SM90_BWD_CLASSES, BUCKETS = CLASSES * MOBAI_SM90_ITEM_STEPS;
    static_assert(BUCKETS <= 1024, "a thread a bucket");
    __shared__ uint32_t place[BUCKETS];
    const int slice_g = (int)blockIdx.x, g = p.kv_head_begin + slice_g, n_lists = p.n_slots * p.n_key_tiles;
    const int64_t n_picks = ((const int64_t *)p.index_offsets)[(int64_t)g * (p.n_slots + 1) + p.n_slots];
    const uint32_t *rows = (const uint32_t *)p.index_rows + g * p.index_row_stride;
    mobai_sm90_bwd_item *items = bwd_items(p, slice_g);
    const mobai_sm90_bwd_list *lists = bwd_lists(p, slice_g);
    const int64_t most = (int64_t)(p.query_end - p.query_begin) * p.group * p.top_k;
    const uint32_t average =
        (uint32_t)max((int64_t)1, (min(n_picks, most) / p.row_tile + p.n_slots) / max(p.n_slots, 1));
    if (threadIdx.x < BUCKETS) place[threadIdx.x] = 0;
    __syncthreads();
    auto bucket = [&](const mobai_sm90_bwd_list &list, int i) {
        const int64_t from = (int64_t)i * list.per * p.row_tile;
        const int step = p.item_step_rows ? (int)(__ldg(rows + list.first + from) / p.item_step_rows) : 0;
        const int quarters = (int)min(4 * list.per / average, 8u);
        const int length = quarters == 8 ? 0 : quarters >= 6 ? 1 : 7 - quarters;
        const int s = min(step, MOBAI_SM90_ITEM_STEPS - 1);
        return average >= MOBAI_SM90_BWD_LONG_TILES ? length * MOBAI_SM90_ITEM_STEPS + s : s * CLASSES + length;
    };

    for (int x = (int)threadIdx.x; x < n_lists; x += (int)blockDim.x) {
        const mobai_sm90_bwd_list list = lists[x];
        for (int i = 0; i < list.n_pieces; i++)
            atomicAdd(place + bucket(list, i), 1u);
    }
    __syncthreads();
    const uint32_t n = threadIdx.x < BUCKETS ? place[threadIdx.x] : 0;
    uint32_t n_items;
    const uint32_t before = scan_1024(n, &n_items);
    if (threadIdx.x < BUCKETS) place[threadIdx.x] = before;
    if (threadIdx.x == 0) ((int *)p.scratch)[4 + slice_g] = (int)n_items;
    __syncthreads();
    for (int x = (int)threadIdx.x; x < n_lists; x += (int)blockDim.x) {
        const mobai_sm90_bwd_list list = lists[x];
        if (list.n_pieces == 0) continue;
        const int slot = x / p.n_key_tiles, key_tile = x - slot * p.n_key_tiles;
        const sequence s = sequence_of_slot(p, slot);
        const key_tile_of keys(p, s, slot, key_tile);
        mobai_sm90_bwd_item item = {};
        item.key_row = s.k_begin + keys.key;
        item.n_keys = keys.n_keys;
        item.sequence = s.index;
        item.pos_shift = pos_shift_of(p, s, keys.key);
        item.key_tile = key_tile;
        item.sums = list.sums;
        for (int i = 0; i < list.n_pieces; i++) {
            const uint32_t from = (uint32_t)i * list.per * (uint32_t)p.row_tile;
            item.first = list.first + from;
            item.n_rows = min(list.n_rows - from, list.per * (uint32_t)p.row_tile);
            item.n_masked = list.n_masked > from ? min(list.n_masked - from, item.n_rows) : 0;
            item.part = list.n_pieces > 1 ? list.first_part + i : -1;
            items[atomicAdd(place + bucket(list, i), 1u)] = item;
        }
    }
}

/* ------------------------------------------------------------------------------------------------- finish -- */

/** Eight values of a key's dK or dV. */
template <int BF16, int VEC>
static __device__ __forceinline__ void store_eight(const mobai_sm90_params &p, bool is_dk, int sequence, int g,
                                                   int key_row, int column, float (&v)[8]) {
    if (is_dk) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] *= p.softmax_scale;
    }
    if (is_dk && p.dkprime) {
        float4 *to = (float4 *)(bwd_dkprime(p, g, key_row, p.head_dim) + column);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
        return;
    }
    const mobai_sm90_tensor &x = is_dk ? p.dk : p.dv;
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = pack16<BF16>(v[2 * i], v[2 * i + 1]);
    store_chunk<VEC>((uint16_t *)x.address + batch_offset(x, sequence) + g * x.head_stride +
                         (int64_t)key_row * x.token_stride + column,
                     words);
}

/** Whether finish has to write the dK and dV of a list: their pieces are to be summed, or nobody selected the keys. */
static __device__ __forceinline__ bool is_unfinished(const mobai_sm90_bwd_list &list) {
    return list.n_pieces > 1 || (list.n_pieces == 0 && list.sums == 0);
}

/** dK and dV of one list from its pieces. */
template <int BF16, int VEC>
static __device__ __forceinline__ void finish_list(const mobai_sm90_params &p, int slice_g, const sequence &s,
                                                   const key_tile_of &tile, const mobai_sm90_bwd_list &list) {
    const int g = p.kv_head_begin + slice_g, chunks = p.head_dim / 8, keys = p.block_size == 64 ? 64 : 128;
    const int key = tile.key, n_keys = tile.n_keys;
    const float *parts = (const float *)p.parts + (int64_t)list.first_part * 2 * keys * p.head_dim;
    for (int i = (int)threadIdx.x; i < 2 * n_keys * chunks; i += (int)blockDim.x) {
        const int is_dv = i >= n_keys * chunks, e = i - is_dv * n_keys * chunks;
        const int k = e / chunks, column = (e - k * chunks) * 8;
        float sum[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        const float4 *from = (const float4 *)(parts + ((int64_t)is_dv * keys + k) * p.head_dim + column);
#pragma unroll 4 /* lists have few pieces: let their loads run at once */
        for (int x = 0; x < list.n_pieces; x++) {
            const float4 a = from[0], b = from[1];
            from += (int64_t)keys * p.head_dim / 2;
            sum[0] += a.x, sum[1] += a.y, sum[2] += a.z, sum[3] += a.w;
            sum[4] += b.x, sum[5] += b.y, sum[6] += b.z, sum[7] += b.w;
        }
        float4 *sums = (float4 *)(bwd_sums(p, slice_g, is_dv, s.k_begin + key + k) + column);
        if (list.sums & MOBAI_SM90_BWD_EARLIER) {
            const float4 a = sums[0], b = sums[1];
            sum[0] += a.x, sum[1] += a.y, sum[2] += a.z, sum[3] += a.w;
            sum[4] += b.x, sum[5] += b.y, sum[6] += b.z, sum[7] += b.w;
        }
        if (list.sums & MOBAI_SM90_BWD_LATER) {
            sums[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
            sums[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
        } else {
            store_eight<BF16, VEC>(p, !is_dv, s.index, g, s.k_begin + key + k, column, sum);
        }
    }
}

/** Zeros for those of the slot's block_size storage rows that no sequence owns; the ranges of all slots cover every
 * row. */
template <int BF16, int VEC>
static __device__ __forceinline__ void clear_unowned(const mobai_sm90_params &p, int g, int slot, int key_tile) {
    const int chunks = p.head_dim / 8;
    const int rows = min(p.block_size - key_tile * 128, 128), from = slot * p.block_size + key_tile * 128;
    for (int i = (int)threadIdx.x; i < rows * chunks; i += (int)blockDim.x) {
        const int t = from + i / chunks, column = i % chunks * 8;
        if (t >= p.total_k || t < 0) continue;
        int low = 0, high = p.batch - 1;
        while (low < high) {
            int middle = (low + high + 1) >> 1;
            if (__ldg((const int32_t *)p.cu_k + middle) <= t)
                low = middle;
            else
                high = middle - 1;
        }
        const int2 owner = clamped_rows((const int32_t *)p.cu_k, p.seqlen_k, p.total_k, low);
        if (t >= owner.x && t < owner.y) continue;
        float zero[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        store_eight<BF16, VEC>(p, true, 0, g, t, column, zero);
        store_eight<BF16, VEC>(p, false, 0, g, t, column, zero);
    }
}

/* Most lists need nothing: a work-group looks at 32 of them at a time, each of its warps by itself. */
template <int BF16, int VEC> static __device__ __forceinline__ void finish(const mobai_sm90_params &p) {
    const int slice_g = (int)blockIdx.y, n_lists = p.n_slots * p.n_key_tiles;
    const bool clears = p.cu_k && p.query_begin == 0;
    const mobai_sm90_bwd_list *lists = bwd_lists(p, slice_g);
    for (int64_t first = blockIdx.x; first < n_lists; first += 32 * (int64_t)gridDim.x) {
        const int64_t mine = first + (int64_t)(threadIdx.x & 31) * gridDim.x;
        uint32_t left = __ballot_sync(MOBAI_FULL_WARP, mine < n_lists && (clears || is_unfinished(lists[mine])));
        for (; left; left &= left - 1) {
            const int x = (int)(first + (int64_t)(__ffs((int)left) - 1) * gridDim.x);
            const int slot = x / p.n_key_tiles, key_tile = x - slot * p.n_key_tiles;
            const mobai_sm90_bwd_list list = lists[x];
            if (is_unfinished(list)) {
                const sequence s = sequence_of_slot(p, slot);
                finish_list<BF16, VEC>(p, slice_g, s, key_tile_of(p, s, slot, key_tile), list);
            }
            if (clears) clear_unowned<BF16, VEC>(p, p.kv_head_begin + slice_g, slot, key_tile);
        }
    }
}

#define FINISH(NAME, BF16)                                                                                             \
    extern "C" __global__ void __launch_bounds__(512, 2) NAME(const __grid_constant__ mobai_sm90_params p) {           \
        finish<BF16, 1>(p);                                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(512, 2) NAME##_strided(const __grid_constant__ mobai_sm90_params p) { \
        finish<BF16, 0>(p);                                                                                            \
    }
FINISH(attend_bwd_finish_f16, 0)
FINISH(attend_bwd_finish_bf16, 1)

#endif
