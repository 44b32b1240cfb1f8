"""The report of a transfer: one HTML page with the table, curves and pictures, which needs nothing else."""

from __future__ import annotations

import math
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

from normforge import __version__
from normforge.errors import RunError
from normforge.train.settings import flat
from normforge.train.transfer.config import CONFIGS, Config
from normforge.train.transfer.results import LESS, Done, Entrant, cell, columns, grouped, minutes

FILE = "report.html"
_CURVES = {
    "detection": (("loss", "training loss"), ("box_ap", "validation box AP")),
    "gan": (("fd", "FD (own features)"), ("accuracy", "class accuracy")),
}


def write(config: Config, done: list[Done], out: Path) -> Path:
    """Write the page into the directory of a study.

    Raises:
        RunError: it cannot be written.
    """
    path = out / FILE
    try:
        path.write_text(render(config, done), encoding="utf-8")
    except OSError as e:
        raise RunError(f"the report {path} cannot be written ({e.strerror}): make the directory writable") from None
    return path


def render(config: Config, done: list[Done]) -> str:
    """The text of the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("normforge.train.transfer")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown = columns(config, done)
    groups = grouped(done)
    defaults = dict(flat(CONFIGS[config.task]()))
    return environment.get_template("transfer.html.j2").render(
        version=__version__,
        task="instance segmentation" if config.task == "detection" else "image synthesis",
        source=config.data.source,
        columns=shown,
        rows=[_row(layer, batch, some, shown) for (layer, batch), some in groups.items()],
        best={batch: {name: _best(groups, batch, name) for name in shown} for _, batch in groups},
        curves=_picture(_curves(config, groups)),
        pictures=[
            (one.asked.name, _encoded((one.asked.out / name).read_bytes()))
            for some in groups.values()
            for one in some[:1]
            for name in one.result.pictures
            if (one.asked.out / name).is_file()
        ],
        failures=[(one.asked.name, one.result.failed) for one in done if one.result.failed],
        settings=[
            (k, v, v != defaults.get(k)) for k, v in flat(config) if k not in ("layer", "seed", "task", "recipe.seed")
        ],
    )


def _row(layer: Entrant, batch: int, some: list[Done], shown: dict[str, str]) -> dict[str, Any]:
    cells = {name: cell(some, name) for name in shown}
    return {
        "entrant": layer,
        "layer": layer.label,
        "formula": layer.formula,
        "batch": batch,
        "cells": {name: str(found) for name, found in cells.items()},
        "seeds": {name: ", ".join(f"{v:.3f}" for v in found.values) for name, found in cells.items()},
        "parameters": f"{some[0].result.parameters / 1e6:.2f} M",
        "minutes": minutes(some),
    }


def _best(groups: dict[tuple[Entrant, int], list[Done]], batch: int, name: str) -> Entrant | None:
    """The layer that is best in a column, at a batch, among those of which no training failed."""
    cells = {
        layer: found
        for (layer, size), some in groups.items()
        if size == batch and (found := cell(some, name)).values and not found.failed
    }
    pick = min if name in LESS else max
    return pick(cells, key=lambda layer: cells[layer].mean) if len(cells) > 1 else None


def _curves(config: Config, groups: dict[tuple[Entrant, int], list[Done]]) -> Any:
    """A figure: means over seeds, a line a layer; batches are drawn apart."""
    from matplotlib.figure import Figure

    batches = sorted({batch for _, batch in groups}, reverse=True)
    layers = list(dict.fromkeys(layer for layer, _ in groups))
    wanted = _CURVES[config.task]
    figure = Figure(figsize=(4.6 * len(wanted), 3.2 * len(batches)), layout="constrained")
    axes = figure.subplots(len(batches), len(wanted), squeeze=False)
    for row, batch in enumerate(batches):
        for column, (name, title) in enumerate(wanted):
            axis = axes[row][column]
            for k, layer in enumerate(layers):
                points: dict[int, list[float]] = {}
                for one in groups.get((layer, batch), []):
                    for point in one.result.rows:
                        if math.isfinite(value := point.get(name, math.nan)):
                            points.setdefault(int(point["step"]), []).append(value)
                steps = sorted(points)
                means = [sum(points[s]) / len(points[s]) for s in steps]
                axis.plot(steps, means, marker="." if len(steps) < 12 else None, color=f"C{k}", label=layer.label[:40])
            axis.set(xlabel="step", ylabel=title, title=f"batch {batch}" if len(batches) > 1 else "")
    axes[0][-1].legend(fontsize=7)
    return figure


def _picture(figure: Any) -> str:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return _encoded(file.getvalue())


def _encoded(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"
