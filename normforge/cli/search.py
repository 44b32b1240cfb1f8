"""`normforge search`: starts a run, or goes on with one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from normforge.cli.settings import (
    ConfigOption,
    DownloadOption,
    MinutesOption,
    PresetOption,
    SeedOption,
    SetOption,
    WorkersOption,
    read_settings,
)


def search(
    out: Annotated[Path, typer.Option(help="Run directory; a run that is there goes on.")],
    config: ConfigOption = None,
    preset: PresetOption = "demo",
    seed: SeedOption = None,
    workers: WorkersOption = None,
    budget_minutes: MinutesOption = None,
    override: SetOption = None,
    download: DownloadOption = False,
    replay: Annotated[
        Path | None, typer.Option(help="A run with evolution.order=arrival whose recorded order is followed.")
    ] = None,
) -> None:
    """Search for layers, then train the best beside known ones; the same command resumes a run."""
    from normforge.search.reports.report import print_so_far, report
    from normforge.search.run import run

    settings = read_settings(config, preset, seed, workers, budget_minutes, override)
    console = Console()
    if not run(settings, out, console, replay=replay, download=download):
        print_so_far(out, console)
        console.print(f"Stopped. What was finished is in {out}; the same command goes on from there.", soft_wrap=True)
        raise typer.Exit(130)
    report(out, console)
