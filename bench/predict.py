"""Times of compiled kernels on a GPU that is not there, from their machine code.

For each launch, four times:

memory   bytes moved, over the bandwidth of a copy; what is read again while it is in the level-2 cache, over that of
         the cache
issue    instructions of all warps, one a cycle and scheduler
pipe     the busiest unit: integer and compare; shuffles, shared memory and accesses; transcendental functions
latency  the life of a program, in which an instruction waits for the operands that it reads, times the waves
         of programs

An instruction counts as often as the loops around it run (see `loops`). The prediction is the cubic norm of the four:
the largest alone where it stands out, more where several are near each other. `fast` is the largest, as if all
overlapped, and `slow` their sum, as if nothing did. Each launch adds a constant.

Nothing here was fitted to a measurement: see `costs` for the rates. In bench/results/aot_before.json, by_hand has what
was predicted by hand from the same machine code before there was this model, beside what the model says of it.

    python bench/predict.py gn-silu --order 1 --layout nhwc
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from costs import CACHE, Cost, Kernel, Tile
from loops import Text
from rich.console import Console
from rich.table import Table
from waits import cycles

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import ITEM_BYTES
from normforge.codegen.triton.cooperative import channel_block, programs_at_once, tile_channels
from normforge.codegen.triton.division import Tiled, divide
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kernels import SweepKernel
from normforge.codegen.triton.kinds import TYPICAL_DEVICE, choose_plan, plan_of_kind
from normforge.codegen.triton.launch import Launch, TritonModule, part_block, stage_blocks
from normforge.codegen.triton.target import TritonTarget
from normforge.ir.types import B
from normforge.kernels.launch_triton import CompiledKernel, compile_aot, full_pointers, resources
from normforge.kernels.sass import disassemble, parse

Dims = tuple[int, int, int, int]

# An H100 of 80 GB with HBM3.
CLOCK = 1.7e9
PROCESSORS = 132
COPY = 3.0e12  # bytes a second, read and written: nine tenths of the paper's
L2_COPY = 5.5e12
REGISTERS, SHARED, THREADS = 65536, 228 << 10, 2048  # of a processor
LAUNCH = 3e-6  # seconds from the end of a kernel to the first instruction of the next


@dataclass(frozen=True)
class LaunchPrediction:
    """One kernel.

    Attributes:
        name: of the kernel, after the number of its launch.
        programs, warps, registers, shared, blocks: the grid, a program's warps, a thread's registers, a program's bytes
            of shared memory, and how many programs a processor runs at once.
        tiles: by loop.
        dram, cache: bytes from or to memory, and those that the level-2 cache has.
        times: seconds by limit.
        idle: of a cooperative kernel, seconds of a step in which a program waits or merges.
    """

    name: str
    programs: int
    warps: int
    registers: int
    shared: int
    blocks: int
    tiles: tuple[Tile, ...]
    dram: float
    cache: float
    times: dict[str, float]
    idle: float = 0.0

    @property
    def seconds(self) -> float:
        """Predicted, without the launch."""
        return sum(t**3 for t in self.times.values()) ** (1 / 3)

    @property
    def rate(self) -> float:
        """Bytes from and to memory a second."""
        return self.dram / self.seconds

    @property
    def fast(self) -> float:
        """The largest limit."""
        return max(self.times.values())

    @property
    def slow(self) -> float:
        """The sum of the limits."""
        return sum(self.times.values())

    @property
    def limit(self) -> str:
        """The largest limit by name."""
        return max(self.times, key=lambda k: self.times[k])


@dataclass(frozen=True)
class Prediction:
    """All launches of a plan at a shape; `floor` and `moved` are bytes of full tensors, each once and as planned."""

    kind: str
    launches: tuple[LaunchPrediction, ...]
    floor: float
    moved: float

    @property
    def seconds(self) -> float:
        """Predicted; a cooperative kernel has its counters zeroed before it."""
        extra = self.kind == "cooperative"
        return sum(one.seconds for one in self.launches) + LAUNCH * (len(self.launches) + extra)

    @property
    def share(self) -> float:
        """Of the copy's bandwidth, counted in the bytes of the floor."""
        return self.floor / self.seconds / COPY

    @property
    def planned_share(self) -> float:
        """The same in the bytes that the plan moves: memory's part is 1 where the plan is all that keeps it lower."""
        return self.moved / self.seconds / COPY

    def as_row(self) -> dict[str, Any]:
        """Plain figures: of each kernel the loop over tiles that has the most instructions."""
        kernels = []
        for one in self.launches:
            row: dict[str, Any] = {"name": one.name, "us": round(one.seconds * 1e6, 2), "limit": one.limit}
            if tile := max(one.tiles, key=lambda t: t.instructions, default=None):
                row |= {
                    "instructions": tile.instructions, "barriers": tile.barriers, "shuffles": tile.shuffles,
                    "load_bytes": min(tile.load_bytes, default=0), "in_flight": tile.loads_in_flight,
                }  # fmt: skip
                if tile.divisions:
                    row["divisions"] = tile.divisions
            if one.idle:
                row["idle_us"] = round(one.idle * 1e6, 2)
            kernels.append(row | {"registers": one.registers, "blocks": one.blocks, "programs": one.programs})
        shares = {"share": round(self.share, 3), "of_plan": round(self.planned_share, 3)}
        return {"us": round(self.seconds * 1e6, 2)} | shares | {"kernels": kernels}


def predict(plan: Plan, dims: Dims, kernels: Sequence[CompiledKernel] | None = None) -> Prediction:
    """The time of a plan at a shape on an H100.

    Args:
        plan: for target "triton".
        dims: N, groups, channels a group, positions.
        kernels: as compiled for capability 90 and these dims; made here where not given.

    Raises:
        ShapeError: no tile holds a slab. ValueError: the text has a loop whose length cannot be told.
    """
    module = emit_triton(plan, plan.symbol)
    sizes = module.schedule.sizes(dims)
    if plan.kind == "cooperative":
        sizes["TILE"] = tile_channels(plan, module, dims, TYPICAL_DEVICE.l2_bytes) or sizes["TILE"]
    kernels = kernels or compile_aot(plan, 90, dims=dims)
    full = full_pointers(plan, module)
    traffic = _Traffic(plan, module, dims, sizes, full)
    text = Text(module.source)
    found = [
        _launch(plan, launch, compiled, text, full, sizes, traffic)
        for launch, compiled in zip(module.launches, kernels, strict=True)
    ]
    return Prediction(plan.kind, tuple(found), traffic.floor, traffic.moved)


def _launch(
    plan: Plan, launch: Launch, compiled: CompiledKernel, text: Text, full: Sequence[str],
    sizes: dict[str, int], traffic: _Traffic,
) -> LaunchPrediction:  # fmt: skip
    warps, used = compiled.warps, resources(compiled)
    blocks = programs_at_once(
        used.registers, compiled.shared, warps=warps, threads=THREADS, register_file=REGISTERS, shared_memory=SHARED
    )
    found = stage_blocks(launch, sizes)
    whole, stages = dict(sizes), []
    for i, (stage, (its, programs)) in enumerate(zip(launch.stages, found, strict=True)):
        whole |= {part_block(name, i): value for name, value in its.items()}
        here = sizes | its | {name: sizes[long] for name, long in zip(stage.sizes, stage.size_names, strict=True)}
        for name in "QL":  # functions of the prelude say Q for Q0 and Q1
            here.setdefault(name, max((sizes.get(f"{name}{m}", 1) for m in stage.merges), default=1))
        stages.append((stage, here, programs))
    grid = sum(programs for _, programs in found)
    if launch.cooperative:
        grid = min(grid, PROCESSORS * blocks)
    code = parse(disassemble(compiled.asm["cubin"]))
    kernel = Kernel(code, compiled.asm["ptx"], text, launch, full, stages, whole, grid)
    total, through, longest = Cost(), 0.0, 0.0
    for cost, life, programs in kernel.programs():
        total.add(cost, programs * warps)
        through += programs * life / (PROCESSORS * blocks)
        longest = max(longest, life)
    if launch.cooperative:
        longest = through = _steps(kernel, plan, sizes, grid)
    uneven = ceil(grid / PROCESSORS) * PROCESSORS / grid
    seconds = {unit: cycles * uneven / PROCESSORS / CLOCK for unit, cycles in total.units.items()}
    waves = grid / (PROCESSORS * blocks)
    dram, cache = traffic.of(launch, blocks)
    times = {
        "memory": max(dram / COPY, (dram + cache) / L2_COPY),
        "issue": seconds.pop("issue"),
        "pipe": max(seconds.values(), default=0.0),
        "latency": max(longest, through * ceil(waves) / waves if waves > 1 else through) / CLOCK,
    }
    return LaunchPrediction(
        launch.kernel.split("_", 2)[2], grid, warps, used.registers, compiled.shared, blocks, tuple(kernel.tiles),
        dram, cache, times, kernel.idle / CLOCK,
    )  # fmt: skip


def _steps(kernel: Kernel, plan: Plan, sizes: dict[str, int], grid: int) -> float:
    """Cycles of a cooperative launch of so many programs."""
    division = divide(plan)
    assert division is not None
    channels, tile = sizes["C"] * (sizes["N"] if plan.slab & B else 1), sizes["TILE"]

    def items(tiled: Tiled, number: int) -> int:
        block, point = channel_block(plan, tiled)
        unit = kernel.whole[block] * (sizes[point] if point else 1)
        run = min(tile // unit, -(-channels // unit) - number * (tile // unit))
        chunks = sizes[f"Q{tiled.kernel.index}"] if isinstance(tiled.kernel, SweepKernel) else 1
        return run * chunks * (sizes["N"] if tiled.by_sample and not plan.slab & B else 1)

    return cycles(
        division, items, kernel.lives, tiles=-(-channels // tile), grid=grid, beside=kernel.step / len(division.tiled),
        poll=CACHE, flag=CACHE, all_wait="if first < items:" not in kernel.text.source,
    )  # fmt: skip


class _Traffic:
    """Bytes of each launch: from memory, or from the level-2 cache where they are there already."""

    def __init__(
        self, plan: Plan, module: TritonModule, dims: Dims, sizes: dict[str, int], full: Sequence[str]
    ) -> None:
        self.plan, self.module, self.full = plan, module, full
        self.tensor = prod(dims) * ITEM_BYTES[plan.dtype]
        inputs = len({node for sweep in plan.sweeps for node in sweep.loads})
        self.floor = (inputs + plan.writes) * self.tensor
        self.moved = (plan.loads + plan.writes) * self.tensor if plan.kind == "multi-launch" else self.floor
        self.again = plan.loads - inputs  # loads of what has been loaded
        self.work = {w.name: 4 * prod(sizes[name] for name in w.shape) for w in module.schedule.arrays}
        self.fits = self.floor + sum(self.work.values()) <= TritonTarget.on_chip_bytes
        self.programs = sizes.get("PROGRAMS", 1)  # that hold slabs
        self.seen: set[str] = set()

    def of(self, launch: Launch, blocks: int) -> tuple[float, float]:
        """(From or to memory, from the level-2 cache.)"""
        dram = cache = 0.0
        for pointer in launch.pointers:
            size = self.tensor if pointer in self.full else self.work.get(pointer.removesuffix("_ptr"), 0)
            small = pointer not in self.full and size <= TritonTarget.on_chip_bytes / 2
            there = small or (self.fits and pointer in self.seen)
            cache, dram = (cache + size, dram) if there else (cache, dram + size)
            self.seen.add(pointer)
        if self.plan.kind in ("swept", "cooperative"):
            held = self.floor * min(1.0, PROCESSORS * blocks / self.programs)
            again = self.again * self.tensor
            if self.plan.kind == "cooperative" or held <= TritonTarget.on_chip_bytes:
                cache += again
            else:
                dram += again
        return dram, cache


# The shapes of the table of `aot`: a layer of ResNet-50 at batch 128, and tokens of 4096 channels.
TABLE_DIMS: dict[str, Dims] = {"image": (128, 32, 8, 56 * 56), "tokens": (8, 32, 128, 2048)}


def tokens(layer: str) -> bool:
    """True for layers that normalize over channels alone."""
    return layer in ("layernorm-gelu", "rmsnorm")


def plan_for(graph: nf.Graph, order: int, dtype: str, layout: str, kind: str, dims: Dims) -> Plan | None:
    """The plan of a kind, or with kind "chosen" the one that the shape gets; None where there is none."""
    wanted = program(graph, order, True)
    if kind == "chosen":
        return choose_plan(wanted, dtype, layout, dims, TYPICAL_DEVICE)
    return plan_of_kind(kind, wanted, dtype, layout)


def table(found: Prediction) -> Table:
    """A line a launch, and one a loop over tiles of it."""
    out = Table(box=None, pad_edge=False)
    for name in ("kernel", "programs", "warps", "registers", "blocks", "us", "fast", "slow", "limits, us"):
        out.add_column(name, justify="left" if name in ("kernel", "limits, us") else "right")
    for one in found.launches:
        us = (f"{t * 1e6:.1f}" for t in (one.seconds, one.fast, one.slow))
        limits = ", ".join(f"{name} {t * 1e6:.1f}" for name, t in one.times.items())
        out.add_row(one.name, *map(str, (one.programs, one.warps, one.registers, one.blocks)), *us, limits)
        for tile in one.tiles:
            out.add_row(*[""] * 8, f"  {tile}")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layer", help="a name or a formula")
    parser.add_argument("--order", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layout", default="nchw")
    parser.add_argument("--kind", default="chosen")
    parser.add_argument("--dims", default="128,32,8,3136", help="N, groups, channels a group, positions")
    args = parser.parse_args()
    n, g, k, s = map(int, args.dims.split(","))
    plan = plan_for(nf.parse(args.layer), args.order, args.dtype, args.layout, args.kind, (n, g, k, s))
    if plan is None:
        print(f"no plan of kind {args.kind}")
        return 1
    found = predict(plan, (n, g, k, s))
    print(
        f"{found.kind}: {found.seconds * 1e6:.1f} us, {found.share:.2f} of a copy, {found.planned_share:.2f} as planned"
    )
    Console(width=240).print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
