#version 460
/* sample_bf16_d64: made by mobagen from sample.kern for glsl; edit that file, not this one. */
#undef DTYPE
#define DTYPE (2)
#undef DT
#define DT (64)
#undef HALF
#define HALF (DT / 2)
#undef LANES
#define LANES (64)
#define TWICE(x) ((x) + (x))
layout(local_size_x = LANES) in;
layout(push_constant, std430) uniform Params_ {
    uint64_t q_;
    uint64_t lse_;
    uint64_t index_offsets_;
    uint64_t ranks_;
    int64_t q_ts_;
    int64_t q_hs_;
    int64_t q_bs_;
    int64_t total_q_;
    int64_t n_rows_;
    int has_lse_;
    int head_dim_;
    float softmax_scale_;
} p_;
uint64_t q;
int64_t q_ts;
int64_t q_hs;
int64_t q_bs;
uint64_t lse;
int has_lse;
uint64_t index_offsets;
uint64_t ranks;
int head_dim;
int64_t total_q;
float softmax_scale;
int64_t n_rows;
#ifdef MOBA_BOUND
BIND_IN_(0, q, H, uint16_t, 2)
BIND_OUT_(1, lse, F, float, 4)
BIND_OUT_(2, index_offsets, L, int64_t, 8)
BIND_IN_(3, ranks, H, uint16_t, 2)
#endif
shared float sums[HALF + 1];
shared vec4 wide[2];
void main()
{
    q = p_.q_;
    q_ts = p_.q_ts_;
    q_hs = p_.q_hs_;
    q_bs = p_.q_bs_;
    lse = p_.lse_;
    has_lse = p_.has_lse_;
    index_offsets = p_.index_offsets_;
    ranks = p_.ranks_;
    head_dim = p_.head_dim_;
    total_q = p_.total_q_;
    softmax_scale = p_.softmax_scale_;
    n_rows = p_.n_rows_;
    i64 row = GROUP_X;
    if (row >= n_rows) return;
    float x = 0.0f;
    if (LANE < head_dim) x = LD(q, row * q_ts + q_bs + q_hs + LANE);
    if (LANE < HALF) sums[LANE] = TWICE(x) * softmax_scale;
    BARRIER;
    if (has_lse != 0 && LANE == 0) STF(lse, row % total_q, sums[0]);
    if (LANE == 0) STL(index_offsets, row, LDL(index_offsets, row) + TO_I64(LDH(ranks, row)));
}
