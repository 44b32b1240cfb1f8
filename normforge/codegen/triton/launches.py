"""The schedule of a plan for a GPU: which kernels a call launches, over how many programs, with which sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from normforge.codegen.plan import Plan
from normforge.codegen.schedule import PlannedLaunch, PlannedStage, Schedule
from normforge.codegen.shapes import ITEM_BYTES, Dims
from normforge.codegen.triton.blocks import DIMS, SWEEP_THREADS, VECTOR_BYTES, slab_sizes, sweep_sizes
from normforge.codegen.triton.division import Division, divide, tiles
from normforge.codegen.triton.kernels import Kernel, SweepKernel
from normforge.codegen.triton.schedule import launch_groups
from normforge.codegen.triton.slab_plan import SLAB_KINDS, slabs_of
from normforge.codegen.triton.slabs import Slabs, cdiv
from normforge.codegen.triton.tiles import ALIGNMENTS
from normforge.codegen.triton.walks import SweepWalk
from normforge.codegen.triton.workspace import number_values, work_arrays
from normforge.ir.node import Node
from normforge.ir.types import S

# Of a tile, for each thread: what it loads of all tensors at once, and the sums that it keeps through the walk.
LOADED_BYTES = 64
KEPT_SUMS = 96
LINE = 64  # elements: arrays of the workspace start at multiples of it


@dataclass(frozen=True, kw_only=True)
class TritonStage(PlannedStage):
    """A stage of a kernel, which the source has a device function for.

    Attributes:
        kernel: what it computes.
    """

    kernel: Kernel


@dataclass(frozen=True)
class TritonLaunch(PlannedLaunch):
    """A launch of stages that do not wait for each other.

    Attributes:
        stages: all but the last are for small values.
    """

    stages: tuple[TritonStage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TritonSchedule(Schedule):
    """The schedule of a plan for a GPU.

    Attributes:
        groups: the launches of stages that do not wait for each other. A cooperative plan launches all of them at
            once, with the blocks that they would have alone.
        values: in the order of the numbers that the source names them by.
        layout: "nchw" or "nhwc".
        itemsize: bytes of an element of a full tensor.
        tiles: elements of a tile, by sweep. walks: how each sweep is walked. None of both where programs own slabs.
        slabs: how they do.
    """

    groups: tuple[TritonLaunch, ...]
    values: tuple[Node, ...]
    layout: str
    itemsize: int
    tiles: tuple[int, ...]
    walks: tuple[SweepWalk, ...]
    slabs: Slabs | None

    def sizes(self, dims: Dims) -> dict[str, int]:
        """Every size and block of a call: N, G, K, S, C, and Q, L, BLOCK_C, BLOCK_S, THREADS, VECTOR of each sweep by
        number. ALIGNED says what the contiguous extent is a multiple of. TILE, the channels that a cooperative launch
        does at a time, is all of them, where its device has no say.

        Args:
            dims: N, groups, channels a group, positions.

        Raises:
            ShapeError: programs own slabs, and one of these dims does not fit.
        """
        sizes = dict(zip(DIMS, dims, strict=True))
        sizes["C"] = sizes["TILE"] = sizes["G"] * sizes["K"]
        if self.slabs is not None:
            return sizes | slab_sizes(self.slabs, dims)
        contiguous = sizes["S"] if self.layout == "nchw" else sizes["C"]
        sizes["ALIGNED"] = next(a for a in ALIGNMENTS if contiguous % a == 0)
        for i, (tile, walk) in enumerate(zip(self.tiles, self.walks, strict=True)):
            found = sweep_sizes(self.layout, walk, tile, sizes, self.itemsize)
            sizes |= {f"{name}{i}": value for name, value in found.items()}
        return sizes

    def places(self, sizes: dict[str, int]) -> tuple[list[tuple[int, int]], int]:
        """First and last element of each array of the workspace, each on a line of its own, and how many there are in
        all.

        Args:
            sizes: from `sizes`.
        """
        places, total = [], 0
        for array in self.arrays:
            count = array.count.value(sizes)
            places.append((total, total + count))
            total += cdiv(count, LINE) * LINE
        return places, total

    def workspace(self, dims: Dims) -> int:
        """As `Schedule.workspace`; the arrays hold float32."""
        return 4 * self.places(self.sizes(dims))[1]


@lru_cache(maxsize=1024)
def triton_schedule(plan: Plan) -> TritonSchedule:
    """The schedule of a plan for target "triton"."""
    kernels = launch_groups(plan)
    flat = [kernel for group in kernels for kernel in group]
    stages = iter([_stage(i, kernel) for i, kernel in enumerate(flat)])
    groups = tuple(_launch([next(stages) for _ in group]) for group in kernels)
    values = number_values(plan, flat)
    arrays = work_arrays(plan, [(s.name, k) for s, k in zip(_stages(groups), flat, strict=True)], values)
    division = divide(plan) if plan.kind == "cooperative" else None
    launches = groups if division is None else _cooperative(plan, groups, division)
    sweeps = () if plan.kind in SLAB_KINDS else range(len(plan.sweeps))
    # The first kernel of a sweep decides its chunks.
    walks = tuple(next(k.walk for k in flat if isinstance(k, SweepKernel) and k.index == i) for i in sweeps)
    return TritonSchedule(
        launches,
        arrays,
        groups=groups,
        values=values,
        layout=plan.layout,
        itemsize=ITEM_BYTES[plan.dtype],
        tiles=tuple(tile_elements(plan, i) for i in sweeps),
        walks=walks,
        slabs=slabs_of(plan) if plan.kind in SLAB_KINDS else None,
    )


def _stage(number: int, kernel: Kernel) -> TritonStage:
    return TritonStage(f"{number}_{kernel.label}", str(kernel), kernel.programs, kernel.chunks, kernel=kernel)


def _launch(stages: list[TritonStage]) -> TritonLaunch:
    """Stages that share a launch have the number of the first, and the names of all."""
    first, *others = [stage.name for stage in stages]
    return TritonLaunch("_".join([first, *(name.split("_", 1)[1] for name in others)]), tuple(stages))


def _stages(groups: tuple[TritonLaunch, ...]) -> tuple[TritonStage, ...]:
    return tuple(stage for group in groups for stage in group.stages)


def _cooperative(plan: Plan, groups: tuple[TritonLaunch, ...], division: Division) -> tuple[PlannedLaunch, ...]:
    """A launch that zeroes the counters, and one that does all stages: the programs of a stage are items, which those
    that run take in turn."""
    stages = _stages(groups)
    ends = " + 1" if division.ends else ""
    zeroes = f"zeroes int32[{len(division.counted)} * {tiles(plan)}{ends}], in which programs count themselves"
    order = [f"{stages[t.number].name}{f' {t.lag} behind' if t.lag else ''}" for t in division.tiled]
    last = f"; at the end {', '.join(stages[number].name for number, *_ in division.last)}" if division.last else ""
    how = f"as many programs as run at once, over {tiles(plan)} tiles: {', '.join(order)}{last}"
    return PlannedLaunch("counters", (), zeroes), PlannedLaunch("cooperative", stages, how)


def tile_elements(plan: Plan, index: int) -> int:
    """Elements of a tile of a sweep. Several loads of 16 bytes a thread are under way at once, one of each tensor at
    least, and fewer of each where there are more tensors, so that registers are enough. Where sums run across the
    contiguous axis a thread keeps one for each element of a load: loads are narrower for many sums."""
    sweep = plan.sweeps[index]
    item = ITEM_BYTES[plan.dtype]
    vector = VECTOR_BYTES // item
    each = max(LOADED_BYTES // (VECTOR_BYTES * max(len(sweep.loads), 1)), 1)
    tile = SWEEP_THREADS * vector * (1 << each.bit_length() - 1)
    across = [n for n in sweep.sums if bool(n.reduced & S) == (plan.layout == "nhwc")]
    while vector > 1 and len(across) * vector > KEPT_SUMS:
        vector //= 2
        tile = SWEEP_THREADS * vector
    return tile
