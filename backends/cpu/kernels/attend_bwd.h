/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside of the attend backward: its scratch, and the work of one cell (attend_bwd_cell.h), which the schedule in
 * attend_bwd.c hands out.
 *
 *   unit   a key block, or a piece of one of at most n_keys keys: what dK and dV are accumulated for
 *   lane   all units and all query rows of one (sequence, kv head)
 *   range  a span of a lane's query rows
 *   cell   the gathered rows of one unit within one range
 */
#ifndef MOBAI_CPU_ATTEND_BWD_H
#define MOBAI_CPU_ATTEND_BWD_H

#include "backends/cpu/gemm.h"
#include "backends/cpu/kernels/sequence.h"

enum {
    MOBAI_BWD_TILE = 96, /* gathered rows worked on at once: a multiple of MOBAI_GEMM_MR */
    MOBAI_BWD_PAD = 16   /* floats after each row, so that rows do not compete for the same cache sets */
};

/** Extents in floats that follow from head_dim. */
typedef struct mobai_bwd_extent {
    int64_t n_keys;    /* of a unit */
    int64_t row;       /* head_dim rounded up to whole vectors: what a product writes */
    int64_t panels;    /* head_dim rounded up to whole panels */
    int64_t tile_row;  /* from one gathered row to the next */
    int64_t score_row; /* from one row of scores to the next */
    size_t block, tile;
} mobai_bwd_extent;

/** One unit's keys and values in the forms that products want, and its gradients so far. */
typedef struct mobai_bwd_block {
    float *k_columns, *v_columns; /* packed transposed: B of S = Q K^T and dP = dO V^T */
    float *k_rows;                /* packed: B of dQ = dS K */
    float *dk, *dv;               /* [n_keys][row] */
} mobai_bwd_block;

/** One thread's gathered rows. */
typedef struct mobai_bwd_tile {
    float *q, *dout;               /* [TILE][tile_row]: A of S and dP */
    float *q_panels, *dout_panels; /* the same rows as B of dK = dS^T Q and dV = P^T dO */
    float *p, *ds;                 /* [TILE][score_row]; S and dP before */
    float lse[MOBAI_BWD_TILE], delta[MOBAI_BWD_TILE];
    int64_t n_visible[MOBAI_BWD_TILE]; /* keys of the unit that the row sees */
    float *dq[MOBAI_BWD_TILE];
} mobai_bwd_tile;

/** A unit: keys [begin, end) of its sequence, inside block slot `slot`. */
typedef struct mobai_bwd_unit {
    int64_t slot, begin, end;
} mobai_bwd_unit;

/** Which sums a pass over the cells adds to. */
typedef enum mobai_bwd_sums { MOBAI_BWD_ALL, MOBAI_BWD_KEYS, MOBAI_BWD_QUERIES } mobai_bwd_sums;

/** A lane, and where its dQ accumulates: `dq` [(query row - dq_begin) * group + head][row], or NULL: in the dq tensor
 * itself. */
typedef struct mobai_bwd_lane {
    mobai_cpu_blocks s;
    int64_t g;
    mobai_bwd_sums sums;
    float *dq;
    int64_t dq_begin;
} mobai_bwd_lane;

static inline mobai_bwd_extent mobai_bwd_extent_of(int32_t head_dim) {
    mobai_bwd_extent e;
    e.n_keys = head_dim <= 128 ? 128 : 64;
    e.row = mobai_ceil_div(head_dim, MOBAI_VL) * MOBAI_VL;
    e.panels = mobai_gemm_padded(head_dim);
    e.tile_row = e.row + MOBAI_BWD_PAD;
    e.score_row = e.n_keys + MOBAI_BWD_PAD;
    e.block = (size_t)(e.n_keys * (2 * head_dim + e.panels + 2 * e.row));
    e.tile = (size_t)(MOBAI_BWD_TILE * 2 * (e.tile_row + e.panels + e.score_row));
    return e;
}

static inline mobai_bwd_block mobai_bwd_block_at(float *base, const mobai_bwd_extent *e, int32_t head_dim) {
    mobai_bwd_block b;
    b.k_columns = base;
    b.v_columns = b.k_columns + e->n_keys * head_dim;
    b.k_rows = b.v_columns + e->n_keys * head_dim;
    b.dk = b.k_rows + e->n_keys * e->panels;
    b.dv = b.dk + e->n_keys * e->row;
    return b;
}

static inline void mobai_bwd_tile_init(mobai_bwd_tile *tile, float *base, const mobai_bwd_extent *e) {
    tile->q = base;
    tile->dout = tile->q + MOBAI_BWD_TILE * e->tile_row;
    tile->q_panels = tile->dout + MOBAI_BWD_TILE * e->tile_row;
    tile->dout_panels = tile->q_panels + MOBAI_BWD_TILE * e->panels;
    tile->p = tile->dout_panels + MOBAI_BWD_TILE * e->panels;
    tile->ds = tile->p + MOBAI_BWD_TILE * e->score_row;
}

#endif
