"""Which kind of plan a shape gets on a GPU: a written rule of shape, dtype, layout and device, never a measurement
at call time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from normforge.codegen.plan import Plan

KINDS = ("multi-launch", "resident", "swept", "cooperative")


@dataclass(frozen=True)
class Device:
    """What the rule needs to know of a GPU.

    Attributes:
        processors: streaming multiprocessors, or compute units.
        l2_bytes: of the level-2 cache.
        cooperative: a launch whose programs cannot all run at once is refused.
    """

    processors: int
    l2_bytes: int
    cooperative: bool = True


# What plans are made for where no device is at hand: an H200.
TYPICAL_DEVICE = Device(132, 50 << 20)


def choose_kind(plan: Plan, dims: tuple[int, int, int, int], device: Device) -> str:
    """One of `KINDS`.

    Args:
        plan: of any kind, for target "triton".
        dims: N, groups, channels a group, positions.
        device: where it will run.
    """
    # After every kind that keeps a slab in registers.
    if device.cooperative and _cooperative(plan, dims, device):
        return "cooperative"
    return "multi-launch"


def _cooperative(plan: Plan, dims: tuple[int, int, int, int], device: Device) -> bool:
    from normforge.codegen.triton import emit_triton  # where it is needed: `import normforge` makes no kernels
    from normforge.codegen.triton_cooperative import divide, suits

    plan = replace(plan, kind="cooperative")
    if plan.dtype == "float64" or divide(plan) is None:
        return False
    module = emit_triton(plan, plan.symbol)
    return suits(plan, module, dims, processors=device.processors, l2_bytes=device.l2_bytes)
