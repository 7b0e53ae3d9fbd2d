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
 * Lists: rows of a warp, two lanes a row when compacting; CAP entries, of which up to 8 may arrive between two checks.
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
/** Sorts 8 values, greatest first. */
static __device__ __forceinline__ void sort8(float *v) {
    order(v[0], v[2]), order(v[1], v[3]), order(v[4], v[6]), order(v[5], v[7]);
    order(v[0], v[4]), order(v[1], v[5]), order(v[2], v[6]), order(v[3], v[7]);
    order(v[0], v[1]), order(v[2], v[3]), order(v[4], v[5]), order(v[6], v[7]);
    order(v[2], v[4]), order(v[3], v[5]);
    order(v[1], v[4]), order(v[3], v[6]);
    order(v[1], v[2]), order(v[3], v[4]), order(v[5], v[6]);
}
/** a becomes the 8 greatest of sorted a and sorted b, sorted. */
static __device__ __forceinline__ void merge8(float *a, const float *b) {
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] = fmaxf(a[i], b[7 - i]);
#pragma unroll
    for (int step = 4; step > 0; step >>= 1)
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (!(i & step)) order(a[i], a[i + step]);
}
static __device__ __forceinline__ void merge8_across(float *a, int lane_mask) {
    float b[8];
#pragma unroll
    for (int i = 0; i < 8; i++) b[i] = __shfl_xor_sync(MOBAI_FULL_WARP, a[i], lane_mask);
    merge8(a, b);
}
/** a[n - 1] for 1 <= n <= 8. */
static __device__ __forceinline__ float nth8(const float *a, int n) {
    float v = a[0];
#pragma unroll
    for (int i = 1; i < 8; i++) v = n > i ? a[i] : v;
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

/** The lists of one warp's 16 rows. */
template <int CAP> struct row_lists {
    static constexpr int STRIDE = CAP * 8 + 16; /* bytes; 16 rows read by lane pairs then meet no bank twice */
    static constexpr int PER_LANE = CAP / 2;
    uint32_t base; /* shared address */
    int row, half; /* of this lane when compacting */

    __device__ __forceinline__ uint32_t entry(int r, int i) const { return base + (uint32_t)(r * STRIDE + i * 8); }
    __device__ __forceinline__ static void put(uint32_t at, float score, int slot) {
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(__float_as_uint(score)), "r"(slot) : "memory");
    }
    __device__ __forceinline__ static void get(uint32_t at, float *score, int *slot) {
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=f"(*score), "=r"(*slot) : "r"(at) : "memory");
    }

    /** The need-th greatest of the row's `count` scores, or -inf when there are fewer. */
    __device__ __forceinline__ float threshold(const float *mine, int count, int need, bool wide) const {
        if constexpr (CAP == 32) { /* need <= 8 */
            float a[8];
#pragma unroll
            for (int i = 0; i < 8; i++) a[i] = mine[i];
            sort8(a);
            if (wide) {
                float b[8];
#pragma unroll
                for (int i = 0; i < 8; i++) b[i] = mine[8 + i];
                sort8(b);
                merge8(a, b);
            }
            merge8_across(a, 1);
            return count < need ? -INFINITY : nth8(a, need);
        } else {
            /* greatest x with at least `need` scores >= x */
            int low = 0x7fffffff, high = (int)0x80000000;
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) {
                bool real = half + 2 * i < count;
                int b = ordered_int(mine[i]);
                if (real) low = min(low, b), high = max(high, b);
            }
            low = min(low, __shfl_xor_sync(MOBAI_FULL_WARP, low, 1));
            high = max(high, __shfl_xor_sync(MOBAI_FULL_WARP, high, 1));
            bool active = count >= need;
            if (!active) low = high;
            while (__any_sync(MOBAI_FULL_WARP, active && low < high)) {
                int middle = (int)(((int64_t)low + (int64_t)high + 1) >> 1);
                float m = ordered_float(middle);
                int n = 0;
#pragma unroll
                for (int i = 0; i < PER_LANE; i++) n += mine[i] >= m ? 1 : 0;
                n += __shfl_xor_sync(MOBAI_FULL_WARP, n, 1);
                if (active && low < high) {
                    if (n >= need)
                        low = middle;
                    else
                        high = middle - 1;
                    if (n == need) high = low;
                }
            }
            return active ? ordered_float(low) : -INFINITY;
        }
    }

    /**
     * Cuts every row's list to its best min(count, need) entries; `count` and `need` are the lane's row's. Out of line:
     * it is rare and used in four places.
     */
    static __device__ __noinline__ cut compact(row_lists lists, int count, int need) {
        const int half = lists.half;
        float score[PER_LANE];
        int slot[PER_LANE];
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            score[i] = -INFINITY;
            slot[i] = -1;
        }
        const bool wide = __any_sync(MOBAI_FULL_WARP, count > CAP / 2);
#pragma unroll
        for (int i = 0; i < PER_LANE / 2; i++)
            if (half + 2 * i < count) get(lists.entry(lists.row, half + 2 * i), &score[i], &slot[i]);
        if (wide) {
#pragma unroll
            for (int i = PER_LANE / 2; i < PER_LANE; i++)
                if (half + 2 * i < count) get(lists.entry(lists.row, half + 2 * i), &score[i], &slot[i]);
        }
        const float t = lists.threshold(score, count, need, wide);
        int above = 0, equal = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            above += slot[i] >= 0 && score[i] > t ? 1 : 0;
            equal += slot[i] >= 0 && score[i] == t ? 1 : 0;
        }
        above += __shfl_xor_sync(MOBAI_FULL_WARP, above, 1);
        equal += __shfl_xor_sync(MOBAI_FULL_WARP, equal, 1);
        int least = -1; /* least slot that an entry equal to t needs */
        const bool tied = count > need && above + equal > need;
        if (__any_sync(MOBAI_FULL_WARP, tied)) {
            /* the (need - above)-th greatest slot among the equal ones, by bisection */
            int low = 0, high = 0x7ffffffe;
            if (!tied) low = high = 0;
            while (__any_sync(MOBAI_FULL_WARP, low < high)) {
                int middle = low + ((high - low + 1) >> 1), n = 0;
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
            least = tied ? low : -1;
        }
        uint32_t keep = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (slot[i] >= 0 && (count <= need || score[i] > t || (score[i] == t && slot[i] >= least))) keep |= 1u << i;
        int mine = __popc(keep), other = __shfl_xor_sync(MOBAI_FULL_WARP, mine, 1);
        int place = half ? other : 0;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (keep >> i & 1) put(lists.entry(lists.row, place++), score[i], slot[i]);
        __syncwarp();
        return {mine + other >= need ? t : -INFINITY, mine + other};
    }
};

/** Least float above x; NaN-free input. */
static __device__ __forceinline__ float next_up(float x) {
    return x == INFINITY ? x : ordered_float(ordered_int(x) + 1);
}

template <int D, int CONSUMERS, int CAP> struct gate_layout {
    static constexpr int Q_BYTES = 64 * D * 2, TILE_BYTES = TILE_N * D * 2;
    static constexpr int STAGING = 16 * 128 * 8; /* pairs of one row half of a warpgroup */
    static constexpr int LISTS = 64 * row_lists<CAP>::STRIDE;
    static constexpr int Q_AT = STAGES * TILE_BYTES, STAGING_AT = Q_AT + CONSUMERS * Q_BYTES,
                         LISTS_AT = STAGING_AT + CONSUMERS * STAGING, BYTES = LISTS_AT + CONSUMERS * LISTS + 1024;
};

template <int BF16, int D, int CONSUMERS, int CAP, int VEC>
static __device__ __forceinline__ void gate(const mobai_sm90_params &p) {
    using layout = gate_layout<D, CONSUMERS, CAP>;
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
                    if (p.q.batch_shift) at += batch_offset(p.q, min(t / p.seqlen_q, p.batch - 1));
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
        row_lists<CAP> lists;
        lists.base = shared + layout::LISTS_AT + warpgroup * layout::LISTS + warp * 16 * row_lists<CAP>::STRIDE;
        lists.row = lane >> 1;
        lists.half = lane & 1;
        for (int tile = (int)blockIdx.x; tile < n_tiles; tile += (int)gridDim.x) {
            const int t0 = (n_row_tiles - 1 - tile / n_heads) * ROWS, h = first_head + tile % n_heads;
            const int2 range = candidate_range(p, t0, t0 + ROWS);
            const int warp_row = t0 + warpgroup * 64 + warp * 16;
            const gate_row owned = row_of(p, warp_row + lists.row); /* the row this lane compacts and writes */
            int count = 0;                                          /* entries of the owned row's list */
            if (range.x < range.y) {
                /* candidates and thresholds of the two rows of this lane's accumulators */
                int begin[2], end[2];
                float bound[2] = {-INFINITY, -INFINITY};
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
                    const bool inside = begin[0] <= low && end[0] >= top && begin[1] <= low && end[1] >= top;
                    if (!__all_sync(MOBAI_FULL_WARP, inside)) {
#pragma unroll
                        for (int j = 0; j < 16; j++)
#pragma unroll
                            for (int e = 0; e < 4; e++) {
                                int slot = low + 8 * j + 2 * quad + (e & 1);
                                if (slot < begin[e >> 1] || slot >= end[e >> 1]) s[4 * j + e] = NAN;
                            }
                    }
                    if (top == range.y) {
                        /* a bound that at least `need` scores of the row reach: over 32 groups of 4 scores */
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            float m[8];
#pragma unroll
                            for (int j = 0; j < 8; j++)
                                m[j] = fmaxf(fmaxf(fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]),
                                                   fmaxf(s[4 * j + 32 + 2 * r], s[4 * j + 33 + 2 * r])),
                                             -INFINITY);
                            sort8(m);
                            if constexpr (CAP == 32) {
                                merge8_across(m, 1);
                                merge8_across(m, 2);
                                bound[r] = nth8(m, need_most);
                            } else {
                                float x = nth8(m, (need_most + 3) >> 2);
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
                        while (__any_sync(MOBAI_FULL_WARP, hits != 0)) {
                            int j = 31 - __clz((int)(hits | 1));
                            float x = NAN, y = NAN;
                            if (hits)
                                asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                                             : "=f"(x), "=f"(y)
                                             : "r"(staging + j * 256)
                                             : "memory");
                            hits &= ~(1u << j);
                            const bool take_x = x >= bound[r], take_y = y >= bound[r];
                            const int n = (take_x ? 1 : 0) + (take_y ? 1 : 0);
                            int before = __shfl_up_sync(MOBAI_FULL_WARP, n, 1, 4), sum = n;
                            if (quad >= 1) sum += before;
                            before = __shfl_up_sync(MOBAI_FULL_WARP, sum, 2, 4);
                            if (quad >= 2) sum += before;
                            /* the lane pair that owns the row keeps its count */
                            const int list_row = quad_row + 8 * r;
                            int place = __shfl_sync(MOBAI_FULL_WARP, count, list_row * 2) + sum - n;
                            const int slot = low + 8 * j + 2 * quad;
                            if (take_x) lists.put(lists.entry(list_row, place), x, slot);
                            if (take_y) lists.put(lists.entry(list_row, place + (take_x ? 1 : 0)), y, slot + 1);
                            int added = __shfl_sync(MOBAI_FULL_WARP, sum, (lists.row & 7) * 4 + 3);
                            if ((lists.row >> 3) == r) count += added;
                            if (__any_sync(MOBAI_FULL_WARP, count > CAP - 8)) {
                                __syncwarp();
                                const cut left = lists.compact(lists, count, owned.need(p));
                                count = left.count;
                                compacted = true;
#pragma unroll
                                for (int q = 0; q < 2; q++)
                                    bound[q] = fmaxf(bound[q],
                                                     __shfl_sync(MOBAI_FULL_WARP, left.worst, (quad_row + 8 * q) * 2));
                            }
                        }
                    }
                    /* later tiles hold lower slots, which lose to equal scores already listed */
                    if (top > range.x + TILE_N) {
                        __syncwarp();
                        if (compacted || __any_sync(MOBAI_FULL_WARP, count > CAP / 2)) {
                            const cut left = lists.compact(lists, count, owned.need(p));
                            count = left.count;
                            const float worst = left.worst == -INFINITY ? -INFINITY : next_up(left.worst);
#pragma unroll
                            for (int q = 0; q < 2; q++)
                                bound[q] = fmaxf(bound[q], __shfl_sync(MOBAI_FULL_WARP, worst, (quad_row + 8 * q) * 2));
                        }
                    }
                }
                __syncwarp();
                if (__any_sync(MOBAI_FULL_WARP, count > owned.need(p))) count = lists.compact(lists, count, owned.need(p)).count;
            }
            /* ascending ids: sinks, routed, local; two lanes write a row */
            const int t = warp_row + lists.row;
            if (t < p.total_q) {
                int32_t *out = (int32_t *)p.selection + ((int64_t)t * p.n_q_heads + h) * p.top_k;
                const int n_sink = owned.n_sink(p), n_local = owned.n_local(p), routed = n_sink + count;
                for (int i = lists.half; i < n_sink; i += 2) out[i] = i;
                for (int i = lists.half; i < count; i += 2) {
                    float score;
                    int slot, rank = 0;
                    lists.get(lists.entry(lists.row, i), &score, &slot);
                    for (int j = 0; j < count; j++) {
                        float unused;
                        int other;
                        lists.get(lists.entry(lists.row, j), &unused, &other);
                        rank += other < slot ? 1 : 0;
                    }
                    out[n_sink + rank] = slot - owned.first_slot;
                }
                for (int i = lists.half; i < n_local; i += 2) out[routed + i] = owned.legal - n_local + i;
                for (int i = routed + n_local + lists.half; i < p.top_k; i += 2) out[i] = -1;
            }
            __syncwarp();
        }
    }
}

#define GATE(NAME, BF16, D, CONSUMERS, CAP)                                                                            \
    extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 128, 1) NAME(                                       \
        const __grid_constant__ mobai_sm90_params p) {                                                                 \
        gate<BF16, D, CONSUMERS, CAP, 1>(p);                                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 128, 1) NAME##_strided(                             \
        const __grid_constant__ mobai_sm90_params p) {                                                                 \
        gate<BF16, D, CONSUMERS, CAP, 0>(p);                                                                           \
    }
GATE(gate_f16_d64_k8, 0, 64, 3, 32)
GATE(gate_f16_d128_k8, 0, 128, 3, 32)
GATE(gate_bf16_d64_k8, 1, 64, 3, 32)
GATE(gate_bf16_d128_k8, 1, 128, 3, 32)
GATE(gate_f16_d64_k32, 0, 64, 2, 64)
GATE(gate_f16_d128_k32, 0, 128, 2, 64)
GATE(gate_bf16_d64_k32, 1, 64, 2, 64)
GATE(gate_bf16_d128_k32, 1, 128, 2, 64)
