"""Triton as a target: what `normforge.codegen.target` asks of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normforge.codegen.orders import Program
from normforge.codegen.plan import Plan
from normforge.codegen.schedule import Schedule
from normforge.codegen.shapes import Dims, slab_bytes
from normforge.codegen.target import Device, Target
from normforge.codegen.triton.kinds import KINDS, TYPICAL_DEVICE, choose_plan
from normforge.codegen.triton.launches import triton_schedule
from normforge.codegen.triton.names import CODE
from normforge.codegen.triton.slab_plan import TARGET_NAME

SLABS_AT_ONCE = 264  # programs of a swept plan that a data-centre GPU runs at once


class TritonTarget(Target):
    """Triton for GPUs: the kind of a plan is chosen by shape and device."""

    name = TARGET_NAME
    dtypes = ("float32", "bfloat16", "float16")
    code_for_op = CODE
    kinds = KINDS
    # Multi-launch plans pass a whole tensor between launches, through the level-2 cache of a data-centre GPU.
    on_chip = "L2"
    on_chip_bytes = 40 << 20

    def plan(
        self, program: Program, dtype: str, layout: str, dims: Dims | None = None, device: Device | None = None
    ) -> Plan:
        """The plan of the kind that suits the dims; for a H200 where no device is given."""
        return choose_plan(program, dtype, layout, dims, device or TYPICAL_DEVICE)

    def schedule(self, plan: Plan) -> Schedule:
        """The kernels, see `normforge.codegen.triton.launches`."""
        return triton_schedule(plan)

    def holder(self, plan: Plan) -> str:
        """Programs of resident plans have their slabs in registers."""
        return "registers" if plan.kind == "resident" else self.on_chip

    def stays(self, plan: Plan, shape: Sequence[int], groups: int | None = None) -> bool:
        """Resident and cooperative plans are those of slabs that stay; of swept ones as many have to as programs run at
        once; the sweeps of multi-launch pass whole tensors on."""
        if plan.kind in ("resident", "cooperative"):
            return True
        held = slab_bytes(replace(plan, slab=0), shape, groups)
        if plan.kind == "swept":
            held = min(held, SLABS_AT_ONCE * slab_bytes(plan, shape, groups))
        return held <= self.on_chip_bytes

    def emit(self, plan: Plan, title: str = "") -> str:
        """A Python module of Triton functions, whose names start with `plan.symbol`."""
        from normforge.codegen.triton.emit import emit_triton

        return emit_triton(plan, plan.symbol, title).source

    def workspace(self, plan: Plan, dims: Dims) -> int:
        """As `Target.workspace`; 0 for a dtype that is refused."""
        return super().workspace(plan, dims) if plan.dtype in self.dtypes else 0


TARGET = TritonTarget()
