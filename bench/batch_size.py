"""Does a layer hold at small batches? Accuracy over the batch size, on fractals of 12×12 pixels.

    python bench/batch_size.py              # 138 trainings; an hour on two cores
    python bench/batch_size.py --images 2000 --seeds 1      # a look

Equal numbers of images, the learning rate in proportion to the batch (the linear rule of arXiv 1706.02677), warm-up
through a tenth of the images, a cosine after it, three seeds. Each network has the rate that is best for it at a batch
of 128, of five, on weights that are not used again. BatchNorm + ReLU and EvoNorm-B0 take moments over the
batch; GroupNorm + ReLU, GroupNorm + SiLU and EvoNorm-S0 over a sample; an NF-ResNet has none, and adaptive gradient
clipping, from which its skip gains are left out. Results are kept in `--out`, and the same command goes on.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from common import machine, write
from rich.console import Console
from rich.table import Table
from studies import Case, Result, arguments, results

from normforge.train.config import Networks, Recipe
from normforge.train.models import SCALED_RELU

RESULT = Path(__file__).parent / "results" / "batch_size.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "batch_size.png"
BATCHES = (2, 4, 8, 32, 128, 512)
LAYERS = ("bn-relu", "evonorm-b0", "gn-relu", "gn-silu", "evonorm-s0")
NF = "NF-ResNet + AGC"
NAMES = (*LAYERS, NF)
RATES, RATE_FOR, TUNED_ON = (0.1, 0.2, 0.4, 0.8, 1.6), 128, 1000


def case(name: str, batch: int, seed: int, images: int, rate: float) -> Case:
    """One training of the grid."""
    steps = images // batch
    recipe = Recipe(steps=steps, batch=batch, rate=rate, rate_for=RATE_FOR, warmup=steps // 10, nesterov=True)
    networks = Networks(groups=4)
    if name != NF:
        return Case(name, "resnet", name, recipe, seed, networks)
    return Case(
        name, "nf_resnet", SCALED_RELU, recipe.model_copy(update={"agc": 0.04, "agc_gains": False}), seed, networks
    )


def row(found: list[Result]) -> dict[str, Any]:
    """Mean and deviation of the accuracy over seeds that did not diverge, and those that did."""
    accuracies = [r["accuracy"] for r in found if r["diverged"] is None]
    return {
        "accuracy": round(statistics.fmean(accuracies), 4) if accuracies else None,
        "deviation": round(statistics.stdev(accuracies), 4) if len(accuracies) > 1 else None,
        "diverged": len(found) - len(accuracies),
    }


def show(found: dict[str, Any], console: Console) -> None:
    """The table."""
    batches = sorted({r["batch"] for r in found["rows"]})
    table = Table("", *map(str, batches), title=f"validation accuracy by batch, {found['images']} images")
    for name in NAMES:
        here = {r["batch"]: r for r in found["rows"] if r["name"] == name}
        table.add_row(name, *(cell(here[batch]) for batch in batches))
    console.print(table)


def cell(r: dict[str, Any]) -> str:
    """An entry of the table."""
    said = "-" if r["accuracy"] is None else f"{r['accuracy']:.3f}"
    said += "" if r["deviation"] is None else f" ± {r['deviation']:.3f}"
    return f"{said}, {r['diverged']} diverged" if r["diverged"] else said


def draw(found: dict[str, Any], path: Path) -> None:
    """Accuracy over the batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in NAMES:
        here = [r for r in found["rows"] if r["name"] == name and r["accuracy"] is not None]
        style = "--" if name in LAYERS[:2] else "-"
        errors = [r["deviation"] or 0.0 for r in here]
        axes.errorbar(
            [r["batch"] for r in here], [r["accuracy"] for r in here], errors, marker="o", markersize=3, capsize=2,
            linestyle=style, label=name,
        )  # fmt: skip
    axes.set(xscale="log", xlabel="batch", ylabel="validation accuracy", title="equal images, linear rule")
    axes.set_xticks(BATCHES, [str(b) for b in BATCHES])
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train what is missing, print the table, draw the figure, write both."""
    parser = arguments(__doc__, RESULT, FIGURE)
    parser.add_argument("--images", type=int, default=18000, help="of each training, repeated ones counted")
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 160)
    tried = {(n, rate): case(n, RATE_FOR, TUNED_ON, options.images, rate) for n in NAMES for rate in RATES}
    result = results(tried.values(), options.out, options.workers, console)
    rates = {n: min(RATES, key=lambda rate, n=n: result(tried[n, rate])["loss"] or math.inf) for n in NAMES}
    console.print(f"learning rates at {RATE_FOR}:", rates)
    seeds, grid = range(options.seeds), [(name, batch) for batch in BATCHES for name in NAMES]
    cases = {(n, b, seed): case(n, b, seed, options.images, rates[n]) for seed in seeds for n, b in grid}
    result = results(cases.values(), options.out, options.workers, console)
    rows = [{"name": n, "batch": b} | row([result(cases[n, b, seed]) for seed in seeds]) for n, b in grid]
    about = {"machine": machine(), "images": options.images, "seeds": options.seeds, "rates": rates, "for": RATE_FOR}
    about |= {"rows": rows}
    show(about, console)
    draw(about, options.figure)
    write(options.output, about)


if __name__ == "__main__":
    main()
