/* SPDX-License-Identifier: Apache-2.0
 *
 * What goes around attend_bwd:
 *   attend_bwd_items   cuts every list into pieces; long lists into several, whose dK and dV are summed afterwards
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

/** The list of one key tile within the slice, and how it is cut: pieces of `per` row tiles, the last one shorter. */
struct cut {
    int64_t first, n;
    uint32_t per, n_pieces;
    int sums;
};

static __device__ __forceinline__ cut cut_list(const mobai_sm90_params &p, const int64_t *offsets, const uint32_t *rows,
                                               int slot, uint32_t limit) {
    cut c;
    c.first = offsets[slot];
    c.n = p.query_end > p.query_begin ? offsets[slot + 1] - c.first : 0;
    c.sums = 0;
    if (c.n > 0 && (p.query_begin > 0 || p.query_end < p.total_q)) {
        int64_t a = rows_below(rows + c.first, c.n, (int64_t)p.query_begin * p.group);
        int64_t b = rows_below(rows + c.first, c.n, (int64_t)p.query_end * p.group);
        c.sums = (a > 0 ? MOBAI_SM90_BWD_EARLIER : 0) | (b < c.n ? MOBAI_SM90_BWD_LATER : 0);
        c.first += a;
        c.n = b - a;
    }
    const uint32_t tiles = (uint32_t)((c.n + p.row_tile - 1) / p.row_tile);
    const uint32_t pieces = tiles > limit + limit / 2 ? (tiles + limit / 2) / limit : 1;
    c.per = (tiles + pieces - 1) / pieces;
    c.n_pieces = tiles ? (tiles + c.per - 1) / c.per : 0;
    return c;
}

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

/* Pieces are ordered by the query rows they begin with, in steps whose Q and dO stay in the L2 cache, then long ones
   first. Places within a bucket are taken as they come: the order of work changes no result. */
extern "C" __global__ void __launch_bounds__(1024) attend_bwd_items(const __grid_constant__ mobai_sm90_params p) {
    constexpr int CLASSES = MOBAI_SM90_BWD_CLASSES, BUCKETS = CLASSES * MOBAI_SM90_ITEM_STEPS;
    __shared__ int place[BUCKETS];
    const int slice_g = (int)blockIdx.x, g = p.kv_head_begin + slice_g;
    const int64_t *offsets = (const int64_t *)p.index_offsets + (int64_t)g * (p.n_slots + 1);
    const uint32_t *rows = (const uint32_t *)p.index_rows + g * p.index_row_stride;
    mobai_sm90_bwd_item *items = bwd_items(p, slice_g);
    mobai_sm90_bwd_list *lists = bwd_lists(p, slice_g);
    int *scratch = (int *)p.scratch;
    const uint32_t limit = piece_limit(p);
    const int64_t most = (int64_t)(p.query_end - p.query_begin) * p.group * p.top_k;
    const uint32_t average =
        (uint32_t)max((int64_t)1, (min(offsets[p.n_slots], most) / p.row_tile + p.n_slots) / max(p.n_slots, 1));
    if (threadIdx.x < BUCKETS) place[threadIdx.x] = 0;
    __syncthreads();
    auto bucket = [&](const cut &c, uint32_t i) {
        const int64_t from = (int64_t)i * c.per * p.row_tile;
        const int step = p.item_step_rows ? (int)(__ldg(rows + c.first + from) / p.item_step_rows) : 0;
        const int length = c.per >= 2 * average ? 0 : c.per >= average ? 1 : 2;
        return CLASSES * min(step, MOBAI_SM90_ITEM_STEPS - 1) + length;
    };

    for (int slot = (int)threadIdx.x; slot < p.n_slots; slot += (int)blockDim.x) {
        const cut c = cut_list(p, offsets, rows, slot, limit);
        for (uint32_t i = 0; i < c.n_pieces; i++)
            atomicAdd(place + bucket(c, i), p.n_key_tiles);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < BUCKETS; i++) {
            int n = place[i];
            place[i] = sum;
            sum += n;
        }
        scratch[4 + slice_g] = sum;
    }
    __syncthreads();
    for (int slot = (int)threadIdx.x; slot < p.n_slots; slot += (int)blockDim.x) {
        const cut c = cut_list(p, offsets, rows, slot, limit);
        const sequence s = sequence_of_slot(p, slot);
        for (int key_tile = 0; key_tile < p.n_key_tiles; key_tile++) {
            const int key = (slot - s.first_slot) * p.block_size + key_tile * 128;
            mobai_sm90_bwd_item item = {};
            item.key_row = s.k_begin + key;
            item.n_keys = max(0, min(min(p.block_size - key_tile * 128, 128), s.n_k - key));
            item.sequence = s.index;
            item.pos_shift = p.causal ? s.n_k - s.n_q - s.q_begin - key : 0x7fffffff - p.total_q;
            item.key_tile = key_tile;
            item.sums = c.sums;
            mobai_sm90_bwd_list list = {c.sums, -1, (int)c.n_pieces};
            if (c.n_pieces > 1) list.first_part = atomicAdd(scratch + 1, (int)c.n_pieces);
            lists[slot * p.n_key_tiles + key_tile] = list;
            int64_t masked = 0;
            if (item.n_keys < (p.block_size == 64 ? 64 : 128))
                masked = c.n;
            else if (p.causal)
                masked = rows_below(rows + c.first, c.n, ((int64_t)item.n_keys - 1 - item.pos_shift) * p.group);
            for (uint32_t i = 0; i < c.n_pieces; i++) {
                const int64_t from = (int64_t)i * c.per * p.row_tile;
                item.first = c.first + from;
                item.n_rows = (uint32_t)min(c.n - from, (int64_t)c.per * p.row_tile);
                item.n_masked = (uint32_t)max((int64_t)0, min(masked - from, (int64_t)item.n_rows));
                item.part = c.n_pieces > 1 ? list.first_part + (int)i : -1;
                items[atomicAdd(place + bucket(c, i), 1)] = item;
            }
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
        float4 *to = (float4 *)((float *)p.dkprime + ((int64_t)key_row * p.n_kv_heads + g) * p.head_dim + column);
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

template <int BF16, int VEC> static __device__ __forceinline__ void finish(const mobai_sm90_params &p) {
    const int slot = (int)blockIdx.x / p.n_key_tiles, key_tile = (int)blockIdx.x - slot * p.n_key_tiles;
    const int slice_g = (int)blockIdx.y, g = p.kv_head_begin + slice_g, chunks = p.head_dim / 8;
    const int keys = p.block_size == 64 ? 64 : 128;
    const sequence s = sequence_of_slot(p, slot);
    const int key = (slot - s.first_slot) * p.block_size + key_tile * 128;
    const int n_keys = min(min(p.block_size - key_tile * 128, 128), s.n_k - key);
    const mobai_sm90_bwd_list list = bwd_lists(p, slice_g)[slot * p.n_key_tiles + key_tile];
    const float *parts = (const float *)p.parts + (int64_t)list.first_part * 2 * keys * p.head_dim;
    if (list.n_pieces > 1 || (list.n_pieces == 0 && list.sums == 0))
        for (int i = (int)threadIdx.x; i < 2 * n_keys * chunks; i += (int)blockDim.x) {
            const int is_dv = i >= n_keys * chunks, e = i - is_dv * n_keys * chunks;
            const int k = e / chunks, column = (e - k * chunks) * 8;
            float sum[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
            const float4 *from = (const float4 *)(parts + ((int64_t)is_dv * keys + k) * p.head_dim + column);
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
    if (!p.cu_k) return;
    /* the slots' ranges of block_size storage rows cover all; rows of no sequence become zeros */
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

#define FINISH(NAME, BF16)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ mobai_sm90_params p) {              \
        finish<BF16, 1>(p);                                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) NAME##_strided(const __grid_constant__ mobai_sm90_params p) {    \
        finish<BF16, 0>(p);                                                                                            \
    }
FINISH(attend_bwd_finish_f16, 0)
FINISH(attend_bwd_finish_bf16, 1)

#endif
