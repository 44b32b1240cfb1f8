"""Random layers of the paper's space on the C backend, all orders against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import SHAPES, compare, cotangents_for, evaluate_numpy, make, random_input, run

import normforge as nf
from normforge.ir.node import toposort
from normforge.ir.ops import MOMENT, Op
from normforge.kernels import toolchain
from normforge.passes import Check, Degeneracy
from normforge.search.space import PAPER

pytestmark = pytest.mark.skipif(toolchain.find_compiler() is None, reason="no C compiler")


def draw(count: int, *, with_moment: bool, seed: int) -> list[nf.Graph]:
    """Distinct layers that depend on x; on demand, with a moment of something that depends on x."""
    rng = np.random.default_rng(seed)
    found: dict[str, nf.Graph] = {}
    while len(found) < count:
        layer = PAPER.to_graph(PAPER.random(rng))
        moments = [n for n in layer.nodes if n.op in MOMENT and any(m.op is Op.INPUT for m in toposort([n]))]
        if with_moment and not moments:
            continue
        if not Degeneracy((Check.DEPENDENCE,)).run(layer):
            found[layer.structure] = layer
    return list(found.values())


def check(layer: nf.Graph, index: int) -> None:
    """C in float64 and float32 against eager in float64.

    A random layer may lose any number of digits by itself. What it is held to is measured: the error of torch's
    own float32 evaluation of the same formula, and in float64 the same scaled by the ratio of the two roundings.
    """
    shape, groups = SHAPES[index % len(SHAPES)]
    layout = ("nchw", "nhwc")[index // len(SHAPES) % 2]
    want, rough, fine, got = (
        make(layer, backend, shape[1], groups, torch.float32, index).to(dtype)
        for backend, dtype in (
            ("eager", torch.float64),
            ("eager", torch.float32),
            ("c", torch.float64),
            ("c", torch.float32),
        )
    )
    x = random_input(shape, index + 1, torch.float32, layout)
    cotangents = cotangents_for(want, shape, torch.float32, index + 2)
    w, r = run(want, x.double(), cotangents), run(rough, x, cotangents)
    f, g = run(fine, x.double(), cotangents), run(got, x, cotangents)
    with np.errstate(all="ignore"):
        numpy_y = evaluate_numpy(layer, want, x)
    assert g.y.stride() == x.stride() and g.first[0].stride() == x.stride()
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    for order, (a, b, c, d) in enumerate(zip(*([[t.y], t.first, t.second] for t in (w, r, f, g)), strict=True)):
        # One order's values share their intermediate terms, so they share a scale.
        finite = [torch.isfinite(p) & (p.abs() < 1e30) for p in a]
        scale = max((float(p[m].abs().max()) for p, m in zip(a, finite, strict=True) if m.any()), default=0.0)
        noise = 0.0
        for p, q, m in zip(a, b, finite, strict=True):
            if m.any():
                e = (p - q.double())[m].abs()
                noise = max(noise, float(e[torch.isfinite(e)].max()) if torch.isfinite(e).any() else 0.0)
        unit = torch.finfo(torch.float32).eps * scale
        allowed = 64 * 4**order * (noise + unit)
        for k, (p, q64, q32, m) in enumerate(zip(a, c, d, finite, strict=True)):
            what = f"order {order}, value {k} of {layer} at {shape} {layout}"
            target = torch.where(m, p, torch.nan)
            compare(q64, target, allowed * ratio * 64, f"float64: {what}")
            if order == 0:
                compare(q64, torch.where(m, numpy_y, torch.nan), allowed * ratio * 64, f"numpy: {what}")
            if torch.isfinite(b[k]).all():  # where float32 itself overflows there is nothing to compare
                compare(q32, target, allowed, f"float32: {what}")


@pytest.mark.parametrize("start", range(0, 12, 3))
def test_sample(start: int) -> None:
    layers = draw(6, with_moment=False, seed=1) + draw(6, with_moment=True, seed=2)
    for i in range(start, start + 3):
        check(layers[i], i)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 520, 20))
def test_five_hundred(start: int) -> None:
    layers = draw(300, with_moment=False, seed=3) + draw(220, with_moment=True, seed=4)
    for i in range(start, start + 20):
        check(layers[i], i)
