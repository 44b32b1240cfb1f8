"""A graph: named inputs, parameters and outputs over hash-consed nodes, and the three keys that name it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

from normforge.errors import GraphError
from normforge.ir.forms.grammar import WORDS, is_input_name, is_parameter_name
from normforge.ir.node import Node, data, from_rows, preorder, stat, to_rows, toposort
from normforge.ir.ops import CORE_ONLY, LEAF, MOMENT, SURFACE_ONLY, Op
from normforge.ir.types import FULL, INDEX_NAMES, INPUT_NAMES

EPS = 1e-5

# Filled by the packages that are built on this module, so that it imports none of them: the normal forms behind the
# three keys (normforge.passes), and the text forms, written and read (normforge.ir).
KEYS: dict[str, Callable[[Graph], str]] = {}
WRITERS: dict[str, Callable[[Graph], str]] = {}
READERS: dict[str, Callable[[str], Graph]] = {}


@dataclass(frozen=True)
class Graph:
    """A layer, or a derivative of one.

    Attributes:
        outputs: (name, node) pairs; a layer's are its results `y`, `y1`, `y2`, ...
        inputs: tensor inputs in order, whether used or not; a layer's are `x` and those that it declares.
        eps: the ε of sqrt, log, std and rms (surface operations only; core graphs carry it as constants).
    """

    outputs: tuple[tuple[str, Node], ...]
    inputs: tuple[Node, ...]
    eps: float = EPS

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes below the outputs, operands before users."""
        return tuple(toposort(n for _, n in self.outputs))

    @cached_property
    def params(self) -> tuple[Node, ...]:
        """The parameters that are used, in order of first appearance."""
        return tuple(n for n in preorder(n for _, n in self.outputs) if n.op is Op.PARAM)

    @property
    def output(self) -> Node:
        """The node of the first output."""
        return self.outputs[0][1]

    @cached_property
    def is_surface(self) -> bool:
        """True when a formula can say it: results of `x` and of inputs that are used, no core-only operation, finite
        constants, plain names."""
        if [name for name, _ in self.outputs] != [result_name(i) for i in range(len(self.outputs))]:
            return False
        if self.inputs[:1] != (data("x"),) or not all(map(_declarable, self.inputs[1:])):
            return False
        if not set(self.inputs[1:]) <= set(self.nodes):
            return False
        # A parameter that is named like a function hides it.
        words = {WORDS.get(n.op, n.op.value) for n in self.nodes if n.op not in LEAF}
        return not any(p.name in words for p in self.params) and all(map(_sayable, self.nodes))

    @property
    def is_plain(self) -> bool:
        """True for a layer that is given x alone and has one result: what a network without conditions can hold."""
        return len(self.inputs) == len(self.outputs) == 1

    @cached_property
    def results(self) -> tuple[tuple[str, Node], ...]:
        """The outputs that are like x; others are statistics, or gradients."""
        return tuple((name, node) for name, node in self.outputs if is_result(name))

    @cached_property
    def is_core(self) -> bool:
        """True when nothing is left for `legalise` to do."""
        return not any(n.op in SURFACE_ONLY for n in self.nodes)

    def input(self, name: str) -> Node:
        """The input of that name.

        Raises:
            GraphError: there is none.
        """
        for node in self.inputs:
            if node.name == name:
                return node
        raise GraphError(f"no input named {name!r}; there are {', '.join(n.name for n in self.inputs)}")

    @cached_property
    def structure(self) -> str:
        """Hex digest of exactly this graph: nodes, names, ε. Two graphs with the same structure print alike."""
        return self._digest(repr(self.eps))

    @property
    def structure_without_eps(self) -> str:
        """Hex digest of exactly this graph but for ε, for core graphs, whose constants hold it where it is used."""
        return self._digest("")

    def _digest(self, head: str) -> str:
        h = blake2b(head.encode(), digest_size=16)
        for node in self.inputs:
            h.update(node.digest)
        for name, node in self.outputs:
            h.update(name.encode() + b"=" + node.digest)
        return h.hexdigest()

    @cached_property
    def content_hash(self) -> str:
        """Hex digest of the exact lowered graph: the only key of compiled code."""
        return _key("content_hash", self)

    @cached_property
    def hash(self) -> str:
        """Hex identity of the training-mode function where everything is finite: the key of dedup and stores."""
        return _key("hash", self)

    @cached_property
    def family_hash(self) -> str:
        """Hex identity of the function, as `hash`, up to what trainable parameters absorb."""
        return _key("family_hash", self)

    def __reduce__(self) -> tuple[Any, ...]:
        # As rows, so that pickling a deep graph does not recurse.
        rows = to_rows([*self.inputs, *(n for _, n in self.outputs)])
        return _unpickle, (*rows, tuple(name for name, _ in self.outputs), self.eps)

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        return self

    def with_outputs(self, *outputs: tuple[str, Node]) -> Graph:
        """A graph of the same inputs and ε with other outputs."""
        return Graph(outputs, self.inputs, self.eps)

    def __str__(self) -> str:
        return WRITERS["text"](self)

    def dump(self) -> str:
        """Typed SSA text, one node a line; `Graph.from_dump` reads it back to the same graph."""
        return WRITERS["dump"](self)

    @staticmethod
    def from_dump(text: str) -> Graph:
        """The graph that a `dump` says.

        Raises:
            ParseError: a line that cannot be read, or a type that does not follow from the operands.
        """
        return READERS["dump"](text)

    def to_json(self) -> str:
        """JSON text; `Graph.from_json` reads it back to the same graph."""
        return WRITERS["json"](self)

    @staticmethod
    def from_json(text: str) -> Graph:
        """The graph that a `to_json` says.

        Raises:
            ParseError: not such a JSON, or too large.
        """
        return READERS["json"](text)


def result_name(i: int) -> str:
    """The name of a layer's i-th result: y, y1, y2, ..."""
    return f"y{i}" if i else "y"


def is_result(name: str) -> bool:
    """True for the names of results, which always have the shape of x."""
    return name[:1] == "y" and (name == "y" or name[1:].isdigit())


def _unpickle(rows: Any, roots: tuple[int, ...], names: tuple[str, ...], eps: float) -> Graph:
    nodes = from_rows(rows, roots)
    k = len(nodes) - len(names)
    return Graph(tuple(zip(names, nodes[k:], strict=True)), tuple(nodes[:k]), eps)


def _key(name: str, graph: Graph) -> str:
    if name not in KEYS:
        raise GraphError(f"{name} is taken from a normal form: import normforge.passes first")
    return KEYS[name](graph)


def _declarable(node: Node) -> bool:
    sayable = is_input_name(node.name) and node.axes in INPUT_NAMES
    return sayable and node is declared_input(node.name, node.axes)


def declared_input(name: str, axes: int) -> Node:
    """A further input of a layer: in the dtype of x where it is as large, else a statistic."""
    return data(name) if axes == FULL else stat(name, axes)


def _sayable(node: Node) -> bool:
    if node.op is Op.PARAM:
        return is_parameter_name(node.name)
    if node.op is Op.CONST:
        return math.isfinite(node.value)
    return node.op not in CORE_ONLY and not (node.op in MOMENT and node.reduced not in INDEX_NAMES)
