/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel variants of the CUDA backend and the model of their cost. Rates are shares of the device's own, measured on an
 * H100 (docs/performance.md).
 */
#include "backends/cuda/cuda.h"
#include "codegen/host/simt_row.h"

/* --------------------------------------------------------------------------------------------------- costs -- */

static const double LAUNCH_US = 2.5; /* one kernel with the gap before it */

static double rows_of(const mobai_shape *s) {
    return (double)s->n_slice_queries * s->n_slice_kv_heads * (s->problem->n_q_heads / s->problem->n_kv_heads);
}
static double visible_blocks(const mobai_shape *s) {
    const double keys = (double)s->problem->max_seqlen_k / s->problem->block_size;
    return s->problem->causal ? 0.5 * keys : keys;
}
static double picks_of(const mobai_shape *s) {
    const double visible = visible_blocks(s) + 0.5;
    return rows_of(s) * (visible < s->problem->top_k ? visible : s->problem->top_k);
}
static double copy_us(const mobai_shape *s, double bytes) { return bytes / (s->caps->copy_gbytes * 1e3); }
static double matrix_us(const mobai_shape *s, double flops) { return flops / (s->caps->matrix_gflops * 1e3); }

static double centroid_cost(const mobai_shape *s) {
    return LAUNCH_US + copy_us(s, 2.0 * (double)s->problem->max_total_k * s->n_slice_kv_heads * s->problem->head_dim);
}
static double gate_cost(const mobai_shape *s) {
    const double scores = rows_of(s) * visible_blocks(s);
    const double selection_us = s->problem->top_k <= 9 ? 1.4e-4 : 5.4e-4; /* a row; lists, thresholds, output */
    return LAUNCH_US + matrix_us(s, 2.0 * scores * s->problem->head_dim) / 0.45 +
           copy_us(s, 2.0 * rows_of(s) * s->problem->head_dim) + selection_us * rows_of(s);
}
static double index_cost(const mobai_shape *s) { return 5.0 * LAUNCH_US + copy_us(s, 50.0 * picks_of(s)); }
static double attend_cost(const mobai_shape *s) {
    const double pairs = picks_of(s) * s->problem->block_size;
    const double bytes = picks_of(s) * (4.0 * s->problem->head_dim + 18.0);
    const double products =
        matrix_us(s, 4.0 * pairs * s->problem->head_dim) / (s->problem->block_size > 128 ? 0.3 : 0.55);
    const double traffic = copy_us(s, bytes);
    return LAUNCH_US + (products > traffic ? products : traffic) * 1.15;
}
static double combine_cost(const mobai_shape *s) {
    return LAUNCH_US +
           copy_us(s, picks_of(s) * (2.0 * s->problem->head_dim + 12.0) + 2.0 * rows_of(s) * s->problem->head_dim);
}
static double delta_cost(const mobai_shape *s) {
    return LAUNCH_US + copy_us(s, 4.0 * rows_of(s) * s->problem->head_dim);
}
static double attend_bwd_cost(const mobai_shape *s) {
    const double pairs = picks_of(s) * s->problem->block_size;
    const double traffic =
        copy_us(s, picks_of(s) * 6.0 * s->problem->head_dim * cuda_key_tiles(s->problem->block_size));
    const double products = matrix_us(s, 10.0 * pairs * s->problem->head_dim) / 0.6;
    return 3.0 * LAUNCH_US + (products > traffic ? products : traffic);
}
static double dq_sum_cost(const mobai_shape *s) {
    const double partials = picks_of(s) * cuda_key_tiles(s->problem->block_size) * 2.0 * s->problem->head_dim;
    return LAUNCH_US + copy_us(s, partials + 2.0 * rows_of(s) * s->problem->head_dim);
}

/* ----------------------------------------------------------------------------------------- rejects, scratch -- */

static const char *reject_sm90(const moba_problem *p) {
    if (p->dense) return "dense attention has no sm_90a kernel";
    if (p->block_size % 64) return "block_size is not a multiple of 64";
    if (p->top_k > 32) return "top_k is above 32";
    if (p->n_kv_heads > MOBAI_SM90_MAX_KV_HEADS) return "n_kv_heads is above 512";
    const int64_t rows = p->max_total_q * (p->n_q_heads / p->n_kv_heads);
    if (rows > INT32_MAX) return "a kv head has more than 2^31 - 1 query rows";
    if (rows > (int64_t)UINT32_MAX / p->top_k) return "a kv head has more than 2^32 - 1 picks";
    return NULL;
}
static const char *reject_any(const moba_problem *p, const mobai_caps *caps) {
    (void)caps;
    return reject_sm90(p);
}
static const char *reject_d64(const moba_problem *p, const mobai_caps *caps) {
    (void)caps;
    return p->head_dim != 64 ? "head_dim is not 64" : reject_sm90(p);
}
static const char *reject_d128(const moba_problem *p, const mobai_caps *caps) {
    (void)caps;
    return p->head_dim != 128 ? "head_dim is not 128" : reject_sm90(p);
}

/** The index runs over all heads at once, whatever the slices of attend. */
static size_t index_scratch(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    return cuda_index_scratch(p->n_kv_heads, p->max_total_q * (p->n_q_heads / p->n_kv_heads), s->n_slots, p->top_k);
}
static size_t partial_bytes(const mobai_shape *s) { return (size_t)s->problem->head_dim * 2; }
/** Of dQ: one for each key tile of the picked block. */
static size_t bwd_partial_bytes(const mobai_shape *s) {
    return partial_bytes(s) * (size_t)cuda_key_tiles(s->problem->block_size);
}

/* ------------------------------------------------------------------------------------------------- table -- */

#define F16 (1u << MOBA_F16)
#define BF16 (1u << MOBA_BF16)

#define CODE(stage, module, d, bf16, type)                                                                             \
    static const cuda_code stage##_##type##_d##d = {module, d, bf16, cuda_launch_##stage};
#define CODES(stage, module)                                                                                           \
    CODE(stage, module, 64, 0, f16)                                                                                    \
    CODE(stage, module, 128, 0, f16) CODE(stage, module, 64, 1, bf16) CODE(stage, module, 128, 1, bf16)
CODES(centroid, CUDA_MODULE_CENTROID)
CODES(gate, CUDA_MODULE_GATE)
CODES(attend, CUDA_MODULE_ATTEND)
CODES(combine, CUDA_MODULE_COMBINE)
CODES(delta, CUDA_MODULE_DELTA)
CODES(attend_bwd, CUDA_MODULE_ATTEND_BWD)
CODES(dq_sum, CUDA_MODULE_DQ_SUM)
static const cuda_code index_any = {CUDA_MODULE_INDEX, 0, 0, cuda_launch_index};

#define ROW(stage_, STAGE, type, DTYPE, d, method, m, n, scratch, partial)                                             \
    {                                                                                                                  \
        .name = #stage_ "_" #type "_d" #d "__sm90_" method, .stage = STAGE, .dtypes = DTYPE, .needs = MOBAI_CAP_WGMMA, \
        .flow = MOBAI_FLOW_PARTIALS_SM90, .tile_m = m, .tile_n = n, .pick_masks = STAGE == MOBAI_STAGE_DQ_SUM,         \
        .reject = reject_d##d, .cost = stage_##_cost, .scratch_bytes = scratch, .partial_bytes = partial,              \
        .code = &stage_##_##type##_d##d                                                                                \
    }
#define ROWS(stage, STAGE, method, m, n, scratch, partial)                                                             \
    ROW(stage, STAGE, bf16, BF16, 128, method, m, n, scratch, partial),                                                \
        ROW(stage, STAGE, f16, F16, 128, method, m, n, scratch, partial),                                              \
        ROW(stage, STAGE, bf16, BF16, 64, method, m, n, scratch, partial),                                             \
        ROW(stage, STAGE, f16, F16, 64, method, m, n, scratch, partial)

/* ---------------------------------------------------------------------------------------- over mma.sync -- */

/* moba_held of backends/hip/kernels/fragments_mma.h: keys and values of 128 keys, 64 queries. */
#define MATRIX_BYTES(d) ((2u * 128 + 64) * (d)*2)

static const char *matrix_reject_attend(const moba_problem *p, const mobai_caps *caps, int32_t dim_tile) {
    const char *why = mobai_driver_matrix_reject_dim(p, dim_tile);
    if (why) return why;
    /* with the kernel's arrays and what the driver takes */
    if (caps->local_memory_bytes < MATRIX_BYTES((size_t)dim_tile) + 8192)
        return "the device's shared memory is too small";
    return NULL;
}
static const char *matrix_reject_gate(const moba_problem *p, const mobai_caps *caps, int32_t dim_tile, int32_t list) {
    const char *(*const reject_wgmma)(const moba_problem *, const mobai_caps *) =
        dim_tile == 64 ? reject_d64 : reject_d128;
    if (caps->set & MOBAI_CAP_WGMMA && !reject_wgmma(p, caps)) return "the gate over wgmma serves it and is faster";
    return mobai_driver_matrix_reject_gate(p, dim_tile, list);
}

/** Keys are taken 64 at a time. Partials are float32. Products at 0.155 of an H100's rate, which wgmma makes; what
 *  share of its own rate another device reaches was not measured. */
static double matrix_cost_attend(const mobai_shape *s) {
    const double keys = 64.0 * ((s->problem->block_size + 63) / 64), d = s->problem->head_dim;
    const double products = matrix_us(s, 4.0 * picks_of(s) * keys * d) / 0.155;
    const double traffic = copy_us(s, picks_of(s) * 6.0 * d);
    return 3.0 * LAUNCH_US + (products > traffic ? products : traffic);
}

#include "backends/driver/matrix_rows.h"

const mobai_variant cuda_variants[CUDA_N_VARIANTS] = {
    ROWS(centroid, MOBAI_STAGE_CENTROID, "rows", 0, 0, NULL, NULL),
    ROWS(gate, MOBAI_STAGE_GATE, "wgmma_m64n128", 64, 128, NULL, NULL),
    {.name = "index__sm90_staged",
     .stage = MOBAI_STAGE_INDEX,
     .dtypes = F16 | BF16,
     .needs = MOBAI_CAP_WGMMA,
     .flow = MOBAI_FLOW_PARTIALS_SM90,
     .reject = reject_any,
     .cost = index_cost,
     .scratch_bytes = index_scratch,
     .pick_masks = true,
     .code = &index_any},
    ROWS(attend, MOBAI_STAGE_ATTEND, "wgmma_m64n128", 64, 128, cuda_slice_item_bytes, partial_bytes),
    ROWS(combine, MOBAI_STAGE_COMBINE, "rows", 0, 0, NULL, partial_bytes),
    ROWS(delta, MOBAI_STAGE_DELTA, "rows", 0, 0, NULL, NULL),
    ROWS(attend_bwd, MOBAI_STAGE_ATTEND_BWD, "wgmma_m64n128", 64, 128, cuda_attend_bwd_scratch, bwd_partial_bytes),
    ROWS(dq_sum, MOBAI_STAGE_DQ_SUM, "rows", 0, 0, NULL, bwd_partial_bytes),
    MATRIX_ROWS("sm80_mma", 128, MOBAI_CAP_MMA),
#include "simt_rows.inc"
};

size_t cuda_kept_bytes(const mobai_variant *variant, const mobai_shape *s) {
    const moba_problem *p = s->problem;
    if (variant->code != &index_any) return 0;
    return cuda_map_bytes(p->n_q_heads, p->max_total_q, p->top_k) + cuda_all_item_bytes(s);
}
