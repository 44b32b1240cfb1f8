"""What fits the tiles of plans whose programs hold slabs: which sums, and how large a tile does not spill."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from normforge.codegen.shapes import Dims
from normforge.codegen.triton.slabs import Slabs, SlabWalk
from normforge.codegen.triton.tiles import CONDITIONED, LOOP_TILES, TILES, Rung
from normforge.ir.node import Node
from normforge.ir.ops import REDUCE
from normforge.ir.types import G, S


def largest_tile(
    walk: SlabWalk,
    sums: Iterable[Node],
    order: int,
    itemsize: int,
    *,
    loop: bool,
    divides: bool,
    conditioned: bool = False,
) -> int:
    """Elements of the largest tile of a plan; `loop` says that a program walks its slab, `divides` that full values are
    divided by full values, which takes registers; `conditioned` that small operands vary along the batch,
    which does too."""
    if loop:
        found = LOOP_TILES[walk.name][min(order, 2)]
        return max(min(CONDITIONED[walk.name], found), found // 2) if conditioned else found
    keyed = end_in_rows(walk, sums)
    found = TILES["keyed" if keyed else walk.name][min(order, 2)]
    if divides and not keyed:  # the limits of "keyed" are of layers that do
        found = min(found, max(1024, TILES["keyed"][min(order, 2)] // 2))
    return found if itemsize == 2 or found == 1024 else found // 2


def end_in_rows(walk: SlabWalk, sums: Iterable[Node]) -> bool:
    """Does a walk over rows leave sums of each row, which take registers beside the values of the slab?"""
    return any(walk.sums_rows(n.axes) for n in sums)


def loops(walk: SlabWalk, nodes: Iterable[Node]) -> bool:
    """True when every sum is one value for all tiles of a slab; of small values, those that a program stores too."""
    return not any(walk.along_loop(n.axes) for n in nodes)


def holds(walk: SlabWalk, nodes: Iterable[Node]) -> bool:
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


def tile_dims(slabs: Slabs) -> dict[tuple[Rung, bool], Dims]:
    """A shape for each tile of a plan and each answer to: is the contiguous axis a multiple of 16?"""
    found: dict[tuple[Rung, bool], Dims] = {}
    for n, k, s in product((2, 32), (1, 2, 8, 32, 128, 5, 125), (16, 64, 49, 256, 196, 784, 961, 3136, 12544)):
        dims = (n, 8 if k % 2 == 0 else 7, k, s)
        blocks = slabs.blocks(dims)
        if blocks is not None:
            found.setdefault((blocks.rung, slabs.contiguous(dims) % 16 == 0), dims)
    return found
