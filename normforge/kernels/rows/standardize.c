/* Scaled weight standardization of many weights, its derivative, and the derivative of that; see formula.py.

   With c = w - mean, r = den^(-1/2), k = 1 / den where den follows the weights and 0 where it is clamped, and sums
   over a row, U = Σ u c, A = Σ a c, D = Σ (a - ā)(u - ū):

     forward    y = s c,                          s = scale gain r
     backward   dw = s (u - ū - k U c),           dgain = scale r U
     again, of cotangents a of dw and b of dgain
                du = s (a - ā - k A c) + b scale r c
                dgain = scale r (D - k A U)
                dw = scale r ((2 gain k² A U - k F) c - gain k U (a - ā) + (b - gain k A) (u - ū)),
                F = gain (D - k A U) + b U */

typedef struct {
  int64_t rows, length;
  const X *w, *gain;
  double *saved;           /* of each row: mean, r, k */
  double scale, eps;
  int64_t timm;            /* eps is added to the variance, instead of clamping the sum of squares */
  const X *u, *a, *b;      /* cotangents of y, of dw and of dgain; a and b may be 0 */
  X *y, *dw, *dgain, *du;  /* results; those that are not wanted are 0 */
} Weight;

INLINE T one(const X *p) {
  if (sizeof(X) == sizeof(T)) return *(const T *)p;
  const V v = GET_N(p, 1);
  return v[0];
}

/* The sum of differences from m. */
INLINE double sum(const X *p, T m, int64_t n) {
  const V v = set(m);
#define TERM(s) s += HERE(GOT(p) - v)
  return SUM_OF(n, TERM);
#undef TERM
}

/* The mean, by differences from a first element, which keeps the digits of rows that hardly vary. */
INLINE double average(const X *p, int64_t n) {
  const T first = one(p);
  return first + sum(p, first, n) / n;
}

/* Sums of products of x - mx and y - my. */
INLINE double product(const X *x, T mx, const X *y, T my, int64_t n) {
  const V p = set(mx), q = set(my);
/* The next rows come while this one is computed on. */
#define TERM(s) __builtin_prefetch(x + i + n), __builtin_prefetch(y + i + n), s = fma_(HERE(GOT(x) - p), GOT(y) - q, s)
  return SUM_OF(n, TERM);
#undef TERM
}

INLINE void put_one(X *p, T a) { PUT_N(p, set(a), 1); }

static void forward(const Weight *t, int64_t r) {
  const int64_t n = t->length;
  const X *w = t->w + r * n;
  const double mean = average(w, n), q = product(w, mean, w, mean, n);
  const double den = t->timm ? q + n * t->eps : q > t->eps || q != q ? q : t->eps, root = 1 / sqrt(den);
  double *saved = t->saved + 3 * r;
  saved[0] = mean; saved[1] = root; saved[2] = t->timm || q > t->eps ? 1 / den : 0;
  const V s = set(t->scale * one(t->gain + r) * root), m = set(mean);
  X *y = t->y + r * n;
  EACH_VECTOR(0, n, { PUT_TO(y, (GOT(w) - m) * s); });
}

static void backward(const Weight *t, int64_t r) {
  const int64_t n = t->length;
  const X *w = t->w + r * n, *u = t->u + r * n;
  const double *saved = t->saved + 3 * r, mean = saved[0], root = saved[1] * t->scale, k = saved[2];
  double U = 0, of_u = 0;
  const V m = set(mean);
  for (int64_t begin = 0; begin < n; begin += BLOCK) {   /* both sums in one walk */
    V p = set(0), q = set(0);
    EACH_VECTOR(begin, MIN2(n, begin + BLOCK), {
      const V c = HERE(GOT(w) - m), v = GOT(u);
      __builtin_prefetch(w + i + n);
      __builtin_prefetch(u + i + n);
      p = fma_(c, v, p);
      q += v;
    });
    U += total(p);
    of_u += total(q);
  }
  if (t->dgain) put_one(t->dgain + r, root * U);
  if (!t->dw) return;
  const V s = set(root * one(t->gain + r)), mu = set(of_u / n), f = set(-k * U);
  X *dw = t->dw + r * n;
  EACH_VECTOR(0, n, { PUT_TO(dw, fma_(f, GOT(w) - m, GOT(u) - mu) * s); });
}

static void again(const Weight *t, int64_t r) {
  const int64_t n = t->length;
  const X *w = t->w + r * n, *u = t->u + r * n, *a = t->a ? t->a + r * n : 0;
  const double *saved = t->saved + 3 * r, mean = saved[0], root = saved[1] * t->scale, k = saved[2];
  const double gain = one(t->gain + r), b = t->b ? one(t->b + r) : 0;
  const double ma = a ? sum(a, 0, n) / n : 0, mu = sum(u, 0, n) / n;
  const double A = a ? product(w, mean, a, ma, n) : 0, U = product(w, mean, u, mu, n);
  const double D = a ? product(a, ma, u, mu, n) : 0, rest = D - k * A * U;
  if (t->dgain) put_one(t->dgain + r, root * rest);
  const V vm = set(mean), va = set(ma), vu = set(mu);
  if (t->du) {
    const V s = set(root * gain), of_c = set(root * (b - gain * k * A));
    X *du = t->du + r * n;
    EACH_VECTOR(0, n, {
      V v = of_c * (GOT(w) - vm);
      if (a) v = fma_(s, GOT(a) - va, v);
      PUT_TO(du, v);
    });
  }
  if (t->dw) {
    const V of_c = set(root * (2 * gain * k * k * A * U - k * (gain * rest + b * U)));
    const V of_a = set(-root * gain * k * U), of_u = set(root * (b - gain * k * A));
    X *dw = t->dw + r * n;
    EACH_VECTOR(0, n, {
      V v = fma_(of_u, GOT(u) - vu, of_c * (GOT(w) - vm));
      if (a) v = fma_(of_a, GOT(a) - va, v);
      PUT_TO(dw, v);
    });
  }
}

#define OF_ALL(name, row)                                                              \
  void name(const Weight *table, int64_t count, int64_t *first, int threads) {         \
    EACH_ITEM(table, count, first, threads, { for (int64_t r = r0; r < r1; ++r) row(t, r); }); \
  }

OF_ALL(nf_standardize, forward)
OF_ALL(nf_standardize_backward, backward)
OF_ALL(nf_standardize_again, again)
