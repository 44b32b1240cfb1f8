/* Rows of many tensors, handed to threads: what step.c and standardize.c have in common.

   Stands behind the prelude: X is the storage type, T the arithmetic type, V a vector of W elements of T. A table has
   an entry for each tensor, of `rows` rows of `length` elements. Threads take items, some rows of one tensor each; no
   row is shared, so that results do not depend on the number of threads. */

enum { ITEM = 1 << 14, BLOCK = 1 << 12 };   /* elements of an item; elements summed in T before they go to a double */

/* Item i of tensor t begins at row i * rows_of_item. */
INLINE int64_t rows_of_item(int64_t length) { return MAX2(1, ITEM / MAX2(length, 1)); }

INLINE int64_t items_of(int64_t rows, int64_t length) {
  const int64_t per = rows_of_item(length);
  return length ? (rows + per - 1) / per : 0;
}

/* The tensor that an item belongs to: the last whose first item is not behind it. */
INLINE int64_t tensor_of(const int64_t *first, int64_t count, int64_t item) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (first[middle] <= item) low = middle; else high = middle;
  }
  return low;
}

/* For each item of a table the code that is given, with `t` its entry and rows r0 to r1. `first` has room for `count` numbers. */
#define EACH_ITEM(table, count, first, threads, ...)                                                 \
  do {                                                                                               \
    int64_t items = 0, elements = 0;                                                                 \
    for (int64_t i = 0; i < (count); ++i) {                                                          \
      (first)[i] = items;                                                                            \
      items += items_of((table)[i].rows, (table)[i].length);                                         \
      elements += (table)[i].rows * (table)[i].length;                                               \
    }                                                                                                \
    const int workers = elements < 2 * ITEM ? 1 : (threads);                                         \
    _Pragma("omp parallel for schedule(dynamic, 4) num_threads(workers) if (workers > 1)")           \
    for (int64_t item = 0; item < items; ++item) {                                                   \
      const int64_t at = tensor_of(first, count, item);                                              \
      const __typeof__(*(table)) *t = &(table)[at];                                                  \
      const int64_t r0 = (item - (first)[at]) * rows_of_item(t->length);                             \
      const int64_t r1 = MIN2(t->rows, r0 + rows_of_item(t->length));                                \
      __VA_ARGS__                                                                                    \
    }                                                                                                \
  } while (0)

/* For each vector of the elements from begin to end the code that is given, with `i` its place and `GOT(p)`, `PUT_TO(p, v)` that take whole vectors, and the
   same once more for what is left over. Of elements that are not there GOT gives 0. */
#define GOT(p) __builtin_choose_expr(whole, GET((p) + i), GET_N((p) + i, n_ - i))
#define GOT_T(p) __builtin_choose_expr(whole, load((p) + i), load_n((p) + i, n_ - i))
#define PUT_TO(p, v) do { if (whole) PUT((p) + i, v, 0); else PUT_N((p) + i, v, n_ - i); } while (0)
#define PUT_T(p, v) do { if (whole) store((p) + i, v); else store_n((p) + i, v, n_ - i); } while (0)
#define EACH_VECTOR(begin, end, ...)                                                                 \
  do {                                                                                               \
    const int64_t n_ = (end);                                                                        \
    int64_t i = (begin);                                                                             \
    { enum { whole = 1 }; _Pragma("GCC unroll 2") for (; i + W <= n_; i += W) { __VA_ARGS__ } }      \
    { enum { whole = 0 }; if (i < n_) { __VA_ARGS__ } }                                              \
  } while (0)
/* A vector whose elements that are not there are 0: differences from a mean are not of their own. */
#define HERE(v) __builtin_choose_expr(whole, (v), bits_if(lanes(n_ - i), v))

/* The sum over n elements of what TERM(s) adds to a vector s: four at a time, since an addition waits for the last. */
#define SUM_OF(n, TERM)                                                                              \
  ({                                                                                                 \
    double all = 0;                                                                                  \
    for (int64_t begin = 0; begin < (n); begin += BLOCK) {                                           \
      V s0 = set(0), s1 = s0, s2 = s0, s3 = s0;                                                      \
      const int64_t n_ = MIN2(n, begin + BLOCK);                                                     \
      int64_t i = begin;                                                                             \
      {                                                                                              \
        enum { whole = 1 };                                                                          \
        while (i + 4 * W <= n_) {                                                                    \
          TERM(s0); i += W;                                                                          \
          TERM(s1); i += W;                                                                          \
          TERM(s2); i += W;                                                                          \
          TERM(s3); i += W;                                                                          \
        }                                                                                            \
        for (; i + W <= n_; i += W) { TERM(s0); }                                                    \
      }                                                                                              \
      { enum { whole = 0 }; if (i < n_) { TERM(s1); } }                                              \
      all += total((s0 + s1) + (s2 + s3));                                                           \
    }                                                                                                \
    all;                                                                                             \
  })
