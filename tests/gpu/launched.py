"""What the GPU suite launches, found without a device: for counting its kernels, and for compiling them ahead."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "bench"), str(Path(__file__).parents[1])]

from cases import table  # noqa: E402
from stand_in import Request, recorded  # noqa: E402
from steps import COOPERATIVE, COOPERATIVE_GROUPS, COOPERATIVE_SHAPE, EVERY, MUTATED, mutated, walk  # noqa: E402

from normforge.codegen.shapes import plan_dims  # noqa: E402


def suite() -> list[Request]:
    """All that `pytest tests/gpu` launches, but for its search, which needs pydantic."""
    found: dict[Request, None] = {}
    for case in table():
        plan = case.plan
        assert plan is not None, f"there is no such plan any more: run tests/gpu/cases.py ({case})"
        found[Request(plan, case.title, case.dims, case.offset == 0)] = None
    dims = plan_dims(COOPERATIVE_SHAPE, COOPERATIVE_GROUPS)
    for case in COOPERATIVE:
        plan = case.plan
        assert plan is not None
        for either in (plan, replace(plan, kind="multi-launch")):
            found[Request(either, case.title, dims)] = None
    for case in MUTATED:
        found[Request(mutated(case), case.title, case.dims)] = None
    for step in EVERY:
        with recorded() as made:
            walk(step)
        found |= made
        if step.unaligned:
            found |= {request._replace(aligned=False): None for request in made}
    return list(found)
