"""A transfer: layers, seeds and batches, each a training of its own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console

from normforge.errors import OptionError, RunError
from normforge.ir.layers import parse
from normforge.train.harness.hold import lock, stoppable
from normforge.train.settings import validated
from normforge.train.transfer import data as data_of
from normforge.train.transfer import report
from normforge.train.transfer.config import NONE, Config
from normforge.train.transfer.detection.settings import AFFINE_RELU
from normforge.train.transfer.results import Asked, Done, Entrant, write_results
from normforge.train.transfer.run import check, finished, make_task, write_whole
from normforge.train.transfer.workers import train_all

STUDY_FILE = "study.json"


def entrants(layers: dict[str, str]) -> list[Entrant]:
    """Layers by label, of the names and formulas they are.

    Raises:
        ParseError, OptionError: no layer, or one that is given more than x.
    """
    made = []
    for label, formula in layers.items():
        formula = AFFINE_RELU if formula == NONE else formula
        graph = parse(formula)
        if not graph.is_plain:
            raise OptionError(f"{label} is given more than x, or has several results: networks give a layer x alone")
        made.append(Entrant(label, formula))
    return made


def trainings(
    config: Config, layers: list[Entrant], seeds: list[int], batches: list[int] | None, out: Path
) -> list[Asked]:
    """The trainings of a study, seed by seed, so that a study that is stopped has all layers."""
    asked = []
    for seed in seeds:
        for batch in batches or [config.recipe.batch]:
            for layer in layers:
                recipe = config.recipe.model_copy(update={"batch": batch})
                own = config.model_copy(update={"layer": layer.formula, "seed": seed, "recipe": recipe})
                folder = out / layer.slug / f"batch-{batch}-seed-{seed}"
                asked.append(Asked(layer, validated(type(config), own.model_dump()), folder))
    return asked


def transfer(
    config: Config,
    layers: dict[str, str],
    out: Path,
    *,
    seeds: list[int],
    batches: list[int] | None = None,
    workers: int = 1,
    console: Console | None = None,
    download: bool = False,
) -> list[Done] | None:
    """Train what is missing of a study, and write its table and report.

    Args:
        config: of all trainings, but for layer, seed and batch.
        layers: names or formulas by label; none is gain, bias and ReLU.
        out: directory; a folder a layer in it, a folder a training in that.
        seeds: of the trainings of each layer.
        batches: images a step, results for each; None is the recipe's.
        workers: processes; on GPUs each takes the next one in turn.
        console: is told how far it is; None prints nothing.
        download: fetch a data set that torchvision knows, if it is not there.

    Returns:
        All trainings, or None where SIGINT or SIGTERM stopped the study.

    Raises:
        NormforgeError: before anything is trained, what cannot be: layers, settings, data.
        RunError: trainings that ended without a result, once all others have ended.
    """
    console = console or Console(quiet=True)
    asked = trainings(config, entrants(layers), seeds, batches, out)
    with console.status(f"reading {config.data.source}"):
        data = data_of.load(config, download)
        data_of.check(config, data, [one.config.recipe.batch for one in asked])
        for one in {one.entrant: one for one in asked}.values():
            make_task(one.config, data, torch.device("cpu")).close()  # what cannot be made is told now
    digest = data_of.digest_of(config, data)

    def ended() -> list[Done]:
        return [Done(one, found) for one in asked if (found := finished(one.out, one.config, digest))]

    try:
        _claim(config, out)
        held = lock(out)
    except OSError as e:
        raise RunError(f"{out} cannot be written ({e.strerror}): use another --out") from None
    with held, stoppable() as stop:
        there = {one.asked.out for one in ended()}
        missing = [one for one in asked if one.out not in there]
        broken = train_all(missing, digest, workers, console, stop) if missing else {}
        done = ended()
        if done:
            write_results(done, out)
            report.write(config, done, out)
    if broken:
        (name, why), *more = broken.items()
        others = f", and {len(more)} more" if more else ""
        raise RunError(f"{name}{others} ended without a result: {why}; the same command tries again")
    if len(done) < len(asked):
        console.print("Stopped. The same command goes on from there.", soft_wrap=True)
        return None
    return done


def _claim(config: Config, out: Path) -> None:
    """Make the directory of a study, or see that it is this one's.

    Raises:
        RunError: it holds other things, or a study of other settings. OSError: it cannot be written.
    """
    usual = type(config.recipe).model_fields["batch"].default  # batches differ from training to training
    common = config.model_copy(update={"recipe": config.recipe.model_copy(update={"batch": usual})})
    if (out / STUDY_FILE).exists():
        try:
            before = json.loads((out / STUDY_FILE).read_text())
        except ValueError:
            raise RunError(f"{out / STUDY_FILE} is damaged: use another --out") from None
        check(before, common, out)
        return
    if out.is_dir() and any(out.iterdir()):
        raise RunError(f"{out} holds other things than a study: use another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / STUDY_FILE, common.model_dump(mode="json"))
