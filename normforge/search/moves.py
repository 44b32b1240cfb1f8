"""Moves on the active graph of a genotype: the genes that its output reads.

Of a random layer's ten genes two or three are active, so most redraws of a gene change nothing. Here a move changes the
graph itself, and never to one that does not read x. The genes that the output does not read are the room to insert
into: they are drawn anew and come first, as in `SearchSpace.encode`. All draws are uniform and come from the generator
that is passed.

Subtree crossover, subtree mutation and single-node moves are those of genetic programming (Koza, "Genetic
Programming", 1992, chapter 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from normforge.ir.types import FULL
from normforge.search.space import INITIAL, Gene, Genotype, SearchSpace

LEAST, MOST = 2, 6
"""Insertions of a grown layer."""

_T = TypeVar("_T")
_OUTPUT = "output"
_X = 0  # its number
_ATTEMPTS = 50
_GROWN = (2, 5)  # insertions of the move that grows, from, and below
_Body = list[Gene]  # the active genes, numbered without gaps, and one more that reads the output
_Move = Callable[[np.random.Generator, SearchSpace, _Body], _Body | None]


def active(genotype: Genotype) -> Genotype:
    """The genes that the output reads, in their order, numbered without gaps."""
    return tuple(_body(genotype)[:-1])


def grown(rng: np.random.Generator, space: SearchSpace) -> Genotype:
    """A random layer: the node x, and 2 to 6 insertions, as far as the space has nodes, none of which makes of it one
    number for a sample or a channel."""
    body = [Gene(_OUTPUT, (_X,))]
    for _ in range(min(int(rng.integers(LEAST, MOST + 1)), space.nodes)):
        made = [_insert(rng, space, body)]
        while not _varies(space, made[-1]) and len(made) < _ATTEMPTS:  # a space of moments alone has nothing else
            made.append(_insert(rng, space, body))
        body = made[-1]
    layer = _layer(rng, space, body)
    assert layer is not None
    return layer


def move(rng: np.random.Generator, space: SearchSpace, parent: Genotype) -> Genotype:
    """The parent after one move of a random kind, of those that fit; in a space where hardly any does, one gene drawn
    anew. Of as many nodes as the parent."""
    for _ in range(_ATTEMPTS):
        if child := apply(_one_of(rng, list(MOVES)), rng, space, parent):
            return child
    return space.mutate(rng, parent)


def apply(kind: str, rng: np.random.Generator, space: SearchSpace, parent: Genotype) -> Genotype | None:
    """The parent after a move of this kind, a key of `MOVES`; None where it does not fit: an insertion where all nodes
    are read, or what would no longer read x."""
    made = MOVES[kind](rng, space, _body(parent))
    return _layer(rng, space, made) if made else None


def graft(rng: np.random.Generator, space: SearchSpace, receiver: Genotype, donor: Genotype) -> Genotype | None:
    """The receiver with a subtree of the donor in place of an operand of one of its nodes, or of its output.

    Returns:
        A layer of as many nodes, never the donor itself; None where no subtree fits.
    """
    onto, scion = _body(receiver), _body(donor)
    pairs = [(edge, root) for edge in _edges(onto) for root in range(len(scion) - 1)]
    pairs.remove(((len(onto) - 1, 0), len(scion) - 2))  # all of the donor for all of the receiver
    for k in rng.permutation(len(pairs)):
        (at, place), root = pairs[k]
        *subtree, _ = _compact([*scion[: root + 1], Gene(_OUTPUT, (INITIAL + root,))])
        moved = [_shifted(gene, by=at) for gene in subtree]
        body = _put(onto, at, moved)
        body[at + len(moved)] = _with_operand(body[at + len(moved)], place, INITIAL + at + len(moved) - 1)
        if child := _layer(rng, space, _compact(body)):
            return child
    return None


def _insert(rng: np.random.Generator, space: SearchSpace, body: _Body) -> _Body:
    """A new node on an edge; its further operands are any nodes before it."""
    at, place = _one_of(rng, _edges(body))
    made = _put(body, at, [_function_of(rng, space, body[at].inputs[place], at)])
    made[at + 1] = _with_operand(made[at + 1], place, INITIAL + at)
    return made


def _function_of(rng: np.random.Generator, space: SearchSpace, operand: int, at: int) -> Gene:
    """A primitive of the operand, as any of its operands; the others are any nodes before gene `at`."""
    primitive = _one_of(rng, list(space.primitives))
    arity = space.primitives[primitive].arity
    new = Gene(primitive, tuple(int(i) for i in rng.integers(INITIAL + at, size=arity)))
    return _with_operand(new, int(rng.integers(arity)), operand)


def _delete(rng: np.random.Generator, space: SearchSpace, body: _Body) -> _Body:
    """A node leaves, and one of its operands takes its place."""
    at = int(rng.integers(len(body) - 1))
    operand = _one_of(rng, body[at].inputs)
    return _compact([Gene(name, tuple(operand if i == INITIAL + at else i for i in inputs)) for name, inputs in body])


def _change(rng: np.random.Generator, space: SearchSpace, body: _Body) -> _Body | None:
    """Another primitive of as many operands; of a moment, in half of the draws, its index set alone."""
    at = int(rng.integers(len(body) - 1))
    old, inputs = body[at]
    alike = [name for name, p in space.primitives.items() if p.arity == len(inputs) and name != old]
    same_moment = [name for name in alike if "[" in old and name.startswith(old.partition("[")[0] + "[")]
    if same_moment and rng.random() < 0.5:
        alike = same_moment
    return [*body[:at], Gene(_one_of(rng, alike), inputs), *body[at + 1 :]] if alike else None


def _swap(rng: np.random.Generator, space: SearchSpace, body: _Body) -> _Body:
    """A node reads another earlier one in place of one of its operands."""
    at, place = _one_of(rng, _edges(body[:-1]))
    others = [i for i in range(INITIAL + at) if i != body[at].inputs[place]]
    return _compact([*body[:at], _with_operand(body[at], place, _one_of(rng, others)), *body[at + 1 :]])


def _grow(rng: np.random.Generator, space: SearchSpace, body: _Body) -> _Body:
    """A small layer, of two to four insertions, on an edge: a function of what the edge brings takes its place.

    One insertion at a time would have to pass what is worse, such as max(x, v0) on the way to max(x, tanh(x)).
    """
    at, place = _one_of(rng, _edges(body))
    operand = body[at].inputs[place]
    new = [Gene(_OUTPUT, (_X,))]
    for _ in range(int(rng.integers(*_GROWN))):
        new = _insert(rng, space, new)
    spliced = [
        Gene(name, tuple(operand if i == _X else i + at if i >= INITIAL else i for i in inputs))
        for name, inputs in new[:-1]
    ]
    made = _put(body, at, spliced)
    made[at + len(spliced)] = _with_operand(made[at + len(spliced)], place, INITIAL + at + len(spliced) - 1)
    return made


def _wrap(rng: np.random.Generator, space: SearchSpace, body: _Body) -> _Body:
    """A function of x or of a node takes its place for all that read it: an insertion on all those edges at once.

    One edge at a time, the way from x / rms(x) to tanh(x) / rms(tanh(x)) leads over what no longer normalizes.
    """
    at = int(rng.integers(len(body)))
    wrapped = INITIAL + at - 1 if at else _X
    made = _put(body, at, [_function_of(rng, space, wrapped, at)])
    readers = [
        Gene(name, tuple(INITIAL + at if i == wrapped else i for i in inputs)) for name, inputs in made[at + 1 :]
    ]
    return _compact([*made[: at + 1], *readers])


MOVES: dict[str, _Move] = {
    "insert": _insert,
    "delete": _delete,
    "change": _change,
    "swap": _swap,
    "grow": _grow,
    "wrap": _wrap,
}
"""By kind; their order is part of every run's random streams."""


def _body(genotype: Genotype) -> _Body:
    return _compact([*genotype, Gene(_OUTPUT, (INITIAL + len(genotype) - 1,))])


def _compact(genes: Sequence[Gene]) -> _Body:
    """Without the genes that the last does not read."""
    needed = {len(genes) - 1}
    for k in reversed(range(len(genes))):
        if k in needed:
            needed |= {i - INITIAL for i in genes[k].inputs if i >= INITIAL}
    number = {i: i for i in range(INITIAL)}
    kept: _Body = []
    for k in sorted(needed):
        number[INITIAL + k] = INITIAL + len(kept)
        kept.append(Gene(genes[k].primitive, tuple(number[i] for i in genes[k].inputs)))
    return kept


def _layer(rng: np.random.Generator, space: SearchSpace, body: _Body) -> Genotype | None:
    """A body as a genotype; None where it is empty, has more nodes than the space, or does not read x."""
    genes = body[:-1]
    fits = 0 < len(genes) <= space.nodes and any(_X in gene.inputs for gene in genes)
    return space.padded(rng, genes) if fits else None


def _varies(space: SearchSpace, body: _Body) -> bool:
    """Does a layer vary over samples and positions, by its types? Others are degenerate, most of all those in which a
    moment is on the only way from x to the output."""
    return space.to_graph(tuple(body[:-1])).output.axes == FULL


def _put(body: _Body, at: int, new: Sequence[Gene]) -> _Body:
    """With new genes before gene `at`; their operands have the numbers that they have afterwards."""
    return [*body[:at], *new, *(_shifted(gene, by=len(new), start=INITIAL + at) for gene in body[at:])]


def _shifted(gene: Gene, by: int, start: int = INITIAL) -> Gene:
    return Gene(gene.primitive, tuple(i + by if i >= start else i for i in gene.inputs))


def _with_operand(gene: Gene, place: int, operand: int) -> Gene:
    return Gene(gene.primitive, (*gene.inputs[:place], operand, *gene.inputs[place + 1 :]))


def _edges(body: _Body) -> list[tuple[int, int]]:
    """(gene, place of the operand), of all operands."""
    return [(at, place) for at, gene in enumerate(body) for place in range(len(gene.inputs))]


def _one_of(rng: np.random.Generator, things: Sequence[_T]) -> _T:
    return things[int(rng.integers(len(things)))]
