/* SPDX-License-Identifier: Apache-2.0
 *
 * index: from row lists to the ascending row list of every (kv head, block slot).
 *   index_count    picks of every (kv head, chunk of rows, slot); pick_masks
 *   index_scan     exclusive sums over chunks and over slots: where each chunk's part of each list begins
 *   index_scatter  sorts a chunk's picks by slot in shared memory, rows ascending, and copies the runs out
 *   index_cut      the parts of each list that the slices' steps have
 *   index_items    cuts these into pieces of work for attend
 * A row's legal picks are distinct, so its lanes bump a warp's counters without meeting, rows one after another: stable
 * without a sort, and no result depends on timing. Slots are worked on in windows, so shared memory bounds no problem.
 */
#include <type_traits>

#include "common.cuh"

#define ILLEGAL 0x7fffffff

/** Slot of pick `id` of gathered row `row`, or ILLEGAL. */
static __device__ __forceinline__ int slot_of_pick(const mobai_sm90_params &p, int id, int row) {
    const int t = (int)query_of_row(p, (uint32_t)row);
    const sequence s = sequence_of_query(p, t);
    return id >= 0 && is_legal_block(p, s, t, id) ? s.first_slot + id : ILLEGAL;
}

/** Picks of one kv head: LANES lanes a row. */
template <int LANES> struct pick_reader {
    static constexpr int ROWS = 32 / LANES; /* of one pass of a warp */
    const mobai_sm90_params &p;
    const int32_t *selection;      /* this lane's rank of this kv head's first query head */
    int window_first, window_size; /* slots of the window, counted from the first slot of the first row's sequence */
    int base_slot;
    int end;              /* of the rows this lane reads; 0 for lanes past the list */
    bool uniform;         /* one sequence owns every row from first to last: the fields below hold for all */
    int n_ids, key_shift; /* query row t sees the sequence's keys 0 .. t + key_shift */

    __device__ pick_reader(const mobai_sm90_params &p_, int g, int begin, int end_, int window) : p(p_) {
        window_first = window * MOBAI_SM90_INDEX_WINDOW;
        window_size = min(MOBAI_SM90_INDEX_WINDOW, p.n_slots - window_first);
        selection = (const int32_t *)p.selection + (int64_t)g * p.group * p.top_k + rank();
        end = rank() < p.top_k ? end_ : 0;
        const int first = (int)query_of_row(p, (uint32_t)begin), last = (int)query_of_row(p, (uint32_t)end_ - 1);
        const sequence s = sequence_of_query(p, first);
        uniform = sequence_of_query(p, last).index == s.index && first >= s.q_begin && last - s.q_begin < s.n_q;
        base_slot = s.first_slot;
        n_ids = uniform ? n_legal_blocks(p, s, last) : p.n_slots;
        key_shift = p.causal ? s.n_k - s.n_q - s.q_begin : 0x7fffffff - p.total_q; /* every key without the mask */
    }
    /** No row has a pick of the window. */
    __device__ __forceinline__ bool is_empty() const { return window_first >= n_ids; }
    /** Slot x of the window, the slots taken as a ring: a window may go on past the last one. */
    __device__ __forceinline__ int slot_at(int x) const {
        const int slot = base_slot + window_first + x;
        return slot < p.n_slots ? slot : slot - p.n_slots;
    }
    static __device__ __forceinline__ int rank() { return (int)threadIdx.x % LANES; }

    /** Picks of N passes of a warp, `row` being this lane's first, as slots counted from the window's first; ILLEGAL
     * ones and those of other windows are not below window_size when taken as unsigned. Only the first of equal picks
     * counts. */
    template <int N> __device__ __forceinline__ void load(int (&slots)[N], int row) const {
        if (uniform) {
            const int64_t step = (int64_t)p.top_k * (p.n_q_heads - p.group);
#pragma unroll
            for (int i = 0; i < N; i++) {
                const int x = row + i * ROWS, t = (int)query_of_row(p, (uint32_t)x);
                slots[i] = -1;
                if (x < end) slots[i] = __ldg(selection + t * step + (int64_t)x * p.top_k);
            }
#pragma unroll
            for (int i = 0; i < N; i++) {
                const int t = (int)query_of_row(p, (uint32_t)(row + i * ROWS));
                const bool legal = (uint32_t)slots[i] < (uint32_t)n_ids && slots[i] * p.block_size <= t + key_shift;
                slots[i] = legal ? slots[i] - window_first : ILLEGAL;
            }
        } else {
#pragma unroll 1
            for (int i = 0; i < N; i++) {
                const int x = row + i * ROWS;
                int slot = ILLEGAL;
                if (x < end) {
                    const int t = (int)query_of_row(p, (uint32_t)x);
                    const int id = __ldg(selection + ((int64_t)t * p.n_q_heads + x - t * p.group) * p.top_k);
                    slot = slot_of_pick(p, id, x);
                    if (slot != ILLEGAL) slot -= base_slot + window_first - (slot < base_slot ? p.n_slots : 0);
                }
#pragma unroll
                for (int j = 0; j < N; j++)
                    if (j == i) slots[j] = slot;
            }
        }
        bool plain = true; /* ascending, then ILLEGAL: nothing is repeated */
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int before = __shfl_up_sync(MOBAI_FULL_WARP, slots[i], 1, LANES);
            if (rank() > 0 && slots[i] != ILLEGAL && slots[i] <= before) plain = false;
        }
        if (__all_sync(MOBAI_FULL_WARP, plain)) return;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int mine = slots[i];
#pragma unroll 1
            for (int x = 1; x < LANES; x++) {
                const int other = __shfl_up_sync(MOBAI_FULL_WARP, mine, (unsigned)x, LANES);
                if (rank() >= x && other == mine) slots[i] = ILLEGAL;
            }
        }
    }
    __device__ __forceinline__ bool counts(int slot) const { return (uint32_t)slot < (uint32_t)window_size; }
};

/** Shared-memory words by address: indices stay 32 bits wide. */
static __device__ __forceinline__ uint32_t load_word(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}
static __device__ __forceinline__ uint32_t load_half(uint32_t at) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory");
    return v;
}
static __device__ __forceinline__ void store_word(uint32_t at, uint32_t v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}
static __device__ __forceinline__ void store_half(uint32_t at, uint32_t v) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"((uint16_t)v) : "memory");
}

/** The picks of a row that are in the index, one bit each. */
template <int LANES>
using mask_of = std::conditional_t<LANES == 8, uint8_t, std::conditional_t<LANES == 16, uint16_t, uint32_t>>;

template <int LANES> static __device__ __forceinline__ void index_count(const mobai_sm90_params &p) {
    extern __shared__ uint32_t counts[];
    const int chunk = (int)blockIdx.x, window = (int)blockIdx.y, g = p.kv_head_begin + (int)blockIdx.z;
    const int begin = chunk * p.index_chunk_rows, end = min(begin + p.index_chunk_rows, p.total_q * p.group);
    const pick_reader<LANES> picks(p, g, begin, end, window);
    for (int i = (int)threadIdx.x; i < picks.window_size; i += (int)blockDim.x)
        counts[i] = 0;
    if (chunk == 0 && window == 0 && threadIdx.x == 0) ((uint32_t *)p.tickets)[blockIdx.z] = 0;
    __syncthreads();
    constexpr int ROWS = pick_reader<LANES>::ROWS, PASSES = 8, WARP_ROWS = PASSES * ROWS;
    const bool marks = p.pick_masks && window == 0; /* the first window's groups know every legal pick */
    const int lane = (int)threadIdx.x & 31;
    mask_of<LANES> *masks = (mask_of<LANES> *)p.pick_masks + (int64_t)g * p.total_q * p.group;
    for (int base = begin + ((int)threadIdx.x >> 5) * WARP_ROWS; base < end && (marks || !picks.is_empty());
         base += ((int)blockDim.x >> 5) * WARP_ROWS) {
        int slots[PASSES];
        const int row = base + lane / LANES;
        picks.load(slots, row);
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            if (picks.counts(slots[i])) atomicAdd(counts + slots[i], 1u);
            if (!marks) continue;
            const uint32_t legal = __ballot_sync(MOBAI_FULL_WARP, slots[i] != ILLEGAL) >> (lane & -LANES);
            if (picks.rank() == 0 && row + i * ROWS < end) masks[row + i * ROWS] = (mask_of<LANES>)legal;
        }
    }
    __syncthreads();
    uint32_t *out = (uint32_t *)p.scratch + ((int64_t)blockIdx.z * p.n_index_chunks + chunk) * p.n_slots;
    for (int i = (int)threadIdx.x; i < picks.window_size; i += (int)blockDim.x)
        out[picks.slot_at(i)] = counts[i];
}

/* A work-group sums the chunks of 1024 slots; the last one of a kv head to be done sums the slots. */
extern "C" __global__ void __launch_bounds__(1024) index_scan(const __grid_constant__ mobai_sm90_params p) {
    constexpr int BATCH = 16;
    __shared__ bool is_last;
    const int g = p.kv_head_begin + (int)blockIdx.y, own_slot = (int)(blockIdx.x * 1024 + threadIdx.x);
    int64_t *offsets = (int64_t *)p.index_offsets + (int64_t)g * (p.n_slots + 1);
    uint32_t own = 0;
    if (own_slot < p.n_slots) {
        uint32_t *c = (uint32_t *)p.scratch + (int64_t)blockIdx.y * p.n_index_chunks * p.n_slots + own_slot;
        for (int i = 0; i < p.n_index_chunks; i += BATCH) {
            uint32_t v[BATCH];
#pragma unroll
            for (int j = 0; j < BATCH; j++)
                v[j] = i + j < p.n_index_chunks ? c[(int64_t)(i + j) * p.n_slots] : 0;
#pragma unroll
            for (int j = 0; j < BATCH; j++) {
                if (i + j < p.n_index_chunks) c[(int64_t)(i + j) * p.n_slots] = own;
                own += v[j];
            }
        }
    }
    if (gridDim.x > 1) {
        if (own_slot < p.n_slots) offsets[own_slot] = own;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) is_last = atomicAdd((uint32_t *)p.tickets + blockIdx.y, 1u) == gridDim.x - 1;
        __syncthreads();
        if (!is_last) return;
        __threadfence();
    }
    int64_t carry = 0;
    for (int base = 0; base < p.n_slots; base += 1024) {
        const int slot = base + (int)threadIdx.x;
        uint32_t n = own;
        if (gridDim.x > 1) n = slot < p.n_slots ? (uint32_t)__ldcg((const long long *)offsets + slot) : 0;
        uint32_t total;
        const uint32_t before = scan_1024(n, &total);
        if (slot < p.n_slots) offsets[slot] = carry + before;
        carry += total;
    }
    if (threadIdx.x == 0) offsets[p.n_slots] = carry;
}

/* A work-group takes a round of WARPS * PASSES passes at a time. Shared memory: u32 base[window], the position of the
   next entry of each list; u32 shift[window], from a place in `sorted` to a position; u16 places[WARPS][window], even;
   u32 sorted[WARPS * PASSES * 32]: slot << 16 | row of the round << RANK_BITS | rank. */
template <int LANES, int RANK_BITS> static __device__ __forceinline__ void index_scatter(const mobai_sm90_params &p) {
    constexpr int WARPS = MOBAI_SM90_SCATTER_WARPS, PASSES = MOBAI_SM90_SCATTER_PASSES, ROWS = 32 / LANES,
                  WARP_ROWS = PASSES * ROWS;
    extern __shared__ uint32_t shared[];
    __shared__ uint32_t warp_sums[WARPS];
    const int thread = (int)threadIdx.x, warp = thread >> 5, lane = thread & 31;
    const int chunk = (int)blockIdx.x, window = (int)blockIdx.y, g = p.kv_head_begin + (int)blockIdx.z;
    const int begin = chunk * p.index_chunk_rows, end = min(begin + p.index_chunk_rows, p.total_q * p.group);
    const pick_reader<LANES> picks(p, g, begin, end, window);
    if (picks.is_empty()) return;
    const int n = picks.window_size, stride = (n + 1) & ~1;
    uint32_t *base = shared;
    uint16_t *places = (uint16_t *)(base + 2 * stride);
    const uint32_t shift = shared_address(base + stride), mine = shared_address(places + warp * stride),
                   sorted = shared_address(places + WARPS * stride);
    uint32_t *map = (uint32_t *)p.places + (int64_t)g * p.total_q * p.group * p.top_k + lane % LANES;
    uint32_t *rows = (uint32_t *)p.index_rows + g * p.index_row_stride;
    uint16_t *ranks = p.index_ranks ? (uint16_t *)p.index_ranks + g * p.index_row_stride : nullptr;
    {
        const uint32_t *before =
            (const uint32_t *)p.scratch + ((int64_t)blockIdx.z * p.n_index_chunks + chunk) * p.n_slots;
        const int64_t *offsets = (const int64_t *)p.index_offsets + (int64_t)g * (p.n_slots + 1);
        for (int i = thread; i < stride; i += WARPS * 32) {
            const int slot = picks.slot_at(i);
            base[i] = i < n ? (uint32_t)offsets[slot] + before[slot] : 0;
        }
    }

    for (int round = begin; round < end; round += WARPS * WARP_ROWS) {
        for (int i = thread; i < WARPS * stride / 2; i += WARPS * 32)
            ((uint32_t *)places)[i] = 0;
        const int row = round + warp * WARP_ROWS + lane / LANES;
        int slots[PASSES]; /* and then slot | number among the warp's picks of the slot << 16, -1 for none */
        picks.load(slots, row);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            const int turn = picks.counts(slots[i]) ? lane / LANES : ROWS;
            const uint32_t at = mine + 2 * (uint32_t)slots[i];
            uint32_t number = 0;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (turn == r) {
                    number = load_half(at);
                    store_half(at, number + 1);
                }
                __syncwarp();
            }
            slots[i] = turn < ROWS ? (int)((uint32_t)slots[i] | number << 16) : -1;
        }
        __syncthreads();

        /* counts become each warp's first place of a slot, two slots a thread */
        uint32_t total = 0;
        for (int first = 0; first < stride; first += WARPS * 64) {
            const int slot = first + 2 * thread;
            uint32_t sum = 0; /* of both slots, 16 bits each: a round has fewer picks */
            if (slot < stride)
#pragma unroll
                for (int w = 0; w < WARPS; w++)
                    sum += *(uint32_t *)(places + w * stride + slot);
            const uint32_t both = (sum & 0xffff) + (sum >> 16);
            uint32_t inclusive = both;
#pragma unroll
            for (int i = 1; i < 32; i <<= 1) {
                uint32_t other = __shfl_up_sync(MOBAI_FULL_WARP, inclusive, (unsigned)i);
                if (lane >= i) inclusive += other;
            }
            __syncthreads();
            if (lane == 31) warp_sums[warp] = inclusive;
            __syncthreads();
            uint32_t place = total + inclusive - both;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                if (w < warp) place += warp_sums[w];
                total += warp_sums[w];
            }
            if (slot < stride) {
                uint2 at = *(uint2 *)(base + slot);
                const uint32_t next = place + (sum & 0xffff);
                *(uint2 *)(base + stride + slot) = make_uint2(at.x - place, at.y - next);
                *(uint2 *)(base + slot) = make_uint2(at.x + (sum & 0xffff), at.y + (sum >> 16));
                uint32_t running = place | next << 16;
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    uint32_t *pair = (uint32_t *)(places + w * stride + slot);
                    const uint32_t count = *pair;
                    *pair = running;
                    running += count;
                }
            }
        }
        __syncthreads();

        const uint32_t code = (uint32_t)((row - round) << RANK_BITS | lane % LANES);
        uint32_t *pick = map + (int64_t)row * p.top_k;
#pragma unroll
        for (int i = 0; i < PASSES; i++) {
            if (slots[i] >= 0) {
                const uint32_t slot = (uint32_t)slots[i] & 0xffff;
                const uint32_t place = load_half(mine + 2 * slot) + ((uint32_t)slots[i] >> 16);
                store_word(sorted + 4 * place, slot << 16 | (code + (uint32_t)(i * ROWS << RANK_BITS)));
                if (p.places) *pick = place + load_word(shift + 4 * slot);
            }
            pick += ROWS * p.top_k;
        }
        __syncthreads();
        for (uint32_t i = (uint32_t)thread; i < total; i += WARPS * 32) {
            const uint32_t e = load_word(sorted + 4 * i), to = i + load_word(shift + 4 * (e >> 16));
            rows[to] = (uint32_t)round + ((e & 0xffff) >> RANK_BITS);
            if (ranks) ranks[to] = (uint16_t)(e & ((1u << RANK_BITS) - 1));
        }
        __syncthreads();
    }
}

#define INDEX(LANES, RANK_BITS)                                                                                        \
    extern "C" __global__ void __launch_bounds__(512, 2)                                                               \
        index_count_k##LANES(const __grid_constant__ mobai_sm90_params p) {                                            \
        index_count<LANES>(p);                                                                                         \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(MOBAI_SM90_SCATTER_WARPS * 32, 2)                                     \
        index_scatter_k##LANES(const __grid_constant__ mobai_sm90_params p) {                                          \
        index_scatter<LANES, RANK_BITS>(p);                                                                            \
    }
INDEX(8, 3)
INDEX(16, 4)
INDEX(32, 5)

/* --------------------------------------------------------------------------------------------- work items -- */

/** Cuts every slot's list to the steps of the query ranges: list x of a kv head and range is step x % n_item_steps of
 * slot x / n_item_steps. */
extern "C" __global__ void __launch_bounds__(128) index_cut(const __grid_constant__ mobai_sm90_params p) {
    const int x = (int)(blockIdx.x * 128 + threadIdx.x), g = p.kv_head_begin + (int)blockIdx.y;
    if (x >= p.n_slots * p.n_item_steps) return;
    const int slot = x / p.n_item_steps, step = x - slot * p.n_item_steps;
    const int64_t range_begin = p.query_begin + (int64_t)blockIdx.z * p.range_queries;
    const int64_t range_end = min(range_begin + p.range_queries, (int64_t)p.query_end) * p.group;
    const int64_t row_begin = range_begin * p.group + (int64_t)step * p.item_step_rows;
    const int64_t row_end = step == p.n_item_steps - 1 ? range_end : min(row_begin + p.item_step_rows, range_end);
    const int64_t *offsets = (const int64_t *)p.index_offsets + (int64_t)g * (p.n_slots + 1) + slot;
    const int64_t first = offsets[0], n = offsets[1] - first;
    const uint32_t *rows = (const uint32_t *)p.index_rows + g * p.index_row_stride + first;
    int64_t begin = 0, end = n, masked = 0;
    if (n > 0) { /* most lists are all in one step */
        const int64_t row0 = __ldg(rows), row1 = __ldg(rows + n - 1);
        if (row0 < row_begin) begin = row1 < row_begin ? n : rows_below(rows, n, row_begin);
        if (row1 >= row_end) end = row0 >= row_end ? 0 : rows_below(rows, n, row_end);
        end = max(begin, end);
    }

    const sequence s = sequence_of_slot(p, slot);
    const int key = (slot - s.first_slot) * p.block_size;
    if (min(p.block_size, s.n_k - key) < p.block_size) {
        masked = n;
    } else if (p.causal && end > begin) {
        /* only rows of the block's own queries, at most block_size * group of them and as a rule all */
        const int64_t own = min(n, (int64_t)p.block_size * p.group);
        const int64_t bound = ((int64_t)p.block_size - 1 - (s.n_k - s.n_q - s.q_begin - key)) * p.group;
        if (begin < own) {
            const int64_t all = bound - (int64_t)__ldg(rows);
            const bool are_all = all > 0 && all <= own && (int64_t)__ldg(rows + all - 1) == bound - 1;
            masked = are_all ? all : rows_below(rows, own, bound);
        }
    }
    const int64_t list = ((int64_t)blockIdx.z * p.range_kv_heads + blockIdx.y) * p.n_list_capacity + x;
    ((mobai_sm90_list *)p.item_lists)[list] = {first + begin, (uint32_t)(end - begin), 0,
                                               (uint32_t)max((int64_t)0, min(masked, end) - begin), 0};
}

/** How a list is cut: `n_pieces` pieces of `per` row tiles, the last one shorter. */
struct cut_list {
    uint32_t n, per, n_pieces;

    __device__ __forceinline__ cut_list(uint32_t n_rows, int most_tiles) : n(n_rows), per(0), n_pieces(0) {
        const uint32_t tiles = (n + 63) >> 6, pieces = (tiles + most_tiles - 1) / most_tiles;
        if (pieces == 0) return;
        per = (tiles + pieces - 1) / pieces;
        n_pieces = (tiles + per - 1) / per;
    }
    __device__ __forceinline__ uint32_t rows_of(uint32_t piece) const { return min(n - piece * per * 64, per * 64); }
};

/* Pieces are ordered by steps, whose Q stays in the L2 cache, then long ones first: the last ones to be taken should be
   short. Places within a bucket are taken as they come: the order of work changes no result. */
extern "C" __global__ void __launch_bounds__(1024, 1) index_items(const __grid_constant__ mobai_sm90_params p) {
    constexpr int CLASSES = MOBAI_SM90_ITEM_CLASSES, BUCKETS = CLASSES * MOBAI_SM90_ITEM_STEPS;
    constexpr int PER_THREAD = 4, PASS = 1024 * PER_THREAD;
    static_assert(BUCKETS <= 1024, "a bucket is a thread's");
    __shared__ int place[BUCKETS];
    const int n_lists = p.n_slots * p.n_item_steps;
    const int64_t head = (int64_t)blockIdx.y * p.range_kv_heads + blockIdx.x;
    mobai_sm90_item *items = (mobai_sm90_item *)p.items + head * p.n_item_capacity;
    mobai_sm90_list *lists = (mobai_sm90_list *)p.item_lists + head * p.n_list_capacity;
    if (threadIdx.x < BUCKETS) place[threadIdx.x] = 0;
    __syncthreads();
    auto bucket = [&](int list, uint32_t n_rows) {
        const int tiles = (int)((n_rows + 63) >> 6);
        return list % p.n_item_steps * CLASSES + (p.item_tiles - tiles) * CLASSES / p.item_tiles;
    };

    for (int base = (int)threadIdx.x; base < n_lists; base += PASS) {
        uint32_t n[PER_THREAD];
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++)
            n[i] = base + i * 1024 < n_lists ? lists[base + i * 1024].n_rows : 0;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            const cut_list c(n[i], p.item_tiles);
            if (c.n_pieces == 0) continue;
            if (c.n_pieces > 1) atomicAdd(place + bucket(base + i * 1024, c.per * 64), (int)c.n_pieces - 1);
            atomicAdd(place + bucket(base + i * 1024, c.rows_of(c.n_pieces - 1)), 1);
        }
    }
    __syncthreads();
    uint32_t n_items;
    const uint32_t first = scan_1024(threadIdx.x < BUCKETS ? (uint32_t)place[threadIdx.x] : 0, &n_items);
    if (threadIdx.x < BUCKETS) place[threadIdx.x] = (int)first;
    if (threadIdx.x == 0) ((mobai_sm90_item_count *)p.item_counts)[head] = {0, (int)n_items};

    uint32_t n_partials = 0;
    const int per_thread = n_lists <= 1024 ? 1 : PER_THREAD; /* few lists: all threads have one */
    for (int base = 0; base < n_lists; base += PASS) {
        const int begin = base + (int)threadIdx.x * per_thread, end = min(begin + per_thread, n_lists);
        mobai_sm90_list list[PER_THREAD];
        uint32_t sum = 0, total;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            list[i] = {0, 0, 0, 0, 0};
            if (begin + i < end) list[i] = lists[begin + i];
            sum += list[i].n_rows;
        }
        uint32_t first_partial = n_partials + scan_1024(sum, &total);
        n_partials += total;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            const int x = begin + i;
            if (x < end) lists[x].first_partial = first_partial;
            const cut_list c(list[i].n_rows, p.item_tiles);
            if (c.n_pieces > 0) {
                const int slot = x / p.n_item_steps;
                const sequence s = sequence_of_slot(p, slot);
                const int key = (slot - s.first_slot) * p.block_size;
                mobai_sm90_item item;
                item.key_row = s.k_begin + key;
                item.n_keys = min(p.block_size, s.n_k - key);
                item.sequence = s.index;
                item.pos_shift = s.n_k - s.n_q - s.q_begin - key;
                for (uint32_t j = 0; j < c.n_pieces; j++) {
                    const uint32_t from = j * c.per * 64, n_rows = c.rows_of(j), masked = list[i].n_masked;
                    item.first = list[i].first + from;
                    item.first_partial = first_partial + from;
                    item.n_rows = (uint16_t)n_rows;
                    item.n_masked = (uint16_t)(masked > from ? min(masked - from, n_rows) : 0);
                    items[atomicAdd(place + bucket(x, n_rows), 1)] = item;
                }
            }
            first_partial += list[i].n_rows;
        }
    }
}
