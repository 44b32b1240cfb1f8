"""`normforge explain`: how a layer is computed."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from normforge.api.load import load
from normforge.cli.arguments import DtypeOption, LayerArgument, Layout, LayoutOption, parse_dtype, parse_shape
from normforge.errors import OptionError


class TargetName(StrEnum):
    """The targets that a layer can be explained for."""

    c = "c"
    triton = "triton"


def explain(
    layer: LayerArgument,
    shape: Annotated[str, typer.Option(help="N,C,H,W (or N,C,...): show what fits on chip and the bytes moved.")] = "",
    dtype: DtypeOption = "float32",
    layout: LayoutOption = Layout.nchw,
    groups: Annotated[int | None, typer.Option(help="Of w,h,c/g; by default 32, lowered to a divisor of C.")] = None,
    channel_dim: Annotated[int, typer.Option(help="1 for N,C,...; -1 for B,...,C, which is channels-last.")] = 1,
    target: Annotated[
        TargetName | None, typer.Option(help="What the kernels are for; by default triton where there is a GPU.")
    ] = None,
    ir: Annotated[bool, typer.Option("--ir", help="Print the typed SSA of each order too.")] = False,
) -> None:
    """Print how a layer is computed: kernels, sweeps over memory, bytes moved and the least possible, saved tensors."""
    from normforge.api.explain import explain as text

    if channel_dim not in (1, -1):
        raise OptionError(f"--channel-dim is 1 or -1, not {channel_dim}")
    graph, extents, memory = load(layer), parse_shape(shape), layout.value
    if channel_dim == -1:
        extents, memory = extents and (extents[0], extents[-1], *extents[1:-1]), "nhwc"
    chosen, why = (target.value, "") if target else _best()
    print(f"{chosen}, {parse_dtype(dtype)}, {memory}{why}\n")
    print(text(graph, extents, parse_dtype(dtype), memory, chosen, groups=groups, ir=ir))


def _best() -> tuple[str, str]:
    """The target of layers on this machine, and why."""
    import torch

    if torch.cuda.is_available():
        return "triton", " (there is a GPU here; --target c for CPUs)"
    return "c", " (there is no GPU here; --target triton for those)"
