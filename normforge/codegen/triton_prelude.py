"""Device functions that emitted Triton text starts with: only those that it calls.

float32 in, float32 out. NaN and infinities propagate. `f_tanh` uses the fit of the C prelude near 0, where
1 - 2/(exp(2|a|) + 1) would lose its digits.
"""

from __future__ import annotations

import re

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
    "sum_slab": '''
@triton.jit
def sum_slab(value, slab, MANY: tl.constexpr):
    """Sums of the chunks of each slab: [BLOCK_A, 1] -> the same, or [1, 1] where there is one slab."""
    if MANY:
        same = slab == tl.trans(slab)
        return tl.sum(tl.where(same, tl.trans(value), 0.0), axis=1, keep_dims=True)
    else:
        return tl.sum(value, axis=0, keep_dims=True)
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


def prelude(body: str) -> str:
    """Imports, and the device functions that `body` calls, and those that they call, callees first."""
    used: set[str] = set()
    rest = [body]
    while rest:
        text = rest.pop()
        new = {name for name in FUNCTIONS if re.search(rf"\b{name}\(", text)} - used
        used |= new
        rest += [FUNCTIONS[name] for name in new]
    return HEAD + "".join("\n" + text for name, text in FUNCTIONS.items() if name in used)
