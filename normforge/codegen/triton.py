"""The Triton target: one self-contained file a derivative, from the plan, and how to launch it.

Plan kinds: multi-launch, one kernel a sweep and between them one a space of small values, for any shape; resident,
one kernel whose programs hold whole slabs; swept, one whose programs walk theirs. No atomics; results depend on
nothing but the shape.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from normforge.codegen.plan import Plan
from normforge.codegen.resident import SLAB_KINDS, slabs_of
from normforge.codegen.text import Lines
from normforge.codegen.triton_launch import DIMS, Launch, TritonModule
from normforge.codegen.triton_names import Storage
from normforge.codegen.triton_prelude import prelude
from normforge.codegen.triton_resident import ResidentText
from normforge.codegen.triton_schedule import (
    Kernel,
    SlabKernel,
    SweepKernel,
    launch_count,
    schedule,
    sum_operand,
)
from normforge.codegen.triton_slabs import Slabs
from normforge.codegen.triton_small import SmallText
from normforge.codegen.triton_sweep import SweepText
from normforge.codegen.triton_swept import SweptText
from normforge.errors import BackendError

__all__ = ["emit_triton", "launch_count"]

MANY_SUMS = 16  # accumulators of a sweep beyond which its tile shrinks


@lru_cache(maxsize=256)
def emit_triton(plan: Plan, name: str, title: str = "") -> TritonModule:
    """Text and launches of a plan; `name` starts the names of its kernels.

    Raises:
        BackendError: the plan is for float64.
    """
    if plan.dtype == "float64":
        raise BackendError("the Triton backend computes in float32: convert the input, or use backend='c' or 'eager'")
    storage = Storage(plan)
    texts: list[str] = []
    launches: list[Launch] = []
    for number, kernel in enumerate(schedule(plan)):
        body = Lines("    ")
        if isinstance(kernel, SlabKernel):
            (SweptText if plan.kind == "swept" else ResidentText)(storage, kernel).emit(body)
            kernel_name = f"{name}_{number}_slabs"
        elif isinstance(kernel, SweepKernel):
            SweepText(storage, kernel).emit(body)
            kernel_name = f"{name}_{number}_sweep{kernel.index + 1}"
        else:
            SmallText(storage, kernel).emit(body)
            kernel_name = f"{name}_{number}_small"
        launch = _launch(kernel, kernel_name, str(body), storage)
        texts.append(_kernel_text(kernel, launch, str(body), storage))
        launches.append(launch)
    body_text = "\n".join(texts)
    source = f"{_comment(plan, title)}\n{prelude(body_text)}\n{body_text}"
    return TritonModule(
        source,
        plan.layout,
        tuple(storage.operands.values()),
        tuple(storage.outputs),
        tuple(storage.work.values()),
        tuple(launches),
        *_sweep_tiles(plan),
    )


def _sweep_tiles(plan: Plan) -> tuple[tuple[int, ...], tuple[str, ...], Slabs | None]:
    """Tiles and walks of the sweeps, or how programs own slabs."""
    if plan.kind in SLAB_KINDS:
        return (), (), slabs_of(plan)
    count = range(len(plan.sweeps))
    return tuple(tile_elements(plan, i) for i in count), tuple(_walk(plan, i) for i in count), None


def tile_elements(plan: Plan, index: int) -> int:
    """Elements of a tile of a sweep: fewer where more values live at once, so that registers are enough."""
    if len(plan.sweeps[index].sums) > MANY_SUMS:
        return 256
    return 1024 if plan.order < 2 else 512


def _walk(plan: Plan, index: int) -> str:
    """The walk that decides the chunks of a sweep."""
    return next(k.walk for k in schedule(plan) if isinstance(k, SweepKernel) and k.index == index)


def _launch(kernel: Kernel, name: str, body: str, storage: Storage) -> Launch:
    words = set(re.findall(r"\w+", body))
    pointers = tuple(p for p in storage.shapes if p in words)
    if isinstance(kernel, SlabKernel):
        sizes = (*DIMS, *(s for s in ("SLABS", "WIDTH") if s in words))
        blocks = tuple(b for b in ("BLOCK_A", "BLOCK_E", "MANY", "ALIGNED") if b in words)
        return Launch(name, "slabs", -1, 0, (), (), pointers, sizes, blocks)
    if isinstance(kernel, SweepKernel):
        sizes = (*DIMS, *(s for s in ("Q", "L") if s in words))
        return Launch(name, kernel.walk, kernel.index, 0, (), (), pointers, sizes, ("BLOCK_C", "BLOCK_S", "ALIGNED"))
    merges = tuple(i for i in range(len(storage.plan.sweeps)) if f"Q{i}" in words)
    sizes = (*DIMS, *(f"{s}{i}" for i in merges for s in "QL" if f"{s}{i}" in words))
    larger = [sum_operand(n).axes for n in kernel.sums] + [n.axes for n in kernel.stores]
    walked = tuple(dict.fromkeys(a & ~kernel.space for a in larger if a & ~kernel.space))
    blocks = tuple(b for b in ("BLOCK_P", "BLOCK_R", "BLOCK_Q") if b in words)
    return Launch(name, "small", -1, kernel.space, walked, merges, pointers, sizes, blocks)


def _kernel_text(kernel: Kernel, launch: Launch, body: str, storage: Storage) -> str:
    out = Lines("    ")
    names = ", ".join(f'"{s}"' for s in launch.sizes)
    out("", f"@triton.jit(do_not_specialize=[{names}])")
    out(f"def {launch.kernel}(")
    for pointer in launch.pointers:
        out(f"    {pointer},  # {storage.shapes[pointer]}")
    out(f"    {', '.join(launch.sizes)},", f"    {', '.join(f'{b}: tl.constexpr' for b in launch.blocks)},", "):")
    return str(out) + "".join(f"    {line}\n" if line else "\n" for line in body.rstrip().split("\n"))


def _comment(plan: Plan, title: str) -> str:
    counted = replace(plan, launches=launch_count(plan))
    return "".join(f"# {line}\n" for line in f"{title}\n{counted}".strip().split("\n"))
