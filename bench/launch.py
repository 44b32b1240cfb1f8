"""What Python does for one call of a compiled layer on a GPU: microseconds a call and a launch. Needs no GPU.

    python bench/launch.py

In the place of each compiled kernel stands a function that takes the arguments and returns, and CPU tensors stand for
those of the device, so what is timed is everything before Triton's launcher: addresses, alignment, workspace,
argument lists. The launcher itself and the driver add two to three microseconds a launch on common machines, which
bench/gpu.py measures.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import normforge as nf
from normforge.codegen.orders import program
from normforge.codegen.plan import make_plan
from normforge.codegen.shapes import plan_dims
from normforge.codegen.triton import emit_triton
from normforge.kernels.job import Job, allocate
from normforge.kernels.launch_triton import TritonObject

SHAPE = (8, 64, 14, 14)
CALLS, ROUNDS = 2000, 7


class Nothing:
    """A compiled kernel that does nothing, and the function that Triton's front would compile it from."""

    function, packed_metadata = 1, (4, 1, 0)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self

    def run(self, *args: Any) -> None:
        """Launch nothing."""


def operands(layer: nf.Graph, order: int) -> list[Tensor]:
    """Tensors for a job at SHAPE, outputs last."""
    x, (n, g, k, s) = torch.empty(SHAPE), plan_dims(SHAPE)
    job = Job(order, True, g, layer)
    extents = {1: n, 2: g, 4: k, 8: s}
    given = [
        torch.empty_like(x) if full else torch.empty([e for axis, e in extents.items() if node.axes & axis])
        for node, full in zip(job.program.operands, job.full_operands, strict=True)
    ]
    return [*given, *allocate(job, given)]


def microseconds(layer: nf.Graph, order: int) -> tuple[float, int]:
    """Best of the rounds of the time of a call (a busy machine only adds to it), and how many launches it makes."""
    plan = make_plan(program(layer, order, True), "triton", "float32", "nchw")
    module = emit_triton(plan, plan.symbol)
    kernel = Nothing()
    call = TritonObject(module, {launch.kernel: kernel for launch in module.launches}, lambda index: 0)
    given, dims = operands(layer, order), plan_dims(SHAPE)
    call(given, dims)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call(given, dims)
        times.append((time.perf_counter() - start) / CALLS)
    return min(times) * 1e6, len(module.launches)


def main() -> None:
    """Print one row a layer and order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=",".join(nf.layers), help="names, separated by commas")
    options = parser.parse_args()
    table = Table("layer", "order", "launches", "us a call", "us a launch", title="Python before the launcher")
    for name in options.layers.split(","):
        for order in range(3):
            time_, launches = microseconds(nf.layers[name], order)
            table.add_row(name, str(order), str(launches), f"{time_:.1f}", f"{time_ / launches:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
