"""`normforge explain`: how a layer is computed."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from normforge.api.load import load
from normforge.cli.arguments import DtypeOption, LayerArgument, Layout, LayoutOption, parse_dtype, parse_shape


class TargetName(StrEnum):
    """The targets that a layer can be explained for."""

    c = "c"
    triton = "triton"


def explain(
    layer: LayerArgument,
    shape: Annotated[str, typer.Option(help="N,C,H,W (or N,C,...): show what fits on chip and the bytes moved.")] = "",
    dtype: DtypeOption = "float32",
    layout: LayoutOption = Layout.nchw,
    target: Annotated[TargetName, typer.Option(help="What the kernels are for.")] = TargetName.triton,
    ir: Annotated[bool, typer.Option("--ir", help="Print the typed SSA of each order too.")] = False,
) -> None:
    """Print how a layer is computed: kernels, sweeps over memory, bytes moved and the least possible, saved tensors."""
    from normforge.api.explain import explain as text

    print(text(load(layer), parse_shape(shape), parse_dtype(dtype), layout.value, target.value, ir=ir))
