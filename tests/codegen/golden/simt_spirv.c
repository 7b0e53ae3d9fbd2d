/* SPDX-License-Identifier: Apache-2.0
 *
 * SPIR-V of every generated kernel, in the order of mobai_simt_instances: buffers by address, and bound.
 * Made by mobagen.
 */
#include "codegen/host/simt.h"

static const uint32_t words_sample_f32_d32[] = {
#include "sample_f32_d32.inc"
};
static const uint32_t words_sample_f32_d64[] = {
#include "sample_f32_d64.inc"
};
static const uint32_t words_sample_bf16_d32[] = {
#include "sample_bf16_d32.inc"
};
static const uint32_t words_sample_bf16_d64[] = {
#include "sample_bf16_d64.inc"
};

const mobai_simt_words mobai_simt_spirv[] = {
    {words_sample_f32_d32, sizeof words_sample_f32_d32},
    {words_sample_f32_d64, sizeof words_sample_f32_d64},
    {words_sample_bf16_d32, sizeof words_sample_bf16_d32},
    {words_sample_bf16_d64, sizeof words_sample_bf16_d64},
};

static const uint32_t words_sample_f32_d32_bound[] = {
#include "sample_f32_d32_bound.inc"
};
static const uint32_t words_sample_f32_d64_bound[] = {
#include "sample_f32_d64_bound.inc"
};
static const uint32_t words_sample_bf16_d32_bound[] = {
#include "sample_bf16_d32_bound.inc"
};
static const uint32_t words_sample_bf16_d64_bound[] = {
#include "sample_bf16_d64_bound.inc"
};

const mobai_simt_words mobai_simt_spirv_bound[] = {
    {words_sample_f32_d32_bound, sizeof words_sample_f32_d32_bound},
    {words_sample_f32_d64_bound, sizeof words_sample_f32_d64_bound},
    {words_sample_bf16_d32_bound, sizeof words_sample_bf16_d32_bound},
    {words_sample_bf16_d64_bound, sizeof words_sample_bf16_d64_bound},
};
