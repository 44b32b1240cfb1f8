"""A target of one's own, as `normforge.codegen.target` says it is added: plans as plain numpy source.

Nothing in the package knows of it, so what passes here shows that a target is a class, a function that loads its
plans, and nothing more. It doubles as the plainest reading of what a plan means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import pytest
import torch
from named import LAYERS
from reference import check_against_eager, compare, make, random_input, tolerance
from torch import Tensor

import normforge as nf
from normforge.api.explain import explain
from normforge.codegen import registry
from normforge.codegen.memory import account
from normforge.codegen.orders import program
from normforge.codegen.plan import LAYOUTS, Plan, is_data, is_sweep_sum
from normforge.codegen.registry import find_target, register
from normforge.codegen.target import Target
from normforge.codegen.text import Lines
from normforge.errors import BackendError, OptionError
from normforge.ir import evaluate
from normforge.ir.node import Node
from normforge.ir.ops import REDUCE, Op
from normforge.ir.types import B, G, K, S
from normforge.kernels.backends import RUNNERS, Kernel, Runner
from normforge.kernels.job import Job
from normforge.kernels.run import run as op
from normforge.testing import random_values, value_shape

AXES = {B: "n", G: "g", K: "k", S: "s"}
PRELUDE = """\
import math

import numpy as np

np.seterr(all="ignore")  # NaN and infinities are results
erf = np.vectorize(math.erf, otypes=[float])


def sigmoid(a):
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e))


def gate(a, b, t):
    return np.where(a == b, t / 2, np.where(a < b, 0, t))
"""


class NumpyText:
    """The function of a plan. Every value is an array of four axes: samples, groups, channels a group, positions."""

    def __init__(self, plan: Plan, code: dict[Op, str]) -> None:
        self.plan, self.code, self.out = plan, code, Lines("    ")
        self.small: dict[Node, str] = {}  # what was computed, and stays
        self.full: dict[Node, str] = {}  # what the sweep that is being written has computed: the next does so again
        self.count = 0

    def text(self, title: str) -> str:
        """Source that defines a function of the plan's symbol, of flat arrays and extents."""
        plan, out = self.plan, self.out
        self.inputs = {node: f"in{i}" for i, node in enumerate(plan.operands)}
        names = [*self.inputs.values(), *(f"out{i}" for i in range(len(plan.outputs)))]
        with out.block(f"def {plan.symbol}({', '.join(names)}, n, g, k, s):", ""):
            self.values(plan.prologue)
            for sweep, stage in zip(plan.sweeps, (*plan.stages, ()), strict=False):
                self.full = {}
                for node in sweep.sums:
                    self.small[node] = self.assign(node, self.reduction(node))
                for name, node in sweep.stores:
                    self.store(name, self.value(node))
                self.values(stage)
            self.values(plan.epilogue)
            for name, node in plan.outputs:
                if name not in dict(plan.sweeps[-1].stores):
                    self.store(name, self.value(node))
        return "\n".join(f"# {line}" for line in f"{title}\n{plan}".split("\n")) + f"\n\n{PRELUDE}\n\n{out}"

    def values(self, nodes: Sequence[Node]) -> None:
        """Small values, in order."""
        for node in nodes:
            self.small[node] = self.assign(node, self.expression(node))

    def value(self, node: Node) -> str:
        """The name of a value, or its text where that is short. Small values must be there by now, but for leaves."""
        if node.op is Op.CONST:
            return repr(node.value) if np.isfinite(node.value) else f'float("{node.value}")'
        if node.op is Op.SIZE:
            return f"({' * '.join(name for axis, name in AXES.items() if node.reduced & axis) or '1'})"
        full = bool(node.axes & S and node.axes & G) and not is_sweep_sum(node)
        known = self.full if full else self.small
        if node not in known:
            assert full or node in self.inputs, f"the plan reads {node.op} before it is there"
            known[node] = self.assign(node, self.expression(node))
        return known[node]

    def expression(self, node: Node) -> str:
        """What computes a value from its operands."""
        if node in self.inputs:
            return f"{self.inputs[node]}.reshape({self.extents(node)}){self.transposed(node, (0, 2, 3, 1))}"
        if node.op in REDUCE:
            return self.reduction(node)
        return self.code[node.op].format(*(self.value(a) for a in node.args))

    def reduction(self, node: Node) -> str:
        """A sum, mean or variance; a value is not reduced along what it lacks."""
        over = tuple(i for i, axis in enumerate(AXES) if node.reduced & node.args[0].axes & axis)
        return f"np.{node.op}({self.value(node.args[0])}, axis={over}, keepdims=True)"

    def store(self, name: str, value: str) -> None:
        """Write an output, in its dtype and layout."""
        place, node = next((i, n) for i, (label, n) in enumerate(self.plan.outputs) if label == name)
        shape = f"({', '.join(n if node.axes & a else '1' for a, n in AXES.items())})"
        ordered = f"np.broadcast_to({value}, {shape}){self.transposed(node, (0, 3, 1, 2))}"
        self.out(f"out{place}[:] = {ordered}.reshape(-1)")

    def extents(self, node: Node) -> str:
        """Those of a tensor as it lies in memory."""
        n, g, k, s = (name if node.axes & axis else "1" for axis, name in AXES.items())
        return ", ".join((n, s, g, k) if self.channels_last(node) else (n, g, k, s))

    def transposed(self, node: Node, axes: tuple[int, ...]) -> str:
        """What brings a tensor from the order of memory into that of axes, or back."""
        return f".transpose{axes}" if self.channels_last(node) else ""

    def channels_last(self, node: Node) -> bool:
        """Small tensors lie in the order of the axes, whatever the layout."""
        return self.plan.layout == "nhwc" and is_data(node)

    def assign(self, node: Node, expression: str) -> str:
        """A line that names a value."""
        name, self.count = f"v{self.count}", self.count + 1
        self.out(f"{name} = {expression}  # {node.type}")
        return name


class NumpyTarget(Target):
    """numpy, one function a derivative."""

    name = "numpy"
    dtypes = ("float32", "float64")
    code_for_op = {  # noqa: RUF012
        Op.ADD: "{0} + {1}", Op.SUB: "{0} - {1}", Op.MUL: "{0} * {1}", Op.DIV: "{0} / {1}", Op.NEG: "-{0}",
        Op.MAX: "np.maximum({0}, {1})", Op.MIN: "np.minimum({0}, {1})", Op.ABS: "np.abs({0})",
        Op.SQUARE: "np.square({0})", Op.EXP: "np.exp({0})", Op.SIGMOID: "sigmoid({0})", Op.TANH: "np.tanh({0})",
        Op.ERF: "erf({0})", Op.ROOT: "np.sqrt({0})", Op.LN: "np.log({0})", Op.SIGN: "np.sign({0})",
        Op.GATE: "gate({0}, {1}, {2})", Op.BROADCAST: "{0}",
    }  # fmt: skip
    on_chip_bytes = 1 << 20

    def emit(self, plan: Plan, title: str = "") -> str:
        """A Python module."""
        if plan.dtype not in self.dtypes:
            raise BackendError(f"numpy has no {plan.dtype}")
        return NumpyText(plan, self.code_for_op).text(title)


def load(plan: Plan, title: str) -> Kernel:
    """The function of a plan, on tensors."""
    names: dict[str, object] = {}
    exec(find_target(plan.target).emit(plan, title), names)

    def call(tensors: Sequence[Tensor], dims: tuple[int, int, int, int]) -> None:
        last = plan.layout == "nhwc"
        nodes = [*plan.operands, *(n for _, n in plan.outputs)]
        flat = [(t.movedim(1, -1) if last and is_data(n) else t) for t, n in zip(tensors, nodes, strict=True)]
        names[plan.symbol](*(t.detach().view(-1).numpy() for t in flat), *dims)  # type: ignore[operator]

    return call


@pytest.fixture(autouse=True)
def numpy_target() -> Iterator[None]:
    """The two lines that add it, and their undoing."""
    register(NumpyTarget())
    RUNNERS["numpy"] = Runner(load, ("cpu",), "the CPU")
    yield
    del registry._targets["numpy"], RUNNERS["numpy"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_order_against_the_evaluator(name: str, layout: str) -> None:
    """The function of a plan, alone, against the graph that was planned, evaluated in float64. The values of saved
    statistics are any numbers here: plan and graph agree on those too."""
    shape, groups = (2, 6, 3, 5), 3
    dims, extents = (2, 3, 2, 15), dict(zip(AXES, (2, 3, 2, 15), strict=True))
    for order in range(4):
        what = program(nf.layers[name], order, True)
        plan = find_target("numpy").plan(what, "float64", layout)
        values = random_values(what.graph, shape, groups=groups, seed=order)
        unused = {n.name: np.zeros(value_shape(n.axes, shape, groups)) for n in what.operands}
        values = unused | values | {n.name: np.abs(values[n.name]) + 0.5 for n in what.saved if n.name in values}
        want = evaluate(what.graph, values, groups=groups)
        given = [torch.as_tensor(values[n.name]) for n in plan.operands]
        made = [
            torch.empty(shape if is_data(n) else prod(e for a, e in extents.items() if n.axes & a)).double()
            for _, n in plan.outputs
        ]
        if layout == "nhwc":
            given, made = (
                [t.movedim(1, -1).contiguous().movedim(-1, 1) if t.shape == shape else t for t in ts]
                for ts in (given, made)
            )
        load(plan, name)([*given, *made], dims)
        for got, (label, _) in zip(made, plan.outputs, strict=True):
            expected = torch.from_numpy(want[label].copy()).reshape(got.shape)
            scale = 1 + float(expected.abs().max())
            compare(got, expected, tolerance(torch.float64, 180, scale, order), f"{label} of {name}, order {order}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_compiled_layers(name: str, layout: str) -> None:
    """By name through `nf.compile`: values, both orders of gradients and running statistics."""
    dtype = (torch.float32, torch.float64)[layout == "nhwc"]
    check_against_eager(nf.layers[name], (3, 6, 4, 5), 3, dtype, layout, backend="numpy")


def test_it_is_known_where_targets_are() -> None:
    plan = nf.plan("gn-silu", 1, shape=(8, 64, 14, 14), target="numpy")
    assert (plan.target, plan.resident_in, plan.reads, plan.writes) == ("numpy", "cache", 2, 1)
    assert nf.plan("bn-relu", 1, shape=(64, 64, 112, 112), target="numpy").resident_in is None
    assert account(plan).workspace == 0
    assert "0 B of workspace" in explain(nf.layers["gn-silu"], (8, 64, 14, 14), target="numpy")
    assert f"def {nf.plan('gn-silu', target='numpy').symbol}" in nf.source("gn-silu", "numpy")
    with pytest.raises(BackendError, match="bfloat16"):
        nf.source("gn-silu", "numpy", dtype="bfloat16")
    with pytest.raises(OptionError, match="numpy"):
        nf.plan("gn-silu", target="nunpy")


def test_a_target_runs_where_it_can() -> None:
    module = make(nf.layers["gn-silu"], "numpy", 4, 2, torch.float32, 0)
    with pytest.raises(BackendError, match="does not run on meta"):
        module(torch.empty(2, 4, 3, 3, device="meta"))
    x = random_input((2, 4, 3, 3), 0, torch.float32)
    traced = op([x, *module.parameters()], Job(0, True, 2, module.graph, target="numpy").key)
    assert torch.equal(traced[0], module(x))
    with pytest.raises(BackendError, match="cannot be had: not here"):
        RUNNERS["numpy"] = RUNNERS["numpy"]._replace(missing=lambda: "not here")
        nf.compile("gn-silu", 4, backend="numpy")
