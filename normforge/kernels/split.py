"""A layer split where moments over the batch are exchanged between processes, so that what lies between runs compiled.

A level of moments takes one exchange. What they are moments of, and at the end the results, are layers of their own
that are given the moments of the levels before as further inputs; autograd goes through all of it, to any order that
layers have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from normforge.codegen.eager import Gather, arithmetic_dtype, averaged, by_level, exchanged, rooted
from normforge.ir.graph import Graph
from normforge.ir.node import Node, stat, substitute
from normforge.ir.types import FULL
from normforge.kernels.prepare import statistic_shape
from normforge.passes.running import running_statistics
from normforge.passes.single import moment_axes, single_axes


@dataclass(frozen=True)
class Piece:
    """A layer between two exchanges.

    Attributes:
        graph: with moments of earlier levels among its inputs.
        inputs: the places of its inputs among x and the further inputs of the whole layer, then all moments so far.
        params: of its parameters among those of the whole layer.
    """

    graph: Graph
    inputs: tuple[int, ...]
    params: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """A layer in pieces.

    Attributes:
        levels: of each its moments, what they are moments of (x itself by None), in the order of the exchange.
        results: of the layer.
    """

    levels: tuple[tuple[tuple[Node, ...], tuple[Piece | None, ...]], ...]
    results: Piece


@lru_cache(maxsize=1024)
def split(graph: Graph) -> Split | None:
    """The pieces of a surface graph that has moments over the batch; None where one is of a value smaller than x."""
    if any(r.node.args[0].axes != FULL for r in running_statistics(graph)):
        return None
    x = graph.inputs[0]
    known: dict[Node, Node] = {}
    levels = []
    for moments in by_level(graph)[1].values():
        arguments = tuple(None if m.args[0] is x else _piece(graph, known, (m.args[0],)) for m in moments)
        levels.append((tuple(moments), arguments))
        known |= {m: stat(f"moment_{len(known) + i}", m.axes) for i, m in enumerate(moments)}
    return Split(tuple(levels), _piece(graph, known, tuple(n for _, n in graph.outputs)))


def _piece(graph: Graph, known: dict[Node, Node], outputs: Sequence[Node]) -> Piece:
    replaced = substitute(outputs, known)
    named = tuple((f"y{i}" if i else "y", replaced[node]) for i, node in enumerate(outputs))
    whole = (*graph.inputs, *known.values())
    below = {*Graph(named, whole, graph.eps).nodes}
    used = [i for i, node in enumerate(whole) if i == 0 or node in below]
    made = Graph(named, tuple(whole[i] for i in used), graph.eps)
    places = {node: i for i, node in enumerate(graph.params)}
    return Piece(made, tuple(used), tuple(places[p] for p in made.params))


def is_exact(graph: Graph, dtype: torch.dtype) -> bool:
    """Can a layer be split, and are pieces as exact as the whole? In 16 bits what is between them would be rounded."""
    made = split(graph)
    if made is None:
        return False
    return dtype == arithmetic_dtype(dtype) or all(a is None for _, arguments in made.levels for a in arguments)


# A piece, run on its operands, given the axes of moments over one element.
Run = Callable[[Graph, int, list[Tensor]], Sequence[Tensor]]


def run_split(
    graph: Graph, inputs: Sequence[Tensor], params: Sequence[Tensor], groups: int, run: Run, gather: Gather
) -> tuple[list[Tensor], list[Tensor]]:
    """Evaluate a layer in training.

    Args:
        graph: a surface graph.
        inputs: x (N, C, *spatial) and further inputs.
        params: in the order of the graph.
        groups: divides C.
        run: runs a piece.
        gather: exchanges a vector with the other processes.

    Returns:
        As `run_eager`: the results, and what running statistics average.
    """
    x = inputs[0]
    n, c = x.shape[:2]
    extents = (n, groups, c // groups, x[0, 0].numel() if n else 0)
    form = (n, groups, c // groups, -1 if x.numel() else 0)
    wide = arithmetic_dtype(x.dtype)
    found: list[Tensor] = [*inputs]
    statistics: dict[Node, Tensor] = {}

    def evaluate(piece: Piece) -> Sequence[Tensor]:
        single = single_axes(moment_axes(piece.graph), extents)
        return run(piece.graph, single, [*(found[i] for i in piece.inputs), *(params[i] for i in piece.params)])

    running = {r.node: r for r in running_statistics(graph)}
    made = split(graph)
    assert made is not None
    for moments, arguments in made.levels:
        values = [x if piece is None else evaluate(piece)[0] for piece in arguments]
        values = [v.to(wide).reshape(form) for v in values]
        for node, (statistic, count) in exchanged(moments, values, extents, gather).items():
            found.append(rooted(node, statistic, graph.eps).reshape(statistic_shape(node.axes, x, groups)))
            statistics[node] = averaged(running[node], statistic, count)
    return list(evaluate(made.results)), [statistics[node] for node in running]
