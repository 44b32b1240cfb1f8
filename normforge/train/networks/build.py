"""A proxy network by its name, with a layer in it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from normforge.errors import OptionError, nearest
from normforge.ir.graph import Graph
from normforge.kernels.compile import compile as compile_layer
from normforge.train.config import Networks
from normforge.train.networks.efficientnet import efficientnet
from normforge.train.networks.mobilenet import mobilenet
from normforge.train.networks.nf_resnet import nf_resnet
from normforge.train.networks.places import LayerFactory, put
from normforge.train.networks.plain import plain
from normforge.train.networks.pointwise import use_products
from normforge.train.networks.resnet import resnet
from normforge.train.networks.vit import vit

# Each makes the stock network of its section of the configuration.
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "efficientnet": efficientnet,
    "nf_resnet": nf_resnet,
    "vit": vit,
    "plain": plain,
}


def compiled(graph: Graph, backend: str = "auto", groups: int | None = None) -> LayerFactory:
    """A factory of compiled modules of one layer.

    Args:
        graph: the layer.
        backend: as of `normforge.compile`.
        groups: as there, in places whose channels it divides; elsewhere, and where None, as many as there by default.
    """

    def layer(channels: int, *, channel_dim: int = 1) -> nn.Module:
        fitting = groups if groups and channels % groups == 0 else None
        return compile_layer(graph, channels=channels, groups=fitting, channel_dim=channel_dim, backend=backend)

    return layer


def build(
    name: str, config: Networks, layer: LayerFactory, *, in_channels: int, classes: int, size: int, seed: int
) -> nn.Module:
    """A network with the layer in every norm-act place.

    Args:
        name: one of `normforge.train.config.NETWORKS`.
        config: its section is the one of that name.
        layer: makes the module of a place.
        in_channels: of the images.
        classes: of the logits.
        size: of an image's side in pixels.
        seed: of the weights, which depend on nothing else; the global random state is left as it was.

    Returns:
        A module in training mode from images (N, in_channels, size, size) to logits (N, classes), on the CPU.

    Raises:
        OptionError: an unknown name, or a setting that does not fit the images.
    """
    if name not in BUILDERS:
        raise OptionError(f"there is no network {name!r}{nearest(name, BUILDERS)}: choose one of {', '.join(BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BUILDERS[name](getattr(config, name), in_channels=in_channels, classes=classes, size=size)
        use_products(model)
        return put(model, layer)
