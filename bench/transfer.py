"""Do layers carry over to detection and synthesis, and can these small trainings tell good from bad?

    python bench/transfer.py                                   known layers, an hour on two cores
    python bench/transfer.py --layers runs/three#best          and what a search has found

Mask R-CNN on drawn scenes, in batches of 8 and of 2, and BigGAN on digits, both by the small recipes of `normforge
transfer`, three seeds a layer; `none` is gain, bias and ReLU. The separation of a figure is the distance between the
mean of the best layer and that of `none`, in pooled deviations over seeds; 4 are asked for. The settings were chosen on
seeds 100 to 102. What is trained is kept in `--out`, and the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from common import machine, write
from rich.console import Console

from normforge.cli.transfer import named, split
from normforge.train.transfer.config import NONE, load_config
from normforge.train.transfer.results import Done, cell, grouped, rows, table
from normforge.train.transfer.study import transfer

RESULT = Path(__file__).parent / "results" / "transfer.json"
KNOWN = "bn-relu,gn-relu,evonorm-b0,evonorm-s0,none"
TASKS: dict[str, tuple[list[int] | None, dict[str, bool]]] = {  # batches; figures: is more better?
    "detection": ([8, 2], {"box_ap": True, "mask_ap": True}),
    "gan": (None, {"fd": False, "accuracy": True, "score": True}),
}
LEAST = 4.0


def separation(done: list[Done], batch: int, figure: str, more: bool) -> tuple[str, float]:
    """The best layer at a batch of those that never failed, and how far it is from `none`, in pooled deviations; NaN
    where one of the two has no figures."""
    cells = {layer.label: cell(some, figure) for (layer, size), some in grouped(done).items() if size == batch}
    control = cells.pop(NONE)
    trained = [label for label, found in cells.items() if found.values and not found.failed]
    if not trained or not control.values:
        return "none of them", math.nan
    best = (max if more else min)(trained, key=lambda label: cells[label].mean)
    pooled = math.sqrt((cells[best].deviation ** 2 + control.deviation**2) / 2)
    return best, abs(cells[best].mean - control.mean) / pooled if pooled else math.inf


def main() -> None:
    """Train what is missing, print the tables and the separations, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="", help="more than the known ones, with commas between them")
    parser.add_argument("--task", choices=tuple(TASKS), action="append", help="both by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE", help="of all trainings")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="where trainings are kept")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    layers = named(split(",".join(part for part in (KNOWN, options.layers) if part)))
    report: dict[str, Any] = {"machine": machine(), "separation": {}}
    for task in options.task or TASKS:
        batches, figures = TASKS[task]
        config = load_config(task, "small", options.more)
        seeds = [*range(options.seeds)]
        out = options.out / task
        done = transfer(config, layers, out, seeds=seeds, batches=batches, workers=options.workers, console=console)
        if done is None:
            sys.exit(130)
        console.print(table(config, done))
        for batch in batches or [config.recipe.batch]:
            for figure, more in figures.items():
                best, distance = separation(done, batch, figure, more)
                key = f"{task}: {figure}, batch {batch}"
                report["separation"][key] = {"best": best, "pooled deviations from none": round(distance, 2)}
                what = "" if distance >= LEAST else f", less than {LEAST:g}"
                console.print(f"{figure}, batch {batch}: {best} is {distance:.1f} pooled deviations from none{what}")
        report[task] = rows(done)
    write(options.output, report)


if __name__ == "__main__":
    main()
