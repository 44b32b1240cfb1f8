"""`normforge train`: trains a model with a layer in it, or goes on with a training."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from normforge.cli.arguments import written
from normforge.cli.printed import print_settings
from normforge.cli.settings import DownloadOption
from normforge.errors import OptionError


def train(
    out: Annotated[Path | None, typer.Option(help="Directory of the training; one that is there goes on.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="nf_resnet50, nfnet_f0, ...; any model of timm, such as resnet50; or a small one for small images: "
            "proxy/resnet, proxy/mobilenet, proxy/efficientnet, proxy/nf_resnet, proxy/vit, proxy/plain.",
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER", help="Put in the place of norms and their activations: name, formula, file, or run#number."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="fractals, digits, cifar10:DIR, cifar100:DIR, mnist:DIR, fashion:DIR, imagefolder:DIR, npz:FILE, or "
            "imagenet:DIR with DIR/train/CLASS/ and DIR/val/CLASS/, read while training."
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Settings to start from: small, resnet, evonorm-imagenet, nfnet, or a TOML file.")
    ] = "small",
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and everything drawn.", min=0)] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as recipe.epochs=20.")
    ] = None,
    show_settings: Annotated[
        bool, typer.Option("--settings", help="Print all settings with their meanings, and train nothing.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--eval", help="Evaluate this checkpoint, or that of a directory, and train nothing."),
    ] = None,
    download: DownloadOption = False,
) -> None:
    """Train a model with a layer in it; the same command goes on where a training was stopped or killed.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m normforge train ... The loss and accuracy on validation
    images are printed at each epoch, those on test images at the end.
    """
    from normforge.train.harness import load_config

    console = Console(width=None if sys.stdout.isatty() else 160)
    given = list(override or [])
    for key, value in (("recipe.seed", seed), ("data.source", data), ("model", model)):
        if value is not None:
            given.append(f"{key}={value}")
    if checkpoint is not None:
        _evaluate(checkpoint, given, layer, download)
        return
    if layer is not None:
        from normforge.nn.convert import SAME

        given.append(f"layer={written(layer, SAME)}")
    settings = load_config(recipe, given)
    if show_settings:
        print_settings(settings, console)
        return
    if out is None:
        raise OptionError("say where the training is kept: --out DIRECTORY")
    from normforge.train.harness import train as run

    finished = run(settings, out, console, download=download)
    if not finished.whole:
        raise typer.Exit(130)


def _evaluate(checkpoint: Path, given: list[str], layer: str | None, download: bool) -> None:
    """Print the last line of a training again."""
    from normforge.train.harness import load_config

    settings = load_config("small", given)
    keys = {text.partition("=")[0].strip() for text in given} | ({"layer"} if layer else set())
    if wrong := sorted(k for k in keys if not k.startswith("run.") and k != "data.source"):
        raise OptionError(f"--eval takes {wrong[0]} from the checkpoint: leave it out")
    from normforge.train.harness import evaluate_checkpoint

    run = {k: v for k, v in settings.run.model_dump().items() if f"run.{k}" in keys}
    source = settings.data.source if "data.source" in keys else None
    said = evaluate_checkpoint(checkpoint, source, run, download=download)
    if os.environ.get("RANK", "0") == "0":
        print(said)
