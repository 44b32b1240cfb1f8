"""Which kind of plan a shape gets on a GPU: a written rule of shape, dtype, layout and device, never a measurement
at call time.

multi-launch  one kernel a sweep, small ones between; any shape, always there
resident      a program holds whole slabs in registers: each full tensor is loaded and stored once, in one launch
swept         a program walks its slab tile by tile, once a level of sums and once to store, in one launch; after the
              first walk the slab comes from the level-2 cache
cooperative   the kernels of multi-launch as one launch, over tiles that stay in the level-2 cache between sweeps
"""

from __future__ import annotations

from dataclasses import replace

from normforge.codegen.orders import Program
from normforge.codegen.plan import Plan, make_plan
from normforge.codegen.shapes import ITEM_BYTES, Dims
from normforge.codegen.target import Device
from normforge.codegen.triton.blocks import slab_sizes
from normforge.codegen.triton.division import divide
from normforge.codegen.triton.slab_plan import SLAB_KINDS, TARGET_NAME, slab_plan, slabs_of
from normforge.codegen.triton.slabs import extent
from normforge.ir.types import FULL

KINDS = ("multi-launch", "resident", "swept", "cooperative")


# What plans are made for where no device is at hand: an H200.
TYPICAL_DEVICE = Device(132, 50 << 20)


# Bytes of the full tensors of a slab that one program passes in about the time of the launches that it saves.
SHORT_SLAB = 256 << 10


def choose_plan(program: Program, dtype: str, layout: str, dims: Dims | None, device: Device) -> Plan:
    """The plan for target "triton" that a shape gets; the first of these that can run it.

    resident      a slab fits the largest tile that does not spill, whatever the number of programs: one takes a few
                  microseconds, less than the launches that are saved
    swept         as many slabs as there are processors, or short ones; of derivatives, only channels-last, and where
                  all tensors fit the level-2 cache: elsewhere their sums from kernels of their own are faster
    multi-launch  the rest: few large slabs have to be divided among processors

    The cooperative kind is not among them: where it applies, multi-launch is predicted to be faster (bench/predict.py)
    as long as no device has been asked. It can be had by name from `plan_of_kind`, and benchmarks compare it.

    Args:
        program: one order of a layer.
        dtype, layout: of x.
        dims: N, groups, channels a group, positions; None for those of which a slab stays on chip.
        device: where it will run.
    """
    resident = slab_plan(program, dtype, layout)
    if resident is not None and (dims is None or _holds(resident, dims, device)):
        return resident
    swept = slab_plan(program, dtype, layout, "swept")
    if swept is not None and dims is not None and _sweeps_well(swept, dims, device):
        return swept
    return make_plan(program, TARGET_NAME, dtype, layout)


def _holds(plan: Plan, dims: Dims, device: Device) -> bool:
    slabs = slabs_of(plan)
    blocks = slabs.blocks(dims)
    return blocks is not None and blocks.rung in slabs.rungs_on(device.capability)


def _sweeps_well(plan: Plan, dims: Dims, device: Device) -> bool:
    slabs = slabs_of(plan)
    if slabs.blocks(dims) is None:
        return False
    programs = slab_sizes(slabs, dims)["PROGRAMS"]
    tensors = len({n for s in plan.sweeps for n in s.loads}) + plan.writes
    total = extent(FULL, dims) * tensors * ITEM_BYTES[plan.dtype]
    busy = programs >= device.processors or total // programs <= SHORT_SLAB
    return busy and (plan.order == 0 or (plan.layout == "nhwc" and total <= device.l2_bytes))


def plan_of_kind(kind: str, program: Program, dtype: str, layout: str) -> Plan | None:
    """The plan of a kind for target "triton"; None where there is none."""
    if kind in SLAB_KINDS:
        return slab_plan(program, dtype, layout, kind)
    plan = make_plan(program, TARGET_NAME, dtype, layout)
    if kind != "cooperative":
        return plan
    plan = replace(plan, kind=kind)
    return plan if divide(plan) is not None else None
