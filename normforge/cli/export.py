"""`normforge export`: a layer as a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normforge.api.load import load
from normforge.cli.arguments import LayerArgument


def export(
    layer: LayerArgument,
    path: Annotated[Path, typer.Argument(help="Of the file, or a directory for it.")] = Path(),
    kernels: Annotated[bool, typer.Option("--kernels", help="With its C source, for float32 on CPUs.")] = False,
) -> None:
    """Write a layer as one readable Python file that needs torch alone, and not normforge."""
    from normforge.nn.export import export as exported

    origin = f"Found by a search of normforge: {layer}." if "#" in layer else ""
    print(exported(load(layer), path, kernels=kernels, origin=origin))
