"""The part of the C target that is the same for every kernel: how blocks of the tensors are handed to its functions.

A kernel's file describes itself (`Kernel`) and has a function a sweep and a stage; this driver, compiled once for a
compiler and a machine, lays out the workspace and calls them. Slab by slab where a slab fits the cache (all sweeps
over one slab while it is hot), else sweep by sweep over the whole tensor. Both walk the same chunks in the same order,
so results depend on neither the choice nor the number of threads.
"""

from __future__ import annotations

from normforge.codegen.c.prelude import COMMON
from normforge.codegen.c.values import COLUMN_CHUNK, KEEP, TILE

# A slab worth keeping in the cache: all its full tensors together, in bytes.
SLAB_BYTES = 6 << 20
# Slabs are joined along channels up to about this many elements, so that small ones do not cost their overhead.
SLAB_ELEMENTS = 1 << 14
# A slab that crosses samples is walked in runs of at least this many elements: 16 KiB, so that prefetching pays.
RUN_ELEMENTS = 4096
# A call whose full tensors are larger together streams its output past the caches: they could not keep it.
PAST_BYTES = 32 << 20
# Below this many elements one thread is faster than waking others.
SERIAL_ELEMENTS = 1 << 15

# Factors of the size of an array, as bits of a byte; DOUBLE says its element type.
SIZE_BITS = {"N": 1, "C": 2, "G": 4, "K": 8, "S": 16, "Q": 32}
DOUBLE = 64
# How rows are cut into chunks.
WHOLE, COLUMNS, POSITIONS = 0, 1, 2

# What a kernel's file and the driver agree on. Rows of S positions lie in Q chunks of L. p: the operands, the outputs,
# the arrays of the workspace. A sweep's region has samples n0 to n1, channels c0 to c1, chunks q0 to q1.
INTERFACE = r"""
typedef struct { int64_t N, G, K, C, S, L, Q; int past; void *p[]; } Ctx;
typedef struct { int64_t n0, n1, c0, c1, q0, q1; } Region;
typedef struct {
  int pointers, arrays, sweeps;      /* operands and outputs; arrays of the workspace */
  int data, wide;                    /* bytes of an element of a full tensor, and of the arithmetic type */
  int tensors, kept, streamed;       /* full tensors moved; buffers between sweeps; the only full output, or -1 */
  int chunks, slab;                  /* how rows are cut; the axes that a slab keeps, as bits of a size */
  const unsigned char *sizes;        /* of the arrays: their factors, and whether they hold doubles */
  const unsigned char *whole;        /* of each sweep: does it need all channels of a position? */
  void (*const *sweep)(const Ctx *, Region, void *, int);
  void (*const *stage)(const Ctx *, Region); /* prologue, one after each sweep, epilogue; 0 where there is none */
} Kernel;
"""

_DRIVER = r"""
static int64_t lay_out(const Kernel *k, Ctx *x, const int64_t *dims, char *base) {
  const int64_t N = dims[0], G = dims[1], K = dims[2], S = dims[3], C = G * K;
  int64_t L = MAX2(S, 1), Q = 1, end = 0;
  if (k->chunks == COLUMNS)   /* all channels of a block of positions stay in a level-2 cache */
    L = MIN2(MAX2(32768 / C / 16 * 16, 64), COLUMN_CHUNK), Q = (S + L - 1) / L;
  if (k->chunks == POSITIONS)
    L = MAX2(8192 / C, 32), Q = (S + L - 1) / L;
  x->N = N; x->G = G; x->K = K; x->C = C; x->S = S; x->L = L; x->Q = Q;
  const int64_t extents[] = {N, C, G, K, S, Q};
  int64_t known[2 * DOUBLE] = {0};   /* bytes by code: a few codes serve all arrays */
  for (int i = 0; i < k->arrays; ++i) {
    const int code = k->sizes[i];
    if (!known[code]) {
      int64_t size = code & DOUBLE ? sizeof(double) : k->wide;
      for (int j = 0; j < 6; ++j)
        if (code >> j & 1) size *= extents[j];
      known[code] = (size + 63) / 64 * 64;   /* each on a cache line of its own */
    }
    x->p[k->pointers + i] = base + end;
    end += known[code];
  }
  return end;
}

static void *aligned(char *room) { return (void *)(((uintptr_t)room + 63) / 64 * 64); }

#define CONTEXT(k) (Ctx *)__builtin_alloca(sizeof(Ctx) + ((k)->pointers + (k)->arrays) * sizeof(void *))

int64_t nf_workspace(const Kernel *k, const int64_t *dims) { return lay_out(k, CONTEXT(k), dims, 0); }

void nf_run(const Kernel *k, void *const *pointers, const int64_t *dims, int threads) {
  Ctx *x = CONTEXT(k);
  for (int i = 0; i < k->pointers; ++i) x->p[i] = pointers[i];
  lay_out(k, x, dims, (char *)pointers[k->pointers]);
  const int64_t N = x->N, K = x->K, C = x->C, S = x->S, Q = x->Q, L = x->L;
  const int nchw = k->chunks != POSITIONS;
  x->past = 0;
  if (k->streamed >= 0) {   /* two streams hinder each other */
    const int aligned = (nchw ? S : C) % (BYTES / k->wide) == 0 && (uintptr_t)x->p[k->streamed] % BYTES == 0;
    x->past = aligned && N * C * S * k->tensors * k->data > PAST_BYTES;
  }
  const Region all = {0, N, 0, C, 0, Q};
  if (N * C * S < SERIAL_ELEMENTS) threads = 1;
  if (N * C * S == 0) return;
  if (k->stage[0]) k->stage[0](x, all);
  int64_t dn = k->slab & SLAB_N ? 1 : N, dq = k->slab & SLAB_S ? 1 : Q;
  /* Channels-last positions are walked whole: a few channels of each would be a few elements here and there. */
  int64_t dc = nchw ? k->slab & SLAB_K ? 1 : k->slab & SLAB_G ? K : C : C;
  const int64_t span = MIN2(S, dq * L);
  if (nchw && k->slab & SLAB_G) {
    while (dn * dc * span < SLAB_ELEMENTS && dc < C) dc *= 2;
    if (!(k->slab & SLAB_N))
      while (dc * span < RUN_ELEMENTS && dn * dc * span * 2 * k->tensors * k->data <= SLAB_BYTES
             && dc * 4 * threads <= C) dc *= 2;
    dc = MIN2(dc, C);
  }
  const int64_t bn = (N + dn - 1) / dn, bc = (C + dc - 1) / dc, bq = (Q + dq - 1) / dq;
  const int64_t blocks = bn * bc * bq;
  if (dn * dc * span * k->tensors * k->data <= SLAB_BYTES && (blocks >= 2 * threads || threads == 1)) {
    #pragma omp parallel for schedule(dynamic, MAX2(1, blocks / (8 * threads))) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t n = i / (bc * bq) * dn, c = i / bq % bc * dc, q = i % bq * dq;
      const Region r = {n, MIN2(N, n + dn), c, MIN2(C, c + dc), q, MIN2(Q, q + dq)};
      const int slab = (r.n1 - r.n0) * (r.c1 - r.c0) * span <= KEEP;
      char room[(int64_t)k->kept * KEEP * k->wide + 64];
      void *keep = aligned(room);
      for (int j = 0; j < k->sweeps; ++j) {
        k->sweep[j](x, r, keep, slab);
        if (k->stage[j + 1]) k->stage[j + 1](x, r);
      }
    }
  } else {
    for (int j = 0; j < k->sweeps; ++j) {
      /* A sum over channels needs all channels of its positions; channels-last rows hold them anyway. */
      const int64_t wc = k->whole[j] ? C : MAX2(1, MIN2(C, 16384 / MAX2(S, 1))), mc = (C + wc - 1) / wc;
      const int64_t items = N * mc * Q;
      #pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
      for (int64_t i = 0; i < items; ++i) {
        const int64_t n = i / (mc * Q), c = i / Q % mc * wc, q = i % Q;
        const Region r = {n, n + 1, c, MIN2(C, c + wc), q, q + 1};
        char room[(int64_t)k->kept * TILE * k->wide + 64];
        k->sweep[j](x, r, aligned(room), 0);
      }
      if (k->stage[j + 1]) k->stage[j + 1](x, all);
    }
  }
  if (k->stage[k->sweeps + 1]) k->stage[k->sweeps + 1](x, all);
}
"""


def driver() -> str:
    """C source with two functions: `int64_t nf_workspace(const Kernel *k, const int64_t *dims)`, the bytes of scratch
    memory that a kernel needs, and `void nf_run(const Kernel *k, void *const *pointers, const int64_t *dims, int
    threads)`.

    `pointers` are the operands, the outputs, and the workspace; `dims` are N, G, K, S.
    """
    numbers = {
        "SLAB_BYTES": SLAB_BYTES,
        "SLAB_ELEMENTS": SLAB_ELEMENTS,
        "RUN_ELEMENTS": RUN_ELEMENTS,
        "PAST_BYTES": PAST_BYTES,
        "SERIAL_ELEMENTS": SERIAL_ELEMENTS,
        "KEEP": KEEP,
        "TILE": TILE,
        "COLUMN_CHUNK": COLUMN_CHUNK,
        "DOUBLE": DOUBLE,
        "COLUMNS": COLUMNS,
        "POSITIONS": POSITIONS,
        **{f"SLAB_{name}": SIZE_BITS[name] for name in "NGKS"},
    }
    return COMMON + INTERFACE + "".join(f"#define {k} {v}\n" for k, v in numbers.items()) + _DRIVER
