"""What every generated C file starts with: vectors of W elements, their loads and stores, and branch-free elementary
functions on them.

Written in the vector types that gcc and clang share, so that one text serves SSE, AVX2, AVX-512 and NEON and does not
wait for a compiler's vectoriser; an instruction that has no such spelling (minimum, select, fused multiply-add,
streaming store) is named for each of them, with a portable form for the rest. float32 functions are short polynomials
and quotients of such (own minimax fits, largest relative error about 2e-7 for exp, 4e-7 for tanh and erf, 1.2e-7
absolute for sigmoid); NaN, infinities and denormals come out right. float64 calls the C library. Nothing here touches
the floating-point state of the process.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import cache, lru_cache

COMMON = r"""
typedef __UINT16_TYPE__ uint16_t;
typedef __INT32_TYPE__ int32_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINTPTR_TYPE__ uintptr_t;
double exp(double), tanh(double), erf(double), log(double), sqrt(double), fabs(double);
float sqrtf(float);
#define memcpy __builtin_memcpy
#define NAN __builtin_nanf("")
#define INFINITY __builtin_inff()
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif
#define INLINE static inline __attribute__((always_inline))
#define MIN2(a, b) ((a) < (b) ? (a) : (b))
#define MAX2(a, b) ((a) > (b) ? (a) : (b))
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX2__)
#define BYTES 32
#else
#define BYTES 16
#endif
"""

# T is the arithmetic type, X the storage type, I an integer as wide as T, V a vector of W elements of T, M its mask.
# Loads and stores take any address; those that end in N, the first n elements of a vector and no memory beyond.
VECTORS = r"""
#define W (BYTES / (int)sizeof(T))
typedef T V __attribute__((vector_size(BYTES), may_alias));
typedef I M __attribute__((vector_size(BYTES), may_alias));
typedef T Loose __attribute__((vector_size(BYTES), may_alias, aligned(sizeof(T))));
typedef I LooseMask __attribute__((vector_size(BYTES), may_alias, aligned(sizeof(T))));
INLINE M load_mask(const I *p) { return *(const LooseMask *)p; }
INLINE V set(T a) { return a - (V){0}; }
INLINE V load(const T *p) { return *(const Loose *)p; }
INLINE void store(T *p, V a) { *(Loose *)p = a; }
static const I LANE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
INLINE M lanes(int64_t n) { return load_mask(LANE) < (I)n; }
INLINE V load_n(const T *p, int64_t n) {
#ifdef MASKED_LOAD
  return (V)MASKED_LOAD((const void *)p, lanes(n));
#else
  T b[W] = {0};
  for (int64_t l = 0; l < n; ++l) b[l] = p[l];
  return load(b);
#endif
}
INLINE void store_n(T *p, V a, int64_t n) { T b[W]; store(b, a); for (int64_t l = 0; l < n; ++l) p[l] = b[l]; }
INLINE V either(M m, V a, V b) {
#ifdef SELECT
  return (V)SELECT(m, a, b);
#else
  return (V)((m & (M)a) | (~m & (M)b));
#endif
}
INLINE V bits_if(M m, V a) { return (V)(m & (M)a); }
/* The larger (smaller) of both, a where either is NaN. */
INLINE V max_or(V a, V b) {
#ifdef MAXIMUM
  return (V)MAXIMUM(b, a);
#else
  return either(b > a, b, a);
#endif
}
INLINE V min_or(V a, V b) {
#ifdef MINIMUM
  return (V)MINIMUM(b, a);
#else
  return either(b < a, b, a);
#endif
}
INLINE V fma_(V a, V b, V c) {
#ifdef MULTIPLY_ADD
  return (V)MULTIPLY_ADD(a, b, c);
#else
  return a * b + c;
#endif
}
INLINE V v_max(V a, V b) { return either(b != b, b, max_or(a, b)); }
INLINE V v_min(V a, V b) { return either(b != b, b, min_or(a, b)); }
INLINE V v_sign(V a) { return either(a != a, a, bits_if(a > 0, set(1)) - bits_if(a < 0, set(1))); }
INLINE V v_where(V a, V b, V c, V d) { return either(a > b, c, d); }
INLINE V v_where_ge(V a, V b, V c, V d) { return either(a >= b, c, d); }
INLINE V v_gate(V a, V b, V t) { return bits_if(~(a < b), either(a == b, t * (T)0.5, t)); }
typedef T Quad __attribute__((vector_size(16), may_alias));
INLINE T total(V a) {
  Quad q[BYTES / 16], s;
  memcpy(q, &a, BYTES);
  s = q[0];
#pragma GCC unroll 4
  for (int k = 1; k < BYTES / 16; ++k) s += q[k];
  return QUAD_TOTAL(s);
}
"""

# The instructions that vector types do not spell, for float.
INSTRUCTIONS = r"""
#if defined(__AVX512F__)
#define MULTIPLY_ADD(a, b, c) __builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4)
#if !defined(__clang__)                         /* clang has others */
#define MAXIMUM(a, b) __builtin_ia32_maxps512_mask(a, b, (V){0}, -1, 4)
#define MINIMUM(a, b) __builtin_ia32_minps512_mask(a, b, (V){0}, -1, 4)
#endif
#elif defined(__AVX2__)
#define MAXIMUM(a, b) __builtin_ia32_maxps256(a, b)
#define MINIMUM(a, b) __builtin_ia32_minps256(a, b)
#define SELECT(m, a, b) __builtin_ia32_blendvps256(b, a, (V)(m))
#define MASKED_LOAD(p, m) __builtin_ia32_maskloadps256(p, m)
#define ROOT(a) __builtin_ia32_sqrtps256(a)
#ifdef __FMA__
#define MULTIPLY_ADD(a, b, c) __builtin_ia32_vfmaddps256(a, b, c)
#endif
#elif defined(__SSE__)
#define MAXIMUM(a, b) __builtin_ia32_maxps(a, b)
#define MINIMUM(a, b) __builtin_ia32_minps(a, b)
#define ROOT(a) __builtin_ia32_sqrtps(a)
#elif defined(__aarch64__)
#define MULTIPLY_ADD(a, b, c) vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))
#define SELECT(m, a, b) vbslq_f32((uint32x4_t)(m), (float32x4_t)(a), (float32x4_t)(b))
#define ROOT(a) vsqrtq_f32((float32x4_t)(a))
#endif
#define QUAD_TOTAL(s) ((s[0] + s[2]) + (s[1] + s[3]))
"""

WIDE = r"""
#define QUAD_TOTAL(s) (s[0] + s[1])
"""

FLOAT32 = r"""
INLINE V v_abs(V a) { return (V)((M)a & 0x7fffffff); }
INLINE V v_root(V a) {
#ifdef ROOT
  return (V)ROOT(a);
#else
  for (int l = 0; l < W; ++l) a[l] = sqrtf(a[l]);
  return a;
#endif
}
INLINE V v_exp(V a) {
  V x = max_or(min_or(a, set(89.0f)), set(-104.0f));
  const V magic = set(12582912.0f);             /* 1.5 * 2^23: adding it rounds to an integer */
  V shifted = fma_(x, set(1.44269504089f), magic);
  M n = (M)shifted - (M)magic;
  V k = shifted - magic;
  V r = fma_(k, set(-1.42860682030941723e-6f), fma_(k, set(-0.693145751953125f), x));
  V p = fma_(set(1.394111754e-03f), r, set(8.363179812e-03f));
  p = fma_(p, r, set(4.166637521e-02f));
  p = fma_(p, r, set(1.666657698e-01f));
  p = fma_(p, r, set(5.000000027e-01f));
  p = fma_(p, r * r, r) + 1.0f;
  M half = n >> 1;                              /* two factors: results may be denormal or infinite */
  return p * (V)((half + 127) << 23) * (V)((n - half + 127) << 23);
}
/* 2^(x * scale) / 2 for results from 2^-126 to 2^127; above 2^128 infinity. Relative error 1e-7, growing to 1e-6 at
   both ends because `scale` is rounded: for uses where 1 is added to it, which take no harm. */
INLINE V half_exp2(V x, V scale) {
  const V magic = set(12583038.0f);             /* 1.5 * 2^23 + 126: the low bits become the exponent's field */
  V shifted = fma_(x, scale, magic);
  V r = fma_(x, scale, magic - shifted);
  V p = fma_(set(1.326469937e-03f), r, set(9.671533480e-03f));
  p = fma_(p, r, set(5.550733954e-02f));
  p = fma_(p, r, set(2.402224243e-01f));
  p = fma_(p, r, set(6.931470037e-01f));
  p = fma_(p, r, set(1.0f));
  return p * (V)((M)shifted << 23);
}
INLINE V v_sigmoid(V a) {                       /* below -89.5 e^-a is infinite and the result 0 */
  V x = min_or(max_or(a, set(-89.5f)), set(87.0f));
  return 0.5f / (0.5f + half_exp2(x, set(-1.44269504089f)));
}
INLINE V within_one(V a) { return max_or(min_or(a, set(1.0f)), set(-1.0f)); }
INLINE V v_tanh(V a) {                          /* relative error 3.3e-7; from 9.02 on, 1 */
  V x = max_or(min_or(a, set(9.02f)), set(-9.02f)), z = x * x;
  V p = fma_(set(1.331897082e-08f), z, set(2.058340579e-05f));
  p = fma_(p, z, set(3.494029865e-03f));
  p = fma_(p, z, set(1.337971389e-01f));
  p = fma_(p, z, set(1.0f));
  V q = fma_(set(7.761977372e-07f), z, set(3.283085243e-04f));
  q = fma_(q, z, set(2.587105520e-02f));
  q = fma_(q, z, set(4.671303034e-01f));
  q = fma_(q, z, set(1.0f));
  return within_one(x * p / q);
}
INLINE V v_erf(V a) {                           /* relative error 3.7e-7; from 3.96 on, 1 */
  V x = max_or(min_or(a, set(3.96f)), set(-3.96f)), z = x * x;
  V p = fma_(set(2.050087005e-06f), z, set(2.848826698e-04f));
  p = fma_(p, z, set(3.765616100e-03f));
  p = fma_(p, z, set(5.274871737e-02f));
  p = fma_(p, z, set(1.904064566e-01f));
  p = fma_(p, z, set(1.128379107e+00f));
  V q = fma_(set(3.809170812e-05f), z, set(1.162535278e-03f));
  q = fma_(q, z, set(1.496921387e-02f));
  q = fma_(q, z, set(1.141091064e-01f));
  q = fma_(q, z, set(5.020760894e-01f));
  q = fma_(q, z, set(1.0f));
  return within_one(x * p / q);
}
INLINE V v_ln(V a) {
  M tiny = a < 1.17549435e-38f;
  V x = either(tiny, a * 8388608.0f, a);
  M u = (M)x - 0x3f3504f3;                      /* mantissa to [sqrt(1/2), sqrt(2)) */
  M n = u >> 23;
  V f = (V)((u & 0x007fffff) + 0x3f3504f3) - 1.0f;
  V p = fma_(set(7.330558956e-02f), f, set(-1.165944721e-01f));
  p = fma_(p, f, set(1.163508319e-01f));
  p = fma_(p, f, set(-1.239677715e-01f));
  p = fma_(p, f, set(1.425112627e-01f));
  p = fma_(p, f, set(-1.666914772e-01f));
  p = fma_(p, f, set(2.000068877e-01f));
  p = fma_(p, f, set(-2.499998122e-01f));
  p = fma_(p, f, set(3.333333125e-01f));
  V k = __builtin_convertvector(n, V) - bits_if(tiny, set(23.0f));
  V y = k * 0.693145751953125f + (f + (k * 1.42860682030941723e-6f + f * f * (f * p - 0.5f)));
  y = either(a > 3.4028235e38f, a, y);
  y = either(a == 0.0f, set(-INFINITY), y);
  return either((a < 0.0f) | (a != a), set(NAN), y);
}
/* max(a, 0) + ln(1 + t), t = e^-|a|. The logarithm is 2 artanh(s), s (2 + t) = t, a series right for small t. */
INLINE V v_softplus(V a) {
  V t = v_exp(-v_abs(a)), s = t / (t + 2.0f), z = s * s;
  V p = fma_(set(7.692307692e-02f), z, set(9.090909091e-02f));
  p = fma_(p, z, set(1.111111111e-01f));
  p = fma_(p, z, set(1.428571429e-01f));
  p = fma_(p, z, set(2.000000000e-01f));
  p = fma_(p, z, set(3.333333333e-01f));
  s = fma_(s * z, p, s);
  return max_or(a, set(0.0f)) + (s + s);
}
/* The sine of a and of so many quarter turns more. The rest of a by quarters is taken in double, a quarter in two parts
   of which the first has 25 bits: right for |a| below 4e8. Beyond, for NaN and infinities, the C library is asked. */
INLINE V wave(V a, int quarter) {
  typedef double D __attribute__((vector_size(2 * BYTES)));
  M near = v_abs(a) < 4.0e8f;
  D x = __builtin_convertvector(bits_if(near, a), D);
  D k = (x * 6.36619772367581382433e-01 + 6755399441055744.0) - 6755399441055744.0;
  D rest = (x - k * 1.57079631090164184570e+00) - k * 1.58932547735281966916e-08;
  V f = __builtin_convertvector(rest, V), z = f * f;
  M n = __builtin_convertvector(k, M) + quarter;
  V s = fma_(set(-1.9515295891e-04f), z, set(8.3321608736e-03f));
  s = fma_(s, z, set(-1.6666654611e-01f));
  s = fma_(s * z, f, f);
  V c = fma_(set(2.443315711809948e-05f), z, set(-1.388731625493765e-03f));
  c = fma_(c, z, set(4.166664568298827e-02f));
  c = fma_(c * z, z, fma_(set(-0.5f), z, set(1.0f)));
  V y = (V)((M)either((n & 1) != 0, c, s) ^ ((n & 2) << 30));
  if (total(bits_if(~near, set(1.0f))) > 0)
    for (int l = 0; l < W; ++l)
      if (!near[l]) y[l] = (float)(quarter ? __builtin_cos(a[l]) : __builtin_sin(a[l]));
  return y;
}
INLINE V v_sin(V a) { return wave(a, 0); }
INLINE V v_cos(V a) { return wave(a, 1); }
"""

FLOAT64 = r"""
#define EACH(f) for (int l = 0; l < W; ++l) a[l] = f(a[l]); return a
INLINE V v_abs(V a) { return (V)((M)a & __INT64_MAX__); }
INLINE V v_root(V a) { EACH(sqrt); }
INLINE V v_exp(V a) { EACH(exp); }
INLINE V v_sigmoid(V a) { a = -a; for (int l = 0; l < W; ++l) a[l] = exp(a[l]); return 1.0 / (1.0 + a); }
INLINE V v_tanh(V a) { EACH(tanh); }
INLINE V v_erf(V a) { EACH(erf); }
INLINE V v_ln(V a) { EACH(log); }
INLINE V v_softplus(V a) {
  for (int l = 0; l < W; ++l) a[l] = (a[l] < 0 ? 0 : a[l]) + __builtin_log1p(exp(-fabs(a[l])));
  return a;
}
INLINE V v_sin(V a) { EACH(__builtin_sin); }
INLINE V v_cos(V a) { EACH(__builtin_cos); }
"""

# Small values, one at a time, in double. A NaN in either operand of max and min gives NaN.
SMALL = r"""
INLINE double f_max(double a, double b) { return (a > b) | (a != a) ? a : b; }
INLINE double f_min(double a, double b) { return (a < b) | (a != a) ? a : b; }
INLINE double f_sign(double a) { return a != a ? a : (double)(a > 0) - (double)(a < 0); }
INLINE double f_where(double a, double b, double c, double d) { return a > b ? c : d; }
INLINE double f_where_ge(double a, double b, double c, double d) { return a >= b ? c : d; }
INLINE double f_gate(double a, double b, double t) { double share = a == b ? 0.5 : 1; return a < b ? 0 : t * share; }
INLINE double f_sigmoid(double a) { return 1.0 / (1.0 + exp(-a)); }
INLINE double f_softplus(double a) { return (a < 0 ? 0 : a) + __builtin_log1p(exp(-fabs(a))); }
INLINE double f_sin(double a) { return __builtin_sin(a); }
INLINE double f_cos(double a) { return __builtin_cos(a); }
"""

# Full tensors that come from memory are asked for this many bytes ahead: a processor's own prefetching ends with the
# page, and waits in the next for the first that miss.
AHEAD = 8192

# Full tensors in the storage type. PUT streams past the caches where `past` says that they cannot hold the output.
PLAIN = r"""
#define GET load
#define GET_N load_n
#define PUT_N store_n
#if defined(__clang__)
#define STREAM(p, a) __builtin_nontemporal_store(a, (V *)(p))
#elif defined(__AVX512F__)
#define STREAM(p, a) MOVE(512)(p, a)
#elif defined(__AVX2__)
#define STREAM(p, a) MOVE(256)(p, a)
#endif
/* Streamed stores of a thread become visible to others. */
#if defined(STREAM) && defined(__SSE__)
#define SETTLE(past) if (past) __builtin_ia32_sfence()
#else
#define SETTLE(past)
#endif
INLINE void PUT(T *p, V a, int past) {
#ifdef STREAM
  if (past) { STREAM(p, a); return; }
#endif
  store(p, a);
}
"""

HALF = r"""
#define PUT(p, a, past) put(p, a)
#define SETTLE(past)
typedef uint32_t Wide __attribute__((vector_size(BYTES), may_alias));
typedef uint16_t Half __attribute__((vector_size(BYTES / 2), may_alias, aligned(2)));
INLINE Wide widen(const X *p) { return __builtin_convertvector(*(const Half *)p, Wide); }
INLINE void narrow(X *p, Wide a) { *(Half *)p = __builtin_convertvector(a, Half); }
INLINE V GET(const X *p);
INLINE void put(X *p, V a);
INLINE V GET_N(const X *p, int64_t n) { X b[W] = {0}; for (int64_t l = 0; l < n; ++l) b[l] = p[l]; return GET(b); }
INLINE void PUT_N(X *p, V a, int64_t n) { X b[W]; put(b, a); for (int64_t l = 0; l < n; ++l) p[l] = b[l]; }
INLINE Wide choose(Wide m, Wide a, Wide b) { return (m & a) | (~m & b); }
"""

BFLOAT16 = r"""
INLINE V GET(const X *p) { return (V)(widen(p) << 16); }
INLINE void put(X *p, V a) {
  Wide u = (Wide)a, even = u + 0x7fffu + ((u >> 16) & 1u);
  narrow(p, choose((Wide)((u & 0x7fffffffu) > 0x7f800000u), u | 0x00400000u, even) >> 16);
}
"""

FLOAT16 = r"""
INLINE V GET(const X *p) {
  Wide h = widen(p), sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
  Wide scaled = (Wide)((V)rest * (V)(0x77800000u - (Wide){0}));         /* 2^112 moves the exponent, denormals too */
  return (V)(choose((Wide)(rest >= 0x0f800000u), rest | 0x7f800000u, scaled) | sign);
}
INLINE void put(X *p, V a) {
  Wide u = (Wide)a, sign = (u >> 16) & 0x8000u, m = u & 0x7fffffffu;
  Wide even = m + 0xfffu + ((m >> 13) & 1u);
  Wide r = (even - 0x38000000u) >> 13;
  r = choose((Wide)(m < 0x38800000u), (Wide)((V)m + 0.5f) - 0x3f000000u, r); /* adding 1/2 rounds at 2^-24 */
  r = choose((Wide)(m >= 0x477ff000u), 0x7c00u - (Wide){0}, r);               /* rounds to infinity */
  r = choose((Wide)(m > 0x7f800000u), 0x7e00u - (Wide){0}, r);                /* NaN */
  narrow(p, r | sign);
}
"""


def prelude(dtype: str, functions: Set[str]) -> str:
    """The prelude for full tensors of `dtype`: T the arithmetic type, X the storage type. Of its functions those that
    a kernel calls, and those that they call."""
    return _chosen(dtype, frozenset(functions))


@lru_cache(maxsize=1024)
def _chosen(dtype: str, functions: frozenset[str]) -> str:
    pieces = _pieces(dtype)
    words = set(functions).union(*(mentioned for _, name, mentioned in pieces if name is None))
    used = []
    for piece, name, mentioned in reversed(pieces):  # a function stands behind those that it calls
        if name is None or name in words:
            used.append(piece)
            words |= mentioned
    return "".join(reversed(used))


_WORD = re.compile(r"\w+")
_FUNCTION = re.compile(r"(?:/\*[^/]*\*/\n)?^INLINE \w+ (\w+)\([^;{]*\) \{(?:.*\}|.*(?:\n.*)*?\n\})\n", re.MULTILINE)


@cache
def _pieces(dtype: str) -> tuple[tuple[str, str | None, frozenset[str]], ...]:
    """The prelude cut into functions and what stands between: text, name of the function, words in it."""
    text = _whole(dtype)
    pieces: list[tuple[str, str | None, frozenset[str]]] = []
    end = 0
    for found in _FUNCTION.finditer(text):
        pieces.append((text[end : found.start()], None, frozenset(_WORD.findall(text[end : found.start()]))))
        pieces.append((found[0], found[1], frozenset(_WORD.findall(found[0]))))
        end = found.end()
    return *pieces, (text[end:], None, frozenset(_WORD.findall(text[end:])))


def _whole(dtype: str) -> str:
    wide = dtype == "float64"
    arithmetic = "double" if wide else "float"
    storage = arithmetic if dtype in ("float32", "float64") else "uint16_t"
    types = (
        f"typedef {arithmetic} T;\ntypedef {storage} X;\ntypedef {'int64_t' if wide else 'int32_t'} I;\n"
        f"#define AHEAD {AHEAD}\n#define FETCH(p, ahead) __builtin_prefetch((const char *)(p) + ahead, 0, 1)\n"
        f"#define MOVE(bits) __builtin_ia32_movntp{'d' if wide else 's'}##bits\n"
    )
    functions = FLOAT64 if wide else FLOAT32
    io = {"bfloat16": HALF + BFLOAT16, "float16": HALF + FLOAT16}.get(dtype, PLAIN)
    return COMMON + types + (WIDE if wide else INSTRUCTIONS) + VECTORS + functions + SMALL + io
