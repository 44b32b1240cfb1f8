"""Which stages of a cooperative plan run tile by tile, which wait for which, and what is counted meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from normforge.codegen.index import Ceil, extents
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import Dims
from normforge.codegen.triton.kernels import SlabKernel, SmallKernel, SweepKernel
from normforge.codegen.triton.schedule import launch_groups
from normforge.codegen.triton.walks import ROWS
from normforge.ir.types import B, C, G, S

COUNTERS = "counters_ptr"


@dataclass(frozen=True)
class Tiled:
    """A stage that runs tile by tile.

    Attributes:
        number: in the order of `launch_groups`, which names its blocks.
        kernel: the stage.
        lag: how many tiles it is behind the first sweep.
        after: number of the stage of the same tile that it waits for; -1 for the first.
    """

    number: int
    kernel: SweepKernel | SmallKernel
    lag: int
    after: int

    @property
    def by_sample(self) -> bool:
        """True where its programs are numbered sample by sample."""
        return isinstance(self.kernel, SweepKernel) or bool(self.kernel.space & B)


@dataclass(frozen=True)
class Division:
    """The stages of a cooperative plan.

    Attributes:
        tiled: in the order of a step.
        last: (number, kernel, number of the stage that all tiles must have passed, or -1) of those that run at the end.
    """

    tiled: tuple[Tiled, ...]
    last: tuple[tuple[int, SweepKernel | SmallKernel, int], ...]

    @property
    def counted(self) -> tuple[int, ...]:
        """The stages that other stages of a tile wait for: they have a counter a tile."""
        return tuple(sorted({t.after for t in self.tiled} - {-1}))

    @property
    def ends(self) -> bool:
        """True where stages at the end wait for tiles: the last counter is of programs that have passed them all."""
        return any(after >= 0 for *_, after in self.last)


@lru_cache(maxsize=1024)
def divide(plan: Plan) -> Division | None:
    """The stages of a cooperative plan. None for a plan without a second sweep, with sums over channels position by
    position, or with sweeps that need small values from across slabs; and where nothing can be cut into tiles."""
    kernels = [k for group in launch_groups(plan) for k in group if not isinstance(k, SlabKernel)]
    sweeps = [k for k in kernels if isinstance(k, SweepKernel)]
    if len(sweeps) < 2 or any(k.walk is not ROWS for k in sweeps) or not plan.slab & (B | G) or plan.layout != "nchw":
        return None
    wanted: set[int] = set()  # what a sweep needs; the rest can wait
    for i in reversed(range(len(kernels))):
        if isinstance(kernels[i], SweepKernel) or any(kernels[i].gives & kernels[j].needs for j in wanted):
            wanted.add(i)
    tiled: list[Tiled] = []
    seen, after = 0, -1
    for i in sorted(wanted):
        kernel = kernels[i]
        if isinstance(kernel, SweepKernel):
            tiled.append(Tiled(i, kernel, seen, after))
            seen += 1
        elif kernel.space & plan.slab == plan.slab and not kernel.space & S:
            tiled.append(Tiled(i, kernel, max(seen - 1, 0), after))
        else:
            return None
        after = i
    last = []
    for i in sorted(set(range(len(kernels))) - wanted):
        needed = [j for j in range(i) if kernels[j].gives & kernels[i].needs]
        if not wanted.issuperset(needed):
            return None
        last.append((i, kernels[i], max(needed, default=-1)))
    # A merge comes after all sweeps of the step, but for one that a first sweep needs.
    tiled.sort(key=lambda t: (0 if t.after < 0 else 1 if isinstance(t.kernel, SweepKernel) else 2, t.number))
    return Division(tuple(tiled), tuple(last))


def tiles(plan: Plan) -> Ceil:
    """How many there are: of TILE channels, or of those of all samples one after the other."""
    return Ceil(extents(plan.slab & B | C), "TILE")


def counters(plan: Plan, dims: Dims, tile: int) -> int:
    """How many integers, zero at first, a launch counts its programs in: one a tile and stage that is waited for, and
    one for the end.

    Args:
        plan: of kind "cooperative".
        dims: N, groups, channels a group, positions.
        tile: channels.
    """
    division = divide(plan)
    if division is None:
        return 0
    sizes = {"N": dims[0], "C": dims[1] * dims[2], "TILE": tile}
    return len(division.counted) * tiles(plan).value(sizes) + division.ends
