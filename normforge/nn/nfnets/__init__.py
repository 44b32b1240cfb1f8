"""NFNets and NF-ResNets (Brock et al., arXiv 2101.08692 and 2102.06171): the authors' networks, and timm's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from normforge.nn.nfnets.config import NAMES, Config, nfnet_config, resnet_config
from normforge.nn.nfnets.network import NormFreeNet

__all__ = ["NAMES", "Config", "NormFreeNet", "named", "nf_resnet", "nfnet"]


def nfnet(
    name: str,
    *,
    rule: str | None = None,
    gamma: str | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float | None = None,
    stochastic_depth: float | None = None,
) -> NormFreeNet:
    """An NFNet for images x (N, in_chans, H, W), at its start (Brock et al., arXiv 2102.06171, table 1 and its code).

    Images are of the sizes `.config.train_size` and `.config.test_size`, but any will do. Built under
    `torch.device("meta")` it takes no memory.

    Args:
        name: "nfnet_f0" to "nfnet_f6"; with a "+" the wide ones of the authors' code; "eca_nfnet_l0" to "eca_nfnet_l2",
            which are timm's own and have its activations' γ, its rule and its padding.
        rule: "paper", the default, is the authors' network. "timm" is timm's "dm_nfnet_*" in every digit, which adds
            1e-5 to the variance of weights instead of a clamp, has the erf form of gelu, and divides by what stochastic
            depth keeps, at rates k/(n − 1) for block k of n instead of k/n.
        gamma: γ of activations: "exact", the default of "paper", or "authors", their sampled constants, up to 0.09 %
            larger, which their published weights were trained with and timm has.
        num_classes: of the classifier; 0 for none.
        in_chans: channels of images.
        drop_rate: of dropout before the classifier; None for the network's own, 0.2 (F0) to 0.5 (F4 to F6).
        stochastic_depth: the rate that those of the blocks rise to, a sample a branch; None for the network's own, 0.25
            (timm's "eca": 0).

    Returns:
        The network, in training mode; gives logits (N, num_classes).

    Raises:
        OptionError: an unknown name, rule or γ; a rate that is not from 0 up to 1.
    """
    return _made(nfnet_config(name, rule, gamma), num_classes, in_chans, drop_rate, stochastic_depth)


def nf_resnet(
    depth: int,
    *,
    rule: str = "paper",
    gamma: str | None = None,
    se: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float | None = None,
    stochastic_depth: float | None = None,
) -> NormFreeNet:
    """An NF-ResNet for images x (N, in_chans, H, W), at its start (Brock et al., arXiv 2101.08692 and its code).

    Args:
        depth: 50, 101, 152 or 200.
        rule: "paper" is the authors' network. "timm" is timm's "nf_resnet50" and its like in every digit: shortcuts are
            pooled and not strided, there is no skip gain but the gains of each branch's last convolution start at 0, γ
            is in the weight of every convolution, the first one's too, and not behind the last activation, zeros are
            padded symmetrically; and what `nfnet` says of the rule.
        gamma: as in `nfnet`.
        se: squeeze and excitation at the end of each branch, of ratio 1/4 (timm's: 1/16).
        num_classes: of the classifier; 0 for none.
        in_chans: channels of images.
        drop_rate: of dropout before the classifier; None for 0.
        stochastic_depth: the rate that those of the blocks rise to; None for 0.1, as in the authors' code (timm's: 0).

    Returns:
        The network, in training mode; gives logits (N, num_classes).

    Raises:
        OptionError: an unknown depth, rule or γ; a rate that is not from 0 up to 1.
    """
    return _made(resnet_config(depth, rule, gamma, se), num_classes, in_chans, drop_rate, stochastic_depth)


def named(name: str, **options: Any) -> NormFreeNet:
    """The network of one of `NAMES`, the authors' where there are two; options as of `nfnet` and `nf_resnet`.

    Raises:
        OptionError: an unknown name, and what these raise.
    """
    if name in NAMES and "resnet" in name:
        return nf_resnet(int(name.removeprefix("nf_resnet")), **options)
    return nfnet(name, **options)


def _made(config: Config, classes: int, channels: int, drop: float | None, depth: float | None) -> NormFreeNet:
    given = {name: rate for name, rate in (("drop_rate", drop), ("stochastic_depth", depth)) if rate is not None}
    return NormFreeNet(replace(config, **given), classes, channels)  # type: ignore[arg-type]
