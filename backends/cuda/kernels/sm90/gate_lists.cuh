/* SPDX-License-Identifier: Apache-2.0
 *
 * What a lane of gate keeps of its half of a row: sorting networks, floats in order, the list in shared memory, and
 * with more than 8 picks the best scores in registers.
 */
#ifndef MOBAI_SM90_GATE_LISTS_CUH
#define MOBAI_SM90_GATE_LISTS_CUH

#include <float.h>

#include "common.cuh"

static __device__ __forceinline__ float greater_of(float a, float b) { return fmaxf(a, b); }
static __device__ __forceinline__ int greater_of(int a, int b) { return max(a, b); }
static __device__ __forceinline__ float lesser_of(float a, float b) { return fminf(a, b); }
static __device__ __forceinline__ int lesser_of(int a, int b) { return min(a, b); }
template <class T> static __device__ __forceinline__ void order(T &a, T &b) {
    const T high = greater_of(a, b), low = lesser_of(a, b);
    a = high;
    b = low;
}
/** Sorts a bitonic sequence, greatest first. */
template <int N, class T> static __device__ __forceinline__ void sort_bitonic(T *v) {
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
template <int N, class T> static __device__ __forceinline__ void merge_best(T *a, const T *b) {
#pragma unroll
    for (int i = 0; i < N; i++)
        a[i] = greater_of(a[i], b[N - 1 - i]);
    sort_bitonic<N>(a);
}
/** merge_best with the lane that differs in `lane_mask`. */
template <int N, class T> static __device__ __forceinline__ void merge_across(T *a, int lane_mask) {
    T b[N];
#pragma unroll
    for (int i = 0; i < N; i++)
        b[i] = __shfl_xor_sync(MOBAI_FULL_WARP, a[i], lane_mask);
    merge_best<N>(a, b);
}
/** The N-th greatest of two sorted lists, this lane's and that of the lane that differs in `lane_mask`. */
template <int N> static __device__ __forceinline__ float kth_of_both(const float *a, int lane_mask) {
    float x = fmaxf(a[N - 1], __shfl_xor_sync(MOBAI_FULL_WARP, a[N - 1], lane_mask));
#pragma unroll
    for (int i = 0; i < N - 1; i++)
        x = fmaxf(x, fminf(a[i], __shfl_xor_sync(MOBAI_FULL_WARP, a[N - 2 - i], lane_mask)));
    return x;
}
/** a[n - 1] for 1 <= n <= N. */
template <int N> static __device__ __forceinline__ float nth(const float *a, int n) {
    float v = a[0];
#pragma unroll
    for (int i = 1; i < N; i++)
        v = n > i ? a[i] : v;
    return v;
}

/** Order-preserving integer of a float that is not NaN; -0 and +0 alike. */
static __device__ __forceinline__ int ordered_int(float x) {
    int b = __float_as_int(x + 0.0f);
    return b < 0 ? b ^ 0x7fffffff : b;
}
static __device__ __forceinline__ float ordered_float(int b) { return __int_as_float(b < 0 ? b ^ 0x7fffffff : b); }

/** The greatest float below x and the least above it; infinities stay. */
static __device__ __forceinline__ float float_below(float x) {
    if (fabsf(x) == INFINITY) return x;
    const int i = ordered_int(x);
    return ordered_float(i == 0 ? -2 : i - 1); /* -1 is -0 */
}
static __device__ __forceinline__ float float_above(float x) {
    return fabsf(x) == INFINITY ? x : ordered_float(ordered_int(x) + 1);
}

/** Puts x into a sorted list, greatest first; the least falls out. Every place follows from two old ones: no chain. */
template <int K> static __device__ __forceinline__ void insert(float (&best)[K], float x) {
#pragma unroll
    for (int i = K - 1; i > 0; i--)
        best[i] = fmaxf(best[i], fminf(best[i - 1], x));
    best[0] = fmaxf(best[0], x);
}
/**
 * What a lane lists of its half of a row: (score, slot) in descending slot order, in shared memory. An entry's slot is
 * its number among the half's: 4 (column / 8) + column % 4.
 */
template <int CAPACITY_> struct half_list {
    static constexpr int CAPACITY = CAPACITY_, ENTRY_STRIDE = 32 * 8, WARP_BYTES = CAPACITY * ENTRY_STRIDE;
    uint32_t list, tail; /* shared addresses of the first entry and past the last one */

    __device__ __forceinline__ int count() const { return (int)(tail - list) / ENTRY_STRIDE; }
    __device__ __forceinline__ bool has_room() const { return tail <= list + (CAPACITY - 2) * ENTRY_STRIDE; }
    static __device__ __forceinline__ void read(uint32_t at, float &score, int &slot) {
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=f"(score), "=r"(slot) : "r"(at) : "memory");
    }
    static __device__ __forceinline__ void write(uint32_t at, float score, int slot) {
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "f"(score), "r"(slot) : "memory");
    }
    __device__ __forceinline__ void append(bool wanted, float score, int slot) {
        if (wanted) {
            write(tail, score, slot);
            tail += ENTRY_STRIDE;
        }
    }
    /** Appends a score that is at least `least`: one piece of assembly, so that no branch comes of it. */
    __device__ __forceinline__ void append_from(float least, float score, int slot) {
        asm volatile("{\n.reg .pred p;\nsetp.ge.f32 p, %1, %2;\n@p st.shared.v2.u32 [%0], {%1, %3};\n"
                     "@p add.u32 %0, %0, %4;\n}"
                     : "+r"(tail)
                     : "f"(score), "f"(least), "r"(slot), "n"(ENTRY_STRIDE)
                     : "memory");
    }
    /** Cuts the list to the entries that reach `least`. */
    __device__ __forceinline__ void compact(float least) {
        constexpr int BATCH = CAPACITY < 16 ? CAPACITY : 8;
        const uint32_t end = tail;
        tail = list;
#pragma unroll 1
        for (uint32_t from = list; __any_sync(MOBAI_FULL_WARP, from < end); from += BATCH * ENTRY_STRIDE) {
            float score[BATCH];
            int slot[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                score[i] = NAN;
                if (from + i * ENTRY_STRIDE < end) read(from + i * ENTRY_STRIDE, score[i], slot[i]);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                append_from(least, score[i], slot[i]);
        }
    }
    /** Removes one entry with score `least` and the least slot from the two halves of every row with excess > 0. */
    __device__ __forceinline__ void drop_ties(float least, int excess, int half) {
#pragma unroll 1
        while (__any_sync(MOBAI_FULL_WARP, excess > 0)) {
            uint32_t last = 0;
            int last_slot = 0x7fffffff;
#pragma unroll 1
            for (uint32_t at = list; at < tail; at += ENTRY_STRIDE) {
                float score;
                int slot;
                read(at, score, slot);
                if (score == least) last = at, last_slot = 8 * (slot >> 2) + 4 * half + (slot & 3);
            }
            const int other = __shfl_xor_sync(MOBAI_FULL_WARP, last_slot, 1);
            if (excess > 0 && last_slot < other) remove(last);
            excess--;
        }
    }
    __device__ __forceinline__ void remove(uint32_t entry) {
#pragma unroll 1
        for (uint32_t at = entry; at + ENTRY_STRIDE < tail; at += ENTRY_STRIDE) {
            float score;
            int slot;
            read(at + ENTRY_STRIDE, score, slot);
            write(at, score, slot);
        }
        tail -= ENTRY_STRIDE;
    }
};

/**
 * One lane's half of a row while its tiles pass. The list has every score that is among the best K of this half, and
 * others that once were; at most K + 1 of its entries reach best[K - 1].
 */
template <int K> struct half_row : half_list<K == 16 ? 32 : 40> {
    float best[K];

    /** What reaches the bound enters; K - need places of one half are taken for good. */
    __device__ __forceinline__ void start(float bound, int need, int half) {
        const float below = float_below(bound);
#pragma unroll
        for (int i = 0; i < K; i++)
            best[i] = half == 0 && i < K - need ? INFINITY : below;
    }
    __device__ __forceinline__ void take(float x, float y, int slot) {
        const bool second = y > best[K - 1], first = x > best[K - 1];
        this->append(second, y, slot + 1);
        this->append(first, x, slot);
        y = second ? y : -INFINITY;
        x = first ? x : -INFINITY;
        insert<K>(best, fmaxf(x, y));
        const float lesser = fminf(x, y);
        if (__any_sync(MOBAI_FULL_WARP, lesser > best[K - 1])) insert<K>(best, lesser);
    }
    __device__ __forceinline__ void make_room(int need, int half) { this->compact(best[K - 1]); }
    /** Ends a tile: true if the bound, that later tiles have to reach, has changed. They hold lower slots, which lose
     * to equal scores: only what exceeds the worst of the row's best enters. */
    __device__ __forceinline__ bool end_tile(float &bound) {
        const float worst = kth_of_both<K>(best, 1);
#pragma unroll
        for (int i = 0; i < K; i++)
            best[i] = fmaxf(best[i], worst);
        bound = float_above(worst);
        return true;
    }
    /** Cuts the list to what reaches the need-th best score of both halves, which it returns. */
    __device__ __forceinline__ float finish(int need, int half) {
        const float worst = kth_of_both<K>(best, 1);
        this->compact(worst);
        return worst;
    }
};

/**
 * With at most 8 picks, the list alone: what reaches `accept` is appended, and only when a list is full are both
 * halves' lists sorted for the row's need-th best score, `worst`. Within the tile equal scores still enter, because the
 * other half may be further on; later tiles hold lower slots and have to exceed it.
 */
template <> struct half_row<8> : half_list<11> {
    float accept, worst;
    bool settled; /* `worst` has risen in this tile */

    __device__ __forceinline__ void start(float bound, int, int) {
        accept = bound;
        worst = -INFINITY;
        settled = false;
    }
    __device__ __forceinline__ void take(float x, float y, int slot) {
        append_from(accept, y, slot + 1);
        append_from(accept, x, slot);
    }
    /** Cuts both lists of a row to what reaches their need-th best score. */
    __device__ __forceinline__ void make_room(int need, int half) {
        float score[CAPACITY], v[8], w[CAPACITY - 8];
        int slot[CAPACITY];
#pragma unroll
        for (int i = 0; i < CAPACITY; i++) {
            score[i] = -INFINITY; /* less than every entry */
            if (list + i * ENTRY_STRIDE < tail) read(list + i * ENTRY_STRIDE, score[i], slot[i]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = score[i];
        sort_values<8>(v);
#pragma unroll
        for (int i = 0; i < CAPACITY - 8; i++)
            w[i] = score[8 + i];
        order(w[0], w[1]), order(w[1], w[2]), order(w[0], w[1]);
#pragma unroll
        for (int i = 0; i < CAPACITY - 8; i++)
            v[7 - i] = fmaxf(v[7 - i], w[i]);
        sort_bitonic<8>(v);
#pragma unroll 1
        for (int i = need; i < 7; i++) { /* 7 - need places are taken */
#pragma unroll
            for (int j = 7; j > 0; j--)
                v[j] = half == 0 ? v[j - 1] : v[j];
            v[0] = half == 0 ? INFINITY : v[0];
        }
        worst = need > 7 ? kth_of_both<8>(v, 1) : kth_of_both<7>(v, 1);
        const float least = fmaxf(worst, -FLT_MAX);
        tail = list;
#pragma unroll
        for (int i = 0; i < CAPACITY; i++)
            append_from(least, score[i], slot[i]);
            /* at most `need` of a half can stay; the last of equal ones goes */
#pragma unroll 1
        while (__any_sync(MOBAI_FULL_WARP, count() > 8)) {
            uint32_t last = list;
#pragma unroll 1
            for (uint32_t at = list; at < tail; at += ENTRY_STRIDE) {
                float x;
                int unused;
                read(at, x, unused);
                if (x == worst) last = at;
            }
            if (count() > 8) remove(last);
        }
        accept = fmaxf(accept, worst);
        settled = true;
    }
    /** Ends a tile: true if the bound, that later tiles have to reach, has changed. */
    __device__ __forceinline__ bool end_tile(float &bound) {
        if (!settled) return false;
        settled = false;
        bound = accept = fmaxf(accept, float_above(worst));
        return true;
    }
    __device__ __forceinline__ float finish(int need, int half) {
        make_room(need, half);
        return worst;
    }
};

#endif
