/* SPDX-License-Identifier: Apache-2.0
 *
 * attend: key-block-major gathered attention, one 16-bit partial (and its max and sum) a pick.
 *
 * index_items (index.cu) cuts every block's list into pieces of row tiles, longer pieces first. An attend work-group
 * takes pieces from a counter; it is two warpgroups that share a block's K and V in shared memory, each
 * gathering its own tiles of 64 query rows: the next tile's copies start as soon as the scores are in registers, the row
 * numbers of the tile after that are loaded then. Two work-groups on a multiprocessor hide each other's key loads.
 * Scores never leave registers, and a block of up to KEYS keys needs no rescaling; longer blocks stream through shared
 * memory KEYS keys at a time with an online softmax (attend_stream).
 *
 * Partials lie in list order, so that a tile writes one run of memory, and are normalised by the pick's own sum. 64-byte
 * group c of a partial holds columns 32 c .. 32 c + 31 as the accumulators lie: 16 bytes of lane t of a quad are columns
 * 32 c + 8 i + 2 t + {0, 1}, i = 0 .. 3. partial_ml holds two arrays of the slice's number of picks: the log-sum-exp
 * (base 2) of each partial in list order, and, where the index left no map of picks (params.h: places), the number
 * of each pick's partial in rank order (attend_places).
 */
#include "common.cuh"
#include "wgmma.cuh"

/** The slice's number of picks: the length of each array in partial_ml. */
static __device__ __forceinline__ int64_t n_picks(const mobai_sm90_params &p) {
    return (int64_t)p.n_slice_kv_heads * (p.query_end - p.query_begin) * p.group * p.top_k;
}

/** Inverts the index: the partial of each pick. */
extern "C" __global__ void __launch_bounds__(128) attend_places(const __grid_constant__ mobai_sm90_params p) {
    const int slice_g = (int)blockIdx.y, g = p.kv_head_begin + slice_g;
    const mobai_sm90_list list = ((const mobai_sm90_list *)p.item_lists)[(int64_t)slice_g * p.n_list_capacity + blockIdx.x];
    const uint32_t *rows = (const uint32_t *)p.index_rows + g * p.index_row_stride + list.first;
    const uint16_t *ranks = (const uint16_t *)p.index_ranks + g * p.index_row_stride + list.first;
    const uint32_t slice_rows = (uint32_t)(p.query_end - p.query_begin) * (uint32_t)p.group;
    const uint32_t shift = (uint32_t)slice_g * slice_rows - (uint32_t)p.query_begin * (uint32_t)p.group;
    uint32_t *places = (uint32_t *)p.partial_ml + n_picks(p);
    const uint32_t first_partial = list.first_partial + (uint32_t)slice_g * slice_rows * (uint32_t)p.top_k;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < list.n_rows; i += 128)
        places[(__ldg(rows + i) + shift) * (uint32_t)p.top_k + __ldg(ranks + i)] = first_partial + i;
}

/* ------------------------------------------------------------------------------------------- main kernels -- */

/** threadIdx.x, read where it stands: what follows from it is then not kept in registers across the tile loop. */
static __device__ __forceinline__ int thread_here() {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

/** Copies KEYS keys into 128-byte-swizzled tiles of KEYS rows; rows past n_keys become zeros. */
template <int D, int KEYS, int VEC>
static __device__ __forceinline__ void load_keys(uint32_t to, const mobai_sm90_tensor &x, int g, int sequence, int key_row,
                                                 int n_keys) {
    constexpr int CHUNKS = D / 8, STEP = 256 / CHUNKS; /* rows of one pass: a multiple of the swizzle's 8 */
    const int thread = thread_here(), row = thread / CHUNKS, chunk = thread % CHUNKS;
    const uint16_t *first = (const uint16_t *)x.address + batch_offset(x, sequence) + g * x.head_stride +
                            (int64_t)key_row * x.token_stride + chunk * 8;
    const uint16_t *from = first + row * x.token_stride;
    to += (uint32_t)((chunk >> 3) * (KEYS * 128) + row * 128 + (((chunk & 7) ^ (row & 7)) << 4));
#pragma unroll
    for (int i = 0; i < KEYS / STEP; i++) {
        bool real = row + i * STEP < n_keys;
        gather_chunk<VEC>(to + i * STEP * 128, real ? from : first, real, MOBAI_L2_EVICT_FIRST);
        from += STEP * x.token_stride;
    }
}

/** The gathered query rows of one warpgroup. */
template <int D, int VEC> struct row_gather {
    static constexpr int CHUNKS = D / 8, PER_THREAD = 64 * CHUNKS / 128, STEP = 128 / CHUNKS;
    uint32_t rows[PER_THREAD];

    __device__ __forceinline__ void number(const uint32_t *list, int tile, int n_rows) {
        const int thread = thread_here() & 127;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++)
            rows[i] = __ldg(list + min(tile * 64 + thread / CHUNKS + i * STEP, n_rows - 1));
    }
    /** `from` is the sequence's and kv head's first element. */
    __device__ __forceinline__ void fetch(const mobai_sm90_params &p, uint32_t to, const uint16_t *from) const {
        const int thread = thread_here() & 127, chunk = thread % CHUNKS;
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) {
            int r = thread / CHUNKS + i * STEP;
            uint32_t t = query_of_row(p, rows[i]), h = rows[i] - t * (uint32_t)p.group;
            gather_chunk<VEC>(to + (chunk >> 3) * 8192 + r * 128 + (((chunk & 7) ^ (r & 7)) << 4),
                              from + (int64_t)((uint64_t)t * (uint32_t)p.q.token_stride + (uint64_t)h * (uint32_t)p.q.head_stride) +
                                 chunk * 8, true,
                              MOBAI_L2_EVICT_LAST);
        }
        copy_commit();
    }
};

/** Hides from each row of scores the columns past what it sees; `limit` is the last visible column. */
template <int N> static __device__ __forceinline__ void mask_columns(float (&s)[N], int quad, int limit0, int limit1) {
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int column = 8 * j + 2 * quad + e;
            if (column > limit0) s[4 * j + e] = -INFINITY;
            if (column > limit1) s[4 * j + 2 + e] = -INFINITY;
        }
}

static __device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(MOBAI_FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(MOBAI_FULL_WARP, x, 2));
}
static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(MOBAI_FULL_WARP, x, 1);
    return x + __shfl_xor_sync(MOBAI_FULL_WARP, x, 2);
}

/** Greatest scores of the lane's two rows, over the quad. NaN is passed over here and comes back as the sum. */
template <int N> static __device__ __forceinline__ void row_max(const float (&s)[N], float *m0, float *m1) {
    float a = fmaxf(s[0], s[1]), b = fmaxf(s[2], s[3]);
#pragma unroll
    for (int j = 1; j < N / 4; j++) {
        a = fmaxf(a, fmaxf(s[4 * j], s[4 * j + 1]));
        b = fmaxf(b, fmaxf(s[4 * j + 2], s[4 * j + 3]));
    }
    *m0 = quad_max(a);
    *m1 = quad_max(b);
}

/** s to 2^(scale * s - m) in 16 bits as the A fragments of the second product; adds this lane's sums. */
template <int BF16, int N>
static __device__ __forceinline__ void exponentials(const float (&s)[N], uint32_t (&f)[N / 2], float scale, float m0,
                                                    float m1, float *sum0, float *sum1) {
    float a0 = 0.0f, a1 = 0.0f, b0 = 0.0f, b1 = 0.0f;
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        float w = exp2_approx(fmaf(s[4 * j], scale, -m0)), x = exp2_approx(fmaf(s[4 * j + 1], scale, -m0));
        float y = exp2_approx(fmaf(s[4 * j + 2], scale, -m1)), z = exp2_approx(fmaf(s[4 * j + 3], scale, -m1));
        a0 += w;
        a1 += x;
        b0 += y;
        b1 += z;
        f[2 * j] = pack16<BF16>(w, x);
        f[2 * j + 1] = pack16<BF16>(y, z);
    }
    *sum0 += a0 + a1;
    *sum1 += b0 + b1;
}

/** Writes half the accumulators (row 0: r 0, row 1: r 1 of the lane) as a partial. */
template <int BF16, int N>
static __device__ __forceinline__ void store_partial(char *to, const float (&o)[N], int r, float scale) {
#pragma unroll
    for (int c = 0; c < N / 16; c++) {
        uint32_t v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float x = o[16 * c + 4 * i + 2 * r], y = o[16 * c + 4 * i + 2 * r + 1];
            v[i] = pack16<BF16>(x * scale, y * scale);
        }
        asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.b32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to + c * 64),
                     "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]), "l"(MOBAI_L2_EVICT_FIRST)
                     : "memory");
    }
}

/** 1 / sum; 0 for a row without weight, whose partial is then 0. */
static __device__ __forceinline__ float inverse_of(float sum) { return sum == 0.0f ? 0.0f : rcp_approx(sum); }

/** Where the next piece of work is. */
struct piece {
    int g; /* kv head within the slice */
    mobai_sm90_item item;
};

/** Running sums of the kv heads' pieces, in shared memory: first[g] .. first[g + 1] - 1 are head g's. */
static __device__ __forceinline__ void sum_pieces(const mobai_sm90_params &p, int *first) {
    const mobai_sm90_item_count *counts = (const mobai_sm90_item_count *)p.item_counts;
    for (int g = (int)threadIdx.x; g < p.n_slice_kv_heads; g += (int)blockDim.x)
        first[g] = __ldg(&counts[g].n_items);
    __syncthreads();
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int g = 0; g < p.n_slice_kv_heads; g++) {
            const int n = first[g];
            first[g] = sum;
            sum += n;
        }
        first[p.n_slice_kv_heads] = sum;
    }
}

static __device__ __forceinline__ piece piece_at(const mobai_sm90_params &p, const int *first, int i) {
    int low = 0, high = p.n_slice_kv_heads - 1;
    while (low < high) {
        int middle = (low + high + 1) >> 1;
        if (first[middle] <= i)
            low = middle;
        else
            high = middle - 1;
    }
    const int4 *from =
        (const int4 *)((const mobai_sm90_item *)p.items + (int64_t)low * p.n_item_capacity + (i - first[low]));
    int4 a = __ldg(from), b = __ldg(from + 1);
    piece x;
    x.g = low;
    x.item.first = (int64_t)(uint32_t)a.x | (int64_t)a.y << 32;
    x.item.n_rows = (uint16_t)a.z;
    x.item.n_masked = (uint16_t)((uint32_t)a.z >> 16);
    x.item.first_partial = (uint32_t)a.w;
    x.item.key_row = b.x;
    x.item.n_keys = b.y;
    x.item.pos_shift = b.z;
    x.item.sequence = b.w;
    return x;
}

/** First element of the piece's sequence and kv head in q. */
static __device__ __forceinline__ const uint16_t *first_query(const mobai_sm90_params &p, const piece &w) {
    return (const uint16_t *)p.q.address + batch_offset(p.q, w.item.sequence) +
           (int64_t)((p.kv_head_begin + w.g) * p.group) * p.q.head_stride;
}

/** What a tile needs of its piece now and then, kept in shared memory: registers are short. */
struct piece_facts {
    const uint32_t *volatile rows;
    const uint16_t *volatile q; /* the sequence's and kv head's first element */
    volatile int n_masked, last_key, pos_shift;
    volatile uint32_t first_partial;
};

static __device__ __forceinline__ void note_facts(const mobai_sm90_params &p, piece_facts *facts, const piece &w) {
    if (threadIdx.x != 0) return;
    const int g = p.kv_head_begin + w.g;
    const int64_t list = (int64_t)g * p.index_row_stride + w.item.first;
    facts->rows = (const uint32_t *)p.index_rows + list;
    facts->q = first_query(p, w);
    facts->n_masked = w.item.n_masked;
    facts->first_partial = w.item.first_partial + (uint32_t)w.g * (uint32_t)(p.query_end - p.query_begin) *
                                                      (uint32_t)p.group * (uint32_t)p.top_k;
    facts->last_key = w.item.n_keys - 1;
    facts->pos_shift = p.causal ? w.item.pos_shift : 0x7fffffff - p.total_q;
}

template <int D, int KEYS> struct attend_layout {
    static constexpr int KEY_BYTES = KEYS * D * 2, Q_BYTES = 64 * D * 2, BYTES = 2 * KEY_BYTES + 2 * Q_BYTES + 1024;
};

template <int BF16, int D, int KEYS, int VEC> static __device__ __forceinline__ void attend(const mobai_sm90_params &p) {
    using layout = attend_layout<D, KEYS>;
    extern __shared__ char raw[];
    __shared__ int first_piece[MOBAI_SM90_MAX_KV_HEADS + 1];
    __shared__ int next[2];
    __shared__ piece_facts facts;
    const uint32_t k_at = (shared_address(raw) + 1023) & ~1023u, v_at = k_at + layout::KEY_BYTES;
    const int warpgroup = __shfl_sync(MOBAI_FULL_WARP, (int)threadIdx.x >> 7, 0);
    const uint32_t q_at = v_at + layout::KEY_BYTES + warpgroup * layout::Q_BYTES;
    const int thread = thread_here(), quad = thread & 3;
    const int tile_row = ((thread & 127) >> 5) * 16 + ((thread & 31) >> 2); /* and tile_row + 8 */
    int *counter = &((mobai_sm90_item_count *)p.item_counts)->n_taken;
    const float scale = fabsf(p.scale_log2);

    sum_pieces(p, first_piece);
    if (threadIdx.x == 0) next[0] = atomicAdd(counter, 1);
    __syncthreads();
    int parity = 0;
    while (next[parity] < first_piece[p.n_slice_kv_heads]) {
        const piece w = piece_at(p, first_piece, next[parity]);
        const int n_rows = w.item.n_rows, n_tiles = (n_rows + 63) >> 6;
        const int64_t list = (int64_t)(p.kv_head_begin + w.g) * p.index_row_stride + w.item.first;
        row_gather<D, VEC> gather;
        if (warpgroup < n_tiles) gather.number((const uint32_t *)p.index_rows + list, warpgroup, n_rows);
        if (threadIdx.x == 0) next[parity ^ 1] = atomicAdd(counter, 1);
        note_facts(p, &facts, w);
        load_keys<D, KEYS, VEC>(k_at, p.k, p.kv_head_begin + w.g, w.item.sequence, w.item.key_row, w.item.n_keys);
        load_keys<D, KEYS, VEC>(v_at, p.v, p.kv_head_begin + w.g, w.item.sequence, w.item.key_row, w.item.n_keys);
        copy_commit();
        if (warpgroup < n_tiles) {
            gather.fetch(p, q_at, first_query(p, w));
            if (warpgroup + 2 < n_tiles)
                gather.number((const uint32_t *)p.index_rows + (int64_t)(p.kv_head_begin + w.g) * p.index_row_stride +
                                  w.item.first,
                              warpgroup + 2, n_rows);
        }
        copy_wait<0>();
        async_proxy_fence();
        __syncthreads();
        parity ^= 1;

#pragma unroll 1
        for (int tile = warpgroup; tile < n_tiles; tile += 2) {
            copy_wait<0>();
            async_proxy_fence();
            warpgroup_barrier(1 + warpgroup);
            float s[KEYS / 2];
            const uint64_t qd = wgmma_descriptor(q_at, 16), kd = wgmma_descriptor(k_at, 16);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < D / 16; k++)
                wgmma_ss<BF16>(s, qd + (k >> 2) * 512 + (k & 3) * 2, kd + (k >> 2) * (KEYS * 8) + (k & 3) * 2, k > 0);
            wgmma_commit();
            wgmma_wait<0>();
            hold(s);
            warpgroup_barrier(1 + warpgroup);
            if (tile + 2 < n_tiles) {
                gather.fetch(p, q_at, facts.q);
                if (tile + 4 < n_tiles) gather.number(facts.rows, tile + 4, n_rows);
            }
            if (p.scale_log2 < 0.0f) {
#pragma unroll
                for (int i = 0; i < KEYS / 2; i++) s[i] = -s[i];
            }
            if (tile * 64 < facts.n_masked) {
                int y0 = min(tile * 64 + tile_row, n_rows - 1), y1 = min(tile * 64 + tile_row + 8, n_rows - 1);
                int shift = facts.pos_shift, last = facts.last_key;
                mask_columns(s, quad, min(last, (int)query_of_row(p, __ldg(facts.rows + y0)) + shift),
                             min(last, (int)query_of_row(p, __ldg(facts.rows + y1)) + shift));
            }
            float m0, m1, sum0 = 0.0f, sum1 = 0.0f;
            row_max(s, &m0, &m1);
            m0 = m0 == -INFINITY ? 0.0f : m0 * scale;
            m1 = m1 == -INFINITY ? 0.0f : m1 * scale;
            uint32_t f[KEYS / 4];
            exponentials<BF16>(s, f, scale, m0, m1, &sum0, &sum1);
            float o[D / 2];
            const uint64_t vd = wgmma_descriptor(v_at, KEYS * 128);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < KEYS / 16; k++) wgmma_rs<BF16, 1>(o, f + 4 * k, vd + k * 128, k > 0);
            wgmma_commit();
            sum0 = quad_sum(sum0);
            sum1 = quad_sum(sum1);
            const bool real0 = tile * 64 + tile_row < n_rows, real1 = tile * 64 + tile_row + 8 < n_rows;
            const uint32_t partial = facts.first_partial + (uint32_t)(tile * 64 + tile_row);
            if (quad == 0) {
                float *lse = (float *)p.partial_ml + partial;
                if (real0) lse[0] = m0 + log2_approx(sum0);
                if (real1) lse[8] = m1 + log2_approx(sum1);
            }
            const float inverse0 = inverse_of(sum0), inverse1 = inverse_of(sum1);
            wgmma_wait<0>();
            hold(o);
            char *to = (char *)p.partials + (int64_t)partial * (D * 2) + quad * 16;
            if (real0) store_partial<BF16>(to, o, 0, inverse0);
            if (real1) store_partial<BF16>(to + 8 * (D * 2), o, 1, inverse1);
        }
        __syncthreads();
    }
}

/** Blocks longer than KEYS keys: both warpgroups walk the block's keys together, tile by tile of their rows. */
template <int BF16, int D, int KEYS, int VEC>
static __device__ __forceinline__ void attend_stream(const mobai_sm90_params &p) {
    using layout = attend_layout<D, KEYS>;
    extern __shared__ char raw[];
    __shared__ int first_piece[MOBAI_SM90_MAX_KV_HEADS + 1];
    __shared__ int next[2];
    __shared__ piece_facts facts;
    const uint32_t k_at = (shared_address(raw) + 1023) & ~1023u, v_at = k_at + layout::KEY_BYTES;
    const int warpgroup = __shfl_sync(MOBAI_FULL_WARP, (int)threadIdx.x >> 7, 0);
    const uint32_t q_at = v_at + layout::KEY_BYTES + warpgroup * layout::Q_BYTES;
    const int lane = (int)threadIdx.x & 31, quad = lane & 3;
    const int tile_row = (((int)threadIdx.x & 127) >> 5) * 16 + (lane >> 2);
    int *counter = &((mobai_sm90_item_count *)p.item_counts)->n_taken;
    const float scale = fabsf(p.scale_log2);

    sum_pieces(p, first_piece);
    if (threadIdx.x == 0) next[0] = atomicAdd(counter, 1);
    __syncthreads();
    int parity = 0;
    while (next[parity] < first_piece[p.n_slice_kv_heads]) {
        const piece w = piece_at(p, first_piece, next[parity]);
        const int n_rows = w.item.n_rows, n_tiles = (n_rows + 63) >> 6;
        if (threadIdx.x == 0) next[parity ^ 1] = atomicAdd(counter, 1);
        note_facts(p, &facts, w);
        __syncthreads();
        parity ^= 1;
        for (int pair = 0; pair < n_tiles; pair += 2) {
            const int tile = pair + warpgroup; /* past the end: computed on the last row, not stored */
            const uint32_t *const rows = facts.rows;
            const int x0 = min(tile * 64 + tile_row, n_rows - 1), x1 = min(tile * 64 + tile_row + 8, n_rows - 1);
            const uint32_t row0 = __ldg(rows + x0), row1 = __ldg(rows + x1);
            int limit0 = facts.last_key, limit1 = limit0;
            if (pair * 64 < facts.n_masked) {
                limit0 = min(limit0, (int)query_of_row(p, row0) + facts.pos_shift);
                limit1 = min(limit1, (int)query_of_row(p, row1) + facts.pos_shift);
            }
            row_gather<D, VEC> gather;
            gather.number(rows, tile, n_rows);
            gather.fetch(p, q_at, facts.q);
            float o[D / 2], m0 = -INFINITY, m1 = -INFINITY, sum0 = 0.0f, sum1 = 0.0f;
#pragma unroll
            for (int i = 0; i < D / 2; i++) o[i] = 0.0f;
#pragma unroll 1
            for (int key = 0; key < w.item.n_keys; key += KEYS) {
                load_keys<D, KEYS, VEC>(k_at, p.k, p.kv_head_begin + w.g, w.item.sequence, w.item.key_row + key,
                                        w.item.n_keys - key);
                load_keys<D, KEYS, VEC>(v_at, p.v, p.kv_head_begin + w.g, w.item.sequence, w.item.key_row + key,
                                        w.item.n_keys - key);
                copy_commit();
                copy_wait<0>();
                async_proxy_fence();
                __syncthreads();
                float s[KEYS / 2];
                const uint64_t qd = wgmma_descriptor(q_at, 16), kd = wgmma_descriptor(k_at, 16);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < D / 16; k++)
                    wgmma_ss<BF16>(s, qd + (k >> 2) * 512 + (k & 3) * 2, kd + (k >> 2) * (KEYS * 8) + (k & 3) * 2, k > 0);
                wgmma_commit();
                wgmma_wait<0>();
                hold(s);
                if (p.scale_log2 < 0.0f) {
#pragma unroll
                    for (int i = 0; i < KEYS / 2; i++) s[i] = -s[i];
                }
                if (!__all_sync(MOBAI_FULL_WARP, min(limit0, limit1) - key >= KEYS - 1))
                    mask_columns(s, quad, limit0 - key, limit1 - key);
                float a0, a1;
                row_max(s, &a0, &a1);
                a0 = fmaxf(m0, a0 * scale);
                a1 = fmaxf(m1, a1 * scale);
                const float base0 = a0 == -INFINITY ? 0.0f : a0, base1 = a1 == -INFINITY ? 0.0f : a1;
                const float c0 = exp2_approx(m0 - base0), c1 = exp2_approx(m1 - base1);
                m0 = a0;
                m1 = a1;
                sum0 *= c0;
                sum1 *= c1;
                uint32_t f[KEYS / 4];
                exponentials<BF16>(s, f, scale, base0, base1, &sum0, &sum1);
#pragma unroll
                for (int i = 0; i < D / 8; i++) {
                    o[4 * i] *= c0;
                    o[4 * i + 1] *= c0;
                    o[4 * i + 2] *= c1;
                    o[4 * i + 3] *= c1;
                }
                const uint64_t vd = wgmma_descriptor(v_at, KEYS * 128);
                hold(o);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < KEYS / 16; k++) wgmma_rs<BF16, 1>(o, f + 4 * k, vd + k * 128, 1);
                wgmma_commit();
                wgmma_wait<0>();
                hold(o);
                __syncthreads();
            }
            sum0 = quad_sum(sum0);
            sum1 = quad_sum(sum1);
            const bool real0 = tile * 64 + tile_row < n_rows, real1 = tile * 64 + tile_row + 8 < n_rows;
            const uint32_t partial = facts.first_partial + (uint32_t)(tile * 64 + tile_row);
            if (quad == 0) {
                float *lse = (float *)p.partial_ml + partial;
                if (real0) lse[0] = (m0 == -INFINITY ? 0.0f : m0) + log2_approx(sum0);
                if (real1) lse[8] = (m1 == -INFINITY ? 0.0f : m1) + log2_approx(sum1);
            }
            char *to = (char *)p.partials + (int64_t)partial * (D * 2) + quad * 16;
            if (real0) store_partial<BF16>(to, o, 0, inverse_of(sum0));
            if (real1) store_partial<BF16>(to + 8 * (D * 2), o, 1, inverse_of(sum1));
        }
        __syncthreads();
    }
}

#define ATTEND(NAME, BF16, D, KEYS)                                                                                    \
    extern "C" __global__ void __launch_bounds__(256, 2) NAME(const __grid_constant__ mobai_sm90_params p) {           \
        attend<BF16, D, KEYS, 1>(p);                                                                                   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 1) NAME##_strided(const __grid_constant__ mobai_sm90_params p) { \
        attend<BF16, D, KEYS, 0>(p);                                                                                   \
    }
#define ATTEND_STREAM(NAME, BF16, D)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256, 1) NAME(const __grid_constant__ mobai_sm90_params p) {           \
        attend_stream<BF16, D, 128, 1>(p);                                                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 1) NAME##_strided(const __grid_constant__ mobai_sm90_params p) { \
        attend_stream<BF16, D, 128, 0>(p);                                                                             \
    }
ATTEND(attend_f16_d64_n64, 0, 64, 64)
ATTEND(attend_f16_d64_n128, 0, 64, 128)
ATTEND(attend_f16_d128_n64, 0, 128, 64)
ATTEND(attend_f16_d128_n128, 0, 128, 128)
ATTEND(attend_bf16_d64_n64, 1, 64, 64)
ATTEND(attend_bf16_d64_n128, 1, 64, 128)
ATTEND(attend_bf16_d128_n64, 1, 128, 64)
ATTEND(attend_bf16_d128_n128, 1, 128, 128)
ATTEND_STREAM(attend_f16_d64_stream, 0, 64)
ATTEND_STREAM(attend_f16_d128_stream, 0, 128)
ATTEND_STREAM(attend_bf16_d64_stream, 1, 64)
ATTEND_STREAM(attend_bf16_d128_stream, 1, 128)
