"""What the GPU suite runs: one order of a layer by one kind of plan on one input, chosen so that all pairs of layer,
order, dtype, layout, kind, input and alignment that can be had are there, and every layer, order and kind together.

The choice is written down in `tests/goldens/gpu_cases.txt`, because planning them all takes longer than a worker of
the suite should wait; `python tests/gpu/cases.py` writes it again.
"""

from __future__ import annotations

import itertools
import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

from named import LAYERS as NAMED

import normforge as nf
from normforge.codegen.orders import Program, program
from normforge.codegen.plan import Plan
from normforge.codegen.shapes import plan_dims
from normforge.codegen.triton.cooperative import tile_channels
from normforge.codegen.triton.emit import emit_triton
from normforge.codegen.triton.kinds import KINDS, plan_of_kind
from normforge.codegen.triton.slab_plan import SLAB_KINDS, slabs_of
from normforge.kernels.job import layer_text

TABLE = Path(__file__).parents[1] / "goldens" / "gpu_cases.txt"
NESTED = {
    "nested-batch": "sigmoid(x / std[w,h,c/g](x)) * x / rms[b,w,h](x * sigmoid(x)/std[w,h](x)) * gamma + beta",
    "nested-columns": "(x-mean[c](x))/std[w,h](x)*gamma + mean[b,w,h](max(x,v1))",
    "nested-whole": "x*std[b,w,h,c](std[c](x)*v1)+tanh(mean[w,h,c](x*x))",
}
LAYERS = (*NAMED, *NESTED)
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("nchw", "nhwc")
# (shape, groups): one for each rung of the ladders of blocks and each trap.
INPUTS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "several-channels-a-group": ((2, 4, 2, 3), 2),
    "one-sample": ((1, 8, 3, 3), None),
    "one-position": ((2, 8, 1, 1), 2),
    "odd": ((2, 40, 3, 7), None),
    "flat": ((5, 12), 4),
    "volume": ((2, 6, 2, 3, 2), 2),
    "long-rows": ((2, 4, 97, 53), 2),
    "batch": ((40, 16, 4, 4), 4),  # merges of many rows, aligned rows of one vector
    "ragged": ((4, 64, 14, 14), 16),
    "wide": ((2, 128, 8, 8), 32),
    "large": ((2, 32, 56, 56), 8),
}
# Of each layer two cases are so: no large sums and no rounding of outputs that would hide a missing term.
TELLING = ("float32", "nchw", "several-channels-a-group", 0)
OFFSETS = (0, 1)  # elements that tensors start after an aligned address
TRIED = 100  # candidates that a greedy choice looks at
L2_BYTES = 50 << 20  # of an H100


class Case(NamedTuple):
    """The factors are all strings and numbers, so that a case is a line of the table."""

    layer: str
    order: int
    kind: str
    dtype: str
    layout: str
    input: str
    offset: int

    @property
    def graph(self) -> nf.Graph:
        return nf.parse(NESTED.get(self.layer, self.layer))

    @property
    def title(self) -> str:
        """As modules have it, so that their kernels are the same."""
        return layer_text(self.graph)

    @property
    def shape(self) -> tuple[int, ...]:
        return INPUTS[self.input][0]

    @property
    def dims(self) -> tuple[int, int, int, int]:
        return plan_dims(self.shape, INPUTS[self.input][1])

    @property
    def program(self) -> Program:
        return program(self.graph, self.order, True)

    @property
    def plan(self) -> Plan | None:
        return _plan(self.layer, self.order, self.kind, self.dtype, self.layout)

    @property
    def possible(self) -> bool:
        """There is such a plan, and it can run this input."""
        plan = self.plan
        if plan is None or (len(self.shape) == 2 and self.layout == "nchw"):  # channels are then contiguous
            return False
        if plan.kind in SLAB_KINDS:
            return slabs_of(plan).blocks(self.dims) is not None
        if plan.kind != "cooperative":
            return True
        return tile_channels(plan, emit_triton(plan, plan.symbol, self.title), self.dims, L2_BYTES) is not None

    def __str__(self) -> str:
        return " ".join(map(str, self))


@cache
def _plan(layer: str, order: int, kind: str, dtype: str, layout: str) -> Plan | None:
    return plan_of_kind(kind, program(nf.parse(NESTED.get(layer, layer)), order, True), dtype, layout)


def table() -> list[Case]:
    """The cases written down."""
    found = []
    for line in TABLE.read_text().splitlines():
        layer, order, kind, dtype, layout, input_, offset = line.split()
        found.append(Case(layer, int(order), kind, dtype, layout, input_, int(offset)))
    return found


def choose(seed: int = 0) -> list[Case]:
    """Telling cases of each layer; then greedily, for each layer, order and kind, and for each pair that is
    left, the case that adds most pairs."""
    every = [Case(*factors) for factors in itertools.product(LAYERS, range(3), KINDS, DTYPES, LAYOUTS, INPUTS, OFFSETS)]
    possible = [case for case in every if case.possible]
    of_pair: dict[tuple[object, ...], list[Case]] = {}
    of_text: dict[tuple[object, ...], list[Case]] = {}
    for case in possible:
        of_text.setdefault(case[:3], []).append(case)
        for pair in pairs(case):
            of_pair.setdefault(pair, []).append(case)
    rng = random.Random(seed)
    left, chosen = set(of_pair), []

    def add(candidates: list[Case]) -> None:
        some = candidates if len(candidates) <= TRIED else rng.sample(candidates, TRIED)
        best = max(some, key=lambda c: len(pairs(c) & left))
        chosen.append(best)
        left.difference_update(pairs(best))

    for layer, order in itertools.product(LAYERS, (1, 2)):
        kinds = (Case(layer, order, kind, *TELLING) for kind in ("resident", "multi-launch"))  # fewer kernels first
        add([next(case for case in kinds if case.possible)])
    for candidates in of_text.values():
        add(candidates)
    for pair, candidates in of_pair.items():
        if pair in left:
            add(candidates)
    return sorted(chosen)


def pairs(case: Case) -> set[tuple[object, ...]]:
    """Every two factors of a case, by place and value."""
    return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(enumerate(case), 2)}


if __name__ == "__main__":
    TABLE.write_text("".join(f"{case}\n" for case in choose()))
