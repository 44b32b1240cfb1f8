"""The step of an NFNet's optimizer and the standardization of its weights, beside the ways there were. Needs no GPU.

    python bench/optim.py                    # two minutes, one thread, nothing else running

CPU time of the thread in milliseconds, the least of several rounds in which all take turns. The parameters are those of
`nf_resnet50` and `nfnet_f0`, all with gradients, all clipped but the classifier's weight.

- usual: timm's `adaptive_clip_grad` and torch's SGD with `foreach`.
- best of torch: clipping by `foreach` operations (norms a tensor at a time) and SGD with `fused`; with an average, a
  `foreach` lerp.
- floor: the step reads weights, gradients and momentum and writes two of them, five passes over the memory of the
  parameters; with an average seven. A pass is a third of `a.add_(b)`, which reads two and writes one.

Weights: forward, and forward with backward, of all convolutions of a network; timm's way is `F.batch_norm` of the
weight. Before anything is timed the results are compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, write
from rich.console import Console
from rich.table import Table
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn import functional as F

import normforge as nf
from normforge.kernels.rows.formula import Standardization, standardize
from normforge.kernels.rows.standardize import standardize_all
from normforge.nn.nfnets import named

RESULT = Path(__file__).parent / "results" / "optim.json"
NETWORKS = ("nf_resnet50", "nfnet_f0")
LR, MOMENTUM, DECAY, CLIPPING, AVERAGE = 1e-3, 0.9, 2e-5, 0.01, 0.999
# What is asked for: at least so many times faster than; at most so many times the floor.
ASKED = {"usual": 5.0, "best of torch": 1.7, "floor": 1.2, "weights": 2.2}
Step = Callable[[], Any]


def least(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """The least thread-CPU time of each, in milliseconds."""
    found = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.thread_time()
            step()
            found[name] = min(found[name], 1e3 * (time.thread_time() - start))
    return found


def model_of(name: str) -> nn.Module:
    """A network with gradients, some above the limit and some below."""
    torch.manual_seed(0)
    model = named(name)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def clip_by_foreach(params: list[Tensor]) -> None:
    """Adaptive clipping as fast as torch's operations allow."""
    grads: list[Any] = [p.grad for p in params]

    def norms(tensors: list[Tensor]) -> list[Tensor]:
        return [
            torch.linalg.vector_norm(t, dim=tuple(range(1, t.dim())), keepdim=True)
            if t.dim() > 1 and t.numel() > len(t)
            else torch.linalg.vector_norm(t)
            for t in tensors
        ]

    of_w, of_g = norms(params), norms(grads)
    torch._foreach_clamp_min_(of_w, 1e-3)
    torch._foreach_mul_(of_w, CLIPPING)
    torch._foreach_clamp_min_(of_g, 1e-6)
    torch._foreach_div_(of_w, of_g)
    torch._foreach_clamp_max_(of_w, 1.0)
    torch._foreach_mul_(grads, of_w)


def steps_of(name: str) -> tuple[dict[str, Step], dict[str, nn.Module]]:
    """Each way, ready to be called, and the model that it changes."""
    steps: dict[str, Step] = {}
    models: dict[str, nn.Module] = {}

    def add(way: str, make: Callable[[nn.Module], Step]) -> None:
        models[way] = model_of(name)
        steps[way] = make(models[way])

    def clipped(model: nn.Module) -> list[Tensor]:
        head = model.get_classifier().weight  # type: ignore[operator]
        return [p for p in model.parameters() if p is not head]

    def fused(ema: float | None) -> Callable[[nn.Module], Step]:
        def make(model: nn.Module) -> Step:
            groups = nf.optim.param_groups(model, weight_decay=DECAY)
            return nf.optim.SGD(groups, LR, MOMENTUM, True, agc=CLIPPING, ema=ema).step

        return make

    def torchs(clip: Callable[[list[Tensor]], None], ema: bool, **how: bool) -> Callable[[nn.Module], Step]:
        def make(model: nn.Module) -> Step:
            groups = [
                {"params": g["params"], "weight_decay": g["weight_decay"]}
                for g in nf.optim.param_groups(model, weight_decay=DECAY)
            ]
            optimizer = torch.optim.SGD(groups, LR, MOMENTUM, nesterov=True, **how)
            params, all_params = clipped(model), [*model.parameters()]
            average = [p.detach().clone() for p in all_params]

            @torch.no_grad()
            def step() -> None:
                clip(params)
                optimizer.step()
                if ema:
                    torch._foreach_lerp_(average, all_params, 1 - AVERAGE)

            return step

        return make

    def by_timm(params: list[Tensor]) -> None:
        adaptive_clip_grad(params, CLIPPING)

    add("normforge", fused(None))
    add("normforge, average", fused(AVERAGE))
    add("usual", torchs(by_timm, False, foreach=True))
    add("best of torch", torchs(clip_by_foreach, False, fused=True))
    add("best of torch, average", torchs(clip_by_foreach, True, fused=True))
    return steps, models


def check(steps: dict[str, Step], models: dict[str, nn.Module]) -> None:
    """All ways give one result, up to rounding.

    Raises:
        AssertionError: they do not.
    """
    for step in steps.values():
        step()
    first = [*models["normforge"].parameters()]
    for way, model in models.items():
        for p, q in zip(first, model.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-7, msg=lambda m, way=way: f"{way}: {m}")


def optimizer_rows(name: str, rounds: int) -> dict[str, Any]:
    """Times of a step."""
    steps, models = steps_of(name)
    check(steps, models)
    elements = sum(p.numel() for p in models["normforge"].parameters())
    a, b = torch.zeros(elements), torch.ones(elements)
    steps["three passes"] = lambda: b.add_(a)
    found = least(steps, rounds)
    tensors = len([*models["normforge"].parameters()])
    return {"network": name, "parameters": elements, "tensors": tensors} | found


def weight_rows(name: str, rounds: int) -> dict[str, Any]:
    """Times of the standardization of all convolutions."""
    convs: list[Any] = [m for m in named(name).modules() if isinstance(m, nf.nn.ScaledConv2d)]
    weights, gains = [c.weight for c in convs], [c.gain for c in convs]
    hows = [Standardization()] * len(convs)
    cotangents = [torch.randn_like(w) for w in weights]

    def ours() -> list[Tensor]:
        return standardize_all(weights, gains, hows, "c")[0]

    def formula() -> list[Tensor]:
        return [standardize(w, g, h) for w, g, h in zip(weights, gains, hows, strict=True)]

    def timms() -> list[Tensor]:
        return [
            F.batch_norm(
                w.reshape(1, len(w), -1), None, None, g * w[0].numel() ** -0.5, training=True, momentum=0.0, eps=1e-5
            ).reshape_as(w)
            for w, g in zip(weights, gains, strict=True)
        ]  # fmt: skip

    for got, expected in zip(ours(), formula(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    steps: dict[str, Step] = {}
    for way, make in (("normforge", ours), ("timm", timms), ("formula", formula)):
        steps[f"{way}, forward"] = torch.no_grad()(make)
        steps[f"{way}, and backward"] = lambda make=make: torch.autograd.grad(make(), [*weights, *gains], cotangents)  # type: ignore[misc]
    return {"network": name, "convolutions": len(convs), "weights": sum(w.numel() for w in weights)} | least(
        steps, rounds
    )


def ratios(step: dict[str, Any], weight: dict[str, Any]) -> dict[str, float]:
    """What is asked for."""
    pass_ = step["three passes"] / 3
    return {
        "usual": step["usual"] / step["normforge"],
        "best of torch": step["best of torch"] / step["normforge"],
        "floor": step["normforge"] / (5 * pass_),
        "floor, average": step["normforge, average"] / (7 * pass_),
        "weights": weight["timm, and backward"] / weight["normforge, and backward"],
    }


def main() -> None:
    """Print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 120)
    report: dict[str, Any] = {"machine": machine(), "steps": [], "weights": [], "ratios": {}}
    for name in NETWORKS:
        step, weight = optimizer_rows(name, options.rounds), weight_rows(name, options.rounds)
        report["steps"].append(step)
        report["weights"].append(weight)
        report["ratios"][name] = ratios(step, weight)
        for what, row in (("a step", step), ("weights", weight)):
            table = Table(f"{name}: {what}", "CPU ms", box=None, pad_edge=False)
            for key, value in row.items():
                if isinstance(value, float):
                    table.add_row(key, f"{value:.1f}")
            console.print(table)
        for key, value in report["ratios"][name].items():
            asked = ASKED[key.partition(",")[0]]
            sign = "at most" if key.startswith("floor") else "at least"
            console.print(f"{name}, {key}: {value:.2f} ({sign} {asked})")
    write(options.output, report)


if __name__ == "__main__":
    main()
