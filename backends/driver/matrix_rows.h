/* SPDX-License-Identifier: Apache-2.0
 *
 * The rows of attend_matrix.kern and gate_matrix.kern in a backend's table of variants. The file that includes this has
 * defined
 *   MATRIX_BYTES(d)                       shared memory that attend with that head_dim asks of the driver; 0: none
 *   matrix_reject_attend(p, caps, d)      why attend with tiles of d dims cannot serve a problem; NULL: it can
 *   matrix_reject_gate(p, caps, d, k)     the same of the gate with lists of k picks
 *   matrix_cost_attend(shape)             microseconds
 * and puts MATRIX_ROWS in its table.
 */
#ifndef MOBA_BACKENDS_DRIVER_MATRIX_ROWS_H
#define MOBA_BACKENDS_DRIVER_MATRIX_ROWS_H

#include "backends/driver/driver.h"
#include "codegen/host/simt_row.h"

#define MATRIX_ATTEND(type, d)                                                                                         \
    static const mobai_driver_matrix matrix_attend_##type##_d##d = {                                                   \
        "moba_attend_matrix_" #type "_d" #d, MATRIX_BYTES(d), &mobai_program_attend_##type##_d##d##__simt_m64n64};
#define MATRIX_ATTENDS(d)                                                                                              \
    static const char *matrix_reject_attend_d##d(const moba_problem *p, const mobai_caps *caps) {                      \
        return matrix_reject_attend(p, caps, d);                                                                       \
    }                                                                                                                  \
    MATRIX_ATTEND(f16, d) MATRIX_ATTEND(bf16, d)
MATRIX_ATTENDS(64)
MATRIX_ATTENDS(128)

#define MATRIX_GATE(type, d, k)                                                                                        \
    static const mobai_driver_matrix matrix_gate_##type##_d##d##_k##k = {"moba_gate_matrix_" #type "_d" #d "_k" #k, 0, \
                                                                         &mobai_program_gate_##type##__simt_m64n64};
#define MATRIX_GATES(d, k)                                                                                             \
    static const char *matrix_reject_gate_d##d##_k##k(const moba_problem *p, const mobai_caps *caps) {                 \
        return matrix_reject_gate(p, caps, d, k);                                                                      \
    }                                                                                                                  \
    MATRIX_GATE(f16, d, k) MATRIX_GATE(bf16, d, k)
MATRIX_GATES(64, 8)
MATRIX_GATES(128, 8)
MATRIX_GATES(64, 16)
MATRIX_GATES(128, 16)
MATRIX_GATES(64, 32)
MATRIX_GATES(128, 32)

#define MATRIX_ATTEND_ROW(type, DTYPE, d, method, n, CAP)                                                              \
    {                                                                                                                  \
        .name = "attend_" #type "_d" #d "__" method "_m64n" #n, .stage = MOBAI_STAGE_ATTEND, .dtypes = 1u << DTYPE,    \
        .needs = CAP, .flow = MOBAI_FLOW_PARTIALS_F32, .tile_m = 64, .tile_n = n, .reject = matrix_reject_attend_d##d, \
        .cost = matrix_cost_attend, .scratch_bytes = mobai_simt_scratch_schedule, .code = &matrix_attend_##type##_d##d \
    }
#define MATRIX_GATE_ROW(type, DTYPE, d, k, method, CAP)                                                                \
    {                                                                                                                  \
        .name = "gate_" #type "_d" #d "__" method "_m128n32_k" #k, .stage = MOBAI_STAGE_GATE, .dtypes = 1u << DTYPE,   \
        .needs = CAP, .flow = MOBAI_FLOW_ONE_PASS, .tile_m = 128, .tile_n = 32,                                        \
        .reject = matrix_reject_gate_d##d##_k##k, .cost = mobai_driver_matrix_cost_gate,                               \
        .code = &matrix_gate_##type##_d##d##_k##k                                                                      \
    }
#define MATRIX_GATE_ROWS(d, k, method, CAP)                                                                            \
    MATRIX_GATE_ROW(bf16, MOBA_BF16, d, k, method, CAP), MATRIX_GATE_ROW(f16, MOBA_F16, d, k, method, CAP)
/** All rows of one kind of matrix instruction, whose attend takes n keys at a time. */
#define MATRIX_ROWS(method, n, CAP)                                                                                    \
    MATRIX_ATTEND_ROW(bf16, MOBA_BF16, 128, method, n, CAP), MATRIX_ATTEND_ROW(f16, MOBA_F16, 128, method, n, CAP),    \
        MATRIX_ATTEND_ROW(bf16, MOBA_BF16, 64, method, n, CAP), MATRIX_ATTEND_ROW(f16, MOBA_F16, 64, method, n, CAP),  \
        MATRIX_GATE_ROWS(128, 8, method, CAP), MATRIX_GATE_ROWS(64, 8, method, CAP),                                   \
        MATRIX_GATE_ROWS(128, 16, method, CAP), MATRIX_GATE_ROWS(64, 16, method, CAP),                                 \
        MATRIX_GATE_ROWS(128, 32, method, CAP), MATRIX_GATE_ROWS(64, 32, method, CAP)

#endif
