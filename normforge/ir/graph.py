"""A graph: named inputs, parameters and outputs over hash-consed nodes, and the three keys that name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from normforge.errors import GraphError
from normforge.ir.node import Node, preorder, toposort
from normforge.ir.ops import CORE_ONLY, MOMENT, SURFACE_ONLY, Op
from normforge.ir.types import INDEX_NAMES

EPS = 1e-5

# Filled by normforge.passes, which the IR may not import: the normal forms behind the three keys.
KEYS: dict[str, Callable[[Graph], str]] = {}


@dataclass(frozen=True)
class Graph:
    """A layer, or a derivative of one.

    Attributes:
        outputs: (name, node) pairs; a layer has one, `y`.
        inputs: tensor inputs in order, whether used or not; a layer has one, `x`.
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
        """True when a formula can say it: one output, no core-only operation."""
        if len(self.outputs) != 1 or len(self.inputs) != 1:
            return False
        return not any(n.op in CORE_ONLY or (n.op in MOMENT and n.reduced not in INDEX_NAMES) for n in self.nodes)

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
        """The same digest without ε, for core graphs, whose constants hold it where it is used."""
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
        return KEYS["content_hash"](self)

    @cached_property
    def hash(self) -> str:
        """Hex identity of the training-mode function where everything is finite: the key of dedup and stores."""
        return KEYS["hash"](self)

    @cached_property
    def family_hash(self) -> str:
        """Like `hash`, up to what trainable parameters absorb."""
        return KEYS["family_hash"](self)

    def with_outputs(self, *outputs: tuple[str, Node]) -> Graph:
        """The same inputs and ε with other outputs."""
        return Graph(outputs, self.inputs, self.eps)

    def __str__(self) -> str:
        from normforge.ir import text

        return text.format_formula(self) if self.is_surface else self.dump()

    def dump(self) -> str:
        """Typed SSA text, one node a line; `Graph.from_dump` reads it back to the same graph."""
        from normforge.ir import dump

        return dump.dump(self)

    @staticmethod
    def from_dump(text: str) -> Graph:
        """The graph that a `dump` says.

        Raises:
            ParseError: a line that cannot be read, or a type that does not follow from the operands.
        """
        from normforge.ir import dump

        return dump.load(text)

    def to_json(self) -> str:
        """JSON text; `Graph.from_json` reads it back to the same graph."""
        from normforge.ir import json_form

        return json_form.to_json(self)

    @staticmethod
    def from_json(text: str) -> Graph:
        """The graph that a `to_json` says.

        Raises:
            ParseError: not such a JSON, or too large.
        """
        from normforge.ir import json_form

        return json_form.from_json(text)
