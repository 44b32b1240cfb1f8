"""A model by its name: of normforge's networks, of the small proxies, or of timm; with a layer put into it."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from normforge.errors import OptionError, UnknownNameError, nearest
from normforge.ir.graph import Graph
from normforge.ir.layers import parse
from normforge.nn.convert import SAME, convert
from normforge.nn.nfnets import NAMES, named
from normforge.train.config import NETWORKS, Networks
from normforge.train.networks import build, compiled

PROXY, TIMM = "proxy/", "timm/"
SCALED_RELU = "1.7128585504496627 * relu(x)"  # of variance 1 for standard normal x
_PROXY_LAYER = {"nf_resnet": SCALED_RELU}  # the others: bn-relu


def check_model(name: str) -> None:
    """Refuse a name that no model has.

    Raises:
        UnknownNameError: names the nearest.
    """
    if name.startswith(PROXY):
        if name.removeprefix(PROXY) not in NETWORKS:
            known = [f"{PROXY}{n}" for n in NETWORKS]
            raise UnknownNameError(f"there is no model {name!r}{nearest(name, known)}: proxies are {', '.join(known)}")
    elif name not in NAMES and not timm.is_model(name.removeprefix(TIMM)):
        known = [*NAMES, *(f"{PROXY}{n}" for n in NETWORKS), *timm.list_models()]
        raise UnknownNameError(f"neither normforge nor timm has a model {name!r}{nearest(name, known)}")


def image_side(name: str, test: bool = False) -> int:
    """The side of the images that a model is meant for, in pixels; 224 where it does not say."""
    if name in NAMES:
        with torch.device("meta"):
            config = named(name).config
        return int(config.test_size if test else config.train_size)
    if name.startswith(PROXY):
        return 224
    said: Any = timm.get_pretrained_cfg(name.removeprefix(TIMM), allow_unregistered=True)
    size = getattr(said, "test_input_size", None) if test else None
    size = size or getattr(said, "input_size", None) or (3, 224, 224)
    return int(size[-1])


def make_model(
    name: str,
    layer: Graph | str | None,
    *,
    networks: Networks,
    in_channels: int,
    classes: int,
    size: int,
    seed: int,
    drop: float | None = None,
    drop_path: float | None = None,
    backend: str = "auto",
) -> nn.Module:
    """A model with random weights, which depend on the seed alone.

    Args:
        name: nfnet_f0 and so on (`normforge.nn.nfnets.NAMES`), proxy/resnet and so on, a model of timm, as timm/NAME
            too.
        layer: put in the place of its norms and their activations, by conversion; "same" for each norm's own; None
            leaves the model as it is. A proxy has bn-relu without one, and proxy/nf_resnet scaled ReLU.
        networks: options of proxies, and the groups of w,h,c/g.
        in_channels: of images.
        classes: of logits.
        size: side of images, in pixels.
        seed: of weights; the global random state is left as it was.
        drop: rate of dropout before the classifier; None for the model's own.
        drop_path: of stochastic depth; None for the model's own.
        backend: of layers, as of `normforge.compile`.

    Returns:
        A module from images (N, in_channels, size, size) to logits (N, classes), on the CPU.

    Raises:
        UnknownNameError: there is no such model.
        OptionError: a rate that the model does not take, or a layer that finds no norm.
    """
    check_model(name)
    if name.startswith(PROXY):
        proxy = name.removeprefix(PROXY)
        if drop or drop_path:
            raise OptionError(f"{name} has neither dropout nor stochastic depth: leave recipe.drop and drop_path out")
        if layer == SAME:
            raise OptionError(f"{name} has no norms of its own: give --layer a name or a formula")
        graph = parse(_PROXY_LAYER.get(proxy, "bn-relu")) if layer is None else layer
        graph = parse(graph) if isinstance(graph, str) else graph
        factory = compiled(graph, backend, networks.groups)
        return build(proxy, networks, factory, in_channels=in_channels, classes=classes, size=size, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in NAMES:
            rates = {"drop_rate": drop, "stochastic_depth": drop_path}
            made: nn.Module = named(name, num_classes=classes, in_chans=in_channels, **rates)
        else:
            made = _of_timm(name.removeprefix(TIMM), classes, in_channels, size, drop, drop_path)
        if layer is None:
            return made
        example = torch.zeros(2, in_channels, size, size)
        made, report = convert(made, layer, example=example, inplace=True, groups=networks.groups, backend=backend)
    if not report.replaced:
        raise OptionError(f"{name} has no norm that {layer} could stand in the place of: leave out --layer")
    return made


def _of_timm(
    name: str, classes: int, in_channels: int, size: int, drop: float | None, drop_path: float | None
) -> nn.Module:
    rates = {k: v for k, v in (("drop_rate", drop), ("drop_path_rate", drop_path)) if v is not None}
    said: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    sized = {"img_size": size} if getattr(said, "fixed_input_size", False) else {}
    try:
        made: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=in_channels, **rates, **sized
        )
    except (TypeError, AssertionError, ValueError, RuntimeError) as e:
        reason = str(e).split("\n")[0] or type(e).__name__
        raise OptionError(
            f"timm's {name} cannot be made for {in_channels} channels of {size} pixels and {classes} classes"
            f"{''.join(f', {k} = {v}' for k, v in rates.items())}: {reason}"
        ) from None
    return made
