/* SPDX-License-Identifier: Apache-2.0
 *
 * index: from row lists to the ascending row list of every (kv head, block slot).
 *   index_count    picks of every (kv head, chunk of rows, slot)
 *   index_scan     exclusive sums over chunks and over slots: where each chunk's part of each list begins
 *   index_scatter  sorts a chunk's picks by slot in shared memory, rows ascending, and copies the runs out
 * A row's legal picks are distinct, so its lanes bump a warp's counters without meeting, rows one after another: stable
 * without a sort, and no result depends on timing. Slots are worked on in windows, so shared memory bounds no problem.
 */
#include "common.cuh"

/** Picks of one pass of a warp: LANES lanes a row. */
template <int LANES> struct pick_reader {
    const mobai_sm90_params &p;
    const int32_t *selection; /* of this kv head's first query head */
    int g, window_begin, window_size;
    int end;      /* of the rows this lane reads; 0 for lanes past the list */
    bool uniform; /* one sequence has every row from first to last: the fields below hold for all */
    int q_begin, n_q, n_ids, pos_shift, first_slot;

    __device__ pick_reader(const mobai_sm90_params &p_, int g_, int begin, int end_, int window) : p(p_) {
        g = g_;
        window_begin = window * MOBAI_SM90_INDEX_WINDOW;
        window_size = min(MOBAI_SM90_INDEX_WINDOW, p.n_slots - window_begin);
        selection = (const int32_t *)p.selection + (int64_t)g * p.group * p.top_k + rank();
        end = rank() < p.top_k ? end_ : 0;
        const sequence s = sequence_of_query(p, (int)query_of_row(p, (uint32_t)begin));
        uniform = sequence_of_query(p, (int)query_of_row(p, (uint32_t)end_ - 1)).index == s.index;
        q_begin = s.q_begin;
        n_q = s.n_q;
        n_ids = n_blocks(p, s);
        pos_shift = p.causal ? s.n_k - s.n_q : 0x7fffffff - s.n_q; /* every key is visible without the mask */
        first_slot = s.first_slot - window_begin;
    }
    static __device__ __forceinline__ int rank() { return (int)threadIdx.x % LANES; }

    /** Raw pick of this lane, -1 past the list. `last` bounds the rows further. */
    __device__ __forceinline__ int load(int row, int last) const {
        if (row >= min(end, last)) return -1;
        if (p.group == 1) return __ldg(selection + (int64_t)row * (p.n_q_heads * p.top_k));
        const uint32_t t = query_of_row(p, (uint32_t)row);
        const int h = row - (int)t * p.group;
        return __ldg(selection + ((int64_t)t * p.n_q_heads + h) * p.top_k);
    }

    /** Slot of a pick within the window, or -1: illegal, repeated, or of another window. */
    __device__ __forceinline__ int slot(int id, int row) const {
        const int t = (int)query_of_row(p, (uint32_t)row);
        int x;
        bool ok;
        if (uniform) {
            const uint32_t i = (uint32_t)(t - q_begin);
            x = first_slot + id;
            ok = (uint32_t)id < (uint32_t)n_ids && i < (uint32_t)n_q && id * p.block_size <= (int)i + pos_shift;
        } else {
            const sequence s = sequence_of_query(p, t);
            x = s.first_slot - window_begin + id;
            ok = id >= 0 && is_legal_block(p, s, t, id);
        }
        const int mine = ok ? id : -1;
        const int before = __shfl_up_sync(MOBAI_FULL_WARP, mine, 1, LANES);
        if (!__all_sync(MOBAI_FULL_WARP, rank() == 0 || !ok || id > before)) {
            for (int i = 1; i < LANES; i++) {
                const int other = __shfl_up_sync(MOBAI_FULL_WARP, mine, (unsigned)i, LANES);
                if (rank() >= i && other == id) ok = false;
            }
        }
        return ok && (uint32_t)x < (uint32_t)window_size ? x : -1;
    }
};

template <int LANES> static __device__ __forceinline__ void index_count(const mobai_sm90_params &p) {
    extern __shared__ uint32_t counts[];
    const int chunk = (int)blockIdx.x, window = (int)blockIdx.y, g = p.kv_head_begin + (int)blockIdx.z;
    const int begin = chunk * p.index_chunk_rows, end = min(begin + p.index_chunk_rows, p.total_q * p.group);
    const pick_reader<LANES> picks(p, g, begin, end, window);
    for (int i = (int)threadIdx.x; i < picks.window_size; i += (int)blockDim.x) counts[i] = 0;
    __syncthreads();
    const int rows = (int)blockDim.x / LANES;
    for (int base = begin; base < end; base += rows * 4) {
        int ids[4];
#pragma unroll
        for (int i = 0; i < 4; i++) ids[i] = picks.load(base + i * rows + (int)threadIdx.x / LANES, end);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int slot = picks.slot(ids[i], base + i * rows + (int)threadIdx.x / LANES);
            if (slot >= 0) atomicAdd(counts + slot, 1u);
        }
    }
    __syncthreads();
    uint32_t *out = (uint32_t *)p.scratch + ((int64_t)blockIdx.z * p.n_index_chunks + chunk) * p.n_slots +
                    picks.window_begin;
    for (int i = (int)threadIdx.x; i < picks.window_size; i += (int)blockDim.x) out[i] = counts[i];
}

extern "C" __global__ void __launch_bounds__(1024) index_scan(const __grid_constant__ mobai_sm90_params p) {
    const int g = p.kv_head_begin + (int)blockIdx.x;
    uint32_t *counts = (uint32_t *)p.scratch + (int64_t)blockIdx.x * p.n_index_chunks * p.n_slots;
    int64_t *offsets = (int64_t *)p.index_offsets + (int64_t)g * (p.n_slots + 1);
    int64_t carry = 0;
    for (int base = 0; base < p.n_slots; base += 1024) {
        const int slot = base + (int)threadIdx.x;
        uint32_t sum = 0;
        if (slot < p.n_slots) {
            uint32_t *c = counts + slot;
            int i = 0;
            for (; i + 8 <= p.n_index_chunks; i += 8) {
                uint32_t v[8];
#pragma unroll
                for (int j = 0; j < 8; j++) v[j] = c[(int64_t)(i + j) * p.n_slots];
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    c[(int64_t)(i + j) * p.n_slots] = sum;
                    sum += v[j];
                }
            }
            for (; i < p.n_index_chunks; i++) {
                uint32_t v = c[(int64_t)i * p.n_slots];
                c[(int64_t)i * p.n_slots] = sum;
                sum += v;
            }
        }
        uint32_t total;
        uint32_t before = scan_1024(sum, &total);
        if (slot < p.n_slots) offsets[slot] = carry + before;
        carry += total;
    }
    if (threadIdx.x == 0) offsets[p.n_slots] = carry;
}

/* Shared memory: u32 begin[window + 1], u32 shift[window + 1], u16 counts[warps][window padded to even], u16 sorted[chunk rows * top_k]. */
template <int LANES, int RANK_BITS> static __device__ __forceinline__ void index_scatter(const mobai_sm90_params &p) {
    extern __shared__ uint32_t shared[];
    const int warps = (int)blockDim.x >> 5, warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    const int chunk = (int)blockIdx.x, window = (int)blockIdx.y, g = p.kv_head_begin + (int)blockIdx.z;
    const int begin = chunk * p.index_chunk_rows, end = min(begin + p.index_chunk_rows, p.total_q * p.group);
    const pick_reader<LANES> picks(p, g, begin, end, window);
    const int n = picks.window_size, stride = (n + 1) & ~1;
    uint32_t *list_begin = shared;
    uint32_t *position_shift = list_begin + ((n + 2) & ~1); /* from a place in `sorted` to one in the kv head's index */
    uint16_t *counts = (uint16_t *)(position_shift + ((n + 2) & ~1)); /* pairs are counted as words: none exceeds 16 bits */
    uint16_t *sorted = counts + warps * stride;
    uint16_t *mine = counts + warp * stride;
    for (int i = (int)threadIdx.x; i < warps * stride / 2; i += (int)blockDim.x) ((uint32_t *)counts)[i] = 0;
    __syncthreads();

    constexpr int ROWS = 32 / LANES; /* rows of one pass */
    const int warp_rows = ((p.index_chunk_rows + warps - 1) / warps + ROWS - 1) / ROWS * ROWS;
    const int row_begin = begin + warp * warp_rows, row_end = min(row_begin + warp_rows, end);
    for (int base = row_begin; base < row_end; base += ROWS * 4) {
        int ids[4];
#pragma unroll
        for (int i = 0; i < 4; i++) ids[i] = picks.load(base + i * ROWS + lane / LANES, row_end);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int slot = picks.slot(ids[i], base + i * ROWS + lane / LANES);
            if (slot >= 0) atomicAdd((uint32_t *)mine + (slot >> 1), 1u << ((slot & 1) * 16));
        }
    }
    __syncthreads();

    const uint32_t *chunk_base = (const uint32_t *)p.scratch +
                                 ((int64_t)blockIdx.z * p.n_index_chunks + chunk) * p.n_slots + picks.window_begin;
    const int64_t *offsets = (const int64_t *)p.index_offsets + (int64_t)g * (p.n_slots + 1) + picks.window_begin;
    uint32_t *places = p.places ? (uint32_t *)p.places + (int64_t)g * p.total_q * p.group * p.top_k : nullptr;
    /* counts become each warp's first place in a slot's run, list_begin the run's first place in the chunk */
    __shared__ uint32_t warp_sums[32];
    uint32_t carry = 0;
    for (int base = 0; base < n; base += (int)blockDim.x) {
        int slot = base + (int)threadIdx.x;
        uint32_t sum = 0;
        if (slot < n)
            for (int w = 0; w < warps; w++) {
                uint32_t c = counts[w * stride + slot];
                counts[w * stride + slot] = (uint16_t)sum;
                sum += c;
            }
        uint32_t inclusive = sum;
#pragma unroll
        for (int i = 1; i < 32; i <<= 1) {
            uint32_t other = __shfl_up_sync(MOBAI_FULL_WARP, inclusive, (unsigned)i);
            if (lane >= i) inclusive += other;
        }
        __syncthreads();
        if (lane == 31) warp_sums[warp] = inclusive;
        __syncthreads();
        uint32_t before = carry;
        for (int w = 0; w < warps; w++) {
            if (w < warp) before += warp_sums[w];
            carry += warp_sums[w];
        }
        if (slot < n) {
            list_begin[slot] = before + inclusive - sum;
            position_shift[slot] = (uint32_t)offsets[slot] + chunk_base[slot] - (before + inclusive - sum);
        }
    }
    if (threadIdx.x == 0) list_begin[n] = carry;
    __syncthreads();

    for (int base = row_begin; base < row_end; base += ROWS * 4) {
        int ids[4];
#pragma unroll
        for (int i = 0; i < 4; i++) ids[i] = picks.load(base + i * ROWS + lane / LANES, row_end);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = base + i * ROWS + lane / LANES;
            int slot = picks.slot(ids[i], row);
            uint32_t place = slot >= 0 ? list_begin[slot] : 0;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (slot >= 0 && lane / LANES == r) {
                    uint32_t n = mine[slot];
                    mine[slot] = (uint16_t)(n + 1);
                    place += n;
                }
                __syncwarp();
            }
            if (slot >= 0) {
                sorted[place] = (uint16_t)(((row - begin) << RANK_BITS) | (lane % LANES));
                if (places) places[(int64_t)row * p.top_k + lane % LANES] = place + position_shift[slot];
            }
        }
    }
    __syncthreads();

    uint32_t *rows = (uint32_t *)p.index_rows + g * p.index_row_stride;
    uint16_t *ranks = (uint16_t *)p.index_ranks + g * p.index_row_stride;
    const int part = lane >> 3, part_lane = lane & 7;
    for (int slot = warp * 4 + part; slot < n; slot += warps * 4) {
        uint32_t from = list_begin[slot], count = list_begin[slot + 1] - from;
        if (count == 0) continue;
        const int64_t to = (int64_t)(uint32_t)(from + position_shift[slot]);
        for (uint32_t i = (uint32_t)part_lane; i < count; i += 8) {
            uint32_t e = sorted[from + i];
            rows[to + i] = (uint32_t)begin + (e >> RANK_BITS);
            ranks[to + i] = (uint16_t)(e & ((1u << RANK_BITS) - 1));
        }
    }
}

#define INDEX(LANES, RANK_BITS)                                                                                        \
    extern "C" __global__ void __launch_bounds__(512) index_count_k##LANES(                                            \
        const __grid_constant__ mobai_sm90_params p) {                                                                 \
        index_count<LANES>(p);                                                                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024) index_scatter_k##LANES(                                          \
        const __grid_constant__ mobai_sm90_params p) {                                                                 \
        index_scatter<LANES, RANK_BITS>(p);                                                                            \
    }
INDEX(8, 3)
INDEX(16, 4)
INDEX(32, 5)
