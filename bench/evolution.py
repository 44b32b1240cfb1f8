"""Evolution against random search, at the same number of evaluations; then the best found against known layers.

    python bench/evolution.py                  # whatever is missing, then tables and plot; hours on two cores
    python bench/evolution.py --report         # tables and plot alone
    python bench/evolution.py --evaluations 40 --seeds 1 --networks resnet --out runs/small    # a small one

Both search on fractals, on all networks, from the same space, with the same stages and recipe; random search is
evolution with nothing but fresh layers. Every seed is a run of the search engine of its own, which can be stopped and
goes on; they share a cache of evaluations. A curve is the best mean validation loss over networks so far, by
evaluations, mean and deviation over seeds.

Judged on digits, which no search saw: the best of each run after its re-ranking, and the known layers, all trained
alike with fresh seeds on all networks. A training fails if it is not finite or ends below twice chance; failures are
counted apart from means.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from common import machine, write
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import normforge as nf
from normforge.passes import simplify
from normforge.search import events, results
from normforge.search.config import Config, load
from normforge.search.events import Candidate, Compared
from normforge.search.funnel import Fate, Outcome
from normforge.search.run import run
from normforge.search.space import PAPER
from normforge.search.store import Store
from normforge.search.tasks import WORK, Task
from normforge.search.workers import open_pool, run_all

RESULTS = Path(__file__).parent / "results"
KNOWN = ("bn-relu", "bn-silu", "gn-relu", "gn-silu", "evonorm-b0", "evonorm-s0")
MODES = ("evolution", "random")
CLASSES = 10


def config(mode: str, seed: int, options: argparse.Namespace) -> Config:
    """Of one run."""
    settings = [
        f"seed={seed}",
        f"networks.use={options.networks}",
        f"evolution.fresh={1.0 if mode == 'random' else 0.5}",
        f"budget.evaluations={options.evaluations}",
        "budget.minutes=100000",
        f"workers.count={options.workers}",
        f"cache.file={options.out / 'evaluations.db'}",
        "final.best=1",
        "final.seeds=1",
        "final.baselines=bn-relu",
    ]
    return load("fractals", settings)


def directory(mode: str, seed: int, options: argparse.Namespace) -> Path:
    """Of one run."""
    return options.out / f"{mode}-{seed}"


def progress_of(path: Path) -> list[float]:
    """The best mean loss over networks after each evaluation, in slot order; infinite before the first scored one."""
    store = Store(path)
    evaluated = sorted((c for c in events.each(store, Candidate) if c.evaluated), key=lambda c: c.index)
    best, curve = math.inf, []
    for candidate in evaluated:
        if candidate.outcome.fate is Fate.SCORED:
            best = min(best, statistics.fmean(candidate.outcome.loss.values()))
        curve.append(best)
    store.close()
    return curve


def found(path: Path) -> Candidate:
    """The best after re-ranking."""
    store = Store(path)
    try:
        return results.candidate_of(store, "best", PAPER)
    finally:
        store.close()


def judge(graphs: dict[str, nf.Graph], options: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Trainings on digits, kept in a store of their own so that they go on where they were stopped."""
    settings = load("demo", [f"networks.use={options.networks}", f"workers.count={options.workers}"])
    store = Store(options.out / "judged", write=True)
    done = {trained.key: trained.outcome for trained in events.each(store, Compared)}
    tasks = [
        Task(f"{graph.hash}/{repeat}", graph, settings, repeat, final=True)
        for graph in graphs.values()
        for repeat in range(1, options.judges + 1)
    ]
    tasks = list({t.key: t for t in tasks if t.key not in done}.values())
    if tasks:
        pool = open_pool(WORK, settings.workers)
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task("judging on digits", total=len(tasks))
            for task, outcome in run_all(pool, tasks):
                store.append([Compared(task.key, 0.0, outcome).record()])
                done[task.key] = outcome
                progress.advance(bar)
        pool.stop()
    store.close()
    repeats = range(1, options.judges + 1)
    return {name: [done[f"{graph.hash}/{r}"] for r in repeats] for name, graph in graphs.items()}


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    """NaN of nothing."""
    values = list(values)
    if not values:
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def summary(options: argparse.Namespace) -> dict[str, Any]:
    """Curves, what was found, and the judgement."""
    networks = options.networks.split(",")
    curves = {m: [progress_of(directory(m, s, options)) for s in range(options.seeds)] for m in MODES}
    layers = {f"{m} {s}": found(directory(m, s, options)) for m in MODES for s in range(options.seeds)}
    graphs = {name: PAPER.to_graph(layer.genotype) for name, layer in layers.items()} | {
        name: nf.parse(name) for name in KNOWN
    }
    rows = []
    for name, outcomes in judge(graphs, options).items():
        trained = results.Row(name, str(simplify(graphs[name])), name in layers, results.FAILED / CLASSES, outcomes)
        by_network = {
            n: {"loss": trained.mean("loss", n), "test": trained.mean("test", n), "failed": trained.failures(n)}
            for n in networks
        }
        scores = layers[name].outcome.scores if trained.found else None
        rows.append({"layer": name, "formula": trained.formula, "networks": by_network, "found on fractals": scores})
    rows.sort(key=lambda r: (sum(v["failed"] for v in r["networks"].values()), _mean_loss(r)))
    at = [k for k in (25, 50, 100, 200, 400, 800, 1600) if k < options.evaluations] + [options.evaluations]
    best = {
        m: {k: mean_and_deviation(c[k - 1] for c in curves[m] if len(c) >= k and math.isfinite(c[k - 1])) for k in at}
        for m in MODES
    }
    return {"curves": curves, "best mean loss after": best, "judged on digits": rows}


def _mean_loss(row: dict[str, Any]) -> float:
    losses = [v["loss"][0] for v in row["networks"].values()]
    return math.inf if any(map(math.isnan, losses)) else statistics.fmean(losses)


def show(result: dict[str, Any], console: Console) -> None:
    """The tables for people."""
    table = Table("evaluations", *MODES, title="Best mean validation loss over networks, fractals", box=None)
    for k in result["best mean loss after"]["evolution"]:
        table.add_row(str(k), *(_plus_minus(result["best mean loss after"][m][k]) for m in MODES))
    console.print(table)
    networks = list(result["judged on digits"][0]["networks"])
    table = Table("layer", *(f"{n}: loss, test acc., failed" for n in networks), title="Judged on digits", box=None)
    for row in result["judged on digits"]:
        cells = [f"{_plus_minus(v['loss'])}, {_plus_minus(v['test'])}, {v['failed']}" for v in row["networks"].values()]
        table.add_row(row["layer"], *cells)
    console.print(table)
    for row in result["judged on digits"]:
        console.print(f"  {row['layer']:12} {row['formula']}", highlight=False, markup=False, soft_wrap=True)


def _plus_minus(value: tuple[float, float]) -> str:
    return "-" if math.isnan(value[0]) else f"{value[0]:.3f} ± {value[1]:.3f}"


def plot(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Mean and deviation over seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for mode, color in zip(MODES, ("tab:red", "tab:gray"), strict=True):
        length = min(map(len, curves[mode]))
        columns = [[c[k] for c in curves[mode]] for k in range(length)]
        shown = [k for k, column in enumerate(columns) if all(map(math.isfinite, column))]
        means = [statistics.fmean(columns[k]) for k in shown]
        spread = [statistics.stdev(columns[k]) if len(columns[k]) > 1 else 0.0 for k in shown]
        axes.step(shown, means, where="post", color=color, label=mode)
        low, high = ([m + s * d for m, d in zip(means, spread, strict=True)] for s in (-1, 1))
        axes.fill_between(shown, low, high, step="post", color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel="evaluations", ylabel="best mean validation loss", title="Search on fractals, mean ± deviation")
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=200, help="of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", default="resnet,mobilenet,efficientnet")
    parser.add_argument("--judges", type=int, default=5, help="seeds of the judgement")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/evolution"), help="of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="for evolution.json and evolution.png")
    parser.add_argument("--report", action="store_true", help="search nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 200)
    for seed in range(options.seeds):
        for mode in MODES if not options.report else ():
            console.rule(f"{mode}, seed {seed}")
            if not run(config(mode, seed, options), directory(mode, seed, options), console):
                return 130
    result = summary(options)
    show(result, console)
    plot(result["curves"], options.results / "evolution.png")
    write(options.results / "evolution.json", json.loads(json.dumps({"machine": machine(), **result})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
