"""Which blocks the kernels of a plan get at a shape. Pure functions of the shape, and the constants that decide.

Blocks come from a short ladder, so that a kernel has at most five variants over all shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from normforge.codegen.index import extents
from normforge.codegen.shapes import Dims
from normforge.codegen.triton.kernels import SmallKernel
from normforge.codegen.triton.slabs import Slabs, cdiv
from normforge.codegen.triton.walks import SweepWalk
from normforge.errors import ShapeError

DIMS = ("N", "G", "K", "S")
NUM_WARPS = 4
SWEEP_THREADS = 32 * NUM_WARPS
VECTOR_BYTES = 16  # of the widest load
LINE_BYTES = 128  # what memory moves at once: tiles narrower than that waste some of it
CONTIGUOUS = (1024, 256, 64, 16)  # lengths of tiles along the contiguous axis
LITTLE_WASTE = 0.15  # share of a tile that may be wasted for the sake of a longer one
# Programs of a sweep over rows beyond which each walks several tiles: partials stay few, and threads are joined seldom.
ENOUGH_PROGRAMS = 2112
# Chunks of a row, and rows times chunks of a point, beyond which one point takes all threads of a small kernel.
MANY_CHUNKS = 64
MANY_PARTS = 512
MANY_ROWS = 32
# Rows that a small kernel merges, and sums that it takes of them, beyond which half of a row's chunks are loaded at a
# time: threads have registers for no more.
MANY_SUMS = 32


def sweep_sizes(layout: str, walk: SweepWalk, tile: int, sizes: Mapping[str, int], item: int) -> dict[str, int]:
    """BLOCK_C, BLOCK_S, L, Q, THREADS and VECTOR of a sweep.

    Args:
        layout: of full tensors. walk: of the sweep. tile: its elements.
        sizes: N, G, K, S, C, ALIGNED.
        item: bytes of an element.
    """
    bc, bs = sweep_blocks(layout, walk, tile, sizes, item)
    chunks = cdiv(sizes["S"], bs)
    wanted = cdiv(ENOUGH_PROGRAMS, sizes["N"] * walk.beside.value({**sizes, "BLOCK_C": bc}))
    tiles = walk.tiles(chunks, wanted)
    threads, vector = own_elements(layout, walk, (bc, bs), min(VECTOR_BYTES // item, sizes["ALIGNED"]))
    return {
        "BLOCK_C": bc, "BLOCK_S": bs, "L": bs * tiles, "Q": cdiv(chunks, tiles), "THREADS": threads, "VECTOR": vector,
    }  # fmt: skip


def ladder(layout: str, walk: SweepWalk, tile: int) -> tuple[tuple[int, int], ...]:
    """(BLOCK_C, BLOCK_S) of a sweep, for ever shorter contiguous axes: not the longest where the walk runs across it,
    which would leave few programs. With channels last one more for one position, where there is no space to sum."""
    along = walk.along(layout)
    pairs = [(tile // n, n) for n in CONTIGUOUS[0 if along else 1 :] if n <= tile]
    return tuple(pairs) if layout == "nchw" else (*((n, m) for m, n in pairs), (tile, 1))


def sweep_blocks(layout: str, walk: SweepWalk, tile: int, sizes: Mapping[str, int], item: int) -> tuple[int, int]:
    """The rung of the ladder for a shape: the one that wastes least of tiles and of lines of memory, the longest of
    such. `item` is the bytes of an element."""
    pairs = ladder(layout, walk, tile)
    channels, positions = walk.channels(sizes), sizes["S"]
    if layout == "nhwc":
        if positions == 1:
            return pairs[-1]
        pairs = pairs[:-1]
    contiguous = positions if layout == "nchw" else channels

    def waste(pair: tuple[int, int]) -> float:
        masked = math.prod(cdiv(n, b) * b / n for n, b in zip((channels, positions), pair, strict=True))
        line = min(contiguous, LINE_BYTES // item)
        return masked * max(line / pair[layout == "nchw"], 1.0)

    return min(pairs, key=lambda pair: (int((waste(pair) - 1) / LITTLE_WASTE), -pair[layout == "nchw"]))


def own_elements(layout: str, walk: SweepWalk, blocks: tuple[int, int], vector: int) -> tuple[int, int]:
    """Along the walk of a sweep, how many threads share a tile, and how many adjacent elements each takes at a time:
    as Triton lays out a tile that is loaded by the widest loads, on warps of 32.

    Args:
        layout: of full tensors. walk: of the sweep.
        blocks: BLOCK_C and BLOCK_S.
        vector: elements of the widest load.
    """
    contiguous, other = blocks if layout == "nhwc" else blocks[::-1]
    vector = min(vector, contiguous, max(contiguous * other // SWEEP_THREADS, 1))
    along = min(SWEEP_THREADS, contiguous // vector)
    if walk.along(layout):
        return along, vector
    return min(SWEEP_THREADS // along, other), 1


def slab_sizes(slabs: Slabs, dims: Dims) -> dict[str, int]:
    """Sizes, blocks, the number of programs and their warps, where programs hold slabs.

    Raises:
        ShapeError: a slab does not fit.
    """
    blocks = slabs.blocks(dims)
    if blocks is None:
        raise ShapeError(f"slabs of {dims} (N, groups, channels a group, positions) fit no tile up to {slabs.tile}")
    rung = blocks.rung
    n, g, k, s = slabs.folded(dims)
    sizes = {
        "N": n, "G": g, "K": k, "C": g * k, "S": s, "L0": blocks.length,
        "VECTOR": min(slabs.alignment(dims, blocks), VECTOR_BYTES // slabs.itemsize),
        "BLOCK_A": rung.a, "BLOCK_E": rung.e, "MANY": int(rung.many and blocks.slabs > 1), "WARPS": blocks.warps,
        "SLABS": blocks.slabs, "WIDTH": blocks.slabs, "Q0": blocks.chunks,
        "ALIGNED": slabs.alignment(dims, blocks),
    }  # fmt: skip
    return sizes | {"PROGRAMS": slabs.programs.value(sizes)}


def small_blocks(kernels: Sequence[SmallKernel], sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """BLOCK_P, BLOCK_R and BLOCK_Q of the small stages of a launch: one of four for each, and decided for all together,
    so that merging does not multiply the variants of a kernel.

    One element a thread, mostly: a double backward merges up to 33 rows at once, and what shares a launch with a sweep
    should not take registers from it. Few points with much to add up take more.
    """
    rows = max((extent(axes, sizes) for one in kernels for axes in one.walked), default=1)
    chunks = max((sizes[f"Q{i}"] for one in kernels for i in one.merges), default=1)
    if chunks >= MANY_CHUNKS:
        crowded = any(len(one.rows) + len(one.sums) > MANY_SUMS for one in kernels)
        summing, plain = (1, 4, 64 if crowded else 128), (1, 1, 256)
    elif rows * chunks >= MANY_PARTS:
        summing, plain = (1, 32, 8), (8, 1, 16)
    elif rows < MANY_ROWS and chunks > 1:
        summing, plain = (1, 8, 16), (8, 1, 16)
    else:
        summing, plain = (2, 32, 2), (128, 1, 1) if chunks == 1 else (8, 1, 16)
    blocks = (summing if one.walked else plain for one in kernels)
    return [dict(zip(("BLOCK_P", "BLOCK_R", "BLOCK_Q"), values, strict=True)) for values in blocks]


def extent(axes: int, sizes: Mapping[str, int]) -> int:
    """Number of elements along axes."""
    return math.prod(sizes[name] for name in extents(axes))
