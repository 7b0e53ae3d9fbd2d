/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel variants of the HIP backend: those on matrix cores, MFMA of CDNA and WMMA of RDNA from one source
 * (kernels/attend_matrix.kern, gate_matrix.kern), and the generated ones that need none.
 */
#include "backends/hip/hip.h"
#include "codegen/host/simt_row.h"

/* ------------------------------------------------------------------------------------------------ table -- */

static const char *reject(const moba_problem *p, int32_t tile) {
    if (p->dense) return "for routed attention only";
    if (p->head_dim > tile) return "head_dim is larger than the tile";
    return tile > 64 && p->head_dim <= tile / 2 ? "head_dim fits a smaller tile" : NULL;
}
static const char *reject_d64(const moba_problem *p, const mobai_caps *caps) {
    (void)caps;
    return reject(p, 64);
}
static const char *reject_d128(const moba_problem *p, const mobai_caps *caps) {
    (void)caps;
    return reject(p, 128);
}

#define REJECT_GATE(d, k)                                                                                              \
    static const char *reject_gate_d##d##_k##k(const moba_problem *p, const mobai_caps *caps) {                        \
        (void)caps;                                                                                                    \
        return mobai_driver_matrix_reject_gate(p, d, k);                                                               \
    }
REJECT_GATE(64, 8)
REJECT_GATE(128, 8)
REJECT_GATE(64, 16)
REJECT_GATE(128, 16)
REJECT_GATE(64, 32)
REJECT_GATE(128, 32)

/** Products at a fifth of the matrix rate. */
static double attend_cost(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    const double wanted = (double)p->top_k * p->block_size, there = (double)p->max_seqlen_k;
    const double pairs = (double)p->max_total_q * p->n_q_heads * (wanted < there ? wanted : there);
    return 9.0 + 4.0 * p->head_dim * pairs / (0.2 * s->caps->matrix_gflops * 1e3);
}

#define ATTEND(type, d)                                                                                                \
    static const mobai_driver_matrix attend_##type##_d##d = {"moba_attend_matrix_" #type "_d" #d, 0,                   \
                                                             &mobai_program_attend_##type##_d##d##__simt_m64n64};
ATTEND(f16, 64)
ATTEND(f16, 128)
ATTEND(bf16, 64)
ATTEND(bf16, 128)
#define GATE(type, d, k)                                                                                               \
    static const mobai_driver_matrix gate_##type##_d##d##_k##k = {"moba_gate_matrix_" #type "_d" #d "_k" #k, 0,        \
                                                                  &mobai_program_gate_##type##__simt_m64n64};
GATE(f16, 64, 8)
GATE(f16, 128, 8)
GATE(bf16, 64, 8)
GATE(bf16, 128, 8)
GATE(f16, 64, 16)
GATE(f16, 128, 16)
GATE(bf16, 64, 16)
GATE(bf16, 128, 16)
GATE(f16, 64, 32)
GATE(f16, 128, 32)
GATE(bf16, 64, 32)
GATE(bf16, 128, 32)

#define ATTEND_ROW(type, DTYPE, d, method, CAP)                                                                        \
    {                                                                                                                  \
        .name = "attend_" #type "_d" #d "__" method "_m64n32", .stage = MOBAI_STAGE_ATTEND, .dtypes = 1u << DTYPE,     \
        .needs = CAP, .flow = MOBAI_FLOW_PARTIALS_F32, .tile_m = 64, .tile_n = 32, .reject = reject_d##d,              \
        .cost = attend_cost, .scratch_bytes = mobai_simt_scratch_schedule, .code = &attend_##type##_d##d               \
    }
#define GATE_ROW(type, DTYPE, d, m, k, method, CAP)                                                                    \
    {                                                                                                                  \
        .name = "gate_" #type "_d" #d "__" method "_m" #m "n32_k" #k, .stage = MOBAI_STAGE_GATE,                       \
        .dtypes = 1u << DTYPE, .needs = CAP, .flow = MOBAI_FLOW_ONE_PASS, .tile_m = m, .tile_n = 32,                   \
        .reject = reject_gate_d##d##_k##k, .cost = mobai_driver_matrix_cost_gate, .code = &gate_##type##_d##d##_k##k   \
    }
#define GATE_ROWS(d, m, k, method, CAP)                                                                                \
    GATE_ROW(bf16, MOBA_BF16, d, m, k, method, CAP), GATE_ROW(f16, MOBA_F16, d, m, k, method, CAP)
#define ROWS(method, CAP)                                                                                              \
    ATTEND_ROW(bf16, MOBA_BF16, 128, method, CAP), ATTEND_ROW(f16, MOBA_F16, 128, method, CAP),                        \
        ATTEND_ROW(bf16, MOBA_BF16, 64, method, CAP), ATTEND_ROW(f16, MOBA_F16, 64, method, CAP),                      \
        GATE_ROWS(128, 128, 8, method, CAP), GATE_ROWS(64, 128, 8, method, CAP), GATE_ROWS(128, 64, 16, method, CAP),  \
        GATE_ROWS(64, 64, 16, method, CAP), GATE_ROWS(128, 64, 32, method, CAP), GATE_ROWS(64, 64, 32, method, CAP)

const mobai_variant hip_variants[HIP_N_VARIANTS] = {
    ROWS("cdna_mfma", MOBAI_CAP_MFMA),
    ROWS("rdna_wmma", MOBAI_CAP_WMMA),
#include "simt_rows.inc"
};
