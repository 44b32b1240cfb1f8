"""Pairs of layers that must have one hash, and look-alikes that must not; both kinds are checked by numbers too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normforge.ir import Graph, evaluate, parse
from normforge.passes import fingerprint
from normforge.testing import random_values

CORPUS = Path(__file__).parent.parent / "corpus"
SHAPE, GROUPS = (3, 6, 2, 5), 2


def pairs(name: str) -> list[tuple[str, str, str]]:
    lines = (line for line in (CORPUS / name).read_text().splitlines() if line and not line.startswith("#"))
    return [tuple(part.strip() for part in line.split(" | ")) for line in lines]  # type: ignore[misc]


EQUAL, DIFFERENT = pairs("equal.txt"), pairs("different.txt")


def outputs(a: Graph, b: Graph, scale: float) -> tuple[np.ndarray, np.ndarray]:
    values = random_values(a, SHAPE, groups=GROUPS, scale=scale) | random_values(b, SHAPE, groups=GROUPS, scale=scale)
    for p in {*a.params, *b.params}:  # one value for one name, of either sign
        rng = np.random.default_rng(list(p.name.encode()))
        values[p.name] = rng.standard_normal(SHAPE[1] if p.axes else 1)
    if scale == 0:
        values["x"] = np.zeros(SHAPE)
        values["v0"] = np.zeros(SHAPE[1])
    return tuple(evaluate(g, values, groups=GROUPS)["y"] for g in (a, b))  # type: ignore[return-value]


def test_the_corpus_is_large_enough() -> None:
    assert len(EQUAL) >= 120
    assert len(DIFFERENT) >= 80
    assert len({tuple(sorted(p[1:])) for p in EQUAL + DIFFERENT}) == len(EQUAL) + len(DIFFERENT)


@pytest.mark.parametrize(("kind", "a", "b"), EQUAL)
def test_equal(kind: str, a: str, b: str) -> None:
    one, two = parse(a), parse(b)
    assert one.hash == two.hash
    assert one.family_hash == two.family_hash
    for scale in (1e-2, 1.0, 5.0):
        left, right = outputs(one, two, scale)
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9 * scale)
    # The reverse of `hash` follows from no rule: numbers may still see a layer twice where rounding splits them.
    assert (fingerprint(one) is None) == (fingerprint(two) is None)


@pytest.mark.parametrize(("kind", "a", "b"), DIFFERENT)
def test_different(kind: str, a: str, b: str) -> None:
    one, two = parse(a), parse(b)
    assert one.hash != two.hash
    if {p.name: p.attr for p in one.params} != {p.name: p.attr for p in two.params}:
        return  # parameters of other names, starts or sizes
    apart = False
    for scale in (0, 1e-2, 1.0, 5.0):
        left, right = outputs(one, two, scale)
        apart |= not np.array_equal(np.isfinite(left), np.isfinite(right))
        with np.errstate(invalid="ignore"):
            apart |= bool(np.nanmax(np.abs(left - right), initial=0) > 1e-13)
    assert apart, "the corpus calls two equal layers different"
