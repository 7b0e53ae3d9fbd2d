/* ---- dialect: OpenCL C 1.2, no half arithmetic ---- */
typedef long i64;
typedef uint u32;
#define LANE ((int)get_local_id(0))
#define GROUP_X ((i64)get_group_id(0))
#define GROUP_Y ((i64)get_group_id(1))
#define GROUP_Z ((int)get_group_id(2))
#define GROUPS_X ((i64)get_num_groups(0))
#define BARRIER barrier(CLK_LOCAL_MEM_FENCE)
#ifdef MOBA_NO_UNROLL /* processors: compile time counts, and there are too few registers to gain */
#define UNROLL
#else
#define UNROLL _Pragma("unroll")
#endif
#define ROLLED _Pragma("unroll 1")
#define TO_F32(x) ((float)(x))
#define TO_I32(x) ((int)(x))
#define TO_U32(x) ((uint)(x))
#define TO_I64(x) ((long)(x))
#define BITS_U32(x) as_uint(x)
#define BITS_F32(x) as_float(x)
#define BIT_COUNT(x) ((int)popcount((uint)(x)))
#define FMAX(a, b) fmax(a, b)
#define EXP2(x) exp2(x)
#define LOG2(x) log2(x)
#define RECIPROCAL(x) (1.0f / (x))
#ifdef FP_FAST_FMAF
#define FMA(a, b, c) fma(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#define STEPS 16
#define WIDE_QUOTIENTS true
#define LOADV(to, j, b, i)                                                                    \
    {                                                                                         \
        float4 four_ = (b)[i];                                                                \
        to[j] = four_.x;                                                                      \
        to[(j) + 1] = four_.y;                                                                \
        to[(j) + 2] = four_.z;                                                                \
        to[(j) + 3] = four_.w;                                                                \
    }
#define LOAD4(to, j, b, i) LOADV(to, j, (const __local float4 *)((const __local float *)(b) + (i)), 0)
#define LOAD1(b, i) ((const __local float *)(b))[i]
#define STOREV(b, i, x, y, z, w) (b)[i] = (float4)(x, y, z, w)
#define STORE4(b, i, x, y, z, w) *(__local float4 *)((__local float *)(b) + (i)) = (float4)(x, y, z, w)
#define LDF(b, i) ((b)[i])
#define STF(b, i, x) ((b)[i] = (x))
#define LDI(b, i) ((b)[i])
#define STI(b, i, x) ((b)[i] = (x))
#define LDU(b, i) ((b)[i])
#define STU(b, i, x) ((b)[i] = (x))
#define LDL(b, i) ((b)[i])
#define STL(b, i, x) ((b)[i] = (x))
#define LDH(b, i) ((uint)(b)[i])
#define STH(b, i, x) ((b)[i] = (ushort)(x))
#define LDE(b, i) LDR(b, i)
#define ALIGNED(b) (((size_t)(b) & 15) == 0)
#define LDQ(to, b, i)                                                                         \
    {                                                                                         \
        uint4 words_ = *(const __global uint4 *)((b) + (i));                                  \
        to[0] = words_.x;                                                                     \
        to[1] = words_.y;                                                                     \
        to[2] = words_.z;                                                                     \
        to[3] = words_.w;                                                                     \
    }
ushort moba_bf16(float x)
{
    uint u = as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (ushort)((u >> 16) | 0x40u);
    return (ushort)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
float moba_f32(uint x)
{
    ushort u = (ushort)x;
    return vload_half(0, (const __private half *)&u);
}
/* The upper half of a, then the lower half of b. Of shifts compilers make a funnel shift, which Oclgrind does not have. */
#define HALVES(a, b) as_uint((ushort2)(as_ushort2(a).y, as_ushort2(b).x))
#ifndef DTYPE
#define DTYPE 0
#endif
#if DTYPE == 0
#define T float
#define LD(b, i) ((b)[i])
#define LDR(b, i) as_uint((b)[i])
#define RAW_F32(x) BITS_F32(x)
#define PACKED 1
#define JOIN(a, b) (b)
#define UNPACK(word, e) BITS_F32(word)
#define ST(b, i, x) ((b)[i] = (x))
#elif DTYPE == 1
#define T ushort
#define LD(b, i) vload_half(i, (const __global half *)(b))
#define LDR(b, i) ((u32)(b)[i])
#define RAW_F32(x) moba_f32(x)
#define PACKED 2
#define JOIN(a, b) HALVES(a, b)
#define UNPACK(word, e) moba_f32((e) == 0 ? (word) : (word) >> 16)
#define ST(b, i, x) vstore_half_rte(x, i, (__global half *)(b))
#else
#define T ushort
#define LD(b, i) as_float((uint)(b)[i] << 16)
#define LDR(b, i) ((u32)(b)[i])
#define RAW_F32(x) as_float((x) << 16)
#define PACKED 2
#define JOIN(a, b) HALVES(a, b)
#define UNPACK(word, e) as_float((e) == 0 ? (word) << 16 : (word) & 0xffff0000u)
#define ST(b, i, x) ((b)[i] = moba_bf16(x))
#endif
/* ---- end of dialect ---- */
