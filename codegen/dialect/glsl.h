/* ---- dialect: GLSL 4.60 for Vulkan 1.2; buffers are 64-bit addresses or, with MOBA_BOUND, descriptors ---- */
#ifndef MOBA_BOUND
#extension GL_EXT_buffer_reference : require
#endif
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#extension GL_EXT_shader_explicit_arithmetic_types_int16 : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_control_flow_attributes : require
#define i64 int64_t
#define u32 uint
#define LANE int(gl_LocalInvocationID.x)
#define GROUP_X int64_t(gl_WorkGroupID.x)
#define GROUP_Y int64_t(gl_WorkGroupID.y)
#define GROUP_Z int(gl_WorkGroupID.z)
#define GROUPS_X int64_t(gl_NumWorkGroups.x)
#define BARRIER barrier()
#define UNROLL [[unroll]]
#define ROLLED [[dont_unroll]]
#define TO_F32(x) float(x)
#define TO_I32(x) int(x)
#define TO_U32(x) uint(x)
#define TO_I64(x) moba_i64(x)
#define BITS_U32(x) floatBitsToUint(x)
#define BITS_F32(x) uintBitsToFloat(x)
#define BIT_COUNT(x) bitCount(x)
#define FMAX(a, b) max(a, b)
#define RECIPROCAL(x) (1.0 / (x))
#define FMA(a, b, c) fma(a, b, c)
#define STEPS 2
#define WIDE_QUOTIENTS false
#define LOADV(to, j, b, i)                                                                    \
    {                                                                                         \
        vec4 four_ = (b)[i];                                                                  \
        to[j] = four_.x;                                                                      \
        to[(j) + 1] = four_.y;                                                                \
        to[(j) + 2] = four_.z;                                                                \
        to[(j) + 3] = four_.w;                                                                \
    }
#define LOAD4(to, j, b, i) LOADV(to, j, b, (i) >> 2)
#define LOAD1(b, i) (b)[(i) >> 2][(i) & 3]
#define STOREV(b, i, x, y, z, w) (b)[i] = vec4(x, y, z, w)
#define STORE4(b, i, x, y, z, w) STOREV(b, (i) >> 2, x, y, z, w)
/* Put together from halves: lavapipe 22.3 takes the greater of a converted INT_MIN and 0 to be INT_MIN. */
int64_t moba_i64(int x) { return packInt2x32(ivec2(x, x >> 31)); }
int64_t moba_i64(uint x) { return int64_t(x); }
int64_t moba_i64(int64_t x) { return x; }
#ifndef MOBA_BOUND
layout(buffer_reference, std430, buffer_reference_align = 4) buffer F32Ref_ { float v; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer I32Ref_ { int v; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer U32Ref_ { uint v; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer I64Ref_ { int64_t v; };
layout(buffer_reference, std430, buffer_reference_align = 2) buffer U16Ref_ { uint16_t v; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer U32x4Ref_ { uvec4 v; };
#define AT_(ref, b, i, bytes) ref((b) + uint64_t(i) * bytes).v
#define LDF(b, i) AT_(F32Ref_, b, i, 4ul)
#define STF(b, i, x) AT_(F32Ref_, b, i, 4ul) = (x)
#define LDI(b, i) AT_(I32Ref_, b, i, 4ul)
#define STI(b, i, x) AT_(I32Ref_, b, i, 4ul) = (x)
#define LDU(b, i) AT_(U32Ref_, b, i, 4ul)
#define STU(b, i, x) AT_(U32Ref_, b, i, 4ul) = (x)
#define LDL(b, i) AT_(I64Ref_, b, i, 8ul)
#define STL(b, i, x) AT_(I64Ref_, b, i, 8ul) = (x)
#define LDH(b, i) uint(AT_(U16Ref_, b, i, 2ul))
#define STH(b, i, x) AT_(U16Ref_, b, i, 2ul) = uint16_t(x)
#else
/* A buffer is bound as WINDOWS (2 or more) consecutive ranges of 2^WINDOW_SHIFT bytes, because a range may not be longer
 * than maxStorageBufferRange: the first at binding 2k, the others as an array at 2k + 1, indexed by loop counters only,
 * which needs no non-uniform indexing. The variable of a buffer's name is the distance in bytes from the first's begin. */
layout(constant_id = 0) const uint WINDOWS = 2u;
layout(constant_id = 1) const uint WINDOW_SHIFT = 27u;
#define BIND_(k, b, kind, type, bytes, access)                                                      \
    layout(set = 0, binding = 2 * k, std430) access buffer b##_first_ { type v[]; } b##_w_;         \
    layout(set = 0, binding = 2 * k + 1, std430) access buffer b##_more_ { type v[]; } b##_x_[WINDOWS - 1u]; \
    uint b##_at_(int64_t i, out uint w)                                                             \
    {                                                                                               \
        uint64_t at = b + uint64_t(i) * bytes;                                                      \
        w = uint(at >> WINDOW_SHIFT);                                                               \
        return (uint(at) & ((1u << WINDOW_SHIFT) - 1u)) / uint(bytes);                              \
    }                                                                                               \
    type b##_ld##kind##_(int64_t i)                                                                 \
    {                                                                                               \
        uint w, e = b##_at_(i, w);                                                                  \
        if (w == 0u) return b##_w_.v[e];                                                            \
        type x = type(0);                                                                           \
        for (uint y = 1u; y < WINDOWS; y++)                                                         \
            if (y == w) x = b##_x_[y - 1u].v[e];                                                    \
        return x;                                                                                   \
    }
#define BIND_ST_(b, kind, type)                                                                     \
    void b##_st##kind##_(int64_t i, type x)                                                         \
    {                                                                                               \
        uint w, e = b##_at_(i, w);                                                                  \
        if (w == 0u) b##_w_.v[e] = x;                                                               \
        for (uint y = 1u; y < WINDOWS; y++)                                                         \
            if (y == w) b##_x_[y - 1u].v[e] = x;                                                    \
    }
#define BIND_IN_(k, b, kind, type, bytes) BIND_(k, b, kind, type, bytes, readonly)
#define BIND_OUT_(k, b, kind, type, bytes) BIND_(k, b, kind, type, bytes, ) BIND_ST_(b, kind, type)
#define LDF(b, i) b##_ldF_(i)
#define STF(b, i, x) b##_stF_(i, x)
#define LDI(b, i) b##_ldI_(i)
#define STI(b, i, x) b##_stI_(i, x)
#define LDU(b, i) b##_ldU_(i)
#define STU(b, i, x) b##_stU_(i, x)
#define LDL(b, i) b##_ldL_(i)
#define STL(b, i, x) b##_stL_(i, x)
#define LDH(b, i) uint(b##_ldH_(i))
#define STH(b, i, x) b##_stH_(i, uint16_t(x))
#endif
uint moba_bf16(float x)
{
    uint u = floatBitsToUint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (u >> 16) | 0x40u;
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
/* packHalf2x16 may round either way; below 2^-14 the unit is 2^-24. */
uint moba_f16(float x)
{
    uint u = floatBitsToUint(x), sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return sign | 0x7e00u;
    if (u >= 0x47800000u) return sign | 0x7c00u;
    if (u < 0x38800000u) return sign | uint(roundEven(uintBitsToFloat(u) * 16777216.0));
    return sign | ((u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13);
}
#ifndef DTYPE
#define DTYPE 0
#endif
#if DTYPE == 0
/* Vulkan lets exp2 be off by 3 + 2 |x| units in the last place, log2 by 2^-21 near 1, and lavapipe uses much of that: too
 * much for float32 gradients. These are off by about one unit; powers below 2^-126 are 0. */
float moba_exp2(float x)
{
    if ((floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u) return x;
    float c = clamp(x, -127.0, 128.0), n = roundEven(c), f = c - n, p = 1.525273380405984e-5;
    p = fma(p, f, 1.540353039338161e-4);
    p = fma(p, f, 1.333355814642869e-3);
    p = fma(p, f, 9.618129107628477e-3);
    p = fma(p, f, 5.550410866482158e-2);
    p = fma(p, f, 2.402265069591007e-1);
    p = fma(p, f, 6.931471805599453e-1);
    p = fma(p, f, 1.0);
    return p * uintBitsToFloat(uint(int(n) + 127) << 23);
}
float moba_log2(float x)
{
    if (!(x > 1.2e-38 && x < 3.4e38)) return log2(x);
    int e;
    float m = frexp(x, e);
    if (m < 0.70710678) {
        m *= 2.0;
        e--;
    }
    float f = (m - 1.0) / (m + 1.0), z = f * f, p = 0.2222222222;
    p = fma(p, z, 0.2857142857);
    p = fma(p, z, 0.4);
    p = fma(p, z, 0.6666666667);
    p = fma(p, z, 2.0);
    return fma(p * f, 1.44269504088896341, float(e));
}
#define EXP2(x) moba_exp2(x)
#define LOG2(x) moba_log2(x)
#else
#define EXP2(x) exp2(x)
#define LOG2(x) log2(x)
#endif
#if DTYPE == 0
#define LD(b, i) LDF(b, i)
#define LDE(b, i) floatBitsToUint(LDF(b, i))
#define PACKED 1
#define JOIN(a, b) (b)
#define UNPACK(word, e) uintBitsToFloat(word)
#define ST(b, i, x) STF(b, i, x)
#elif DTYPE == 1
#define LD(b, i) unpackHalf2x16(LDH(b, i)).x
#define LDE(b, i) LDH(b, i)
#define PACKED 2
#define JOIN(a, b) ((a) >> 16 | (b) << 16)
#define UNPACK(word, e) unpackHalf2x16(word)[e]
#define ST(b, i, x) STH(b, i, moba_f16(x))
#else
#define LD(b, i) uintBitsToFloat(LDH(b, i) << 16)
#define LDE(b, i) LDH(b, i)
#define PACKED 2
#define JOIN(a, b) ((a) >> 16 | (b) << 16)
#define UNPACK(word, e) uintBitsToFloat((e) == 0 ? (word) << 16 : (word) & 0xffff0000u)
#define ST(b, i, x) STH(b, i, moba_bf16(x))
#endif
/* converted at once, which this compiler likes better */
#define LDR(b, i) floatBitsToUint(LD(b, i))
#define RAW_F32(x) uintBitsToFloat(x)
#ifndef MOBA_BOUND
#define ALIGNED(b) ((b & 15ul) == 0ul)
#define LDQ(to, b, i)                                                                         \
    {                                                                                         \
        uvec4 words_ = AT_(U32x4Ref_, b, i, uint64_t(4 / PACKED));                            \
        to[0] = words_.x;                                                                     \
        to[1] = words_.y;                                                                     \
        to[2] = words_.z;                                                                     \
        to[3] = words_.w;                                                                     \
    }
#else
#define ALIGNED(b) true
#define LDQ(to, b, i)                                                                         \
    {                                                                                         \
        UNROLL                                                                                \
        for (int w_ = 0; w_ < 4; w_++)                                                        \
            to[w_] = JOIN(LDE(b, (i) + w_ * PACKED) << 16, LDE(b, (i) + (w_ + 1) * PACKED - 1)); \
    }
#endif
/* ---- end of dialect ---- */
