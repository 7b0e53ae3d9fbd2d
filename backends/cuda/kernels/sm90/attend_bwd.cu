/* SPDX-License-Identifier: Apache-2.0
 *
 * attend_bwd: gradients key tile by key tile. A tile is up to KEYS keys of one block; the rows that picked the block
 * pass in list order, ROWS at a time, while dK and dV stay in registers.
 *
 * A work-group is three warpgroups. Two compute: S^T = K Q^T and dP^T = V dO^T, P^T and dS^T in registers, dV += P^T
 * dO, dK += dS^T Q; dS also goes to shared memory. With KEYS 128 each has 64 keys and both work on every tile of rows;
 * with KEYS 64 every other tile is one's, and they add up their dK and dV at the end of a piece. The third takes pieces
 * (attend_bwd_lists.cuh) from a counter, gathers the rows of Q and dO, STAGES - 1 tiles ahead, computes dQ = dS K and
 * writes it as partials. P is rounded to 16 bits once, for dV and for dS.
 *
 * A partial of dQ lies at its pick's place, (row, rank, key tile), rounded to 16 bits and already scaled. Its 64-byte
 * group c holds columns 32 c .. 32 c + 31 as the accumulators lie: 16 bytes of lane t of a quad are columns 32 c + 8 i
 * + 2 t + {0, 1}, i = 0 .. 3.
 */
#include "attend_bwd_lists.cuh"

#define LOG2E 1.44269504088896341f

template <int D, int KEYS> struct bwd_layout {
    static constexpr int ROWS = D == 128 ? 64 : 128, STAGES = KEYS == 128 ? 3 : 4;
    static constexpr int KEY_BYTES = KEYS * D * 2, ROW_BYTES = ROWS * D * 2, DS_BYTES = KEYS * ROWS * 2;
    static constexpr int MERGE_BYTES = KEYS == 64 ? 128 * (D / 2) * 4 : 0;
    static constexpr int V = KEY_BYTES, STAGE = 2 * KEY_BYTES, DS = STAGE + STAGES * 2 * ROW_BYTES;
    static constexpr int MERGE = DS + 2 * DS_BYTES, BYTES = MERGE + MERGE_BYTES + 1024;
};

/* Registers of a thread of the two kinds of warpgroups: the 384 threads are launched with 168 each. */
#define COMPUTE_REGISTERS 208
#define LOAD_REGISTERS 88
static_assert(2 * COMPUTE_REGISTERS + LOAD_REGISTERS <= 3 * 168, "setmaxnreg would wait for ever");

#define INFOS 8 /* pieces that the loading warpgroup can be ahead, and more */

/** What the computing warpgroups need of a piece. */
struct piece_info {
    int n_tiles; /* 0: no more work */
    int n_masked, n_keys, key_row, sequence, g, part, sums;
};

/** 16 bytes of a gathered row, without an L2 hint: with one nvcc 13.0 emits an illegal instruction for head_dim 64. */
template <int VEC> static __device__ __forceinline__ void gather_row(uint32_t to, const uint16_t *from) {
    if constexpr (VEC)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    else
        store_shared(to, load_chunk<0>(from));
}

/** What a gather needs of its piece, kept in shared memory: registers are short. */
struct gather_facts {
    const uint16_t *q, *dout; /* the piece's sequence and kv head */
    const float *lse, *delta;
    const uint32_t *rows;
    const uint16_t *ranks;
    int n_rows, n_keys, pos_shift, key_tile;
    uint32_t pick_shift; /* gathered row to the slice's row */
};

template <int ROWS> struct row_facts {
    float lse[ROWS]; /* +inf in rows past the piece */
    float delta[ROWS];
    int last[ROWS]; /* last visible key of the tile */
};

template <int D, int KEYS> struct bwd_shared {
    using layout = bwd_layout<D, KEYS>;
    row_facts<layout::ROWS> facts[layout::STAGES];
    uint32_t picks[8][layout::ROWS]; /* where each row's partial goes; 0xffffffff: nowhere */
    piece_info infos[INFOS];
    gather_facts gather;
    uint64_t full[layout::STAGES], empty[layout::STAGES], ds_full[2], ds_empty[2], keys_full[1];
    int next[2];
    int first_piece[MOBAI_SM90_MAX_KV_HEADS + 1];
};

/** One arrival for the warp, whose lanes leave together: matrix instructions need that. */
static __device__ __forceinline__ void mbarrier_arrive_warp(uint32_t barrier) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) mbarrier_arrive(barrier);
    __syncwarp();
}
static __device__ __forceinline__ void mbarrier_wait_warp(uint32_t barrier, int parity) {
    mbarrier_wait(barrier, parity);
    __syncwarp();
}

/** The two computing warpgroups issue their matrix products in turns, so that one's products run while the other works
 *  on its registers. Off where the warpgroups may have different numbers of tiles. */
template <bool ON> struct turn {
    const int wg;
    __device__ __forceinline__ turn(int wg_) : wg(wg_) {
        if (ON && wg == 1) pass();
    }
    __device__ __forceinline__ void take() const {
        if (ON) asm volatile("bar.sync %0, 256;" ::"r"(3 + wg) : "memory");
    }
    __device__ __forceinline__ void pass() const {
        if (ON) asm volatile("bar.arrive %0, 256;" ::"r"(4 - wg) : "memory");
    }
};

/** Two values of dS = P (dP - delta) of one key, in 16 bits; P as it was rounded for dV. */
template <int BF16> static __device__ __forceinline__ uint32_t gradient(uint32_t p, float a, float b, float2 delta) {
    const float2 f = unpack16<BF16>(p);
    return pack16<BF16>(f.x * (a - delta.x), f.y * (b - delta.y));
}

/** Keys `key` and `key` + 8 of the tile to dK or dV in 16 bits; store_keys_f32: to float32 rows of `stride`. */
template <int BF16, int D, int VEC>
static __device__ __forceinline__ void store_keys(const float (&acc)[D / 2], float scale, const mobai_sm90_tensor &x,
                                                  const piece_info &info, int key) {
    const int quad = (int)threadIdx.x & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const bool real = key + 8 * r < info.n_keys;
        uint16_t *to = (uint16_t *)x.address + batch_offset(x, info.sequence) + info.g * x.head_stride +
                       (int64_t)(info.key_row + key + 8 * r) * x.token_stride + quad * 8;
#pragma unroll
        for (int c = 0; c < D / 32; c++) {
            uint32_t words[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                words[i] = pack16<BF16>(acc[16 * c + 4 * i + 2 * r] * scale, acc[16 * c + 4 * i + 2 * r + 1] * scale);
            transpose_words(words, quad);
            if (real) store_chunk<VEC>(to + c * 32, words);
        }
    }
}
template <int D>
static __device__ __forceinline__ void store_keys_f32(const float (&acc)[D / 2], float scale, float *to, int64_t stride,
                                                      int key, int n_keys) {
    const int quad = (int)threadIdx.x & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (key + 8 * r >= n_keys) continue;
        float *at = to + (key + 8 * r) * stride + quad * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *(float2 *)(at + j * 8) = make_float2(acc[4 * j + 2 * r] * scale, acc[4 * j + 2 * r + 1] * scale);
    }
}

/** Adds keys `key` and `key` + 8 of float32 rows of D. */
template <int D>
static __device__ __forceinline__ void add_keys_f32(float (&acc)[D / 2], const float *from, int key, int n_keys) {
    const int quad = (int)threadIdx.x & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (key + 8 * r >= n_keys) continue;
        const float *at = from + (key + 8 * r) * D + quad * 2;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            const float2 x = *(const float2 *)(at + j * 8);
            acc[4 * j + 2 * r] += x.x;
            acc[4 * j + 2 * r + 1] += x.y;
        }
    }
}

/** The thread's number, read again: kept across the loop over tiles it and what follows from it would be spilled. */
static __device__ __forceinline__ int thread_again() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread & 127;
}

/** The two computing warpgroups. */
template <int BF16, int D, int KEYS, int VEC>
static __device__ __forceinline__ void compute(const mobai_sm90_params &p, bwd_shared<D, KEYS> &sh, uint32_t base,
                                               int wg) {
    using layout = bwd_layout<D, KEYS>;
    constexpr int ROWS = layout::ROWS, STAGES = layout::STAGES, STEP = KEYS == 128 ? 1 : 2;
    const int quad = (int)threadIdx.x & 3;
    const int wg_key = KEYS == 128 ? wg * 64 : 0;
    const uint64_t kd = wgmma_descriptor(base + (KEYS == 128 ? wg * 8192 : 0), 16);
    const uint64_t vd = wgmma_descriptor(base + layout::V + (KEYS == 128 ? wg * 8192 : 0), 16);
    uint32_t x0 = 0; /* number of the piece's first tile */
    turn<KEYS == 128> turns(wg);

    for (uint32_t y = 0;; y++) {
        mbarrier_wait_warp(shared_address(&sh.keys_full[0]), y & 1);
        /* A piece of one tile is one warpgroup's work: were the other still to look at keys_full when the piece is done
           with, it would meet the parity of the piece after the next and wait for ever. */
        if constexpr (KEYS == 64) asm volatile("bar.sync 2, 256;" ::: "memory");
        const volatile piece_info &info = sh.infos[y % INFOS];
        const int n_tiles = info.n_tiles;
        if (n_tiles == 0) break;
        float dk[D / 2], dv[D / 2];
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            dk[i] = dv[i] = 0.0f;
        int previous = -1; /* stage still to be released */
        turns.take();
#pragma unroll 1
        for (int tile = KEYS == 128 ? 0 : wg; tile < n_tiles; tile += STEP) {
            const uint32_t x = x0 + (uint32_t)tile, stage = x % STAGES;
            const uint32_t q_at = base + layout::STAGE + stage * (2 * layout::ROW_BYTES),
                           do_at = q_at + layout::ROW_BYTES;
            const row_facts<ROWS> &facts = sh.facts[stage];
            float s[ROWS / 2];
            mbarrier_wait_warp(shared_address(&sh.full[stage]), (x / STAGES) & 1);
            {
                const uint64_t qd = wgmma_descriptor(q_at, 16);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < D / 16; k++)
                    wgmma_ss<BF16>(s, kd + (k >> 2) * (KEYS * 8) + (k & 3) * 2,
                                   qd + (k >> 2) * (ROWS * 8) + (k & 3) * 2, k > 0);
                wgmma_commit();
            }
            turns.pass();
            wgmma_wait<1>(); /* the tile before is done with */
            if (previous >= 0) mbarrier_arrive_warp(shared_address(&sh.empty[previous]));
            wgmma_wait<0>();
            hold(s);
            uint32_t pf[ROWS / 4], df[ROWS / 4];
#pragma unroll
            for (int j = 0; j < ROWS / 8; j++) {
                float2 l = *(const float2 *)(facts.lse + 8 * j + 2 * quad);
                l.x *= LOG2E;
                l.y *= LOG2E;
                s[4 * j] = exp2_approx(fmaf(s[4 * j], p.scale_log2, -l.x));
                s[4 * j + 1] = exp2_approx(fmaf(s[4 * j + 1], p.scale_log2, -l.y));
                s[4 * j + 2] = exp2_approx(fmaf(s[4 * j + 2], p.scale_log2, -l.x));
                s[4 * j + 3] = exp2_approx(fmaf(s[4 * j + 3], p.scale_log2, -l.y));
            }
            if (tile * ROWS < info.n_masked) {
                const int thread = thread_again(), key = wg_key + (thread >> 5) * 16 + ((thread & 31) >> 2);
#pragma unroll
                for (int j = 0; j < ROWS / 8; j++) {
                    const int2 last = *(const int2 *)(facts.last + 8 * j + 2 * quad);
                    if (key > last.x) s[4 * j] = 0.0f;
                    if (key > last.y) s[4 * j + 1] = 0.0f;
                    if (key + 8 > last.x) s[4 * j + 2] = 0.0f;
                    if (key + 8 > last.y) s[4 * j + 3] = 0.0f;
                }
            }
#pragma unroll
            for (int j = 0; j < ROWS / 8; j++) {
                pf[2 * j] = pack16<BF16>(s[4 * j], s[4 * j + 1]);
                pf[2 * j + 1] = pack16<BF16>(s[4 * j + 2], s[4 * j + 3]);
            }
            turns.take();
            float dp[ROWS / 2];
            {
                const uint64_t dod = wgmma_descriptor(do_at, 16);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < D / 16; k++)
                    wgmma_ss<BF16>(dp, vd + (k >> 2) * (KEYS * 8) + (k & 3) * 2,
                                   dod + (k >> 2) * (ROWS * 8) + (k & 3) * 2, k > 0);
                wgmma_commit();
            }
            {
                const uint64_t dod = wgmma_descriptor(do_at, ROWS * 128);
#pragma unroll
                for (int k = 0; k < ROWS / 16; k++)
                    wgmma_rs<BF16, 1>(dv, pf + 4 * k, dod + k * 128, 1);
                wgmma_commit();
            }
            turns.pass();
            wgmma_wait<0>();
            hold(dp);
            hold(dv);
#pragma unroll
            for (int j = 0; j < ROWS / 8; j++) {
                const float2 delta = *(const float2 *)(facts.delta + 8 * j + 2 * quad);
                df[2 * j] = gradient<BF16>(pf[2 * j], dp[4 * j], dp[4 * j + 1], delta);
                df[2 * j + 1] = gradient<BF16>(pf[2 * j + 1], dp[4 * j + 2], dp[4 * j + 3], delta);
            }
            mbarrier_wait_warp(shared_address(&sh.ds_empty[x & 1]), ((x >> 1) & 1) ^ 1);
            const int thread = thread_again(), lane = thread & 31;
            /* this lane's row of the matrices it stores: see store_matrices */
            const int ds_row = wg_key + (thread >> 5) * 16 + ((lane >> 3) & 1) * 8 + (lane & 7);
            const uint32_t ds_at = base + layout::DS + (x & 1) * layout::DS_BYTES + (uint32_t)ds_row * 128;
#pragma unroll
            for (int j = 0; j < ROWS / 8; j += 2) {
                const uint32_t chunk = (uint32_t)((j & 7) + (lane >> 4)) ^ (uint32_t)(lane & 7);
                store_matrices(ds_at + (j >> 3) * (KEYS * 128) + chunk * 16, df[2 * j], df[2 * j + 1], df[2 * j + 2],
                               df[2 * j + 3]);
            }
            async_proxy_fence();
            mbarrier_arrive_warp(shared_address(&sh.ds_full[x & 1]));
            turns.take();
            {
                const uint64_t qd = wgmma_descriptor(q_at, ROWS * 128);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < ROWS / 16; k++)
                    wgmma_rs<BF16, 1>(dk, df + 4 * k, qd + k * 128, 1);
                wgmma_commit();
            }
            previous = (int)stage;
        }
        turns.pass();
        wgmma_wait<0>();
        hold(dk);
        hold(dv);
        if (previous >= 0) mbarrier_arrive_warp(shared_address(&sh.empty[previous]));
        x0 += (uint32_t)n_tiles;

        const int thread = thread_again(), key = wg_key + (thread >> 5) * 16 + ((thread & 31) >> 2); /* and key + 8 */
        if constexpr (KEYS == 64) { /* warpgroup 0 ends with dK, warpgroup 1 with dV */
            const uint32_t slot = base + layout::MERGE + (uint32_t)thread * 16;
            auto put = [&](const float(&a)[D / 2]) {
#pragma unroll
                for (int i = 0; i < D / 8; i++)
                    store_shared(slot + i * 2048,
                                 make_uint4(__float_as_uint(a[4 * i]), __float_as_uint(a[4 * i + 1]),
                                            __float_as_uint(a[4 * i + 2]), __float_as_uint(a[4 * i + 3])));
            };
            auto add = [&](float(&a)[D / 2]) {
#pragma unroll
                for (int i = 0; i < D / 8; i++) {
                    float b[4];
                    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                                 : "=f"(b[0]), "=f"(b[1]), "=f"(b[2]), "=f"(b[3])
                                 : "r"(slot + i * 2048)
                                 : "memory");
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        a[4 * i + e] += b[e];
                }
            };
            if (wg == 1) put(dk);
            asm volatile("bar.sync 2, 256;" ::: "memory");
            if (wg == 0) {
                add(dk);
                put(dv);
            }
            asm volatile("bar.sync 2, 256;" ::: "memory");
            if (wg == 1) add(dv);
        }
        piece_info piece;
        piece.n_keys = info.n_keys;
        piece.key_row = info.key_row;
        piece.sequence = info.sequence;
        piece.g = info.g;
        const int part = info.part, ranges = info.sums;
        const bool has_dk = KEYS == 128 || wg == 0, has_dv = KEYS == 128 || wg == 1;
        if (part >= 0) {
            float *to = (float *)p.parts + (int64_t)part * (2 * KEYS * D);
            if (has_dk) store_keys_f32<D>(dk, 1.0f, to, D, key, KEYS);
            if (has_dv) store_keys_f32<D>(dv, 1.0f, to + KEYS * D, D, key, KEYS);
            continue;
        }
        if (ranges != 0) {
            float *const to_dk = bwd_sums(p, piece.g - p.kv_head_begin, 0, piece.key_row);
            float *const to_dv = bwd_sums(p, piece.g - p.kv_head_begin, 1, piece.key_row);
            if (ranges & MOBAI_SM90_BWD_EARLIER) {
                if (has_dk) add_keys_f32<D>(dk, to_dk, key, piece.n_keys);
                if (has_dv) add_keys_f32<D>(dv, to_dv, key, piece.n_keys);
            }
            if (ranges & MOBAI_SM90_BWD_LATER) {
                if (has_dk) store_keys_f32<D>(dk, 1.0f, to_dk, D, key, piece.n_keys);
                if (has_dv) store_keys_f32<D>(dv, 1.0f, to_dv, D, key, piece.n_keys);
                continue;
            }
        }
        if (has_dk && p.dkprime)
            store_keys_f32<D>(dk, p.softmax_scale, bwd_dkprime(p, piece.g, piece.key_row, D),
                              (int64_t)p.slice_kv_heads * D, key, piece.n_keys);
        else if (has_dk)
            store_keys<BF16, D, VEC>(dk, p.softmax_scale, p.dk, piece, key);
        if (has_dv) store_keys<BF16, D, VEC>(dv, 1.0f, p.dv, piece, key);
    }
}

/** The loading warpgroup's view of the stream of tiles: where the next gather is. */
template <int BF16, int D, int KEYS, int VEC> struct loader {
    using layout = bwd_layout<D, KEYS>;
    static constexpr int ROWS = layout::ROWS, STAGES = layout::STAGES;
    static constexpr int CHUNKS = D / 8;            /* 16-byte chunks of a row, one a lane */
    static constexpr int PASS_ROWS = 128 / CHUNKS;  /* rows that the warpgroup copies at a time */
    static constexpr int WARP_ROWS = PASS_ROWS / 4; /* of them, by one warp */
    static constexpr int PASSES = ROWS / PASS_ROWS; /* 8 */
    static constexpr int LANE_ROWS = ROWS / 4;      /* rows of a tile that one warp copies, each known to a lane */

    const mobai_sm90_params &p;
    bwd_shared<D, KEYS> &sh;
    const uint32_t base;
    int tile, n_tiles;
    uint32_t row, rank; /* of this lane in the next tile */
    uint32_t piece;     /* number of the piece */
    uint32_t x;         /* number of the next tile to gather */

    static __device__ __forceinline__ int warp() { return ((int)threadIdx.x & 127) >> 5; }
    static __device__ __forceinline__ int lane() { return (int)threadIdx.x & 31; }
    /** Row of the tile that this lane knows. */
    static __device__ __forceinline__ int my_row() {
        const int l = lane() % LANE_ROWS;
        return l / WARP_ROWS * PASS_ROWS + warp() * WARP_ROWS + l % WARP_ROWS;
    }

    __device__ __forceinline__ loader(const mobai_sm90_params &p_, bwd_shared<D, KEYS> &sh_, uint32_t base_)
        : p(p_), sh(sh_), base(base_) {
        piece = 0xffffffffu;
        x = 0;
        tile = n_tiles = 0;
    }

    __device__ __forceinline__ void number() {
        const volatile gather_facts &f = sh.gather;
        const int at = min(tile * ROWS + my_row(), f.n_rows - 1);
        row = __ldg(f.rows + at);
        rank = __ldg(f.ranks + at);
    }

    /** Takes the next piece; n_tiles 0: there is none. All threads of the warpgroup. */
    __device__ __forceinline__ void take() {
        warpgroup_barrier(1);
        piece++;
        const int i = sh.next[piece & 1];
        piece_info *info = &sh.infos[piece % INFOS];
        n_tiles = tile = 0;
        const bool any = i < sh.first_piece[p.n_slice_kv_heads];
        const bool leader = (threadIdx.x & 127) == 0;
        if (!any) {
            if (leader) info->n_tiles = 0;
            warpgroup_barrier(1);
            return;
        }
        if (leader) sh.next[(piece & 1) ^ 1] = atomicAdd((int *)p.scratch, 1);
        int low = 0, high = p.n_slice_kv_heads - 1;
        while (low < high) {
            int middle = (low + high + 1) >> 1;
            if (sh.first_piece[middle] <= i)
                low = middle;
            else
                high = middle - 1;
        }
        const mobai_sm90_bwd_item *item = bwd_items(p, low) + (i - sh.first_piece[low]);
        n_tiles = (int)(__ldg(&item->n_rows) + ROWS - 1) / ROWS;
        if (leader) {
            const int g = p.kv_head_begin + low, sequence = __ldg(&item->sequence);
            const int64_t first = __ldg(&item->first) + (int64_t)g * p.index_row_stride;
            info->n_tiles = n_tiles;
            info->n_masked = (int)__ldg(&item->n_masked);
            info->n_keys = __ldg(&item->n_keys);
            info->key_row = __ldg(&item->key_row);
            info->sequence = sequence;
            info->g = g;
            info->part = __ldg(&item->part);
            info->sums = __ldg(&item->sums);
            volatile gather_facts &f = sh.gather;
            f.rows = (const uint32_t *)p.index_rows + first;
            f.ranks = (const uint16_t *)p.index_ranks + first;
            f.q =
                (const uint16_t *)p.q.address + batch_offset(p.q, sequence) + (int64_t)(g * p.group) * p.q.head_stride;
            f.dout = (const uint16_t *)p.dout.address + batch_offset(p.dout, sequence) +
                     (int64_t)(g * p.group) * p.dout.head_stride;
            f.lse = (const float *)p.lse + (int64_t)(g * p.group) * p.total_q;
            f.delta = (const float *)p.delta + (int64_t)(g * p.group) * p.total_q;
            f.n_rows = (int)__ldg(&item->n_rows);
            f.n_keys = __ldg(&item->n_keys);
            f.pos_shift = __ldg(&item->pos_shift);
            f.key_tile = __ldg(&item->key_tile);
            f.pick_shift = (uint32_t)low * ((uint32_t)(p.query_end - p.query_begin) * (uint32_t)p.group) -
                           (uint32_t)p.query_begin * (uint32_t)p.group;
        }
        warpgroup_barrier(1);
        number();
    }

    /** Copies the keys of piece `number` that begin at `key_row`, of x, to `to`. */
    __device__ __forceinline__ void load_keys(uint32_t to, const mobai_sm90_tensor &t,
                                              const volatile piece_info &info) const {
        const int n_keys = info.n_keys;
        const int thread = (int)threadIdx.x & 127, r = thread / CHUNKS, chunk = thread % CHUNKS;
        const uint16_t *first = (const uint16_t *)t.address + batch_offset(t, info.sequence) + info.g * t.head_stride +
                                (int64_t)info.key_row * t.token_stride + chunk * 8;
        const uint16_t *from = first + r * t.token_stride;
        to += (uint32_t)((chunk >> 3) * (KEYS * 128) + r * 128 + (((chunk & 7) ^ (r & 7)) << 4));
#pragma unroll(VEC ? 4 : 1)
        for (int i = 0; i < KEYS / PASS_ROWS; i++) {
            const bool real = r + i * PASS_ROWS < n_keys;
            gather_chunk<VEC>(to + i * PASS_ROWS * 128, real ? from : first, real, MOBAI_L2_EVICT_FIRST);
            from += PASS_ROWS * t.token_stride;
        }
    }

    /** Starts the copies of the stream's next tile, if there is one; takes the next piece where one ends. One commit.
     */
    __device__ __forceinline__ void gather() {
        if (tile == n_tiles && (piece == 0xffffffffu || n_tiles > 0)) take();
        if (n_tiles == 0) {
            copy_commit();
            return;
        }
        const uint32_t stage = x % STAGES;
        mbarrier_wait_warp(shared_address(&sh.empty[stage]), ((x / STAGES) & 1) ^ 1);
        const uint32_t t = query_of_row(p, row), h = row - t * (uint32_t)p.group;
        const int64_t q_row = (int64_t)t * p.q.token_stride + (int64_t)h * p.q.head_stride;
        const int64_t dout_row = (int64_t)t * p.dout.token_stride + (int64_t)h * p.dout.head_stride;
        const volatile gather_facts &f = sh.gather;
        if (lane() < LANE_ROWS) {
            row_facts<ROWS> &facts = sh.facts[stage];
            const int r = my_row();
            const bool real = tile * ROWS + r < f.n_rows;
            const int64_t at = (int64_t)h * p.total_q + t;
            copy_async_word(shared_address(&facts.delta[r]), f.delta + at);
            if (real)
                copy_async_word(shared_address(&facts.lse[r]), f.lse + at);
            else
                facts.lse[r] = INFINITY;
            facts.last[r] = min(f.n_keys - 1, (int)t + f.pos_shift);
            sh.picks[x & 7][r] = real ? ((row + f.pick_shift) * (uint32_t)p.top_k + rank) * (uint32_t)p.n_key_tiles +
                                            (uint32_t)f.key_tile
                                      : 0xffffffffu;
        }
        const int chunk = lane() % CHUNKS, sub = lane() / CHUNKS;
        const uint16_t *q = f.q + chunk * 8, *dout = f.dout + chunk * 8;
        const uint32_t q_at = base + layout::STAGE + stage * (2 * layout::ROW_BYTES) + (chunk >> 3) * (ROWS * 128);
#pragma unroll(VEC ? PASSES : 1)
        for (int i = 0; i < PASSES; i++) {
            const int r = i * PASS_ROWS + warp() * WARP_ROWS + sub, from = i * WARP_ROWS + sub;
            const uint32_t to = q_at + (uint32_t)(r * 128 + (((chunk & 7) ^ (r & 7)) << 4));
            gather_row<VEC>(to, q + __shfl_sync(MOBAI_FULL_WARP, q_row, from));
            gather_row<VEC>(to + layout::ROW_BYTES, dout + __shfl_sync(MOBAI_FULL_WARP, dout_row, from));
        }
        copy_commit();
        x++;
        if (++tile < n_tiles) number();
    }

    /** Announces tile `number`, whose copies have landed. */
    __device__ __forceinline__ void announce(uint32_t number) {
        async_proxy_fence();
        if (number < x) mbarrier_arrive_warp(shared_address(&sh.full[number % STAGES]));
    }
};

template <int BF16, int N>
static __device__ __forceinline__ void store_partial(char *to, const float (&o)[N], int r, float scale) {
#pragma unroll
    for (int c = 0; c < N / 16; c++) {
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            v[i] = pack16<BF16>(o[16 * c + 4 * i + 2 * r] * scale, o[16 * c + 4 * i + 2 * r + 1] * scale);
        asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.b32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to + c * 64),
                     "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "l"(MOBAI_L2_EVICT_FIRST)
                     : "memory");
    }
}

/** The third warpgroup: loads, dQ. */
template <int BF16, int D, int KEYS, int VEC>
static __device__ __forceinline__ void load_and_finish(const mobai_sm90_params &p, bwd_shared<D, KEYS> &sh,
                                                       uint32_t base) {
    using layout = bwd_layout<D, KEYS>;
    constexpr int STAGES = layout::STAGES;
    loader<BF16, D, KEYS, VEC> load(p, sh, base);
    const int thread = (int)threadIdx.x & 127, lane = thread & 31, quad = lane & 3;
    const int tile_row = (thread >> 5) * 16 + (lane >> 2);

    load.gather();
    if (load.x > 0) {
        load.load_keys(base, p.k, sh.infos[0]);
        load.load_keys(base + layout::V, p.v, sh.infos[0]);
    }
#pragma unroll 1
    for (int i = 1; i < STAGES - 1; i++)
        load.gather();
    copy_wait<0>();
    async_proxy_fence();
    mbarrier_arrive_warp(shared_address(&sh.keys_full[0]));
#pragma unroll 1
    for (uint32_t i = 0; i < STAGES - 2; i++)
        load.announce(i);

    uint32_t y = 0, left = (uint32_t)sh.infos[0].n_tiles; /* tiles of piece y still to come */
#pragma unroll 1
    for (uint32_t x = 0; left > 0; x++) {
        load.gather();
        copy_wait<1>();
        load.announce(x + STAGES - 2);

        mbarrier_wait_warp(shared_address(&sh.ds_full[x & 1]), (x >> 1) & 1);
        const uint64_t dsd = wgmma_descriptor(base + layout::DS + (x & 1) * layout::DS_BYTES, KEYS * 128);
        const uint64_t kd = wgmma_descriptor(base, KEYS * 128);
        const bool last = --left == 0; /* then V was read for the last time */
        const volatile piece_info &next = sh.infos[(y + 1) % INFOS];
        /* 64 rows and 64 columns at a time: registers are short */
#pragma unroll
        for (int part = 0; part < 2; part++) {
            const int m = D == 128 ? 0 : part, n = D == 128 ? part : 0;
            float dq[32];
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++)
                wgmma_ss_mn<BF16>(dq, dsd + m * (KEYS * 8) + k * 128, kd + n * (KEYS * 8) + k * 128, k > 0);
            wgmma_commit();
            if (part == 0 && last && next.n_tiles > 0) load.load_keys(base + layout::V, p.v, next);
            wgmma_wait<0>();
            hold(dq);
            if (part == 1) {
                mbarrier_arrive_warp(shared_address(&sh.ds_empty[x & 1]));
                if (last && next.n_tiles > 0) {
                    warpgroup_barrier(1);
                    load.load_keys(base, p.k, next);
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint32_t pick = sh.picks[x & 7][m * 64 + tile_row + 8 * r];
                if (pick != 0xffffffffu)
                    store_partial<BF16>((char *)p.partials + (int64_t)pick * (D * 2) + n * 128 + quad * 16, dq, r,
                                        p.softmax_scale);
            }
            __syncwarp();
        }
        if (last) {
            copy_commit();
            copy_wait<0>();
            async_proxy_fence();
            mbarrier_arrive_warp(shared_address(&sh.keys_full[0]));
            y++;
            left = (uint32_t)next.n_tiles;
        }
    }
}

template <int BF16, int D, int KEYS, int VEC>
static __device__ __forceinline__ void attend_bwd(const mobai_sm90_params &p) {
    using layout = bwd_layout<D, KEYS>;
    extern __shared__ char raw[];
    __shared__ bwd_shared<D, KEYS> sh;
    const uint32_t base = (shared_address(raw) + 1023) & ~1023u;
    const int warpgroup = __shfl_sync(MOBAI_FULL_WARP, (int)threadIdx.x >> 7, 0);
    if (threadIdx.x == 0) {
        const int *n_items = (const int *)p.scratch + 4;
        int sum = 0;
        for (int g = 0; g < p.n_slice_kv_heads; g++) {
            sh.first_piece[g] = sum;
            sum += __ldg(n_items + g);
        }
        sh.first_piece[p.n_slice_kv_heads] = sum;
        for (int i = 0; i < layout::STAGES; i++) {
            mbarrier_init(shared_address(&sh.full[i]), 4);
            mbarrier_init(shared_address(&sh.empty[i]), KEYS == 128 ? 8 : 4);
        }
        for (int i = 0; i < 2; i++) {
            mbarrier_init(shared_address(&sh.ds_full[i]), KEYS == 128 ? 8 : 4);
            mbarrier_init(shared_address(&sh.ds_empty[i]), 4);
        }
        mbarrier_init(shared_address(&sh.keys_full[0]), 4);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        sh.next[0] = atomicAdd((int *)p.scratch, 1);
    }
    __syncthreads();
    if (warpgroup < 2) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COMPUTE_REGISTERS));
        compute<BF16, D, KEYS, VEC>(p, sh, base, warpgroup);
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(LOAD_REGISTERS));
        load_and_finish<BF16, D, KEYS, VEC>(p, sh, base);
    }
}

#define ATTEND_BWD(NAME, BF16, D, KEYS)                                                                                \
    extern "C" __global__ void __launch_bounds__(384, 1) NAME(const __grid_constant__ mobai_sm90_params p) {           \
        attend_bwd<BF16, D, KEYS, 1>(p);                                                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(384, 1) NAME##_strided(const __grid_constant__ mobai_sm90_params p) { \
        attend_bwd<BF16, D, KEYS, 0>(p);                                                                               \
    }
ATTEND_BWD(attend_bwd_f16_d64_n64, 0, 64, 64)
ATTEND_BWD(attend_bwd_f16_d64_n128, 0, 64, 128)
ATTEND_BWD(attend_bwd_f16_d128_n64, 0, 128, 64)
ATTEND_BWD(attend_bwd_f16_d128_n128, 0, 128, 128)
ATTEND_BWD(attend_bwd_bf16_d64_n64, 1, 64, 64)
ATTEND_BWD(attend_bwd_bf16_d64_n128, 1, 64, 128)
ATTEND_BWD(attend_bwd_bf16_d128_n64, 1, 128, 64)
ATTEND_BWD(attend_bwd_bf16_d128_n128, 1, 128, 128)
