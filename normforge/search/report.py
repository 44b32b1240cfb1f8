"""The end of a run, for people: a table of what was found beside the baselines, and a picture."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from normforge.errors import RunError
from normforge.search.funnel import Fate, Outcome
from normforge.search.results import Row, best_distinct, comparison, scored
from normforge.search.store import Store

PLOT = "search.png"


def report(directory: Path, console: Console) -> None:
    """Print the table of a run and write its plot into the run directory, finished or not.

    Raises:
        RunError: the directory holds no readable run, or the plot cannot be written.
    """
    store = Store(directory)
    try:
        session = next(iter(store.events("session")), None)
        if session is None:
            raise RunError(f"{directory} holds a run that has not begun: start it with normforge search")
        best, baselines = int(session.data["final.best"]), tuple(session.data["final.baselines"])
        candidates = [(int(e.key), Outcome.from_json(e.data)) for e in store.events("candidate")]
        found = best_distinct(scored(store), best)
        rows = comparison(store, found, baselines)
    finally:
        store.close()
    _print_fates(console, candidates)
    if not found:
        console.print("No layer came through the funnel: give the search more minutes (--budget-minutes).")
    if any(row.outcomes for row in rows):
        _print_table(console, rows)
    elif found:
        console.print(f"Best so far: #{found[0].index}, validation loss {found[0].loss:.3f}. Not compared yet.")
    _plot(directory / PLOT, candidates, rows)
    console.print(f"Plot: {directory / PLOT}", highlight=False, soft_wrap=True)


def _print_fates(console: Console, candidates: list[tuple[int, Outcome]]) -> None:
    fates = Counter(outcome.fate for _, outcome in candidates)
    seconds: Counter[str] = Counter()
    for _, outcome in candidates:
        seconds.update(outcome.seconds)
    counts = ", ".join(f"{fates[f]} {f}" for f in Fate if fates[f])
    console.print(f"{len(candidates)} layers drawn: {counts}.", highlight=False, soft_wrap=True)
    spent = ", ".join(f"{stage} {s:.0f} s" for stage, s in seconds.items())
    console.print(f"Time by stage, all workers together: {spent}.", highlight=False, soft_wrap=True)


def _print_table(console: Console, rows: list[Row]) -> None:
    table = Table(title="Trained alike; mean ± deviation over seeds that did not fail", title_justify="left")
    for name in ("layer", "validation loss", "validation acc.", "test acc.", "failed"):
        table.add_column(name, justify="left" if name == "layer" else "right", no_wrap=True)
    for row in rows:
        loss, accuracy, test = (row.mean(what) for what in ("loss", "accuracy", "test"))
        table.add_row(
            row.name,
            _plus_minus(*loss),
            _plus_minus(*accuracy),
            _plus_minus(*test),
            f"{row.failures}/{len(row.outcomes)}",
            style="bold" if row.found else None,
        )
    console.print(table)
    for row in rows:
        console.print(f"  {row.name:11} {row.formula}", highlight=False, markup=False, soft_wrap=True)


def _plus_minus(mean: float, deviation: float) -> str:
    return "-" if math.isnan(mean) else f"{mean:.3f} ± {deviation:.3f}"


def _plot(path: Path, candidates: list[tuple[int, Outcome]], rows: list[Row]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (progress, funnel, final) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")

    done = sorted((i, o.loss) for i, o in candidates if o.fate is Fate.SCORED and o.loss is not None)
    if done:
        index, losses = [i for i, _ in done], [loss for _, loss in done]
        progress.plot(index, losses, ".", color="tab:gray", label="scored layer")
        running = [min(losses[: k + 1]) for k in range(len(losses))]
        progress.step(index, running, where="post", color="tab:red", label="best so far")
        progress.set_yscale("log")
        progress.legend()
    progress.set(title="Search", xlabel="candidate", ylabel="validation loss")

    fates = Counter(o.fate for _, o in candidates)
    shown = [f for f in Fate if fates[f]]
    bars = funnel.barh([str(f) for f in shown], [fates[f] for f in shown], color="tab:blue")
    funnel.bar_label(bars, padding=3)
    funnel.invert_yaxis()
    funnel.margins(x=0.15)
    funnel.set(title="Fates of the candidates", xlabel="layers")

    trained = [row for row in rows if row.good]
    means = [row.mean("loss") for row in trained]
    final.barh(
        [row.name for row in trained],
        [m for m, _ in means],
        xerr=[d for _, d in means],
        color=["tab:red" if row.found else "tab:blue" for row in trained],
        capsize=3,
    )
    final.invert_yaxis()
    final.set_xlim(left=0)
    final.set(title="Final comparison (red: found)", xlabel="validation loss, mean ± deviation")
    try:
        figure.savefig(path, dpi=130)
    except OSError as e:
        raise RunError(f"the plot {path} cannot be written ({e}): make the directory writable") from None
    finally:
        plt.close(figure)
