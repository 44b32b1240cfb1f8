"""The search space of EvoNorm (arXiv 2004.02967, section 3): graphs of primitives over four initial nodes.

A genotype is a tuple of genes, one for each drawn node; a gene is a primitive and the numbers of the nodes it
reads. Nodes 0 to 3 are x, the constant 0, v0 and v1; gene k is node 4 + k; the last node, scaled by gamma and
shifted by beta, is the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from normforge.errors import GraphError
from normforge.ir.graph import Graph
from normforge.ir.node import Node, const, data, make, param
from normforge.ir.ops import ARITY, Op
from normforge.ir.types import INDEX_SETS

_BINARY = (Op.ADD, Op.MUL, Op.DIV, Op.MAX)
_UNARY = (Op.NEG, Op.SIGMOID, Op.TANH, Op.EXP, Op.LOG, Op.ABS, Op.SQUARE, Op.SQRT)
_MOMENTS = (Op.MEAN, Op.RMS, Op.STD)
_INDEX_SETS = ("b,w,h", "w,h,c", "w,h", "w,h,c/g")

# name -> operation and its attributes; the order is part of every run's random streams.
PRIMITIVES: dict[str, tuple[Op, tuple[int, ...]]] = {
    **{op.value: (op, ()) for op in (*_BINARY, *_UNARY)},
    **{f"{op}[{index}]": (op, (INDEX_SETS[index],)) for op in _MOMENTS for index in _INDEX_SETS},
}
_NAMES = tuple(PRIMITIVES)
INITIAL = 4


class Gene(NamedTuple):
    """One drawn node: a primitive's name and the numbers of its operands, all below its own."""

    primitive: str
    inputs: tuple[int, ...]


Genotype = tuple[Gene, ...]


def random_genotype(rng: np.random.Generator, nodes: int) -> Genotype:
    """A random layer: for each node a primitive, then its inputs among the existing nodes, all uniform."""
    return tuple(_random_gene(rng, INITIAL + k) for k in range(nodes))


def mutate(rng: np.random.Generator, parent: Genotype) -> Genotype:
    """The parent with one gene drawn anew: an intermediate node, a new operation, new inputs, all uniform.

    A draw that gives the same gene again is repeated, so exactly one gene differs.
    """
    at = int(rng.integers(len(parent)))
    gene = parent[at]
    while gene == parent[at]:
        gene = _random_gene(rng, INITIAL + at)
    return (*parent[:at], gene, *parent[at + 1 :])


def _random_gene(rng: np.random.Generator, below: int) -> Gene:
    name = _NAMES[rng.integers(len(_NAMES))]
    return Gene(name, tuple(int(i) for i in rng.integers(below, size=ARITY[PRIMITIVES[name][0]])))


def to_graph(genotype: Genotype) -> Graph:
    """The layer of a genotype: last node · gamma + beta.

    Raises:
        GraphError: a gene that names no primitive, or reads a node that is not before it.
    """
    x = data("x")
    nodes: list[Node] = [x, const(0.0), param("v0", 0.0), param("v1", 1.0)]
    for gene in genotype:
        op, attr = PRIMITIVES.get(gene.primitive, (None, ()))
        if op is None or len(gene.inputs) != ARITY[op] or not all(0 <= i < len(nodes) for i in gene.inputs):
            raise GraphError(f"{gene.primitive}{gene.inputs} is not a gene of node {len(nodes)}")
        nodes.append(make(op, tuple(nodes[i] for i in gene.inputs), attr))
    scaled = make(Op.MUL, (nodes[-1], param("gamma", 1.0)))
    return Graph((("y", make(Op.ADD, (scaled, param("beta", 0.0)))),), (x,))


def to_json(genotype: Genotype) -> list[list[Any]]:
    """A genotype as JSON: [[primitive, input, ...], ...]."""
    return [[gene.primitive, *gene.inputs] for gene in genotype]


def from_json(genes: Sequence[Sequence[Any]]) -> Genotype:
    """The inverse of `to_json`."""
    return tuple(Gene(str(name), tuple(int(i) for i in inputs)) for name, *inputs in genes)
