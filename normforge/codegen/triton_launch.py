"""What the host does for emitted Triton text: sizes, blocks, grids. Frozen data and pure functions of the shape.

Blocks come from a short ladder, so that a kernel has at most five variants over all shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from normforge.codegen.triton_names import Work, extents
from normforge.codegen.triton_slabs import Dims, Slabs, cdiv
from normforge.errors import ShapeError
from normforge.ir.types import G

DIMS = ("N", "G", "K", "S")
NUM_WARPS = 4
# Programs of a sweep over rows beyond which each walks several tiles: partials stay few.
ENOUGH_PROGRAMS = 4096
# (sums beyond chunks, several chunks) -> BLOCK_P, BLOCK_R, BLOCK_Q: at most two elements a thread in any tile, for a
# double backward merges up to 33 rows at once.
SMALL_BLOCKS = {
    (False, False): (128, 1, 1),
    (False, True): (16, 1, 16),
    (True, False): (8, 16, 1),
    (True, True): (4, 8, 8),
}


@dataclass(frozen=True)
class Launch:
    """One kernel call.

    Attributes:
        kernel: name of the function in the text.
        walk: "rows", "columns" or "groups" for a sweep, "slabs" for slabs, "small" for small values.
        sweep: the sweep whose chunks it makes (-1 for small values).
        space: axes of the points of a small kernel.
        walked: axes that a small kernel sums over or stores along beyond its points.
        merges: numbers of the sweeps whose partials a small kernel merges.
        pointers: tensors in calling order, by pointer name.
        sizes: sizes passed after them, by name.
        blocks: names of the constexpr arguments.
    """

    kernel: str
    walk: str
    sweep: int
    space: int
    walked: tuple[int, ...]
    merges: tuple[int, ...]
    pointers: tuple[str, ...]
    sizes: tuple[str, ...]
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class TritonModule:
    """Emitted text and how to call it.

    Attributes:
        source: self-contained Python text.
        layout: "nchw" or "nhwc".
        operands, outputs: pointer names of the tensors in calling order.
        work: float32 arrays that a call allocates.
        launches: in order.
        tiles: elements of a tile, by sweep.
        walks: how each sweep is walked.
        slabs: how programs own slabs; None where they do not.
    """

    source: str
    layout: str
    operands: tuple[str, ...]
    outputs: tuple[str, ...]
    work: tuple[Work, ...]
    launches: tuple[Launch, ...]
    tiles: tuple[int, ...]
    walks: tuple[str, ...]
    slabs: Slabs | None = None

    def shape(self, dims: tuple[int, int, int, int]) -> dict[str, int]:
        """Every size and block of a call: N, G, K, S, C, and Q, L, BLOCK_C, BLOCK_S of each sweep by number.

        Args:
            dims: N, groups, channels a group, positions.
        """
        sizes = dict(zip(DIMS, dims, strict=True))
        sizes["C"] = sizes["G"] * sizes["K"]
        if self.slabs is not None:
            return sizes | slab_sizes(self.slabs, dims)
        for i, (tile, walk) in enumerate(zip(self.tiles, self.walks, strict=True)):
            bc, bs = sweep_blocks(self.layout, walk, tile, sizes)
            tiles = 1
            if walk == "rows":
                steps = cdiv(sizes["S"], bs)
                programs = sizes["N"] * cdiv(sizes["C"], bc) * steps
                while tiles < steps and programs > ENOUGH_PROGRAMS * tiles:
                    tiles *= 2
            sizes[f"BLOCK_C{i}"], sizes[f"BLOCK_S{i}"] = bc, bs
            sizes[f"L{i}"] = bs * tiles
            sizes[f"Q{i}"] = cdiv(sizes["S"], bs * tiles)
        return sizes


def ladder(layout: str, walk: str, tile: int) -> tuple[tuple[int, int], ...]:
    """(BLOCK_C, BLOCK_S) of a sweep, for ever shorter contiguous axes.

    The contiguous axis is the long one. Where sums run across it the other axis keeps a few elements, so that the
    variance of a tile is one of several values.
    """
    across = walk != "rows" if layout == "nchw" else walk == "rows"
    widest = tile // 16 if across else tile
    long = [max(widest >> shift, 1) for shift in (0, 2, 4, 6)]
    pairs = [(tile // n, n) for n in dict.fromkeys(long)]
    if layout == "nhwc":
        pairs = [(n, m) for m, n in pairs]
        if across:  # one position: no space to sum over
            pairs.append((tile, 1))
    return tuple(pairs)


def sweep_blocks(layout: str, walk: str, tile: int, sizes: dict[str, int]) -> tuple[int, int]:
    """The rung of the ladder for a shape: the shortest that holds the contiguous axis, or the longest."""
    pairs = ladder(layout, walk, tile)
    channels = sizes["K"] if walk == "groups" else sizes["C"]
    if layout == "nchw":
        return next((p for p in reversed(pairs) if p[1] >= sizes["S"]), pairs[0])
    if pairs[-1] == (tile, 1):
        if sizes["S"] == 1:
            return pairs[-1]
        pairs = pairs[:-1]
    return next((p for p in reversed(pairs) if p[0] >= channels), pairs[0])


def slab_sizes(slabs: Slabs, dims: Dims) -> dict[str, int]:
    """Sizes, blocks, the number of programs and their warps, where programs hold slabs.

    Raises:
        ShapeError: a slab does not fit.
    """
    blocks, walk = slabs.blocks(dims), slabs.walk
    if blocks is None:
        raise ShapeError(f"slabs of {dims} (N, groups, channels a group, positions) fit no tile up to {slabs.tile}")
    rung = blocks.rung
    return {
        "BLOCK_A": rung.a, "BLOCK_E": rung.e, "MANY": int(rung.many), "WARPS": blocks.warps,
        "SLABS": blocks.slabs, "WIDTH": blocks.slabs, "PROGRAMS": blocks.programs, "Q0": blocks.chunks,
        "ALIGNED": int(walk.name != "channels" or not walk.slab & G or blocks.slabs % 16 == 0),
    }  # fmt: skip


def warps(launch: Launch, sizes: dict[str, int]) -> int:
    """Of a program of a launch."""
    return sizes["WARPS"] if launch.walk == "slabs" else NUM_WARPS


def small_blocks(launch: Launch, sizes: dict[str, int]) -> dict[str, int]:
    """BLOCK_P, BLOCK_R and BLOCK_Q of a small kernel: one of four."""
    reduced = max((extent(axes, sizes) for axes in launch.walked), default=1)
    chunks = max((sizes[f"Q{i}"] for i in launch.merges), default=1)
    return dict(zip(("BLOCK_P", "BLOCK_R", "BLOCK_Q"), SMALL_BLOCKS[reduced > 1, chunks > 1], strict=True))


def extent(axes: int, sizes: dict[str, int]) -> int:
    """Number of elements along axes."""
    return math.prod(sizes[name] for name in extents(axes))


def arguments(launch: Launch, sizes: dict[str, int], *, aligned: bool) -> tuple[tuple[int, ...], dict[str, int], int]:
    """(sizes in calling order, constexpr arguments by name, number of programs) of one launch.

    Args:
        launch: the launch.
        sizes: from `TritonModule.shape`.
        aligned: the contiguous extent is a multiple of 16.
    """
    i = launch.sweep
    if launch.walk == "slabs":
        values = tuple(sizes[name] for name in launch.sizes)
        return (
            values,
            {n: sizes[n] if n != "ALIGNED" else int(aligned) & sizes[n] for n in launch.blocks},
            sizes["PROGRAMS"],
        )
    if launch.walk == "small":
        blocks = small_blocks(launch, sizes)
        programs = cdiv(extent(launch.space, sizes), blocks["BLOCK_P"])
        values = tuple(sizes[name] for name in launch.sizes)
    else:
        bc = sizes[f"BLOCK_C{i}"]
        blocks = {"BLOCK_C": bc, "BLOCK_S": sizes[f"BLOCK_S{i}"], "ALIGNED": int(aligned)}
        inner = {"rows": cdiv(sizes["C"], bc), "columns": 1, "groups": sizes["G"]}[launch.walk]
        programs = sizes["N"] * inner * sizes[f"Q{i}"]
        values = tuple(sizes[f"{name}{i}" if name in ("Q", "L") else name] for name in launch.sizes)
    return values, {name: blocks[name] for name in launch.blocks}, programs
