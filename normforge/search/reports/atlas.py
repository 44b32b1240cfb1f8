"""The atlas of a run: its trained layers as points of a plane, near where they behave alike, with the known layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from normforge.ir.graph import Graph
from normforge.ir.layers import layers
from normforge.probing.behaviour import LENGTH, Vector, behaviour
from normforge.search.events import Candidate
from normforge.search.funnel import UNDECIDED
from normforge.search.reports.lineage import ancestry, line
from normforge.search.reports.summary import Summary
from normforge.search.space import SearchSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 800  # layers; of more, the best and those evenly between
_INK = "#808080"
_GOOD_TO_BAD = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")  # viridis, by fifths


@dataclass(frozen=True)
class Atlas:
    """Where layers lie.

    Attributes:
        places: (n, 2), the trained layers.
        scores: (n,), losses on the first rung, averaged over networks; NaN where a layer failed.
        known: names and places of the known layers, (2,) each.
        path: (m, 2), the best layer's line of first parents, the eldest first.
        explained: share of all there is to tell layers apart by that the two axes show.
    """

    places: np.ndarray
    scores: np.ndarray
    known: dict[str, np.ndarray]
    path: np.ndarray
    explained: float

    def draw(self, axes: Axes) -> None:
        """Draw it."""
        failed = np.isnan(self.scores)
        axes.plot(*self.places[failed].T, "x", color=_INK, alpha=0.35, markersize=4, label="failed")
        points, scores = self.places[~failed], self.scores[~failed]
        limits = np.unique(np.quantile(scores, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])) if len(scores) else scores
        # Groups, and no scale of colours, which an SVG holds as a picture. The best are drawn last, and lie on top.
        for k in reversed(range(len(limits) - 1)):
            among = (scores <= limits[k + 1]) & ((scores > limits[k]) | (k == 0))
            label = f"loss {limits[k]:.3f} to {limits[k + 1]:.3f}"
            axes.plot(*points[among].T, "o", color=_GOOD_TO_BAD[k], markersize=5, markeredgewidth=0, label=label)
        if len(self.path) > 1:
            axes.plot(*self.path.T, "-", color="tab:red", linewidth=1, alpha=0.8)
        if len(self.path):
            axes.plot(*self.path[-1], "o", markerfacecolor="none", color="tab:red", markersize=9, label="best")
        for name, place in self.known.items():
            axes.plot(*place, "D", color="tab:orange", markersize=4)
            axes.annotate(name, (place[0], place[1]), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
        axes.set(
            title="Atlas: layers near each other behave alike",
            xlabel=f"first component of behaviour ({self.explained:.0%} in both)",
            ylabel="second component",
        )


def atlas(summary: Summary) -> Atlas | None:
    """The places of a run's layers: principal components of behaviour, in the space of squared cosines, since the sign
    of a behaviour is gamma's. None of fewer than three layers that have a behaviour."""
    drawn = SearchSpace(summary.config.space)
    by_index = {c.index: c for c in summary.evaluated}
    steps = line(list(ancestry(summary.ranked[0].index, by_index.get)))[::-1] if summary.ranked else []
    chosen = {c.index: c for c in (*steps, *_chosen(summary))}
    found = {i: v for i, c in chosen.items() if (v := _vector(drawn.to_graph(c.genotype))) is not None}
    if len(found) < 3:
        return None
    names = [row.name for row in summary.rows if not row.found] or summary.config.final.baselines
    known = {name: v for name in names if (v := _vector(layers[name])) is not None}
    places, explained = _plane([*found.values(), *known.values()], fitted=len(found))
    at = dict(zip(found, places, strict=False))
    return Atlas(
        places=places[: len(found)],
        scores=np.array([_loss(chosen[i]) for i in found]),
        known=dict(zip(known, places[len(found) :], strict=True)),
        path=np.array([at[c.index] for c in steps if c.index in at]).reshape(-1, 2),
        explained=explained,
    )


def _chosen(summary: Summary) -> list[Candidate]:
    """The best quarter of `POINTS`, and of the other trained layers those evenly between."""
    best = summary.ranked[: POINTS // 4]
    trained = [c for c in summary.evaluated if c.outcome.trained or c.outcome.loss]
    some = np.linspace(0, len(trained) - 1, min(len(trained), POINTS - len(best))).round().astype(int)
    return [*best, *(trained[k] for k in np.unique(some))]


def _plane(vectors: Sequence[Vector], fitted: int) -> tuple[np.ndarray, float]:
    """Places (n, 2) in the plane of the first `fitted` vectors, and the share of their variance in it."""
    from sklearn.decomposition import KernelPCA

    every = np.asarray(vectors, dtype=np.float64).reshape(-1, LENGTH)
    covariance = np.square(every @ every[:fitted].T)
    plane = KernelPCA(n_components=2, kernel="precomputed", eigen_solver="dense")
    plane.fit(covariance[:fitted])
    own = covariance[:fitted]
    total = np.trace(own) - own.sum() / fitted  # of the centred Gram matrix
    places = plane.transform(covariance)
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    return places, float(plane.eigenvalues_.sum() / total) if total > 0 else 1.0


def _vector(graph: Graph) -> Vector | None:
    try:
        return behaviour(graph)
    except UNDECIDED:  # a drawn layer is arbitrary input
        return None


def _loss(candidate: Candidate) -> float:
    """On the first rung, or after full training where there is no ladder; NaN where it failed."""
    outcome = candidate.outcome
    losses = [outcome.loss["micro"]] if "micro" in outcome.loss else list(outcome.loss.values())
    finite = losses and outcome.scores and all(map(math.isfinite, losses))
    return sum(losses) / len(losses) if finite else math.nan
