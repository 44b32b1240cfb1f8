"""Where each value of a plan lives in the generated Triton text: pointers, their shapes, addresses of elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Set

from normforge.codegen.index import element, extents
from normforge.codegen.plan import Plan
from normforge.codegen.stage import Stage
from normforge.codegen.triton.kernels import needed, sweep_numbers
from normforge.codegen.triton.launches import TritonSchedule
from normforge.codegen.triton.workspace import identifier, is_small_output, partial_name, value_name
from normforge.ir.node import Node
from normforge.ir.ops import CORE, ELEMENTWISE, LEAF, Op, Table
from normforge.ir.types import B, axes_name, reduced_name
from normforge.passes.factor import is_full

_CODED = CORE & ELEMENTWISE | {Op.BROADCAST}
# Core operation -> Triton expression over operand names, on float32 values. What Triton has no word for is a function
# of the prelude, f_OPERATION.
CODE = Table(
    "Triton text (codegen/triton/names.py)",
    _CODED,
    {op: f"f_{op}({', '.join(f'{{{i}}}' for i in range(op.traits.arity))})" for op in _CODED}
    | {
        Op.ADD: "{0} + {1}",
        Op.SUB: "{0} - {1}",
        Op.MUL: "{0} * {1}",
        Op.DIV: "{0} / {1}",
        Op.NEG: "-{0}",
        Op.ABS: "tl.abs({0})",
        Op.SQUARE: "{0} * {0}",
        Op.EXP: "tl.exp({0})",
        Op.ERF: "tl.erf({0})",
        Op.ROOT: "tl.sqrt({0})",
        Op.LN: "tl.log({0})",
        Op.WHERE: "tl.where({0} > {1}, {2}, {3})",
        Op.WHERE_GE: "tl.where({0} >= {1}, {2}, {3})",
        Op.BROADCAST: "{0}",
    },
)

# Functions of the prelude that they call.
CALLS = {op: f"f_{op}" for op in _CODED if CODE[op].startswith("f_")}
_SMALLEST_NORMAL = 2.0**-126
_LARGEST = 3.4028234663852886e38


def literal(value: float) -> str:
    """A float32 literal. Triton would make a float64 of a number that is not a normal float32."""
    if math.isnan(value):
        return 'float("nan")'
    if abs(value) > _LARGEST:
        return 'float("inf")' if value > 0 else '(-float("inf"))'
    if value and abs(value) < _SMALLEST_NORMAL:
        return f"tl.full([], {value!r}, tl.float32)"
    return repr(value) if math.copysign(1.0, value) > 0 else f"({value!r})"


class TritonStorage:
    """Names for every node of a plan.

    Small values live in the caller's tensors (operands, outputs) or in the workspace, whose arrays the schedule has.
    """

    def __init__(self, plan: Plan, schedule: TritonSchedule) -> None:
        self.plan = plan
        self.index = {node: i for i, node in enumerate(schedule.values)}
        self.shapes: dict[str, str] = {}  # pointer -> its comment
        self.sweep_of = sweep_numbers(plan)
        self.operands: dict[Node, str] = {}
        for i, node in enumerate(plan.operands):
            self.operands[node] = self._pointer(identifier(node.name), i, f"{node.name} {shape_text(node)}")
        self.outputs: list[str] = []
        self.returned: dict[Node, list[str]] = {}  # small values -> the outputs that they are
        for i, (label, node) in enumerate(plan.outputs):
            self.outputs.append(self._pointer(f"out_{identifier(label)}", i, f"{label} {shape_text(node)}"))
            if is_small_output(node):
                self.returned.setdefault(node, []).append(self.outputs[-1])
        for array in schedule.arrays:
            self.shapes.setdefault(f"{array.name}_ptr", f"{array.what} [{', '.join(array.shape)}]")

    def _pointer(self, stem: str, number: int, comment: str) -> str:
        name = f"{stem}_ptr"
        if name in self.shapes:  # `ct.y` is one operand and a parameter may be called `ct_y`
            name = f"{stem}_{number}_ptr"
        self.shapes[name] = comment
        return name

    def var(self, node: Node) -> str:
        """The local variable that holds the value of a node."""
        if node.op is Op.INPUT or node.op is Op.PARAM:
            return f"in_{self.operands[node][: -len('_ptr')]}"
        return f"v{self.index[node]}"

    def array(self, node: Node) -> str:
        """The pointer to a stored small value."""
        if node in self.operands:
            return self.operands[node]
        if node in self.returned:
            return self.returned[node][0]
        return f"{value_name(self.index[node])}_ptr"

    def store(self, out: Stage, node: Node, value: str, mask: str, *, beside: str = "") -> None:
        """Store a small value at n, c (or g), s, once for each output that it is; `beside` is an index that is 0
        wherever the mask holds, and gives the address the shape of the mask."""
        at = out.at(element(node.axes)).triton + beside
        for pointer in self.returned.get(node) or [self.array(node)]:
            out(f"tl.store({out.array(pointer)} + {at}, {value}, mask={mask})")

    def partial(self, node: Node, kind: str = "p") -> str:
        """The pointer to partials of a row sum, see `workspace`."""
        return f"{partial_name(self.index, node, kind)}_ptr"

    def constant(self, node: Node) -> str | None:
        """The expression of a constant or a size; None for anything else."""
        if node.op is Op.CONST:
            return literal(node.value)
        if node.op is Op.SIZE:
            return f"size_{reduced_name(node.reduced).replace(',', '')}"
        return None

    def define_sizes(self, out: Stage, nodes: Iterable[Node]) -> None:
        """The sizes that the nodes name, as float32."""
        for axes in sorted({a.reduced for n in nodes for a in (n, *n.args) if a.op is Op.SIZE}):
            product = " * ".join(extents(axes))
            text = f"({product}).to(tl.float32)" if "*" in product else f"{product}.to(tl.float32)"
            out(f"size_{reduced_name(axes).replace(',', '')} = {text}")

    def assign(self, out: Stage, node: Node) -> None:
        """`v12 = v3 + v4`, for an elementwise node whose operands are there."""
        constants = [self.constant(a) if a.op is Op.CONST else None for a in node.args]
        plain = node.op in _TAKES_NUMBERS and not all(constants)
        args = []
        for a, number in zip(node.args, constants, strict=True):
            if number is None:
                args.append(self.constant(a) or self.var(a))
            else:
                args.append(number if plain or number.startswith("tl.full") else f"tl.full([], {number}, tl.float32)")
        if node.op in CALLS:
            out.function(CALLS[node.op])
        comment = "" if is_full(node.axes) else f"  # {axes_name(node.axes)}"
        out(f"{self.var(node)} = {CODE[node.op].format(*args)}{comment}")

    def fetch(self, out: Stage, node: Node, mask: str) -> None:
        """Load a stored small value at n, c (or g), s."""
        guard = f", mask={mask}, other=0.0" if mask else ""
        name = f"{node.name} " if node.op in LEAF else ""
        source = out.array(self.array(node))
        if node.axes:
            source = f"{source} + {out.at(element(node.axes)).triton}"
        out(f"{self.var(node)} = tl.load({source}{guard})  # {name}{axes_name(node.axes)}")


# Operations whose text takes a Python number beside a tensor.
_TAKES_NUMBERS = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAX, Op.MIN, Op.GATE, Op.WHERE, Op.WHERE_GE})


def shape_text(node: Node) -> str:
    """`[N, C, *spatial]` or the shape of a small value, for the comment of a pointer."""
    return "[N, C, *spatial]" if is_full(node.axes) and node.axes & B else f"[{', '.join(extents(node.axes))}]"


def below(storage: TritonStorage, roots: Iterable[Node], stop: Set[Node]) -> list[Node]:
    """What has to be evaluated for `roots`, operands first: down to leaves, `stop`, and sums that sweeps take."""
    return in_order(storage, needed(roots, stop))


def in_order(storage: TritonStorage, nodes: Iterable[Node]) -> list[Node]:
    """Operands first."""
    return sorted(nodes, key=storage.index.__getitem__)
