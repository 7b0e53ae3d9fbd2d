/* SPDX-License-Identifier: Apache-2.0
 *
 * gate: scores of query rows against centroids and exact top-k, fused.
 *
 * A work-group has CONSUMERS warpgroups of 64 query rows each and one producer warpgroup that copies Q tiles and pieces
 * of 64 centroids into shared memory, most recent blocks first. A consumer multiplies 128 centroids (wgmma, Q in
 * registers) and filters the 128 scores of each row by the row's bound: pairs that pass are staged in shared memory and
 * marked in a mask. Two lanes own a row: each walks its half of the marked scores in descending slot order and appends
 * (score, slot) to a list in shared memory. With more than 8 picks it keeps the best K scores sorted in registers,
 * whose need-th best of both lanes is the row's bound for later tiles and at the end tells which entries of the lists
 * stay; with at most 8 the lists themselves are sorted for that, when one is full and at the end.
 *
 * Scores are compared as they are, and equal ones are settled by slot: slots descend, so a later equal score loses
 * within a lane, and the end settles ties between the two lanes. The result is spec.md's total order exactly. NaN fails
 * every comparison; -inf counts as the least finite number.
 */
#include "common.cuh"
#include "gate_lists.cuh"
#include "wgmma.cuh"

#define PIECE_N 64 /* centroids of a piece in shared memory; a tile is two of them */
#define TILE_N 128
#define STAGES 3 /* pieces in shared memory */
#define MOBAI_NO_SLOT (-0x7fffffff - 1)

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

/** Of a half's 32 pairs of columns, 8 (i / 2) + 4 half + 2 (i % 2) and the next, how many lie below column `end`. */
static __device__ __forceinline__ int pairs_below(int end, int half) {
    const int x = max(end - 4 * half, 0);
    return min(2 * (x >> 3) + min((x & 7) >> 1, 2), 32);
}
static __device__ __forceinline__ int pair_column(int i, int half) { return 8 * (i >> 1) + 4 * half + 2 * (i & 1); }
/** x itself, which the compiler has to keep in a register and cannot compute again in a loop. */
template <class T> static __device__ __forceinline__ T kept(T x) {
    return __shfl_sync(MOBAI_FULL_WARP, x, (int)threadIdx.x & 31);
}
/** Bits 0 .. n - 1, n <= 32. */
static __device__ __forceinline__ uint32_t low_bits(int n) { return n >= 32 ? MOBAI_FULL_WARP : (1u << n) - 1; }

/** Copies 16 bytes to shared memory. Without a cache policy: with one, ptxas 13.0 makes copies here that the device
 * refuses as illegal instructions. */
template <int VEC> static __device__ __forceinline__ void copy_row_chunk(uint32_t to, const void *from) {
    if constexpr (VEC)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    else
        store_shared(to, load_chunk<0>(from));
}

/** The tiles of a work-group: every gridDim.x-th (row tile, head), heads innermost, from the last row tile to the
 * first. */
struct tile_walk {
    int row, head;
    const int n_heads, rows_step, heads_step;

    __device__ __forceinline__ tile_walk(int n_row_tiles, int n_heads_)
        : n_heads(n_heads_), rows_step((int)gridDim.x / n_heads_), heads_step((int)gridDim.x % n_heads_) {
        row = n_row_tiles - 1 - (int)blockIdx.x / n_heads;
        head = (int)blockIdx.x % n_heads;
    }
    __device__ __forceinline__ void advance() {
        row -= rows_step;
        head += heads_step;
        if (head >= n_heads) head -= n_heads, row--;
    }
};

template <int D, int CONSUMERS, int K> struct gate_layout {
    static constexpr int Q_BYTES = 64 * D * 2, PIECE_BYTES = PIECE_N * D * 2;
    static constexpr int STAGING = 64 * TILE_N * 4; /* scores of a warpgroup */
    static constexpr int LISTS = 4 * half_row<K>::WARP_BYTES;
    static constexpr int Q_AT = STAGES * PIECE_BYTES, STAGING_AT = Q_AT + CONSUMERS * Q_BYTES,
                         LISTS_AT = STAGING_AT + CONSUMERS * STAGING, BYTES = LISTS_AT + CONSUMERS * LISTS + 1024;
};

template <int BF16, int D, int CONSUMERS, int K, int VEC>
static __device__ __forceinline__ void gate(const mobai_sm90_params &p) {
    using layout = gate_layout<D, CONSUMERS, K>;
    constexpr int CHUNKS = D / 8; /* 16-byte pieces of a row */
    extern __shared__ char raw[];
    __shared__ __align__(8) uint64_t barriers[2 * STAGES + 2 * CONSUMERS];
    __shared__ int2 ranges[CONSUMERS]; /* candidate slots of the row tile, handed over with Q */
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
    int stage = 0, phase = 0, q_phase = 0;

    if (warpgroup == CONSUMERS) {
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
        constexpr int STEP = 128 / CHUNKS; /* rows of one pass: a multiple of the swizzle's 8 */
        const int row = thread / CHUNKS, chunk = thread % CHUNKS;
        const uint32_t in_piece = (uint32_t)((chunk >> 3) * 8192 + row * 128 + (((chunk & 7) ^ (row & 7)) << 4));
        for (tile_walk tile(n_row_tiles, n_heads); tile.row >= 0; tile.advance()) {
            const int t0 = tile.row * ROWS, h = first_head + tile.head;
            const int2 range = candidate_range(p, t0, t0 + ROWS);
            const uint16_t *q = (const uint16_t *)p.q.address + h * p.q.head_stride + chunk * 8;
#pragma unroll 1
            for (int c = 0; c < CONSUMERS; c++) {
                wait(q_empty + 8 * c, q_phase ^ 1);
                if (thread == 0) ranges[c] = range;
                const uint32_t to = shared + layout::Q_AT + c * layout::Q_BYTES + in_piece;
                const int t = t0 + c * 64 + row;
                if (range.x >= range.y) {
                    /* no scores, no Q */
                } else if (t0 + ROWS <= p.total_q && p.q.batch_shift == 0) {
                    const uint16_t *from = q + (int64_t)t * p.q.token_stride;
#pragma unroll
                    for (int i = 0; i < 64 / STEP; i++) {
                        copy_row_chunk<VEC>(to + i * STEP * 128, from);
                        from += STEP * p.q.token_stride;
                    }
                } else {
#pragma unroll 1
                    for (int i = 0; i < 64 / STEP; i++) {
                        const int x = min(t + i * STEP, p.total_q - 1);
                        int64_t at = (int64_t)x * p.q.token_stride;
                        if (p.q.batch_shift) at += batch_offset(p.q, sequence_number(p, x));
                        copy_row_chunk<VEC>(to + i * STEP * 128, q + at);
                    }
                }
                submit(q_full + 8 * c);
            }
            q_phase ^= 1;
            const uint16_t *centroids =
                (const uint16_t *)p.centroids + (int64_t)(h / p.group) * p.n_slots * D + chunk * 8;
            for (int top = range.y; top > range.x; top -= TILE_N) {
                for (int low = top - TILE_N; low < top; low += PIECE_N) {
                    wait(empty + 8 * stage, phase ^ 1);
                    const uint32_t to = shared + stage * layout::PIECE_BYTES + in_piece;
                    if (low >= 0) {
                        const uint16_t *from = centroids + (int64_t)(low + row) * D;
#pragma unroll
                        for (int i = 0; i < PIECE_N / STEP; i++)
                            copy_row_chunk<1>(to + i * STEP * 128, from + i * STEP * D);
                    } else {
#pragma unroll 1
                        for (int i = 0; i < PIECE_N / STEP; i++)
                            copy_row_chunk<1>(to + i * STEP * 128,
                                              centroids + (int64_t)max(low + row + i * STEP, 0) * D);
                    }
                    submit(full + 8 * stage);
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                }
            }
        }
        flush();
    } else {
        if constexpr (CONSUMERS == 3)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 152;");
        else
            asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
        const int lane = thread & 31, warp = thread >> 5, quad_row = lane >> 2, quad = lane & 3;
        const int owned_row = lane >> 1, half = kept(lane & 1); /* of the warp's 16 rows */
        const uint32_t q_at = shared + layout::Q_AT + warpgroup * layout::Q_BYTES;
        /* Pair i of a half: 8 bytes a row and half, 128 bytes a pair, 4096 for rows 8 and up. */
        const uint32_t staging = shared + layout::STAGING_AT + warpgroup * layout::STAGING + warp * (16 * TILE_N * 4);
        const uint32_t store_at = kept(staging + (quad & 1) * 128 + (quad_row * 2 + (quad >> 1)) * 8);
        const uint32_t load_at = kept(staging + (lane >> 4) * 4096 + (lane & 15) * 8);
        const int need_most = p.top_k - p.n_sink - (p.causal ? max(p.n_local, 1) : 0);
        half_row<K> row;
        row.list =
            kept(shared + layout::LISTS_AT + warpgroup * layout::LISTS + warp * half_row<K>::WARP_BYTES + lane * 8);
        /* what a lane that owns a row knows, to the lanes that have its scores, and back */
        const int owner = kept(quad_row * 2);
        const auto of_row = [&](auto x, int r) { return __shfl_sync(MOBAI_FULL_WARP, x, owner + 16 * r); };
        const int from = kept((owned_row & 7) * 4 + 2 * half);
        const auto of_scores = [&](auto x0, auto x1, int other) {
            const auto a = __shfl_sync(MOBAI_FULL_WARP, x0, from + other),
                       b = __shfl_sync(MOBAI_FULL_WARP, x1, from + other);
            return lane < 16 ? a : b;
        };
        for (tile_walk tile(n_row_tiles, n_heads); tile.row >= 0; tile.advance()) {
            const int t = tile.row * ROWS + warpgroup * 64 + warp * 16 + owned_row, h = first_head + tile.head;
            const gate_row owned = row_of(p, t);
            const int begin = owned.begin(p), end = owned.end(p);
            row.tail = row.list;
            __syncwarp();
            mbarrier_wait(q_full + 8 * warpgroup, q_phase);
            q_phase ^= 1;
            const int2 range = ranges[warpgroup];
            const int lowest =
                range.y - (range.y - range.x + TILE_N - 1) / TILE_N * TILE_N; /* column 0 of the last tile */
            if (range.x < range.y) {
                float bound[2] = {-INFINITY, -INFINITY}; /* of the two rows of this lane's scores */
                bool first = true;                       /* no tile had candidates of the warp's rows so far */
                uint32_t a[D / 16][4];
#pragma unroll
                for (int k = 0; k < D / 16; k++) {
                    int r = warp * 16 + (lane & 15), chunk = 2 * k + (lane >> 4);
                    uint32_t at = q_at + (chunk >> 3) * 8192 + r * 128 + (((chunk & 7) ^ (r & 7)) << 4);
                    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(a[k][0]), "=r"(a[k][1]), "=r"(a[k][2]), "=r"(a[k][3])
                                 : "r"(at)
                                 : "memory");
                }
#pragma unroll 1
                for (int top = range.y; top > range.x; top -= TILE_N) {
                    const int low = top - TILE_N; /* slot of column 0; may be negative */
                    float s[2][32];               /* columns 64 i + 8 j + 2 quad + {0, 1} of rows quad_row and + 8 */
                    uint32_t pieces[2];
                    __syncwarp(); /* a warp that is not together may not multiply */
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        mbarrier_wait(full + 8 * stage, phase);
                        const uint64_t b = wgmma_descriptor(shared + stage * layout::PIECE_BYTES, 16);
                        wgmma_fence();
#pragma unroll
                        for (int k = 0; k < D / 16; k++)
                            wgmma_rs<BF16, 0>(s[i], a[k], b + (k >> 2) * (PIECE_N * 128 / 16) + (k & 3) * 2, k > 0);
                        wgmma_commit();
                        pieces[i] = empty + 8 * stage;
                        if (++stage == STAGES) stage = 0, phase ^= 1;
                    }
                    wgmma_wait<0>();
                    hold(s[0]);
                    hold(s[1]);
                    if (lane == 0) {
                        mbarrier_arrive(pieces[0]);
                        mbarrier_arrive(pieces[1]);
                        /* Q is in registers for good once the first product has read it */
                        if (top == range.y) mbarrier_arrive(q_empty + 8 * warpgroup);
                    }
                    if (!__any_sync(MOBAI_FULL_WARP, max(begin, low) < min(end, top))) continue;
                    const bool whole = __all_sync(MOBAI_FULL_WARP, begin <= low && end >= top);

                    if (first) {
                        /* a bound that at least `need` scores of the row reach: over 32 groups of 4 scores. In most
                           tiles only columns 120 and up are no candidates of some row. */
                        const bool only_last = __all_sync(MOBAI_FULL_WARP, begin <= low && end >= top - 8);
#pragma unroll
                        for (int r = 0; r < 2; r++) {
                            const int row_begin = of_row(begin, r) - low, row_end = of_row(end, r) - low;
#pragma unroll
                            for (int j = 0; j < 16; j++)
                                if (j == 15 || !only_last) {
#pragma unroll
                                    for (int e = 0; e < 2; e++) {
                                        const int column = 8 * j + 2 * quad + e;
                                        if (column < row_begin || column >= row_end)
                                            s[j >> 3][4 * (j & 7) + 2 * r + e] = NAN;
                                    }
                                }
                            float m[8];
#pragma unroll
                            for (int j = 0; j < 8; j++)
                                m[j] = fmaxf(fmaxf(fmaxf(s[0][4 * j + 2 * r], s[0][4 * j + 2 * r + 1]),
                                                   fmaxf(s[1][4 * j + 2 * r], s[1][4 * j + 2 * r + 1])),
                                             -INFINITY);
                            sort_values<8>(m);
                            if constexpr (K == 8) {
                                merge_across<8>(m, 1);
                                bound[r] = need_most > 7 ? kth_of_both<8>(m, 2) : kth_of_both<7>(m, 2);
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
                        row.start(of_scores(bound[0], bound[1], 0), need_most, half);
                        first = false;
                    }

                    if (__any_sync(MOBAI_FULL_WARP, fminf(bound[0], bound[1]) == -INFINITY)) {
                        /* a row may have to take all its candidates: -inf must exceed the empty places */
#pragma unroll
                        for (int i = 0; i < 32; i++) {
                            asm("max.NaN.f32 %0, %0, 0fFF7FFFFF;" : "+f"(s[0][i]));
                            asm("max.NaN.f32 %0, %0, 0fFF7FFFFF;" : "+f"(s[1][i]));
                        }
                    }
                    uint32_t hits[2] = {0, 0};
#pragma unroll
                    for (int r = 0; r < 2; r++)
#pragma unroll
                        for (int j = 0; j < 16; j++) {
                            const float x = s[j >> 3][4 * (j & 7) + 2 * r], y = s[j >> 3][4 * (j & 7) + 2 * r + 1];
                            const float greater = fmaxf(x, y);
                            asm volatile(
                                "{\n.reg .pred p;\nsetp.ge.f32 p, %1, %2;\n@p st.shared.v2.f32 [%3], {%4, %5};\n"
                                "@p or.b32 %0, %0, %6;\n}"
                                : "+r"(hits[r])
                                : "f"(greater), "f"(bound[r]), "r"(store_at + r * 4096 + j * 256), "f"(x), "f"(y),
                                  "r"(1u << (2 * j))
                                : "memory");
                        }
                    uint32_t marked = of_scores(hits[0], hits[1], 0) | of_scores(hits[0], hits[1], 1) << 1;
                    __syncwarp();
                    if (!whole) {
                        const int before = pairs_below(begin - low, half), until = pairs_below(end - low + 1, half);
                        marked &= low_bits(until) & ~low_bits(before);
                        /* of a pair that a limit cuts, one score is no candidate */
                        if (begin > low && before < 32 && pair_column(before, half) == begin - low - 1)
                            asm volatile("st.shared.f32 [%0], %1;" ::"r"(load_at + before * 128), "f"(NAN) : "memory");
                        if (end < top && until > 0 && pair_column(until - 1, half) == end - low - 1)
                            asm volatile("st.shared.f32 [%0], %1;" ::"r"(load_at + (until - 1) * 128 + 4), "f"(NAN)
                                         : "memory");
                    }
                    /* The half's slots in order: code 4 (i / 2) + 2 (i % 2) + e of column pair_column(i) + e. */
                    const int code0 = (low - lowest) >> 1;
                    for (;;) {
                        for (;;) {
                            const bool go = marked != 0 && row.has_room();
                            if (!__any_sync(MOBAI_FULL_WARP, go)) break;
                            const int i = 31 - __clz((int)marked);
                            float x = NAN, y = NAN;
                            if (go) {
                                asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                                             : "=f"(x), "=f"(y)
                                             : "r"(load_at + i * 128)
                                             : "memory");
                                marked ^= 1u << i;
                            }
                            row.take(x, y, code0 + 2 * i);
                        }
                        if (!__any_sync(MOBAI_FULL_WARP, marked != 0)) break;
                        row.make_room(need_most, half);
                    }
                    __syncwarp();
                    if (top > range.x + TILE_N) {
                        float least;
                        if (row.end_tile(least)) {
                            bound[0] = of_row(least, 0);
                            bound[1] = of_row(least, 1);
                        }
                    }
                }
                if (first) row.start(-INFINITY, need_most, half);
            } else {
                __syncwarp();
                if (lane == 0) mbarrier_arrive(q_empty + 8 * warpgroup);
            }

            /* the row's routed slots, greatest first, in both lanes */
            int slots[K];
            int n_routed = 0;
            if (range.x < range.y) {
                const float worst = row.finish(need_most, half);
                n_routed = row.count();
                n_routed += __shfl_xor_sync(MOBAI_FULL_WARP, n_routed, 1);
                if (__any_sync(MOBAI_FULL_WARP, n_routed > need_most)) {
                    row.drop_ties(worst, n_routed - need_most, half);
                    n_routed = min(n_routed, need_most);
                }
#pragma unroll
                for (int i = 0; i < K; i++) {
                    slots[i] = MOBAI_NO_SLOT;
                    const uint32_t at = row.list + i * half_row<K>::ENTRY_STRIDE;
                    if (at < row.tail) {
                        int code;
                        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(code) : "r"(at + 4) : "memory");
                        slots[i] = lowest + 8 * (code >> 2) + 4 * half + (code & 3);
                    }
                }
                merge_across<K>(slots, 1);
            }
            /* ascending ids: sinks, routed, local; two lanes write a row */
            if (t < p.total_q) {
                int32_t *out = (int32_t *)p.selection + ((int64_t)t * p.n_q_heads + h) * p.top_k;
                const int n_sink = owned.n_sink(p), n_local = owned.n_local(p), routed = n_sink + n_routed;
#pragma unroll 1
                for (int i = half; i < n_sink; i += 2)
                    out[i] = i;
#pragma unroll
                for (int i = 0; i < K; i += 2)
                    if (i + half < n_routed)
                        out[routed - 1 - i - half] = (half ? slots[i + 1] : slots[i]) - owned.first_slot;
#pragma unroll 1
                for (int i = half; i < n_local; i += 2)
                    out[routed + i] = owned.legal - n_local + i;
#pragma unroll 1
                for (int i = routed + n_local + half; i < p.top_k; i += 2)
                    out[i] = -1;
            }
            __syncwarp();
        }
    }
}

#define GATE(NAME, BF16, D, CONSUMERS, K)                                                                              \
    extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 128, 1)                                             \
        NAME(const __grid_constant__ mobai_sm90_params p) {                                                            \
        gate<BF16, D, CONSUMERS, K, 1>(p);                                                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 128, 1)                                             \
        NAME##_strided(const __grid_constant__ mobai_sm90_params p) {                                                  \
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
