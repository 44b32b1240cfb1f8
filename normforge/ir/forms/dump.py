"""The SSA form: one typed node a line. Round-trips every graph, derivatives included."""

from __future__ import annotations

import re

from normforge.errors import ParseError, nearest
from normforge.ir.forms.read import Builder
from normforge.ir.graph import Graph
from normforge.ir.limits import MAX_TEXT
from normforge.ir.node import Node
from normforge.ir.ops import BY_NAME, LEAF, REDUCTION, Op
from normforge.ir.types import parse_axes, parse_reduced, reduced_name


def dump(graph: Graph) -> str:
    """Typed SSA text of a graph. Unused inputs are listed too, so that `load` returns the same graph."""
    used = set(graph.nodes)
    nodes = [*(n for n in graph.inputs if n not in used), *graph.nodes]
    number = {node: f"%{i}" for i, node in enumerate(nodes)}
    lines = [f"graph eps={graph.eps!r} inputs={','.join(number[n] for n in graph.inputs)}"]
    for node in nodes:
        lines.append(f"  {number[node]}: {node.type} = {_operation(node, number)}")
    lines.append("  return " + ", ".join(f"{name}={number[node]}" for name, node in graph.outputs))
    return "\n".join(lines)


def _operation(node: Node, number: dict[Node, str]) -> str:
    if node.op is Op.INPUT:
        return f"input {node.name}"
    if node.op is Op.PARAM:
        return f"param {node.name} start={node.attr[2]!r}"
    if node.op is Op.CONST:
        return f"const {node.value!r}"
    if node.op is Op.BROADCAST:
        return f"broadcast {number[node.args[0]]}"
    axes = f"[{reduced_name(node.reduced)}]" if node.attr else ""
    return " ".join([f"{node.op}{axes}", ", ".join(number[a] for a in node.args)]).rstrip()


# Nine digits at most: Python refuses to read numbers of thousands of digits, and the limits need no more.
_HEAD = re.compile(r"graph eps=(\S+) inputs=(%[0-9]{1,9}(?:,%[0-9]{1,9})*)?$")
_REF = re.compile(r"%([0-9]{1,9})")
_OUTPUT = re.compile(r"([^=]*)=%([0-9]{1,9})")
_LINE = re.compile(r"%([0-9]{1,9}): (\{[bcgs,]*\}) (data|stat) = (\w+)(?:\[([^\]]*)\])?(?: (.*))?$")


def load(text: str) -> Graph:
    """The graph that a dump says; types are inferred again and compared with those written.

    Raises:
        ParseError: with the position of the line at fault.
    """
    if len(text) > MAX_TEXT:
        raise ParseError(f"the dump has {len(text)} characters and {MAX_TEXT} are allowed")
    builder, position = Builder(), 0
    head: re.Match[str] | None = None
    outputs: list[tuple[str, int]] = []
    for raw in text.split("\n"):
        line = raw.strip()
        try:
            if line and head is None:
                head = _HEAD.match(line)
                if head is None:
                    raise ParseError("expected 'graph eps=... inputs=%0,...' on the first line")
            elif line and outputs:
                raise ParseError("expected nothing after the return line")
            elif line.startswith("return "):
                for pair in line[7:].split(", "):
                    output = _OUTPUT.fullmatch(pair)
                    if output is None:
                        raise ParseError(f"expected 'name=%number' in the return line, found {pair[:40]!r}")
                    outputs.append((output[1], int(output[2])))
            elif line:
                _read_line(builder, line)
        except ParseError as e:
            raise ParseError(str(e).split("\n")[0], text, position) from None
        position += len(raw) + 1
    if head is None or not outputs:
        raise ParseError("the dump is cut short: expected a head, nodes and a return line")
    inputs = [int(r[1:]) for r in head[2].split(",")] if head[2] else []
    return builder.graph(head[1], inputs, outputs)


def _read_line(builder: Builder, line: str) -> None:
    m = _LINE.match(line)
    if m is None:
        raise ParseError("expected '%number: {axes} class = operation operands'")
    index, axes_text, cls, op_text, inside, rest = m.groups()
    if int(index) != len(builder.nodes):
        raise ParseError(f"expected %{len(builder.nodes)}: nodes are numbered in order")
    if op_text not in BY_NAME:
        raise ParseError(f"unknown operation {op_text[:40]!r}{nearest(op_text, BY_NAME)}")
    op, axes, rest = BY_NAME[op_text], parse_axes(axes_text), rest or ""
    if axes is None:
        raise ParseError(f"{axes_text} is not a set of axes")
    attr: list[object] = []
    refs: list[int] = []
    if op is Op.INPUT:
        attr = [rest, axes, cls]
    elif op is Op.PARAM:
        name, _, start = rest.partition(" start=")
        attr = [name, axes, start]
    elif op is Op.CONST:
        attr = [rest]
    else:
        if op in REDUCTION or op is Op.SIZE:
            attr = [parse_reduced(inside or "")]
        if op is Op.BROADCAST:
            attr = [axes, cls]
        if op not in LEAF:
            for ref in rest.split(", "):
                operand = _REF.fullmatch(ref)
                if operand is None:
                    raise ParseError(f"expected an operand '%number', found {ref[:40]!r}")
                refs.append(int(operand[1]))
    node = builder.add(op, refs, attr)
    if str(node.type) != f"{axes_text} {cls}":
        raise ParseError(f"the type is written {axes_text} {cls}, and follows as {node.type}")
