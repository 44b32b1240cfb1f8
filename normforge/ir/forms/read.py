"""Building a graph from what a dump or a JSON text says, distrusting all of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from normforge.errors import GraphError, ParseError
from normforge.ir.graph import Graph
from normforge.ir.limits import MAX_CHAIN, MAX_GRAPH_NODES, MAX_NAME
from normforge.ir.node import Attr, Node, make
from normforge.ir.ops import Op
from normforge.ir.verify import verify

_NAME = re.compile(rf"[a-z_][a-z0-9_.]{{0,{MAX_NAME + 15}}}")  # room for the `d2.ct.` of derivatives


class Builder:
    """A graph under construction: nodes by number, in order. Every method raises `ParseError` alone."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._depth: list[int] = []

    def add(self, op: Op, refs: Sequence[object], attr: Sequence[object]) -> Node:
        """Append one node; `refs` are numbers of earlier nodes, `attr` what the text had."""
        if len(self.nodes) >= MAX_GRAPH_NODES:
            raise ParseError(f"more than {MAX_GRAPH_NODES} nodes: such a graph is not read")
        numbers = [self.index(r) for r in refs]
        depth = 1 + max((self._depth[i] for i in numbers), default=0)
        if depth > MAX_CHAIN:
            raise ParseError(f"more than {MAX_CHAIN} operations in a chain: such a graph is not read")
        try:
            node = make(op, tuple(self.nodes[i] for i in numbers), _attributes(op, attr))
        except GraphError as e:
            raise ParseError(str(e)) from None
        self.nodes.append(node)
        self._depth.append(depth)
        return node

    def index(self, ref: object) -> int:
        """A reference to an earlier node, checked."""
        if not isinstance(ref, int) or isinstance(ref, bool) or not 0 <= ref < len(self.nodes):
            raise ParseError(f"%{str(ref)[:40]} is not an earlier node")
        return ref

    def graph(self, eps: object, inputs: Sequence[object], outputs: Sequence[tuple[object, object]]) -> Graph:
        """The finished and verified graph."""
        value = number(eps)
        if not (value > 0 and math.isfinite(value)):
            raise ParseError(f"eps must be positive and finite, not {eps!r}")
        named = []
        for name, ref in outputs:
            named.append((identifier(name), self.nodes[self.index(ref)]))
        graph = Graph(tuple(named), tuple(self.nodes[self.index(r)] for r in inputs), value)
        try:
            verify(graph)
        except GraphError as e:
            raise ParseError(str(e).split("\n")[0]) from None
        return graph


def number(value: object) -> float:
    """A float from JSON's number or the text of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ParseError(f"expected a number, found {str(value)[:40]!r}")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ParseError(f"expected a number, found {str(value)[:40]!r}") from None


def identifier(name: object) -> str:
    """A name of an input, an output or a parameter."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ParseError(f"expected a lower-case name, found {str(name)[:40]!r}")
    return name


def _attributes(op: Op, attr: Sequence[object]) -> Attr:
    if op is Op.CONST and len(attr) == 1:
        return (number(attr[0]),)
    if op in (Op.INPUT, Op.PARAM) and len(attr) == 3:
        name, axes, last = identifier(attr[0]), *attr[1:]
        if type(axes) is not int:
            raise ParseError(f"the axes of {name} are one number, not {str(axes)[:40]!r}")
        if op is Op.PARAM:
            return (name, axes, number(last) + 0.0)
        if last not in ("data", "stat"):
            raise ParseError(f"the float class of input {name} is data or stat, not {str(last)[:40]!r}")
        return (name, axes, last)
    if op is Op.BROADCAST and len(attr) == 2 and type(attr[0]) is int and attr[1] in ("data", "stat"):
        return tuple(attr)
    if any(type(a) is not int for a in attr):
        raise ParseError(f"{op} has no attributes like {str(list(attr))[:60]}")
    return tuple(attr)
