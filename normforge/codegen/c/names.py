"""Where each value of a plan lives in the generated C: names of arrays and their sizes. How C spells an operation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from normforge.codegen.index import extents
from normforge.codegen.plan import Plan, is_sweep_sum
from normforge.ir.node import Node
from normforge.ir.ops import CORE, ELEMENTWISE, LEAF, Op, Table
from normforge.ir.types import C, G, K, S
from normforge.passes.factor import is_full

# Core operation -> C expression over operand names: of one double, and of vectors of the arithmetic type. What is
# neither arithmetic nor of the C library is a function of the prelude, f_OPERATION of a double, v_OPERATION of vectors.
_ARITHMETIC: dict[Op, str] = {
    Op.ADD: "{0} + {1}",
    Op.SUB: "{0} - {1}",
    Op.MUL: "{0} * {1}",
    Op.DIV: "{0} / {1}",
    Op.NEG: "-{0}",
    Op.SQUARE: "{0} * {0}",
    Op.BROADCAST: "{0}",
}
_LIBRARY = {Op.ABS: "fabs", Op.EXP: "exp", Op.TANH: "tanh", Op.ERF: "erf", Op.ROOT: "sqrt", Op.LN: "log"}
_CODED = CORE & ELEMENTWISE | {Op.BROADCAST}


def _calls(prefix: str) -> dict[Op, str]:
    return {op: f"{prefix}_{op}({', '.join(f'{{{i}}}' for i in range(op.traits.arity))})" for op in _CODED}


SMALL_CODE = Table(
    "C text of numbers (codegen/c/names.py)",
    _CODED,
    _calls("f") | _ARITHMETIC | {op: f"{name}({{0}})" for op, name in _LIBRARY.items()},
)
VECTOR_CODE = Table("C text of vectors (codegen/c/names.py)", _CODED, _calls("v") | _ARITHMETIC)


def literal(value: float) -> str:
    """A C literal of exactly this double, as the arithmetic type."""
    if math.isnan(value):
        return "(T)NAN"
    if math.isinf(value):
        return "(T)INFINITY" if value > 0 else "(T)-INFINITY"
    text = repr(value)
    return f"(T){text}" if value >= 0 and "-" not in text[:1] else f"(T)({text})"


@dataclass(frozen=True)
class Array:
    """One array in the workspace: its name, element type and shape, as names of sizes."""

    name: str
    ctype: str
    shape: tuple[str, ...]


class CStorage:
    """Names for every node of a plan.

    Small values live in the caller's tensors (operands, outputs) or in the workspace; row sums that are taken
    chunk by chunk have partials of shape [N][Q][C], Q the number of chunks of a row.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.index = {node: i for i, node in enumerate(plan.graph.nodes)}
        self.arrays: dict[str, Array] = {}
        self.operands = {node: f"in{i}" for i, node in enumerate(plan.operands)}
        self.outputs: dict[Node, str] = {}
        for i, (_, node) in enumerate(plan.outputs):
            if not is_full(node.axes) and node.op not in LEAF:
                self.outputs.setdefault(node, f"out{i}")
        # Rows are cut into chunks where columns are summed too, and always where channels are contiguous.
        columns = any(not n.reduced & S for sweep in plan.sweeps for n in sweep.sums)
        small = {a for phase in (plan.prologue, *plan.stages, plan.epilogue) for n in phase for a in n.args}
        self.sweeps_only = {n for s in plan.sweeps for n in s.frontier} - small
        self.chunked = plan.layout == "nhwc" or columns
        self.inner = S if plan.layout == "nchw" else C  # the axis that is contiguous in memory

    def var(self, node: Node) -> str:
        """The local variable that holds the value of a node."""
        return f"v{self.index[node]}"

    def array(self, node: Node) -> str:
        """The array that holds a small value."""
        if node in self.operands:
            return self.operands[node]
        if node in self.outputs:
            return self.outputs[node]
        # Small values are kept in double: what cancels among factored sums should do so before it is rounded. Not
        # so sums, which were added up in T, and what sweeps alone read, in T; along space, they add to it in place.
        narrow = node.axes & S or (node.op is Op.SUM and is_sweep_sum(node)) or node in self.sweeps_only
        return self.workspace(f"w{self.index[node]}", "T" if narrow else "double", extents(node.axes))

    def expanded(self, node: Node) -> str:
        """A copy in the arithmetic type, one element a channel, for loops with channels inside."""
        return self.workspace(f"e{self.index[node]}", "T", extents(node.axes | K))

    def partial(self, node: Node, kind: str = "p") -> str:
        """Partials of a row sum: p sums, m means, q sums of squared deviations from m, k those of the deviations."""
        return self.workspace(f"{kind}{self.index[node]}", "T", ("N", "Q", "C"))

    def is_expanded(self, node: Node) -> bool:
        """True for a small value that loops with channels inside read from a copy: one by group would need a
        division an element, one in double a conversion."""
        if self.plan.layout == "nchw" or not node.axes & G or node.axes & S:
            return False
        return not node.axes & K or (node not in self.operands and node not in self.outputs)

    def column(self, node: Node, kind: str) -> str:
        """What a variance over channels is taken from at each position: cm means, cq sums of squared deviations."""
        return self.workspace(f"{kind}{self.index[node]}", "T", ("N", "G", "S") if node.axes & G else ("N", "S"))

    def workspace(self, name: str, ctype: str, shape: tuple[str, ...]) -> str:
        """Reserve (once) an array of the workspace."""
        self.arrays.setdefault(name, Array(name, ctype, shape))
        return name


def is_stored(node: Node) -> bool:
    """True for a value that sweeps read from an array instead of computing it again."""
    return not is_full(node.axes) or is_sweep_sum(node)
