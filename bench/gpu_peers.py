"""What a layer is compared with on a GPU: modules that compute the same, by name, made when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

import normforge as nf
from normforge.codegen.shapes import resolve_groups

# Two of the layers that a search keeps: moments of what moments have scaled.
NESTED = {
    "nested-1": "sigmoid(x / std[w,h,c/g](x)) * x / rms[b,w,h](x * sigmoid(x) / std[w,h](x)) * gamma + beta",
    "nested-2": "tanh(x / rms[w,h](x - mean[b,w,h](x))) / std[w,h,c](x * sigmoid(v1 * x / std[w,h,c/g](x)))"
    " * gamma + beta",
}
EPS = 1e-5
INDUCTOR = ("torch.compile", "torch.compile max-autotune", "torch, compiled")


@dataclass(frozen=True)
class Case:
    """A layer on an input.

    Attributes:
        layer: its name.
        shape: of x: (N, C, H, W), or (B, positions, C) where `tokens`.
        dtype: "float32" or "bfloat16".
        layout: "nchw" or "nhwc".
        autotune: torch.compile's slowest mode is a peer too.
    """

    layer: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    autotune: bool = False

    @property
    def tokens(self) -> bool:
        """Channels last, by `channel_dim=-1`."""
        return len(self.shape) == 3

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[-1] if self.tokens else self.shape[1]

    @property
    def plan_shape(self) -> tuple[int, ...]:
        """(N, C, *spatial), as plans have it."""
        return (self.shape[0], self.shape[2], self.shape[1]) if self.tokens else self.shape

    @property
    def bytes(self) -> int:
        """S, of one full tensor."""
        return prod(self.shape) * (2 if self.dtype == "bfloat16" else 4)

    def __str__(self) -> str:
        return f"{self.layer} {'x'.join(map(str, self.shape))} {self.dtype} {self.layout}"

    def tuned(self, autotune: bool) -> Case:
        """The same with torch.compile's slowest mode, or without."""
        return replace(self, autotune=autotune)

    def tensor(self, seed: int, device: str) -> Tensor:
        """Normal numbers in the layout; none on the device "meta"."""
        dtype = getattr(torch, self.dtype)
        if device == "meta":
            t = torch.empty(self.shape, device=device, dtype=dtype)
        else:
            generator = torch.Generator(device=device).manual_seed(seed)
            t = torch.randn(self.shape, generator=generator, device=device, dtype=dtype)
        return t.to(memory_format=torch.channels_last) if self.layout == "nhwc" and not self.tokens else t


def graph_of(layer: str) -> nf.Graph:
    """By a name of normforge, or of NESTED."""
    return nf.parse(NESTED.get(layer, layer))


def compiled(case: Case, backend: str) -> nn.Module:
    """The layer by normforge. Parameters stay float32, as under autocast."""
    return nf.compile(
        graph_of(case.layer), case.channels, channel_dim=-1 if case.tokens else 1, backend=backend
    )  # fmt: skip


def peers(case: Case, backend: str) -> dict[str, Callable[[], nn.Module]]:
    """Makers of modules, by name; the first is normforge. A maker raises where its peer cannot be had."""
    made: dict[str, Callable[[], nn.Module]] = {
        "normforge": lambda: compiled(case, backend),
        "eager": lambda: compiled(case, "eager"),
        "torch.compile": lambda: inductor(compiled(case, "eager"), None),
    }
    if case.autotune:
        made["torch.compile max-autotune"] = lambda: inductor(
            compiled(case, "eager"), "max-autotune-no-cudagraphs"
        )  # fmt: skip
    if case.layer in NATIVE:
        made["torch"] = lambda: native(case)
        made["torch, compiled"] = lambda: inductor(native(case), None)
    if case.layer in TIMM and not case.tokens:
        made["timm"] = lambda: TIMM[case.layer](case.channels).to(getattr(torch, case.dtype))
    if case.layer in ("evonorm-b0", "evonorm-s0") and not case.tokens:
        made["BatchNorm+ReLU"] = lambda: NATIVE["bn-relu"](case.channels)
    for package, table in (("Liger", LIGER), ("Quack", QUACK)):
        if case.layer in table and case.tokens:
            made[package] = lambda table=table: table[case.layer](case.channels).to(getattr(torch, case.dtype))  # type: ignore[misc]
    return made


def inductor(module: nn.Module, mode: str | None) -> nn.Module:
    """`torch.compile`, for one shape."""
    compiled_module: nn.Module = torch.compile(module, dynamic=False, mode=mode)  # type: ignore[assignment]
    return compiled_module


def native(case: Case) -> nn.Module:
    """torch's own modules. BatchNorm's parameters stay float32, as cuDNN takes them; others must have x's dtype."""
    module = NATIVE[case.layer](case.channels)
    return module if case.layer.startswith("bn") else module.to(getattr(torch, case.dtype))


def _groups(channels: int) -> int:
    return resolve_groups(None, channels)


NATIVE: dict[str, Callable[[int], nn.Module]] = {
    "bn-relu": lambda c: nn.Sequential(nn.BatchNorm2d(c, eps=EPS), nn.ReLU()),
    "bn-silu": lambda c: nn.Sequential(nn.BatchNorm2d(c, eps=EPS), nn.SiLU()),
    "gn-silu": lambda c: nn.Sequential(nn.GroupNorm(_groups(c), c, eps=EPS), nn.SiLU()),
    "layernorm-gelu": lambda c: nn.Sequential(nn.LayerNorm(c, eps=EPS), nn.GELU()),
    "rmsnorm": lambda c: nn.RMSNorm(c, eps=EPS),
}


def _timm(name: str, channels: int, **options: Any) -> nn.Module:
    module: nn.Module = getattr(importlib.import_module("timm.layers"), name)(channels, **options)
    return module


TIMM: dict[str, Callable[[int], nn.Module]] = {
    "evonorm-b0": lambda c: _timm("EvoNorm2dB0", c, eps=EPS),
    "evonorm-s0": lambda c: _timm("EvoNorm2dS0", c, groups=_groups(c), eps=EPS),
    "frn-tlu": lambda c: _timm("FilterResponseNormTlu2d", c, eps=EPS),
    "bn-relu": lambda c: _timm("BatchNormAct2d", c, eps=EPS),
    "gn-silu": lambda c: _timm("GroupNormAct", c, num_groups=_groups(c), eps=EPS, act_layer="silu"),
}


def _liger(name: str, channels: int, **options: Any) -> nn.Module:
    module: nn.Module = getattr(importlib.import_module("liger_kernel.transformers"), name)(channels, **options)
    return module


class QuackRMSNorm(nn.Module):
    """Quack's function with a weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.function = importlib.import_module("quack").rmsnorm

    def forward(self, x: Tensor) -> Tensor:
        """y, like x."""
        y: Tensor = self.function(x, self.weight, eps=EPS)
        return y


LIGER: dict[str, Callable[[int], nn.Module]] = {
    "rmsnorm": lambda c: _liger("LigerRMSNorm", c, eps=EPS),
    "layernorm-gelu": lambda c: nn.Sequential(_liger("LigerLayerNorm", c, eps=EPS), nn.GELU()),
    "dyt": lambda c: _liger("LigerDyT", c),
}
QUACK: dict[str, Callable[[int], nn.Module]] = {"rmsnorm": QuackRMSNorm}


# -- the three orders

Results = dict[str, Tensor]


def run(module: nn.Module, order: int, x: Tensor, dy: Tensor, v: Tensor) -> tuple[Callable[[], Any], Results]:
    """A step that computes one order alone, and what it gives, by name. What it needs of the orders before is made
    here, once.

    Order 2 is the derivative of <dx, v>, as a gradient penalty takes it.
    """
    params = dict(module.named_parameters())
    names = ["dx", *(f"d.{name.rsplit('.', 1)[-1]}" for name in params)]
    if order == 0:
        return (lambda: module(x)), {"y": module(x).detach()}
    y = module(x)
    leaves = [x, *params.values()]
    if order == 1:

        def backward() -> list[Tensor]:
            return list(torch.autograd.grad(y, leaves, dy, retain_graph=True))

        return backward, dict(zip(names, backward(), strict=True))
    (dx,) = torch.autograd.grad(y, [x], dy, create_graph=True)

    def double_backward() -> list[Tensor]:
        gradients = torch.autograd.grad(
            dx, [*leaves, dy], v, retain_graph=True, allow_unused=True, materialize_grads=True
        )  # fmt: skip
        return list(gradients)

    return double_backward, dict(zip([f"d{n}" for n in names] + ["d.dy"], double_backward(), strict=True))


def deviation(got: Results, want: Results) -> float:
    """Largest relative error in the 2-norm over the tensors that both have; infinite where they share none."""
    shared = got.keys() & want.keys()
    worst = 0.0 if shared else float("inf")
    for name in shared:
        w = want[name].detach().double()
        difference = torch.linalg.vector_norm(got[name].detach().double() - w)
        worst = max(worst, float(difference / torch.linalg.vector_norm(w).clamp_min(1e-3 * w.numel() ** 0.5)))
        if not torch.isfinite(difference):
            return float("inf")
    return worst
