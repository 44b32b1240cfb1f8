"""Run in a process of its own, with TRITON_INTERPRET=1: the Triton kernels over rows against those in C."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from mended import mend_interpreter
from reference import tolerance

from normforge.kernels.rows import launch_c, launch_triton
from normforge.kernels.rows.formula import RULES, Standardization
from normforge.kernels.rows.sgd import Settings, Step, by_torch

SHAPES = [(6, 3, 3, 3), (5, 7), (3, 130), (4, 1), (1, 33), (2, 1056), (2, 2, 16), (), (1,), (77,), (64, 1, 1, 1)]
WEIGHTS = [s for s in SHAPES if len(s) > 1]


def near(got: Tensor, expected: Tensor, length: int, order: int, what: str, dtype: torch.dtype) -> None:
    error, scale = (got.double() - expected.double()).abs().max().item(), expected.double().abs().max().item()
    # A 16-bit result may be rounded to the neighbour.
    assert error <= 2 * tolerance(dtype, length, scale, order), f"{what}: {error} of {scale}"


def inputs(dtype: torch.dtype, momentum: bool, average: bool) -> list[Step]:
    torch.manual_seed(0)
    made = []
    for i, s in enumerate(SHAPES):
        w, g = torch.randn(s).to(dtype), (torch.randn(s) * (0.03 if i % 3 else 3e-4)).to(dtype)
        if i == 1:
            g[2, 0] = float("nan")
        made.append(Step(w, g, torch.randn(s) if momentum else None, torch.randn(s) if average else None))
    return made


def step(dtype: torch.dtype) -> None:
    for clip, momentum, nesterov, average in itertools.product((0.01, None), (0.9, 0.0), (True, False), (0.9, None)):
        if (clip is None) + (not momentum) + (not nesterov) + (average is None) > (dtype == torch.float32):
            continue  # all, and each thing taken away once
        made = []
        for run in (launch_triton.step, launch_c.step):
            steps = inputs(dtype, momentum > 0, average is not None)
            run(steps, Settings(0.1, momentum, nesterov, 2e-3, clip, 1e-3, "paper", average))
            made.append(steps)
        compare(made[0], made[1])


def launches() -> None:
    """One launch, however many tensors."""
    module, real = launch_triton._kernels(), launch_triton._kernels().step
    grids = []

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return real[grid]

    module.step = Counted()
    steps = inputs(torch.float32, True, True)
    launch_triton.step(steps, Settings(0.1, 0.9, True, 2e-3, 0.01, 1e-3, "paper", 0.9))
    module.step = real
    assert len(grids) == 1 and len(steps) == len(SHAPES), grids


def on_device() -> None:
    """The learning rate and the number of steps from tensors."""
    made = []
    settings = Settings(torch.full((1,), 0.1), 0.9, True, 2e-3, 0.01, 1e-3, "paper", None, torch.full((1,), 3.0))
    for run in (launch_triton.step, by_torch):
        steps = inputs(torch.float32, True, True)
        run(steps, settings)
        made.append(steps)
    compare(made[0], made[1])


def compare(got: list[Step], expected: list[Step]) -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        for name, x, y in zip(Step._fields, a, b, strict=True):
            if x is not None:
                assert torch.equal(x.isnan(), y.isnan()), f"{name} of {SHAPES[i]}"
                # An average is one of weights as they are stored, in 16 bits perhaps.
                near(x.nan_to_num(), y.nan_to_num(), x.numel(), 1, f"{name} of {SHAPES[i]}", a.param.dtype)


def standardize(rule: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights: list[Any] = [torch.randn(s).to(dtype) for s in WEIGHTS]
    weights[1][2] *= 2.0**-10  # below the clamp
    weights[2][0] = 0.25
    gains = [torch.randn(s[0]).to(dtype) for s in WEIGHTS]
    hows = [Standardization(rule, RULES[rule], 1.0 + i) for i in range(len(WEIGHTS))]
    us, of_w = ([torch.randn(s).to(dtype) for s in WEIGHTS] for _ in range(2))
    of_gain: list[Any] = [torch.randn(s[0]).to(dtype) for s in WEIGHTS]
    of_w[0], of_gain[1] = None, None  # type: ignore[call-overload]
    made = []
    for kernels in (launch_triton, launch_c):
        first = kernels.forward(weights, gains, hows)
        saved = [f.saved for f in first]
        second = kernels.backward(us, weights, gains, hows, saved)
        third = kernels.again(of_w, of_gain, us, weights, gains, hows, saved)
        made.append([[f.value for f in first], *second, *third])
    for order, (got, expected) in enumerate(zip(*made, strict=True)):
        for a, b, s in zip(got, expected, WEIGHTS, strict=True):
            near(a, b, a.numel(), (0, 1, 1, 2, 2, 2)[order], f"{order} of {s}, {rule}", dtype)


if __name__ == "__main__":
    mend_interpreter()
    step(torch.float32)
    step(torch.bfloat16)
    launches()
    on_device()
    standardize("paper", torch.float32)
    standardize("timm", torch.bfloat16)
