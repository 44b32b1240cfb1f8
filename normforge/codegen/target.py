"""A target: what plans of derivatives are made for, and turned into source by. C and Triton are two.

A target is added by a class and two lines; nothing else asks for its name:

1. Derive from `Target`. `emit` is all that has no default: from a `Plan` to source. It reads what the plan says in
   this order: `prologue`; then of each sweep its `sums`, after it the small values of its stage; the `stores` of the
   last sweep; `epilogue` (see `normforge.codegen.plan`). Each node is an entry of `code_for_op`, a leaf, or a
   reduction. A target that chooses between several kinds of plan says which in `kinds`, and how in `plan`; one that
   launches several kernels a call says which in `schedule`.
2. `register(MyTarget())`. From here on `normforge.plan`, `normforge.source` and `explain` know it.
3. To run it, `normforge.kernels.backends.RUNNERS[name] = Runner(load, devices)`, where `load` makes a callable of a
   plan. It is called with operands and outputs as the plan names them, and N, groups, channels a group, positions; it
   writes the outputs. From here on `normforge.compile(..., backend=name)` takes it, with derivatives of every order.

tests/cpu/test_third_target.py adds one that is numpy source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from normforge.codegen.orders import Program
from normforge.codegen.plan import DTYPES, Plan, make_plan
from normforge.codegen.registry import find_target
from normforge.codegen.schedule import Schedule, one_call
from normforge.codegen.shapes import Dims, plan_dims, slab_bytes
from normforge.errors import DtypeError
from normforge.ir.ops import Op


@dataclass(frozen=True)
class Device:
    """What the choice of a kind of plan needs to know of a GPU.

    Attributes:
        processors: streaming multiprocessors, or compute units.
        l2_bytes: of the level-2 cache.
        capability: NVIDIA's compute capability, 10 times the major number plus the minor one; 0 for other makers.
    """

    processors: int
    l2_bytes: int
    capability: int = 90


class Target(ABC):
    """One way to run plans.

    Attributes:
        name: as `Plan.target` and users have it.
        dtypes: of x, that it computes.
        code_for_op: core operation -> expression over operands `{0}`, `{1}`, `{2}`.
        kinds: of plan, among which `plan` chooses; none where all its plans are run alike.
        on_chip: what holds a slab between its uses. on_chip_bytes: how large a slab it holds.
        keeps_workspace: kernels keep their workspace from call to call, instead of being given one.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = DTYPES
    code_for_op: ClassVar[Mapping[Op, str]]
    kinds: ClassVar[tuple[str, ...]] = ()
    on_chip: ClassVar[str] = "cache"
    on_chip_bytes: ClassVar[int]
    keeps_workspace: ClassVar[bool] = False

    def plan(
        self, program: Program, dtype: str, layout: str, dims: Dims | None = None, device: Device | None = None
    ) -> Plan:
        """The plan of a program.

        Args:
            program: one order of a layer.
            dtype, layout: of x.
            dims: N, groups, channels a group, positions; None for those of which a slab stays on chip.
            device: where it will run; None for a typical one.
        """
        return make_plan(program, self.name, dtype, layout)

    def place(self, plan: Plan, shape: Sequence[int] | None, groups: int | None = None) -> Plan:
        """The plan for a shape: is its slab resident? Without a shape it is taken to be.

        Raises:
            ShapeError: not (N, C, *spatial). DtypeError: no such dtype.
        """
        if plan.dtype not in DTYPES:
            raise DtypeError(f"dtype is one of {', '.join(DTYPES)}, not {plan.dtype!r}")
        if shape is None:
            return replace(plan, resident_in=self.holder(plan))
        plan_dims(shape, groups)
        stays = self.stays(plan, shape, groups)
        return replace(plan, shape=tuple(shape), resident_in=self.holder(plan) if stays else None)

    def holder(self, plan: Plan) -> str:
        """What holds a slab of a plan between its uses, where it fits."""
        return self.on_chip

    def stays(self, plan: Plan, shape: Sequence[int], groups: int | None = None) -> bool:
        """Does a slab stay on chip between its uses?"""
        return slab_bytes(plan, shape, groups) <= self.on_chip_bytes

    def schedule(self, plan: Plan) -> Schedule:
        """What one call of a plan launches: a function of the plan alone, so that it can be told without emitting."""
        return one_call(keeps_workspace=self.keeps_workspace)

    @abstractmethod
    def emit(self, plan: Plan, title: str = "") -> str:
        """The source of a plan; `title` goes into its first comment.

        Raises:
            BackendError: a dtype that the target lacks.
        """

    def workspace(self, plan: Plan, dims: Dims) -> int:
        """Bytes of partial sums that a call is given memory for, written by one kernel and read by another."""
        return plan.schedule.workspace(dims)


def place(plan: Plan, shape: Sequence[int] | None) -> Plan:
    """`Target.place` of the plan's target."""
    return find_target(plan.target).place(plan, shape)
