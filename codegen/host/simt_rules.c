/* SPDX-License-Identifier: Apache-2.0
 *
 * What each generated variant refuses, and what it is predicted to cost.
 */
#include <math.h>

#include "codegen/host/simt.h"

const char *mobai_simt_reject(const mobai_simt_program *program, const moba_problem *p, const mobai_caps *c,
                              int32_t dim_tile) {
    if (dim_tile && p->head_dim > dim_tile) return "head_dim is larger than the tile";
    if (dim_tile > 32 && p->head_dim <= dim_tile / 2) return "head_dim fits a smaller tile";
    for (int32_t i = 0; i < program->n_steps; i++) {
        const mobai_simt_instance *instance = &mobai_simt_instances[program->steps[i]];
        if (c->max_workgroup_size < instance->lanes) return "the device's work-groups are too small";
        if (c->local_memory_bytes < (size_t)instance->shared_bytes) return "the device's shared memory is too small";
    }
    return NULL;
}

/** Blocks the gate may have to rank in one row. */
static int32_t gate_picks(const moba_problem *p) { return p->top_k - p->n_sink_blocks - p->n_local_blocks; }

const char *mobai_simt_reject_gate(const moba_problem *p, int32_t tile_m) {
    /* LIST_MAX of gate.kern. With more picks than 128, top_k is at least the number of blocks and nothing is ranked. */
    int32_t picks = gate_picks(p);
    if (tile_m == 64 && picks > 31 && picks <= 128) return "its lists hold 31 picks";
    return NULL;
}

const char *mobai_simt_reject_sparse(const moba_problem *p, int32_t tile_m) {
    (void)tile_m;
    return p->dense ? "for routed attention only" : NULL;
}

const char *mobai_simt_reject_dense(const moba_problem *p, int32_t tile_m) {
    (void)tile_m;
    return p->dense ? NULL : "for dense attention only";
}

const char *mobai_simt_reject_kconv(const moba_problem *p, int32_t tile_m) {
    if (p->kconv_width > tile_m) return "it has fewer taps than kconv_width";
    return tile_m == (p->kconv_width > 4 ? 8 : p->kconv_width) ? NULL : "there is a kernel of just kconv_width taps";
}

/* ------------------------------------------------------------------------------------------------ costs -- */

/** Generated kernels use scalar units, taken as 1/16 of the matrix rate, at about a third of their peak. */
static double flops_us(const mobai_caps *c, double flops) {
    double gflops = c->matrix_gflops > 0 ? c->matrix_gflops / 48.0 : 1.0;
    return flops / (gflops * 1e3);
}
static double bytes_us(const mobai_caps *c, double bytes) {
    return bytes / ((c->copy_gbytes > 0 ? c->copy_gbytes : 1.0) * 1e3);
}
static double q_elements(const moba_problem *p) { return (double)p->max_total_q * p->n_q_heads * p->head_dim; }
static double k_elements(const moba_problem *p) { return (double)p->max_total_k * p->n_kv_heads * p->head_dim; }
static double width(const moba_problem *p) { return p->dtype == MOBA_F32 ? 4.0 : 2.0; }

/** Pairs of rows and keys that are computed. */
static double pairs(const moba_problem *p) {
    double rows = (double)p->max_total_q * p->n_q_heads;
    if (p->dense) return rows * (double)p->max_seqlen_k * (p->causal ? 0.5 : 1.0);
    double keys = (double)p->top_k * p->block_size;
    return rows * (keys < (double)p->max_seqlen_k ? keys : (double)p->max_seqlen_k);
}
static double picks(const moba_problem *p) { return (double)p->max_total_q * p->n_q_heads * p->top_k; }

double mobai_simt_cost_kconv(const mobai_shape *s) {
    return 3.0 + bytes_us(s->caps, k_elements(s->problem) * width(s->problem) * 2.0);
}
double mobai_simt_cost_centroid(const mobai_shape *s) {
    return 3.0 + bytes_us(s->caps, k_elements(s->problem) * width(s->problem));
}
double mobai_simt_cost_gate(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    if (gate_picks(p) <= 0) return 3.0 + bytes_us(s->caps, 4.0 * picks(p));
    const double blocks = (double)mobai_ceil_div(p->max_seqlen_k, p->block_size) * (p->causal ? 0.5 : 1.0);
    const double n = gate_picks(p), rows = (double)p->max_total_q * p->n_q_heads;
    /* Blocks in random order that are among the best so far; each is put into a list of n. */
    const double entries = blocks <= n ? blocks : n * (1.0 + log(blocks / n));
    const double products = 2.0 * q_elements(p) * blocks * (n <= 31 ? 1.0 : 4.0);
    return 3.0 + flops_us(s->caps, products + 141.0 * entries * n * rows);
}
double mobai_simt_cost_index(const mobai_shape *s) { return 15.0 + bytes_us(s->caps, 256.0 * picks(s->problem)); }
double mobai_simt_cost_attend(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    return 9.0 + flops_us(s->caps, 4.0 * p->head_dim * pairs(p));
}
double mobai_simt_cost_combine(const mobai_shape *s) {
    return 3.0 + bytes_us(s->caps, picks(s->problem) * (4.0 * s->problem->head_dim + 8.0));
}
double mobai_simt_cost_delta(const mobai_shape *s) {
    return 3.0 + bytes_us(s->caps, 2.0 * q_elements(s->problem) * width(s->problem));
}
double mobai_simt_cost_attend_bwd(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    return 15.0 + flops_us(s->caps, 14.0 * p->head_dim * pairs(p));
}
double mobai_simt_cost_dq_sum(const mobai_shape *s) {
    return 3.0 + bytes_us(s->caps, picks(s->problem) * 4.0 * s->problem->head_dim);
}
double mobai_simt_cost_kconv_bwd(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    return 6.0 + bytes_us(s->caps, k_elements(p) * (4.0 + 2.0 * width(p)));
}
