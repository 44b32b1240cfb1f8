"""The JSON form: nodes as [operation, operands, attributes] in order. Round-trips every graph."""

from __future__ import annotations

import json

from normforge.errors import ParseError, nearest
from normforge.ir.forms.read import Builder
from normforge.ir.graph import Graph
from normforge.ir.limits import MAX_TEXT
from normforge.ir.ops import BY_NAME

VERSION = 1
_KEYS = {"normforge", "eps", "nodes", "inputs", "outputs"}


def to_json(graph: Graph) -> str:
    """JSON text of a graph. Floats are written with `repr`, non-finite constants as text."""
    used = set(graph.nodes)
    nodes = [*(n for n in graph.inputs if n not in used), *graph.nodes]
    number = {node: i for i, node in enumerate(nodes)}
    rows = []
    for node in nodes:
        attr = [repr(a) if isinstance(a, float) else a for a in node.attr]
        rows.append([node.op.value, [number[a] for a in node.args], attr])
    return json.dumps(
        {
            "normforge": VERSION,
            "eps": graph.eps,
            "inputs": [number[n] for n in graph.inputs],
            "outputs": [[name, number[node]] for name, node in graph.outputs],
            "nodes": rows,
        }
    )


def from_json(text: str) -> Graph:
    """The graph that a JSON text says.

    Raises:
        ParseError: not JSON, not of this form, or over a limit.
    """
    if len(text) > MAX_TEXT:
        raise ParseError(f"the JSON has {len(text)} characters and {MAX_TEXT} are allowed")
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as e:
        raise ParseError(f"not JSON: {e.msg}", text, e.pos) from None
    except (RecursionError, ValueError):  # a JSON text of a graph nests three deep
        raise ParseError("not JSON that can be read: nested too deep, or a number too long") from None
    if not isinstance(tree, dict) or tree.get("normforge") != VERSION:
        raise ParseError(f'expected an object with "normforge": {VERSION}')
    for key in sorted(tree.keys() ^ _KEYS):
        if key in tree:
            raise ParseError(f"unknown key {key[:40]!r}{nearest(key[:40], _KEYS)}")
        raise ParseError(f"the key {key!r} is missing")
    builder = Builder()
    for i, row in enumerate(_rows(tree["nodes"], "nodes", 3)):
        op, args, attr = row
        if not isinstance(op, str) or op not in BY_NAME:
            raise ParseError(f"node {i}: unknown operation {str(op)[:40]!r}{nearest(str(op)[:40], BY_NAME)}")
        if not isinstance(args, list) or not isinstance(attr, list):
            raise ParseError(f"node {i}: operands and attributes are lists")
        try:
            builder.add(BY_NAME[op], args, attr)
        except ParseError as e:
            raise ParseError(f"node {i}: {e}") from None
    outputs = [(row[0], row[1]) for row in _rows(tree["outputs"], "outputs", 2)]
    if not isinstance(tree["inputs"], list) or not outputs:
        raise ParseError("inputs is a list of node numbers, outputs a list with at least one [name, node]")
    return builder.graph(tree["eps"], tree["inputs"], outputs)


def _rows(value: object, what: str, width: int) -> list[list[object]]:
    if not isinstance(value, list) or not all(isinstance(r, list) and len(r) == width for r in value):
        raise ParseError(f"{what} is a list of lists of {width}")
    return value
