"""`normforge search` and `normforge report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def search(
    out: Annotated[Path, typer.Option(help="Run directory; a run that is there goes on.")],
    preset: Annotated[str, typer.Option(help="Settings to start from: demo.")] = "demo",
    seed: Annotated[int, typer.Option(help="Of every random choice of the run.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes of one thread each.")] = None,
    budget_minutes: Annotated[float | None, typer.Option(help="Of search; the final training comes after it.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as recipe.steps=100.")
    ] = None,
) -> None:
    """Search for layers on real images, then train the best beside known ones; the same command resumes a run."""
    from normforge.search.config import load
    from normforge.search.report import report
    from normforge.search.runner import run

    overrides = [f"seed={seed}", *(override or [])]
    if workers is not None:
        overrides.append(f"workers.count={workers}")
    if budget_minutes is not None:
        overrides.append(f"budget.minutes={budget_minutes}")
    config = load(preset, overrides)
    console = Console()
    if not run(config, out, console):
        console.print(f"Stopped. What was finished is in {out}; the same command goes on from there.", soft_wrap=True)
        raise typer.Exit(130)
    report(out, console)


def report(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Print the table of a run again and draw its plot, finished or not."""
    from normforge.search.report import report

    report(run, Console())
