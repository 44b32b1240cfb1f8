"""Reading a run: its settings, scored layers, the best distinct ones, the final comparison. Needs no torch."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from normforge.errors import RunError, UnknownNameError
from normforge.ir.graph import Graph
from normforge.ir.layers import CATALOGUE, layers
from normforge.passes import simplify
from normforge.search import space
from normforge.search.config import Config, unflat
from normforge.search.funnel import Fate, Outcome, formula
from normforge.search.selection import best_first, mean_ranks
from normforge.search.space import SearchSpace
from normforge.search.store import Event, Store

FAILED = 2.0  # a training that ends below this many times chance has failed


@dataclass(frozen=True)
class Scored:
    """A candidate that came through the funnel."""

    index: int
    genotype: space.Genotype
    drawn: SearchSpace = field(repr=False, compare=False)
    outcome: Outcome

    @cached_property
    def graph(self) -> Graph:
        """The layer, as it was drawn. Made when asked for: graphs of all that a long run scored would take minutes."""
        return self.drawn.to_graph(self.genotype)

    @property
    def name(self) -> str:
        """As in the comparison: #17."""
        return f"#{self.index}"


@dataclass
class Row:
    """One layer of the final comparison; `outcomes` has one entry a seed."""

    name: str
    formula: str
    found: bool
    least: float
    outcomes: list[Outcome] = field(default_factory=list)

    def good(self, network: str) -> list[Outcome]:
        """Trainings that did not fail on the network; only these enter its means."""
        return [o for o in self.outcomes if o.accuracy.get(network, 0.0) >= self.least and network in o.test]

    def failures(self, network: str) -> int:
        """Trainings that ended early, or below twice chance."""
        return len(self.outcomes) - len(self.good(network))

    def mean(self, what: str, network: str) -> tuple[float, float]:
        """Mean and sample deviation over the good trainings of `loss`, `accuracy`, `holdout` or `test`; NaN without
        any."""
        values = [float(getattr(o, what)[network]) for o in self.good(network)]
        if not values:
            return math.nan, math.nan
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def settings(store: Store) -> Config:
    """The configuration that a run was started with.

    Raises:
        RunError: it has not begun, or is another version's.
    """
    session = store.event("session", "0")
    if session is None:
        raise RunError(f"{store.path.parent} holds a run that has not begun: start it with normforge search")
    return unflat(session.data["settings"])


def candidate(event: Event, drawn: SearchSpace) -> Scored | None:
    """The scored layer of a candidate's event."""
    outcome = Outcome.from_json(event.data)
    if outcome.fate is not Fate.SCORED:
        return None
    return Scored(int(event.key), space.from_json(event.data["genes"]), drawn, outcome)


def scored(store: Store, drawn: SearchSpace) -> list[Scored]:
    """The scored candidates, by Pareto front and within a front by their mean rank over objectives."""
    found = [c for event in store.events("candidate") if (c := candidate(event, drawn))]
    return [found[i] for i in best_first([list(c.outcome.scores.values()) for c in found])]


def best_distinct(ranked: Iterable[Scored], count: int) -> list[Scored]:
    """The first `count` that differ by more than what their trainable parameters absorb.

    Training is deterministic, so equal losses mean equal trainings: the same layer up to a symmetry, such as the
    sign of gamma, that no rewriting has seen.
    """
    seen: set[object] = set()
    best: list[Scored] = []
    for layer in ranked:
        if len(best) == count:
            break
        keys = {layer.graph.family_hash, tuple(round(loss, 6) for loss in layer.outcome.loss.values())}
        if not keys & seen:
            best.append(layer)
        seen |= keys
    return best


def reranked(store: Store, top: Iterable[Scored], count: int) -> list[Scored]:
    """The best of `top` after the second ranking, by mean rank of the held-out losses; failed trainings come last,
    and layers that were not ranked again are left out."""
    found: list[Scored] = []
    losses: list[list[float]] = []
    for layer in top:
        if event := store.event("rerank", layer.name):
            found.append(layer)
            losses.append([Outcome.from_json(event.data).holdout.get(n, math.inf) for n in layer.outcome.accuracy])
    if not found:
        return []
    ranks = mean_ranks(losses)
    order = sorted(range(len(found)), key=lambda i: (math.inf in losses[i], ranks[i], found[i].index))
    return [found[i] for i in order[:count]]


def final_layers(found: Sequence[Scored], baselines: Sequence[str]) -> list[tuple[str, Graph]]:
    """Names and graphs of the final comparison: `#index` for what was found, then the baselines."""
    return [(s.name, s.graph) for s in found] + [(name, layers[name]) for name in baselines]


def comparison(store: Store, found: Sequence[Scored], config: Config) -> list[Row]:
    """The rows of the final comparison, fewest failures first and then the least mean rank of validation losses."""
    session = store.event("session", "0")
    least = FAILED / session.data["classes"] if session else 0.0
    rows = {s.name: Row(s.name, formula(simplify(s.graph)), True, least) for s in found}
    rows |= {name: Row(name, CATALOGUE[name].formula, False, least) for name in config.final.baselines}
    for event in store.events("final"):
        name, _, _ = event.key.rpartition("/")
        if name in rows:
            rows[name].outcomes.append(Outcome.from_json(event.data))
    networks, all_rows = config.networks.use, list(rows.values())
    losses = [[_or_inf(row.mean("loss", n)[0]) for n in networks] for row in all_rows]
    ranks = mean_ranks(losses)
    order = sorted(
        range(len(all_rows)), key=lambda i: (sum(all_rows[i].failures(n) for n in networks), ranks[i], all_rows[i].name)
    )
    return [all_rows[i] for i in order]


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value


def split(reference: str) -> tuple[Path, str]:
    """The directory and the candidate of `DIRECTORY#17` or `DIRECTORY#best`.

    Raises:
        UnknownNameError: not such a reference.
    """
    match = re.fullmatch(r"(.+)#(\d+|best)", reference.strip())
    if match is None:
        raise UnknownNameError(
            f"{reference!r} names no search result: write DIRECTORY#17 or DIRECTORY#best, of a run that is there"
        )
    return Path(match.group(1)), match.group(2)


def event_of(store: Store, which: str, drawn: SearchSpace) -> Event:
    """The candidate with that index, or the best one: of the second ranking if there was one, else of the search.

    Raises:
        UnknownNameError: there is none with that index.
        RunError: none is scored yet.
    """
    directory = store.path.parent
    if which == "best":
        top = best_distinct(scored(store, drawn), settings(store).final.candidates)
        if not top:
            raise RunError(f"{directory} has no scored layer yet: let the search go on")
        which = str((reranked(store, top, 1) or top)[0].index)
    event = store.event("candidate", which)
    if event is None:
        raise UnknownNameError(f"{directory} has no candidate #{which}: give a smaller number, or #best")
    return event


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
        return drawn.to_graph(space.from_json(event_of(store, which, drawn).data["genes"]))
    finally:
        store.close()
