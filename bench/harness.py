"""Steps a second of `normforge train` beside a plain loop in PyTorch, of the same network and layer.

    python bench/harness.py             # three minutes

The plain loop has the layer on torch's operations (backend "eager") and does what a person would write: indices of a
batch, forward, cross-entropy, backward, torch's fused SGD, the loss read. The harness has the same layer on the same
operations, and compiled. All three take turns by blocks of steps; a figure is the median over blocks, a ratio that of
ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, write
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy

from normforge.ir.layers import parse
from normforge.train.data import load_data
from normforge.train.harness import load_config
from normforge.train.harness.data import images
from normforge.train.harness.processes import processes
from normforge.train.harness.run import train
from normforge.train.loop import Training
from normforge.train.models import make_model

RESULT = Path(__file__).parent / "results" / "harness.json"
ROUNDS, STEPS = 9, 6
CASES = (("proxy/resnet", "evonorm-s0"), ("proxy/mobilenet", "bn-relu"), ("resnet18", "evonorm-b0"))


def plain(model: torch.nn.Module, part: Any, recipe: Any) -> Callable[[int], None]:
    """Steps of a loop as one would write it."""
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=True
    )
    generator = torch.Generator().manual_seed(0)

    def steps(count: int) -> None:
        for _ in range(count):
            batch = torch.randint(len(part.labels), (recipe.batch,), generator=generator)
            x = part.images[batch].contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            loss = cross_entropy(model(x), part.labels[batch])
            loss.backward()
            optimizer.step()
            loss.item()

    return steps


def measure(model: str, layer: str, batch: int) -> dict[str, Any]:
    """The three ways of one case."""
    given = [f"model={model}", f"layer={layer}", f"recipe.batch={batch}", "recipe.epochs=1000", "recipe.rate=0.001"]
    if model.startswith("proxy/"):
        given.append("data.fractals.size=32")
    config = load_config("small", [*given, "data.fractals.train=2000", "data.fractals.held_out=300"])

    def made(backend: str) -> torch.nn.Module:
        data = load_data(config.data)
        return make_model(
            model, parse(layer), networks=config.networks, in_channels=1, classes=data.classes,
            size=data.train.images.shape[2], seed=0, backend=backend,
        )  # fmt: skip

    with processes("cpu") as among:
        found = images(config, among)
        recipe = config.recipe.resolved(found.count)

        def harness(backend: str) -> Callable[[int], None]:
            training = Training(made(backend), found.batches(recipe), recipe)
            return lambda count: [training.advance(training.done + 1) for _ in range(count)] and None

        ways = {
            "plain, eager layers": plain(made("eager"), load_data(config.data).train, recipe),
            "harness, eager layers": harness("eager"),
            "harness, compiled layers": harness("auto"),
        }
        for steps in ways.values():
            steps(3)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, steps in ways.items():
                start = time.perf_counter()
                steps(STEPS)
                seconds[name].append((time.perf_counter() - start) / STEPS)
    base = seconds["plain, eager layers"]
    rows = {
        name: {
            "steps a second": round(1 / statistics.median(taken), 2),
            "of plain": round(statistics.median(b / t for b, t in zip(base, taken, strict=True)), 3),
        }
        for name, taken in seconds.items()
    }
    return {"model": model, "layer": layer, "batch": batch, "rows": rows}


def whole(batch: int) -> float:
    """The share of the wall time of a whole `train` that its steps are: what checkpoints and the display take."""
    given = ["model=proxy/resnet", "layer=evonorm-s0", f"recipe.batch={batch}", "recipe.steps=120", "run.evaluate=1000"]
    config = load_config(
        "small", [*given, "data.fractals.size=32", "data.fractals.train=2000", "data.fractals.held_out=3"]
    )
    with tempfile.TemporaryDirectory() as folder:
        taken = 0.0
        inner = Training.advance

        def timed(self: Training, steps: int) -> float:
            nonlocal taken
            start = time.perf_counter()
            loss = inner(self, steps)
            taken += time.perf_counter() - start
            return loss

        Training.advance = timed  # type: ignore[method-assign]
        try:
            finished = train(config, Path(folder) / "run")
        finally:
            Training.advance = inner  # type: ignore[method-assign]
    return taken / finished.rows[-1]["seconds"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    rows = [measure(model, layer, options.batch) for model, layer in CASES]
    share = whole(options.batch)
    table = Table("network", "layer", "way", "steps a second", "of plain")
    for case in rows:
        for name, row in case["rows"].items():
            table.add_row(case["model"], case["layer"], name, f"{row['steps a second']:.2f}", f"{row['of plain']:.3f}")
    console.print(table)
    console.print(f"of the time of a whole training {share:.1%} are its steps")
    write(options.output, {"machine": machine(), "threads": torch.get_num_threads(), "share": share, "rows": rows})


if __name__ == "__main__":
    main()
