"""Indices and masks of the tiles of a program that walks its slab: a class a walk, as in `slab_tile`.

`vector_in` says which vectors of VECTOR neighbours along BLOCK_E are there: rows begin and end between vectors.
"""

from __future__ import annotations

from normforge.codegen.index import element, extents, full
from normforge.codegen.stage import Stage
from normforge.codegen.triton.slab_tile import ChannelTile, RowTile, SlabTile, along_e, decode, narrow
from normforge.ir.types import B, C, G, S

STAGES = 3  # tiles that are on their way to a program while it works on one, and that one


class SweptTile(SlabTile):
    """A walk over the channels of a block of positions: columns.

    Attributes:
        by_row: what belongs to a row is computed once for it, in a walk over its positions; its partial sums are taken
            at its end.
        chunked: sums that programs leave for others are of chunks; else a row is one program's.
        total: the function that takes a sum of what all threads keep, and what it is given beside.
    """

    by_row = False
    chunked = True
    total: tuple[str, tuple[str, ...]] = ("sum_all", ())

    @property
    def extent(self) -> str:
        """Of the channels that a program walks."""
        return "K" if self.walk.slab & G else "C"

    def lanes(self, out: Stage) -> None:
        """As `SlabTile.lanes`."""
        out(along_e(out), self.vectors(out))

    @staticmethod
    def vectors(out: Stage) -> str:
        """The statement of the places of vectors."""
        block, vector = out.constexpr("BLOCK_E"), out.constexpr("VECTOR")
        return f"vector = tl.arange(0, {block} // {vector})[None, :] * {vector}  # where each begins"

    def loop(self, out: Stage) -> str:
        """The head of the walk."""
        return f"for a0 in tl.range(0, {self.length}, {out.constexpr('BLOCK_A')}, num_stages={STAGES}):"

    @property
    def length(self) -> str:
        """Of the walk."""
        return self.extent

    def step(self, out: Stage) -> None:
        """As `SlabTile.step`."""
        out(f"a = a0 + tl.arange(0, {out.constexpr('BLOCK_A')})[:, None]  # [BLOCK_A, 1]")
        SlabTile.step(self, out)

    def beside(self, axes: int) -> str:
        """As `SlabTile.beside`."""
        return SlabTile.beside(self, axes)  # of rows too, of which a program has no chunk


class SweptPositions(SweptTile):
    """The same where channels are contiguous."""

    total = ("sum_row", ("1",))

    def lanes(self, out: Stage) -> None:
        """As `SlabTile.lanes`."""
        out(f"a = tl.arange(0, {out.constexpr('BLOCK_A')})[:, None]  # [BLOCK_A, 1]", self.vectors(out))

    def loop(self, out: Stage) -> str:
        """As `SweptTile.loop`."""
        return f"for e0 in tl.range(0, {self.extent}, {out.constexpr('BLOCK_E')}, num_stages={STAGES}):"

    def step(self, out: Stage) -> None:
        """As `SlabTile.step`."""
        out(f"e = e0 + tl.arange(0, {out.constexpr('BLOCK_E')})[None, :]  # [1, BLOCK_E]")
        out(f"vector_in = e0 + vector < {self.extent}")
        SlabTile.step(self, out)


class SweptChannels(SweptTile, ChannelTile):
    """A walk over the positions of a block of channels."""

    chunked = False

    @property
    def length(self) -> str:
        """As `SweptTile.length`."""
        return f"{'S' if self.walk.slab & B else '(N * S)'}.to(tl.int32)"

    def step(self, out: Stage) -> None:
        """As `SlabTile.step`."""
        out(f"a = a0 + tl.arange(0, {out.constexpr('BLOCK_A')})[:, None]  # [BLOCK_A, 1]", "vector_in = vector < C")
        ChannelTile.step(self, out)


class SweptRows(SweptTile, RowTile):
    """A walk over rows, several at once where they are short, and in it one over their positions."""

    by_row = True
    slab_sums = False

    def slab(self, out: Stage) -> None:
        """As `SlabTile.slab`."""
        slab = self.walk.slab
        out("positions = S.to(tl.int32)", "slab = pid", f"slab_in = slab < {out.product(extents(slab))}")
        out(f"rows = {' * '.join(narrow(self.walk.crossed & ~S)) or '1'}  # of a slab")
        decode(out, slab, "slab")

    def loop(self, out: Stage) -> str:
        """As `SweptTile.loop`."""
        return f"for a0 in range(0, rows, {out.constexpr('BLOCK_A')}):"

    def row(self, out: Stage) -> None:
        """The rows of a tile."""
        rows = self.walk.crossed & ~S
        block = out.constexpr("BLOCK_A")
        out(f"a = a0 + tl.arange(0, {block})[:, None]  # [BLOCK_A, 1]", "a_in = (a < rows) & slab_in")
        decode(out, rows, "a")
        if self.walk.slab & G and rows:
            out("c = g * K + k")

    def step(self, out: Stage) -> None:
        """As `SlabTile.step`."""
        out("s = s0 + e  # [1, BLOCK_E]", "e_in = s < positions", "inside = a_in & e_in")
        out("vector_in = s0 + vector < positions")
        out(f"at = {full('nchw').plain}  # [BLOCK_A, BLOCK_E]")

    def loaded(self, axes: int) -> str:
        """As `SlabTile.loaded`."""
        if axes & S:
            return "inside" if axes & ~self.walk.slab & ~S else "e_in"
        return RowTile.loaded(self, axes)

    def writer(self, axes: int) -> str:
        """As `SlabTile.writer`."""
        return "slab_in"

    def once(self, missing: int, along_a: bool, along_e: bool) -> list[str]:
        """As `SlabTile.once`."""
        return RowTile.once(self, missing & ~S, along_a, along_e)

    def chunk(self, out: Stage) -> str:
        """As `SlabTile.chunk`."""
        return out.at(element(B | C)).plain


SWEPT_TILES: dict[str, type[SweptTile]] = {
    "rows": SweptRows, "columns": SweptTile, "positions": SweptPositions, "channels": SweptChannels,
}  # fmt: skip
