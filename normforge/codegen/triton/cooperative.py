"""Plan kind cooperative: all sweeps in one launch, over tiles of slabs that stay in the level-2 cache between them.

The grid is persistent: as many programs as run at once, so that they can wait for each other. A tile is a range of
channels over the whole batch, or of channels of a few samples where the slab keeps the batch. Stages are those of the
multi-launch kind, with the same blocks and the same slots for partials: what one stage of one tile consists of are the
programs of its launch that lie in the tile, and the programs here take them in turn. So the numbers are those of the
multi-launch kind.

A step runs the first sweep of a tile, the second of the tile before it and so on, then the merges. A program that has
an item of a stage waits until all items of the stage before it of the same tile are done, and has a sweep of another
tile to do meanwhile; one without an item passes by, and nobody waits for it. What a stage before that has stored is
there too: who did an item of the stage between has waited for it. Nobody waits for ever: the programs all run at once,
pass the stages in one order, and wait only for stages before. Stages that no sweep needs, such as those of gradients of
parameters across slabs, come last, when all programs have passed all tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from normforge.codegen.index import extents
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import ITEM_BYTES
from normforge.codegen.stage import Stage
from normforge.codegen.triton.division import COUNTERS, Tiled, divide
from normforge.codegen.triton.kernels import SweepKernel
from normforge.codegen.triton.launch import Launch, TritonModule, arguments, kernel_head, part_block, stage_call
from normforge.errors import BackendError
from normforge.ir.types import B, G, K

# Share of the level-2 cache that tiles may fill: where it is two halves, what both read is there twice.
L2_SHARE = 0.4


def channel_block(plan: Plan, tiled: Tiled) -> tuple[str, str]:
    """What one program of a stage covers in channels: its block and what a point of it is (empty for a channel)."""
    if isinstance(tiled.kernel, SweepKernel):
        return part_block("BLOCK_C", tiled.number), ""
    space = tiled.kernel.space
    return part_block("BLOCK_P", tiled.number), "" if space & K else "K" if space & G else "C"


# -- text


def cooperative_launch(plan: Plan, kernel: str, launches: Sequence[Launch], pointers: Sequence[str]) -> Launch:
    """The one launch of a plan.

    Args:
        plan: of kind "cooperative".
        kernel: its name.
        launches: those of the multi-launch kind.
        pointers: every pointer of the text, in the order of arguments.

    Raises:
        BackendError: the plan cannot be divided into tiles.
    """
    if divide(plan) is None:
        raise BackendError("this derivative has no cooperative plan: it has one sweep, or nothing to cut tiles from")
    stages = [stage for launch in launches for stage in launch.stages]
    used = {p for stage in stages for p in stage.pointers}
    given = (*(p for p in pointers if p in used), COUNTERS)
    sizes = tuple(dict.fromkeys(name for stage in stages for name in stage.size_names))
    blocks = tuple(part_block(block, i) for i, stage in enumerate(stages) for block in stage.blocks)
    parts = tuple(launches)
    return Launch(kernel, None, given, (*sizes, "TILE"), blocks, parts, cooperative=True)


def cooperative_text(plan: Plan, launch: Launch) -> Stage:
    """The kernel that runs the stages of `launch` over tiles of TILE channels."""
    division = divide(plan)
    assert division is not None
    stages = launch.stages
    slots = {number: i for i, number in enumerate(division.counted)}
    out = Stage("    ")
    *lines, last = kernel_head(launch)
    out(*lines)
    with out.block(last, ""):
        out("grid = tl.num_programs(0)", "first = tl.program_id(0)  # the next item of a stage that this program takes")
        out("C = G * K", f"channels = {'N * C' if plan.slab & B else 'C'}", "tiles = tl.cdiv(channels, TILE)")
        out("row = tiles.to(tl.int64)  # counters of a stage, one a tile")
        lags = max(t.lag for t in division.tiled)
        with out.block(f"for step in range(0, tiles + {lags}):", ""):
            for tiled in division.tiled:
                before = next((t for t in division.tiled if t.number == tiled.after), None)
                _tiled_text(out, plan, tiled, before, stages[tiled.number], slots)
        if division.ends:
            done = f"{COUNTERS} + row * {len(slots)}"
            out(out.call("arrive", done))
        for number, kernel, after in division.last:
            assert not isinstance(kernel, SweepKernel)
            points = " * ".join(extents(kernel.space)) or "1"
            out(f"items = tl.cdiv({points}, {part_block('BLOCK_P', number)})")
            with out.block("if first < items:", ""):
                if after >= 0:
                    out(out.call("wait", done, "grid"))
                with out.block("for item in range(first, items, grid):", ""):
                    out(*_call(stages[number], "item", number))
            out(f"first = {out.call('rotate', 'first', 'items', 'grid')}")
    return out


def _tiled_text(
    out: Stage, plan: Plan, tiled: Tiled, before: Tiled | None, stage: Launch, slots: dict[int, int]
) -> None:
    """One stage of one tile, and the stage that it waits for: its programs lie in runs, one a sample where the tile
    spans the batch."""
    sweep = tiled.kernel.index if isinstance(tiled.kernel, SweepKernel) else None
    what = "merge" if sweep is None else f"sweep {sweep + 1}"
    out(f"tile = step - {tiled.lag}" if tiled.lag else "tile = step")
    inside = "(tile >= 0) & (tile < tiles)" if tiled.lag else "tile < tiles"
    with out.block(f"if {inside}:  # {what}", ""):
        unit, chunks, samples = _factors(plan, tiled)
        out(
            f"blocks = tl.cdiv(channels, {unit})",
            f"begin = tile * (TILE // {unit})",
            f"run = tl.minimum(TILE // {unit}, blocks - begin){chunks}",
            f"items = {samples}run",
        )
        pid = f"(item // run * blocks + begin){chunks} + item % run" if samples else f"begin{chunks} + item"
        with out.block("if first < items:", ""):
            if before is not None:
                unit, chunks, samples = _factors(plan, before)
                blocks = f"tl.minimum(TILE // {unit}, tl.cdiv(channels, {unit}) - tile * (TILE // {unit}))"
                out(f"awaited = {samples}{blocks}{chunks}  # items of the stage before")
                out(out.call("wait", _counter(slots[before.number], "tile"), "tl.minimum(awaited, grid)"))
            with out.block("for item in range(first, items, grid):", ""):
                out(*_call(stage, pid, tiled.number))
            if tiled.number in slots:
                out(out.call("arrive", _counter(slots[tiled.number], "tile")))
        out(f"first = {out.call('rotate', 'first', 'items', 'grid')}")


def _factors(plan: Plan, tiled: Tiled) -> tuple[str, str, str]:
    """What the items of a stage in a tile follow from, as text: channels of a program; chunks of positions; samples,
    where a tile is of channels of all."""
    block, point = channel_block(plan, tiled)
    chunks = f" * Q{tiled.kernel.index}" if isinstance(tiled.kernel, SweepKernel) else ""
    samples = "N * " if tiled.by_sample and not plan.slab & B else ""
    return f"({block} * {point})" if point else block, chunks, samples


def _counter(slot: int, tile: str) -> str:
    return f"{COUNTERS} + (row * {slot} + {tile})"


def _call(stage: Launch, pid: str, number: int) -> list[str]:
    return stage_call(stage, pid, tuple(part_block(name, number) for name in stage.blocks))


# -- sizes


def tile_channels(plan: Plan, module: TritonModule, dims: tuple[int, int, int, int], l2_bytes: int) -> int | None:
    """Channels of a tile: whole slabs and whole blocks of every stage, as many as fit.

    At a time the inputs of one tile for each sweep are in use, and the outputs of one tile.

    Args:
        plan: of kind "cooperative". module: its text.
        dims: N, groups, channels a group, positions.
        l2_bytes: of the level-2 cache.

    Returns:
        None where the smallest tile does not fit, or blocks do not end where samples do.
    """
    division = divide(plan)
    assert division is not None
    n, g, k, s = dims
    sizes = module.schedule.sizes(dims)
    _, blocks, _ = arguments(module.launches[0], sizes)
    extent = {"": 1, "K": k, "C": g * k}
    slab = k * (1 if plan.slab & G else g) if not plan.slab & K else 1
    units = [slab]
    for tiled in division.tiled:
        block, point = channel_block(plan, tiled)
        units.append(blocks[block] * extent[point])
        # Blocks of a sweep end where a sample does. Blocks of small values are counted through, so that a tile of all
        # samples needs whole ones in each.
        sweep = isinstance(tiled.kernel, SweepKernel)
        if (sweep if plan.slab & B else tiled.by_sample and not sweep) and g * k % units[-1]:
            return None
    unit = math.lcm(*units)
    inputs = len({node for sweep in plan.sweeps for node in sweep.loads})
    tensors = inputs * len(plan.sweeps) + plan.writes
    channel = s * (1 if plan.slab & B else n) * ITEM_BYTES[plan.dtype] * tensors
    tile = int(l2_bytes * L2_SHARE) // (channel * unit) * unit
    return tile or None


def programs_at_once(
    registers: int, shared: int, *, warps: int, threads: int, register_file: int, shared_memory: int
) -> int:
    """How many programs a processor runs at once, at least 1.

    Args:
        registers: a thread's. shared: bytes of shared memory of a program.
        warps: of a program.
        threads, register_file, shared_memory: what a processor has (threads, 32-bit registers, bytes).
    """
    by_registers = register_file // (-(-registers // 8) * 8 * 32 * warps)
    by_memory = shared_memory // (shared + 1024)  # 1 KB of each program's is the system's
    return max(min(by_registers, by_memory, threads // (32 * warps), 32), 1)
