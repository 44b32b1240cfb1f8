"""Reading a run: its settings, scored layers, the best distinct ones, the final comparison. Needs no torch."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normforge.errors import RunError, UnknownNameError
from normforge.ir.graph import Graph
from normforge.ir.layers import CATALOGUE, layers
from normforge.passes import simplify
from normforge.probing.behaviour import Near, behaviour, cosines, nearest_known
from normforge.search import events
from normforge.search.config import Config, unflat
from normforge.search.events import Began, Candidate, Compared, Reranked
from normforge.search.funnel import Fate, Outcome, formula, least_accuracy
from normforge.search.selection import best_first, mean_ranks
from normforge.search.space import SearchSpace
from normforge.search.store import Store

FAILED = 2.0  # a training that ends below this many times chance has failed; see `least_accuracy`
TOLD_APART = 0.01  # p from which two layers differ; small, since it is asked for again after every training


@dataclass
class Row:
    """A row of the final comparison: one layer; `outcomes` has one entry a seed, `nearest` is the known layer that a
    found one is nearest to by behaviour."""

    name: str
    formula: str
    found: bool
    least: float
    outcomes: list[Outcome] = field(default_factory=list)
    nearest: Near | None = None

    def good(self, network: str) -> list[Outcome]:
        """The trainings that did not fail on the network; only these enter its means."""
        return [o for o in self.outcomes if o.accuracy.get(network, 0.0) >= self.least and network in o.test]

    def failures(self, network: str) -> int:
        """The number of trainings that ended early, or below the least accuracy."""
        return len(self.outcomes) - len(self.good(network))

    def mean(self, what: str, network: str) -> tuple[float, float]:
        """Mean and sample deviation over the good trainings of `loss`, `accuracy`, `holdout` or `test`; NaN without
        any."""
        values = [float(getattr(o, what)[network]) for o in self.good(network)]
        if not values:
            return math.nan, math.nan
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def losses(self, networks: Sequence[str]) -> list[float]:
        """The validation loss of each training that failed on no network, averaged over networks."""
        good = [o for o in self.outcomes if all(o in self.good(n) for n in networks)]
        return [statistics.fmean(o.loss[n] for n in networks) for o in good]


@dataclass(frozen=True)
class Verdict:
    """Whether a found layer can be told from the known one nearest to it.

    Attributes:
        found: name of the one.
        near: the other.
        p: of Welch's two-sided t-test on validation losses averaged over networks, a number a training; 1 with fewer
            than two trainings of either.
        trainings: of each that did not fail.
        better: whether the found layer's mean loss is below.
    """

    found: str
    near: Near
    p: float
    trainings: tuple[int, int]
    better: bool

    @property
    def apart(self) -> bool:
        """Can they be told apart?"""
        return self.p <= TOLD_APART

    def __str__(self) -> str:
        ones, others = self.trainings
        counts = str(ones) if ones == others else f"{ones} and {others}"
        how = f"{'better' if self.better else 'worse'} than it" if self.apart else "cannot be told from it"
        return f"{self.found}: nearest known {self.near}; {how} by {counts} trainings (p = {self.p:.2g})"


def verdicts(rows: Iterable[Row], networks: Sequence[str]) -> list[Verdict]:
    """Of every found layer of a comparison whose nearest known layer was trained too."""
    from scipy.stats import ttest_ind

    by_name = {row.name: row for row in rows}
    told = []
    for row in by_name.values():
        other = by_name.get(row.nearest.name) if row.nearest else None
        if row.nearest and other:
            ones, others = row.losses(networks), other.losses(networks)
            enough = min(len(ones), len(others)) > 1
            p = float(ttest_ind(ones, others, equal_var=False).pvalue) if enough else 1.0
            better = enough and statistics.fmean(ones) < statistics.fmean(others)
            told.append(Verdict(row.name, row.nearest, 1.0 if math.isnan(p) else p, (len(ones), len(others)), better))
    return told


def settings(store: Store) -> Config:
    """The configuration that a run was started with.

    Raises:
        RunError: it has not begun, or is another version's.
    """
    began = events.find(store, Began, "0")
    if began is None:
        raise RunError(f"{store.path.parent} holds a run that has not begun: start it with normforge search")
    return unflat(began.settings)


def scored(store: Store) -> list[Candidate]:
    """The scored candidates, on a ladder those that came through its last rung: by Pareto front, and within a front by
    their mean rank over objectives."""
    found = [c for c in events.candidates(store) if c.outcome.fate is Fate.SCORED]
    return [found[i] for i in best_first([list(c.outcome.scores.values()) for c in found])]


def best_distinct(ranked: Iterable[Candidate], count: int, drawn: SearchSpace) -> list[Candidate]:
    """The first `count` candidates that differ by more than what their trainable parameters absorb.

    Training is deterministic, so equal losses mean equal trainings: the same layer up to a symmetry, such as the
    sign of gamma, that no rewriting has seen.
    """
    seen: set[object] = set()
    best: list[Candidate] = []
    for layer in ranked:
        if len(best) == count:
            break
        family = drawn.to_graph(layer.genotype).family_hash
        keys = {family, tuple(round(loss, 6) for loss in layer.outcome.loss.values())}
        if not keys & seen:
            best.append(layer)
        seen |= keys
    return best


def reranked(store: Store, top: Iterable[Candidate], count: int) -> list[Candidate]:
    """The best of `top` after the second ranking, by mean rank of the held-out losses; failed trainings come last,
    and layers that were not ranked again are left out."""
    found: list[Candidate] = []
    losses: list[list[float]] = []
    networks = settings(store).networks.use
    for layer in top:
        if again := events.find(store, Reranked, layer.name):
            found.append(layer)
            losses.append([again.outcome.holdout.get(n, math.inf) for n in networks])
    if not found:
        return []
    ranks = mean_ranks(losses)
    best_first = sorted(range(len(found)), key=lambda i: (math.inf in losses[i], ranks[i], found[i].index))
    return [found[i] for i in best_first[:count]]


def final_layers(found: Sequence[Candidate], config: Config, drawn: SearchSpace) -> list[tuple[str, Graph]]:
    """Names and graphs of the final comparison: `#index` for what was found, then the baselines, and if asked for the
    known layers nearest to what was found."""
    graphs = [(c.name, drawn.to_graph(c.genotype)) for c in found]
    names = [*config.final.baselines]
    if config.final.apart:
        names += [near.name for _, graph in graphs for near in nearest_known(graph, 1)]
    return graphs + [(name, layers[name]) for name in dict.fromkeys(names)]


def comparison(store: Store, found: Sequence[Candidate], config: Config) -> list[Row]:
    """The rows of the final comparison, fewest failures first and then the least mean rank of validation losses."""
    began, drawn = events.find(store, Began, "0"), SearchSpace(config.space)
    least = least_accuracy(FAILED, began.classes) if began else 0.0
    rows: dict[str, Row] = {}
    of_the_run = {c.name for c in found}
    for name, graph in final_layers(found, config, drawn):
        if name in of_the_run:
            near = nearest_known(graph, 1)
            rows[name] = Row(name, formula(simplify(graph)), True, least, nearest=near[0] if near else None)
        else:
            rows[name] = Row(name, CATALOGUE[name].formula, False, least)
    for trained in events.each(store, Compared):
        name, _, _ = trained.key.rpartition("/")
        if name in rows:
            rows[name].outcomes.append(trained.outcome)
    networks, all_rows = config.networks.use, list(rows.values())
    losses = [[_or_inf(row.mean("loss", n)[0]) for n in networks] for row in all_rows]
    ranks = mean_ranks(losses)
    best_first = sorted(
        range(len(all_rows)), key=lambda i: (sum(all_rows[i].failures(n) for n in networks), ranks[i], all_rows[i].name)
    )
    return [all_rows[i] for i in best_first]


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value


def split(reference: str) -> tuple[Path, str]:
    """The parts of `DIRECTORY#17` or `DIRECTORY#best`: directory and candidate.

    Raises:
        UnknownNameError: not such a reference.
    """
    match = re.fullmatch(r"(.+)#(\d+|best)", reference.strip())
    if match is None:
        raise UnknownNameError(
            f"{reference!r} names no search result: write DIRECTORY#17 or DIRECTORY#best, of a run that is there"
        )
    return Path(match.group(1)), match.group(2)


def candidate_of(store: Store, which: str, drawn: SearchSpace) -> Candidate:
    """The candidate with that index, or the best one: of the second ranking if there was one, else of the search.

    Raises:
        UnknownNameError: there is none with that index.
        RunError: none is scored yet.
    """
    directory = store.path.parent
    if which == "best":
        top = best_distinct(scored(store), settings(store).final.candidates, drawn)
        if not top:
            raise RunError(f"{directory} has no scored layer yet: let the search go on")
        which = str((reranked(store, top, 1) or top)[0].index)
    found = events.candidate(store, int(which))
    if found is None:
        raise UnknownNameError(f"{directory} has no candidate #{which}: give a smaller number, or #best")
    return found


def layer_of(reference: str) -> Graph:
    """The layer of `DIRECTORY#index` or `DIRECTORY#best`.

    Raises:
        UnknownNameError: not such a reference, or the run has no such candidate.
        RunError: the directory holds no readable run, or none of its layers is scored yet.
    """
    directory, which = split(reference)
    store = Store(directory)
    try:
        drawn = SearchSpace(settings(store).space)
        return drawn.to_graph(candidate_of(store, which, drawn).genotype)
    finally:
        store.close()


def nearest_stored(graph: Graph, run: str) -> Near | None:
    """The evaluated candidate of a run that is nearest to a layer by behaviour.

    Args:
        graph: the layer.
        run: `DIRECTORY`, or `DIRECTORY#17` or `DIRECTORY#best` to leave that candidate out.

    Returns:
        None where no candidate, or not the layer, has a behaviour (see `normforge.probing.behaviour`).

    Raises:
        UnknownNameError: the run has no such candidate.
        RunError: the directory holds no readable run.
    """
    directory, which = split(run) if "#" in run else (Path(run), "")
    store = Store(directory)
    try:
        drawn = SearchSpace(settings(store).space)
        left_out = candidate_of(store, which, drawn).index if which else None
        vector, best = behaviour(graph), None
        if vector is None:
            return None
        for candidate in events.each(store, Candidate):
            if not candidate.evaluated or candidate.index == left_out:
                continue
            other = behaviour(drawn.to_graph(candidate.genotype))
            cosine = float(cosines(other[None], vector)[0]) if other is not None else -1.0
            if cosine > (best.cosine if best else -1.0):
                best = Near(candidate.name, cosine, candidate.hash == graph.hash)
        return best
    finally:
        store.close()
