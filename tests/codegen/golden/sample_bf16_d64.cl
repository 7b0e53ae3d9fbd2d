/* sample_bf16_d64: made by mobagen from sample.kern for opencl; edit that file, not this one. */
#undef DTYPE
#define DTYPE (2)
#undef DT
#define DT (64)
#undef HALF
#define HALF (DT / 2)
#undef LANES
#define LANES (64)
#define TWICE(x) ((x) + (x))
__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void moba_sample_bf16_d64(
    __global uchar *q_base, ulong q_offset,
    __global uchar *lse_base, ulong lse_offset,
    __global uchar *index_offsets_base, ulong index_offsets_offset,
    __global uchar *ranks_base, ulong ranks_offset,
    long q_ts,
    long q_hs,
    long q_bs,
    long total_q,
    long n_rows,
    int has_lse,
    int head_dim,
    float softmax_scale)
{
    __global const T *q = (__global const T *)(q_base + q_offset);
    __global float *lse = (__global float *)(lse_base + lse_offset);
    __global long *index_offsets = (__global long *)(index_offsets_base + index_offsets_offset);
    __global const ushort *ranks = (__global const ushort *)(ranks_base + ranks_offset);
    __local float sums[HALF + 1];
    __local float4 wide[2];
    i64 row = GROUP_X;
    if (row >= n_rows) return;
    float x = 0.0f;
    if (LANE < head_dim) x = LD(q, row * q_ts + q_bs + q_hs + LANE);
    if (LANE < HALF) sums[LANE] = TWICE(x) * softmax_scale;
    BARRIER;
    if (has_lse != 0 && LANE == 0) STF(lse, row % total_q, sums[0]);
    if (LANE == 0) STL(index_offsets, row, LDL(index_offsets, row) + TO_I64(LDH(ranks, row)));
}
