"""A layer as lines of Python in torch's operations, for a file of its own; what `codegen.eager` does, written out."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field

from normforge.ir.graph import Graph
from normforge.ir.node import Node
from normforge.ir.ops import LEAF, MOMENT, Op, no_row
from normforge.ir.types import B, G, K, S
from normforge.passes.running import Running, running_statistics

_SIGNS = {Op.ADD: ("+", 1), Op.SUB: ("-", 1), Op.MUL: ("*", 2), Op.DIV: ("/", 2)}
_FUNCTIONS = {
    Op.MAX: "torch.maximum", Op.MIN: "torch.minimum", Op.ABS: "torch.abs", Op.SQUARE: "torch.square",
    Op.EXP: "torch.exp", Op.SIGMOID: "torch.sigmoid", Op.TANH: "torch.tanh", Op.ERF: "torch.erf",
    Op.SIN: "torch.sin", Op.COS: "torch.cos", Op.RSQRT: "torch.rsqrt", Op.SIGN: "sign",
}  # fmt: skip
# What the file calls otherwise.
RESERVED = {
    "torch", "math", "nn", "self", "n", "c", "k", "s", "groups", "eps", "running", "statistics", "number", "sign",
    "variance", "unbiased", "spread", "like", "like_x", "inputs", "parameters", "buffers", "results", "extents", "e",
}  # fmt: skip
_NAMES = {Op.MEAN: "mean", Op.STD: "std", Op.RMS: "rms", Op.VAR: "var", Op.TOTAL: "total"}
_EXTENTS = ((B, "n"), (G, "groups"), (K, "k"), (S, "s"))


@dataclass
class TorchText:
    """The body of a function of x and the other operands, which have four axes: samples, groups, channels of a group,
    positions.

    Attributes:
        graph: a layer.
        lines: of the body.
        results: the expressions of the results.
        uses_numbers, uses_signs: the helpers that lines call.
    """

    graph: Graph
    lines: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    uses_numbers: bool = False
    uses_signs: bool = False

    def __post_init__(self) -> None:
        self._running = {r.node: r for r in running_statistics(self.graph)}
        self._text: dict[Node, tuple[str, int]] = {}
        self._taken = {python_name(n.name) for n in self.graph.nodes if n.op in (Op.INPUT, Op.PARAM)} | RESERVED
        users: dict[Node, int] = {}
        for node in self.graph.nodes:
            for a in node.args:
                users[a] = users.get(a, 0) + (2 if node.op in (Op.SQRT, Op.LOG) else 1)
        for node in self.graph.nodes:
            if node.op in MOMENT or node.op is Op.TOTAL:
                self._moment(node)
                continue
            text = self._expression(node)
            if users.get(node, 0) > 1 and node.op not in LEAF:
                name = self._name("h")
                self.lines.append(f"{name} = {text[0]}")
                text = (name, 3)
            self._text[node] = text
        self.results = [self._operand(node) for _, node in self.graph.outputs]

    def _name(self, stem: str) -> str:
        name, i = stem, 1
        while name in self._taken:
            i += 1
            name = f"{stem}_{i}"
        self._taken.add(name)
        return name

    def _operand(self, node: Node) -> str:
        """As an argument of a function, which takes tensors alone."""
        if node.op is Op.CONST:
            self.uses_numbers = True
            return f"number({node.value!r}, x)"
        return self._text[node][0]

    def _bracketed(self, node: Node, precedence: int) -> str:
        text, own = self._text[node]
        return text if own >= precedence else f"({text})"

    def _expression(self, node: Node) -> tuple[str, int]:
        op, args = node.op, node.args
        if op in (Op.INPUT, Op.PARAM):
            return python_name(node.name), 3
        if op is Op.CONST:
            return repr(node.value), 3 if node.value >= 0 else 0
        if op in _SIGNS:
            if all(a.op is Op.CONST for a in args):  # numbers of Python divide otherwise than tensors
                functions = {Op.ADD: "add", Op.SUB: "sub", Op.MUL: "mul", Op.DIV: "div"}
                return f"torch.{functions[op]}({self._operand(args[0])}, {self._operand(args[1])})", 3
            sign, own = _SIGNS[op]
            return f"{self._bracketed(args[0], own)} {sign} {self._bracketed(args[1], own + 1)}", own
        if op is Op.NEG:
            return f"-{self._bracketed(args[0], 3)}", 0
        if op in _FUNCTIONS:
            self.uses_signs |= op is Op.SIGN
            return f"{_FUNCTIONS[op]}({', '.join(map(self._operand, args))})", 3
        if op is Op.SOFTPLUS:
            return f"torch.nn.functional.softplus({self._operand(args[0])}, threshold=50.0)", 3
        if op in (Op.WHERE, Op.WHERE_GE):
            a, b, *branches = map(self._operand, args)
            return f"torch.where({a} {'>' if op is Op.WHERE else '>='} {b}, {', '.join(branches)})", 3
        a = self._operand(args[0])
        if op is Op.SQRT:
            return f"{self._bracketed(args[0], 2)} / torch.sqrt(torch.abs({a}) + eps)", 2
        if op is Op.LOG:
            return f"torch.sign({a}) * torch.log(torch.abs({a}) + eps)", 2
        raise no_row(op, "torch text (codegen/torch_file/text.py)")

    def _moment(self, node: Node) -> None:
        op, a = node.op, self._operand(node.args[0])
        over = tuple(i for i, (bit, _) in enumerate(_EXTENTS) if node.reduced & node.args[0].axes & bit)
        name = self._name(_NAMES[op])
        self._text[node] = (name, 3)
        mean = f"({a}).mean({list(over)}, keepdim=True)" if over else a
        if op is Op.TOTAL:
            self.lines.append(f"{name} = {mean} * ({_count(node)})")
            return
        inner = {
            Op.MEAN: mean,
            Op.RMS: f"torch.square({a}).mean({list(over)}, keepdim=True)" if over else f"torch.square({a})",
        }.get(op, f"variance({a}, {list(over)})" if over else f"torch.square({a} - {a})")
        if running := self._running.get(node):
            self._kept(running, name, inner)
        elif op in (Op.STD, Op.RMS):
            self.lines.append(f"{name} = torch.sqrt({inner} + eps)")
        else:
            self.lines.append(f"{name} = {inner}")

    def _kept(self, running: Running, name: str, inner: str) -> None:
        """A moment that inference reads from a buffer."""
        node, rooted = running.node, running.node.op in (Op.STD, Op.RMS)
        value = self._name("mean_square" if node.op is Op.RMS else "variance_of") if rooted else name
        number = [r.name for r in self._running.values()].index(running.name)
        statistic = f"unbiased({value}, {_count(node)})" if running.unbiased else value
        self.lines += [
            "if buffers is None:",
            f"    {value} = {inner}",
            f"    statistics.append({statistic})",
            "else:",
            f'    {value} = spread(buffers[{number}], "{letters(running.axes)}", extents, x)',
        ]
        if rooted:
            self.lines.append(f"{name} = torch.sqrt({value} + eps)")


def letters(axes: int) -> str:
    """The axes of a value as a word: b samples, g groups, k channels of a group, s positions."""
    return "".join(letter for (bit, _), letter in zip(_EXTENTS, "bgks", strict=True) if axes & bit)


def _count(node: Node) -> str:
    """The number of elements under an index set, broadcast ones counted."""
    return " * ".join(extent for bit, extent in _EXTENTS if node.reduced & bit) or "1"


def python_name(name: str) -> str:
    """A name of a formula as one of Python's that the file does not use."""
    return f"{name}_" if keyword.iskeyword(name) or name in RESERVED else name
