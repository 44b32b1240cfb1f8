"""Cooperative plans: the same stages with the same blocks as the multi-launch kind, in an order that never waits for
what has not begun; tiles that fit; and which shapes get such a plan."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import Plan, make_plan
from normforge.codegen.target import Device
from normforge.codegen.triton.cooperative import channel_block, programs_at_once, tile_channels
from normforge.codegen.triton.division import counters, divide
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kernels import SweepKernel
from normforge.codegen.triton.kinds import choose_plan
from normforge.codegen.triton.launch import arguments
from normforge.errors import BackendError
from normforge.ir.types import B, G, K

LAYERS = ["bn-relu", "gn-silu", "ln-relu", "in-relu", "frn-tlu", "evonorm-b0", "evonorm-s0"]
TWO_LEVELS = "sigmoid(x / std[b,w,h](x)) * x / rms[b,w,h](x * sigmoid(x) / std[w,h](x)) * gamma + beta"
DIMS = (32, 32, 8, 56 * 56)
H200 = Device(132, 50 << 20)


def plan_of(layer: str, order: int, kind: str = "cooperative", layout: str = "nchw") -> Plan:
    return replace(make_plan(program(nf.parse(layer), order, True), "triton", "float32", layout), kind=kind)


def functions(source: str) -> dict[str, str]:
    """Text of each function by name."""
    return {text.split("(", 1)[0]: text for text in re.split(r"\n@triton\.jit.*\ndef ", source)[1:]}


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("layer", [*LAYERS, TWO_LEVELS])
def test_calls_the_stages_of_the_twin(layer: str, order: int) -> None:
    ours, twins = (emit_triton(plan_of(layer, order, kind), "nf") for kind in ("cooperative", "multi-launch"))
    mine, theirs = functions(ours.source), functions(twins.source)
    stages = [name for name in theirs if name.endswith("_stage")]
    assert [name for name in mine if name.endswith("_stage")] == stages
    assert all(mine[name] == theirs[name] for name in stages)
    calls = re.findall(r"(nf_\w+_stage)\(", mine["nf_cooperative"])
    assert sorted(calls) == sorted(stages)
    sizes = ours.schedule.sizes(DIMS)
    blocks = arguments(ours.launches[0], sizes)[1]
    separate = [arguments(launch, sizes)[1] for launch in twins.launches]
    assert list(blocks.values()) == [value for one in separate for value in one.values()]
    assert ours.launches[0].pointers[-1] == "counters_ptr" and ours.schedule.arrays == twins.schedule.arrays


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("layer", [*LAYERS, TWO_LEVELS])
def test_nothing_waits_for_what_has_not_begun(layer: str, order: int) -> None:
    division = divide(plan_of(layer, order))
    assert division is not None
    passed: list[tuple[int, int]] = []
    tiles = 4
    for step in range(tiles + max(t.lag for t in division.tiled)):
        for t in division.tiled:
            if 0 <= step - t.lag < tiles:
                assert t.after < 0 or (t.after, step - t.lag) in passed
                passed.append((t.number, step - t.lag))
    assert len(set(passed)) == len(passed) == tiles * len(division.tiled)
    for _, _, after in division.last:
        assert after < 0 or (after, tiles - 1) in passed
    # Each stage waits for what it reads, by way of the stages before it.
    chain = {t.number: t.after for t in division.tiled}
    kernels = {t.number: t.kernel for t in division.tiled}
    for number, kernel, after in [(t.number, t.kernel, t.after) for t in division.tiled] + list(division.last):
        before = set()
        while after >= 0:
            before.add(after)
            after = chain[after]
        assert {i for i, k in kernels.items() if i != number and k.gives & kernel.needs} <= before, number


class Run:
    """The text of a cooperative kernel run by programs in any order: its waits are those of generators, its stages are
    noted. What is known of a work item is what its program knows: all items that it waited for, and what they knew."""

    def __init__(self, layer: str, order: int, dims: tuple[int, int, int, int], budget: int, grid: int) -> None:
        plan = plan_of(layer, order)
        self.module = emit_triton(plan, "nf")
        division = divide(plan)
        assert division is not None
        launch = self.module.launches[0]
        tile = tile_channels(plan, self.module, dims, budget)
        assert tile is not None
        self.tile, self.sizes = tile, self.module.schedule.sizes(dims) | {"TILE": tile}
        values, self.blocks, _ = arguments(launch, self.sizes)
        text = functions(self.module.source)["nf_cooperative"]
        text = re.sub(r": tl.constexpr", "", "def " + text).replace(".to(tl.int64)", "")
        self.stages = [stage.stage for stage in launch.stages]
        names = "|".join((*self.stages, "arrive", "wait"))
        text = re.sub(rf"^( +)({names})\(", r"\1yield from \2(pid, ", text, flags=re.MULTILINE)
        text = text.replace("yield from", "yield; yield from", 1)  # a generator in any case
        self.knows: list[set[tuple[str, int]]] = [set() for _ in range(grid)]  # by program
        self.said: dict[int, set[tuple[str, int]]] = {}  # by counter
        self.counts: dict[int, int] = {}
        self.done: dict[tuple[str, int], set[tuple[str, int]]] = {}  # by item, what its program knew
        self.programs = []
        pointers = [0 if p == "counters_ptr" else None for p in launch.pointers]
        for pid in range(grid):
            language = SimpleNamespace(
                cdiv=lambda a, b: -(-a // b),
                minimum=min,
                program_id=lambda _, pid=pid: pid,
                num_programs=lambda _: grid,
            )
            scope = {"tl": language, "pid": pid, "rotate": lambda f, i, g: (f + g - i % g) % g}
            scope |= {"arrive": self.arrive, "wait": self.wait} | {s: self.stage(s) for s in self.stages}
            exec(text, scope)
            self.programs.append(scope["nf_cooperative"](*pointers, *values, **self.blocks))

    def stage(self, name: str) -> Callable[..., Iterator[None]]:
        def run(program: int, pid: int, *_: object) -> Iterator[None]:
            yield
            assert (name, pid) not in self.done, f"{name}: {pid} twice"
            self.done[name, pid] = set(self.knows[program])
            self.knows[program].add((name, pid))

        return run

    def arrive(self, program: int, counter: int) -> Iterator[None]:
        yield
        self.counts[counter] = self.counts.get(counter, 0) + 1
        self.said.setdefault(counter, set()).update(self.knows[program])

    def wait(self, program: int, counter: int, programs: int) -> Iterator[None]:
        while self.counts.get(counter, 0) < programs:
            yield
        self.knows[program] |= self.said[counter]

    def items(self, plan: Plan, dims: tuple[int, int, int, int], blocks: dict[str, int]) -> dict[str, dict[int, int]]:
        """The tile of each item of the stages that run tile by tile."""
        n, g, k, _ = dims
        division = divide(plan)
        assert division is not None
        found: dict[str, dict[int, int]] = {}
        for tiled in division.tiled:
            block, point = channel_block(plan, tiled)
            unit = blocks[block] * {"": 1, "K": k, "C": g * k}[point]
            chunks = self.sizes[f"Q{tiled.kernel.index}"] if isinstance(tiled.kernel, SweepKernel) else 1
            channels = n * g * k if plan.slab & B else g * k
            width = -(-channels // unit)
            samples = n if tiled.by_sample and not plan.slab & B else 1
            places = range(samples * width * chunks)
            found[self.stages[tiled.number]] = {i: i // chunks % width * unit // self.tile for i in places}
        return found

    def to_the_end(self, rng: random.Random) -> None:
        running = list(self.programs)
        for _ in range(200_000):
            if not running:
                return
            one = rng.choice(running)
            if next(one, "end") == "end":
                running.remove(one)
        raise AssertionError("programs wait for ever")


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("layer", ["bn-relu", "in-relu", "evonorm-b0", TWO_LEVELS])
def test_programs_in_any_order(layer: str, order: int) -> None:
    """Nobody waits for ever; every item is done once, by a program that knows of all items of its tile that the stage
    before it had."""
    dims = (2, 4, 6, 2000)
    plan = plan_of(layer, order)
    division = divide(plan)
    assert division is not None
    budget = next(b for b in range(10, 40) if tile_channels(plan, emit_triton(plan, "nf"), dims, 1 << b))
    for grid, seed in ((1, 0), (3, 1), (7, 2), (40, 3)):
        run = Run(layer, order, dims, 1 << budget, grid)
        run.to_the_end(random.Random(seed))
        items = run.items(plan, dims, run.blocks)
        assert len(set(items[run.stages[0]].values())) > 1, "one tile"
        last = {run.stages[number] for number, *_ in division.last}
        assert {(name, i) for name in items for i in items[name]} == {one for one in run.done if one[0] not in last}
        before = {run.stages[t.number]: run.stages[t.after] for t in division.tiled if t.after >= 0}
        for (name, item), known in run.done.items():
            if name in last:
                assert known >= {(other, i) for other in items for i in items[other]}
            elif name in before:
                tile, other = items[name][item], before[name]
                assert known >= {(other, i) for i, where in items[other].items() if where == tile}
        assert len(run.counts) == counters(plan, dims, run.tile)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dims", [DIMS, (128, 32, 64, 49), (3, 6, 8, 20), (8, 32, 4, 512 * 512)])
def test_tiles_are_whole_blocks_and_fit(layer: str, dims: tuple[int, int, int, int]) -> None:
    plan = plan_of(layer, 1)
    module = emit_triton(plan, "nf")
    tile = tile_channels(plan, module, dims, 50 << 20)
    if tile is None:
        return
    _, blocks, _ = arguments(module.launches[0], module.schedule.sizes(dims))
    n, g, k, s = dims
    division = divide(plan)
    assert division is not None
    for t in division.tiled:
        if isinstance(t.kernel, SweepKernel):
            assert tile % blocks[f"BLOCK_C_{t.number}"] == 0
    samples = 1 if plan.slab & B else n
    assert tile * samples * s * 4 * (2 * 2 + 1) <= 0.4 * (50 << 20)  # two inputs of two tiles, and an output
    slab = 1 if plan.slab & K else k if plan.slab & G else g * k
    assert tile % slab == 0


def test_only_what_can_be_cut() -> None:
    for layer in ("rmsnorm", "layernorm-gelu", "dyt"):
        assert divide(plan_of(layer, 0)) is None
    assert divide(plan_of("bn-relu", 0, layout="nhwc")) is None
    assert divide(make_plan(program(nf.parse("bn-relu"), 0, False), "triton", "float32", "nchw")) is None
    with pytest.raises(BackendError, match="cooperative"):
        emit_triton(plan_of("dyt", 0), "nf")


def test_which_shapes() -> None:
    """Not chosen before a device has said that it is faster."""
    for dims in (DIMS, (8, 32, 2, 28 * 28), (256, 32, 2, 224 * 224), (128, 32, 32, 14 * 14)):
        for layout in ("nchw", "nhwc"):
            plan = choose_plan(program(nf.parse("bn-relu"), 0, True), "float32", layout, dims, H200)
            assert plan.kind != "cooperative"


def test_programs_at_once() -> None:
    hopper = {"warps": 4, "threads": 2048, "register_file": 65536, "shared_memory": 228 << 10}
    assert programs_at_once(64, 512, **hopper) == 8
    assert programs_at_once(79, 512, **hopper) == 6
    assert programs_at_once(32, 512, **hopper) == 16
    assert programs_at_once(16, 0, **hopper) == 16  # threads
    assert programs_at_once(32, 100 << 10, **hopper) == 2
    assert programs_at_once(255, 300 << 10, **hopper) == 1
