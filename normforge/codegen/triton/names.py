"""Where each value of a plan lives in the generated Triton text: pointers, their shapes, addresses of elements."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from normforge.codegen.index import element, extents
from normforge.codegen.plan import Plan, is_sweep_sum
from normforge.codegen.stage import Stage
from normforge.codegen.triton.kernels import sweep_numbers
from normforge.ir.node import Node, preorder
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


def identifier(name: str) -> str:
    """A name of the IR, such as `ct.d.x`, as a Python identifier."""
    return re.sub(r"\W", "_", name)


@dataclass(frozen=True)
class Work:
    """An array of float32 in the workspace: its name and its shape, as names of sizes."""

    name: str
    shape: tuple[str, ...]


class Storage:
    """Names for every node of a plan.

    Small values live in the caller's tensors (operands, outputs) or in the workspace; row sums have partials of
    shape [N][Q][C], Q the number of chunks of a row in their sweep.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.index = {node: i for i, node in enumerate(plan.graph.nodes)}
        self.work: dict[str, Work] = {}
        self.shapes: dict[str, str] = {}  # pointer -> its comment
        self.sweep_of = sweep_numbers(plan)
        self.operands: dict[Node, str] = {}
        for i, node in enumerate(plan.operands):
            self.operands[node] = self._pointer(identifier(node.name), i, f"{node.name} {shape_text(node)}")
        self.outputs: list[str] = []
        self.returned: dict[Node, list[str]] = {}  # small values -> the outputs that they are
        for i, (label, node) in enumerate(plan.outputs):
            self.outputs.append(self._pointer(f"out_{identifier(label)}", i, f"{label} {shape_text(node)}"))
            if not is_full(node.axes) and node.op not in LEAF:
                self.returned.setdefault(node, []).append(self.outputs[-1])

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
        return f"v{self.index.setdefault(node, len(self.index))}"

    def array(self, node: Node) -> str:
        """The pointer to a stored small value."""
        if node in self.operands:
            return self.operands[node]
        if node in self.returned:
            return self.returned[node][0]
        return self._reserve(f"w{self.var(node)[1:]}", extents(node.axes), str(node.op))

    def store(self, out: Stage, node: Node, value: str, mask: str, *, beside: str = "") -> None:
        """Store a small value at n, c (or g), s, once for each output that it is; `beside` is an index that is 0
        wherever the mask holds, and gives the address the shape of the mask."""
        at = out.at(element(node.axes)).triton + beside
        for pointer in self.returned.get(node) or [self.array(node)]:
            out(f"tl.store({out.array(pointer)} + {at}, {value}, mask={mask})")

    def partial(self, node: Node, kind: str = "p") -> str:
        """Partials of a row sum: p sums, m means, q sums of squared deviations of chunks.

        m and q belong to the operand, which a mean and a variance share.
        """
        of = node if kind == "p" else node.args[0]
        what = {"p": "sums", "m": "means", "q": "sums of squared deviations"}[kind]
        q = f"Q{self.sweep_of[node]}"
        return self._reserve(f"{kind}{self.index[of]}", ("N", q, "C"), f"{what} of chunks of {self.var(of)}")

    def _reserve(self, name: str, shape: tuple[str, ...], what: str) -> str:
        self.work.setdefault(name, Work(name, shape))
        pointer = f"{name}_ptr"
        self.shapes.setdefault(pointer, f"{what} [{', '.join(shape)}]")
        return pointer

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
_TAKES_NUMBERS = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAX, Op.MIN, Op.GATE})


def shape_text(node: Node) -> str:
    """`[N, C, *spatial]` or the shape of a small value, for the comment of a pointer."""
    return "[N, C, *spatial]" if is_full(node.axes) and node.axes & B else f"[{', '.join(extents(node.axes))}]"


def below(storage: Storage, roots: Iterable[Node], stop: frozenset[Node] | set[Node]) -> list[Node]:
    """What has to be evaluated for `roots`, operands first: down to leaves, `stop`, and sums that sweeps take."""

    def operands(node: Node) -> tuple[Node, ...]:
        return () if node in stop or is_sweep_sum(node) or node.op is Op.SUM else node.args

    inside = [n for n in preorder(roots, operands) if n.op not in (Op.CONST, Op.SIZE)]
    return sorted(inside, key=lambda n: storage.index.setdefault(n, len(storage.index)))
