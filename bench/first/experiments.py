"""Stage "experiments": what another choice in the making of kernels would give, a line each.

An experiment is a plan at a shape, and what is changed: constants and functions of normforge by module and name, or the
text of the kernels by a pattern. Add a line to EXPERIMENTS; what does not apply any more says so in its row instead of
failing the others.
"""

from __future__ import annotations

import gc
import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import Clock
from stand_in import PROPERTIES

from first.card import Card
from first.rows import Row, Rows
from first.shapes import TINY, Place
from normforge.codegen.plan import Plan
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.launches import triton_schedule
from normforge.codegen.triton.slab_plan import slab_plan

ENOUGH = 4.0  # seconds for one of them
# A loop of a kernel over tiles, in emitted text.
LOOP = r"for (\w+) in range\((.*)\):"


@dataclass(frozen=True)
class Experiment:
    """What is changed, and where it is measured.

    Attributes:
        name: in words.
        place, order, kind: the plan.
        constants: "module.NAME" of normforge.codegen or normforge.kernels -> value.
        text: (pattern, replacement) in the source, each of which must match.
    """

    name: str
    place: Place
    order: int
    kind: str
    constants: dict[str, Any] = field(default_factory=dict)
    text: tuple[tuple[str, str], ...] = ()


_BN_LAST = Place("bn-relu", (128, 256, 56, 56), "nhwc")
_BN_FIRST = Place("bn-relu", (128, 256, 56, 56), "nchw")
_EVO = Place("evonorm-b0", (128, 256, 56, 56), "nchw")
_GN = Place("gn-silu", (128, 64, 112, 112), "nchw")
_VAE = Place("gn-silu", (1, 128, 512, 512), "nchw")
_EVO_LAST = Place("evonorm-b0", (128, 256, 56, 56), "nhwc")
_BLOCKS, _COOPERATIVE, _LAUNCHES = "codegen.triton.blocks", "codegen.triton.cooperative", "codegen.triton.launches"
_PIPELINED = ((LOOP, r"for \1 in tl.range(\2, num_stages=3):"),)
_DEEPER = ((r"num_stages=1 if REST else 3", "num_stages=1 if REST else 4"),)
_UNPIPELINED = ((r"num_stages=1 if REST else 3", "num_stages=1"),)


def _at_most(registers: int) -> dict[str, Any]:
    """Of compilation: registers a thread, for more programs at once."""
    return {"kernels.launch_triton.warp_options": lambda options, warps: {"num_warps": warps, "maxnreg": registers}}


_AT_MOST_128 = _at_most(128)
EXPERIMENTS = (
    Experiment("loads of loops pipelined", _BN_LAST, 0, "multi-launch", text=_PIPELINED),
    Experiment("one tile more ahead", _EVO, 2, "multi-launch", text=_DEEPER),
    Experiment("no tile ahead", _EVO, 1, "multi-launch", text=_UNPIPELINED),
    Experiment("loads of loops pipelined", _GN, 0, "swept", text=_PIPELINED),
    Experiment("few programs, long chunks", _BN_FIRST, 0, "multi-launch", {f"{_BLOCKS}.ENOUGH_PROGRAMS": 1024}),
    Experiment("many programs, short chunks", _BN_FIRST, 0, "multi-launch", {f"{_BLOCKS}.ENOUGH_PROGRAMS": 16384}),
    Experiment("merges by wider programs", _VAE, 1, "multi-launch", {f"{_BLOCKS}.MANY_CHUNKS": 16}),
    Experiment("merges by narrow programs", _BN_LAST, 1, "multi-launch", {f"{_BLOCKS}.MANY_PARTS": 1 << 30}),
    Experiment("half the loads of a tile", _BN_FIRST, 0, "multi-launch", {f"{_LAUNCHES}.LOADED_BYTES": 32}),
    Experiment("narrow loads, more programs", _EVO_LAST, 2, "multi-launch", {f"{_LAUNCHES}.KEPT_SUMS": 32}),
    Experiment("a quarter of the cache for tiles", _BN_FIRST, 1, "cooperative", {f"{_COOPERATIVE}.L2_SHARE": 0.25}),
    Experiment("128 registers a thread", _GN, 0, "resident", _AT_MOST_128),
    Experiment("128 registers a thread", _EVO, 1, "multi-launch", _AT_MOST_128),
)  # fmt: skip
REHEARSED = (
    Experiment("loads of loops pipelined", TINY[0], 0, "swept", text=_PIPELINED),
    Experiment("a constant that is gone", TINY[0], 0, "multi-launch", {"codegen.triton.blocks.GONE": 1}),
)


def run(rows: Rows, *, rehearse: bool) -> None:
    """A row an experiment."""
    card = Card.find(rehearse=rehearse)
    for one in REHEARSED if rehearse else EXPERIMENTS:
        if rows.left < ENOUGH:
            rows.add("left out", name=one.name, place=str(one.place))
            continue
        place = {"layer": one.place.layer, "shape": list(one.place.shape), "layout": one.place.layout}
        if rows.has("experiment", name=one.name, **place, order=one.order):
            continue
        rows.attempt(
            "experiment", lambda one=one: measure(card, one), name=one.name, **place, order=one.order, kind=one.kind
        )  # type: ignore[misc]
        card.again_if_lost(rows)
        gc.collect()
        if card.device == "cuda":
            torch.cuda.empty_cache()


def measure(card: Card, one: Experiment) -> Row:
    """Milliseconds as it is and as it would be, by turns."""
    plan = planned(one)
    given, made = card.tensors(plan, one.place.dims)
    usual, step = card.load(plan, one.place.title), [*given, *made]
    before = card.time(usual, step, one.place.dims)
    with changed(one):
        other = planned(one)
        varied = build(card, other, one)
        after = card.time(varied, step, one.place.dims)
    again = card.time(usual, step, one.place.dims)
    least = min(before["median"], again["median"])
    return {"ms_before": least, "ms_after": after["median"], "faster_by": least / after["median"]}


def compile_only(one: Experiment) -> None:
    """What `measure` compiles beside the usual kernels, on the device that stands in for an H100."""
    card = Card("cpu", Clock("cpu"), PROPERTIES)
    with changed(one):
        plan = planned(one)
        build(card, plan, one)([t for part in card.tensors(plan, one.place.dims) for t in part], one.place.dims)


def planned(one: Experiment) -> Plan:
    """The plan as the constants are now."""
    plan = one.place.plan(one.order, one.kind)
    if plan is None:
        raise LookupError(f"{one.place} has no plan of kind {one.kind}")
    return plan


def build(card: Card, plan: Plan, one: Experiment) -> Any:
    """A callable that shares nothing with those of `load`."""
    from normforge.kernels import launch_triton
    from normforge.kernels.launch_cooperative import CooperativeObject

    module = emit_triton(plan, plan.symbol, one.place.title)
    for pattern, replacement in one.text:
        source, count = re.subn(pattern, replacement, module.source)
        if not count:
            raise LookupError(f"no text like {pattern!r}")
        module = replace(module, source=source)
    functions = launch_triton.execute_text(module.source, f"{plan.symbol}_{crc32(one.name.encode())}")
    if plan.kind != "cooperative":
        return launch_triton.TritonObject(module, functions, **card.stream)
    twin = card.load(replace(plan, kind="multi-launch"), one.place.title)
    options = dict(launch_triton.CUDA_OPTIONS)
    function = functions[module.launches[0].kernel]
    return CooperativeObject(
        plan, module, function, twin, options, properties=lambda index: card.properties, **card.stream
    )


@contextmanager
def changed(one: Experiment) -> Iterator[None]:
    """The constants of an experiment; what was worked out under others is forgotten before and after."""
    before: list[tuple[Any, str, Any]] = []
    try:
        for path, value in one.constants.items():
            home, name = path.rsplit(".", 1)
            module = importlib.import_module(f"normforge.{home}")
            if not hasattr(module, name):
                raise LookupError(f"normforge.{path} is gone")
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
        forget()
        yield
    finally:
        for module, name, was in before:
            setattr(module, name, was)
        forget()


def forget() -> None:
    """What was emitted and planned."""
    emit_triton.cache_clear()
    triton_schedule.cache_clear()
    slab_plan.cache_clear()
