"""Arguments that several commands share, and how they are read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from normforge.errors import DtypeError, ShapeError

LayerArgument = Annotated[str, typer.Argument(metavar="LAYER", help="Name, formula, file, or run#number.")]
# What people write for the dtypes of x.
SHORT_DTYPES = {
    "f32": "float32", "fp32": "float32", "f64": "float64", "fp64": "float64",
    "bf16": "bfloat16", "f16": "float16", "fp16": "float16",
}  # fmt: skip
DtypeOption = Annotated[str, typer.Option(help="Dtype of x: float32, float64, bfloat16, float16; or f32, bf16, ...")]


class Layout(StrEnum):
    """Memory layout of x."""

    nchw = "nchw"
    nhwc = "nhwc"


LayoutOption = Annotated[Layout, typer.Option(help="Memory layout of x.")]


def parse_dtype(text: str) -> str:
    """The full name of a dtype.

    Raises:
        DtypeError: there is none of that name.
    """
    from normforge.codegen.plan import DTYPES
    from normforge.codegen.public import choose

    return choose(SHORT_DTYPES.get(text, text), DTYPES, "dtype", DtypeError)


def parse_shape(text: str) -> tuple[int, ...] | None:
    """The numbers of a text such as N,C,H,W; None for an empty text.

    Raises:
        ShapeError: not whole numbers.
    """
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ShapeError(f"--shape is N,C,H,W in whole numbers, such as 128,64,16,16, not {text!r}") from None


def written(layer: str, word: str) -> str:
    """The layer as a name or a formula, which a checkpoint can hold.

    Args:
        layer: name, formula, file, or run#number.
        word: that stands for itself.

    Raises:
        ParseError, UnknownNameError, RunError: no layer of these.
    """
    from normforge.api.load import load
    from normforge.ir.layers import layers

    return layer if layer == word or layer.strip() in layers else str(load(layer))
