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
    warps: of a program.
    """

    a: int
    e: int
    many: bool
    warps: int


@dataclass(frozen=True)
class Blocks:
    """What a shape gets.

    Attributes:
        rung: the tile.
        slabs: slabs that a program owns along BLOCK_A (rows) or channels along BLOCK_E (channels); else 1.
        programs: their number.
        chunks: parts of a row over space, in one program or several: partial sums are as many.
    """

    rung: Rung
    slabs: int
    programs: int
    chunks: int


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


def _rungs(many: bool, *tiles: tuple[int, int]) -> tuple[Rung, ...]:
    """Tiles in ascending order; the first may hold several slabs where `many` says so."""
    return tuple(Rung(a, e, many and i == 0, _warps(a * e)) for i, (a, e) in enumerate(tiles))


def _warps(elements: int) -> int:
    return 4 if elements <= 1024 else 8 if elements <= 16384 else 16


LADDERS: dict[str, tuple[Rung, ...]] = {
    "rows": _rungs(True, (32, 32), (64, 64), (64, 128), (64, 256), (64, 512)),
    "columns": _rungs(False, (64, 32), (128, 32), (256, 32), (512, 32), (1024, 32)),
    "positions": _rungs(False, (16, 64), (16, 256), (4, 1024), (2, 4096), (1, 16384)),
    "channels": _rungs(False, (16, 64), (64, 64), (256, 32), (1024, 16), (1024, 32)),
}


def choose_blocks(walk: Walk, dims: Dims, limit: int) -> Blocks | None:
    """The smallest rung that holds a slab; None where none does.

    Args:
        walk: from `make_walk`.
        dims: N, groups, channels a group, positions.
        limit: elements of a tile that registers hold.
    """
    for rung in LADDERS[walk.name]:
        found = _fit(walk, dims, rung) if rung.a * rung.e <= limit else None
        if found is not None:
            return found
    return None


def _fit(walk: Walk, dims: Dims, rung: Rung) -> Blocks | None:
    n, g, k, s = dims
    if walk.name == "rows":
        slabs = _extent(walk.slab, dims)
        chunks = _extent(walk.crossed & ~S, dims) * cdiv(s, rung.e)
        if chunks > rung.a:
            return None
        each = rung.a // chunks if rung.many else 1
        return Blocks(rung, each, cdiv(slabs, each), cdiv(s, rung.e))
    owned = n * (g if walk.slab & G else 1)
    if walk.slab & S:
        whole, split = (rung.a, rung.e) if walk.name == "columns" else (rung.e, rung.a)
        if _extent(walk.crossed, dims) > whole:
            return None
        return Blocks(rung, 1, owned * cdiv(s, split), cdiv(s, split))
    width = g * k if not walk.slab & G else rung.e if walk.slab & K else rung.e // k * k
    if not 0 < width <= rung.e or (s if walk.slab & B else n * s) > rung.a:
        return None
    return Blocks(rung, width, (n if walk.slab & B else 1) * cdiv(g * k, width), 1)


def _extent(axes: int, dims: Dims) -> int:
    total = 1
    for axis, extent in zip((B, G, K, S), dims, strict=True):
        total *= extent if axes & axis else 1
    return total


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
