"""What a training of a proxy network costs, counted and not timed, so that it is the same on every machine."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from normforge.train.config import Networks
from normforge.train.networks.build import build


@lru_cache(maxsize=64)
def multiply_adds(network: str, config: Networks, in_channels: int, classes: int, size: int) -> int:
    """The multiply-adds of one image's way forward through a network: those of convolutions and matrices, the layer
    left out. Backward takes about twice as many on every network, so that ratios hold for training.

    Args:
        network: one of `normforge.train.config.NETWORKS`.
        config: its section is the one of that name.
        in_channels: of the images.
        classes: of the logits.
        size: of an image's side in pixels.
    """

    def nothing(channels: int, *, channel_dim: int = 1) -> nn.Module:
        return nn.Identity()

    model = build(network, config, nothing, in_channels=in_channels, classes=classes, size=size, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, in_channels, size, size))
    return int(counter.get_total_flops()) // 2
