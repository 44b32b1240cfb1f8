"""How a slab lies in the tile of one program, and which tiles there are. Frozen data and pure functions of the shape.

A program of a resident plan owns whole slabs and holds them in one tile [BLOCK_A, BLOCK_E], whose second axis is
contiguous in memory. Which axes of the layer lie along which axis of the tile is decided by layout and slab:

walk        layout  slab      along BLOCK_A                        along BLOCK_E
rows        nchw    without s rows over space, in chunks           the positions of a chunk
columns     nchw    with s    all channels (of a group)            a block of positions
positions   nhwc    with s    a block of positions                 all channels (of a group)
channels    nhwc    without s all positions (of the batch)         a block of channels, or of whole groups

Blocks come from a ladder of at most five rungs, so that new shapes soon compile nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import gcd, lcm

from normforge.ir.node import Node
from normforge.ir.ops import REDUCE
from normforge.ir.types import FULL, B, C, G, K, S

Dims = tuple[int, int, int, int]


@dataclass(frozen=True)
class Walk:
    """Attributes:
    name: see the module's text.
    slab: the axes that a program does not cross.
    on_a, on_e: the axes that vary along BLOCK_A and BLOCK_E.
    """

    name: str
    slab: int
    on_a: int
    on_e: int

    @property
    def crossed(self) -> int:
        """The axes that lie in a program as a whole."""
        return FULL & ~self.slab


@dataclass(frozen=True)
class Rung:
    """Attributes:
    a, e: BLOCK_A and BLOCK_E.
    many: a program may own several slabs along BLOCK_A.
    """

    a: int
    e: int
    many: bool = False

    @property
    def elements(self) -> int:
        """Of the tile."""
        return self.a * self.e


@dataclass(frozen=True)
class Blocks:
    """What a shape gets.

    Attributes:
        rung: the tile.
        warps: of a program.
        slabs: slabs that a program owns along BLOCK_A (rows) or channels along BLOCK_E (channels); else 1.
        programs: their number.
        chunks: parts of a row over space, in one program or several: partial sums are as many.
        length: positions of a chunk where a program walks it.
    """

    rung: Rung
    warps: int
    slabs: int
    programs: int
    chunks: int
    length: int = 0


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

    walk: Walk
    tile: int
    order: int
    loop: bool = False
    partials: int = 0
    folds: bool = False
    itemsize: int = 2

    @property
    def persistent(self) -> bool:
        """Programs walk one slab after the other and keep what crosses slabs in registers meanwhile."""
        return self.walk.name == "positions" and self.partials > 0 and not self.loop

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The tiles that there are, in ascending order."""
        if not self.loop:
            return tuple(r for r in LADDERS[self.walk.name] if r.elements <= self.tile)
        ladder = LOOPS["partials" if self.partials and self.walk.name == "positions" else self.walk.name]
        return tuple(Rung(r.a * self.tile // r.elements, r.e) for r in ladder if r.a * self.tile >= r.elements)

    def rungs_of(self, *, half: bool) -> tuple[Rung, ...]:
        """The tiles for a device; `half` leaves out those above half of the largest, but for the smallest."""
        return tuple(r for r in self.rungs if not half or r == self.rungs[0] or 2 * r.elements <= self.tile)

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
            found = self._fit(dims, rung)
            if found is not None:
                return found
        return None

    def contiguous(self, dims: Dims) -> int:
        """Elements of the contiguous axis of full tensors."""
        return dims[3] if self.walk.on_e & S else dims[1] * dims[2]

    def alignment(self, dims: Dims, blocks: Blocks) -> int:
        """Elements that rows of full tensors, and the parts of them that programs own, start at multiples of."""
        starts = gcd(self.contiguous(dims), 16)
        if self.walk.name == "channels" and self.walk.slab & G:
            starts = gcd(starts, blocks.slabs)
        return next(a for a in ALIGNMENTS if starts % a == 0)

    def folded(self, dims: Dims) -> Dims:
        """The dims that programs are given."""
        n, g, k, s = dims
        return (1, g, k, n * s) if self.folds else dims

    def _warps(self, rung: Rung, *, ragged: bool) -> int:
        if self.loop and self.order > 1 and ragged:
            return 8
        if self.walk.name == "positions" or self.loop:  # 16 bytes of 16-bit numbers a thread
            return min(max(4, rung.elements // 256), 8 if self.loop else 16)
        if rung.elements <= 1024:
            return 4 if self.order < 2 else 8
        return 8 if rung.elements <= 16384 else 16

    def _fit(self, dims: Dims, rung: Rung) -> Blocks | None:
        walk, (n, g, k, s) = self.walk, dims
        warps = self._warps(rung, ragged=self.contiguous(dims) % 16 != 0)
        if walk.name == "rows":
            if self.loop:
                least = min(self.rungs, key=lambda r: (self._covered(r, dims), -r.e))
                return Blocks(rung, warps, 1, extent(walk.slab, dims), 1) if rung == least else None
            chunks = extent(walk.crossed & ~S, dims) * cdiv(s, rung.e)
            if chunks > rung.a:
                return None
            each = rung.a // chunks if rung.many else 1
            return Blocks(rung, warps, each, cdiv(extent(walk.slab, dims), each), cdiv(s, rung.e))
        owned = n * (g if walk.slab & G else 1)
        if walk.slab & S:
            whole, split = (rung.a, rung.e) if walk.name == "columns" else (rung.e, rung.a)
            if not self.loop and extent(walk.crossed, dims) > whole:
                return None
            if self.persistent:
                chunks, length = self._share(owned, s, rung.a)
                return Blocks(rung, warps, 1, owned * chunks, chunks, length)
            return Blocks(rung, warps, 1, owned * cdiv(s, split), cdiv(s, split))
        unit = 1 if walk.slab & K else k
        if self.loop and lcm(unit, 4) <= self.rungs[-1].e and (g * k) % 4 == 0:  # for 8-byte accesses
            unit = lcm(unit, 4)
        width = g * k if not walk.slab & G else rung.e // unit * unit
        if not 0 < width <= rung.e or (not self.loop and (s if walk.slab & B else n * s) > rung.a):
            return None
        return Blocks(rung, warps, width, (n if walk.slab & B else 1) * cdiv(g * k, width), 1)

    def _covered(self, rung: Rung, dims: Dims) -> int:
        """Elements of the tiles of a slab of rows, what lies beyond its ends included."""
        rows, s = extent(self.walk.crossed & ~S, dims), dims[3]
        return cdiv(rows, rung.a) * rung.a * cdiv(s, rung.e) * rung.e

    def _share(self, owned: int, positions: int, block: int) -> tuple[int, int]:
        """Chunks of the positions of a sample (or of a group of it), and their length: each is one program, and one
        row of partial sums."""
        rows = owned * positions // (POSITIONS_A_PARTIAL * self.partials)
        programs = min(max(rows, FEW_PROGRAMS), ENOUGH_PROGRAMS)
        length = cdiv(cdiv(positions, block), max(programs // owned, 1)) * block
        return cdiv(positions, length), length


def make_walk(layout: str, slab: int) -> Walk | None:
    """The walk over slabs; None where one program a slab is no use: nothing is summed, or only along the batch and
    channels."""
    if slab == FULL:
        return None
    if slab & S:
        if not slab & B:
            return None
        channels = K if slab & G else C
        return Walk("columns", slab, channels, S) if layout == "nchw" else Walk("positions", slab, S, channels)
    if layout == "nchw":
        return Walk("rows", slab, B | C | S, S)
    return Walk("channels", slab, S if slab & B else B | S, C)


def along_loop(walk: Walk, axes: int) -> bool:
    """Does a value of these axes change from tile to tile where a program walks its slab? The walk is along BLOCK_E
    for positions, and along BLOCK_A otherwise."""
    return bool(axes & walk.crossed & (walk.on_e if walk.name == "positions" else walk.on_a))


def largest_tile(
    walk: Walk, sums: Iterable[Node], partials: Iterable[Node], order: int, itemsize: int, *, loop: bool, divides: bool
) -> int:
    """Elements of the largest tile of a plan; `partials` are the sums that a program leaves for others, `loop` says
    that a program walks its slab, `divides` that full values are divided by full values, which takes registers."""
    if loop:
        large = {0: "rows", 1: "positions"}.get(order)
        return 4096 if walk.name == large else 2048 if order < 2 or walk.name == "positions" else 1024
    keyed = end_in_rows(walk, sums)
    found = TILES["keyed" if keyed else walk.name][min(order, 2)]
    if order == 0 and walk.crossed & B:  # addresses of rows of several samples take registers too
        found = min(found, 16384)
    if divides and not keyed:  # the limits of "keyed" are of layers that do
        found = min(found, max(1024, TILES["keyed"][min(order, 2)] // 2))
    found = found if itemsize == 2 or found == 1024 else found // 2
    return min(found, 8192) if end_in_rows(walk, partials) else found


def end_in_rows(walk: Walk, sums: Iterable[Node]) -> bool:
    """Does a walk over rows leave sums of each row, which take registers beside the values of the slab?"""
    return walk.name == "rows" and any(n.axes & walk.crossed & ~S for n in sums)


def loops(walk: Walk, nodes: Iterable[Node]) -> bool:
    """True when every sum is one value for all tiles of a slab; of small values, those that a program stores too."""
    return not any(along_loop(walk, n.axes) for n in nodes)


def holds(walk: Walk, nodes: Iterable[Node]) -> bool:
    """True when every sum can be taken along one axis of the tile after the other.

    What cannot be: a sum that ends in several values along an axis of the tile (of each group, of each sample)
    and is not taken along the other axis; and of each group where all groups lie in one program.
    """
    for node in nodes:
        if node.op not in REDUCE:
            continue
        axes = node.args[0].axes
        kept = axes & ~node.reduced
        over = node.reduced & axes
        stays = walk.slab | kept
        sum_a, sum_e = bool(over & walk.on_a), bool(over & walk.on_e)
        if sum_a and stays & walk.on_a and axes & walk.on_e and not (sum_e and not stays & walk.on_e):
            return False
        if sum_e and stays & walk.on_e:
            if axes & walk.on_a and not (sum_a and not stays & walk.on_a):
                return False
            if not walk.slab & G or walk.slab & S:
                return False
    return True


LADDERS: dict[str, tuple[Rung, ...]] = {
    "rows": (Rung(32, 32, True), Rung(64, 64), Rung(64, 128), Rung(64, 256)),
    "columns": (Rung(32, 32), Rung(128, 32), Rung(256, 32), Rung(512, 32), Rung(1024, 32)),
    "positions": (Rung(16, 64), Rung(4, 256), Rung(1, 1024), Rung(1, 2048), Rung(1, 4096)),
    "channels": (Rung(32, 32), Rung(128, 32), Rung(256, 32), Rung(512, 32), Rung(1024, 32)),
}
# What kernels are told of rows; 14 x 14 positions are a multiple of 4.
ALIGNMENTS = (16, 4, 1)
# Of programs that walk slab after slab: each writes a row of partial sums, which is read once, all together at most a
# twentieth of what the tensors take. Fewer positions are shared among about as many programs as there are processors,
# more among four for each of 132.
POSITIONS_A_PARTIAL = 32
FEW_PROGRAMS = 128
ENOUGH_PROGRAMS = 512
# Elements of the largest tile of 16-bit numbers, by walk and order; half for float32. Under triton 3.6 to 3.9 nothing
# spills for sm_80, sm_90 and gfx942 (bench/tiles.py); for sm_100 see `Device.half_tiles`. In most a thread has at most
# 128 registers, so that one program loads while another stores; what is larger is swept. "keyed" is a walk over rows
# some of whose sums end in rows.
TILES: dict[str, tuple[int, int, int]] = {
    "rows": (8192, 4096, 1024),
    "keyed": (8192, 4096, 1024),
    "columns": (8192, 4096, 1024),
    "positions": (4096, 4096, 2048),
    "channels": (4096, 4096, 1024),
}
# Elements of the largest tile, by order, where the contiguous axis is no multiple of 16: each element then has an
# address and a mask of its own from loads to stores.
RAGGED = (4096, 4096, 1024)
# Tiles that walk a slab, by the extent that does not grow with it; BLOCK_A follows from the elements of a tile.
LOOPS: dict[str, tuple[Rung, ...]] = {
    "rows": (Rung(64, 64), Rung(16, 256), Rung(4, 1024), Rung(2, 2048), Rung(1, 4096)),
    "columns": (Rung(32, 32),),
    "positions": (Rung(1, 2048),),
    "partials": (Rung(64, 64),),  # over positions, so that partial sums are few
    "channels": (Rung(32, 32), Rung(16, 64)),
}


def tile_dims(slabs: Slabs) -> dict[tuple[Rung, bool], Dims]:
    """A shape for each tile of a plan and each answer to: is the contiguous axis a multiple of 16?"""
    found: dict[tuple[Rung, bool], Dims] = {}
    for n, k, s in product((2, 32), (1, 2, 8, 32, 128, 5, 125), (16, 64, 49, 256, 196, 784, 961, 3136, 12544)):
        dims = (n, 8 if k % 2 == 0 else 7, k, s)
        blocks = slabs.blocks(dims)
        if blocks is not None:
            found.setdefault((blocks.rung, slabs.contiguous(dims) % 16 == 0), dims)
    return found


def extent(axes: int, dims: Dims) -> int:
    """Number of elements along axes."""
    total = 1
    for axis, length in zip((B, G, K, S), dims, strict=True):
        total *= length if axes & axis else 1
    return total


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
