"""Indices: the text that each target gets is the place of the element in a row-major array."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from normforge.codegen.index import Ceil, Count, Index, chunk, element, extents, full
from normforge.codegen.stage import Stage
from normforge.ir.types import B, G, K, S

SIZES = {"N": 2, "G": 3, "K": 4, "C": 12, "S": 5, "Q": 2}
VALUES = [axes for axes in range(B | G | K | S) if axes & G or not axes & K]  # no value varies along K alone


def place(text: str, n: int, c: int, s: int, q: int = 0) -> int:
    """The value of an address; both targets write whole divisions in their own way."""
    point = {"n": n, "c": c, "g": c // SIZES["K"], "s": s, "q": q}
    return int(eval(text.replace("/", "//"), {}, SIZES | point))  # its own text, not a user's


def expected(shape: tuple[int, ...], coordinates: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(coordinates, shape)) if shape else 0


@pytest.mark.parametrize("axes", VALUES)
def test_element(axes: int) -> None:
    for n, c, s in itertools.product(range(2), range(12), range(5)):
        channel = c if axes & K else c // SIZES["K"]
        at = [i for i, axis in ((n, B), (channel, G), (s, S)) if axes & axis]
        want = expected(tuple(SIZES[e] for e in extents(axes)), tuple(at))
        texts = [element(axes).c, element(axes).plain, element(axes).triton, element(axes, by_channel=True).c]
        assert [place(text, n, c, s) for text in texts] == [want] * 4


@pytest.mark.parametrize("axes", VALUES)
def test_chunk(axes: int) -> None:
    for n, c, q in itertools.product(range(2), range(12), range(2)):
        channel = c if axes & K else c // SIZES["K"] * SIZES["K"] if axes & G else 0
        assert place(chunk(axes).plain, n, c, 0, q) == expected((2, 2, 12), (n, q, channel))


def test_rows_begin_where_the_innermost_axis_does() -> None:
    assert place(full("nchw").row, 1, 7, 3) == expected((2, 12, 5), (1, 7, 0))
    assert place(full("nhwc").row, 1, 7, 3) == expected((2, 5, 12), (1, 3, 0))


@pytest.mark.parametrize("index", [element(B | G | S, by_channel=True), chunk(G), full("nchw")])
def test_a_stage_notes_every_size_that_an_index_names(index: Index) -> None:
    out = Stage()
    text = out.at(index).plain
    assert out.sizes == {name for name in SIZES if name in text}


def test_counts_are_printed_and_computed() -> None:
    blocks = Ceil(("N", "G"), "BLOCK_P")
    programs = Count(("N", blocks, "Q"))
    assert str(programs) == "N * ceil(N * G / BLOCK_P) * Q" and programs.value({**SIZES, "BLOCK_P": 4}) == 2 * 2 * 2
    assert str(Count(())) == "1" and Count(()).value({}) == 1
    assert str(Ceil((), "BLOCK_P")) == "ceil(1 / BLOCK_P)" and Ceil((), "BLOCK_P").value({"BLOCK_P": 8}) == 1
