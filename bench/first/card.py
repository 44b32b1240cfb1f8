"""The card that a stage measures on, or what stands in for it in a rehearsal; plans made ready on it, and timed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import Clock, figures
from stand_in import PROPERTIES, Request, kernels, tensors, use_driver

from first.rows import Rows, words
from first.shapes import Dims, Place
from normforge.codegen.plan import Plan, is_data
from normforge.codegen.target import Device
from normforge.codegen.triton.cooperative import programs_at_once
from normforge.codegen.triton.kinds import TYPICAL_DEVICE
from normforge.kernels import direct
from normforge.kernels.backends import describe_gpu

SECONDS = 0.02  # of device time for a plan, about
MOST_CALLS = 20
AFRESH = 15.0  # seconds that are enough for a new process to be of use


@dataclass
class Card:
    """Where plans run.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal, whose launches do nothing and whose numbers mean nothing.
        clock: times on it. properties: as torch has them.
    """

    device: str
    clock: Clock
    properties: Any

    @staticmethod
    def find(*, rehearse: bool) -> Card:
        """The first GPU; in a rehearsal an H100 that launches nothing."""
        if not rehearse:
            return Card("cuda", Clock("cuda"), torch.cuda.get_device_properties(0))
        use_driver()
        return Card("cpu", Clock("cpu"), PROPERTIES)

    @property
    def described(self) -> Device:
        """What the choice of a kind asks."""
        return describe_gpu(torch.device("cuda", 0)) if self.device == "cuda" else TYPICAL_DEVICE

    def again_if_lost(self, rows: Rows) -> None:
        """After an illegal access a process can do nothing more on its device: a new one then goes on with the stage,
        whose rows so far tell it where."""
        try:
            self.clock.wait()
        except RuntimeError as error:
            if rows.left < AFRESH:
                raise
            rows.add("device lost", error=words(error))
            script = str(Path(__file__).parents[1] / "first_gpu.py")
            more = ["--stage", rows.stage, "--rows", str(rows.path), "--seconds", f"{rows.left:.1f}"]
            os.execv(sys.executable, [sys.executable, script, *more])

    @property
    def stream(self) -> dict[str, Any]:
        """The field of a loaded plan that asks for the current stream, where there is none to be asked for."""
        return {} if self.device == "cuda" else {"stream": lambda index: 0}

    def load(self, plan: Plan, title: str) -> Any:
        """The callable of a plan."""
        from normforge.kernels.launch_cooperative import CooperativeObject
        from normforge.kernels.launch_triton import load

        loaded = load(plan, title)
        if self.device == "cuda":
            return loaded
        if isinstance(loaded, CooperativeObject):
            twin = replace(loaded.twin, **self.stream)
            return replace(loaded, **self.stream, properties=lambda index: self.properties, twin=twin)
        return replace(loaded, **self.stream)

    def tensors(self, plan: Plan, dims: Dims, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
        """Operands, saved statistics positive, and outputs full of NaN."""
        if self.device == "cpu":
            made = tensors(Request(plan, "", dims))
            return made[: len(plan.operands)], made[len(plan.operands) :]
        generator = torch.Generator("cuda").manual_seed(seed)
        given, made = [], []
        sizes = [t.numel() for t in tensors(Request(plan, "", dims))]
        for node, size in zip((*plan.operands, *(n for _, n in plan.outputs)), sizes, strict=True):
            dtype = getattr(torch, plan.dtype) if is_data(node) else torch.float32
            if len(given) == len(plan.operands):
                made.append(torch.full((size,), float("nan"), dtype=dtype, device="cuda"))
                continue
            value = torch.randn(size, device="cuda", dtype=dtype, generator=generator)
            given.append(value.abs_().add_(0.5) if node.name.startswith("saved") else value)
        return given, made

    def time(self, loaded: Any, given: Sequence[Tensor], dims: Dims) -> dict[str, float]:
        """Milliseconds of the device with a cold level-2 cache: median, p20, p80."""

        def step() -> None:
            loaded(given, dims)

        step(), step()
        host = self.clock.enqueue(step)
        once = self.clock.wall(step, 2)
        calls = max(5, min(MOST_CALLS, int(SECONDS / max(once, 1e-6)))) if self.device == "cuda" else 2
        return figures(self.clock.block(step, calls, host))

    def copy_bandwidth(self, size: int) -> float:
        """Bytes a second, read and written, of a copy of this many bytes with a cold cache."""
        a = torch.empty(size, dtype=torch.uint8, device=self.device)
        b = torch.empty_like(a)
        a.fill_(1)
        times = self.clock.block(lambda: b.copy_(a), 10 if self.device == "cuda" else 2, 1e-5)
        return 2 * size / median(times)


def compiled(loaded: Any, request: Request) -> list[dict[str, Any]]:
    """For each kernel of a plan that was run: name, grid, registers a thread, bytes spilled, shared bytes and warps of
    a program, and programs that a processor runs at once."""
    functions = getattr(loaded, "functions", None) or {"": loaded.function}
    made = {}
    for function in functions.values():
        for caches in getattr(function, "device_caches", {}).values():
            made |= {(kernel.name, kernel.metadata.num_warps): kernel for kernel in caches[0].values()}
    plan = request.plan
    text = loaded.module
    call = direct.PreparedLaunches(text, text.schedule.sizes(request.dims))
    grids = [programs for _, _, programs in call.launches]
    found = []
    for kernel, grid in zip(kernels(request), grids, strict=True):
        one = made.get((kernel.name, kernel.warps))
        if one is None or getattr(one, "n_regs", None) is None:
            continue
        used, shared = one.n_regs, one.metadata.shared
        found.append({
            "name": kernel.name, "programs": grid if plan.kind != "cooperative" else None, "registers": used,
            "spilled": one.n_spills, "shared": shared, "warps": kernel.warps,
            "blocks_an_sm": at_once(used, shared, kernel.warps),
        })  # fmt: skip
    return found


def at_once(registers: int, shared: int, warps: int) -> int:
    """Programs that a processor of an H100 runs at once."""
    return programs_at_once(
        registers,
        shared,
        warps=warps,
        threads=PROPERTIES.max_threads_per_multi_processor,
        register_file=PROPERTIES.regs_per_multiprocessor,
        shared_memory=PROPERTIES.shared_memory_per_multiprocessor,
    )


def about(place: Place, plan: Plan) -> dict[str, Any]:
    """The columns that say what a row is of."""
    return {
        "layer": place.layer, "shape": list(place.shape), "layout": place.layout, "dtype": place.dtype,
        "order": plan.order, "kind": plan.kind,
    }  # fmt: skip


def elements(place: Place) -> int:
    """Of a full tensor."""
    return prod(place.shape)
