/* SPDX-License-Identifier: Apache-2.0
 *
 * What the sm_90a kernels receive: mobai_stage_args (core/backend.h) cut to plain device addresses, and the layout of
 * the scratch buffers. Read by host C11 and by device C++.
 */
#ifndef MOBAI_SM90_PARAMS_H
#define MOBAI_SM90_PARAMS_H

#include <stdint.h>

/** A [token][head][head_dim] view. Element offset of row t, head h of sequence b:
 *  t * token_stride + h * head_stride + b * batch_shift, where batch_shift = batch_stride - seqlen * token_stride
 *  without cu_seqlens and 0 with them. */
typedef struct mobai_sm90_tensor {
    uint64_t address;
    int64_t token_stride, head_stride, batch_shift;
} mobai_sm90_tensor;

typedef struct mobai_sm90_params {
    mobai_sm90_tensor q, k, v, o;
    uint64_t lse;        /* 0: not wanted */
    uint64_t cu_q, cu_k; /* 0: none */
    uint64_t centroids, selection;
    uint64_t index_offsets, index_rows, index_ranks;
    uint64_t pick_masks; /* of mobai_stage_args, rows of 1, 2 or 4 bytes; 0: none */
    uint64_t partials, partial_ml;
    uint64_t scratch;
    uint64_t tickets; /* uint32 [kv head of the launch]: work-groups of index_scan that are done */
    uint64_t places;  /* uint32 [kv head][row][top_k]: each pick's position in its kv head's index; 0: none */
    /* attend's pieces of work, of the slice's kv heads */
    uint64_t item_counts; /* mobai_sm90_item_count [kv head] */
    uint64_t items;       /* mobai_sm90_item [kv head][n_item_capacity] */
    uint64_t item_lists;  /* mobai_sm90_list [kv head][n_list_capacity], of which n_slots * n_item_steps */
    int64_t index_row_stride;
    int32_t batch, total_q, total_k, seqlen_q, seqlen_k, n_slots;
    int32_t n_q_heads, group, block_size, top_k, n_sink, n_local, causal;
    int32_t kv_head_begin, n_slice_kv_heads;
    int32_t has_all_rows; /* the slice has every query row */
    int32_t query_begin, query_end;
    int32_t index_chunk_rows, n_index_chunks;
    int32_t n_item_capacity, n_list_capacity; /* attend items and lists of one kv head */
    int32_t item_tiles;                       /* row tiles of an item at most */
    int32_t n_item_steps;                     /* parts of a slice whose Q is worked on at a time */
    uint32_t item_step_rows;                  /* gathered rows of a step */
    int32_t range_queries;                    /* query rows of each of the ranges that are cut at once */
    int32_t range_kv_heads;                   /* what lies between two ranges: items and lists of so many kv heads */
    /* x / group, x / block_size, x / seqlen_q = umulhi(x, magic) >> shift for x < 2^31 and divisors above 1 */
    uint32_t group_magic, group_shift, block_magic, block_shift, seqlen_magic, seqlen_shift;
    float scale_log2; /* softmax_scale * log2(e) */
    /* backward */
    mobai_sm90_tensor dout, dq, dk, dv;
    uint64_t delta;
    uint64_t dkprime; /* of mobai_stage_args, takes the place of dk; 0: none */
    int32_t slice_kv_heads, head_dim;
    int32_t n_key_tiles; /* of a block: each writes a partial of dQ for every pick */
    int32_t row_tile;    /* gathered rows of a tile */
    int32_t n_workers;   /* work-groups that share the slice */
    uint64_t parts;    /* float32 [part][2][keys][head_dim]: dK and dV of the pieces of cut lists, dK not yet scaled */
    uint64_t dkv_sums; /* mobai_stage_args.dkv_sums, dK not yet scaled */
    float softmax_scale;
} mobai_sm90_params;

/** One piece of a key block's list, made by index_items for attend. */
typedef struct mobai_sm90_item {
    int64_t first;          /* position of its first row in the kv head's index */
    uint16_t n_rows;        /* at most item_tiles * 64 */
    uint16_t n_masked;      /* leading rows that do not see every key of a full block */
    uint32_t first_partial; /* place of its first row's partial among its kv head's in the slice */
    int32_t key_row;        /* storage row of the block's first key */
    int32_t n_keys;         /* real keys of the block */
    int32_t pos_shift;      /* query row t sees the block's keys 0 .. t + pos_shift */
    int32_t sequence;
} mobai_sm90_item;

#define MOBAI_SM90_ITEM_MIN_TILES 8 /* row tiles of an item: fewer lose to key loads, more to imbalance */
#define MOBAI_SM90_ITEM_MAX_TILES 40
#define MOBAI_SM90_ITEM_STEPS 32
#define MOBAI_SM90_ITEM_CLASSES 8 /* of pieces by length, long ones first */
#define MOBAI_SM90_MAX_KV_HEADS 512
#define MOBAI_SM90_INDEX_WINDOW 4096    /* slots one index work-group counts */
#define MOBAI_SM90_INDEX_PICKS 65536    /* picks of an index work-group at most */
#define MOBAI_SM90_SCATTER_WARPS 16     /* of a scatter work-group */
#define MOBAI_SM90_SCATTER_PASSES 16    /* picks of a lane in a round: they stay in registers */
#define MOBAI_SM90_INDEX_MIN_GROUPS 264 /* work-groups below which index chunks are made smaller */

/** Where the part of a slot's list lies that one step of a slice has. */
typedef struct mobai_sm90_list {
    int64_t first; /* position of its first row in the kv head's index */
    uint32_t n_rows, first_partial;
    uint32_t n_masked; /* leading rows that do not see every key of a full block */
    uint32_t unused;
} mobai_sm90_list;

/** Pieces of one kv head, and how many of the slice that begins with it attend has taken. */
typedef struct mobai_sm90_item_count {
    int32_t n_taken, n_items;
} mobai_sm90_item_count;

/** One piece of the list of one key tile of a block, made by attend_bwd_items. */
typedef struct mobai_sm90_bwd_item {
    int64_t first; /* position of its first row in the kv head's index */
    uint32_t n_rows;
    uint32_t n_masked; /* leading rows that do not see every key of a full tile */
    int32_t key_row;   /* storage row of the tile's first key */
    int32_t n_keys;    /* real keys of the tile */
    int32_t pos_shift; /* query row t sees the tile's keys 0 .. t + pos_shift */
    int32_t sequence;
    int32_t key_tile; /* number of the tile within its block */
    int32_t part;     /* where its dK and dV go; -1: as `sums` says */
    int32_t sums;     /* MOBAI_SM90_BWD_EARLIER, _LATER */
    int32_t unused;
} mobai_sm90_bwd_item;

/** Where a key's dK and dV are when the slice is one of several query ranges: with EARLIER, an earlier range has rows
 * of the list, whose dkv_sums are added; with LATER, a later range has, and the sums go back to dkv_sums, else to dk
 * and dv. */
#define MOBAI_SM90_BWD_EARLIER 1
#define MOBAI_SM90_BWD_LATER 2

/** The list of one key tile within the slice, and how it is cut: pieces of `per` row tiles, the last one shorter. */
typedef struct mobai_sm90_bwd_list {
    int64_t first; /* position of its first row in the kv head's index */
    uint32_t n_rows, n_masked;
    uint32_t per;
    int32_t n_pieces;
    int32_t first_part; /* of several pieces */
    int32_t sums;       /* MOBAI_SM90_BWD_EARLIER, _LATER */
} mobai_sm90_bwd_list;

/** Lists are cut into pieces of about total / (SHARES * work-groups) row tiles; those up to 1.5 times as long stay
 * whole. */
#define MOBAI_SM90_BWD_SHARES 3.0f
#define MOBAI_SM90_BWD_MIN_TILES 8
#define MOBAI_SM90_BWD_CLASSES 8     /* of pieces by length, long ones first */
#define MOBAI_SM90_BWD_LONG_TILES 32 /* average length from which lists are long */

/** Attend_bwd scratch: work counter and part counter (16 bytes), n_items [kv heads], items [kv heads][n_item_capacity],
 *  lists [kv heads][n_slots][n_key_tiles], parts. */
#define MOBAI_SM90_BWD_ITEMS_OFFSET (16 + 4 * MOBAI_SM90_MAX_KV_HEADS)

#endif
