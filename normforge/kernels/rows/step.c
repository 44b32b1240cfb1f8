/* One step of SGD with adaptive gradient clipping over many tensors, each moved through memory once.

   A row of W and G is read twice in close succession, first for its norms, then for the update, and the second time
   lies in a cache: three tensors read and two written, four and three with an average. */

typedef struct {
  int64_t rows, length;
  X *w;
  const X *g;
  T *m, *e;                /* momentum and average, or 0 */
  double lr, momentum, decay, clip, eps, average;   /* clip: λ, below 0 for none; average: share that is kept */
  int64_t nesterov;
} Step;

/* Both in one walk: the update finds the row in the cache. */
INLINE void norms(const X *w, const X *g, const T *m, int64_t length, double *ww, double *gg) {
  double a = 0, b = 0;
  for (int64_t begin = 0; begin < length; begin += BLOCK) {
    V p = set(0), q = set(0);
    EACH_VECTOR(begin, MIN2(length, begin + BLOCK), {
      const V x = GOT(w), y = GOT(g);
      __builtin_prefetch(w + i + length);   /* the next row comes while this one is computed on, and its momentum */
      __builtin_prefetch(g + i + length);
      __builtin_prefetch(m + i);            /* of any address, also none */
      p = fma_(x, x, p);
      q = fma_(y, y, q);
    });
    a += total(p);
    b += total(q);
  }
  *ww = sqrt(a);
  *gg = sqrt(b);
}

INLINE void update(const Step *t, int64_t begin, int64_t end, T scale, int momentum, int nesterov, int average) {
  X *w = t->w;
  const X *g = t->g;
  T *m = t->m, *e = t->e;
  const V s = set(scale), decay = set(t->decay), mu = set(t->momentum), lr = set(-t->lr), rest = set(1 - t->average);
  EACH_VECTOR(begin, end, {
    V x = GOT(w);
    V y = fma_(decay, x, GOT(g) * s);
    if (momentum) {
      const V v = fma_(mu, GOT_T(m), y);
      PUT_T(m, v);
      y = nesterov ? fma_(mu, v, y) : v;
    }
    x = fma_(lr, y, x);
    PUT_TO(w, x);
    if (average) {
      if (sizeof(X) != sizeof(T)) x = GOT(w);   /* of the weights as they are stored */
      const V v = GOT_T(e);
      PUT_T(e, fma_(rest, x - v, v));
    }
  });
}

static void advance(const Step *t, int64_t begin, int64_t end, T scale) {
  if (!t->m) {
    if (t->e) update(t, begin, end, scale, 0, 0, 1); else update(t, begin, end, scale, 0, 0, 0);
  } else if (t->nesterov) {
    if (t->e) update(t, begin, end, scale, 1, 1, 1); else update(t, begin, end, scale, 1, 1, 0);
  } else {
    if (t->e) update(t, begin, end, scale, 1, 0, 1); else update(t, begin, end, scale, 1, 0, 0);
  }
}

void nf_step(const Step *table, int64_t count, int64_t *first, int threads) {
  EACH_ITEM(table, count, first, threads, {
    if (t->clip < 0) {
      advance(t, r0 * t->length, r1 * t->length, 1);
    } else for (int64_t r = r0; r < r1; ++r) {
      double ww, gg;
      norms(t->w + r * t->length, t->g + r * t->length, t->m + r * t->length, t->length, &ww, &gg);
      const double limit = t->clip * (ww > t->eps || ww != ww ? ww : t->eps);
      /* A gradient that is not a number stays so: no comparison with it holds. */
      advance(t, r * t->length, (r + 1) * t->length, gg > limit ? limit / MAX2(gg, 1e-6) : 1);
    }
  });
}
