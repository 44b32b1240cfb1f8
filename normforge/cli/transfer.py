"""`normforge transfer`: do layers carry over to detection and synthesis?"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from normforge.cli.arguments import written
from normforge.cli.printed import print_settings
from normforge.cli.settings import DownloadOption
from normforge.errors import OptionError


class TaskName(StrEnum):
    """What layers are tried on."""

    detection = "detection"
    gan = "gan"


def transfer(
    task: Annotated[
        TaskName,
        typer.Argument(help="detection: Mask R-CNN; gan: class-conditional BigGAN, the layer in its generator."),
    ],
    layers: Annotated[
        str,
        typer.Option(
            metavar="LAYER,LAYER,...",
            help="Names, formulas, files or run#number; none is gain, bias and ReLU without normalization.",
        ),
    ] = "bn-relu,gn-relu,evonorm-b0,evonorm-s0,none",
    out: Annotated[Path | None, typer.Option(help="Directory of the study; one that is there goes on.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="detection: shapes, fractals (drawn by the program), coco:DIR; gan: digits, fractals, cifar10:DIR, "
            "imagefolder:DIR."
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(help="Settings to start from: small; detection: coco, coco-spinenet49; gan: cifar; a TOML file."),
    ] = "small",
    seeds: Annotated[int, typer.Option(help="Trainings of each layer.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option(help="The seeds are this one and those after it.", min=0)] = 0,
    batch: Annotated[str | None, typer.Option(metavar="N,N,...", help="Images a step; several are compared.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Trainings at a time; by default one a GPU, or one a core.", min=1)
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="gan: file of Inception weights, for real FID and IS beside the own figures.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as recipe.images=6400.")
    ] = None,
    download: DownloadOption = False,
    show_settings: Annotated[
        bool, typer.Option("--settings", help="Print all settings with their meanings, and train nothing.")
    ] = False,
) -> None:
    """Train Mask R-CNN or BigGAN from nothing with each of several layers, and compare what they come to.

    The small recipes need no files and no GPU. The same command goes on where a study was stopped or killed. At the end
    a table is printed, and the directory has results.json and report.html.
    """
    from normforge.train.transfer.config import load_config

    console = Console(width=None if sys.stdout.isatty() else 160)
    given = list(override or [])
    if data is not None:
        given.append(f"data.source={data}")
    if inception is not None:
        if task is not TaskName.gan:
            raise OptionError("--inception is of gan: leave it out")
        given.append(f"recipe.inception={inception}")
    config = load_config(task.value, recipe, given)
    if show_settings:
        print_settings(config, console, left_out=("layer", "seed", "task", "name", "recipe.seed"))
        return
    if out is None:
        raise OptionError("say where the study is kept: --out DIRECTORY")
    batches = _numbers(batch) if batch else None
    from normforge.train.transfer import results, study

    done = study.transfer(
        config,
        named(split(layers)),
        out,
        seeds=[first_seed + k for k in range(seeds)],
        batches=batches,
        workers=workers or _workers(config),
        console=console,
        download=download,
    )
    if done is None:
        raise typer.Exit(130)
    console.print(results.table(config, done))
    console.print(f"{out / 'report.html'} has curves and pictures.", highlight=False, markup=False, soft_wrap=True)


def split(layers: str) -> list[str]:
    """The layers of a text, separated by commas that are in no brackets.

    Raises:
        OptionError: there is none, or one twice.
    """
    parts, depth = [""], 0
    for character in layers:
        depth += (character in "([") - (character in ")]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    named = [part.strip() for part in parts if part.strip()]
    if not named:
        raise OptionError("--layers names no layer: give some, such as bn-relu,evonorm-s0")
    if twice := next((n for n in named if named.count(n) > 1), None):
        raise OptionError(f"--layers has {twice} twice: leave one out")
    return named


def named(labels: list[str]) -> dict[str, str]:
    """Layers as names or formulas, which a checkpoint can hold, by what they were given as.

    Raises:
        ParseError, UnknownNameError, RunError: one that cannot be read.
    """
    from normforge.train.transfer.config import NONE

    return {label: written(label, NONE) for label in labels}


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or len({*numbers}) < len(numbers):
        raise OptionError(f"--batch is whole numbers such as 8,2, each once, not {text!r}")
    return numbers


def _workers(config: Any) -> int:
    """Trainings at a time: one a GPU, or one a core."""
    import torch

    from normforge.train.device import checked_device
    from normforge.train.transfer.workers import cores

    return torch.cuda.device_count() if checked_device(config.run.device) == "cuda" else cores()
