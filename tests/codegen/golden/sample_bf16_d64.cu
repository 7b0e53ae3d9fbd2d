/* sample_bf16_d64: made by mobagen from sample.kern for cuda; edit that file, not this one. */
#undef DTYPE
#define DTYPE (2)
#undef DT
#define DT (64)
#undef HALF
#define HALF (DT / 2)
#undef LANES
#define LANES (64)
#define TWICE(x) ((x) + (x))
extern "C" __global__ void __launch_bounds__(LANES) moba_sample_bf16_d64(
    const T *__restrict__ q,
    float *lse,
    long long *index_offsets,
    const unsigned short *__restrict__ ranks,
    long long q_ts,
    long long q_hs,
    long long q_bs,
    long long total_q,
    long long n_rows,
    int has_lse,
    int head_dim,
    float softmax_scale)
{
    __shared__ float sums[HALF + 1];
    __shared__ float4 wide[2];
    i64 row = GROUP_X;
    if (row >= n_rows) return;
    float x = 0.0f;
    if (LANE < head_dim) x = LD(q, row * q_ts + q_bs + q_hs + LANE);
    if (LANE < HALF) sums[LANE] = TWICE(x) * softmax_scale;
    BARRIER;
    if (has_lse != 0 && LANE == 0) STF(lse, row % total_q, sums[0]);
    if (LANE == 0) STL(index_offsets, row, LDL(index_offsets, row) + TO_I64(LDH(ranks, row)));
}
