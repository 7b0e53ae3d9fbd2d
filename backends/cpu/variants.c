/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel variants of the CPU backend, the widest vectors first, and the model of their cost.
 *
 * A cost is work over rate. The work is counted here for a whole pass; the rate is a share of what the tier's
 * micro-kernel was measured to do (kernels/rate.h). The shares are measurements of this code on Zen 5 (docs/performance.md).
 */
#include "backends/cpu/cpu.h"
#include "backends/cpu/kernels/attend.h"
#include "backends/cpu/kernels/stages.h"

/* --------------------------------------------------------------------------------------------------- costs -- */

/* Share of the micro-kernel's rate that a stage reaches on its useful operations. */
static const double ATTEND_SHARE = 0.75, ATTEND_BWD_SHARE = 0.60, GATE_SHARE = 0.45;
/* What a pick costs outside the products: in the index, and as a partial that is written and read again. */
static const double INDEX_NS = 4.0, PICK_NS = 20.0;

static double rows_of(const mobai_shape *s) {
    const double group = (double)s->problem->n_q_heads / s->problem->n_kv_heads;
    return (double)s->n_slice_queries * s->n_slice_kv_heads * group;
}

/** Keys that a query may see on average. */
static double visible_keys(const mobai_shape *s) {
    const double keys = (double)s->problem->max_seqlen_k;
    return s->problem->causal ? 0.5 * keys : keys;
}

/** Keys that a row attends to on average: its blocks, the own one half hidden when causal, or all that are visible. */
static double attended_keys(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    const double visible = visible_keys(s);
    if (p->dense) return visible;
    const double selected = ((double)p->top_k - (p->causal ? 0.5 : 0.0)) * p->block_size;
    return selected < visible ? selected : visible;
}

static double picks_of(const mobai_shape *s) {
    const double per_row = visible_keys(s) / s->problem->block_size + 0.5;
    return rows_of(s) * (per_row < s->problem->top_k ? per_row : s->problem->top_k);
}

/** GFLOP/s of the whole device in `tier`. */
static double rate(const mobai_shape *s, mobai_cpu_tier tier) {
    return mobai_cpu_tier_gflops(tier) * s->caps->n_compute_units;
}

static double copy_us(const mobai_shape *s, double bytes) { return bytes / (s->caps->copy_gbytes * 1e3); }
static double key_elements(const mobai_shape *s) {
    return (double)s->problem->max_total_k * s->n_slice_kv_heads * s->problem->head_dim;
}
static double element_bytes(const mobai_shape *s) { return s->problem->dtype == MOBA_F32 ? 4.0 : 2.0; }

static double attend_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return 4e-3 * s->problem->head_dim * rows_of(s) * attended_keys(s) / (ATTEND_SHARE * rate(s, tier)) +
           1e-3 * PICK_NS * picks_of(s) / s->caps->n_compute_units;
}
/** Writing the partials comes on top; combine reads them. */
static double attend_partials_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return attend_cost(s, tier) + copy_us(s, picks_of(s) * (s->problem->head_dim + 2) * 4.0);
}
static double combine_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return copy_us(s, picks_of(s) * (s->problem->head_dim + 2) * 4.0) +
           2e-3 * picks_of(s) * s->problem->head_dim / (0.1 * rate(s, tier));
}
static double attend_bwd_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return 10e-3 * s->problem->head_dim * rows_of(s) * attended_keys(s) / (ATTEND_BWD_SHARE * rate(s, tier)) +
           2e-3 * PICK_NS * picks_of(s) / s->caps->n_compute_units;
}
static double gate_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    const moba_problem *p = s->problem;
    if (p->top_k == p->n_sink_blocks + p->n_local_blocks) return 1e-3 * INDEX_NS * picks_of(s) / s->caps->n_compute_units;
    return 2e-3 * p->head_dim * rows_of(s) * visible_keys(s) / p->block_size / (GATE_SHARE * rate(s, tier)) +
           1e-3 * INDEX_NS * picks_of(s) / s->caps->n_compute_units;
}
static double index_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    /* Scatter is bound by latency, the same in every tier; the difference keeps the order of the table. */
    return 1e-3 * INDEX_NS * picks_of(s) / s->caps->n_compute_units * (1.0 + 0.01 * (MOBAI_CPU_TIERS - tier));
}
static double centroid_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return copy_us(s, key_elements(s) * element_bytes(s)) + 1e-3 * key_elements(s) / (0.2 * rate(s, tier));
}
static double kconv_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return copy_us(s, 2.0 * key_elements(s) * element_bytes(s)) +
           1e-3 * key_elements(s) * (2.0 * s->problem->kconv_width + 20.0) / (0.2 * rate(s, tier));
}
static double kconv_bwd_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return copy_us(s, key_elements(s) * (4.0 + 2.0 * element_bytes(s))) +
           1e-3 * key_elements(s) * (6.0 * s->problem->kconv_width + 30.0) / (0.2 * rate(s, tier));
}
static double delta_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    const double elements = rows_of(s) * s->problem->head_dim;
    return copy_us(s, 2.0 * elements * element_bytes(s)) + 2e-3 * elements / (0.2 * rate(s, tier));
}

/* -------------------------------------------------------------------------------------------------- tables -- */

#define ANY_DTYPE ((1u << MOBA_F32) | (1u << MOBA_F16) | (1u << MOBA_BF16))

/** Cost and code of one stage in one tier. */
#define STAGE(stage, tier, TIER)                                                                                       \
    static double stage##_##tier##_cost(const mobai_shape *shape) { return stage##_cost(shape, MOBAI_CPU_##TIER); }    \
    static const mobai_cpu_code stage##_##tier##_code = {mobai_cpu_##stage##_##tier};
#define EACH_STAGE(do_stage, tier, TIER)                                                                               \
    do_stage(kconv, tier, TIER) do_stage(centroid, tier, TIER) do_stage(gate, tier, TIER) do_stage(index, tier, TIER)  \
        do_stage(attend, tier, TIER) do_stage(attend_partials, tier, TIER) do_stage(combine, tier, TIER)               \
            do_stage(delta, tier, TIER) do_stage(attend_bwd, tier, TIER) do_stage(kconv_bwd, tier, TIER)

#define ROW(row_name, row_stage, function, row_flow, m, n, row_needs, scratch)                                         \
    {.name = row_name,                                                                                                 \
     .stage = row_stage,                                                                                               \
     .dtypes = ANY_DTYPE,                                                                                              \
     .needs = row_needs,                                                                                               \
     .flow = row_flow,                                                                                                 \
     .tile_m = m,                                                                                                      \
     .tile_n = n,                                                                                                      \
     .cost = function##_cost,                                                                                          \
     .scratch_bytes = scratch,                                                                                         \
     .code = &function##_code}

#define TIER_ROWS(tier, needs)                                                                                         \
    ROW("kconv__" #tier, MOBAI_STAGE_KCONV, kconv_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs, NULL),                     \
        ROW("centroid__" #tier, MOBAI_STAGE_CENTROID, centroid_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs, NULL),        \
        ROW("gate__" #tier, MOBAI_STAGE_GATE, gate_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs,                           \
            mobai_cpu_gate_scratch_##tier),                                                                            \
        ROW("index__" #tier, MOBAI_STAGE_INDEX, index_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs,                        \
            mobai_cpu_index_scratch_##tier),                                                                           \
        ROW("attend__" #tier "_onepass_m96n128", MOBAI_STAGE_ATTEND, attend_##tier, MOBAI_FLOW_ONE_PASS, 96, 128,      \
            needs, mobai_cpu_attend_scratch_##tier),                                                                   \
        ROW("attend__" #tier "_partials_m96n128", MOBAI_STAGE_ATTEND, attend_partials_##tier,                          \
            MOBAI_FLOW_PARTIALS_F32, 96, 128, needs, mobai_cpu_attend_scratch_##tier),                                 \
        ROW("combine__" #tier, MOBAI_STAGE_COMBINE, combine_##tier, MOBAI_FLOW_PARTIALS_F32, 0, 0, needs, NULL),       \
        ROW("delta__" #tier, MOBAI_STAGE_DELTA, delta_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs, NULL),                 \
        ROW("attend_bwd__" #tier "_onepass", MOBAI_STAGE_ATTEND_BWD, attend_bwd_##tier, MOBAI_FLOW_ONE_PASS, 0, 0,     \
            needs, mobai_cpu_attend_bwd_scratch_##tier),                                                               \
        ROW("kconv_bwd__" #tier, MOBAI_STAGE_KCONV_BWD, kconv_bwd_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs,            \
            mobai_cpu_kconv_bwd_scratch_##tier)

EACH_STAGE(STAGE, plain, PLAIN)
#if defined(MOBAI_CPU_TIER_2)
EACH_STAGE(STAGE, avx2, AVX2)
EACH_STAGE(STAGE, avx512, AVX512)
#endif

#if defined(MOBAI_CPU_TIER_3)
/* A bfloat16 dot product does twice the work of a float32 FMA of the same width. */
static double attend_avx512bf16_cost(const mobai_shape *s) { return 0.5 * attend_cost(s, MOBAI_CPU_AVX512); }
static const mobai_cpu_code attend_avx512bf16_code = {mobai_cpu_attend_avx512bf16};

/** The dot products take neighbours in head_dim by twos. */
static const char *reject_odd_head_dim(const moba_problem *problem, const mobai_caps *caps) {
    (void)caps;
    return problem->head_dim % 2 == 0 ? NULL : "head_dim is odd";
}
#endif

const mobai_variant mobai_cpu_variants[] = {
#if defined(MOBAI_CPU_TIER_3)
    {.name = "attend_bf16__avx512bf16_onepass_m96n128",
     .stage = MOBAI_STAGE_ATTEND,
     .dtypes = 1u << MOBA_BF16,
     .needs = MOBAI_CPU_NEEDS_AVX512BF16,
     .flow = MOBAI_FLOW_ONE_PASS,
     .tile_m = 96,
     .tile_n = 128,
     .reject = reject_odd_head_dim,
     .cost = attend_avx512bf16_cost,
     .scratch_bytes = mobai_cpu_attend_scratch_avx512bf16,
     .code = &attend_avx512bf16_code},
#endif
#if defined(MOBAI_CPU_TIER_2)
    TIER_ROWS(avx512, MOBAI_CPU_NEEDS_AVX512),
    TIER_ROWS(avx2, MOBAI_CPU_NEEDS_AVX2),
#endif
    TIER_ROWS(plain, 0),
};
_Static_assert(sizeof mobai_cpu_variants / sizeof mobai_cpu_variants[0] == MOBAI_CPU_N_VARIANTS,
               "MOBAI_CPU_N_VARIANTS counts the rows above");
