"""Device functions that emitted Triton text starts with: only those that it calls.

float32 in, float32 out. NaN and infinities propagate. `f_tanh` uses the fit of the C prelude near 0, where
1 - 2/(exp(2|a|) + 1) would lose its digits.
"""

from __future__ import annotations

from collections.abc import Iterable

HEAD = """import triton
import triton.language as tl
"""

FUNCTIONS: dict[str, str] = {
    "f_max": '''
@triton.jit
def f_max(a, b):
    """Larger operand; NaN if either is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    "f_min": '''
@triton.jit
def f_min(a, b):
    """Smaller operand; NaN if either is NaN."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
''',
    "f_sign": '''
@triton.jit
def f_sign(a):
    """-1, 0 or 1; NaN of NaN."""
    return tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, a * 0.0))
''',
    "f_gate": '''
@triton.jit
def f_gate(a, b, t):
    """t where a > b or unordered, t/2 where a == b, 0 where a < b."""
    return tl.where(a < b, 0.0, t * tl.where(a == b, 0.5, 1.0))  # the factor is shared by gates of the same a and b
''',
    "f_sigmoid": '''
@triton.jit
def f_sigmoid(a):
    """1 / (1 + exp(-a))."""
    return 1.0 / (1.0 + tl.exp(-a))
''',
    "f_tanh": '''
@triton.jit
def f_tanh(a):
    """Hyperbolic tangent: an odd polynomial near 0, exponentials elsewhere (NaN takes the second)."""
    t = tl.abs(a)
    z = a * a
    p = z * -6.112778589e-03 + 2.100980034e-02
    p = p * z - 5.385401129e-02
    p = p * z + 1.333279417e-01
    p = p * z - 3.333332925e-01
    small = a + a * (z * p)
    large = 1.0 - 2.0 / (tl.exp(2.0 * t) + 1.0)
    return tl.where(t < 0.625, small, tl.where(a < 0, -large, large))
''',
    "f_softplus": '''
@triton.jit
def f_softplus(a):
    """ln(1 + exp(a)): max(a, 0) + ln(1 + t), t = exp(-|a|), the logarithm as 2 artanh(t / (2 + t)), whose series keeps
    the digits of small t."""
    t = tl.exp(-tl.abs(a))
    s = t / (2.0 + t)
    z = s * s
    p = z * 7.692307692e-02 + 9.090909091e-02
    p = p * z + 1.111111111e-01
    p = p * z + 1.428571429e-01
    p = p * z + 2.000000000e-01
    p = p * z + 3.333333333e-01
    s = s + s * z * p
    return tl.maximum(a, 0.0) + (s + s)
''',
    "f_sin": '''
@triton.jit
def f_sin(a):
    """Sine."""
    return tl.sin(a)
''',
    "f_cos": '''
@triton.jit
def f_cos(a):
    """Cosine."""
    return tl.cos(a)
''',
    "chan": '''
@triton.jit
def chan(mean, m2, seen, tile_mean, tile_m2, count):
    """(mean, sum of squared deviations) of `seen` elements joined with those of `count` more.

    Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
    """
    share = count / tl.maximum(seen + count, 1.0)  # a thread may have none yet
    delta = tile_mean - mean
    return mean + delta * share, m2 + tile_m2 + delta * delta * (seen * share)
''',
    "own_sum": '''
@triton.jit
def own_sum(
    value, here, MASKED: tl.constexpr, AXIS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
    THREADS: tl.constexpr, VECTOR: tl.constexpr,
):
    """Sums along an axis of a tile over the elements that one thread holds: [BLOCK_C, THREADS] (axis 1) or
    [THREADS, BLOCK_S] (axis 0).

    Along the axis a thread holds VECTOR adjacent elements, again and again after those of all THREADS threads.
    """
    value = tl.broadcast_to(value, [BLOCK_C, BLOCK_S])
    if MASKED:
        value = tl.where(here, value, 0.0)
    if AXIS == 1:
        own = tl.reshape(value, [BLOCK_C, BLOCK_S // (THREADS * VECTOR), THREADS, VECTOR])
        return tl.sum(tl.sum(own, axis=3), axis=1)
    else:
        own = tl.reshape(value, [BLOCK_C // (THREADS * VECTOR), THREADS, VECTOR, BLOCK_S])
        return tl.sum(tl.sum(own, axis=2), axis=0)
''',
    "own_pair": '''
@triton.jit
def own_pair(
    value, count, here, MASKED: tl.constexpr, AXIS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
    THREADS: tl.constexpr, VECTOR: tl.constexpr,
):
    """(mean, sum of squared deviations) of the `count` elements of a tile that one thread holds; see `own_sum`."""
    value = tl.broadcast_to(value, [BLOCK_C, BLOCK_S])
    total = own_sum(value, here, MASKED, AXIS, BLOCK_C, BLOCK_S, THREADS, VECTOR)
    mean = total * (1.0 / tl.maximum(count, 1.0))
    if AXIS == 1:
        shape: tl.constexpr = [BLOCK_C, BLOCK_S // (THREADS * VECTOR), THREADS, VECTOR]
        spread = tl.broadcast_to(mean[:, None, :, None], shape)
    else:
        shape: tl.constexpr = [BLOCK_C // (THREADS * VECTOR), THREADS, VECTOR, BLOCK_S]
        spread = tl.broadcast_to(mean[None, :, None, :], shape)
    delta = value - tl.reshape(spread, [BLOCK_C, BLOCK_S])
    return mean, own_sum(delta * delta, here, MASKED, AXIS, BLOCK_C, BLOCK_S, THREADS, VECTOR)
''',
    "own_seen": '''
@triton.jit
def own_seen(size, AXIS: tl.constexpr, BLOCK: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """How many of `size` elements along an axis, walked in blocks, each thread has had: [1, THREADS] (axis 1) or
    [THREADS, 1] (axis 0)."""
    rest = tl.where(tl.arange(0, BLOCK) < size % BLOCK, 1.0, 0.0)
    own = tl.reshape(rest, [BLOCK // (THREADS * VECTOR), THREADS, VECTOR])
    seen = tl.sum(tl.sum(own, axis=2), axis=0) + (size // BLOCK * (BLOCK // THREADS)).to(tl.float32)
    return seen[None, :] if AXIS == 1 else seen[:, None]
''',
    "join": '''
@triton.jit
def join(mean, m2, seen, AXIS: tl.constexpr):
    """(mean, sum of squared deviations) along an axis from those of each thread's `seen` elements.

    Chan's formula for many at once. The mean is summed as differences from a first one, which keeps the digits of
    large means.
    """
    count = tl.sum(seen, axis=AXIS, keep_dims=True)
    first = tl.sum(mean * (seen / count), axis=AXIS, keep_dims=True)
    delta = tl.where(seen > 0, mean - first, 0.0)
    shift = tl.sum(delta * seen, axis=AXIS, keep_dims=True) / count
    delta = delta - tl.where(seen > 0, shift, 0.0)
    return first + shift, tl.sum(m2 + delta * delta * seen, axis=AXIS, keep_dims=True)
''',
    "sum_equal": '''
@triton.jit
def sum_equal(value, key, AXIS: tl.constexpr):
    """For each element along an axis the sum of all that have its key: [BLOCK, 1] (axis 0) or [1, BLOCK] (axis 1)."""
    same = key == tl.trans(key)
    return tl.sum(tl.where(same, tl.trans(value), 0.0), axis=1 - AXIS, keep_dims=True)
''',
    "lanes": '''
@triton.jit
def lanes(value, V: tl.constexpr):
    """Sums of V neighbours, which one thread holds: [A, E] -> [A, E // V]."""
    if V == 1:
        return value
    else:
        return tl.sum(tl.reshape(value, [value.shape[0], value.shape[1] // V, V]), axis=2)
''',
    "sum_row": '''
@triton.jit
def sum_row(value, V: tl.constexpr):
    """Sums along the second axis: [A, E] -> [A, 1]. Of one row as a number, which any thread layout takes."""
    if value.shape[0] == 1:
        return tl.sum(tl.sum(lanes(value, V), axis=1), axis=0) + tl.zeros([1, 1], tl.float32)
    else:
        return tl.sum(value, axis=1, keep_dims=True)
''',
    "sum_row2": '''
@triton.jit
def sum_row2(a, b, V: tl.constexpr):
    """Two such sums; for one row threads wait for each other once."""
    if a.shape[0] == 1:
        both = tl.sum(tl.sum(tl.join(lanes(a, V), lanes(b, V)), axis=1), axis=0)
        return number(both, 0), number(both, 1)
    else:
        return sum_row(a, V), sum_row(b, V)
''',
    "sum_row4": '''
@triton.jit
def sum_row4(a, b, c, d, V: tl.constexpr):
    """Four such sums."""
    if a.shape[0] == 1:
        every = tl.join(tl.join(lanes(a, V), lanes(b, V)), tl.join(lanes(c, V), lanes(d, V)))
        return numbers4(tl.sum(tl.sum(every, axis=1), axis=0))
    else:
        return sum_row(a, V), sum_row(b, V), sum_row(c, V), sum_row(d, V)
''',
    "sum_slab": '''
@triton.jit
def sum_slab(value, slab, MANY: tl.constexpr, V: tl.constexpr):
    """Sums of the chunks of each slab: [BLOCK_A, E] -> [BLOCK_A, 1], or [1, 1] where there is one slab."""
    if MANY:
        same = slab == tl.trans(slab)
        rows = tl.sum(value, axis=1, keep_dims=True)
        return tl.sum(tl.where(same, tl.trans(rows), 0.0), axis=1, keep_dims=True)
    else:
        return sum_all(lanes(value, V))
''',
    "sum_slab2": '''
@triton.jit
def sum_slab2(a, b, slab, MANY: tl.constexpr, V: tl.constexpr):
    """Two such sums; for one slab threads wait for each other once."""
    if MANY:
        return sum_slab(a, slab, MANY, V), sum_slab(b, slab, MANY, V)
    else:
        both = tl.join(lanes(a, V), lanes(b, V))
        both = tl.sum(tl.reshape(both, [both.shape[0] * both.shape[1], 2]), axis=0)
        return number(both, 0), number(both, 1)
''',
    "sum_slab4": '''
@triton.jit
def sum_slab4(a, b, c, d, slab, MANY: tl.constexpr, V: tl.constexpr):
    """Four such sums."""
    if MANY:
        return sum_slab(a, slab, 1, V), sum_slab(b, slab, 1, V), sum_slab(c, slab, 1, V), sum_slab(d, slab, 1, V)
    else:
        every = tl.join(tl.join(lanes(a, V), lanes(b, V)), tl.join(lanes(c, V), lanes(d, V)))
        return numbers4(tl.sum(tl.reshape(every, [every.shape[0] * every.shape[1], 2, 2]), axis=0))
''',
    "sum_all": '''
@triton.jit
def sum_all(value):
    """The sum of a tile, [1, 1]."""
    return tl.sum(value) + tl.zeros([1, 1], tl.float32)
''',
    "add_pair": '''
@triton.jit
def add_pair(center, mean, m2, seen, value, here, count, V: tl.constexpr):
    """The elements of a tile that are `here`, added to what each thread keeps of `seen` elements: [A, E // V] each.

    `mean` is counted from `center`, the mean of a thread's first elements, so that it keeps the digits of deviations.
    Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
    """
    elements = tl.maximum(count, 1.0)
    share = count / tl.maximum(seen + count, 1.0)
    if V == 1:
        center = tl.where(seen > 0, center, value)
        gap = tl.where(here, value - center, 0.0) - mean
        return center, mean + gap * share, m2 + gap * gap * (seen * share)
    else:
        value = tl.where(here, value, 0.0)
        here = tl.reshape(here, [here.shape[0], here.shape[1] // V, V])
        value = tl.reshape(value, [value.shape[0], value.shape[1] // V, V])
        center = tl.where(seen > 0, center, tl.sum(value, axis=2) / elements)
        value = tl.where(here, value - center[:, :, None], 0.0)
        tile_mean = tl.sum(value, axis=2) / elements
        delta = tl.where(here, value - tile_mean[:, :, None], 0.0)
        gap = tile_mean - mean
        return center, mean + gap * share, m2 + tl.sum(delta * delta, axis=2) + gap * gap * (seen * share)
''',
    "sum_rows2": '''
@triton.jit
def sum_rows2(a, b):
    """Two sums of each row at once, for stores: threads hold them as nothing else of a tile."""
    both = tl.sum(tl.join(a, b), axis=1)
    first = tl.arange(0, 2)[None, :] == 0
    a = tl.sum(tl.where(first, both, 0.0), axis=1, keep_dims=True)
    return a, tl.sum(tl.where(first, 0.0, both), axis=1, keep_dims=True)
''',
    "number": '''
@triton.jit
def number(values, at: tl.constexpr):
    """One of a few, as [1, 1]. `tl.split` would pass them between threads."""
    i = tl.arange(0, values.shape[0])
    return tl.sum(tl.where(i == at, values, 0.0), axis=0) + tl.zeros([1, 1], tl.float32)
''',
    "numbers4": '''
@triton.jit
def numbers4(values):
    """[2, 2] -> four of [1, 1], in the order of two joins."""
    values = tl.reshape(values, [4])
    return number(values, 0), number(values, 2), number(values, 1), number(values, 3)
''',
    "merge_mean": '''
@triton.jit
def merge_mean(mean_ptr, row, inside, C, S, L, Q, BLOCK_Q: tl.constexpr):
    """Means of rows of S elements from the means of their Q chunks of L elements: [N][Q][C] -> like `row`.

    `row` addresses the first chunk. Means are summed as differences from it, which keeps the digits of large ones.
    """
    first = tl.load(mean_ptr + row, mask=inside, other=0.0)
    total = tl.zeros([first.shape[0], first.shape[1], BLOCK_Q], tl.float32)
    for q0 in range(0, Q, BLOCK_Q):
        q = (q0 + tl.arange(0, BLOCK_Q)).to(tl.int64)[None, None, :]
        here = inside[:, :, None] & (q < Q)
        mean = tl.load(mean_ptr + (row[:, :, None] + q * C), mask=here, other=0.0)
        length = tl.minimum(S - q * L, L).to(tl.float32)
        total += tl.where(here, (mean - first[:, :, None]) * length, 0.0)
    return first + tl.sum(total, axis=2) / S.to(tl.float32)
''',
    "merge_var": '''
@triton.jit
def merge_var(mean_ptr, m2_ptr, row_mean, row, inside, C, S, L, Q, BLOCK_Q: tl.constexpr):
    """Variances of rows of S elements from (mean, sum of squared deviations) of their Q chunks of L elements."""
    total = tl.zeros([row_mean.shape[0], row_mean.shape[1], BLOCK_Q], tl.float32)
    for q0 in range(0, Q, BLOCK_Q):
        q = (q0 + tl.arange(0, BLOCK_Q)).to(tl.int64)[None, None, :]
        here = inside[:, :, None] & (q < Q)
        at_chunk = row[:, :, None] + q * C
        delta = tl.load(mean_ptr + at_chunk, mask=here, other=0.0) - row_mean[:, :, None]
        m2 = tl.load(m2_ptr + at_chunk, mask=here, other=0.0)
        length = tl.minimum(S - q * L, L).to(tl.float32)
        total += tl.where(here, m2 + delta * delta * length, 0.0)
    return tl.sum(total, axis=2) / S.to(tl.float32)
''',
    "rotate": '''
@triton.jit
def rotate(first, items, grid):
    """The first item that a program takes of the next stage, when it took each `grid`-th of `items` from `first`."""
    return (first + grid - items % grid) % grid
''',
    "arrive": '''
@triton.jit
def arrive(counter_ptr):
    """Count this program, after all that its threads have stored."""
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")
''',
    "wait": '''
@triton.jit
def wait(counter_ptr, programs):
    """Until so many programs have arrived; what they had stored is there for all threads of this one.

    Adding 0 is how to read past the cache of the processor with acquire ordering. Its value is looked at: an idle one
    is optimised away, and the ordering with it.
    """
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < programs:
        pass
    tl.debug_barrier()
''',
}


# What each of them calls.
CALLS: dict[str, tuple[str, ...]] = {
    "own_pair": ("own_sum",),
    "sum_row": ("lanes",),
    "sum_row2": ("lanes", "number", "sum_row"),
    "sum_row4": ("lanes", "numbers4", "sum_row"),
    "sum_slab": ("lanes", "sum_all"),
    "sum_slab2": ("lanes", "number", "sum_slab"),
    "sum_slab4": ("lanes", "numbers4", "sum_slab"),
    "numbers4": ("number",),
}


def prelude(functions: Iterable[str]) -> str:
    """Imports, these device functions, and those that they call."""
    used: set[str] = set()
    new = set(functions)
    while new:
        used |= new
        new = {called for name in new for called in CALLS.get(name, ())} - used
    return HEAD + "".join("\n" + FUNCTIONS[n] for n in FUNCTIONS if n in used)
