"""`normforge signal`: how a signal's mean and variance travel through a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from normforge.errors import OptionError

if TYPE_CHECKING:
    from normforge.nn.signal import Row


def signal(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A network of normforge, such as nf_resnet50 or nfnet_f0, or a model of timm, such as resnet50; "
            "timm/NAME where both have one.",
        ),
    ],
    layer: Annotated[str | None, typer.Option(help="Put this layer in the place of the model's norms first.")] = None,
    size: Annotated[int | None, typer.Option(help="Of images, in pixels; the model's own by default.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Images.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of weights and noise.", min=0)] = 0,
    branches: Annotated[
        bool,
        typer.Option(help="Set scales that start at zero, such as skip gains, to 1; or leave the shortcuts alone."),
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Draw the curves into this file (png, svg, pdf).")] = None,
) -> None:
    """Show the average squared channel mean and channel variance after each block, on white noise, at random weights.

    An NF-ResNet follows the variance that it is built for within a few percent. An NFNet does not on noise: each 2x2
    average pool quarters the variance of noise, but not of images. For other models nothing is predicted.
    """
    from normforge.api.load import load
    from normforge.nn.convert import SAME
    from normforge.nn.signal import signal_propagation
    from normforge.train.config import Networks
    from normforge.train.models import check_model, image_side, make_model

    check_model(model)
    made = make_model(
        model,
        layer if layer is None or layer == SAME else load(layer),
        networks=Networks(),
        in_channels=3,
        classes=1000,
        size=image_side(model),
        seed=seed,
    )
    rows = signal_propagation(made, size=size, batch=batch, seed=seed, branches=branches)
    table = Table("after", "squared mean", "variance", "predicted", box=None, pad_edge=False)
    for row in rows:
        predicted = "" if row.predicted is None else f"{row.predicted:.2f}"
        table.add_row(row.name, f"{row.squared_mean:.4g}", f"{row.variance:.4g}", predicted)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if out is not None:
        _draw(f"{model}, {layer}" if layer else model, rows, out)
        print(f"drawn into {out}")


def _draw(title: str, rows: list[Row], path: Path) -> None:
    """Draw the rows as a picture.

    Raises:
        OptionError: the file cannot be written, or its suffix is of no known format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.plot(places, [r.variance for r in rows], marker="o", markersize=3, label="channel variance")
    axes.plot(places, [r.squared_mean for r in rows], marker="o", markersize=3, label="squared channel mean")
    if any(r.predicted is not None for r in rows):
        predicted = [float("nan") if r.predicted is None else r.predicted for r in rows]
        axes.plot(places, predicted, color="black", linestyle="--", linewidth=1, label="predicted variance")
    axes.set(yscale="log", xlabel="block (0: stem)", title=title if len(title) < 80 else f"{title[:77]}...")
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as e:
        raise OptionError(f"cannot draw into {path}: {e}") from None
