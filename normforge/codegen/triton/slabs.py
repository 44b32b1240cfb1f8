"""How a slab lies in the tile of one program, and which tile a shape gets. Frozen data and pure functions of the shape.

A program of a resident plan owns whole slabs and holds them in one tile [BLOCK_A, BLOCK_E], whose second axis is
contiguous in memory. Which axes of the layer lie along which axis of the tile is decided by layout and slab:

walk        layout  slab      along BLOCK_A                        along BLOCK_E
rows        nchw    without s rows over space, in chunks           the positions of a chunk
columns     nchw    with s    all channels (of a group)            a block of positions
positions   nhwc    with s    a block of positions                 all channels (of a group)
channels    nhwc    without s all positions (of the batch)         a block of channels, or of whole groups

Which tiles there are is in `tiles`, what fits them in `slab_limits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm
from typing import ClassVar

from normforge.codegen.index import Ceil, Count, extents
from normforge.codegen.shapes import Dims
from normforge.codegen.triton.tiles import ALIGNMENTS, LADDERS, LOOPS, RAGGED, Rung, share
from normforge.ir.types import FULL, B, C, G, K, S

# Of programs that walk slab after slab: each writes a row of partial sums, which is read once, all together at most a
# twentieth of what the tensors take. Fewer positions are shared among about as many programs as there are processors,
# more among four for each of 132.
POSITIONS_A_PARTIAL = 32
FEW_PROGRAMS = 128
ENOUGH_PROGRAMS = 512


@dataclass(frozen=True)
class Blocks:
    """What a shape gets.

    Attributes:
        rung: the tile.
        warps: of a program.
        slabs: slabs that a program owns along BLOCK_A (rows) or channels along BLOCK_E (channels); else 1.
        chunks: parts of a row over space, in one program or several: partial sums are as many.
        length: positions of a chunk where a program walks it.
    """

    rung: Rung
    warps: int
    slabs: int
    chunks: int
    length: int = 0


@dataclass(frozen=True)
class SlabWalk:
    """How a slab lies in the tile of a program: which axes along which of its sides. A class a row of the table above.

    Attributes:
        name: see the module's text.
        slab: the axes that a program does not cross.
        on_a, on_e: the axes that vary along BLOCK_A and BLOCK_E.
    """

    name: ClassVar[str]
    slab: int
    on_a: int
    on_e: int

    @property
    def crossed(self) -> int:
        """The axes that lie in a program as a whole."""
        return FULL & ~self.slab

    @property
    def loops_over(self) -> int:
        """The axes along which a program that walks its slab does so."""
        return self.on_a

    def along_loop(self, axes: int) -> bool:
        """Does a value of these axes change from tile to tile where a program walks its slab?"""
        return bool(axes & self.crossed & self.loops_over)

    def sums_rows(self, axes: int) -> bool:
        """Does a sum that ends in these axes take registers for each row, beside the values of the slab?"""
        return False

    def fit(self, slabs: Slabs, dims: Dims, rung: Rung, warps: int) -> Blocks | None:
        """The blocks of a shape for a tile; None where it holds no slab."""
        raise NotImplementedError

    def programs(self, slabs: Slabs) -> Count:
        """How many there are."""
        raise NotImplementedError

    def chunks(self, slabs: Slabs) -> tuple[tuple[str, Count], ...]:
        """How the positions of a sample are divided."""
        return (("Q0", Count(())),)


class SlabRows(SlabWalk):
    """Rows over space, in chunks."""

    name = "rows"

    def sums_rows(self, axes: int) -> bool:
        """As `SlabWalk.sums_rows`."""
        return bool(axes & self.crossed & ~S)

    def fit(self, slabs: Slabs, dims: Dims, rung: Rung, warps: int) -> Blocks | None:
        """As `SlabWalk.fit`."""
        if slabs.loop:
            least = min(slabs.rungs, key=lambda r: (self._covered(r, dims), -r.e))
            return Blocks(rung, warps, 1, 1) if rung == least else None
        chunks = cdiv(dims[3], rung.e)
        each = extent(self.crossed & ~S, dims) * chunks
        if each > rung.a:
            return None
        many = rung.a // each if rung.many else 1
        return Blocks(rung, warps, many, chunks)

    def programs(self, slabs: Slabs) -> Count:
        """As `SlabWalk.programs`."""
        of = extents(self.slab)
        return Count(of) if slabs.loop else Count((Ceil(of, "SLABS"),))

    def chunks(self, slabs: Slabs) -> tuple[tuple[str, Count], ...]:
        """As `SlabWalk.chunks`."""
        return super().chunks(slabs) if slabs.loop else (("Q0", Count((Ceil(("S",), "BLOCK_E"),))),)

    def _covered(self, rung: Rung, dims: Dims) -> int:
        """Elements of the tiles of a slab of rows, what lies beyond its ends included."""
        rows, s = extent(self.crossed & ~S, dims), dims[3]
        return cdiv(rows, rung.a) * rung.a * cdiv(s, rung.e) * rung.e


class SlabColumns(SlabWalk):
    """All channels (of a group) of a block of positions."""

    name = "columns"

    def fit(self, slabs: Slabs, dims: Dims, rung: Rung, warps: int) -> Blocks | None:
        """As `SlabWalk.fit`."""
        return self._across(slabs, dims, rung, warps, rung.a, rung.e)

    def _across(self, slabs: Slabs, dims: Dims, rung: Rung, warps: int, whole: int, split: int) -> Blocks | None:
        """`whole` and `split`: the blocks of channels and of positions."""
        if not slabs.loop and extent(self.crossed, dims) > whole:
            return None
        owned = dims[0] * (dims[1] if self.slab & G else 1)
        if slabs.persistent:
            chunks, length = slabs.share(owned, dims[3], rung.a)
            return Blocks(rung, warps, 1, chunks, length)
        return Blocks(rung, warps, 1, cdiv(dims[3], split))

    def programs(self, slabs: Slabs) -> Count:
        """As `SlabWalk.programs`."""
        return Count(("N", *("G",) * bool(self.slab & G), "Q0"))

    def chunks(self, slabs: Slabs) -> tuple[tuple[str, Count], ...]:
        """As `SlabWalk.chunks`."""
        part = "L0" if slabs.persistent else "BLOCK_E" if self.on_e & S else "BLOCK_A"
        return (("Q0", Count((Ceil(("S",), part),))),)


class SlabPositions(SlabColumns):
    """The same where channels are contiguous."""

    name = "positions"

    @property
    def loops_over(self) -> int:
        """As `SlabWalk.loops_over`."""
        return self.on_e

    def fit(self, slabs: Slabs, dims: Dims, rung: Rung, warps: int) -> Blocks | None:
        """As `SlabWalk.fit`."""
        return self._across(slabs, dims, rung, warps, rung.e, rung.a)


class SlabChannels(SlabWalk):
    """All positions (of the batch) of a block of channels, or of whole groups."""

    name = "channels"

    def fit(self, slabs: Slabs, dims: Dims, rung: Rung, warps: int) -> Blocks | None:
        """As `SlabWalk.fit`."""
        n, g, k, s = dims
        unit = 1 if self.slab & K else k
        if slabs.loop and lcm(unit, 4) <= slabs.rungs[-1].e and (g * k) % 4 == 0:  # for 8-byte accesses
            unit = lcm(unit, 4)
        width = g * k if not self.slab & G else rung.e // unit * unit
        if not 0 < width <= rung.e or (not slabs.loop and (s if self.slab & B else n * s) > rung.a):
            return None
        return Blocks(rung, warps, width, 1)

    def programs(self, slabs: Slabs) -> Count:
        """As `SlabWalk.programs`."""
        return Count((*("N",) * bool(self.slab & B), Ceil(("C",), "WIDTH")))


@dataclass(frozen=True)
class Slabs:
    """How the programs of a plan own slabs.

    Attributes:
        walk: how a slab lies in a tile.
        tile: elements of the largest tile.
        order: of the derivative; more values live at once in higher ones.
        loop: a program walks its slab tile by tile, so that any length fits.
        partials: sums that programs leave for others.
        folds: nothing tells the batch and the positions apart: all positions are those of one sample.
        itemsize: bytes of an element of a full tensor.
    """

    walk: SlabWalk
    tile: int
    order: int
    loop: bool = False
    partials: int = 0
    folds: bool = False
    itemsize: int = 2

    @property
    def programs(self) -> Count:
        """How many there are, in the sizes that `blocks.slab_sizes` gives."""
        return self.walk.programs(self)

    @property
    def chunks(self) -> tuple[tuple[str, Count], ...]:
        """How the positions of a sample are divided."""
        return self.walk.chunks(self)

    @property
    def persistent(self) -> bool:
        """Programs walk one slab after the other and keep what crosses slabs in registers meanwhile."""
        return isinstance(self.walk, SlabPositions) and self.partials > 0 and not self.loop

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The tiles that there are, in ascending order."""
        if not self.loop:
            return tuple(r for r in LADDERS[self.walk.name] if r.elements <= self.tile)
        ladder = LOOPS["partials" if self.partials and isinstance(self.walk, SlabPositions) else self.walk.name]
        return tuple(Rung(r.a * self.tile // r.elements, r.e) for r in ladder if r.a * self.tile >= r.elements)

    def rungs_on(self, capability: int) -> tuple[Rung, ...]:
        """The tiles that a device may hold a slab in, by its compute capability; always the smallest."""
        limit = share(capability) * self.tile
        return tuple(r for r in self.rungs if r == self.rungs[0] or r.elements <= limit)

    def blocks(self, dims: Dims) -> Blocks | None:
        """The smallest rung that holds a slab; None where none does.

        Args:
            dims: N, groups, channels a group, positions.
        """
        dims = self.folded(dims)
        ragged = self.contiguous(dims) % 16 != 0 and not self.loop
        limit = RAGGED[min(self.order, 2)] if ragged else self.tile
        for rung in self.rungs:
            if rung.elements > limit:
                return None
            found = self.walk.fit(self, dims, rung, self._warps(rung, ragged=self.contiguous(dims) % 16 != 0))
            if found is not None:
                return found
        return None

    def contiguous(self, dims: Dims) -> int:
        """Elements of the contiguous axis of full tensors."""
        return dims[3] if self.walk.on_e & S else dims[1] * dims[2]

    def alignment(self, dims: Dims, blocks: Blocks) -> int:
        """Elements that rows of full tensors, and the parts of them that programs own, start at multiples of."""
        starts = gcd(self.contiguous(dims), 16)
        if isinstance(self.walk, SlabChannels) and self.walk.slab & G:
            starts = gcd(starts, blocks.slabs)
        return next(a for a in ALIGNMENTS if starts % a == 0)

    def folded(self, dims: Dims) -> Dims:
        """The dims that programs are given."""
        n, g, k, s = dims
        return (1, g, k, n * s) if self.folds else dims

    def _warps(self, rung: Rung, *, ragged: bool) -> int:
        if self.loop and self.order and ragged:
            return 8
        if self.order > 1 and (ragged or self.itemsize == 4) and (self.loop or isinstance(self.walk, SlabPositions)):
            return 8
        if self.order and ragged and self.itemsize == 4 and isinstance(self.walk, SlabPositions):
            return 8  # at 4 the smallest tile spills
        if isinstance(self.walk, SlabPositions) or self.loop:  # 16 bytes of 16-bit numbers a thread
            return min(max(4, rung.elements // 256), 8 if self.loop else 16)
        if rung.elements <= 1024:
            return 4 if self.order < 2 else 8
        return 8 if rung.elements <= 16384 else 16

    def share(self, owned: int, positions: int, block: int) -> tuple[int, int]:
        """Chunks of the positions of a sample (or of a group of it), and their length: each is one program, and one
        row of partial sums."""
        rows = owned * positions // (POSITIONS_A_PARTIAL * self.partials)
        programs = min(max(rows, FEW_PROGRAMS), ENOUGH_PROGRAMS)
        length = cdiv(cdiv(positions, block), max(programs // owned, 1)) * block
        return cdiv(positions, length), length


def make_walk(layout: str, slab: int) -> SlabWalk | None:
    """The walk over slabs; None where one program a slab is no use: nothing is summed, or only along the batch and
    channels."""
    if slab == FULL:
        return None
    if slab & S:
        if not slab & B:
            return None
        channels = K if slab & G else C
        return SlabColumns(slab, channels, S) if layout == "nchw" else SlabPositions(slab, S, channels)
    if layout == "nchw":
        return SlabRows(slab, B | C | S, S)
    return SlabChannels(slab, S if slab & B else B | S, C)


def extent(axes: int, dims: Dims) -> int:
    """Number of elements along axes."""
    total = 1
    for axis, length in zip((B, G, K, S), dims, strict=True):
        total *= length if axes & axis else 1
    return total


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
