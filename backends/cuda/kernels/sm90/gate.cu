/* SPDX-License-Identifier: Apache-2.0
 *
 * gate: scores of query rows against centroids and exact top-k, fused.
 *
 * A work-group has CONSUMERS warpgroups of 64 query rows each and one producer warpgroup that copies Q tiles and
 * 128-centroid tiles into shared memory, most recent blocks first. A consumer multiplies (wgmma, Q in registers) and
 * filters the 128 scores of each row by the row's threshold: survivors go to a list of (score, slot) in shared memory.
 * The threshold starts as a lower bound from group maxima of the first tile and becomes the exact k-th best whenever
 * lists are compacted. Compaction finds the k-th best score by sorting values only (k <= 8) or by bisection, keeps
 * what is above it, and settles equal scores by block id, so the result is spec.md's total order exactly. NaN scores
 * fail every comparison and are never listed.
 *
 * A row's list is four sublists, one of each lane that holds its scores, so that appending needs no other lane; they
 * interleave, and after compaction entries 0 .. count - 1 lie side by side. Two lanes compact a row.
 */
#include "common.cuh"
#include "wgmma.cuh"

#define TILE_N 128 /* centroids of a tile */
#define STAGES 2   /* centroid tiles in shared memory */

/** What one query row asks for, in terms of its sequence's first slot and its number of legal blocks. */
struct gate_row {
    int first_slot, legal;

    __device__ __forceinline__ int n_sink(const mobai_sm90_params &p) const { return min(p.n_sink, legal); }
    __device__ __forceinline__ int n_local(const mobai_sm90_params &p) const {
        return min(p.causal ? max(p.n_local, 1) : 0, legal - n_sink(p));
    }
    /** Routed blocks wanted; candidates are slots begin() .. end() - 1. */
    __device__ __forceinline__ int need(const mobai_sm90_params &p) const { return p.top_k - n_sink(p) - n_local(p); }
    __device__ __forceinline__ int begin(const mobai_sm90_params &p) const { return first_slot + n_sink(p); }
    __device__ __forceinline__ int end(const mobai_sm90_params &p) const {
        return need(p) > 0 ? first_slot + legal - n_local(p) : begin(p);
    }
};

static __device__ __forceinline__ gate_row row_of(const mobai_sm90_params &p, int t) {
    if (t >= p.total_q) return {0, 0};
    sequence s = sequence_of_query(p, t);
    return {s.first_slot, n_legal_blocks(p, s, t)};
}

/** Slots that may be candidates of rows [t0, t1) of one work-group tile: a bound by its first and last row. */
static __device__ __forceinline__ int2 candidate_range(const mobai_sm90_params &p, int t0, int t1) {
    t1 = min(t1, p.total_q);
    int need = p.top_k - p.n_sink - (p.causal ? max(p.n_local, 1) : 0);
    if (t0 >= t1 || need <= 0) return make_int2(0, 0);
    sequence a = sequence_of_query(p, t0), b = sequence_of_query(p, t1 - 1);
    if (a.index == b.index && t0 >= b.q_begin + b.n_q) return make_int2(0, 0);
    int legal = n_legal_blocks(p, b, min(t1, b.q_begin + b.n_q) - 1);
    int end = b.first_slot + legal - (p.causal ? max(p.n_local, 1) : 0);
    if (a.index != b.index) end = max(end, b.first_slot);
    int begin = a.first_slot + p.n_sink;
    return make_int2(begin, max(begin, min(end, p.n_slots)));
}

static __device__ __forceinline__ void order(float &a, float &b) {
    float high = fmaxf(a, b), low = fminf(a, b);
    a = high;
    b = low;
}
/** Sorts a bitonic sequence, greatest first. */
template <int N> static __device__ __forceinline__ void sort_bitonic(float *v) {
#pragma unroll
    for (int step = N / 2; step > 0; step >>= 1)
#pragma unroll
        for (int i = 0; i < N; i++)
            if (!(i & step)) order(v[i], v[i + step]);
}
/** Sorts 8 or 16 values, greatest first. */
template <int N> static __device__ __forceinline__ void sort_values(float *v) {
    if constexpr (N == 16) {
        sort_values<8>(v);
        sort_values<8>(v + 8);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = v[8 + i];
            v[8 + i] = v[15 - i];
            v[15 - i] = x;
        }
        sort_bitonic<16>(v);
    } else {
        order(v[0], v[2]), order(v[1], v[3]), order(v[4], v[6]), order(v[5], v[7]);
        order(v[0], v[4]), order(v[1], v[5]), order(v[2], v[6]), order(v[3], v[7]);
        order(v[0], v[1]), order(v[2], v[3]), order(v[4], v[5]), order(v[6], v[7]);
        order(v[2], v[4]), order(v[3], v[5]);
        order(v[1], v[4]), order(v[3], v[6]);
        order(v[1], v[2]), order(v[3], v[4]), order(v[5], v[6]);
    }
}
/** a becomes the N greatest of sorted a and sorted b, sorted. */
template <int N> static __device__ __forceinline__ void merge_best(float *a, const float *b) {
#pragma unroll
    for (int i = 0; i < N; i++) a[i] = fmaxf(a[i], b[N - 1 - i]);
    sort_bitonic<N>(a);
}
/** merge_best with the lane that differs in `lane_mask`. */
template <int N> static __device__ __forceinline__ void merge_across(float *a, int lane_mask) {
    float b[N];
#pragma unroll
    for (int i = 0; i < N; i++) b[i] = __shfl_xor_sync(MOBAI_FULL_WARP, a[i], lane_mask);
    merge_best<N>(a, b);
}
/** a[n - 1] for 1 <= n <= N. */
template <int N> static __device__ __forceinline__ float nth(const float *a, int n) {
    float v = a[0];
#pragma unroll
    for (int i = 1; i < N; i++) v = n > i ? a[i] : v;
    return v;
}

/** Order-preserving integer of a float that is not NaN; -0 and +0 alike. */
static __device__ __forceinline__ int ordered_int(float x) {
    int b = __float_as_int(x + 0.0f);
    return b < 0 ? b ^ 0x7fffffff : b;
}
static __device__ __forceinline__ float ordered_float(int b) { return __int_as_float(b < 0 ? b ^ 0x7fffffff : b); }

/** What compaction leaves of a row: its count, and the worst score kept or -inf while there are fewer than needed. */
struct cut {
    float worst;
    int count;
};

/** The lists of one warp's 16 rows, for up to K routed blocks. */
template <int K> struct row_lists {
    static constexpr int SUB = K == 8 ? 8 : 16;      /* entries of a sublist */
    static constexpr int PER_LANE = 2 * SUB;         /* entries a lane compacts */
    static constexpr int STRIDE = 4 * SUB * 8 + 32;  /* bytes of a row: lane pairs reading 16 rows meet no bank twice */
    uint32_t base; /* shared address */
    int row, half; /* of this lane when compacting: sublists 2 half and 2 half + 1 of `row` */

    /** Entry `i` of a list, which is entry i / 4 of sublist i % 4. */
    __device__ __forceinline__ uint32_t entry(int r, int i) const { return base + (uint32_t)(r * STRIDE + i * 8); }
    __device__ __forceinline__ static void put(uint32_t at, float score, int slot) {
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(__float_as_uint(score)), "r"(slot) : "memory");
    }

    /** The need-th greatest of the row's scores, of which there are at least that many; -inf pads `mine`. */
    static __device__ __forceinline__ float threshold(float *mine, int count, int need, bool wide) {
        if constexpr (K < 32) {
            sort_values<K>(mine);
            if (wide) {
                sort_values<K>(mine + K);
                merge_best<K>(mine, mine + K);
            }
            merge_across<K>(mine, 1);
            return nth<K>(mine, need); /* -inf when there are fewer */
        } else {
            int low = 0x7fffffff, high = (int)0x80000000;
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) {
                const int b = ordered_int(mine[i]);
                low = min(low, b), high = max(high, b);
            }
            low = min(low, __shfl_xor_sync(MOBAI_FULL_WARP, low, 1));
            high = max(high, __shfl_xor_sync(MOBAI_FULL_WARP, high, 1));
            if (count < need) low = high = ordered_int(-INFINITY);
            while (__any_sync(MOBAI_FULL_WARP, low < high)) {
                const int middle = (int)(((int64_t)low + (int64_t)high + 1) >> 1);
                const float m = ordered_float(middle);
                int n = 0;
#pragma unroll
                for (int i = 0; i < PER_LANE; i++) n += mine[i] >= m ? 1 : 0;
                n += __shfl_xor_sync(MOBAI_FULL_WARP, n, 1);
                if (low < high) {
                    if (n >= need)
                        low = middle;
                    else
                        high = middle - 1;
                    if (n == need) high = low;
                }
            }
            return ordered_float(low);
        }
    }

    /**
     * Cuts every row's list to its best min(count, need) entries. counts: entries of the lane's two sublists. Out of
     * line: it is rare and used in several places.
     */
    static __device__ __noinline__ cut compact(row_lists lists, int counts0, int counts1, int need) {
        float score[PER_LANE], sorted[PER_LANE]; /* NaN where there is none */
        int slot[PER_LANE];
        const int longest = max(counts0, counts1);
        const bool wide = __any_sync(MOBAI_FULL_WARP, longest > SUB / 2);
#pragma unroll
        for (int i = 0; i < SUB; i++) {
            score[2 * i] = score[2 * i + 1] = NAN;
            slot[2 * i] = slot[2 * i + 1] = 0;
            if (i < longest && (i < SUB / 2 || wide)) {
                float x, y;
                asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                             : "=f"(x), "=r"(slot[2 * i]), "=f"(y), "=r"(slot[2 * i + 1])
                             : "r"(lists.entry(lists.row, 4 * i + 2 * lists.half))
                             : "memory");
                if (i < counts0) score[2 * i] = x;
                if (i < counts1) score[2 * i + 1] = y;
            }
        }
        int count = counts0 + counts1;
        count += __shfl_xor_sync(MOBAI_FULL_WARP, count, 1);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) sorted[i] = fmaxf(score[i], -INFINITY);
        const float t = threshold(sorted, count, need, wide);
        uint32_t keep = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (score[i] >= t) keep |= 1u << i;
        int kept = __popc(keep);
        kept += __shfl_xor_sync(MOBAI_FULL_WARP, kept, 1);
        const bool tied = kept > need;
        if (__any_sync(MOBAI_FULL_WARP, tied)) {
            /* of the entries equal to t only those with the greatest slots stay: their least slot by bisection */
            int above = 0;
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) above += score[i] > t ? 1 : 0;
            above += __shfl_xor_sync(MOBAI_FULL_WARP, above, 1);
            int low = 0, high = tied ? 0x7ffffffe : 0;
            while (__any_sync(MOBAI_FULL_WARP, low < high)) {
                const int middle = low + ((high - low + 1) >> 1);
                int n = 0;
#pragma unroll
                for (int i = 0; i < PER_LANE; i++) n += slot[i] >= middle && score[i] == t ? 1 : 0;
                n += __shfl_xor_sync(MOBAI_FULL_WARP, n, 1);
                if (low < high) {
                    if (n >= need - above)
                        low = middle;
                    else
                        high = middle - 1;
                }
            }
#pragma unroll
            for (int i = 0; i < PER_LANE; i++)
                if (score[i] == t && slot[i] < low) keep &= ~(1u << i);
        }
        const int mine = __popc(keep), other = __shfl_xor_sync(MOBAI_FULL_WARP, mine, 1);
        uint32_t at = lists.entry(lists.row, lists.half ? other : 0);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (keep >> i & 1) {
                put(at, score[i], slot[i]);
                at += 8;
            }
        __syncwarp();
        return {count >= need ? t : -INFINITY, mine + other};
    }
};

/** Least float above x; NaN-free input. */
static __device__ __forceinline__ float next_up(float x) {
    return x == INFINITY ? x : ordered_float(ordered_int(x) + 1);
}

template <int D, int CONSUMERS, int K> struct gate_layout {
    static constexpr int Q_BYTES = 64 * D * 2, TILE_BYTES = TILE_N * D * 2;
    static constexpr int STAGING = 16 * 128 * 8; /* pairs of one row half of a warpgroup */
    static constexpr int LISTS = 64 * row_lists<K>::STRIDE;
    static constexpr int Q_AT = STAGES * TILE_BYTES, STAGING_AT = Q_AT + CONSUMERS * Q_BYTES,
                         LISTS_AT = STAGING_AT + CONSUMERS * STAGING, BYTES = LISTS_AT + CONSUMERS * LISTS + 1024;
};

template <int BF16, int D, int CONSUMERS, int K, int VEC>
static __device__ __forceinline__ void gate(const mobai_sm90_params &p) {
    using layout = gate_layout<D, CONSUMERS, K>;
    constexpr int CHUNKS = D / 8; /* 16-byte pieces of a row */
    extern __shared__ char raw[];
    __shared__ __align__(8) uint64_t barriers[2 * STAGES + 2 * CONSUMERS];
    const uint32_t shared = (shared_address(raw) + 1023) & ~1023u;
    const uint32_t full = shared_address(barriers), empty = full + 8 * STAGES, q_full = empty + 8 * STAGES,
                   q_empty = q_full + 8 * CONSUMERS;
    const int thread = (int)threadIdx.x & 127;
    const int warpgroup = __shfl_sync(MOBAI_FULL_WARP, (int)threadIdx.x >> 7, 0);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(full + 8 * i, 128);
            mbarrier_init(empty + 8 * i, CONSUMERS * 4);
        }
        for (int i = 0; i < CONSUMERS; i++) {
            mbarrier_init(q_full + 8 * i, 128);
            mbarrier_init(q_empty + 8 * i, 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();

    constexpr int ROWS = CONSUMERS * 64;
    const int n_heads = p.n_slice_kv_heads * p.group, first_head = p.kv_head_begin * p.group;
    const int n_row_tiles = (p.total_q + ROWS - 1) / ROWS;
    const int n_tiles = n_row_tiles * n_heads;
    int stage = 0, phase = 0, q_phase = 0;

    if (warpgroup == CONSUMERS) {
        if constexpr (CONSUMERS == 3)
            asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        else
            asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        uint32_t pending = 0; /* barrier of the copies in flight */
        auto flush = [&]() {
            if (!pending) return;
            copy_wait<0>();
            async_proxy_fence();
            mbarrier_arrive(pending);
            pending = 0;
        };
        /* The newest copies stay in flight while the one before is handed over. Their barrier must be signalled
           before a wait that may depend on it. */
        auto submit = [&](uint32_t barrier) {
            copy_commit();
            if (pending) {
                copy_wait<1>();
                async_proxy_fence();
                mbarrier_arrive(pending);
            }
            pending = barrier;
        };
        auto wait = [&](uint32_t barrier, int parity) {
            if (mbarrier_test(barrier, parity)) return;
            flush();
            mbarrier_wait(barrier, parity);
        };
        for (int tile = (int)blockIdx.x; tile < n_tiles; tile += (int)gridDim.x) {
            const int t0 = (n_row_tiles - 1 - tile / n_heads) * ROWS, h = first_head + tile % n_heads;
            const int2 range = candidate_range(p, t0, t0 + ROWS);
            if (range.x >= range.y) continue;
            for (int c = 0; c < CONSUMERS; c++) {
                wait(q_empty + 8 * c, q_phase ^ 1);
                const uint32_t to = shared + layout::Q_AT + c * layout::Q_BYTES;
#pragma unroll 4
                for (int i = thread; i < 64 * CHUNKS; i += 128) {
                    int r = i / CHUNKS, chunk = i % CHUNKS;
                    int t = min(t0 + c * 64 + r, p.total_q - 1);
                    int64_t at = (int64_t)t * p.q.token_stride + h * p.q.head_stride + chunk * 8;
                    if (p.q.batch_shift) at += batch_offset(p.q, sequence_number(p, t));
                    gather_chunk<VEC>(to + (chunk >> 3) * 8192 + r * 128 + (((chunk & 7) ^ (r & 7)) << 4),
                                      (const uint16_t *)p.q.address + at, true, MOBAI_L2_EVICT_FIRST);
                }
                submit(q_full + 8 * c);
            }
            q_phase ^= 1;
            const uint16_t *centroids = (const uint16_t *)p.centroids + (int64_t)(h / p.group) * p.n_slots * D;
            for (int top = range.y; top > range.x; top -= TILE_N) {
                wait(empty + 8 * stage, phase ^ 1);
                const uint32_t to = shared + stage * layout::TILE_BYTES;
#pragma unroll 4
                for (int i = thread; i < TILE_N * CHUNKS; i += 128) {
                    int r = i / CHUNKS, chunk = i % CHUNKS;
                    int slot = max(top - TILE_N + r, 0);
                    copy_async(to + (chunk >> 3) * (TILE_N * 128) + r * 128 + (((chunk & 7) ^ (r & 7)) << 4),
                               centroids + (int64_t)slot * D + chunk * 8, 16, MOBAI_L2_EVICT_LAST);
                }
                submit(full + 8 * stage);
                if (++stage == STAGES) stage = 0, phase ^= 1;
            }
        }
        flush();
    } else {
        if constexpr (CONSUMERS == 3)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 152;");
        else
            asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
        const int lane = thread & 31, warp = thread >> 5, quad_row = lane >> 2, quad = lane & 3;
        const uint32_t q_at = shared + layout::Q_AT + warpgroup * layout::Q_BYTES;
        const uint32_t staging = shared + layout::STAGING_AT + warpgroup * layout::STAGING + warp * 16 * 256 + lane * 8;
        row_lists<K> lists;
        lists.base = shared + layout::LISTS_AT + warpgroup * layout::LISTS + warp * 16 * row_lists<K>::STRIDE;
        lists.row = lane >> 1;
        lists.half = lane & 1;
        for (int tile = (int)blockIdx.x; tile < n_tiles; tile += (int)gridDim.x) {
            const int t0 = (n_row_tiles - 1 - tile / n_heads) * ROWS, h = first_head + tile % n_heads;
            const int2 range = candidate_range(p, t0, t0 + ROWS);
            const int warp_row = t0 + warpgroup * 64 + warp * 16;
            const gate_row owned = row_of(p, warp_row + lists.row); /* the row this lane compacts and writes */
            int count = 0;                                          /* entries of the owned row's list, compacted */
            if (range.x < range.y) {
                /* candidates and thresholds of the two rows of this lane's accumulators */
                int begin[2], end[2];
                float bound[2] = {-INFINITY, -INFINITY};
                int n_listed[2] = {0, 0}; /* in this lane's sublists of those rows */
                /* compacts all lists, tightens the bounds: a score that equals a full list's worst passes if `ties` */
                auto compact = [&](bool ties) {
                    __syncwarp();
                    const int packed = n_listed[0] | n_listed[1] << 16;
                    const int from = (lists.row & 7) * 4 + 2 * lists.half, shift = lists.row >> 3 << 4;
                    const int a = __shfl_sync(MOBAI_FULL_WARP, packed, from) >> shift & 0xffff;
                    const int b = __shfl_sync(MOBAI_FULL_WARP, packed, from + 1) >> shift & 0xffff;
                    const cut left = row_lists<K>::compact(lists, a, b, owned.need(p));
                    count = left.count;
                    const float worst = ties || left.worst == -INFINITY ? left.worst : next_up(left.worst);
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const int source = (quad_row + 8 * r) * 2;
                        bound[r] = fmaxf(bound[r], __shfl_sync(MOBAI_FULL_WARP, worst, source));
                        n_listed[r] = (__shfl_sync(MOBAI_FULL_WARP, count, source) + 3 - quad) >> 2;
                    }
                };
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int source = (quad_row + 8 * r) * 2;
                    begin[r] = __shfl_sync(MOBAI_FULL_WARP, owned.begin(p), source);
                    end[r] = __shfl_sync(MOBAI_FULL_WARP, owned.end(p), source);
                }
                const int need_most = p.top_k - p.n_sink - (p.causal ? max(p.n_local, 1) : 0);
                uint32_t a[D / 16][4];
                mbarrier_wait(q_full + 8 * warpgroup, q_phase);
                q_phase ^= 1;
#pragma unroll
                for (int k = 0; k < D / 16; k++) {
                    int r = warp * 16 + (lane & 15), chunk = 2 * k + (lane >> 4);
                    uint32_t at = q_at + (chunk >> 3) * 8192 + r * 128 + (((chunk & 7) ^ (r & 7)) << 4);
                    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(a[k][0]), "=r"(a[k][1]), "=r"(a[k][2]), "=r"(a[k][3])
                                 : "r"(at)
                                 : "memory");
                }
                for (int top = range.y; top > range.x; top -= TILE_N) {
                    const int low = top - TILE_N; /* slot of column 0; may be negative */
                    mbarrier_wait(full + 8 * stage, phase);
                    float s[64];
                    const uint64_t b = wgmma_descriptor(shared + stage * layout::TILE_BYTES, 16);
                    wgmma_fence();
#pragma unroll
                    for (int k = 0; k < D / 16; k++)
                        wgmma_rs<BF16, 0>(s, a[k], b + (k >> 2) * (TILE_N * 128 / 16) + (k & 3) * 2, k > 0);
                    wgmma_commit();
                    wgmma_wait<0>();
                    hold(s);
                    if (lane == 0) mbarrier_arrive(empty + 8 * stage);
                    /* Q is in registers for good once the first product has read it */
                    if (top == range.y && lane == 0) mbarrier_arrive(q_empty + 8 * warpgroup);
                    if (++stage == STAGES) stage = 0, phase ^= 1;

                    const bool mine = max(begin[0], low) < min(end[0], top) || max(begin[1], low) < min(end[1], top);
                    if (!__any_sync(MOBAI_FULL_WARP, mine)) continue;
                    if (top == range.y) {
                        /* a bound that at least `need` scores of the row reach: over 32 groups of 4 scores. In most
                           tiles only columns 120 and up are no candidates of some row. */
                        const bool near = begin[0] <= low && begin[1] <= low && min(end[0], end[1]) >= top - 8;
                        const bool only_last = __all_sync(MOBAI_FULL_WARP, near);
#pragma unroll
                        for (int j = 0; j < 16; j++)
                            if (j == 15 || !only_last) {
#pragma unroll
                                for (int e = 0; e < 4; e++) {
                                    const int slot = low + 8 * j + 2 * quad + (e & 1);
                                    if (slot < begin[e >> 1] || slot >= end[e >> 1]) s[4 * j + e] = NAN;
                                }
                            }
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            float m[8];
#pragma unroll
                            for (int j = 0; j < 8; j++)
                                m[j] = fmaxf(fmaxf(fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]),
                                                   fmaxf(s[4 * j + 32 + 2 * r], s[4 * j + 33 + 2 * r])),
                                             -INFINITY);
                            sort_values<8>(m);
                            if constexpr (K == 8) {
                                merge_across<8>(m, 1);
                                merge_across<8>(m, 2);
                                bound[r] = nth<8>(m, need_most);
                            } else if constexpr (K == 16) {
                                float wide[16];
#pragma unroll
                                for (int i = 0; i < 8; i++) {
                                    wide[i] = m[i];
                                    wide[15 - i] = __shfl_xor_sync(MOBAI_FULL_WARP, m[i], 1);
                                }
                                sort_bitonic<16>(wide);
                                merge_across<16>(wide, 2);
                                bound[r] = nth<16>(wide, need_most);
                            } else {
                                float x = nth<8>(m, (need_most + 3) >> 2);
                                x = fminf(x, __shfl_xor_sync(MOBAI_FULL_WARP, x, 1));
                                bound[r] = fminf(x, __shfl_xor_sync(MOBAI_FULL_WARP, x, 2));
                            }
                        }
                    }
                    bool compacted = false;
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        uint32_t hits = 0;
                        const float t = bound[r];
#pragma unroll
                        for (int j = 0; j < 16; j++) {
                            float x = s[4 * j + 2 * r], y = s[4 * j + 2 * r + 1];
                            float greater = fmaxf(x, y);
                            asm volatile("{\n.reg .pred p;\nsetp.ge.f32 p, %1, %2;\n@p st.shared.v2.f32 [%3], {%4, %5};\n"
                                         "@p or.b32 %0, %0, %6;\n}"
                                         : "+r"(hits)
                                         : "f"(greater), "f"(t), "r"(staging + j * 256), "f"(x), "f"(y), "r"(1u << j)
                                         : "memory");
                        }
                        for (;;) {
                            while (hits && n_listed[r] <= row_lists<K>::SUB - 2) {
                                const int j = 31 - __clz((int)hits);
                                float x, y;
                                asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                                             : "=f"(x), "=f"(y)
                                             : "r"(staging + j * 256)
                                             : "memory");
                                hits ^= 1u << j;
                                const int slot = low + 8 * j + 2 * quad;
                                uint32_t at = lists.entry(quad_row + 8 * r, 4 * n_listed[r] + quad);
                                if (x >= bound[r] && slot >= begin[r] && slot < end[r]) {
                                    lists.put(at, x, slot);
                                    at += 32;
                                    n_listed[r]++;
                                }
                                if (y >= bound[r] && slot + 1 >= begin[r] && slot + 1 < end[r]) {
                                    lists.put(at, y, slot + 1);
                                    n_listed[r]++;
                                }
                            }
                            if (!__any_sync(MOBAI_FULL_WARP, hits != 0)) break;
                            compact(true);
                            compacted = true;
                        }
                    }
                    /* Later tiles hold lower slots, which lose to equal scores already listed. A better bound pays when
                       several tiles follow. */
                    if (top > range.x + TILE_N) {
                        const bool crowded = max(n_listed[0], n_listed[1]) > row_lists<K>::SUB / 2 &&
                                             top > range.x + 3 * TILE_N;
                        if (__any_sync(MOBAI_FULL_WARP, compacted || crowded)) compact(false);
                    }
                }
                compact(true);
            }
            /* ascending ids: sinks, routed, local; two lanes write a row */
            const int t = warp_row + lists.row;
            if (t < p.total_q) {
                int32_t *out = (int32_t *)p.selection + ((int64_t)t * p.n_q_heads + h) * p.top_k;
                const int n_sink = owned.n_sink(p), n_local = owned.n_local(p), routed = n_sink + count;
                for (int i = lists.half; i < n_sink; i += 2) out[i] = i;
                for (int base = 0; base < count; base += 8) {
                    int mine[4], rank[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        rank[i] = 0;
                        asm volatile("ld.shared.u32 %0, [%1];"
                                     : "=r"(mine[i])
                                     : "r"(lists.entry(lists.row, base + 2 * i + lists.half) + 4)
                                     : "memory");
                    }
#pragma unroll 4
                    for (int j = 0; j < count; j += 2) {
                        uint32_t unused0, unused1;
                        int a, b;
                        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                                     : "=r"(unused0), "=r"(a), "=r"(unused1), "=r"(b)
                                     : "r"(lists.entry(lists.row, j))
                                     : "memory");
                        if (j + 1 >= count) b = 0x7fffffff;
#pragma unroll
                        for (int i = 0; i < 4; i++) rank[i] += (a < mine[i] ? 1 : 0) + (b < mine[i] ? 1 : 0);
                    }
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (base + 2 * i + lists.half < count) out[n_sink + rank[i]] = mine[i] - owned.first_slot;
                }
                for (int i = lists.half; i < n_local; i += 2) out[routed + i] = owned.legal - n_local + i;
                for (int i = routed + n_local + lists.half; i < p.top_k; i += 2) out[i] = -1;
            }
            __syncwarp();
        }
    }
}

#define GATE(NAME, BF16, D, CONSUMERS, K)                                                                              \
    extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 128, 1) NAME(                                       \
        const __grid_constant__ mobai_sm90_params p) {                                                                 \
        gate<BF16, D, CONSUMERS, K, 1>(p);                                                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 128, 1) NAME##_strided(                             \
        const __grid_constant__ mobai_sm90_params p) {                                                                 \
        gate<BF16, D, CONSUMERS, K, 0>(p);                                                                             \
    }
GATE(gate_f16_d64_k8, 0, 64, 3, 8)
GATE(gate_f16_d128_k8, 0, 128, 3, 8)
GATE(gate_bf16_d64_k8, 1, 64, 3, 8)
GATE(gate_bf16_d128_k8, 1, 128, 3, 8)
GATE(gate_f16_d64_k16, 0, 64, 2, 16)
GATE(gate_f16_d128_k16, 0, 128, 2, 16)
GATE(gate_bf16_d64_k16, 1, 64, 2, 16)
GATE(gate_bf16_d128_k16, 1, 128, 2, 16)
GATE(gate_f16_d64_k32, 0, 64, 2, 32)
GATE(gate_f16_d128_k32, 0, 128, 2, 32)
GATE(gate_bf16_d64_k32, 1, 64, 2, 32)
GATE(gate_bf16_d128_k32, 1, 128, 2, 32)
