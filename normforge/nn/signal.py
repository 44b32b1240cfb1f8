"""Signal propagation plots: channel means and variances along a network, on noise (Brock et al., arXiv 2101.08692)."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normforge.errors import NormforgeError, OptionError, ShapeError
from normforge.nn.nfnets.blocks import NormFreeBlock
from normforge.nn.nfnets.network import NormFreeNet


@dataclass(frozen=True)
class Row:
    """What passes one place of a network.

    Attributes:
        name: "stem" for the input of the first block, else the block, whose output it is.
        squared_mean: the average over channels of the squared mean of each.
        variance: the average over channels of the variance of each.
        predicted: the variance that a network without normalization is built for; None where nothing is predicted.
    """

    name: str
    squared_mean: float
    variance: float
    predicted: float | None


@torch.no_grad()
def signal_propagation(
    model: nn.Module, *, size: int | None = None, batch: int = 8, seed: int = 0, branches: bool = True
) -> list[Row]:
    """Average squared channel mean and average channel variance after the stem and after each block, on white noise.

    As in section 3 of Brock et al., arXiv 2101.08692. Batch norms take the statistics of the batch; nothing is dropped.
    The model is left as it was: a copy is measured.

    An NF-ResNet follows its prediction within a few percent: zeros beyond the edges take a little, more in smaller
    images. An NFNet cannot on noise: each 2×2 average pool of a shortcut quarters the variance of what is uncorrelated,
    as pixels of images are not. Nor is timm's variant of NF-ResNets, pooled as well, built for it.

    Args:
        model: of `nfnet` or `nf_resnet`, or any of timm whose blocks it names (`group_matcher`).
        size: of images, in pixels; None for the model's own.
        batch: images.
        seed: of the noise.
        branches: scales that are zero (skip gains; gains, or norms' weights, of a branch's last layer), as new networks
            have them, are 1 while measuring; a network is its shortcuts otherwise. What is predicted is of this.

    Returns:
        A row for the stem and one for each block, in their order.

    Raises:
        OptionError: a model without known blocks, or one that takes no images of this size.
        ShapeError: a size or batch that is not positive.
    """
    if batch < 1 or (size is not None and size < 1):
        raise ShapeError(f"images are at least 1, of at least 1 pixel, not {batch} of {size}")
    names = _blocks(model)
    if not names:
        raise OptionError(f"no blocks are known of {type(model).__name__}: give a network of normforge or of timm")
    model = _ready(copy.deepcopy(model), branches)
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    rows: dict[str, Row] = {}

    def take(name: str, value: Any, predicted: float | None) -> None:
        while isinstance(value, tuple | list):
            value = value[0]
        rows.setdefault(name, Row(name, *_moments(value, channels_last), predicted))

    # A max pool, as in an NF-ResNet's stem, is not in the prediction.
    plain = isinstance(model, NormFreeNet) and len(model.config.stem) > 1
    model.get_submodule(names[0]).register_forward_pre_hook(lambda _, args: take("stem", args, 1.0 if plain else None))
    for name in names:
        block = model.get_submodule(name)
        after = block.predicted_variance if isinstance(block, NormFreeBlock) else None
        block.register_forward_hook(lambda _, __, y, name=name, after=after: take(name, y, after))
    x = _noise(model, size, batch, seed)
    try:
        model(x)
    except NormforgeError:
        raise
    except (RuntimeError, AssertionError, ValueError) as e:
        said = str(e).partition("\n")[0]
        raise OptionError(f"{type(model).__name__} takes no images {tuple(x.shape)}: {said}") from None
    return list(rows.values())


def _blocks(model: nn.Module) -> list[str]:
    """The names of a model's blocks."""
    named = [name for name, _ in model.named_modules()]
    if ours := [name for name, m in model.named_modules() if isinstance(m, NormFreeBlock)]:
        return ours
    matcher: Any = getattr(model, "group_matcher", None)
    if not callable(matcher):
        return []
    blocks = matcher(coarse=False).get("blocks", ())
    patterns = [blocks] if isinstance(blocks, str) else [p if isinstance(p, str) else p[0] for p in blocks]
    # Those without a number are parts of the head.
    numbered = [re.compile(p) for p in patterns if re.compile(p).groups]
    return [name for name in named if any(p.fullmatch(name) for p in numbered)]


def _ready(model: nn.Module, branches: bool) -> nn.Module:
    """A model as it is measured: batch norms in training, nothing dropped."""
    model.eval()
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.train()
    for name, p in model.named_parameters():
        scale = name.endswith(("gain", "weight")) and p.numel() == max(p.shape, default=1)
        if branches and scale and not p.any():
            p.fill_(1.0)
    return model


def _noise(model: nn.Module, size: int | None, batch: int, seed: int) -> Tensor:
    """White noise as images of a model, of its parameters' device and dtype."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    own = getattr(getattr(model, "config", None), "train_size", None)
    channels, *sizes = config.get("input_size", (getattr(model, "in_chans", 3), own or 224, own or 224))
    like = next(model.parameters())
    shape = (batch, channels, *(sizes if size is None else (size, size)))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like.device, like.dtype)


def _moments(x: Tensor, channels_last: bool) -> tuple[float, float]:
    """Of (N, C, *spatial), or of (N, tokens, C) and (N, *spatial, C)."""
    last = x.dim() == 3 or channels_last
    rows = (x if last else x.movedim(1, -1)).flatten(0, -2).double()
    return float(rows.mean(0).square().mean()), float(rows.var(0, correction=0).mean())
