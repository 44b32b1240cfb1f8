"""`normforge report`: the table, plots and page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    tensorboard: Annotated[Path | None, typer.Option(help="Write scalars for TensorBoard here too.")] = None,
    optuna: Annotated[str | None, typer.Option(help="Write an Optuna study to this storage, sqlite:///FILE.")] = None,
) -> None:
    """Print the table of a run again, and write its plots and report.html, finished or not."""
    from normforge.search.reports.exports import to_optuna, to_tensorboard
    from normforge.search.reports.report import report

    console = Console()
    report(run, console)
    if tensorboard is not None:
        to_tensorboard(run, tensorboard)
    if optuna is not None:
        to_optuna(run, optuna)
