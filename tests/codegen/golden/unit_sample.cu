#include "sample_f32_d32.cu"
#include "sample_f32_d64.cu"
#include "sample_bf16_d32.cu"
#include "sample_bf16_d64.cu"
