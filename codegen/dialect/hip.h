/* ---- dialect: HIP device code without the ROCm headers and libraries (clang builtins only) ---- */
#ifndef MOBA_DIALECT
#define MOBA_DIALECT
#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
typedef long long i64;
typedef unsigned int u32;
#define LANE ((int)__builtin_amdgcn_workitem_id_x())
#define GROUP_X ((i64)__builtin_amdgcn_workgroup_id_x())
#define GROUP_Y ((i64)__builtin_amdgcn_workgroup_id_y())
#define GROUP_Z ((int)__builtin_amdgcn_workgroup_id_z())
#define GROUPS_X ((i64)(__builtin_amdgcn_grid_size_x() / LANES))
#define BARRIER moba_barrier()
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define TO_F32(x) ((float)(x))
#define TO_I32(x) ((int)(x))
#define TO_U32(x) ((u32)(x))
#define TO_I64(x) ((i64)(x))
#define BITS_U32(x) __builtin_bit_cast(u32, (float)(x))
#define BITS_F32(x) __builtin_bit_cast(float, (u32)(x))
#define BIT_COUNT(x) __builtin_popcount(x)
#define FMAX(a, b) __builtin_fmaxf(a, b)
#define EXP2(x) __builtin_exp2f(x)
#define LOG2(x) __builtin_log2f(x)
#define RECIPROCAL(x) __builtin_amdgcn_rcpf(x)
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
typedef float f32x4 __attribute__((ext_vector_type(4)));
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
#define STEPS 8
#define WIDE_QUOTIENTS false
#define LOADV(to, j, b, i)                                                                    \
    {                                                                                         \
        f32x4 four_ = (b)[i];                                                                 \
        to[j] = four_.x;                                                                      \
        to[(j) + 1] = four_.y;                                                                \
        to[(j) + 2] = four_.z;                                                                \
        to[(j) + 3] = four_.w;                                                                \
    }
#define LOAD4(to, j, b, i) LOADV(to, j, b, (i) >> 2)
#define LOAD1(b, i) ((const float *)(b))[i]
#define STOREV(b, i, x, y, z, w) (b)[i] = f32x4{x, y, z, w}
#define STORE4(b, i, x, y, z, w) STOREV(b, (i) >> 2, x, y, z, w)
#define LDF(b, i) ((b)[i])
#define STF(b, i, x) ((b)[i] = (x))
#define LDI(b, i) ((b)[i])
#define STI(b, i, x) ((b)[i] = (x))
#define LDU(b, i) ((b)[i])
#define STU(b, i, x) ((b)[i] = (x))
#define LDL(b, i) ((b)[i])
#define STL(b, i, x) ((b)[i] = (x))
#define LDH(b, i) ((u32)(b)[i])
#define STH(b, i, x) ((b)[i] = (unsigned short)(x))
#define LDE(b, i) LDR(b, i)
#define ALIGNED(b) (((unsigned long long)(b) & 15) == 0)
#define LDQ(to, b, i)                                                                         \
    {                                                                                         \
        u32x4 words_ = *(const u32x4 *)((b) + (i));                                           \
        to[0] = words_.x;                                                                     \
        to[1] = words_.y;                                                                     \
        to[2] = words_.z;                                                                     \
        to[3] = words_.w;                                                                     \
    }
static __device__ inline void moba_barrier()
{
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
    __builtin_amdgcn_s_barrier();
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}
static __device__ inline unsigned short moba_bf16(float x)
{
    u32 u = BITS_U32(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((u >> 16) | 0x40u);
    return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static __device__ inline unsigned short moba_f16(float x) { return __builtin_bit_cast(unsigned short, (_Float16)x); }
static __device__ inline float moba_f32(unsigned short h) { return (float)__builtin_bit_cast(_Float16, h); }
#endif
#ifndef DTYPE
#define DTYPE 0
#endif
#undef T
#undef LD
#undef ST
#undef LDR
#undef RAW_F32
#undef PACKED
#undef JOIN
#undef UNPACK
#if DTYPE == 0
#define T float
#define LD(b, i) ((b)[i])
#define LDR(b, i) BITS_U32((b)[i])
#define RAW_F32(x) BITS_F32(x)
#define PACKED 1
#define JOIN(a, b) (b)
#define UNPACK(word, e) BITS_F32(word)
#define ST(b, i, x) ((b)[i] = (x))
#elif DTYPE == 1
#define T unsigned short
#define LD(b, i) moba_f32((b)[i])
#define LDR(b, i) ((u32)(b)[i])
#define RAW_F32(x) moba_f32((unsigned short)(x))
#define PACKED 2
#define JOIN(a, b) ((a) >> 16 | (b) << 16)
#define UNPACK(word, e) moba_f32((unsigned short)((e) == 0 ? (word) : (word) >> 16))
#define ST(b, i, x) ((b)[i] = moba_f16(x))
#else
#define T unsigned short
#define LD(b, i) BITS_F32((u32)(b)[i] << 16)
#define LDR(b, i) ((u32)(b)[i])
#define RAW_F32(x) BITS_F32((x) << 16)
#define PACKED 2
#define JOIN(a, b) ((a) >> 16 | (b) << 16)
#define UNPACK(word, e) BITS_F32((e) == 0 ? (word) << 16 : (word) & 0xffff0000u)
#define ST(b, i, x) ((b)[i] = moba_bf16(x))
#endif
/* ---- end of dialect ---- */
