"""Charts of a run: a PNG picture for the run directory, and small SVGs that an HTML page can hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from normforge.errors import RunError
from normforge.search.funnel import Fate
from normforge.search.reports.atlas import atlas
from normforge.search.reports.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1500  # of a scatter; more are thinned out evenly
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:red", "tab:brown", "tab:pink", "tab:olive")
_INK = "#808080"  # of axes and text; the page's own text colour takes its place in an SVG
Draw = Callable[["Axes"], None]


def picture(summary: Summary, path: Path) -> None:
    """Progress on each network, fates, the comparison and the atlas, as one PNG picture.

    Raises:
        RunError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    (progress, fates), (final, places) = figure.subplots(2, 2)
    losses = [name for name in summary.objectives if name not in summary.config.objectives.also]
    draw_progress(summary, losses)(progress)
    draw_fates(summary)(fates)
    draw_comparison(summary)(final)
    if found := atlas(summary):
        found.draw(places)
    else:
        places.set_axis_off()
    try:
        figure.savefig(path, dpi=130)
    except OSError as e:
        raise RunError(f"the plot {path} cannot be written ({e}): make the directory writable") from None


def best_so_far(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """The least of all values up to each."""
    return np.minimum.accumulate(np.asarray(scores, dtype=float))


def draw_progress(summary: Summary, names: Sequence[str]) -> Draw:
    """Draw each scored layer, and the best so far, by trainings, on some of the objectives.

    A run of an earlier version did not count trainings: by evaluation.
    """
    counted = summary.trained > 0
    if counted:
        at = [s.trained for s in summary.curve]
        scored, end = [s.candidate.outcome.scores for s in summary.curve], summary.trained
    else:
        at = [float(k) for k, c in enumerate(summary.evaluated, 1) if c.outcome.fate is Fate.SCORED]
        scored, end = [summary.evaluated[int(k) - 1].outcome.scores for k in at], float(len(summary.evaluated))

    def draw(axes: Axes) -> None:
        for name in names if scored else ():
            color = _COLORS[summary.objectives.index(name) % len(_COLORS)]
            scores = np.array([s[name] for s in scored])
            axes.plot(*_thin(at, scores), "o", color=color, alpha=0.45, markersize=4, markeredgewidth=0)
            best = best_so_far(scores)
            steps = np.flatnonzero(np.diff(best, prepend=np.inf))  # a step line needs no more
            x, y = np.append(np.array(at)[steps], end), np.append(best[steps], best[-1])
            axes.step(x, y, where="post", color=color, label=name)
        _logarithmic_if_wide(axes, "y", np.array([[s[name] for name in names] for s in scored]))
        if len(names) > 1 and scored:
            axes.legend(loc="upper right")
        what = _axis(summary, names[0]) if len(names) == 1 else f"validation {summary.config.objectives.score}"
        by = "full trainings of the first rung" if counted else "evaluation"
        axes.set(title="Best so far", xlabel=by, ylabel=what)

    return draw


def draw_fates(summary: Summary) -> Draw:
    """Draw how many candidates ended where."""
    shown = [f for f in Fate if summary.fates[f]]

    def draw(axes: Axes) -> None:
        bars = axes.barh([str(f) for f in shown], [summary.fates[f] for f in shown], color="tab:blue")
        axes.bar_label(bars, padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title="Fates of the candidates", xlabel="layers")

    return draw


def draw_comparison(summary: Summary) -> Draw:
    """Draw the validation losses of the final comparison, mean and deviation, on each network."""
    networks, rows = summary.config.networks.use, summary.rows

    def draw(axes: Axes) -> None:
        for k, network in enumerate(networks):
            good = [(i, *row.mean("loss", network)) for i, row in enumerate(rows) if row.good(network)]
            if not good:
                continue
            at, means, deviations = (np.array(column) for column in zip(*good, strict=True))
            offset = 0.5 * ((k + 0.5) / len(networks) - 0.5)
            axes.errorbar(means, at + offset, xerr=deviations, fmt="o", capsize=3, color=_COLORS[k], label=network)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        for row, label in zip(rows, axes.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if row.found else "normal")
        axes.invert_yaxis()
        if rows and len(networks) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars of deviation, not among them
        axes.grid(axis="y", alpha=0.3)
        axes.set(title="Final comparison (bold: found)", xlabel="validation loss, mean ± deviation")

    return draw


def pairs(summary: Summary) -> list[tuple[str, str]]:
    """The pairs of objectives whose front is drawn: all of up to three, of more the first two alone."""
    names = summary.objectives
    return list(combinations(names if len(names) <= 3 else names[:2], 2))


def draw_front(summary: Summary, x: str, y: str) -> Draw:
    """Draw scored layers by two objectives; those on the front of all objectives stand out."""
    scores = np.array([[c.outcome.scores[x], c.outcome.scores[y]] for c in summary.ranked]).reshape(-1, 2)
    front = np.array([[c.outcome.scores[x], c.outcome.scores[y]] for c, _ in summary.front]).reshape(-1, 2)

    def draw(axes: Axes) -> None:
        axes.plot(*_thin(scores[:, 0], scores[:, 1]), "o", color=_INK, alpha=0.5, markersize=4, markeredgewidth=0)
        axes.plot(front[:, 0], front[:, 1], "o", color="tab:red", markersize=5)
        _logarithmic_if_wide(axes, "x", scores[:, 0])
        _logarithmic_if_wide(axes, "y", scores[:, 1])
        axes.set(xlabel=_axis(summary, x), ylabel=_axis(summary, y))

    return draw


def _logarithmic_if_wide(axes: Axes, which: Literal["x", "y"], values: np.ndarray) -> None:
    """A logarithmic axis for scores that span a factor of five, with ticks at 1, 2 and 5 that are written plainly."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if not values.size or values.min() <= 0 or values.max() < 5 * values.min():
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _axis(summary: Summary, objective: str) -> str:
    score = f"validation {summary.config.objectives.score}"
    further = objective in summary.config.objectives.also
    return objective.replace("_", " ") if further else f"{score}, {objective}"


def _thin(x: Sequence[float] | np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(y) - 1, min(len(y), POINTS)).round().astype(int))
    return np.asarray(x)[keep], y[keep]


def svg(name: str, label: str, draw: Draw, size: tuple[float, float] = (4.6, 3.1)) -> str:
    """A chart as an <svg> element without anything from outside: text as text, in the page's colours.

    Args:
        name: sets the ids in it apart from those of other charts of the page.
        label: what it shows, for those who do not see it.
        draw: what to draw; its title is left to the page.
        size: in inches; the page scales it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    rules: dict[Any, Any] = dict.fromkeys(inked, _INK)
    rules |= {"svg.fonttype": "none", "svg.hashsalt": name, "legend.framealpha": 0.0, "font.family": "sans-serif"}
    text = StringIO()
    with matplotlib.rc_context(rules):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title("")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<style.*?</style>", "", found, flags=re.DOTALL)  # it would hold for the whole page
    head = rf'<svg \1 role="img" aria-label="{escape(label)}">'  # HTML needs no namespaces, and the page sets the size
    found = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', head, found, count=1, flags=re.DOTALL)
    found = re.sub(r'\bid="', f'id="{name}-', found)
    found = found.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return found.replace(_INK, "currentColor")
