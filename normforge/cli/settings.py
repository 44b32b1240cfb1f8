"""The settings of a search on the command line: those of a preset, a file and single options, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from normforge.search.config import Config

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")]
PresetOption = Annotated[str, typer.Option(help="Settings to start from: demo, hour, night, digits, paper-b, paper-s.")]
SeedOption = Annotated[int | None, typer.Option(help="Of every random choice of the search.")]
WorkersOption = Annotated[
    str | None, typer.Option(help="Number of processes; or ray, or ray://HOST:PORT, with as many as workers.count.")
]
MinutesOption = Annotated[float | None, typer.Option(help="Of search; the final training comes after it.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as recipe.steps=100.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Let torchvision fetch the data if it is missing.")]


def read_settings(
    config: Path | None,
    preset: str,
    seed: int | None,
    workers: str | None,
    budget_minutes: float | None,
    override: list[str] | None,
) -> Config:
    """The configuration that the options of `search` and `estimate` ask for.

    Raises:
        OptionError: an unknown preset, setting or value, or a file that cannot be read.
    """
    from normforge.search.config import load

    overrides = list(override or [])
    if seed is not None:
        overrides.append(f"seed={seed}")
    if workers is not None:
        overrides.append(f"workers.count={workers}" if workers.isdigit() else f"workers.on={workers}")
    if budget_minutes is not None:
        overrides.append(f"budget.minutes={budget_minutes}")
    return load(preset, overrides, config)
