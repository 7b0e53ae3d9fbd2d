/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernel variants of the HIP backend: those on matrix cores, MFMA of CDNA and WMMA of RDNA from one source
 * (kernels/attend_matrix.kern, gate_matrix.kern), and the generated ones that need none.
 */
#include <stdio.h>
#include <string.h>

#include "backends/hip/hip.h"
#include "codegen/host/simt_row.h"
#include "core/status.h"

/* Made by mobagen from kernels/ as a table of its own (CMakeLists.txt). */
extern const mobai_simt_instance mobai_hip_matrix_instances[];
extern const size_t mobai_hip_n_matrix_instances;

static const mobai_simt_instance *find(const char *name) {
    for (size_t i = 0; i < mobai_hip_n_matrix_instances; i++)
        if (strcmp(mobai_hip_matrix_instances[i].name, name) == 0) return &mobai_hip_matrix_instances[i];
    return NULL;
}

static moba_status load(mobai_device *device, const hip_matrix *kernel) {
    void *module = NULL;
    if (device->matrix_functions[kernel->number]) return MOBA_OK;
    MOBAI_TRY(hip_simt_module(device, kernel->name, &module));
    int result = device->base.driver->module_function(&device->matrix_functions[kernel->number], module, kernel->name);
    if (result == HIP_SUCCESS) return MOBA_OK;
    char what[120];
    device->matrix_functions[kernel->number] = NULL;
    snprintf(what, sizeof what, "find the kernel %s", kernel->name);
    return hip_fail(result, what);
}

moba_status hip_matrix_load(mobai_device *device, const hip_matrix *kernel) {
    MOBAI_TRY(mobai_driver_simt_load(device, kernel->simt));
    pthread_mutex_lock(&device->base.lock);
    moba_status status = load(device, kernel);
    pthread_mutex_unlock(&device->base.lock);
    return status;
}

moba_status hip_matrix_launch(mobai_device *device, void *stream, const hip_matrix *kernel,
                              const mobai_stage_args *args) {
    MOBAI_TRY(mobai_driver_simt_steps(device, stream, kernel->simt, kernel->simt->n_steps - 1, args));
    return mobai_driver_launch(device, stream, device->matrix_functions[kernel->number], find(kernel->name), args);
}

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

/** Blocks the gate has to choose in a row; few: the lists of the gate with tiles of 128 rows hold them. */
enum { FEW_PICKS = 8, MANY_PICKS = 32 };
static int32_t gate_picks(const moba_problem *p) { return p->top_k - p->n_sink_blocks - p->n_local_blocks; }
static const char *reject_few(const moba_problem *p, const char *why) {
    return why ? why : gate_picks(p) > FEW_PICKS ? "its lists hold 8 picks" : NULL;
}
static const char *reject_many(const moba_problem *p, const char *why) {
    if (why) return why;
    if (gate_picks(p) <= FEW_PICKS) return "its picks fit shorter lists";
    return gate_picks(p) > MANY_PICKS ? "its lists hold 32 picks" : NULL;
}
static const char *reject_d64_m128(const moba_problem *p, const mobai_caps *caps) {
    return reject_few(p, reject_d64(p, caps));
}
static const char *reject_d128_m128(const moba_problem *p, const mobai_caps *caps) {
    return reject_few(p, reject_d128(p, caps));
}
static const char *reject_d64_m64(const moba_problem *p, const mobai_caps *caps) {
    return reject_many(p, reject_d64(p, caps));
}
static const char *reject_d128_m64(const moba_problem *p, const mobai_caps *caps) {
    return reject_many(p, reject_d128(p, caps));
}

/** Products at a fifth of the matrix rate. */
static double attend_cost(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    const double wanted = (double)p->top_k * p->block_size, there = (double)p->max_seqlen_k;
    const double pairs = (double)p->max_total_q * p->n_q_heads * (wanted < there ? wanted : there);
    return 9.0 + 4.0 * p->head_dim * pairs / (0.2 * s->caps->matrix_gflops * 1e3);
}

/** Products at a fifth of the matrix rate, and for each pick the lists as long as the products of a block and eight or,
 *  with long lists, 64 rows. */
static double gate_cost(const mobai_shape *s) {
    const moba_problem *p = s->problem;
    const double rows = (double)p->max_total_q * p->n_q_heads;
    const double blocks = (double)mobai_ceil_div(p->max_seqlen_k, p->block_size) * (p->causal ? 0.5 : 1.0);
    const double lists = gate_picks(p) <= 0 ? 0.0 : gate_picks(p) * (gate_picks(p) <= FEW_PICKS ? 8.0 : 64.0);
    return 3.0 + 2.0 * p->head_dim * rows * (blocks + lists) / (0.2 * s->caps->matrix_gflops * 1e3);
}

#define ATTEND(number, type, d)                                                                                        \
    static const hip_matrix attend_##type##_d##d = {number, "moba_attend_matrix_" #type "_d" #d,                       \
                                                    &mobai_program_attend_##type##_d##d##__simt_m64n64};
ATTEND(0, f16, 64)
ATTEND(1, f16, 128)
ATTEND(2, bf16, 64)
ATTEND(3, bf16, 128)
#define GATE(number, type, d, m)                                                                                       \
    static const hip_matrix gate_##type##_d##d##_m##m = {number, "moba_gate_matrix_" #type "_d" #d "_m" #m,            \
                                                         &mobai_program_gate_##type##__simt_m64n64};
GATE(4, f16, 64, 128)
GATE(5, f16, 128, 128)
GATE(6, bf16, 64, 128)
GATE(7, bf16, 128, 128)
GATE(8, f16, 64, 64)
GATE(9, f16, 128, 64)
GATE(10, bf16, 64, 64)
GATE(11, bf16, 128, 64)

#define ATTEND_ROW(type, DTYPE, d, method, CAP)                                                                        \
    {                                                                                                                  \
        .name = "attend_" #type "_d" #d "__" method "_m64n32", .stage = MOBAI_STAGE_ATTEND, .dtypes = 1u << DTYPE,     \
        .needs = CAP, .flow = MOBAI_FLOW_PARTIALS_F32, .tile_m = 64, .tile_n = 32, .reject = reject_d##d,              \
        .cost = attend_cost, .scratch_bytes = mobai_simt_scratch_schedule, .code = &attend_##type##_d##d               \
    }
#define GATE_ROW(type, DTYPE, d, m, method, CAP)                                                                       \
    {                                                                                                                  \
        .name = "gate_" #type "_d" #d "__" method "_m" #m "n32", .stage = MOBAI_STAGE_GATE, .dtypes = 1u << DTYPE,     \
        .needs = CAP, .flow = MOBAI_FLOW_ONE_PASS, .tile_m = m, .tile_n = 32, .reject = reject_d##d##_m##m,            \
        .cost = gate_cost, .code = &gate_##type##_d##d##_m##m                                                          \
    }
#define ROWS(method, CAP)                                                                                              \
    ATTEND_ROW(bf16, MOBA_BF16, 128, method, CAP), ATTEND_ROW(f16, MOBA_F16, 128, method, CAP),                        \
        ATTEND_ROW(bf16, MOBA_BF16, 64, method, CAP), ATTEND_ROW(f16, MOBA_F16, 64, method, CAP),                      \
        GATE_ROW(bf16, MOBA_BF16, 128, 128, method, CAP), GATE_ROW(f16, MOBA_F16, 128, 128, method, CAP),              \
        GATE_ROW(bf16, MOBA_BF16, 64, 128, method, CAP), GATE_ROW(f16, MOBA_F16, 64, 128, method, CAP),                \
        GATE_ROW(bf16, MOBA_BF16, 128, 64, method, CAP), GATE_ROW(f16, MOBA_F16, 128, 64, method, CAP),                \
        GATE_ROW(bf16, MOBA_BF16, 64, 64, method, CAP), GATE_ROW(f16, MOBA_F16, 64, 64, method, CAP)

const mobai_variant hip_variants[HIP_N_VARIANTS] = {
    ROWS("cdna_mfma", MOBAI_CAP_MFMA),
    ROWS("rdna_wmma", MOBAI_CAP_WMMA),
#include "simt_rows.inc"
};
