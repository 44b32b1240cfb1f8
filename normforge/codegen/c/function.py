"""A C function of a kernel while it is written: it notes what it uses, and declares no more than that."""

from __future__ import annotations

from collections.abc import Mapping

from normforge.codegen.c.names import SMALL_CODE, VECTOR_CODE, CStorage, literal
from normforge.codegen.index import Index, chunk, element, extents
from normforge.codegen.stage import Stage
from normforge.ir.node import Node
from normforge.ir.ops import Op

_CHUNK = chunk()


class Function(Stage):
    """One function of a kernel's file.

    Attributes:
        storage: where the values of the plan live.
        name: of the function.
        signature: `name(parameters)`.
    """

    def __init__(self, storage: CStorage, name: str, parameters: str) -> None:
        super().__init__(depth=1)
        self.storage = storage
        self.name = name
        self.signature = f"{name}({parameters})"

    def text(self, linkage: str, declarations: Mapping[str, str]) -> str:
        """The definition. Of the `declarations` of locals, by name, those that the body uses: a hundred unused
        pointers cost the compiler as much as the loops."""
        used = self.arrays | self.sizes
        opening = "\n  ".join(text for name, text in declarations.items() if name in used)
        return f"{linkage} void {self.signature} {{\n  {opening}\n{self}}}\n"

    # -- where values lie

    def item(self, array: str, index: Index) -> str:
        """An element of an array."""
        return f"{self.array(array)}[{self.at(index).c}]"

    def small(self, node: Node) -> str:
        """A stored small value at n, c (or g), s."""
        return self.item(self.storage.array(node), element(node.axes))

    def partial(self, node: Node, kind: str = "p", index: Index = _CHUNK) -> str:
        """A partial of a row sum: of chunk q of channel c, or at another index."""
        return self.item(self.storage.partial(node, kind), index)

    def leaf(self, node: Node) -> str | None:
        """The expression of a constant or a size; None for anything else."""
        if node.op is Op.CONST:
            return literal(node.value)
        if node.op is Op.SIZE:
            return f"(T)({self.product(extents(node.reduced))})"
        return None

    def wide(self, node: Node) -> str:
        """A stored small value, a constant or a size, in double."""
        return f"(double){self.leaf(node) or self.small(node)}"

    # -- operations

    def vector(self, op: Op, *arguments: str) -> str:
        """An operation on vectors."""
        return self._operation(VECTOR_CODE[op], f"v_{op}", arguments)

    def double(self, op: Op, *arguments: str) -> str:
        """An operation on values in double."""
        return self._operation(SMALL_CODE[op], f"f_{op}", arguments)

    def _operation(self, code: str, function: str, arguments: tuple[str, ...]) -> str:
        """What is neither arithmetic nor of the C library calls a function of the prelude, which is noted."""
        if code.startswith(function):
            self.function(function)
        return code.format(*arguments)

    def load(self, place: str, *, tail: bool) -> str:
        """A vector of the arithmetic type, or the `some` elements of a tail."""
        return self.call("load_n", place, "some") if tail else self.call("load", place)

    def store(self, place: str, value: str, *, tail: bool) -> None:
        """The statement that stores such a vector."""
        self(f"{self.call('store_n', place, value, 'some') if tail else self.call('store', place, value)};")
