"""The formula of a surface graph; `parse_formula` (ir/forms/formula.py) reads it back to the same graph."""

from __future__ import annotations

import math
from typing import NamedTuple

from normforge.errors import GraphError
from normforge.ir.forms.grammar import PARAMETERS, WORDS
from normforge.ir.graph import EPS, Graph
from normforge.ir.limits import MAX_DEPTH, MAX_FORMULA
from normforge.ir.node import Node, param
from normforge.ir.ops import MOMENT, Op
from normforge.ir.types import INDEX_NAMES, INPUT_NAMES

_SIGNS = {Op.ADD: "+", Op.SUB: "-", Op.MUL: "*", Op.DIV: "/"}
_PRECEDENCE = {Op.ADD: 1, Op.SUB: 1, Op.MUL: 2, Op.DIV: 2}


class _Text(NamedTuple):
    """Text, precedence (3 binds tightest) and how deep its brackets nest."""

    text: str
    precedence: int
    depth: int

    def bracketed(self, when: bool = True) -> _Text:
        return _Text(f"({self.text})", 3, self.depth + 1) if when else self


def format_number(value: float) -> str:
    """The shortest decimal that reads back to the same float64."""
    text = repr(value)
    return text[:-2] if text.endswith(".0") else text


def formula_or_none(graph: Graph) -> str | None:
    """The formula of a surface graph, declarations first; None where sharing or depth would put it over the limits.

    Raises:
        GraphError: the graph is not a surface graph.
    """
    if not graph.is_surface:
        raise GraphError("only a layer over the primitives has a formula: use dump() or to_json()")
    head = [] if graph.eps == EPS else [f"eps = {format_number(graph.eps)}; "]
    for i in graph.inputs[1:]:
        head.append(f"input {i.name}[{INPUT_NAMES[i.axes]}]; ")
    for p in graph.params:
        if p.name not in PARAMETERS or p is not param(p.name, PARAMETERS[p.name]):
            head.append(f"param {p.name}{'' if p.axes else ' scalar'} = {format_number(p.attr[2])}; ")
    room = MAX_FORMULA - sum(map(len, head))
    done: dict[Node, _Text] = {}
    for node in graph.nodes:
        done[node] = _format(node, [done[a] for a in node.args])
        if len(done[node].text) > room or done[node].depth > MAX_DEPTH:
            return None
    results = ", ".join(done[node].text for _, node in graph.outputs)
    return "".join(head) + results if len(results) <= room else None


def text(graph: Graph) -> str:
    """The formula of a graph that has one, else its dump."""
    formula = formula_or_none(graph) if graph.is_surface else None
    return graph.dump() if formula is None else formula


def _format(node: Node, args: list[_Text]) -> _Text:
    op = node.op
    if op is Op.INPUT or op is Op.PARAM:
        return _Text(node.name, 3, 0)
    if op is Op.CONST:
        return _Text(format_number(node.value), 3, 0).bracketed(math.copysign(1.0, node.value) < 0)
    if op in _SIGNS:
        p = _PRECEDENCE[op]
        left, right = args[0].bracketed(args[0].precedence < p), args[1].bracketed(args[1].precedence <= p)
        return _Text(f"{left.text} {_SIGNS[op]} {right.text}", p, max(left.depth, right.depth))
    if op is Op.NEG:
        bare = args[0].precedence == 3 and node.args[0].op not in (Op.CONST, Op.NEG)
        inner = args[0].bracketed(not bare)
        return _Text(f"-{inner.text}", 0, inner.depth).bracketed()
    if op in (Op.WHERE, Op.WHERE_GE):
        a, b, *branches = (t.text for t in args)
        sign = ">" if op is Op.WHERE else ">="
        return _Text(f"where({a} {sign} {b}, {', '.join(branches)})", 3, 1 + max(t.depth for t in args))
    index = f"[{INDEX_NAMES[node.reduced]}]" if op in MOMENT else ""
    inside = ", ".join(a.text for a in args)
    return _Text(f"{WORDS.get(op, op.value)}{index}({inside})", 3, 1 + max(a.depth for a in args))
