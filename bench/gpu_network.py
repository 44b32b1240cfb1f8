"""A whole ResNet-50 (pre-activation, timm's ResNetV2) in training, every norm-act place with one layer: images a
second and peak memory. Autocast to bfloat16, channels-last, SGD."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from common import Clock
from gpu_peers import NATIVE, TIMM, graph_of
from torch import nn

import normforge as nf

BASELINE = "torch BatchNorm+ReLU"
VARIANTS = ("normforge bn-relu", "normforge evonorm-s0", "normforge evonorm-b0", "normforge gn-silu",
            "torch GroupNorm+SiLU", "timm evonorm-s0", "timm evonorm-b0")  # fmt: skip
BLOCKS, CHANNELS = [3, 4, 6, 3], (256, 512, 1024, 2048)
SMALL_BLOCKS, SMALL_CHANNELS = [1, 1], (16, 32)


def maker(variant: str, backend: str) -> Callable[[int], nn.Module]:
    """The norm-act of a variant, by channel count."""
    kind, _, layer = variant.partition(" ")
    if kind == "normforge":
        return lambda c: nf.compile(graph_of(layer), c, backend=backend)
    if kind == "timm":
        return TIMM[layer]
    return NATIVE[{"BatchNorm+ReLU": "bn-relu", "GroupNorm+SiLU": "gn-silu"}[layer]]


def network(variant: str, backend: str, *, small: bool) -> nn.Module:
    """ResNet-50, or two blocks to rehearse with."""
    layer = maker(variant, backend)
    resnet = importlib.import_module("timm.models.resnetv2").ResNetV2
    conv = importlib.import_module("timm.layers").create_conv2d

    # timm asks for a plain function, and passes device and dtype.
    def norm_act(channels: int, device: None = None, dtype: None = None) -> nn.Module:
        return layer(channels)

    torch.manual_seed(0)
    module: nn.Module = resnet(
        layers=SMALL_BLOCKS if small else BLOCKS,
        channels=SMALL_CHANNELS if small else CHANNELS,
        num_classes=1000,
        conv_layer=conv,
        norm_layer=norm_act,
    )
    return module


def train(variant: str, backend: str, clock: Clock, *, batch: int, side: int, small: bool) -> dict[str, Any]:
    """Images a second and peak bytes of training steps."""
    device = "cuda" if clock.cuda else "cpu"
    model = network(variant, backend, small=small).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    first = float(step())  # allocates, compiles, lets cuDNN choose
    for _ in range(3):
        step()
    if clock.cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = min(clock.wall(step, 2 if small else 8) for _ in range(2))
    peak = torch.cuda.max_memory_allocated() if clock.cuda else 0
    return {"images_a_second": batch / seconds, "peak_bytes": peak, "first_loss": first, "last_loss": float(step())}


def on_meta(variant: str) -> None:
    """A step on tensors without numbers, whose convolutions give bfloat16 as under autocast."""
    model = network(variant, "triton", small=False).to("meta", memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.bfloat16()
    images = torch.empty(128, 3, 224, 224, dtype=torch.bfloat16, device="meta")
    model(images.to(memory_format=torch.channels_last)).sum().backward()
