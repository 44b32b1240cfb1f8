"""The body of one function of a kernel, which notes what it uses while it is written.

What a body uses decides its signature or its declarations, and which functions stand in its prelude. An emitter asks
the stage for every such name where it writes it, so that a name cannot be used without being known:

    out(f"for (int64_t s = 0; s < {out.size('S')}; ++s) {out.array('out0')}[s] = {out.call('f_sigmoid', 'v1')};")
"""

from __future__ import annotations

from collections.abc import Iterable

from normforge.codegen.index import Index
from normforge.codegen.text import Lines


class Stage(Lines):
    """Source text that notes its names.

    Attributes:
        arrays: operands, outputs and arrays of the workspace that the text names.
        sizes: numbers that the caller passes.
        constexprs: numbers that are known when the text is compiled, such as blocks.
        functions: of the prelude.
    """

    def __init__(self, indent: str = "  ", depth: int = 0) -> None:
        super().__init__(indent, depth)
        self.arrays: set[str] = set()
        self.sizes: set[str] = set()
        self.constexprs: set[str] = set()
        self.functions: set[str] = set()

    def array(self, name: str) -> str:
        """The name of an array, noted."""
        self.arrays.add(name)
        return name

    def size(self, name: str) -> str:
        """The name of a size, noted."""
        self.sizes.add(name)
        return name

    def product(self, sizes: Iterable[str]) -> str:
        """The product of sizes, noted; 1 for none."""
        return " * ".join(map(self.size, sizes)) or "1"

    def constexpr(self, name: str) -> str:
        """The name of a number known to the compiler, noted."""
        self.constexprs.add(name)
        return name

    def function(self, name: str) -> str:
        """The name of a function of the prelude, noted."""
        self.functions.add(name)
        return name

    def call(self, function: str, *arguments: str) -> str:
        """A call of a function of the prelude."""
        return f"{self.function(function)}({', '.join(arguments)})"

    def at(self, index: Index) -> Index:
        """The index, its sizes noted."""
        self.sizes.update(index.sizes)
        return index
