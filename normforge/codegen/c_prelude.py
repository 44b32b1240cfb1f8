"""What every generated C file starts with: loads, stores and branch-free elementary functions that vectorise.

float32 functions are short polynomials and quotients of such (own minimax fits, largest relative error about 2e-7 for
exp, 4e-7 for tanh and erf, 1.2e-7 absolute for sigmoid); NaN, infinities and denormals come out right. float64 calls
the C library. Nothing here touches the floating-point state of the process.
"""

COMMON = r"""
#include <stdint.h>
#include <string.h>
#include <math.h>
#include <stddef.h>
#define INLINE static inline __attribute__((always_inline))
#define MIN2(a, b) ((a) < (b) ? (a) : (b))
#define MAX2(a, b) ((a) > (b) ? (a) : (b))

INLINE uint32_t bits_of(float a) { uint32_t u; memcpy(&u, &a, 4); return u; }
INLINE float float_of(uint32_t u) { float a; memcpy(&a, &u, 4); return a; }
"""

# T is float or double. A NaN in either operand of max and min gives NaN; at 0 the sign of abs is dropped.
GENERIC = r"""
INLINE T f_max(T a, T b) { return (a > b) | (a != a) ? a : b; }
INLINE T f_min(T a, T b) { return (a < b) | (a != a) ? a : b; }
INLINE T f_sign(T a) { return a != a ? a : (T)(a > 0) - (T)(a < 0); }
INLINE T f_gate(T a, T b, T t) { T share = a == b ? (T)0.5 : (T)1; return a < b ? (T)0 : t * share; }
"""

FLOAT32 = r"""
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
INLINE float f_abs(float a) { return fabsf(a); }
INLINE float f_root(float a) { return sqrtf(a); }
INLINE float f_exp(float a) {
  float x = a > 89.0f ? 89.0f : a;
  x = x < -104.0f ? -104.0f : x;
  const float magic = 12582912.0f;              /* 1.5 * 2^23: adding it rounds to an integer */
  float shifted = FMA(x, 1.44269504089f, magic);
  int32_t n = (int32_t)(bits_of(shifted) - bits_of(magic));
  float k = shifted - magic;
  float r = FMA(k, -1.42860682030941723e-6f, FMA(k, -0.693145751953125f, x));
  float p = 1.394111754e-03f;
  p = FMA(p, r, 8.363179812e-03f);
  p = FMA(p, r, 4.166637521e-02f);
  p = FMA(p, r, 1.666657698e-01f);
  p = FMA(p, r, 5.000000027e-01f);
  p = FMA(p, r * r, r) + 1.0f;
  int32_t half = n >> 1;                        /* two factors: results may be denormal or infinite */
  return p * float_of((uint32_t)(half + 127) << 23) * float_of((uint32_t)(n - half + 127) << 23);
}
/* 2^(x * scale) / 2 for results from 2^-126 to 2^127; above 2^128 infinity. Relative error 1e-7, growing to 1e-6 at
   both ends because `scale` is rounded: for uses where 1 is added to it, which take no harm. */
INLINE float half_exp2(float x, float scale) {
  const float magic = 12583038.0f;              /* 1.5 * 2^23 + 126: the low bits become the exponent's field */
  float shifted = FMA(x, scale, magic);
  float r = FMA(x, scale, -(shifted - magic));
  float p = 1.326469937e-03f;
  p = FMA(p, r, 9.671533480e-03f);
  p = FMA(p, r, 5.550733954e-02f);
  p = FMA(p, r, 2.402224243e-01f);
  p = FMA(p, r, 6.931470037e-01f);
  p = FMA(p, r, 1.0f);
  return p * float_of(bits_of(shifted) << 23);
}
INLINE float f_sigmoid(float a) {
  float x = a < -89.5f ? -89.5f : a;            /* there e^-a is infinite and the result 0 */
  x = x > 87.0f ? 87.0f : x;
  return 0.5f / (0.5f + half_exp2(x, -1.44269504089f));
}
INLINE float within_one(float a) { a = a > 1.0f ? 1.0f : a; return a < -1.0f ? -1.0f : a; }
INLINE float f_tanh(float a) {                  /* relative error 3.3e-7; from 9.02 on, 1 */
  float x = a > 9.02f ? 9.02f : a;
  x = x < -9.02f ? -9.02f : x;
  float z = x * x;
  float p = 1.331897082e-08f;
  p = FMA(p, z, 2.058340579e-05f);
  p = FMA(p, z, 3.494029865e-03f);
  p = FMA(p, z, 1.337971389e-01f);
  p = FMA(p, z, 1.0f);
  float q = 7.761977372e-07f;
  q = FMA(q, z, 3.283085243e-04f);
  q = FMA(q, z, 2.587105520e-02f);
  q = FMA(q, z, 4.671303034e-01f);
  q = FMA(q, z, 1.0f);
  return within_one(x * p / q);
}
INLINE float f_erf(float a) {                   /* relative error 3.7e-7; from 3.96 on, 1 */
  float x = a > 3.96f ? 3.96f : a;
  x = x < -3.96f ? -3.96f : x;
  float z = x * x;
  float p = 2.050087005e-06f;
  p = FMA(p, z, 2.848826698e-04f);
  p = FMA(p, z, 3.765616100e-03f);
  p = FMA(p, z, 5.274871737e-02f);
  p = FMA(p, z, 1.904064566e-01f);
  p = FMA(p, z, 1.128379107e+00f);
  float q = 3.809170812e-05f;
  q = FMA(q, z, 1.162535278e-03f);
  q = FMA(q, z, 1.496921387e-02f);
  q = FMA(q, z, 1.141091064e-01f);
  q = FMA(q, z, 5.020760894e-01f);
  q = FMA(q, z, 1.0f);
  return within_one(x * p / q);
}
INLINE float f_ln(float a) {
  int tiny = a < 1.17549435e-38f;
  float x = tiny ? a * 8388608.0f : a;
  uint32_t u = bits_of(x) - 0x3f3504f3u;        /* mantissa to [sqrt(1/2), sqrt(2)) */
  int32_t n = (int32_t)u >> 23;
  float f = float_of((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 7.330558956e-02f;
  p = FMA(p, f, -1.165944721e-01f);
  p = FMA(p, f, 1.163508319e-01f);
  p = FMA(p, f, -1.239677715e-01f);
  p = FMA(p, f, 1.425112627e-01f);
  p = FMA(p, f, -1.666914772e-01f);
  p = FMA(p, f, 2.000068877e-01f);
  p = FMA(p, f, -2.499998122e-01f);
  p = FMA(p, f, 3.333333125e-01f);
  float k = (float)n - (tiny ? 23.0f : 0.0f);
  float y = k * 0.693145751953125f + (f + (k * 1.42860682030941723e-6f + f * f * (f * p - 0.5f)));
  y = a > 3.4028235e38f ? a : y;
  y = a == 0.0f ? -INFINITY : y;
  return (a < 0.0f) | (a != a) ? NAN : y;
}
"""

FLOAT64 = r"""
#define FMA(a, b, c) ((a) * (b) + (c))
INLINE double f_abs(double a) { return fabs(a); }
INLINE double f_root(double a) { return sqrt(a); }
INLINE double f_exp(double a) { return exp(a); }
INLINE double f_sigmoid(double a) { return 1.0 / (1.0 + exp(-a)); }
INLINE double f_tanh(double a) { return tanh(a); }
INLINE double f_erf(double a) { return erf(a); }
INLINE double f_ln(double a) { return log(a); }
"""

# Lanes of a sum, and their total, by vectors of 16 bytes, which are everywhere.
SUMS = r"""
#ifdef __AVX__
#define LANES (32 / (int)sizeof(X))
#else
#define LANES (16 / (int)sizeof(X))
#endif
typedef T Quad __attribute__((vector_size(16), may_alias));
INLINE Quad quad_total(const T *a) {
  Quad s = *(const Quad *)a;
#pragma GCC unroll 4
  for (int k = 16 / (int)sizeof(T); k < LANES; k += 16 / (int)sizeof(T)) s += *(const Quad *)(a + k);
  return s;
}
"""
TOTAL64 = r"""
INLINE double total(const double *a) { Quad s = quad_total(a); return s[0] + s[1]; }
"""
TOTAL32 = r"""
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define HALVES(s) __builtin_shufflevector(s, s, 2, 3, 0, 1)
#endif
#endif
#ifndef HALVES
#define HALVES(s) ((Quad){s[2], s[3], s[0], s[1]})
#endif
INLINE float total(const float *a) { Quad s = quad_total(a); s += HALVES(s); return s[0] + s[1]; }
"""

# Full tensors in the storage dtype X; arithmetic in T.
PLAIN = r"""
#define LOAD(p, i) ((p)[i])
#define STORE(p, i, v) ((p)[i] = (v))
"""

BFLOAT16 = r"""
INLINE float f_load(uint16_t h) { return float_of((uint32_t)h << 16); }
INLINE uint16_t f_store(float a) {
  uint32_t u = bits_of(a);
  uint32_t even = u + 0x7fffu + ((u >> 16) & 1u);
  uint32_t r = (u & 0x7fffffffu) > 0x7f800000u ? u | 0x00400000u : even;
  return (uint16_t)(r >> 16);
}
#define LOAD(p, i) f_load((p)[i])
#define STORE(p, i, v) ((p)[i] = f_store(v))
"""

FLOAT16 = r"""
INLINE float f_load(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu) << 13;
  uint32_t scaled = bits_of(float_of(rest) * float_of(0x77800000u)); /* 2^112 moves the exponent, denormals too */
  uint32_t special = rest | 0x7f800000u;
  return float_of((rest >= 0x0f800000u ? special : scaled) | sign);
}
INLINE uint16_t f_store(float a) {
  uint32_t u = bits_of(a), sign = (u >> 16) & 0x8000u, m = u & 0x7fffffffu;
  uint32_t even = m + 0xfffu + ((m >> 13) & 1u);
  uint32_t normal = (even - 0x38000000u) >> 13;
  uint32_t denormal = bits_of(float_of(m) + 0.5f) - 0x3f000000u;       /* adding 1/2 rounds at 2^-24 */
  uint32_t r = m < 0x38800000u ? denormal : normal;
  r = m >= 0x477ff000u ? 0x7c00u : r;                                    /* rounds to infinity */
  r = m > 0x7f800000u ? 0x7e00u : r;                                     /* NaN */
  return (uint16_t)(r | sign);
}
#define LOAD(p, i) f_load((p)[i])
#define STORE(p, i, v) ((p)[i] = f_store(v))
"""


def prelude(dtype: str) -> str:
    """The prelude for full tensors of `dtype`: T the arithmetic type, X the storage type."""
    wide = dtype == "float64"
    arithmetic = "double" if wide else "float"
    storage = arithmetic if dtype in ("float32", "float64") else "uint16_t"
    io = {"bfloat16": BFLOAT16, "float16": FLOAT16}.get(dtype, PLAIN)
    types = f"typedef {arithmetic} T;\ntypedef {storage} X;\n"
    return COMMON + types + GENERIC + (FLOAT64 if wide else FLOAT32) + SUMS + (TOTAL64 if wide else TOTAL32) + io
