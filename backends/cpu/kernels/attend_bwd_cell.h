/* SPDX-License-Identifier: Apache-2.0
 *
 * The work of the attend backward on one unit: load it, add a cell's gathered rows, store its gradients.
 *
 * With P = exp(scale S - lse): dV += P^T dO, dS = scale P (dP - delta), dK += dS^T Q, dQ += dS K; five products. Sums
 * over rows continue from what is there (mobai_gemm_onto), so results do not depend on how rows are cut into tiles and
 * ranges.
 */
#ifndef MOBAI_CPU_ATTEND_BWD_CELL_H
#define MOBAI_CPU_ATTEND_BWD_CELL_H

#include <math.h>

#include "backends/cpu/kernels/attend_bwd.h"

/** Packs the unit's keys and values. */
static void mobai_bwd_load_unit(const mobai_stage_args *a, const mobai_bwd_lane *lane, const mobai_bwd_unit *unit,
                                const mobai_bwd_block *block) {
    const moba_dtype dtype = (moba_dtype)a->dtype;
    const int64_t bytes = dtype == MOBA_F32 ? 4 : 2, n = unit->end - unit->begin, first = lane->s.k.begin + unit->begin;
    const unsigned char *k = mobai_cpu_k_row(a, &a->k, first, lane->g), *v = mobai_cpu_k_row(a, &a->v, first, lane->g);
    mobai_gemm_pack_transposed(block->k_columns, k, a->k.token_stride * bytes, dtype, n, a->head_dim);
    mobai_gemm_pack_transposed(block->v_columns, v, a->v.token_stride * bytes, dtype, n, a->head_dim);
    mobai_gemm_pack(block->k_rows, k, a->k.token_stride * bytes, dtype, n, a->head_dim);
}

/** Writes the unit's dK (to dkprime when a key convolution follows) and dV. */
static void mobai_bwd_store_unit(const mobai_stage_args *a, const mobai_bwd_extent *e, const mobai_bwd_lane *lane,
                                 const mobai_bwd_unit *unit, const mobai_bwd_block *block) {
    for (int64_t i = 0; i < unit->end - unit->begin; i++) {
        const int64_t t = lane->s.k.begin + unit->begin + i;
        mobai_row_store(mobai_cpu_row(a, &a->dv, a->seqlen_k, t, lane->g), block->dv + i * e->row, (moba_dtype)a->dtype,
                        a->head_dim);
        if (a->kconv_width)
            memcpy(mobai_cpu_dkprime_row(a, t, lane->g), block->dk + i * e->row, (size_t)a->head_dim * sizeof(float));
        else
            mobai_row_store(mobai_cpu_row(a, &a->dk, a->seqlen_k, t, lane->g), block->dk + i * e->row,
                            (moba_dtype)a->dtype, a->head_dim);
    }
}

/** Loads one row of `x` as row i of a tile, in both layouts. */
MOBAI_INLINE void mobai_bwd_gather(const mobai_stage_args *a, const mobai_bwd_extent *e, const unsigned char *x,
                                   int64_t i, float *rows, float *panels) {
    float *row = rows + i * e->tile_row;
    mobai_row_load(row, x, (moba_dtype)a->dtype, a->head_dim, e->row);
    for (int64_t j = 0; j < e->row; j += MOBAI_VL) {
        float *panel = panels + j / MOBAI_GEMM_PANEL * MOBAI_GEMM_PANEL * MOBAI_BWD_TILE;
        mobai_v_store(panel + i * MOBAI_GEMM_PANEL + j % MOBAI_GEMM_PANEL, mobai_v_load(row + j));
    }
}

/** P and dS of row i in place of S and dP; zero for keys the row does not see. */
MOBAI_INLINE void mobai_bwd_softmax(const mobai_bwd_tile *tile, const mobai_bwd_extent *e, int64_t i, int64_t n_keys,
                                    float scale) {
    static const int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    mobai_vi lanes;
    memcpy(&lanes, numbers, sizeof lanes);
    const mobai_vf log2_e = mobai_v_set1(1.44269504f), zero = {0}, factor = mobai_v_set1(scale);
    const mobai_vf shift = mobai_v_set1(-tile->lse[i]), delta = mobai_v_set1(tile->delta[i]);
    float *p_row = tile->p + i * e->score_row, *ds_row = tile->ds + i * e->score_row;
    for (int64_t c = 0; c < n_keys; c += MOBAI_VL) {
        /* Scaled score minus lse, so that large ones cancel before they are rounded again. At most 0 but for rounding:
         * the clamp keeps P <= 1. */
        const mobai_vf power = mobai_v_min(zero, mobai_v_fma(mobai_v_load(p_row + c), factor, shift));
        mobai_vf p = mobai_v_exp2(power * log2_e);
        mobai_vf ds = p * (mobai_v_load(ds_row + c) - delta) * factor;
        const int64_t left = tile->n_visible[i] - c;
        if (left < MOBAI_VL) {
            const mobai_vi seen = lanes < (int32_t)(left > 0 ? left : 0);
            p = mobai_v_select(seen, p, zero);
            ds = mobai_v_select(seen, ds, zero);
        }
        mobai_v_store(p_row + c, p);
        mobai_v_store(ds_row + c, ds);
    }
}

/** Adds gathered rows to the unit's dK and dV and to the rows' dQ: those in rows[0, n), or, NULL, first_row + [0, n).
 */
static void mobai_bwd_add_tile(const mobai_stage_args *a, const mobai_bwd_extent *e, const mobai_bwd_lane *lane,
                               const mobai_bwd_unit *unit, const mobai_bwd_block *block, mobai_bwd_tile *tile,
                               const uint32_t *rows, int64_t first_row, int64_t n, int64_t n_next) {
    static const float ones[MOBAI_BWD_TILE] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const int32_t d = a->head_dim, group = a->group;
    const int64_t n_keys = unit->end - unit->begin;
    const float *lse = (const float *)mobai_cpu_address(a->lse), *delta = (const float *)mobai_cpu_address(a->delta);
    for (int64_t i = 0; i < n; i++) {
        const int64_t r = rows ? rows[i] : first_row + i, t = r / group, h = lane->g * group + r % group;
        mobai_bwd_gather(a, e, mobai_cpu_q_row(a, &a->q, t, h), i, tile->q, tile->q_panels);
        mobai_bwd_gather(a, e, mobai_cpu_q_row(a, &a->dout, t, h), i, tile->dout, tile->dout_panels);
        const float l = lse[h * a->total_q + t];
        tile->lse[i] = l == -INFINITY ? INFINITY : l; /* without a key, P = 0 */
        tile->delta[i] = delta[h * a->total_q + t];
        tile->n_visible[i] = n_keys;
        if (a->causal) tile->n_visible[i] = mobai_min64(n_keys, mobai_cpu_position(&lane->s, t) + 1 - unit->begin);
        tile->dq[i] = lane->dq ? lane->dq + (r - lane->dq_begin * group) * e->row
                               : (float *)(void *)mobai_cpu_row(a, &a->dq, a->seqlen_q, t, h);
    }
    const int64_t columns = (int64_t)d * MOBAI_GEMM_PANEL, tile_panel = (int64_t)MOBAI_BWD_TILE * MOBAI_GEMM_PANEL;
    mobai_gemm(n, n_keys, d, tile->q, e->tile_row, 1, block->k_columns, columns, tile->p, e->score_row, 0);
    mobai_gemm(n, n_keys, d, tile->dout, e->tile_row, 1, block->v_columns, columns, tile->ds, e->score_row, 0);
    for (int64_t i = 0; i < n; i++) {
        if (i < n_next) {
            const int64_t r = rows ? rows[n + i] : first_row + n + i, t = r / group, h = lane->g * group + r % group;
            mobai_cpu_prefetch_row(a, mobai_cpu_q_row(a, &a->q, t, h));
            mobai_cpu_prefetch_row(a, mobai_cpu_q_row(a, &a->dout, t, h));
        }
        mobai_bwd_softmax(tile, e, i, n_keys, a->softmax_scale);
    }
    if (lane->sums != MOBAI_BWD_QUERIES) {
        mobai_gemm(n_keys, d, n, tile->p, 1, e->score_row, tile->dout_panels, tile_panel, block->dv, e->row, 1);
        mobai_gemm(n_keys, d, n, tile->ds, 1, e->score_row, tile->q_panels, tile_panel, block->dk, e->row, 1);
    }
    if (lane->sums != MOBAI_BWD_KEYS)
        mobai_gemm_rows(n, d, n_keys, tile->ds, e->score_row, 1, block->k_rows, n_keys * MOBAI_GEMM_PANEL, tile->dq,
                        ones);
}

#endif
