"""`normforge search`, `plan`, `report` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from normforge.search.config import Config

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")]
PresetOption = Annotated[str, typer.Option(help="Settings to start from: demo, fractals, paper-b, paper-s.")]
SeedOption = Annotated[int | None, typer.Option(help="Of every random choice of the search.")]
WorkersOption = Annotated[
    str | None, typer.Option(help="Number of processes; or ray, or ray://HOST:PORT, with as many as workers.count.")
]
MinutesOption = Annotated[float | None, typer.Option(help="Of search; the final training comes after it.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as recipe.steps=100.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Let torchvision fetch the data if it is missing.")]


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
    from normforge.search.reports.report import report
    from normforge.search.run import run

    settings = _settings(config, preset, seed, workers, budget_minutes, override)
    console = Console()
    if not run(settings, out, console, replay=replay, download=download):
        console.print(f"Stopped. What was finished is in {out}; the same command goes on from there.", soft_wrap=True)
        raise typer.Exit(130)
    report(out, console)


def plan(
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
    from normforge.search.estimate import estimate
    from normforge.train.data import load_data

    settings = _settings(config, preset, seed, workers, budget_minutes, override)
    console = Console()
    load_data(settings.data, download)
    with console.status(f"evaluating {sample} random candidates and bn-relu"):
        lines = estimate(settings, sample).lines()
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _settings(
    config: Path | None,
    preset: str,
    seed: int | None,
    workers: str | None,
    budget_minutes: float | None,
    override: list[str] | None,
) -> Config:
    from normforge.search.config import load

    overrides = list(override or [])
    if seed is not None:
        overrides.append(f"seed={seed}")
    if workers is not None:
        overrides.append(f"workers.count={workers}" if workers.isdigit() else f"workers.on={workers}")
    if budget_minutes is not None:
        overrides.append(f"budget.minutes={budget_minutes}")
    return load(preset, overrides, config)


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


def show(
    reference: Annotated[str, typer.Argument(metavar="RUN[#N]", help="runs/demo#17, runs/demo#best, or a run.")],
) -> None:
    """Print what became of a candidate and where it came from; or the best ten of a run."""
    from normforge.search.reports.lineage import show as print_candidate

    print_candidate(reference, Console())
