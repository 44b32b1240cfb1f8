"""Which kind of plan a shape gets on a GPU: a written rule of shape, dtype, layout and device, never a measurement
at call time.

multi-launch  one kernel a sweep, small ones between; any shape, always there
resident      a program holds whole slabs in registers: each full tensor is loaded and stored once, in one launch
"""

from __future__ import annotations

from dataclasses import dataclass

from normforge.codegen.orders import Program
from normforge.codegen.plan import Plan, make_plan
from normforge.codegen.resident import resident_plan, walk_of
from normforge.codegen.triton_slabs import Dims, choose_blocks

KINDS = ("multi-launch", "resident", "swept", "cooperative")


@dataclass(frozen=True)
class Device:
    """What the rule needs to know of a GPU.

    Attributes:
        processors: streaming multiprocessors, or compute units.
        l2_bytes: of the level-2 cache.
    """

    processors: int
    l2_bytes: int


# What plans are made for where no device is at hand: an H200.
TYPICAL_DEVICE = Device(132, 50 << 20)


def choose_plan(program: Program, dtype: str, layout: str, dims: Dims | None, device: Device) -> Plan:
    """The plan for target "triton" that a shape gets.

    A slab that fits registers is resident, whatever the number of programs: one of them takes a few microseconds,
    less than the launches that it saves.

    Args:
        program: one order of a layer.
        dtype, layout: of x.
        dims: N, groups, channels a group, positions; None for those of which a slab stays on chip.
        device: where it will run.
    """
    resident = resident_plan(program, dtype, layout)
    if resident is not None and (dims is None or choose_blocks(walk_of(resident), dims, resident.tile)):
        return resident
    return make_plan(program, "triton", dtype, layout)


def plan_of_kind(kind: str, program: Program, dtype: str, layout: str) -> Plan | None:
    """The plan of a kind for target "triton"; None where there is none."""
    return resident_plan(program, dtype, layout) if kind == "resident" else make_plan(program, "triton", dtype, layout)
