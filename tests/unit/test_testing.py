"""The strategies that the package ships: what they promise to draw."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from normforge.ir import Graph, Op, verify
from normforge.ir.ops import MOMENT, SURFACE
from normforge.testing import (
    EXAMPLE_SHAPES,
    assert_close,
    group_counts,
    layer_graphs,
    random_values,
    shapes,
    tolerance,
    value_shape,
)

PAPER = {
    "add",
    "mul",
    "div",
    "max",
    "neg",
    "sigmoid",
    "tanh",
    "exp",
    "log",
    "abs",
    "square",
    "sqrt",
    "mean",
    "std",
    "rms",
}


@given(layer_graphs(), layer_graphs(space="paper"), layer_graphs(smooth=True))
def test_layers_verify(anything: Graph, paper: Graph, smooth: Graph) -> None:
    for graph in (anything, paper, smooth):
        verify(graph)
        assert graph.is_surface
    assert {n.op.value for n in paper.nodes if n.args} <= PAPER
    assert paper.output.op is Op.ADD
    assert not {n.op for n in smooth.nodes} & {Op.ABS, Op.MAX, Op.MIN, Op.DIV, Op.LOG, Op.SQRT, Op.EXP}


def test_layers_shrink_to_one_operation() -> None:
    found = find(layer_graphs(), lambda g: any(n.op in MOMENT for n in g.nodes), settings=settings(database=None))
    assert len([n for n in found.nodes if n.args]) == 1


def test_every_operation_is_drawn() -> None:
    drawn: set[Op] = set()

    @settings(max_examples=300)
    @given(layer_graphs())
    def collect(graph: Graph) -> None:
        drawn.update(n.op for n in graph.nodes)

    collect()
    assert drawn == {op for op in SURFACE if op.traits.continuous}


def test_example_shapes_hold_every_trap() -> None:
    assert any(s[2:] == (1, 1) for s in EXAMPLE_SHAPES)
    assert any(s[0] == 1 for s in EXAMPLE_SHAPES)
    assert any(s[1] > 32 and s[1] % 32 for s in EXAMPLE_SHAPES)
    assert any(len(s) == 4 and s[2] % 2 and s[3] % 2 and s[2] > 1 for s in EXAMPLE_SHAPES)
    assert {len(s) for s in EXAMPLE_SHAPES} == {2, 3, 4, 5}


@given(shapes(max_spatial=1), st.data())
def test_shapes(shape: tuple[int, ...], draw: st.DataObject) -> None:
    assert 2 <= len(shape) <= 3
    assert shape[1] % draw.draw(group_counts(shape[1])) == 0


@given(layer_graphs(), shapes())
def test_values_fit(graph: Graph, shape: tuple[int, ...]) -> None:
    values = random_values(graph, shape)
    assert values["x"].shape == shape
    assert all(values[p.name].shape == value_shape(p.axes, shape) for p in graph.params)


def test_comparison_says_where() -> None:
    a = np.ones((2, 3))
    b = a.copy()
    b[1, 2] = 1.5
    with pytest.raises(AssertionError, match=r"0\.5 absolute, 0\.333 relative at \(1, 2\)"):
        assert_close(a, b)
    with pytest.raises(AssertionError, match="shape"):
        assert_close(a, b[0])
    with pytest.raises(AssertionError, match="not finite"):
        assert_close(a, np.where(b == 1.5, np.nan, b))
    assert_close(a, a * (1 + 2.0**-52))
    assert tolerance("float32", 1000) > tolerance("float32") > tolerance("float64")


def test_hypothesis_is_asked_for_by_name() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; import normforge.testing"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: normforge.testing needs hypothesis: pip install hypothesis" in ran.stderr
