"""Hypothesis strategies and comparisons for testing anything that takes or makes layers.

    from hypothesis import given
    from normforge.testing import layer_graphs, shapes

    @given(layer_graphs(), shapes())
    def test_mine(layer, shape): ...

A pass of one's own is tested like those of this package by a class of four lines:

    from normforge.testing import PassProperties

    class TestMyPass(PassProperties):
        def run(self, graph):
            return my_pass(graph)

A pool of workers of one's own owes what `PoolProperties` asks, in the same way.

hypothesis is an optional dependency: `pip install hypothesis`. Needs no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from normforge.ir.evaluate import evaluate
from normforge.ir.graph import EPS, Graph
from normforge.ir.node import Node, const, data, make, param
from normforge.ir.ops import LEAF, SURFACE, UNARY, Op
from normforge.ir.types import FULL, INDEX_NAMES, INDEX_SETS, B, G, K, S
from normforge.ir.verify import verify
from normforge.search.workers.conformance import PoolProperties as PoolProperties

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError as e:
    raise ImportError("normforge.testing needs hypothesis: pip install hypothesis") from e

Shape = tuple[int, ...]
Array = npt.NDArray[np.float64]

# Each is a trap of its own: one position, batch 1, channels that 32 does not divide, odd sizes, no space, volumes.
EXAMPLE_SHAPES: tuple[Shape, ...] = (
    (2, 4, 2, 3),
    (3, 6, 1, 1),
    (1, 8, 3, 3),
    (2, 33, 3, 5),
    (3, 48, 2, 2),
    (4, 10),
    (1, 1),
    (2, 6, 2, 3, 2),
    (5, 12, 7),
)

_PAPER_UNARY = (Op.NEG, Op.SIGMOID, Op.TANH, Op.EXP, Op.LOG, Op.ABS, Op.SQUARE, Op.SQRT)
_PAPER_BINARY = (Op.ADD, Op.MUL, Op.DIV, Op.MAX)
_PAPER_SETS = tuple(INDEX_SETS[name] for name in ("b,w,h", "w,h", "w,h,c", "w,h,c/g"))
_PAPER_MOMENTS = (Op.MEAN, Op.STD, Op.RMS)
_MOMENTS = (*_PAPER_MOMENTS, Op.VAR, Op.TOTAL)
_SMOOTH = tuple(op for op in Op if op in SURFACE - LEAF and op.traits.smooth)
_NUMBERS = (0.0, 1.0, 2.0, -1.0, 0.5, 3.0, 0.1, -2.5)


@st.composite
def layer_graphs(draw: st.DrawFn, *, space: str = "all", max_nodes: int = 10, smooth: bool = False) -> Graph:
    """A strategy of layers: surface graphs of one input `x`, which shrink to fewer nodes. Many are degenerate.

    Args:
        space: `paper`: EvoNorm's (arXiv 2004.02967, section 3): x, 0, v0 and v1, its primitives and index sets, and
            gamma·(...) + beta around them. `all`: every operation and index set, literals, gamma and beta anywhere,
            declared parameters, and now and then an ε of its own.
        max_nodes: the most operations drawn.
        smooth: only operations whose derivatives are bounded and continuous, for finite differences.
    """
    paper = space == "paper"
    nodes: list[Node] = [data("x"), const(0.0), param("v0", 0.0), param("v1", 1.0)]
    if not paper:
        more = [param("gamma", 1.0), param("beta", 0.0), param("tau", -0.5), param("alpha", 0.5, scalar=True)]
        nodes += [*more, const(draw(st.sampled_from(_NUMBERS)))]
    binary = _PAPER_BINARY if paper else (*_PAPER_BINARY, Op.SUB, Op.MIN)
    # What jumps has no numbers to compare where its operand is zero up to rounding.
    unary = _PAPER_UNARY if paper else tuple(op for op in UNARY if op.traits.continuous)
    ops = _SMOOTH if smooth else (*binary, *unary, *(_PAPER_MOMENTS if paper else _MOMENTS))
    sets = _PAPER_SETS if paper else tuple(INDEX_NAMES)
    leaves = len(nodes)
    for _ in range(draw(st.integers(1, max_nodes))):
        op = draw(st.sampled_from(ops))
        drawn = st.integers(leaves, len(nodes) - 1) if len(nodes) > leaves else st.just(0)
        # Half of the operands are results: uniform draws would leave most layers without x.
        args = tuple(nodes[draw(st.one_of(drawn, st.integers(0, leaves - 1)))] for _ in range(op.traits.arity))
        along = tuple(s for s in sets if not s & B) if op is Op.TOTAL else sets  # no sum is over the batch
        nodes.append(make(op, args, (draw(st.sampled_from(along)),) if op in _MOMENTS else ()))
    y = nodes[-1]
    if paper:
        y = make(Op.ADD, (make(Op.MUL, (y, param("gamma", 1.0))), param("beta", 0.0)))
    eps = EPS if paper else draw(st.sampled_from((EPS, EPS, 1e-3)))
    return Graph((("y", y),), (data("x"),), eps)


def shapes(*, max_spatial: int = 3) -> st.SearchStrategy[Shape]:
    """A strategy of shapes (N, C, *spatial) with up to `max_spatial` spatial axes; one third are `EXAMPLE_SHAPES`."""
    known = st.sampled_from([s for s in EXAMPLE_SHAPES if len(s) - 2 <= max_spatial])
    batch, channels = st.sampled_from((1, 2, 3, 5)), st.sampled_from((1, 2, 3, 6, 8, 12, 33, 48))
    space = st.lists(st.sampled_from((1, 2, 3, 5, 7)), max_size=max_spatial)
    drawn = st.builds(lambda n, c, s: (n, c, *s), batch, channels, space)
    return st.one_of(known, drawn, drawn)


def group_counts(channels: int) -> st.SearchStrategy[int]:
    """A strategy of numbers of groups that divide `channels`."""
    return st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0])


def random_values(
    graph: Graph, shape: Shape, *, groups: int = 1, seed: int = 0, scale: float = 1.0
) -> dict[str, Array]:
    """Float64 values for every input and parameter of a graph, by name, as `normforge.ir.evaluate` takes them.

    Inputs are normal with deviation `scale`; parameters are moved from their start values by 0.3 of a normal.
    """
    rng = np.random.default_rng(seed)
    values: dict[str, Array] = {}
    for node in (*graph.inputs, *graph.params):
        value = rng.standard_normal(value_shape(node.axes, shape, groups))
        values[node.name] = value * scale if node.op is Op.INPUT else node.attr[2] + 0.3 * value
    return values


def value_shape(axes: int, shape: Shape, groups: int = 1) -> Shape:
    """The shape of a value that varies along `axes`, beside an input of shape (N, C, *spatial)."""
    if axes == FULL:
        return shape
    batch = (shape[0],) if axes & B else ()
    channel = (shape[1],) if axes & K else (groups,) if axes & G else ()
    return (*batch, *channel, *(shape[2:] if axes & S else ()))


def tolerance(dtype: str, length: int = 1) -> float:
    """The relative error to expect of a computation in `dtype` whose longest reduction has `length` terms.

    Of the largest magnitude that takes part, not of each element: where terms cancel, that is what is lost.
    """
    unit = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    return 32 * unit * (1 + float(np.log2(max(length, 1))))


def assert_close(actual: Any, expected: Any, dtype: str = "float64", length: int = 1, what: str = "value") -> None:
    """Compare two arrays: NaN and infinities in the same places, the rest within `tolerance` of the largest magnitude.

    Raises:
        AssertionError: with the largest absolute and relative error, and where.
    """
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    finite = np.isfinite(b)
    assert np.array_equal(np.where(finite, 0, b), np.where(np.isfinite(a), 0, a), equal_nan=True), (
        f"{what}: not finite in other places than expected"
    )
    error = np.where(finite, np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)), 0)
    largest = float(np.max(np.abs(b[finite]), initial=0.0))
    if error.size and float(error.max()) > tolerance(dtype, length) * max(largest, 1.0):
        at = np.unravel_index(int(error.argmax()), error.shape)
        relative = float(error[at]) / max(abs(float(b[at])), 1e-300)
        raise AssertionError(
            f"{what}: largest error {float(error.max()):.3g} absolute, {relative:.3g} relative at "
            f"{tuple(map(int, at))}: {float(a[at])!r}, expected {float(b[at])!r}"
        )


def any_layers() -> st.SearchStrategy[Graph]:
    """A strategy of what passes are tested on: layers of both spaces, up to twelve operations."""
    return st.one_of(layer_graphs(max_nodes=12), layer_graphs(space="paper", max_nodes=12))


def assert_same_meaning(
    before: Graph, after: Graph, shape: Shape, *, groups: int = 1, exact: bool = False, what: str = ""
) -> None:
    """Evaluate two forms of a layer in float64 and compare them.

    Errors of cancellation and of steep functions grow without bound: only where the layer itself is stable under a
    change of its input by rounding can two forms of it be compared.

    Args:
        before, after: surface or core graphs of one input `x`.
        shape: of x, (N, C, *spatial).
        groups: must divide C.
        exact: ask for NaN and infinities in the same places, too.
        what: begins the message.

    Raises:
        AssertionError: with the largest error, and where.
    """
    values = random_values(before, shape, groups=groups, seed=3)
    moved = {k: v * (1 + 2.0**-50) for k, v in values.items()}
    one, again = (evaluate(before, v, groups=groups)["y"] for v in (values, moved))
    two = evaluate(after, values, groups=groups)["y"]
    what = f"{what} of {before}"
    if exact:
        assert np.array_equal(np.isfinite(one), np.isfinite(two)), f"{what}: finite in other places"
    with np.errstate(invalid="ignore"):
        wobble = np.abs(again - one)
        steady = np.isfinite(one) & np.isfinite(two) & (wobble <= 2.0**-42 * (1 + np.abs(one)))
    assert_close(two[steady], one[steady], length=2**20, what=what)


# One class a pass runs the same four methods, which hypothesis otherwise takes for a mistake.
_inherited = settings(suppress_health_check=[HealthCheck.differing_executors], deadline=None)


class PassProperties:
    """The four properties that every pass from layer to layer owes, as tests. Derive a class and give it `run`.

    Attributes:
        exact: NaN and infinities stay where they are. False for a pass that is right where everything is finite.
        never_dearer: the result costs no more by `normforge.passes.simplify.cost`. False for a pass that brings
            graphs to a form whatever it costs.
    """

    exact = False
    never_dearer = True

    def run(self, graph: Graph) -> Graph:
        """The graph that the pass makes of a layer."""
        raise NotImplementedError("give the class a method run(self, graph) that calls the pass")

    @_inherited
    @given(layer=any_layers(), shape=shapes())
    def test_meaning_is_kept(self, layer: Graph, shape: Shape) -> None:
        """The pass gives the same numbers on random inputs of many shapes."""
        groups = 1 if shape[1] % 3 else 3
        after = self.run(layer)
        assert_same_meaning(layer, after, shape, groups=groups, exact=self.exact, what=type(self).__name__)

    @_inherited
    @given(layer=any_layers())
    def test_a_second_run_changes_nothing(self, layer: Graph) -> None:
        """The pass is idempotent."""
        once = self.run(layer)
        assert self.run(once) == once

    @_inherited
    @given(layer=any_layers())
    def test_the_result_verifies(self, layer: Graph) -> None:
        """In the result every type follows from its operands, and the inputs are those of the layer."""
        after = self.run(layer)
        verify(after)
        assert after.inputs == layer.inputs
        assert [name for name, _ in after.outputs] == [name for name, _ in layer.outputs]

    @_inherited
    @given(layer=any_layers())
    def test_nothing_gets_dearer(self, layer: Graph) -> None:
        """The cost model sees no loss in the result."""
        if self.never_dearer:
            from normforge.passes.simplify import cost

            assert cost(self.run(layer)) <= cost(layer)
