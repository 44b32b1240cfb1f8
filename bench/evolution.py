"""Does evolution beat random search? Arms on the micro rung, all registered here before any of them runs.

    python bench/evolution.py                             # whatever is missing, then the tables; hours on two cores
    python bench/evolution.py --report                    # tables and plot alone
    python bench/evolution.py --arms gated-evolution,gated-random --seeds 2 --trained 20 --out runs/small

Settings of `gated-evolution` were chosen on seeds 1 to 7, with 60 eq; no registered seed was looked at before. An arm
is a configuration (`ARMS`); its seeds (`SEEDS`) are runs of the search engine of their own, on fractals, whose budget
is counted in full micro trainings (eq). They can be stopped and go on. Random search is the same configuration with
nothing but fresh layers, behind the same filters.

The score of a run is not what the search saw: its best layers that the stability stage does not refuse, five at most,
are trained from three other sets of weights; the first of them is trained from three others again, and the mean loss of
those three is the score. Layers that stability refused are counted. Arms are compared by the exact Mann-Whitney test,
one-sided: the first is below the second. The effect size is the share of pairs of runs in which it is, ties by half.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from common import machine, write
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import mannwhitneyu

import normforge as nf
from normforge.ir.graph import Graph
from normforge.passes import simplify
from normforge.probing.behaviour import nearest_known
from normforge.search import events, results
from normforge.search.config import Config, load
from normforge.search.events import Candidate, Compared
from normforge.search.funnel import Fate, Outcome
from normforge.search.run import run
from normforge.search.space import SearchSpace
from normforge.search.store import Store
from normforge.search.tasks import WORK, Task
from normforge.search.workers import WorkerPool, open_pool, run_all

RESULTS = Path(__file__).parent / "results"
FILTERS = (
    "filters.family=true",
    "filters.behaviour=0.995",
    "filters.start=0.9999",
    "filters.signal=1.5",
    "filters.probing=true",
)
GATED = ("evolution.protocol=structural", *FILTERS)
ARMS: dict[str, tuple[str, ...]] = {
    "gated-evolution": GATED,
    # Random search behind the same filters, over the draws that evolution begins with.
    "gated-random": (*GATED, "evolution.fresh=1"),
    "paper-evolution": ("evolution.protocol=paper",),
    "paper-random": ("evolution.fresh=1",),
    # The same over the paper's draws, of which far fewer come through.
    "gated-genes": (*FILTERS, "evolution.fresh=1"),
    # Evolution with one thing taken away.
    "no-gate": (*GATED, "filters.signal=0"),
    "no-behaviour": (*GATED, "filters.behaviour=0", "filters.start=0"),
    "no-grown-draws": (*GATED, "evolution.draws=random"),
    "no-moves": (*GATED, "evolution.mutation=redraw", "evolution.grafts=0"),
}
SEEDS: dict[str, tuple[int, ...]] = {
    name: tuple(range(2000, 2008 if name in ("gated-evolution", "gated-random") else 2005)) for name in ARMS
}
TESTS = (  # the first is below the second, with a p of at most
    ("gated-evolution", "gated-random", 0.01),
    ("gated-evolution", "paper-evolution", 0.05),
    ("gated-evolution", "paper-random", 0.05),
    ("gated-evolution", "gated-genes", 0.05),
)
KNOWN = ("bn-relu", "gn-relu", "gn-silu", "evonorm-b0", "evonorm-s0")
TRAINED = 100.0  # eq of a run
BEST, SEEN, FRESH = 5, (1, 2, 3), (4, 5, 6)  # layers ranked again; the weights of that ranking, and of the score


def settings(arm: str, seed: int, options: argparse.Namespace, changes: Sequence[str] = ()) -> Config:
    """The configuration of one run."""
    return load(
        "digits",
        [
            f"seed={seed}",
            "data.source=fractals",
            "networks.use=plain",
            "networks.groups=4",
            "data.fractals.size=8",
            "ladder.use=micro",
            "recipe.steps=120",
            "recipe.batch=32",
            "quality.steps=30",
            "evolution.lag=4",
            *ARMS[arm],
            f"budget.trained={options.trained}",
            "budget.minutes=100000",
            f"workers.count={options.workers}",
            "final.candidates=1",
            "final.best=1",
            "final.seeds=1",
            "final.baselines=bn-relu",
            *changes,
        ],
    )


@dataclass
class Run:
    """A run as it was stored.

    Attributes:
        candidates: all of them, in the order of their numbers.
        space: that they were drawn from.
    """

    candidates: list[Candidate]
    space: SearchSpace

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a run directory."""
        store = Store(path)
        try:
            found = sorted(events.candidates(store), key=lambda c: c.index)
            return cls(found, SearchSpace(results.settings(store).space))
        finally:
            store.close()

    def curve(self) -> list[tuple[float, float, float]]:
        """(eq, CPU-seconds, best loss) after each trained layer."""
        trained = spent = 0.0
        best, points = math.inf, []
        for candidate in self.candidates:
            trained += candidate.outcome.trained
            spent += candidate.seconds
            best = min(best, loss_of(candidate.outcome))
            if candidate.outcome.trained:
                points.append((trained, spent, best))
        return points

    def ranked(self) -> list[Candidate]:
        """The scored layers, the best first, each once."""
        scored = [c for c in self.candidates if c.outcome.fate is Fate.SCORED]
        return results.best_distinct(sorted(scored, key=lambda c: loss_of(c.outcome)), len(scored), self.space)


def loss_of(outcome: Outcome) -> float:
    """The loss of a micro training; infinite where it failed."""
    return outcome.loss.get("micro", math.inf) if outcome.fate is Fate.SCORED else math.inf


def judging(options: argparse.Namespace, *changes: str) -> Config:
    """The configuration by which layers are judged, whichever arm found them: the micro rung, and stability."""
    return settings("gated-evolution", 0, options, ["ladder.use=micro,stability", *changes])


class Judge:
    """Trains layers from weights that no search used, each once; what was trained is stored.

    Args:
        config: of the trainings; its ladder needs the rungs that are asked for.
        path: the folder of what was trained.
        console: for progress.
    """

    def __init__(self, config: Config, path: Path, console: Console) -> None:
        self._config, self._console = config, console
        self._pool: WorkerPool | None = None  # opened with the first task
        self._store = Store(path, write=True)
        self._done = {t.key: t.outcome for t in events.each(self._store, Compared)}

    def stable(self, graphs: Sequence[Graph]) -> list[bool]:
        """Does the stability stage let each layer pass?"""
        found = self.outcomes([(graph, "stability", 0) for graph in graphs])
        return [outcome.fate is Fate.SCORED for outcome in found]

    def losses(self, graphs: Sequence[Graph], repeats: Sequence[int]) -> list[float]:
        """The mean micro loss of each layer over weights; infinite where a training failed."""
        found = self.outcomes([(graph, "micro", r) for graph in graphs for r in repeats])
        values = [o.loss.get("micro", math.inf) if o.fate is Fate.PASSED else math.inf for o in found]
        step = len(repeats)
        return [statistics.fmean(values[i : i + step]) for i in range(0, len(values), step)]

    def outcomes(self, asked: Sequence[tuple[Graph, str, int]]) -> list[Outcome]:
        """Of layers, each on a rung (of all stages at once where that is empty) and with the weights of a repeat."""
        keys = [f"{graph.hash}/{rung}/{repeat}" for graph, rung, repeat in asked]
        tasks = {
            key: Task(key, graph, self._config, repeat, rung)
            for key, (graph, rung, repeat) in zip(keys, asked, strict=True)
            if key not in self._done
        }
        if tasks:
            self._pool = self._pool or open_pool(WORK, self._config.workers)
            with Progress(console=self._console) as progress:
                bar = progress.add_task("judging", total=len(tasks))
                for task, outcome in run_all(self._pool, tasks.values()):
                    self._store.append([Compared(task.key, 0.0, outcome).record()])
                    self._done[task.key] = outcome
                    progress.advance(bar)
        return [self._done[key] for key in keys]

    def close(self) -> None:
        """End the workers and close the store."""
        if self._pool:
            self._pool.stop()
        self._store.close()


def score(found: Run, judge: Judge) -> dict[str, Any]:
    """The score of a run, and the layer that has it."""
    ranked, kept, unstable = found.ranked(), [], 0
    graphs = {c.name: found.space.to_graph(c.genotype) for c in ranked}
    for candidate in ranked:
        if len(kept) == BEST:
            break
        if judge.stable([graphs[candidate.name]])[0]:
            kept.append(candidate)
        else:
            unstable += 1
    curve = found.curve()
    row: dict[str, Any] = {
        "trained": sum(1 for c in found.candidates if c.outcome.trained),
        "drawn": len(found.candidates),
        "eq": curve[-1][0] if curve else 0.0,
        "CPU seconds": round(sum(c.seconds for c in found.candidates), 1),
        "best seen": curve[-1][2] if curve else math.inf,
        "unstable among the best": unstable,
        "score": math.inf,
    }
    if kept:
        again = judge.losses([graphs[c.name] for c in kept], SEEN)
        first = kept[min(range(len(kept)), key=again.__getitem__)]
        graph = graphs[first.name]
        near = nearest_known(graph, 1)
        row |= {
            "score": judge.losses([graph], FRESH)[0],
            "layer": str(simplify(graph)),
            "nearest": str(near[0]) if near else "none",
        }
    return row


def summary(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Scores, tests and curves of the runs that there are."""
    judge = Judge(judging(options), options.out / "judged", console)
    try:
        rows = {}
        for arm in options.arms:
            paths = {seed: options.out / f"{arm}-{seed}" for seed in seeds_of(arm, options)}
            rows[arm] = {seed: Run.read(p) for seed, p in paths.items() if (p / "search.db").exists()}
        scored = {arm: {seed: score(found, judge) for seed, found in runs.items()} for arm, runs in rows.items()}
        curves = {arm: [found.curve() for found in runs.values()] for arm, runs in rows.items()}
        known = dict(zip(KNOWN, judge.losses([nf.parse(name) for name in KNOWN], FRESH), strict=True))
    finally:
        judge.close()
    tests = [
        {"below": a, "above": b, "at most": most, **compare(scored[a].values(), scored[b].values())}
        for a, b, most in TESTS
        if scored.get(a) and scored.get(b)
    ]
    return {"settings": ARMS, "runs": scored, "tests": tests, "known": known, "curves": curves}


def compare(ones: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The exact one-sided Mann-Whitney p that the first scores are lower, and the share of pairs in which they are."""
    a, b = [r["score"] for r in ones], [r["score"] for r in others]
    p = float(mannwhitneyu(a, b, alternative="less", method="exact").pvalue)
    wins = statistics.fmean(1.0 if x < y else 0.5 if x == y else 0.0 for x in a for y in b)
    return {"p": p, "share of pairs": wins}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    table = Table("arm", "scores by seed", "mean", "layers", "CPU s", "unstable", box=None)
    for arm, runs in result["runs"].items():
        rows = list(runs.values())
        if not rows:
            continue
        scores = [r["score"] for r in rows]
        table.add_row(
            arm,
            " ".join(f"{s:.3f}" for s in scores),
            f"{statistics.fmean(scores):.3f}",
            f"{statistics.fmean(r['trained'] for r in rows):.0f}",
            f"{statistics.fmean(r['CPU seconds'] for r in rows):.0f}",
            str(sum(r["unstable among the best"] for r in rows)),
        )
    console.print(table)
    console.print("known, same weights: " + ", ".join(f"{n} {v:.3f}" for n, v in result["known"].items()))
    for test in result["tests"]:
        verdict = "holds" if test["p"] <= test["at most"] else "does not hold"
        console.print(
            f"{test['below']} below {test['above']}: p = {test['p']:.4f} (at most {test['at most']}: {verdict}), "
            f"in {test['share of pairs']:.0%} of pairs"
        )
    for arm, runs in result["runs"].items():
        for seed, row in runs.items():
            layer = f"{row.get('layer', '-')}   [{row.get('nearest', '')}]"
            console.print(f"  {arm} {seed}: {row['score']:.3f} {layer}", highlight=False, markup=False, soft_wrap=True)


def plot(curves: dict[str, list[list[tuple[float, float, float]]]], path: Path) -> None:
    """The best loss that a run has seen, mean over seeds: by eq and by CPU-seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for (arm, runs), color in zip(curves.items(), plt.get_cmap("tab10").colors, strict=False):
        for axis, at in zip(axes, (0, 1), strict=True):
            for k, points in enumerate(runs):
                label = arm if k == 0 else None
                axis.step(
                    [p[at] for p in points], [p[2] for p in points], where="post", color=color, alpha=0.6, label=label
                )
    axes[0].set(xlabel="micro trainings (eq)", ylabel="best loss seen")
    axes[1].set(xlabel="CPU-seconds, filters included", xscale="log")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def seeds_of(arm: str, options: argparse.Namespace) -> tuple[int, ...]:
    """The registered seeds of an arm, as many as are asked for."""
    return SEEDS[arm][: options.seeds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ARMS), help="only these, separated by commas")
    parser.add_argument("--seeds", type=int, help="only the first of each arm's")
    parser.add_argument("--trained", type=float, default=TRAINED, help="eq of each run")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("runs/evolution"), help="of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="for evolution.json and evolution.png")
    parser.add_argument("--report", action="store_true", help="search nothing")
    options = parser.parse_args()
    options.arms = options.arms.split(",")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 200)
    # Seed by seed, so that arms are compared whenever this is stopped.
    for k in range(max(map(len, SEEDS.values()))) if not options.report else ():
        for arm in options.arms:
            for seed in seeds_of(arm, options)[k : k + 1]:
                console.rule(f"{arm}, seed {seed}")
                if not run(settings(arm, seed, options), options.out / f"{arm}-{seed}", console):
                    return 130
    result = summary(options, console)
    show(result, console)
    plot(result.pop("curves"), options.results / "evolution.png")
    write(options.results / "evolution.json", json.loads(json.dumps({"machine": machine(), **result})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
