"""What the host does for emitted Triton text: sizes, blocks, grids. Frozen data and pure functions of the shape.

Blocks come from a short ladder, so that a kernel has at most five variants over all shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normforge.codegen.text import wrapped
from normforge.codegen.triton.names import Work, extents
from normforge.codegen.triton.slabs import ALIGNMENTS, Dims, Slabs, cdiv
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
        item_bytes: of an element of a full tensor.
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
    item_bytes: int
    tiles: tuple[int, ...]
    walks: tuple[str, ...]
    slabs: Slabs | None = None

    def shape(self, dims: tuple[int, int, int, int]) -> dict[str, int]:
        """Every size and block of a call: N, G, K, S, C, and Q, L, BLOCK_C, BLOCK_S, THREADS, VECTOR of each sweep by
        number. ALIGNED says what the contiguous extent is a multiple of. TILE, the channels that a cooperative launch
        does at a time, is all of them, where its device has no say.

        Args:
            dims: N, groups, channels a group, positions.
        """
        sizes = dict(zip(DIMS, dims, strict=True))
        sizes["C"] = sizes["TILE"] = sizes["G"] * sizes["K"]
        if self.slabs is not None:
            return sizes | slab_sizes(self.slabs, dims)
        contiguous = sizes["S"] if self.layout == "nchw" else sizes["C"]
        sizes["ALIGNED"] = next(a for a in ALIGNMENTS if contiguous % a == 0)
        for i, (tile, walk) in enumerate(zip(self.tiles, self.walks, strict=True)):
            bc, bs = sweep_blocks(self.layout, walk, tile, sizes, self.item_bytes)
            chunks, tiles = cdiv(sizes["S"], bs), 1
            if walk == "rows":
                wanted = cdiv(ENOUGH_PROGRAMS, sizes["N"] * cdiv(sizes["C"], bc))
                tiles = cdiv(chunks, min(wanted, chunks))
            sizes[f"BLOCK_C{i}"], sizes[f"BLOCK_S{i}"] = bc, bs
            sizes[f"L{i}"] = bs * tiles
            sizes[f"Q{i}"] = cdiv(chunks, tiles)
            vector = min(VECTOR_BYTES // self.item_bytes, sizes["ALIGNED"])
            sizes[f"THREADS{i}"], sizes[f"VECTOR{i}"] = own_elements(self.layout, walk, (bc, bs), vector)
        return sizes


def ladder(layout: str, walk: str, tile: int) -> tuple[tuple[int, int], ...]:
    """(BLOCK_C, BLOCK_S) of a sweep, for ever shorter contiguous axes: not the longest where the walk runs across it,
    which would leave few programs. With channels last one more for one position, where there is no space to sum."""
    along = (walk == "rows") == (layout == "nchw")
    pairs = [(tile // n, n) for n in CONTIGUOUS[0 if along else 1 :] if n <= tile]
    return tuple(pairs) if layout == "nchw" else (*((n, m) for m, n in pairs), (tile, 1))


def sweep_blocks(layout: str, walk: str, tile: int, sizes: dict[str, int], item: int) -> tuple[int, int]:
    """The rung of the ladder for a shape: the one that wastes least of tiles and of lines of memory, the longest of
    such. `item` is the bytes of an element."""
    pairs = ladder(layout, walk, tile)
    channels, positions = sizes["K"] if walk == "groups" else sizes["C"], sizes["S"]
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


def own_elements(layout: str, walk: str, blocks: tuple[int, int], vector: int) -> tuple[int, int]:
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
    if (walk == "rows") == (layout == "nchw"):
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
    n, _, _, s = slabs.folded(dims)
    return {
        "N": n, "S": s, "L0": blocks.length,
        "VECTOR": min(slabs.alignment(dims, blocks), VECTOR_BYTES // slabs.itemsize),
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
    """BLOCK_P, BLOCK_R and BLOCK_Q of the small stages of a launch: one of four for each, and decided for all together,
    so that merging does not multiply the variants of a kernel.

    One element a thread, mostly: a double backward merges up to 33 rows at once, and what shares a launch with a sweep
    should not take registers from it. Few points with much to add up take more.
    """
    rows = max((extent(axes, sizes) for one in launches for axes in one.walked), default=1)
    chunks = max((sizes[f"Q{i}"] for one in launches for i in one.merges), default=1)
    if chunks >= MANY_CHUNKS:
        summing, plain = (1, 4, 128), (1, 1, 256)
    elif rows * chunks >= MANY_PARTS:
        summing, plain = (1, 32, 8), (8, 1, 16)
    elif rows < MANY_ROWS and chunks > 1:
        summing, plain = (1, 8, 16), (8, 1, 16)
    else:
        summing, plain = (2, 32, 2), (128, 1, 1) if chunks == 1 else (8, 1, 16)
    blocks = (summing if one.walked else plain for one in launches)
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


def arguments(launch: Launch, sizes: dict[str, int]) -> tuple[tuple[int, ...], dict[str, int], int]:
    """(sizes in calling order, constexpr arguments by name, number of programs) of one launch.

    Args:
        launch: the launch.
        sizes: from `TritonModule.shape`.
    """
    values = tuple(sizes[name] for name in launch.size_names)
    groups = launch.parts if launch.walk == "cooperative" else (launch,)
    found = [one for group in groups for one in stage_blocks(group.parts or (group,), sizes)]
    if not launch.parts:
        return values, found[0][0], found[0][1]
    blocks = {part_block(name, i): b for i, (stage, _) in enumerate(found) for name, b in stage.items()}
    return values, blocks, sum(programs for _, programs in found)


def stage_blocks(stages: Sequence[Launch], sizes: dict[str, int]) -> list[tuple[dict[str, int], int]]:
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
            blocks = sizes | {name: sizes[f"{name}{i}"] for name in ("BLOCK_C", "BLOCK_S", "THREADS", "VECTOR")}
            inner = {"rows": cdiv(sizes["C"], bc), "columns": 1, "groups": sizes["G"]}[stage.walk]
            programs = sizes["N"] * inner * sizes[f"Q{i}"]
        found.append(({name: blocks[name] for name in stage.blocks}, programs))
    return found
