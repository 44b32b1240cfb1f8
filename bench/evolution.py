"""Does evolution beat random search? Arms on the micro rung and on the ladder, all registered here before they run.

    python bench/evolution.py                             # whatever is missing, then the tables; hours on two cores
    python bench/evolution.py --report                    # tables and plot alone, of these runs and of what is stored
    python bench/evolution.py --arms gated-evolution,gated-random --seeds 2 --trained 20 --out runs/small

Settings of `gated-evolution` were chosen on seeds 1 to 7; no registered seed was looked at before. An arm is a
configuration (`ARMS`); its seeds (`SEEDS`) are runs of the search engine of their own, on fractals, whose budget is
counted in full micro trainings (eq). They can be stopped and go on. Random search is the same configuration with
nothing but fresh layers, behind the same filters. Other settings of evolution, without niches, wraps and with eight
layers to begin with, had seeds 2000 to 2007; they were no better than random search (`results/evolution_2000.json`).

The score of a run is not what the search saw: its best layers that the stability stage does not refuse, five at most,
are trained from three other sets of weights; the first of them is trained from three others again, and the mean loss of
those three is the score: of micro trainings, on the ladder of full trainings. Layers that stability refused are
counted. Arms are compared by the exact Mann-Whitney test, one-sided: the first is below the second. The effect size is
the share of pairs of runs in which it is, ties by half. Hits are trained layers whose loss, on the weights that the
search used, is below that of the best known layer without moments over the batch; arms are compared by their share of
the layers that a run trained, run by run, by the same test.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
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
from normforge.search.config import Config, flat, load
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
NETWORK = (
    "networks.use=resnet",
    "data.fractals.size=12",
    "recipe.steps=200",
    "recipe.batch=64",
    "quality.steps=100",
)
LADDER = (*NETWORK, "ladder.use=micro,quality,full,stability", "ladder.promote=0.25,0.34,1.0")
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
    "no-archive": (*GATED, "evolution.niche=0"),
    # The whole ladder on a small ResNet, and every layer trained on it to the end.
    "ladder-evolution": (*GATED, *LADDER),
    "ladder-random": (*GATED, *LADDER, "evolution.fresh=1"),
    "no-ladder": (*GATED, *NETWORK, "ladder.use="),
}
SEEDS: dict[str, tuple[int, ...]] = dict.fromkeys(ARMS, tuple(range(2200, 2205))) | {
    **dict.fromkeys(("gated-evolution", "gated-random"), tuple(range(2200, 2208))),
    **dict.fromkeys(("ladder-evolution", "ladder-random", "no-ladder"), tuple(range(2200, 2203))),
}
TESTS = (  # the first is below the second, with a p of at most
    ("gated-evolution", "gated-random", 0.01),
    ("gated-evolution", "paper-evolution", 0.05),
    ("gated-evolution", "paper-random", 0.05),
    ("gated-evolution", "gated-genes", 0.05),
    ("ladder-evolution", "ladder-random", 0.05),
    ("ladder-evolution", "no-ladder", 0.05),
)
INDEPENDENT = ("gn-relu", "gn-silu", "evonorm-s0")  # without moments over the batch
KNOWN = ("bn-relu", "evonorm-b0", *INDEPENDENT)
TRAINED = 100.0  # eq of a run on the micro rung
ON_NETWORK = {"ladder-evolution": 2.5, "ladder-random": 2.5, "no-ladder": 2.5 / 5.2486}
"""Times as much; without micro rung, 1 eq is a full training of the ResNet, 5.2486 times a micro training."""
FINAL = "final"  # in place of a rung: the final training of a run
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
            f"budget.trained={options.trained * ON_NETWORK.get(arm, 1.0)}",
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
        """(eq, CPU-seconds, best loss) whenever there is a new best, and at the end."""
        trained = spent = 0.0
        best, points = math.inf, []
        for candidate in self.candidates:
            trained += candidate.outcome.trained
            spent += candidate.seconds
            if candidate.outcome.fate is Fate.SCORED and loss_of(candidate.outcome) < best:
                best = loss_of(candidate.outcome)
                points.append((round(trained, 2), round(spent, 1), round(best, 4)))
        return [*points, (round(trained, 2), round(spent, 1), round(best, 4))]

    def ranked(self) -> list[Candidate]:
        """The scored layers, the best first, each once."""
        scored = [c for c in self.candidates if c.outcome.fate is Fate.SCORED]
        return results.best_distinct(sorted(scored, key=lambda c: loss_of(c.outcome)), len(scored), self.space)


def loss_of(outcome: Outcome) -> float:
    """The loss of the highest rung that trains, the mean over its networks; infinite where the layer ended before."""
    if outcome.fate not in (Fate.PASSED, Fate.SCORED):
        return math.inf
    above = [loss for network, loss in outcome.loss.items() if network != "micro"]
    return statistics.fmean(above or outcome.loss.values())


def judging(options: argparse.Namespace, *changes: str) -> Config:
    """The configuration by which layers are judged, whichever arm found them: the micro rung, and stability."""
    return settings("gated-evolution", 0, options, ["ladder.use=micro,stability", *changes])


def on_network(arm: str) -> bool:
    """Does an arm train layers on a network to the end, stability among its stages?"""
    return arm in ON_NETWORK


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

    def losses(self, graphs: Sequence[Graph], repeats: Sequence[int], rung: str = "micro") -> list[float]:
        """The mean loss of each layer on a rung over weights; infinite where a training failed."""
        found = self.outcomes([(graph, rung, r) for graph in graphs for r in repeats])
        values = [loss_of(outcome) for outcome in found]
        step = len(repeats)
        return [statistics.fmean(values[i : i + step]) for i in range(0, len(values), step)]

    def outcomes(self, asked: Sequence[tuple[Graph, str, int]]) -> list[Outcome]:
        """Of layers, each on a rung (of all stages at once where that is empty, or `FINAL`), with the weights of a
        repeat."""
        keys = [f"{graph.hash}/{rung}/{repeat}" for graph, rung, repeat in asked]
        tasks = {
            key: Task(key, graph, self._config, repeat, "" if rung == FINAL else rung, final=rung == FINAL)
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


def score(found: Run, judge: Judge, rung: str = "micro", level: float = math.inf) -> dict[str, Any]:
    """The score of a run, and the layer that has it.

    Args:
        found: the run.
        judge: with the configuration of `judging`, or of an arm on a network.
        rung: whose losses count: `micro`; or empty, full training on the network, after all stages.
        level: a micro loss; trained layers below it are hits.
    """
    ranked, kept = found.ranked(), []
    fates = [c.outcome.fate for c in found.candidates]
    unstable = fates.count(Fate.STABILITY)
    graphs = {c.name: found.space.to_graph(c.genotype) for c in ranked}
    for candidate in ranked:
        if len(kept) == BEST:
            break
        if not rung or judge.stable([graphs[candidate.name]])[0]:
            kept.append(candidate)
        else:
            unstable += 1
    curve = found.curve()
    trained = [c.outcome for c in found.candidates if c.outcome.trained]
    row: dict[str, Any] = {
        "trained": len(trained),
        "drawn": len(found.candidates),
        "eq": curve[-1][0],
        "CPU seconds": curve[-1][1],
        "best seen": curve[-1][2],
        "unstable among the best": unstable,
        "hits": sum(o.loss.get("micro", math.inf) < level for o in trained),
        "score": math.inf,
        "curve": curve,
    }
    if kept:
        again = judge.losses([graphs[c.name] for c in kept], SEEN, rung)
        first = kept[min(range(len(kept)), key=again.__getitem__)]
        graph = graphs[first.name]
        near = nearest_known(graph, 1)
        row |= {
            "score": judge.losses([graph], FRESH, rung)[0],
            "layer": str(simplify(graph)),
            "nearest": str(near[0]) if near else "none",
        }
    return row


def summary(options: argparse.Namespace, console: Console, earlier: dict[str, Any]) -> dict[str, Any]:
    """Scores and tests of the runs that there are.

    Args:
        options: of the command line.
        console: for progress.
        earlier: a summary; its rows of arms that are not asked for, or have no runs here, are kept if the settings of
            the arm are still the same.
    """
    scored: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {"settings": {arm: effective(arm, options) for arm in ARMS}, "known": {}}
    for arm, rows in earlier.get("runs", {}).items():
        registered = rows.keys() <= set(map(str, SEEDS.get(arm, ())))
        if registered and earlier["settings"][arm] == found["settings"][arm]:
            scored[arm] = rows
    known = [nf.parse(name) for name in KNOWN]
    for place, rung, config in (
        ("micro", "micro", judging(options)),
        ("network", "", settings("ladder-evolution", 0, options)),
    ):
        arms = {arm: runs_of(arm, options) for arm in options.arms if on_network(arm) == (place == "network")}
        if not any(arms.values()):
            found["known"] |= {place: earlier["known"][place]} if place in earlier.get("known", {}) else {}
            continue
        judge = Judge(config, options.out / f"judged-{place}", console)
        try:
            found["known"][place] = dict(zip(KNOWN, judge.losses(known, FRESH, rung), strict=True))
            independent = [graph for graph, name in zip(known, KNOWN, strict=True) if name in INDEPENDENT]
            level = min(judge.losses(independent, [0]))
            for arm, runs in arms.items():
                rows = {str(seed): score(Run.read(path), judge, rung, level) for seed, path in runs.items()}
                scored |= {arm: rows} if rows else {}
        finally:
            judge.close()
    tests = []
    for a, b, most in TESTS:
        if a in scored and b in scored:
            ones, others = scored[a].values(), scored[b].values()
            hits = compare([-share_of_hits(r) for r in ones], [-share_of_hits(r) for r in others])
            by_loss = compare([r["score"] for r in ones], [r["score"] for r in others])
            tests.append({"below": a, "above": b, "at most": most, **by_loss, "hits": hits})
    return {**found, "runs": {arm: scored[arm] for arm in ARMS if arm in scored}, "tests": tests}


def effective(arm: str, options: argparse.Namespace) -> dict[str, str]:
    """What an arm sets to other than the defaults, by name."""
    defaults = dict(flat(Config()))
    changed = {k: v for k, v in flat(settings(arm, 0, options)) if v != defaults[k]}
    return {k: str(v) for k, v in changed.items() if not k.startswith(("workers.", "budget."))}


def runs_of(arm: str, options: argparse.Namespace) -> dict[int, Path]:
    """The directories of an arm's runs that there are, by seed."""
    paths = {seed: options.out / f"{arm}-{seed}" for seed in seeds_of(arm, options)}
    return {seed: path for seed, path in paths.items() if (path / "search.db").exists()}


def share_of_hits(row: dict[str, Any]) -> float:
    """Of the layers that a run trained."""
    return row["hits"] / max(row["trained"], 1)


def compare(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """The exact one-sided Mann-Whitney p that the first are lower, and the share of pairs in which they are."""
    p = float(mannwhitneyu(a, b, alternative="less", method="exact").pvalue)
    wins = statistics.fmean(1.0 if x < y else 0.5 if x == y else 0.0 for x in a for y in b)
    return {"p": p, "share of pairs": wins}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    table = Table("arm", "scores by seed", "mean", "layers", "hits", "CPU s", "unstable", box=None)
    for arm, runs in result["runs"].items():
        rows = list(runs.values())
        scores = [r["score"] for r in rows]
        table.add_row(
            arm,
            " ".join(f"{s:.3f}" for s in scores),
            f"{statistics.fmean(scores):.3f}",
            f"{statistics.fmean(r['trained'] for r in rows):.0f}",
            f"{statistics.fmean(map(share_of_hits, rows)):.0%}",
            f"{statistics.fmean(r['CPU seconds'] for r in rows):.0f}",
            str(sum(r["unstable among the best"] for r in rows)),
        )
    console.print(table)
    for place, known in result["known"].items():
        console.print(f"known, same weights, {place}: " + ", ".join(f"{n} {v:.3f}" for n, v in known.items()))
    for test in result["tests"]:
        verdict = "holds" if test["p"] <= test["at most"] else "does not hold"
        console.print(
            f"{test['below']} below {test['above']}: p = {test['p']:.4f} (at most {test['at most']}: {verdict}), in "
            f"{test['share of pairs']:.0%} of pairs; more hits: p = {test['hits']['p']:.4f}"
        )
    for arm, runs in result["runs"].items():
        for seed, row in runs.items():
            layer = f"{row.get('layer', '-')}   [{row.get('nearest', '')}]"
            console.print(f"  {arm} {seed}: {row['score']:.3f} {layer}", highlight=False, markup=False, soft_wrap=True)


def plot(result: dict[str, Any], path: Path) -> None:
    """The best loss that each run of the micro rung has seen: by eq and by CPU-seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    micro = {arm: runs for arm, runs in result["runs"].items() if not on_network(arm)}
    for (arm, runs), color in zip(micro.items(), plt.get_cmap("tab10").colors, strict=False):
        for axis, at in zip(axes, (0, 1), strict=True):
            for k, row in enumerate(runs.values()):
                x, y = [p[at] for p in row["curve"]], [p[2] for p in row["curve"]]
                axis.step(x, y, where="post", color=color, alpha=0.6, label=arm if k == 0 else None)
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
    path = options.results / "evolution.json"
    result = summary(options, console, json.loads(path.read_text()) if path.exists() else {})
    show(result, console)
    plot(result, path.with_suffix(".png"))
    write(path, json.loads(json.dumps({"machine": machine(), **result})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
