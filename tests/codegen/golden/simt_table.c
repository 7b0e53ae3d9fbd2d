/* SPDX-License-Identifier: Apache-2.0
 *
 * Parameters, grids and instances of every generated kernel, and the programs of its variants. Made by mobagen.
 */
#include "simt_table.h"

_Static_assert(sizeof ((mobai_stage_args *)0)->q.token_stride == 8, "i64: q.token_stride");
_Static_assert(sizeof ((mobai_stage_args *)0)->q.head_stride == 8, "i64: q.head_stride");
_Static_assert(sizeof ((mobai_stage_args *)0)->head_dim == 4, "i32: head_dim");
_Static_assert(sizeof ((mobai_stage_args *)0)->total_q == 8, "i64: total_q");
_Static_assert(sizeof ((mobai_stage_args *)0)->softmax_scale == 4, "f32: softmax_scale");
static const mobai_kernel_param params_sample[] = {
    {MOBAI_PARAM_BUFFER, 0, offsetof(mobai_stage_args, q.buffer), "q"},
    {MOBAI_PARAM_BUFFER, 1, offsetof(mobai_stage_args, lse), "lse"},
    {MOBAI_PARAM_BUFFER, 1, offsetof(mobai_stage_args, index_offsets), "index_offsets"},
    {MOBAI_PARAM_BUFFER, 0, offsetof(mobai_stage_args, index_ranks), "ranks"},
    {MOBAI_PARAM_I64, 0, offsetof(mobai_stage_args, q.token_stride), "q_ts"},
    {MOBAI_PARAM_I64, 0, offsetof(mobai_stage_args, q.head_stride), "q_hs"},
    {MOBAI_PARAM_BATCH_Q, 0, offsetof(mobai_stage_args, q), "q_bs"},
    {MOBAI_PARAM_I64, 0, offsetof(mobai_stage_args, total_q), "total_q"},
    {MOBAI_PARAM_DERIVED_I64, 0, 0, "n_rows"},
    {MOBAI_PARAM_PRESENT, 0, offsetof(mobai_stage_args, lse), "has_lse"},
    {MOBAI_PARAM_32, 0, offsetof(mobai_stage_args, head_dim), "head_dim"},
    {MOBAI_PARAM_32, 0, offsetof(mobai_stage_args, softmax_scale), "softmax_scale"},
};
static void launch_sample(const mobai_stage_args *a, const int32_t *axes, int64_t *derived, int64_t *groups) {
    (void)a, (void)axes, (void)derived;
    const int64_t DT = axes[1];
    (void)DT;
    int64_t n_rows = derived[0] = a->total_q * a->n_q_heads;
    (void)n_rows;
    groups[0] = FOLD_X(n_rows);
    groups[1] = FOLD_Y(n_rows);
    groups[2] = 1;
}
static const mobai_kernel kernel_sample = {"sample", params_sample, 12, 88, launch_sample};

#define DT 32
#define HALF (DT / 2)
enum { lanes_sample_f32_d32 = 64, shared_sample_f32_d32 = 0 + 4 * (HALF + 1) + 16 * (2) };
#undef HALF
#undef DT
#define DT 64
#define HALF (DT / 2)
enum { lanes_sample_f32_d64 = 64, shared_sample_f32_d64 = 0 + 4 * (HALF + 1) + 16 * (2) };
#undef HALF
#undef DT
#define DT 32
#define HALF (DT / 2)
enum { lanes_sample_bf16_d32 = 64, shared_sample_bf16_d32 = 0 + 4 * (HALF + 1) + 16 * (2) };
#undef HALF
#undef DT
#define DT 64
#define HALF (DT / 2)
enum { lanes_sample_bf16_d64 = 64, shared_sample_bf16_d64 = 0 + 4 * (HALF + 1) + 16 * (2) };
#undef HALF
#undef DT

const mobai_simt_instance mobai_simt_instances[] = {
    {"moba_sample_f32_d32", &kernel_sample, lanes_sample_f32_d32, shared_sample_f32_d32, {0, 32}},
    {"moba_sample_f32_d64", &kernel_sample, lanes_sample_f32_d64, shared_sample_f32_d64, {0, 64}},
    {"moba_sample_bf16_d32", &kernel_sample, lanes_sample_bf16_d32, shared_sample_bf16_d32, {2, 32}},
    {"moba_sample_bf16_d64", &kernel_sample, lanes_sample_bf16_d64, shared_sample_bf16_d64, {2, 64}},
};
const size_t mobai_n_simt_instances = sizeof mobai_simt_instances / sizeof mobai_simt_instances[0];

const mobai_simt_program mobai_program_sample_f32_d32__simt_m32n16 = {1, {0}};
const char *mobai_reject_sample_f32_d32__simt_m32n16(const moba_problem *p, const mobai_caps *c) {
    const char *why = mobai_simt_reject(&mobai_program_sample_f32_d32__simt_m32n16, p, c, 32);
    return why;
}
const mobai_simt_program mobai_program_sample_f32_d64__simt_m64n16 = {1, {1}};
const char *mobai_reject_sample_f32_d64__simt_m64n16(const moba_problem *p, const mobai_caps *c) {
    const char *why = mobai_simt_reject(&mobai_program_sample_f32_d64__simt_m64n16, p, c, 64);
    return why;
}
const mobai_simt_program mobai_program_sample_bf16_d32__simt_m32n16 = {1, {2}};
const char *mobai_reject_sample_bf16_d32__simt_m32n16(const moba_problem *p, const mobai_caps *c) {
    const char *why = mobai_simt_reject(&mobai_program_sample_bf16_d32__simt_m32n16, p, c, 32);
    return why;
}
const mobai_simt_program mobai_program_sample_bf16_d64__simt_m64n16 = {1, {3}};
const char *mobai_reject_sample_bf16_d64__simt_m64n16(const moba_problem *p, const mobai_caps *c) {
    const char *why = mobai_simt_reject(&mobai_program_sample_bf16_d64__simt_m64n16, p, c, 64);
    return why;
}
