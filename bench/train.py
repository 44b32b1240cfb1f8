"""Do the papers' networks train here, with the harness, from nothing? On fractals of 32×32 pixels.

    python bench/train.py               # 30 trainings in half an hour on two cores

ResNet-v2, MobileNetV2 and EfficientNet at small width with bn-relu, evonorm-b0 and evonorm-s0, and an NF-ResNet with
adaptive gradient clipping, three seeds each, by `normforge train`'s own function, each in a directory of `--out`; the
same command goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from common import machine, write
from rich.console import Console
from rich.table import Table

from normforge.train.harness import load_config

RESULT = Path(__file__).parent / "results" / "train.json"
SILU = "1.7871872 * silu(x)"  # of variance 1 for standard normal x
LAYERS = ("bn-relu", "evonorm-b0", "evonorm-s0")
CASES = (
    *((f"proxy/{network}", layer) for network in ("resnet", "mobilenet", "efficientnet") for layer in LAYERS),
    ("proxy/nf_resnet", SILU),
)
SETTINGS = ("data.fractals.size=32", "recipe.batch=64", "recipe.epochs=4", "run.threads=1")
OWN = {
    "": ("recipe.rate=0.1",),
    # At 0.1 it comes to nothing on the EfficientNet in some seeds.
    "evonorm-s0": ("recipe.rate=0.05", "recipe.warmup_epochs=1"),
    # A normalizer-free network begins slowly: a higher rate, a longer warm-up, and skip gains that may grow.
    SILU: ("recipe.rate=0.4", "recipe.warmup_epochs=1", "recipe.agc=0.1", "recipe.agc_gains=false"),
}
CHANCE = 0.1


def settings(model: str, layer: str, seed: int, more: list[str]) -> list[str]:
    """Those of one training."""
    return [f"model={model}", f"layer={layer}", f"recipe.seed={seed}", *SETTINGS, *OWN.get(layer, OWN[""]), *more]


def work(task: tuple[list[str], Path]) -> tuple[str, float, tuple[float, float] | None, float]:
    """One training: its directory, the last validation accuracy, loss and accuracy in the test, and seconds."""
    from normforge.train.harness import train

    given, out = task
    finished = train(load_config("small", given), out)
    row = finished.rows[-1]
    return out.name, row["validation_accuracy"], finished.test, row["seconds"]


def main() -> None:
    """Train what is missing, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--set", dest="more", action="append", default=[], metavar="KEY=VALUE", help="of all trainings")
    parser.add_argument("--out", type=Path, default=Path("runs/train"), help="where trainings are kept")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console(width=None if sys.stdout.isatty() else 160)
    tasks = {
        (model, layer, seed): options.out / f"{model.partition('/')[2]}-{layer if layer in LAYERS else 'agc'}-{seed}"
        for seed in range(options.seeds)
        for model, layer in CASES
    }
    work_list = [(settings(*case, options.more), out) for case, out in tasks.items()]
    found = {}
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=5) as pool:
        for name, validation, test, seconds in pool.imap_unordered(work, work_list):
            found[name] = (validation, test, seconds)
            assert test is not None
            console.print(f"{len(found)} of {len(tasks)}: {name}, test accuracy {test[1]:.3f}, {seconds:.0f} s")
    minutes = sum(seconds for *_, seconds in found.values()) / options.workers / 60
    rows: list[dict[str, Any]] = []
    for model, layer in CASES:
        ended = [found[tasks[model, layer, seed].name] for seed in range(options.seeds)]
        accuracies = [test[1] for _, test, _ in ended if test]
        rows.append(
            {
                "model": model,
                "layer": layer if layer in LAYERS else f"{layer}, AGC",
                "accuracy": round(statistics.fmean(accuracies), 4),
                "deviation": round(statistics.stdev(accuracies), 4) if len(accuracies) > 1 else None,
                "seeds": [round(a, 4) for a in accuracies],
                "seconds": round(statistics.fmean(seconds for *_, seconds in ended), 1),
            }
        )
    table = Table("model", "layer", "test accuracy", "of chance", "seconds")
    for r in rows:
        spread = "" if r["deviation"] is None else f" ± {r['deviation']:.3f}"
        table.add_row(
            r["model"], r["layer"], f"{r['accuracy']:.3f}{spread}", f"{r['accuracy'] / CHANCE:.1f}", str(r["seconds"])
        )
    console.print(table)
    console.print(f"{minutes:.1f} minutes with {options.workers} workers")
    about = {
        "machine": machine(),
        "seeds": options.seeds,
        "settings": list(SETTINGS) + options.more,
        "minutes": round(minutes, 1),
    }
    write(options.output, about | {"rows": rows})


if __name__ == "__main__":
    main()
