"""What the host does for emitted Triton text: sizes, blocks, grids. Frozen data and pure functions of the shape.

Blocks come from a short ladder, so that a kernel has at most five variants over all shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normforge.codegen.text import wrapped
from normforge.codegen.triton_names import Work, extents
from normforge.codegen.triton_slabs import Dims, Slabs, cdiv
from normforge.errors import ShapeError

DIMS = ("N", "G", "K", "S")
NUM_WARPS = 4
# Programs of a sweep over rows beyond which each walks several tiles: partials stay few.
ENOUGH_PROGRAMS = 4096
# (sums beyond chunks, several chunks) -> BLOCK_P, BLOCK_R, BLOCK_Q: one element a thread in any tile, for a double
# backward merges up to 33 rows at once, and what shares a launch with a sweep should not take registers from it.
SMALL_BLOCKS = {
    (False, False): (128, 1, 1),
    (False, True): (8, 1, 16),
    (True, False): (8, 16, 1),
    (True, True): (1, 8, 16),
}
# For sums of this many rows and more, such as those of a batch: few points a program, so that many programs share them.
MANY_ROWS = 32
MANY_ROWS_BLOCKS = (2, 32, 2)


@dataclass(frozen=True)
class Launch:
    """One kernel call. What its programs do is a device function of the text, the stage, which is given the number of
    the program; a merged launch runs several stages that do not depend on each other, one after the other in the
    numbers of its programs.

    Attributes:
        kernel: name of the kernel in the text.
        walk: "rows", "columns" or "groups" for a sweep, "slabs" for slabs, "small" for small values, "merged" for
            several, "cooperative" for all.
        sweep: the sweep whose chunks it makes (-1 for small values).
        space: axes of the points of a small kernel.
        walked: axes that a small kernel sums over or stores along beyond its points.
        merges: numbers of the sweeps whose partials a small kernel merges.
        pointers: tensors in calling order, by pointer name.
        sizes: sizes passed after them, by name.
        blocks: names of the constexpr arguments.
        parts: what is merged, each as the launch that it would be alone; or the launches that a cooperative one does.
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
    parts: tuple[Launch, ...] = ()

    @property
    def stage(self) -> str:
        """The device function of a launch that is not merged."""
        return f"{self.kernel}_stage"

    @property
    def size_names(self) -> tuple[str, ...]:
        """The sizes as `TritonModule.shape` names them: Q and L are those of the sweep."""
        return tuple(f"{name}{self.sweep}" if name in ("Q", "L") else name for name in self.sizes)


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
        """Every size and block of a call: N, G, K, S, C, and Q, L, BLOCK_C, BLOCK_S of each sweep by number. TILE, the
        channels that a cooperative launch does at a time, is all of them, where its device has no say.

        Args:
            dims: N, groups, channels a group, positions.
        """
        sizes = dict(zip(DIMS, dims, strict=True))
        sizes["C"] = sizes["TILE"] = sizes["G"] * sizes["K"]
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
    blocks = slabs.blocks(dims)
    if blocks is None:
        raise ShapeError(f"slabs of {dims} (N, groups, channels a group, positions) fit no tile up to {slabs.tile}")
    rung = blocks.rung
    n, _, _, s = slabs.folded(dims)
    return {
        "N": n, "S": s, "L0": blocks.length, "VECTOR": min(slabs.alignment(dims, blocks), 16 // slabs.itemsize),
        "BLOCK_A": rung.a, "BLOCK_E": rung.e, "MANY": int(rung.many and blocks.slabs > 1), "WARPS": blocks.warps,
        "SLABS": blocks.slabs, "WIDTH": blocks.slabs, "PROGRAMS": blocks.programs, "Q0": blocks.chunks,
        "ALIGNED": slabs.alignment(dims, blocks),
    }  # fmt: skip


def warps(launch: Launch, sizes: dict[str, int]) -> int:
    """Of a program of a launch."""
    return sizes["WARPS"] if launch.walk == "slabs" else NUM_WARPS


def merge(parts: Sequence[Launch], pointers: Sequence[str]) -> Launch:
    """One launch of several stages that do not depend on each other.

    Args:
        parts: more than one; all but the last are for small values.
        pointers: every pointer of the text, in the order of arguments.
    """
    used = {p for part in parts for p in part.pointers}
    sizes = dict.fromkeys(name for part in parts for name in part.size_names)
    blocks = [part_block(name, i) for i, part in enumerate(parts) for name in part.blocks]
    stem, number, _ = parts[0].kernel.rsplit("_", 2)
    labels = "_".join(part.kernel.rsplit("_", 1)[1] for part in parts)
    kernel = f"{stem}_{number}_{labels}"
    given = tuple(p for p in pointers if p in used)
    return Launch(kernel, "merged", -1, 0, (), (), given, tuple(sizes), tuple(blocks), tuple(parts))


def part_block(name: str, part: int) -> str:
    """A constexpr argument of a part in the signature of a merged kernel."""
    return f"{name}_{part}"


def stage_call(stage: Launch, pid: str, blocks: tuple[str, ...]) -> list[str]:
    """The call of a stage for one program, in a kernel whose arguments have the names of `TritonModule.shape`."""
    return wrapped(stage.stage, (pid, *stage.pointers, *stage.size_names, *blocks), "")


def constexprs(names: tuple[str, ...]) -> list[str]:
    """Parameters of a signature."""
    return [f"{name}: tl.constexpr" for name in names]


def kernel_head(launch: Launch) -> list[str]:
    """The lines that open a kernel, the last of them the one that its body stands under."""
    names = ", ".join(f'"{s}"' for s in launch.size_names)
    parameters = (*launch.pointers, *launch.size_names, *constexprs(launch.blocks))
    return ["", f"@triton.jit(do_not_specialize=[{names}])", *wrapped(f"def {launch.kernel}", parameters, ":")]


def small_blocks(launches: Sequence[Launch], sizes: dict[str, int]) -> list[dict[str, int]]:
    """BLOCK_P, BLOCK_R and BLOCK_Q of the small stages of a launch: one of five for each, and decided for all together,
    so that merging does not multiply the variants of a kernel."""
    summed = max((extent(axes, sizes) for one in launches for axes in one.walked), default=1)
    chunks = max((sizes[f"Q{i}"] for one in launches for i in one.merges), default=1) > 1
    blocks = (
        MANY_ROWS_BLOCKS
        if one.walked and summed >= MANY_ROWS
        else SMALL_BLOCKS[bool(one.walked) and summed > 1, bool(one.merges) and chunks]
        for one in launches
    )
    return [dict(zip(("BLOCK_P", "BLOCK_R", "BLOCK_Q"), values, strict=True)) for values in blocks]


def extent(axes: int, sizes: dict[str, int]) -> int:
    """Number of elements along axes."""
    return math.prod(sizes[name] for name in extents(axes))


def workspace(module: TritonModule, sizes: dict[str, int]) -> tuple[list[tuple[int, int]], int]:
    """First and last element of each array of the workspace, each on a line of its own, and how many there are in all.

    Args:
        module: the module.
        sizes: from `TritonModule.shape`.
    """
    places, total = [], 0
    for array in module.work:
        count = math.prod(sizes[name] for name in array.shape)
        places.append((total, total + count))
        total += cdiv(count, 64) * 64
    return places, total


def arguments(launch: Launch, sizes: dict[str, int], *, aligned: bool) -> tuple[tuple[int, ...], dict[str, int], int]:
    """(sizes in calling order, constexpr arguments by name, number of programs) of one launch.

    Args:
        launch: the launch.
        sizes: from `TritonModule.shape`.
        aligned: the contiguous extent is a multiple of 16.
    """
    values = tuple(sizes[name] for name in launch.size_names)
    groups = launch.parts if launch.walk == "cooperative" else (launch,)
    found = [one for group in groups for one in stage_blocks(group.parts or (group,), sizes, aligned=aligned)]
    if not launch.parts:
        return values, found[0][0], found[0][1]
    blocks = {part_block(name, i): b for i, (stage, _) in enumerate(found) for name, b in stage.items()}
    return values, blocks, sum(programs for _, programs in found)


def stage_blocks(stages: Sequence[Launch], sizes: dict[str, int], *, aligned: bool) -> list[tuple[dict[str, int], int]]:
    """(constexpr arguments by name, number of programs) of each stage of one launch."""
    small = [stage for stage in stages if stage.walk == "small"]
    merging = dict(zip(small, small_blocks(small, sizes), strict=True))
    found = []
    for stage in stages:
        i = stage.sweep
        if stage.walk == "small":
            blocks = merging[stage]
            programs = cdiv(extent(stage.space, sizes), blocks["BLOCK_P"])
        elif stage.walk == "slabs":
            blocks = sizes
            programs = sizes["PROGRAMS"]
        else:
            bc = sizes[f"BLOCK_C{i}"]
            blocks = {"BLOCK_C": bc, "BLOCK_S": sizes[f"BLOCK_S{i}"], "ALIGNED": int(aligned)}
            inner = {"rows": cdiv(sizes["C"], bc), "columns": 1, "groups": sizes["G"]}[stage.walk]
            programs = sizes["N"] * inner * sizes[f"Q{i}"]
        found.append(({name: blocks[name] for name in stage.blocks}, programs))
    return found
