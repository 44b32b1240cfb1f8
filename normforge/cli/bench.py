"""`normforge bench`: a layer's speed on this machine."""

from __future__ import annotations

import math
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from normforge.api.load import load
from normforge.cli.arguments import DtypeOption, LayerArgument, Layout, LayoutOption, parse_dtype, parse_shape
from normforge.errors import OptionError, ShapeError


def bench(
    layer: LayerArgument,
    shape: Annotated[str, typer.Option(help="N,C,H,W (or N,C,...) of x.")] = "32,64,32,32",
    dtype: DtypeOption = "float32",
    layout: LayoutOption = Layout.nchw,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "auto",
    torch_compile: Annotated[bool, typer.Option("--torch-compile", help="Time torch.compile too.")] = False,
    seconds: Annotated[float, typer.Option(help="For each peer and pass, about.", min=0.01)] = 1.0,
) -> None:
    """Time a layer, forward to double backward, beside its formula in eager torch and a copy of the same bytes."""
    import torch

    from normforge.api.explain import human
    from normforge.kernels.timing import PASSES, time_layer
    from normforge.search.funnel import out_of_memory

    if device not in ("auto", "cpu", "cuda"):
        raise OptionError(f"--device is auto, cpu or cuda, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda: torch finds no GPU; see normforge doctor")
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    graph, extents = load(layer), parse_shape(shape)
    if extents is None or len(extents) < 2 or min(extents) < 1:
        raise ShapeError(f"--shape is N,C,H,W (or N,C,...) in positive numbers, not {shape!r}")
    console = Console(stderr=True)
    try:
        with console.status(f"timing {', '.join(PASSES)} on the {'GPU' if where == 'cuda' else 'CPU'}"):
            timings = time_layer(
                graph, extents, getattr(torch, parse_dtype(dtype)), where,
                channels_last=layout is Layout.nhwc, torch_compile=torch_compile, seconds=seconds,
            )  # fmt: skip
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        size = human(math.prod(extents) * getattr(torch, parse_dtype(dtype)).itemsize)
        raise OptionError(f"--shape {shape} takes more memory than there is, {size} a tensor: choose less") from None
    peers = [name for name in timings[0].ms if name != "normforge"]
    table = Table("pass", "normforge", *peers, "copy of the least bytes", "first call", box=None, pad_edge=False)
    for t in timings:
        ours = t.ms["normforge"]
        others = [f"{t.ms[p]:.3g} ms ({t.ms[p] / ours:.2g}x)" if p in t.ms else "" for p in peers]
        table.add_row(t.name, f"{ours:.3g} ms", *others, f"{t.floor:.3g} ms", f"{t.first:.2f} s")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
