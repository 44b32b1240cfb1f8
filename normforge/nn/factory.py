"""`norm_act`: what a network's constructor takes for its norms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normforge.errors import OptionError
from normforge.ir.graph import Graph
from normforge.ir.layers import as_layer, parse
from normforge.ir.node import Node, const, make
from normforge.ir.ops import Op
from normforge.kernels.compile import compile, whole
from normforge.kernels.module import Layer
from normforge.nn.activations import activation_formula, is_activation
from normforge.passes.linear import is_linear, linear_twin, then


def norm_act(
    layer: Graph | str,
    *,
    eps: float | None = None,
    momentum: float | None = None,
    groups: int | None = None,
    channel_dim: int = 1,
    backend: str = "auto",
) -> Callable[..., Layer]:
    """A factory for `norm_layer=` of timm's and torchvision's networks: called with a number of channels, it makes the
    layer. It can be pickled.

    Of the keywords that networks pass, `apply_act=False` asks for the layer without its activation, by the rule of
    `convert` (bn-relu: batchnorm; evonorm-s0: gain and bias alone); `act_layer` counts for a layer that is only a norm,
    which then applies that activation; `affine=False` leaves gain and bias out; `num_groups` or `group_size` set the
    groups, `eps`, `momentum`, `device` and `dtype` are as in `compile`; `inplace` makes no difference.

    A network that calls its activations itself, after its norms, needs them taken away too (`act_layer=nn.Identity`),
    and norms that have none would get one: `convert` knows the difference, and this does not.

    Args:
        layer: a graph, a layer's name, or a formula, of x alone.
        eps, momentum: in place of what a network passes. timm's EvoNorms B0, S0a, S1a and S2a have eps=1e-3.
        groups: of the index set w,h,c/g, in place of what a network passes; None is as for `compile`.
        channel_dim, backend: as of `compile`.

    Raises:
        ParseError, OptionError: no such layer, or one that is given more than x.
    """
    graph = as_layer(layer, "norm_act")
    if not graph.is_plain:
        raise OptionError(f"{graph} is given more than x, or has several results: networks give a norm x alone")
    # A partial of a function, since timm asks whether a factory is a class, a function, or a partial of either.
    return functools.partial(
        layer_for,
        layer=layer,
        own_eps=eps,
        own_momentum=momentum,
        groups=groups,
        channel_dim=channel_dim,
        backend=backend,
    )


def layer_for(
    num_features: int,
    eps: float | None = None,
    momentum: float | None = 0.1,
    affine: bool = True,
    *,
    layer: Graph | str,
    own_eps: float | None,
    own_momentum: float | None,
    groups: int | None,
    channel_dim: int,
    backend: str,
    apply_act: bool = True,
    act_layer: Any = None,
    act_kwargs: dict[str, Any] | None = None,
    inplace: bool = False,
    drop_layer: Any = None,
    num_groups: int | None = None,
    group_size: int | None = None,
    track_running_stats: bool = True,
    elementwise_affine: bool = True,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
) -> Layer:
    """The layer for a number of channels; what `norm_act` returns, with its first arguments set.

    Raises:
        OptionError: something is asked for that no layer has.
    """
    if drop_layer is not None:
        raise OptionError("a layer drops nothing between its norm and its activation: leave drop_layer out")
    if not track_running_stats:
        raise OptionError("a layer of moments over the batch keeps running statistics: track_running_stats is True")
    graph = as_layer(layer, "norm_act")
    if not apply_act:
        graph = linear_twin(graph)
    elif act_layer is not None and is_linear(graph):
        graph = then(graph, parse(_formula(act_layer, act_kwargs or {})))
    if not (affine and elementwise_affine):
        graph = _bare(graph)
    channels = whole("num_features", num_features)
    if groups is None:
        groups = num_groups if group_size is None else channels // group_size
    eps = eps if own_eps is None else own_eps
    momentum = momentum if own_momentum is None else own_momentum
    return compile(graph, channels, groups, channel_dim, backend, momentum, eps=eps, device=device, dtype=dtype)


def _formula(act_layer: Any, arguments: dict[str, Any]) -> str:
    """The formula of x that an activation is, given its class or timm's name for it.

    Raises:
        OptionError: there is none.
    """
    if isinstance(act_layer, str):
        from timm.layers import get_act_layer

        act_layer = get_act_layer(act_layer)
    made: nn.Module = act_layer(**arguments)
    if isinstance(made, nn.Identity):
        return "x"
    formula = activation_formula(made) if is_activation(made) else None
    if formula is None:
        raise OptionError(f"act_layer is {type(made).__name__}, which is no formula: pass another, or nn.Identity")
    return formula


def _bare(graph: Graph) -> Graph:
    """The layer without gamma and beta: as at 1 and 0."""
    one, zero = const(1.0), const(0.0)
    out: dict[Node, Node] = {}
    for node in graph.nodes:
        args = tuple(out[a] for a in node.args)
        neutral = {Op.MUL: one, Op.ADD: zero}.get(node.op)
        if node.op is Op.PARAM and node.name in ("gamma", "beta"):
            out[node] = one if node.name == "gamma" else zero
        elif neutral in args:
            out[node] = args[0] if args[1] is neutral else args[1]
        else:
            out[node] = make(node.op, args, node.attr) if args else node
    return Graph(((graph.outputs[0][0], out[graph.output]),), graph.inputs, graph.eps)
