/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel variants of the HIP backend: those on matrix cores, MFMA of CDNA and WMMA of RDNA from one source
 * (kernels/attend_matrix.kern, gate_matrix.kern), and the generated ones that need none.
 */
#include "backends/hip/hip.h"
#include "codegen/host/simt_row.h"

/* ------------------------------------------------------------------------------------------------ table -- */

#define MATRIX_BYTES(d) 0

static const char *matrix_reject_attend(const moba_problem *p, const mobai_caps *caps, int32_t dim_tile) {
    (void)caps;
    return mobai_driver_matrix_reject_dim(p, dim_tile);
}
static const char *matrix_reject_gate(const moba_problem *p, const mobai_caps *caps, int32_t dim_tile, int32_t list) {
    (void)caps;
    return mobai_driver_matrix_reject_gate(p, dim_tile, list);
}

/** Products at a fifth of the matrix rate. */
static double matrix_cost_attend(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    const double wanted = (double)p->top_k * p->block_size, there = (double)p->max_seqlen_k;
    const double pairs = (double)p->max_total_q * p->n_q_heads * (wanted < there ? wanted : there);
    return 9.0 + 4.0 * p->head_dim * pairs / (0.2 * s->caps->matrix_gflops * 1e3);
}

#include "backends/driver/matrix_rows.h"

const mobai_variant hip_variants[HIP_N_VARIANTS] = {
    MATRIX_ROWS("cdna_mfma", 32, MOBAI_CAP_MFMA),
    MATRIX_ROWS("rdna_wmma", 32, MOBAI_CAP_WMMA),
#include "simt_rows.inc"
};
