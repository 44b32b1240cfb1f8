"""C as a target: what `normforge.codegen.target` asks of one."""

from __future__ import annotations

from normforge.codegen.c.names import SMALL_CODE
from normforge.codegen.plan import Plan
from normforge.codegen.target import Target


class CTarget(Target):
    """C for CPUs, one object a derivative, called by a driver that divides slabs among threads.

    `code_for_op` is that of one double; sweeps have vectors (`normforge.codegen.c.names.VECTOR_CODE`).
    """

    name = "c"
    code_for_op = SMALL_CODE
    on_chip = "cache"
    on_chip_bytes = 6 << 20  # half of a common share of last-level cache
    keeps_workspace = True

    def emit(self, plan: Plan, title: str = "") -> str:
        """C source that defines the kernel `plan.symbol`."""
        from normforge.codegen.c.emit import emit_c

        return emit_c(plan, plan.symbol, title)


TARGET = CTarget()
