"""What Python does for one call of a compiled layer on a GPU: microseconds a call and a launch. Needs no GPU.

    python bench/launch.py [--layers bn-relu,gn-silu] [--rounds 400]

In the place of each compiled kernel stands a function that takes the arguments and returns, and CPU tensors stand for
those of the device, so what is timed is everything before Triton's launcher. The launcher itself and the driver add two
to three microseconds a launch on common machines, and torch's allocator for the device some more, which bench/gpu.py
measures. A call's time is parted by stage:

    layer     the module: checks, parameters, running statistics
    autograd  from the module, or from autograd's engine, to the job: the autograd.Function and the saved tensors
    job       operands brought into shape, outputs allocated
    launcher  workspace, addresses, alignment, argument lists

"torch" is the part of the call that is torch's own: a module, an autograd.Function of as many tensors that computes
nothing, the engine that calls it, the blend of the running statistics, and the outputs by torch.empty_strided. "ours"
is the rest, a launch.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import normforge as nf
from normforge.codegen.plan import make_plan
from normforge.codegen.triton.emit import emit_triton
from normforge.kernels.empty import allocator
from normforge.kernels.execute import execute
from normforge.kernels.job import Job
from normforge.kernels.launch_triton import TritonObject
from normforge.kernels.prepare import statistic_shape
from normforge.kernels.run import run_plain

SHAPE = (8, 64, 14, 14)
CALLS = 25  # a round: shorter than a time slice, so that on a busy machine some rounds are undisturbed


class Nothing:
    """A compiled kernel that does nothing, and the function that Triton's front would compile it from."""

    function, packed_metadata = 1, (4, 1, 0)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self

    def run(self, *args: Any) -> None:
        """Launch nothing."""


class Null(torch.autograd.Function):
    """What torch needs for a function of these tensors, which saves them and the statistics."""

    @staticmethod
    def forward(ctx: Any, outputs: list[Tensor], kept: list[Tensor], *inputs: Tensor) -> Any:
        """Returns new tensors for the same memory: an output belongs to one call."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *kept)
        fresh = tuple(o.detach() for o in outputs)
        return fresh if len(fresh) > 1 else fresh[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Gradients without a graph."""
        return (None, None, *ctx.saved_tensors[: len(ctx.needs_input_grad) - 2])


def install(job: Job) -> TritonObject:
    """Let a job launch nothing, by Triton's road, on CPU tensors."""
    plan = make_plan(job.program, "triton", "float32", "nchw")
    module = emit_triton(plan, plan.symbol)
    kernel = Nothing()
    call = TritonObject(module, {launch.kernel: kernel for launch in module.launches}, lambda index: 0)
    kind = make_plan(job.program, "c", "float32", "nchw").kind
    job.kernels[torch.float32, "nchw", "c", kind] = call
    job.compiled_ahead.add((torch.float32, True))  # no C kernel is compiled ahead
    return call


def operands(job: Job) -> list[Tensor]:
    """Tensors for a job at SHAPE."""
    x, groups = torch.empty(SHAPE), job.groups
    return [
        torch.empty_like(x) if full else torch.empty(statistic_shape(node.axes, x, groups))
        for node, full in zip(job.program.operands, job.full_operands, strict=True)
    ]


def microseconds(call: Callable[[], Any], rounds: int) -> float:
    """Best of the rounds of the time of a call: a busy machine only adds to it."""
    call(), call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS)
    return min(times) * 1e6


def stages(job: Job, rounds: int) -> tuple[float, float, float, int]:
    """Microseconds of the job, of its launcher and of its outputs alone, and how many launches it makes."""
    object_, given = install(job), operands(job)
    with torch.no_grad():
        outputs = execute(job, given)
        (call,) = job.calls.values()
        empty = allocator(given[0].device)
        tensors = [*given, *outputs]
        return (
            microseconds(lambda: execute(job, given), rounds),
            microseconds(lambda: object_(tensors, call.dims), rounds),
            microseconds(
                lambda: [empty(shape, strides, dtype) for _, shape, strides, dtype, _ in call.outputs], rounds
            ),
            len(object_.module.launches),
        )


def rows(name: str, rounds: int) -> list[tuple[str, int, list[float]]]:
    """For each kind of call of a layer its launches, and microseconds: the call, its four stages, torch's part."""
    layer = nf.layers[name]
    module = nf.compile(layer, SHAPE[1], backend="c")
    forward = Job.parse(module._keys["c"][0][0][True])
    backward = forward.after()
    double = backward.after((0,))
    x = torch.randn(SHAPE)
    dy = torch.randn(SHAPE)
    identity = torch.nn.Identity()
    found = []

    def add(what: str, job: Job, call: float, before: float, torchs: float) -> None:
        whole, launcher, outputs, launches = measured[job.order]
        found.append(
            (what, launches, [call, before, call - before - whole, whole - launcher, launcher, torchs + outputs])
        )

    measured = {job.order: stages(job, rounds) for job in (forward, backward, double)}
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    statistics = [torch.ones_like(b) for b in buffers]
    own = microseconds(lambda: identity(x), rounds)
    if statistics:
        own += microseconds(lambda: torch._foreach_lerp_(buffers, statistics, 0.1), rounds)
        own += microseconds(lambda: module.num_batches_tracked.add_(1), rounds)
    leaves = [x.requires_grad_(), *module.parameters()]
    fresh, kept = [torch.empty(SHAPE)], [torch.ones(SHAPE[1]) for _ in range(forward.saved)]
    for what, context in (("forward, no gradients", torch.no_grad()), ("forward", torch.enable_grad())):
        with context:
            call = microseconds(lambda: module(x), rounds)
            inside = microseconds(lambda: run_plain(leaves, forward.key), rounds)
            null = 0.0
            if torch.is_grad_enabled():
                null = microseconds(lambda: Null.apply(fresh, kept, *leaves), rounds)
                null -= microseconds(lambda: fresh[0].detach(), rounds)
        add(what, forward, call, call - inside, own + null)
    y, z = module(x), Null.apply(fresh, kept, *leaves)
    call = microseconds(lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True), rounds)
    null = microseconds(lambda: torch.autograd.grad(z, leaves, dy, retain_graph=True), rounds)
    add("backward", backward, call, 0.0, null)
    first = torch.autograd.grad(y, leaves, dy.requires_grad_(), create_graph=True)[0]
    more = [torch.empty_like(t) for t in leaves]
    second = Null.apply(more, kept, *leaves, dy)[0]
    call = microseconds(lambda: torch.autograd.grad(first, [*leaves, dy], dy, retain_graph=True), rounds)
    null = microseconds(lambda: torch.autograd.grad(second, [*leaves, dy], dy, retain_graph=True), rounds)
    add("double backward", double, call, 0.0, null)
    return found


def main() -> None:
    """Print one row a layer and kind of call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", default=",".join(n for n, g in nf.layers.items() if g.is_plain), help="names, separated by commas"
    )
    parser.add_argument("--rounds", type=int, default=400, help=f"of {CALLS} calls; the best counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # nobody writes the statistics: what lies there may be slow to blend
    gc.disable()
    columns = ("launches", "us a call", "layer", "autograd", "job", "launcher", "a launch", "torch", "ours, a launch")
    table = Table("layer", "call", *columns, title="Microseconds of Python before Triton's launcher")
    for name in options.layers.split(","):
        for what, launches, (call, before, autograd, job, launcher, torchs) in rows(name, options.rounds):
            figures = (call, before, autograd, job, launcher, launcher / launches, torchs, (call - torchs) / launches)
            table.add_row(name, what, str(launches), *(f"{figure:.1f}" for figure in figures))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
