"""`normforge estimate`: what a search would take."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Annotated, Any

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


def estimate(
    config: ConfigOption = None,
    preset: PresetOption = "demo",
    seed: SeedOption = None,
    workers: WorkersOption = None,
    budget_minutes: MinutesOption = None,
    override: SetOption = None,
    download: DownloadOption = False,
    sample: Annotated[int, typer.Option(min=1, help="Random candidates to evaluate.")] = 8,
) -> None:
    """Estimate time, memory and disk of a search by evaluating a few real candidates; takes the same settings."""
    from normforge.search.estimate import estimate as measure
    from normforge.train.data import load_data

    settings = read_settings(config, preset, seed, workers, budget_minutes, override)
    console = Console()
    load_data(settings.data, download)
    what = f"evaluating {sample} random candidates and bn-relu"
    with console.status(what) as status:
        if not console.is_terminal:  # where a status is not drawn: a line for each, so that a log shows life
            print(what, file=sys.stderr, flush=True)

        def report(text: str) -> None:
            status.update(f"{what}: {text}")
            if not console.is_terminal:
                print(text, file=sys.stderr, flush=True)

        lines = measure(settings, sample, report).lines()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


@wraps(estimate)
def plan(**options: Any) -> None:
    """The name that `estimate` had: does the same, and says so."""
    print("normforge plan is called normforge estimate now", file=sys.stderr)
    estimate(**options)
