"""The search space of EvoNorm (arXiv 2004.02967, section 3): graphs of primitives over four initial nodes.

A genotype is a tuple of genes, one for each drawn node; a gene is a primitive and the numbers of the nodes it
reads. Nodes 0 to 3 are x, the constant 0, v0 and v1; gene k is node 4 + k; the last node, scaled by gamma and
shifted by beta, is the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from normforge.errors import GraphError, OptionError, ParseError, nearest
from normforge.ir.forms.formula import parse_formula
from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, data, make, param, substitute, toposort
from normforge.ir.ops import MOMENT, Op
from normforge.ir.types import INDEX_SETS, reduced_name
from normforge.search.config import OPERATIONS, Space

INITIAL = 4
_PLACEHOLDERS = ("a", "b")


class Gene(NamedTuple):
    """A drawn node: a primitive's name and the numbers of its operands, all below its own."""

    primitive: str
    inputs: tuple[int, ...]


Genotype = tuple[Gene, ...]


class Primitive(NamedTuple):
    """An operation that a gene may compute, of `arity` operands."""

    arity: int
    apply: Callable[[tuple[Node, ...]], Node]


class SearchSpace:
    """The layers that can be drawn.

    Args:
        config: operations, index sets, number of nodes, custom primitives.

    Attributes:
        nodes: drawn nodes of a layer.
        primitives: by name; their order is part of every run's random streams.

    Raises:
        OptionError: an operation, an index set or a custom primitive that there is not.
    """

    def __init__(self, config: Space) -> None:
        self.nodes = config.nodes
        self.primitives: dict[str, Primitive] = {}
        operations = [_operation(name) for name in config.operations]
        for op in operations:
            if op not in MOMENT:
                self.primitives[op.value] = Primitive(op.traits.arity, _maker(op, ()))
        for op in operations:
            for index in config.index_sets if op in MOMENT else ():
                axes = _axes(index)
                if config.batch or "b" not in reduced_name(axes).split(","):
                    self.primitives[f"{op}[{index}]"] = Primitive(1, _maker(op, (axes,)))
        for name, formula in config.custom.items():
            self.primitives[name] = _custom(name, formula, taken=self.primitives)
        if not self.primitives:
            raise OptionError("the search space has no primitive: name operations, and index sets for moments")
        self._names = tuple(self.primitives)

    def random(self, rng: np.random.Generator) -> Genotype:
        """A random layer: for each node a primitive, then its inputs among the existing nodes, all uniform."""
        return tuple(self._gene(rng, INITIAL + k) for k in range(self.nodes))

    def mutate(self, rng: np.random.Generator, parent: Genotype) -> Genotype:
        """The parent with one gene drawn anew: an intermediate node, a new operation, new inputs, all uniform.

        A draw that gives the same gene again is repeated, so exactly one gene differs.
        """
        at = int(rng.integers(len(parent)))
        gene = parent[at]
        while gene == parent[at]:
            gene = self._gene(rng, INITIAL + at)
        return (*parent[:at], gene, *parent[at + 1 :])

    def crossover(self, rng: np.random.Generator, one: Genotype, other: Genotype) -> Genotype:
        """The first genes of one layer and the last of another, from one cut on; operands keep their numbers."""
        at = int(rng.integers(1, max(2, len(one))))
        return (*one[:at], *other[at:])

    def _gene(self, rng: np.random.Generator, below: int) -> Gene:
        name = self._names[rng.integers(len(self._names))]
        return Gene(name, tuple(int(i) for i in rng.integers(below, size=self.primitives[name].arity)))

    def to_graph(self, genotype: Genotype) -> Graph:
        """The layer of a genotype: last node · gamma + beta.

        Raises:
            GraphError: a gene that names no primitive, or reads a node that is not before it.
        """
        nodes = list(_initial())
        for gene in genotype:
            primitive = self.primitives.get(gene.primitive)
            inside = all(0 <= i < len(nodes) for i in gene.inputs)
            if primitive is None or len(gene.inputs) != primitive.arity or not inside:
                raise GraphError(f"{gene.primitive}{gene.inputs} is not a gene of node {len(nodes)}")
            nodes.append(primitive.apply(tuple(nodes[i] for i in gene.inputs)))
        scaled = make(Op.MUL, (nodes[-1], param("gamma", 1.0)))
        return Graph((("y", make(Op.ADD, (scaled, param("beta", 0.0)))),), (data("x"),))

    def encode(self, graph: Graph, rng: np.random.Generator) -> Genotype:
        """A genotype of a layer; genes that it does not need come first, drawn at random, for mutations to use.

        a - b is written a + (-b), since the paper's primitives have no subtraction.

        Raises:
            GraphError: not of the form ... * gamma + beta, or something that no primitive computes, too long, or given
            more than x.
        """
        if not graph.is_plain:
            raise GraphError("it is given more than x, or has several results")
        number = {node: k for k, node in enumerate(_initial())}
        body = _body(graph)
        needed: list[tuple[str, tuple[Node, ...], Node]] = []
        for node in toposort([body]):
            if node not in number:
                needed += self._steps(node)
        if not 0 < len(needed) <= self.nodes:
            raise GraphError(f"the layer takes {len(needed)} nodes and the space has {self.nodes}")
        genes: list[Gene] = []
        for name, operands, node in needed:
            number[node] = INITIAL + len(genes)
            genes.append(Gene(name, tuple(number[operand] for operand in operands)))
        return self.padded(rng, genes)

    def padded(self, rng: np.random.Generator, genes: Sequence[Gene]) -> Genotype:
        """A layer of at most `nodes` genes with random ones before it that it does not read, up to `nodes`."""
        free = self.nodes - len(genes)
        moved = (Gene(name, tuple(i + free if i >= INITIAL else i for i in inputs)) for name, inputs in genes)
        return (*(self._gene(rng, INITIAL + k) for k in range(free)), *moved)

    def _steps(self, node: Node) -> list[tuple[str, tuple[Node, ...], Node]]:
        if node.op is Op.SUB:
            a, b = node.args
            minus = make(Op.NEG, (b,))
            if {"neg", "add"} <= self.primitives.keys():
                return [("neg", (b,), minus), ("add", (a, minus), node)]
        for name, primitive in self.primitives.items():
            if primitive.arity == len(node.args) and primitive.apply(node.args) is node:
                return [(name, node.args, node)]
        raise GraphError(f"no primitive of the search space computes {node.op.value} as the layer does")


def _operation(name: str) -> Op:
    known = {op.value: op for op in Op}
    surface = [*OPERATIONS, "sub", "min", "erf"]
    if name not in surface:
        raise OptionError(f"space.operations: there is no operation {name!r}{nearest(name, surface)}")
    return known[name]


def _axes(index: str) -> int:
    if index not in INDEX_SETS:
        hint = "; semicolons separate them" if index in "bwhc" else nearest(index, INDEX_SETS)
        raise OptionError(f"space.index_sets: there is no index set {index!r}{hint}")
    return INDEX_SETS[index]


def _maker(op: Op, attr: tuple[int, ...]) -> Callable[[tuple[Node, ...]], Node]:
    return lambda operands: make(op, operands, attr)


def _custom(name: str, formula: str, taken: Iterable[str]) -> Primitive:
    if not name.isidentifier() or name in taken:
        raise OptionError(f"space.custom: {name!r} cannot name a primitive: use letters, and no name twice")
    declared = "; ".join(f"param {p} = 0" for p in _PLACEHOLDERS)
    try:
        graph = parse_formula(f"{declared}; {formula}")
    except ParseError as e:
        message = str(e).splitlines()[0]
        raise OptionError(f"space.custom.{name}: {message}; write a formula of a, or of a and b") from None
    holes = {p.name: p for p in graph.params}
    used = [holes[p] for p in _PLACEHOLDERS if p in holes]
    if "a" not in holes or set(holes) - set(_PLACEHOLDERS):
        raise OptionError(f"space.custom.{name} = {formula!r} must be a formula of a, or of a and b, alone")

    def apply(operands: tuple[Node, ...]) -> Node:
        return substitute([graph.output], dict(zip(used, operands, strict=True)))[graph.output]

    return Primitive(len(used), apply)


def _initial() -> tuple[Node, ...]:
    return data("x"), const(0.0), param("v0", 0.0), param("v1", 1.0)


def _body(graph: Graph) -> Node:
    """What is scaled and shifted."""
    gamma, beta = param("gamma", 1.0), param("beta", 0.0)
    scaled = _other(graph.output, Op.ADD, beta)
    body = scaled and _other(scaled, Op.MUL, gamma)
    if body is None or graph.eps != Graph.eps:
        raise GraphError("not a layer of the search space, which are ... * gamma + beta with the usual ε")
    return body


def _other(node: Node, op: Op, known: Node) -> Node | None:
    if node.op is not op or known not in node.args:
        return None
    return node.args[0] if node.args[1] is known else node.args[1]


def to_json(genotype: Genotype) -> list[list[Any]]:
    """A genotype as JSON: [[primitive, input, ...], ...]."""
    return [[gene.primitive, *gene.inputs] for gene in genotype]


def from_json(genes: Sequence[Sequence[Any]]) -> Genotype:
    """The inverse of `to_json`."""
    return tuple(Gene(str(name), tuple(int(i) for i in inputs)) for name, *inputs in genes)


PAPER = SearchSpace(Space())
"""The paper's space, with ten drawn nodes."""
