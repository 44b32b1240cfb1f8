"""Figure 2 of the NFNets paper (Brock et al., arXiv 2102.06171) in small: how far can the learning rate go?

    python bench/nfnets.py                  # 540 short trainings; an hour on two cores
    python bench/nfnets.py --steps 20 --seeds 1 --batch 32      # a look

A fixed number of steps of SGD with Nesterov's momentum on fractals of 12×12 pixels: learning rate × clipping × batch,
three seeds. Networks have six bottleneck blocks in three stages: a ResNet with BatchNorm + ReLU, an NF-ResNet with and
without adaptive gradient clipping (λ) and scaled weight standardization (SWS), one that clips the norm of all gradients
instead, one whose skip gains are left out of clipping, one whose classifier is clipped too. Results are kept in
`--out`, and the same command goes on.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from common import machine, write
from rich.console import Console
from rich.table import Table
from studies import Case, Result, arguments, results

from normforge.train.config import Networks, NFResNet, Recipe, ResNet
from normforge.train.models import SCALED_RELU

RESULT = Path(__file__).parent / "results" / "nfnets.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "nfnets.png"
RATES = (0.05, 0.2, 0.8, 3.2, 12.8)
BATCHES = (32, 128, 512)
SHAPE: dict[str, Any] = {"width": 0.0625, "depths": (2, 2, 2)}
NETWORKS = Networks(resnet=ResNet(**SHAPE), nf_resnet=NFResNet(**SHAPE))
PLAIN = Networks(nf_resnet=NFResNet(**SHAPE, standardized=False))
WORKS = 0.15  # accuracy that counts as trained: half again as much as by chance
# By name: network options, and what the recipe clips.
NF: dict[str, tuple[Networks, dict[str, Any]]] = {
    "NF": (NETWORKS, {}),
    "NF, λ 0.01": (NETWORKS, {"agc": 0.01}),
    "NF, λ 0.04": (NETWORKS, {"agc": 0.04}),
    "NF, λ 0.16": (NETWORKS, {"agc": 0.16}),
    "NF, λ 0.04, gains free": (NETWORKS, {"agc": 0.04, "agc_gains": False}),
    "NF, λ 0.04, classifier too": (NETWORKS, {"agc": 0.04, "agc_classifier": True}),
    "NF, norm 0.1": (NETWORKS, {"clip_norm": 0.1}),
    "NF, norm 0.4": (NETWORKS, {"clip_norm": 0.4}),
    "NF, norm 1.6": (NETWORKS, {"clip_norm": 1.6}),
    "no SWS": (PLAIN, {}),
    "no SWS, λ 0.04": (PLAIN, {"agc": 0.04}),
}
NAMES = ("BatchNorm", *NF)


def case(name: str, rate: float, batch: int, seed: int, steps: int) -> Case:
    """One training of the grid."""
    networks, clipping = NF.get(name, (NETWORKS, {}))
    recipe = Recipe(steps=steps, batch=batch, rate=rate, warmup=steps // 10, nesterov=True, **clipping)
    network, layer = ("resnet", "bn-relu") if name == "BatchNorm" else ("nf_resnet", SCALED_RELU)
    return Case(name, network, layer, recipe, seed, networks)


def row(found: list[Result]) -> dict[str, Any]:
    """What the seeds of a place of the grid have in common: the median accuracy, a training that diverged counted as 0,
    and so on."""
    ended = [r for r in found if r["diverged"] is None]
    said: dict[str, Any] = {
        "accuracy": round(statistics.median(r["accuracy"] if r["diverged"] is None else 0.0 for r in found), 4),
        "diverged": [r["diverged"] for r in found if r["diverged"] is not None],
    }
    if clipped := [r["clipped"] for r in found if "clipped" in r]:
        said["clipped"] = round(statistics.fmean(clipped), 4)
    if gains := [abs(g) for r in ended for g in r.get("gains", ())]:
        said["gain"] = round(statistics.median(gains), 5)
    return said


def widths(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """The number of learning rates, of five, at which each way trains, by batch: its median accuracy is above that of
    chance, and no seed diverged."""
    made: dict[str, dict[str, int]] = {}
    for r in rows:
        here = made.setdefault(r["name"], {})
        trains = r["accuracy"] >= WORKS and not r["diverged"]
        here[str(r["batch"])] = here.get(str(r["batch"]), 0) + trains
    return made


def show(found: dict[str, Any], console: Console) -> None:
    """A table a batch: median accuracy, and how many of the seeds diverged and by which step."""
    for batch in sorted({r["batch"] for r in found["rows"]}):
        table = Table("", *(f"lr {rate}" for rate in RATES), title=f"validation accuracy, batch {batch}")
        for name in NAMES:
            here = {r["rate"]: r for r in found["rows"] if r["batch"] == batch and r["name"] == name}
            table.add_row(name, *(cell(here[rate]) for rate in RATES if rate in here))
        console.print(table)
    console.print("learning rates of five at which a way trains, by batch:", found["widths"])


def cell(r: dict[str, Any]) -> str:
    """An entry of the table."""
    said = f"{r['accuracy']:.3f}"
    if r["diverged"]:
        said = f"{said} ÷{','.join(map(str, r['diverged']))}"
    return said if "clipped" not in r else f"{said} ({r['clipped']:.0%})"


def draw(found: dict[str, Any], path: Path) -> None:
    """Accuracy over the learning rate, a panel a batch."""
    from matplotlib.figure import Figure

    batches = sorted({r["batch"] for r in found["rows"]})
    figure = Figure(figsize=(4 * len(batches), 4), layout="constrained")
    shown = (
        "BatchNorm",
        "NF",
        "NF, λ 0.01",
        "NF, λ 0.04",
        "NF, λ 0.16",
        "NF, λ 0.04, gains free",
        "NF, norm 0.4",
        "no SWS",
    )
    for axes, batch in zip(figure.subplots(1, len(batches), sharey=True, squeeze=False)[0], batches, strict=True):
        for k, name in enumerate(shown):
            here = sorted(
                (r["rate"], r["accuracy"]) for r in found["rows"] if r["name"] == name and r["batch"] == batch
            )
            style = {"color": "black", "linewidth": 2} if name == "BatchNorm" else {"color": f"C{k}"}
            axes.plot(*zip(*here, strict=True), marker="o", markersize=3, label=name, **style)
        axes.set(xscale="log", xlabel="learning rate", title=f"batch {batch}")
    figure.axes[0].set_ylabel("median validation accuracy, 0: diverged")
    figure.axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train what is missing, print the tables, draw the figure, write both."""
    parser = arguments(__doc__, RESULT, FIGURE)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 160)
    # Seeds outermost, so that a study that is stopped has whole grids.
    grid = [(n, r, b) for b in options.batch for n in NAMES for r in RATES]
    cases = [case(*place, seed, options.steps) for seed in range(options.seeds) for place in grid]
    result = results(cases, options.out, options.workers, console)
    rows = []
    for name, rate, batch in grid:
        found = [result(case(name, rate, batch, seed, options.steps)) for seed in range(options.seeds)]
        rows.append({"name": name, "rate": rate, "batch": batch} | row(found))
    about = {"machine": machine(), "steps": options.steps, "seeds": options.seeds, "widths": widths(rows), "rows": rows}
    show(about, console)
    draw(about, options.figure)
    write(options.output, about)


if __name__ == "__main__":
    main()
