"""Times of a layer beside its formula in eager torch, and beside a copy of the same bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from normforge.errors import OptionError
from normforge.ir.graph import Graph
from normforge.ir.types import FULL
from normforge.kernels.compile import compile as compile_layer
from normforge.kernels.inputs import input_shapes

PASSES = ("forward", "forward+backward", "double backward")
# A peer's turn: until either is reached, and two calls at least.
TURN_SECONDS, TURN_CALLS = 0.05, 12
MAX_TURNS, MAX_CALLS = 64, 200
Step = Callable[[int], object]  # is told the number of the call in its turn


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of one pass.

    Attributes:
        name: one of `PASSES`; each contains the ones before it.
        ms: by peer. first: seconds of normforge's first call, compilation included.
        floor: milliseconds in which `copy_` moves the bytes that the pass must.
    """

    name: str
    ms: dict[str, float]
    first: float
    floor: float


def time_layer(
    graph: Graph,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: str,
    *,
    channels_last: bool = False,
    torch_compile: bool = False,
    seconds: float = 1.0,
) -> list[Timing]:
    """Time every pass on normal numbers; peers take turns.

    Args:
        graph: a layer.
        shape: (N, C, *spatial) of x.
        dtype: of x. device: "cpu" or "cuda".
        channels_last: the memory layout of x, for two spatial axes.
        torch_compile: also torch.compile, where it can be differentiated.
        seconds: for each peer and pass, about.

    Raises:
        OptionError: `channels_last` without two spatial axes.
    """
    if channels_last and len(shape) != 4:
        raise OptionError(f"channels-last is for shapes N,C,H,W, and the shape has {len(shape)} axes")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    x, dy, v = (torch.randn(*shape, device=device).to(dtype).contiguous(memory_format=layout) for _ in range(3))
    inputs = [
        (1 + 0.5 * torch.randn(input_shapes(node.axes, x)[0], device=device))
        .to(dtype)
        .contiguous(memory_format=layout if node.axes == FULL else torch.contiguous_format)
        for node in graph.inputs[1:]
    ]
    made: dict[str, nn.Module] = {
        "normforge": compile_layer(graph, shape[1]).to(device),
        "eager": compile_layer(graph, shape[1], backend="eager").to(device),
    }
    timings = []
    for name, tensors in zip(PASSES, floors(graph), strict=True):
        peers = dict(made)
        if torch_compile and name != PASSES[2]:
            module = compile_layer(graph, shape[1], backend="eager").to(device)
            peers["torch.compile"] = cast(nn.Module, torch.compile(module))  # its stub says a function
        steps = {peer: _step(module, name, x, inputs, dy, v) for peer, module in peers.items()}
        start = time.perf_counter()
        steps["normforge"](0)
        _wait(device)
        first = time.perf_counter() - start
        target = torch.empty_like(x)
        steps["copy"] = partial(_copy, target, x)
        ms = measure(steps, seconds, lambda: _wait(device))
        timings.append(Timing(name, ms, first, ms.pop("copy") * tensors / 2))
    return timings


def floors(graph: Graph) -> tuple[int, int, int]:
    """Full tensors that the passes so far move at least: each input, result, cotangent and gradient once. Of a layer of
    x alone 2 forward, 3 more backward, 5 more for the second derivative."""
    inputs = sum(node.axes == FULL for node in graph.inputs)
    forward = inputs + len(graph.outputs)
    backward = forward + inputs
    return forward, forward + backward, forward + backward + 2 * forward + 1


def _copy(target: Tensor, x: Tensor, _: int) -> object:
    return target.copy_(x)


def _step(module: nn.Module, name: str, x: Tensor, inputs: Sequence[Tensor], dy: Tensor, v: Tensor) -> Step:
    given = [t.detach().requires_grad_(name != PASSES[0]) for t in (x, *inputs)]
    dy = dy.detach().requires_grad_(name == PASSES[2])
    parameters = list(module.parameters())

    def forward(_: int) -> object:
        with torch.no_grad():
            return module(*given)

    def results() -> Sequence[Tensor]:
        found = module(*given)
        return found if isinstance(found, tuple) else (found,)

    def backward(_: int) -> object:
        found = results()
        return torch.autograd.grad(found, [*given, *parameters], [dy] * len(found))

    def twice(_: int) -> object:
        found = results()
        (dx,) = torch.autograd.grad(found, given[:1], [dy] * len(found), create_graph=True)
        return torch.autograd.grad(dx, [*given, *parameters, dy], v, allow_unused=True)

    return dict(zip(PASSES, (forward, backward, twice), strict=True))[name]


def measure(steps: Mapping[str, Step], seconds: float, wait: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Median milliseconds of peers that take turns by blocks of calls, the first of each untimed, until each has had
    its seconds. Call by call, a peer would pay for the caches and the heap that another leaves behind.

    Args:
        steps: by name.
        seconds: for each, about; every peer has one turn at least.
        wait: returns when what was asked of the device is done.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(MAX_TURNS):
        for name, step in steps.items():
            taken = times[name]
            if turn and (sum(taken) >= seconds or len(taken) >= MAX_CALLS):
                continue
            step(0)
            spent, calls = 0.0, 0
            while calls < 2 or (spent < TURN_SECONDS and calls < TURN_CALLS):
                wait()
                start = time.perf_counter()
                step(calls)
                wait()
                taken.append(time.perf_counter() - start)
                spent, calls = spent + taken[-1], calls + 1
    return {name: statistics.median(taken) * 1e3 for name, taken in times.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
