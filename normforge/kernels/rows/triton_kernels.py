"""The kernels over rows in Triton, a program a row; see step.c and standardize.c for the mathematics.

Tensors are many, so a pointer argument is that of the first, and a table on the device says where each begins, counted
in elements from there: an address out of a table would tell the compiler nothing about alignment. `owner` and `row` say
which row of which tensor a program has. A row is walked in vectors of 16 bytes where everything that belongs to it
allows that. Sums are float32, in the same order in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

WIDE = tl.constexpr(16)  # elements that everything has to be a multiple of


@triton.jit
def whole(value, ALIGNED: tl.constexpr):
    """A number that the compiler can tell to be a multiple of WIDE, where it is known to be one."""
    if ALIGNED:
        return value // WIDE * WIDE
    else:
        return value


@triton.jit
def step_row(
    w, g, m, e, n, lr, momentum, decay, clip, eps, average,
    CLIP: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, AVERAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of n elements: its norms, then its update, when it lies in the cache."""
    lanes = tl.arange(0, BLOCK)
    scale = 1.0
    if CLIP:
        ww = tl.zeros([BLOCK], tl.float32)
        gg = tl.zeros([BLOCK], tl.float32)
        for begin in range(0, n, BLOCK):
            at = begin + lanes
            x = tl.load(w + at, mask=at < n, other=0.0).to(tl.float32)
            y = tl.load(g + at, mask=at < n, other=0.0).to(tl.float32)
            ww += x * x
            gg += y * y
        of_w = tl.sqrt(tl.sum(ww, axis=0))
        of_g = tl.sqrt(tl.sum(gg, axis=0))
        limit = clip * tl.where(of_w < eps, eps, of_w)
        # A gradient that is not a number stays so: no comparison with it holds.
        scale = tl.where(of_g > limit, limit / tl.maximum(of_g, 1e-6), 1.0)
    for begin in range(0, n, BLOCK):
        at = begin + lanes
        here = at < n
        x = tl.load(w + at, mask=here, other=0.0).to(tl.float32)
        y = tl.load(g + at, mask=here, other=0.0).to(tl.float32) * scale + decay * x
        if MOMENTUM:
            v = momentum * tl.load(m + at, mask=here, other=0.0) + y
            tl.store(m + at, v, mask=here)
            y = y + momentum * v if NESTEROV else v
        stored = (x - lr * y).to(w.dtype.element_ty)
        tl.store(w + at, stored, mask=here)
        if AVERAGE:
            v = tl.load(e + at, mask=here, other=0.0)
            tl.store(e + at, v + (1.0 - average) * (stored.to(tl.float32) - v), mask=here)


@triton.jit
def step(
    w,  # of the first tensor (rows, length), and so are g, m and e
    g,
    m,  # float32
    e,  # float32
    table,  # int64 (tensors, 6): where W, G, M and E begin; elements of a row; of all rows
    owner,  # int32 (programs,)
    row,  # int32 (programs,)
    lr_ptr,  # float32 (1,), read where FROM_DEVICE
    steps_ptr,  # float32 (1,): how many steps there were before, read where PAPER
    lr, momentum, decay, clip, eps, average,
    CLIP: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, AVERAGE: tl.constexpr,
    FROM_DEVICE: tl.constexpr, PAPER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of SGD with adaptive gradient clipping."""
    program = tl.program_id(0).to(tl.int64)
    at = table + tl.load(owner + program).to(tl.int64) * 6
    length = tl.load(at + 4)
    offset = tl.load(row + program).to(tl.int64) * length
    n = tl.minimum(length, tl.load(at + 5) - offset)
    to_w = tl.load(at) + offset
    to_g = tl.load(at + 1) + offset
    to_m = tl.load(at + 2) + offset
    to_e = tl.load(at + 3) + offset
    if FROM_DEVICE:
        lr = tl.load(lr_ptr)
    if PAPER:
        t = tl.load(steps_ptr)
        average = tl.minimum(0.99999, (1.0 + t) / (10.0 + t))
    if (to_w | to_g | to_m | to_e | n) % WIDE == 0:
        step_row(
            w + whole(to_w, True), g + whole(to_g, True), m + whole(to_m, True), e + whole(to_e, True), whole(n, True),
            lr, momentum, decay, clip, eps, average, CLIP, MOMENTUM, NESTEROV, AVERAGE, BLOCK,
        )  # fmt: skip
    else:
        step_row(
            w + to_w, g + to_g, m + to_m, e + to_e, n,
            lr, momentum, decay, clip, eps, average, CLIP, MOMENTUM, NESTEROV, AVERAGE, BLOCK,
        )  # fmt: skip


@triton.jit
def sum_row(p, mean, n, BLOCK: tl.constexpr):
    """The sum of the differences of a row from `mean`."""
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, n, BLOCK):
        at = begin + lanes
        x = tl.load(p + at, mask=at < n, other=0.0).to(tl.float32)
        total += tl.where(at < n, x - mean, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def product(p, of_p, q, of_q, n, BLOCK: tl.constexpr):
    """The sum of the products of differences from two means."""
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, n, BLOCK):
        at = begin + lanes
        x = tl.load(p + at, mask=at < n, other=0.0).to(tl.float32) - of_p
        y = tl.load(q + at, mask=at < n, other=0.0).to(tl.float32) - of_q
        total += tl.where(at < n, x * y, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def forward_row(w, gain, saved, y, n, scale, eps, TIMM: tl.constexpr, BLOCK: tl.constexpr):
    """Ŵ of one row, and what derivatives need."""
    first = sum_row(w, 0.0, n, BLOCK) / n
    mean = first + sum_row(w, first, n, BLOCK) / n
    q = product(w, mean, w, mean, n, BLOCK)
    if TIMM:
        den = q + n * eps
        k = 1.0 / den
    else:
        den = tl.where(q < eps, eps, q)
        k = tl.where(q > eps, 1.0 / den, 0.0)
    root = 1.0 / tl.sqrt(den)
    tl.store(saved, mean)
    tl.store(saved + 1, root)
    tl.store(saved + 2, k)
    s = tl.load(gain).to(tl.float32) * root * scale
    lanes = tl.arange(0, BLOCK)
    for begin in range(0, n, BLOCK):
        at = begin + lanes
        x = tl.load(w + at, mask=at < n, other=0.0).to(tl.float32)
        tl.store(y + at, ((x - mean) * s).to(y.dtype.element_ty), mask=at < n)


@triton.jit
def forward(
    w,  # of the first weight (rows, length), and so are the others
    gain,  # (rows,)
    saved,  # float32 (rows, 3): mean, inverse root, what its derivative is multiplied by
    y,  # (rows, length)
    table,  # int64 (tensors, 5): elements of a row; where w, gain, saved and y begin
    numbers,  # float32 (tensors, 2): scale, ε
    owner, row,
    TIMM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Ŵ of many weights."""
    program = tl.program_id(0).to(tl.int64)
    i = tl.load(owner + program).to(tl.int64)
    r = tl.load(row + program).to(tl.int64)
    at = table + i * 5
    n = tl.load(at)
    to_w, to_y = tl.load(at + 1) + r * n, tl.load(at + 4) + r * n
    own_gain, own_saved = gain + tl.load(at + 2) + r, saved + tl.load(at + 3) + r * 3
    scale, eps = tl.load(numbers + 2 * i), tl.load(numbers + 2 * i + 1)
    if (to_w | to_y | n) % WIDE == 0:
        forward_row(
            w + whole(to_w, True), own_gain, own_saved, y + whole(to_y, True), whole(n, True), scale, eps, TIMM, BLOCK
        )
    else:
        forward_row(w + to_w, own_gain, own_saved, y + to_y, n, scale, eps, TIMM, BLOCK)


@triton.jit
def backward_row(w, gain, saved, u, dw, dgain, n, scale, BLOCK: tl.constexpr):
    """The gradients of one row."""
    mean, k = tl.load(saved), tl.load(saved + 2)
    root = tl.load(saved + 1) * scale
    of_u = sum_row(u, 0.0, n, BLOCK) / n
    big_u = product(w, mean, u, of_u, n, BLOCK)
    tl.store(dgain, (root * big_u).to(dgain.dtype.element_ty))
    s = root * tl.load(gain).to(tl.float32)
    lanes = tl.arange(0, BLOCK)
    for begin in range(0, n, BLOCK):
        at = begin + lanes
        x = tl.load(w + at, mask=at < n, other=0.0).to(tl.float32) - mean
        v = tl.load(u + at, mask=at < n, other=0.0).to(tl.float32) - of_u
        tl.store(dw + at, ((v - k * big_u * x) * s).to(dw.dtype.element_ty), mask=at < n)


@triton.jit
def backward(
    w, gain, saved,  # as of `forward`
    u,  # (rows, length), cotangents
    dw,  # (rows, length)
    dgain,  # (rows,)
    table,  # int64 (tensors, 7): elements of a row; where w, gain, saved, u, dw and dgain begin
    numbers, owner, row,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of weights and gains."""
    program = tl.program_id(0).to(tl.int64)
    i = tl.load(owner + program).to(tl.int64)
    r = tl.load(row + program).to(tl.int64)
    at = table + i * 7
    n = tl.load(at)
    to_w, to_u, to_dw = tl.load(at + 1) + r * n, tl.load(at + 4) + r * n, tl.load(at + 5) + r * n
    own_gain, own_saved, own_dgain = gain + tl.load(at + 2) + r, saved + tl.load(at + 3) + r * 3, dgain + r
    own_dgain += tl.load(at + 6)
    scale = tl.load(numbers + 2 * i)
    if (to_w | to_u | to_dw | n) % WIDE == 0:
        backward_row(
            w + whole(to_w, True), own_gain, own_saved, u + whole(to_u, True), dw + whole(to_dw, True), own_dgain,
            whole(n, True), scale, BLOCK,
        )  # fmt: skip
    else:
        backward_row(w + to_w, own_gain, own_saved, u + to_u, dw + to_dw, own_dgain, n, scale, BLOCK)


@triton.jit
def again(
    w, gain, saved, u,  # as of `backward`
    a,  # (rows, length), cotangents of dw
    b,  # (rows,), cotangents of dgain
    dw, dgain,
    du,  # (rows, length)
    table,  # int64 (tensors, 10): elements of a row; where w, gain, saved, u, a, b, dw, dgain and du begin
    numbers, owner, row,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of cotangents, weights and gains for cotangents of the gradients."""
    program = tl.program_id(0).to(tl.int64)
    i = tl.load(owner + program).to(tl.int64)
    r = tl.load(row + program).to(tl.int64)
    at = table + i * 10
    n = tl.load(at)
    w += tl.load(at + 1) + r * n
    saved += tl.load(at + 3) + r * 3
    u += tl.load(at + 4) + r * n
    a += tl.load(at + 5) + r * n
    dw += tl.load(at + 7) + r * n
    du += tl.load(at + 9) + r * n
    mean, k = tl.load(saved), tl.load(saved + 2)
    root = tl.load(saved + 1) * tl.load(numbers + 2 * i)
    own_gain = tl.load(gain + tl.load(at + 2) + r).to(tl.float32)
    own_b = tl.load(b + tl.load(at + 6) + r).to(tl.float32)
    of_u = sum_row(u, 0.0, n, BLOCK) / n
    of_a = sum_row(a, 0.0, n, BLOCK) / n
    big_u = product(w, mean, u, of_u, n, BLOCK)
    big_a = product(w, mean, a, of_a, n, BLOCK)
    rest = product(a, of_a, u, of_u, n, BLOCK) - k * big_a * big_u
    tl.store(dgain + tl.load(at + 8) + r, (root * rest).to(dgain.dtype.element_ty))
    along = root * (own_b - own_gain * k * big_a)
    to_w = root * (2.0 * own_gain * k * k * big_a * big_u - k * (own_gain * rest + own_b * big_u))
    to_a = root * own_gain * k * big_u
    lanes = tl.arange(0, BLOCK)
    for begin in range(0, n, BLOCK):
        to = begin + lanes
        here = to < n
        x = tl.load(w + to, mask=here, other=0.0).to(tl.float32) - mean
        v = tl.load(u + to, mask=here, other=0.0).to(tl.float32) - of_u
        c = tl.load(a + to, mask=here, other=0.0).to(tl.float32) - of_a
        tl.store(du + to, (root * own_gain * c + along * x).to(du.dtype.element_ty), mask=here)
        tl.store(dw + to, (along * v + to_w * x - to_a * c).to(dw.dtype.element_ty), mask=here)
