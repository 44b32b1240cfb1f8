"""What the studies of training share: cases, trained in processes beside each other, each result kept as it comes.

A case is a network, a layer, a recipe and a seed. What is trained is a line of a file of JSON, so that the same command
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from normforge.errors import NormforgeError
from normforge.ir.layers import parse
from normforge.kernels.rows.units import scales
from normforge.optim.agc import EPS
from normforge.train.config import DataConfig, Networks, Recipe
from normforge.train.loop import Diverged, Training
from normforge.train.networks import compiled
from normforge.train.setup import Setup

LOOK = 10  # steps between two looks at the share of units that are clipped


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        name: of what is compared, such as a layer.
        network: of the proxies.
        layer: in its places.
        recipe: steps, batch, rate, clipping.
        repeat: which weights and batches.
        networks: options of the proxies.
        data: images.
    """

    name: str
    network: str
    layer: str
    recipe: Recipe
    repeat: int
    networks: Networks = field(default_factory=Networks)
    data: DataConfig = field(default_factory=lambda: DataConfig(source="fractals"))

    @property
    def key(self) -> str:
        """What its result is kept by: all that it depends on, but the code."""
        said = asdict(self) | {k: getattr(self, k).model_dump() for k in ("recipe", "networks", "data")}
        return json.dumps(said, sort_keys=True)


Result = dict[str, Any]


def arguments(description: str | None, result: Path, figure: Path) -> argparse.ArgumentParser:
    """The options that studies share.

    Args:
        description: of the study.
        result, figure: where its tables and its picture go; results are kept under the same name.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    kept = Path("runs") / f"{result.stem}.jsonl"
    parser.add_argument("--out", type=Path, default=kept, help="where results are kept")
    parser.add_argument("--output", type=Path, default=result, help="where the JSON of the tables goes")
    parser.add_argument("--figure", type=Path, default=figure)
    return parser


def train(case: Case) -> Result:
    """Train a case: validation loss and accuracy, by which step it diverged if it did, the mean share of units that
    adaptive clipping clips, and the final skip gains of an NF-ResNet."""
    torch.set_num_threads(1)
    start = time.process_time()
    setup = Setup(compiled(parse(case.layer)), case.networks, case.data, "cpu")
    training = setup.training(case.network, case.recipe, case.repeat)
    shares: list[float] = []
    if case.recipe.agc:
        watch(training, case.recipe.agc, shares)
    found: Result = {"diverged": None, "loss": None, "accuracy": None}
    try:
        training.advance(case.recipe.steps)
        loss, accuracy = training.evaluate(setup.data.validation)
        found |= {"loss": round(loss, 5), "accuracy": round(accuracy, 5)}
    except Diverged:
        found["diverged"] = training.done
    gains = [p.item() for n, p in training.model.named_parameters() if n.endswith("skip_gain")]
    if gains:
        found["gains"] = [round(g, 5) for g in gains]
    if shares:
        found["clipped"] = round(sum(shares) / len(shares), 4)
    return found | {"seconds": round(time.process_time() - start, 2)}


def watch(training: Training, clipping: float, shares: list[float]) -> None:
    """Note the share of units that a step clips, at every `LOOK`-th step."""

    def look(optimizer: Any, args: Any, kwargs: Any) -> None:
        if training.done % LOOK:
            return
        clipped = units = 0
        for group in optimizer.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group.get("agc", clipping) is None or not params:
                continue
            for scale in scales(params, [p.grad for p in params], clipping, EPS, "paper"):
                clipped, units = clipped + int((scale < 1).sum()), units + scale.numel()
        shares.append(clipped / units)

    training.optimizer.register_step_pre_hook(look)


def _work(case: Case) -> tuple[str, Result]:
    try:
        return case.key, train(case)
    except (NormforgeError, RuntimeError) as e:
        return case.key, {"error": f"{type(e).__name__}: {e}".split("\n")[0]}


def results(cases: Iterable[Case], kept: Path, workers: int, console: Console) -> Callable[[Case], Result]:
    """Train what is not there yet; the result of each case by a call.

    Args:
        cases: in the order in which they are trained.
        kept: the file of results, a line each.
        workers: processes, of one thread each.
        console: shows how far it is.
    """
    done: dict[str, Result] = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            if line.endswith("}"):  # the last one may be cut
                row = json.loads(line)
                done[row["key"]] = row["result"]
    missing = [case for case in dict.fromkeys(cases) if case.key not in done]
    if missing:
        os.environ["OMP_NUM_THREADS"] = "1"
        kept.parent.mkdir(parents=True, exist_ok=True)
        columns = SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn()
        progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        context = multiprocessing.get_context("spawn")
        with progress, kept.open("a") as file, context.Pool(workers) as pool:
            bar = progress.add_task("trainings", total=len(missing))
            for key, result in pool.imap_unordered(_work, missing):
                done[key] = result
                file.write(json.dumps({"key": key, "result": result}) + "\n")
                file.flush()
                progress.advance(bar)
                if not console.is_terminal and len(done) % 20 == 0:
                    console.print(f"{len(done)} trainings are done, {len(missing)} were to do")
    return lambda case: done[case.key]
