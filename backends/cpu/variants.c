/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel variants of the CPU backend, the widest vectors first, and the model of their cost.
 *
 * A cost is arithmetic over the rate that the tier's micro-kernel was measured to have on this machine
 * (kernels/rate.h), plus what does not scale with it: gathering rows and bookkeeping, in nanoseconds. The constants
 * were fitted by least squares of the relative error on Zen 5 in f32 and bf16 (head_dim 32 to 256, block_size 32 to
 * 512, top_k 2 to 16 and dense), attend to the CPU time of one thread on 14 shapes, attend_bwd to the time of two
 * threads on 12: most are within 15 % there, gate within 25 %. On another machine the arithmetic follows its own
 * measured rate; the nanoseconds are those of a core of about 4 GHz with gathered rows in its second or third cache
 * level, and a fifth to a third of a pass, so a machine that differs in them by a factor of 1.5 is still predicted
 * within 15 % or so. `moba advise --measure` compares model and clock.
 */
#include "backends/cpu/cpu.h"
#include "backends/cpu/kernels/attend.h"
#include "backends/cpu/kernels/stages.h"

/* --------------------------------------------------------------------------------------------------- costs -- */

/* Attend: operations a pair beyond the products (scale, exponential, sum, rounding), in those of the micro-kernel; how
 * much slower the products themselves are; rows' worth of a tile that every visited block costs in packing and in its
 * last, unfilled tile; and what a pick costs, per row and per element of head_dim, to gather and to merge. */
typedef struct attend_fit {
    double pair_flops, product_factor, block_rows, pick_ns, element_ns;
} attend_fit;
static const attend_fit ATTEND = {72.0, 1.07, 110.0, 11.0, 0.21};
static const attend_fit ATTEND_BWD = {37.0, 0.97, 250.0, 49.0, 0.14};
/* Products of a lane that several threads walk in waves: its dQ moves between their caches. */
static const double WAVES_FACTOR = 1.27;
/* Index: what a pick costs in counting and scattering. Gate: a row and a pick, beside the product with the centroids,
 * which is narrow and followed by the selection, hence its factor. Centroid: an element. */
static const double INDEX_NS = 4.0, GATE_ROW_NS = 27.0, GATE_PICK_NS = 23.0, GATE_FACTOR = 2.2, CENTROID_NS = 0.35;

static double rows_of(const mobai_shape *s) {
    const double group = (double)s->problem->n_q_heads / s->problem->n_kv_heads;
    return (double)s->n_slice_queries * s->n_slice_kv_heads * group;
}

/** Mean of min(visible, most) over the rows: a causal row sees one key more than the row before it, the last one all.
 */
static double mean_visible(const mobai_shape *s, double most) {
    const double keys = (double)s->problem->max_seqlen_k, rows = (double)s->problem->max_seqlen_q;
    if (!s->problem->causal) return keys < most ? keys : most;
    const double least = keys > rows ? keys - rows : 0.0;
    const double seeing = keys > rows || rows == 0.0 ? 1.0 : keys / rows; /* share of rows that see any key */
    if (most <= least) return seeing * most;
    if (most >= keys || keys == least) return seeing * 0.5 * (least + keys);
    return seeing * (0.5 * (most * most - least * least) + most * (keys - most)) / (keys - least);
}

static double visible_keys(const mobai_shape *s) { return mean_visible(s, (double)s->problem->max_seqlen_k); }

/** Keys that a row attends to on average: its blocks, the own one half hidden when causal, or all that are visible. */
static double attended_keys(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    if (p->dense) return visible_keys(s);
    return mean_visible(s, ((double)p->top_k - (p->causal ? 0.5 : 0.0)) * p->block_size);
}

/** (row, block) pairs. A dense row is walked through the keys once, like one pick. */
static double picks_of(const mobai_shape *s) {
    if (s->problem->dense) return rows_of(s);
    return rows_of(s) * (attended_keys(s) / s->problem->block_size + (s->problem->causal ? 0.5 : 0.0));
}

/** Keys of the blocks that some row visits, over the kv heads. */
static double visited_keys(const mobai_shape *s) {
    const double keys = (double)s->problem->max_total_k * s->n_slice_kv_heads;
    const double chosen = s->problem->dense ? keys : picks_of(s) * s->problem->block_size;
    return chosen < keys ? chosen : keys;
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

/** `products` operations a pair and element of head_dim: 4 forward, 10 backward. */
static double fitted_cost(const mobai_shape *s, mobai_cpu_tier tier, const attend_fit *fit, double products) {
    const double d = s->problem->head_dim;
    const double pairs = rows_of(s) * attended_keys(s);
    const double flops = pairs * (products * d * fit->product_factor + fit->pair_flops) +
                         visited_keys(s) * fit->block_rows * products * d;
    return 1e-3 * flops / rate(s, tier) +
           1e-3 * picks_of(s) * (fit->pick_ns + fit->element_ns * d) / s->caps->n_compute_units;
}

static double attend_cost(const mobai_shape *s, mobai_cpu_tier tier) { return fitted_cost(s, tier, &ATTEND, 4.0); }
/** Writing the partials comes on top; combine reads them. */
static double attend_partials_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return attend_cost(s, tier) + copy_us(s, picks_of(s) * (s->problem->head_dim + 2) * 4.0);
}
static double combine_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return copy_us(s, picks_of(s) * (s->problem->head_dim + 2) * 4.0) +
           2e-3 * picks_of(s) * s->problem->head_dim / (0.1 * rate(s, tier));
}
/** Five products a pair, in one walk or in two (dK and dV, then dQ), which share S and dP, so seven. */
static double attend_bwd_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    const moba_problem *p = s->problem;
    const int64_t n_lanes = p->max_batch * s->n_slice_kv_heads, n_threads = s->caps->n_compute_units;
    const int64_t lane_floats = p->max_seqlen_q * (p->n_q_heads / p->n_kv_heads) * p->head_dim;
    const bool in_place = p->dtype == MOBA_F32 && p->head_dim % 16 == 0;
    const bool two_walks = !in_place && lane_floats > mobai_cpu_dq_floats_limit(s);
    attend_fit fit = ATTEND_BWD;
    if (n_threads > 1 && n_lanes < 4 * n_threads) fit.product_factor *= WAVES_FACTOR;
    if (!two_walks) return fitted_cost(s, tier, &fit, 10.0);
    fit.pair_flops *= 1.4;
    fit.pick_ns *= 1.4;
    fit.element_ns *= 1.4;
    return fitted_cost(s, tier, &fit, 14.0);
}
static double gate_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    const moba_problem *p = s->problem;
    if (p->top_k == p->n_sink_blocks + p->n_local_blocks)
        return 1e-3 * INDEX_NS * picks_of(s) / s->caps->n_compute_units;
    return 2e-3 * p->head_dim * rows_of(s) * visible_keys(s) / p->block_size * GATE_FACTOR / rate(s, tier) +
           1e-3 * (GATE_ROW_NS * rows_of(s) + GATE_PICK_NS * picks_of(s)) / s->caps->n_compute_units;
}
static double index_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    /* Scatter is bound by latency, the same in every tier; the difference keeps the order of the table. */
    return 1e-3 * INDEX_NS * picks_of(s) / s->caps->n_compute_units * (1.0 + 0.01 * (MOBAI_CPU_TIERS - tier));
}
static double centroid_cost(const mobai_shape *s, mobai_cpu_tier tier) {
    return 1e-3 * CENTROID_NS * key_elements(s) / s->caps->n_compute_units * (1.0 + 0.01 * (MOBAI_CPU_TIERS - tier));
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
    {                                                                                                                  \
        .name = row_name, .stage = row_stage, .dtypes = ANY_DTYPE, .needs = row_needs, .flow = row_flow, .tile_m = m,  \
        .tile_n = n, .cost = function##_cost, .scratch_bytes = scratch, .code = &function##_code                       \
    }

#define TIER_ROWS(tier, needs)                                                                                         \
    ROW("kconv__" #tier, MOBAI_STAGE_KCONV, kconv_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs, NULL),                     \
        ROW("centroid__" #tier, MOBAI_STAGE_CENTROID, centroid_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs, NULL),        \
        ROW("gate__" #tier, MOBAI_STAGE_GATE, gate_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs,                           \
            mobai_cpu_gate_scratch_##tier),                                                                            \
        ROW("index__" #tier, MOBAI_STAGE_INDEX, index_##tier, MOBAI_FLOW_ONE_PASS, 0, 0, needs,                        \
            mobai_cpu_index_scratch_##tier),                                                                           \
        ROW("attend__" #tier "_onepass_m96n128", MOBAI_STAGE_ATTEND, attend_##tier, MOBAI_FLOW_ONE_PASS, 96, 128,      \
            needs, mobai_cpu_attend_scratch_##tier),                                                                   \
        ROW("attend__" #tier "_partials_m96n128", MOBAI_STAGE_ATTEND, attend_partials_##tier, MOBAI_FLOW_PARTIALS_F32, \
            96, 128, needs, mobai_cpu_attend_scratch_##tier),                                                          \
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
static const attend_fit ATTEND_BF16 = {84.0, 0.47, 105.0, 13.0, 0.085};
static double attend_avx512bf16_cost(const mobai_shape *s) {
    return fitted_cost(s, MOBAI_CPU_AVX512, &ATTEND_BF16, 4.0);
}
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
