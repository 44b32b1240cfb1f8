"""Reading a run: scored layers, the best distinct ones, the final comparison. Needs no torch."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from normforge.errors import RunError, UnknownNameError
from normforge.ir.graph import Graph
from normforge.ir.layers import CATALOGUE, layers
from normforge.passes import simplify
from normforge.search import space
from normforge.search.funnel import Fate, Outcome, formula
from normforge.search.store import Store

CHANCE_LIMIT = 0.2  # a training that ends below twice chance has failed


@dataclass(frozen=True)
class Scored:
    """A candidate that came through the funnel."""

    index: int
    genotype: space.Genotype
    loss: float
    accuracy: float

    @property
    def graph(self) -> Graph:
        """The layer, as it was drawn."""
        return space.to_graph(self.genotype)


@dataclass
class Row:
    """One layer of the final comparison; `outcomes` has one entry a seed."""

    name: str
    formula: str
    found: bool
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def good(self) -> list[Outcome]:
        """Trainings that did not fail; only these enter the means."""
        return [o for o in self.outcomes if o.fate is Fate.SCORED and (o.accuracy or 0.0) >= CHANCE_LIMIT]

    @property
    def failures(self) -> int:
        """Trainings that ended early, or below twice chance."""
        return len(self.outcomes) - len(self.good)

    def mean(self, what: str) -> tuple[float, float]:
        """Mean and sample deviation over the good trainings of `loss`, `accuracy` or `test`; NaN without any."""
        values = [float(getattr(o, what)) for o in self.good]
        if not values:
            return float("nan"), float("nan")
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def scored(store: Store) -> list[Scored]:
    """The scored candidates, best validation loss first."""
    found = []
    for event in store.events("candidate"):
        outcome = Outcome.from_json(event.data)
        if outcome.fate is Fate.SCORED and outcome.loss is not None:
            genotype = space.from_json(event.data["genes"])
            found.append(Scored(int(event.key), genotype, outcome.loss, outcome.accuracy or 0.0))
    return sorted(found, key=lambda s: (s.loss, s.index))


def best_distinct(ranked: Iterable[Scored], count: int) -> list[Scored]:
    """The first `count` that differ by more than what their trainable parameters absorb.

    Training is deterministic, so equal losses mean equal trainings: the same layer up to a symmetry, such as the
    sign of gamma, that no rewriting has seen.
    """
    seen: set[object] = set()
    best: list[Scored] = []
    for candidate in ranked:
        if len(best) == count:
            break
        keys = {candidate.graph.family_hash, round(candidate.loss, 6)}
        if not keys & seen:
            best.append(candidate)
        seen |= keys
    return best


def final_layers(found: Sequence[Scored], baselines: Sequence[str]) -> list[tuple[str, Graph]]:
    """Names and graphs of the final comparison: `#index` for what was found, then the baselines."""
    return [(f"#{s.index}", s.graph) for s in found] + [(name, layers[name]) for name in baselines]


def comparison(store: Store, found: Sequence[Scored], baselines: Sequence[str]) -> list[Row]:
    """The rows of the final comparison, fewest failures and then least validation loss first."""
    rows = {f"#{s.index}": Row(f"#{s.index}", formula(simplify(s.graph)), True) for s in found}
    rows |= {name: Row(name, CATALOGUE[name].formula, False) for name in baselines}
    for event in store.events("final"):
        name, _, _ = event.key.rpartition("/")
        if name in rows:
            rows[name].outcomes.append(Outcome.from_json(event.data))
    return sorted(rows.values(), key=lambda r: (r.failures, not r.good, r.mean("loss")[0]))


def layer_of(reference: str) -> Graph:
    """The layer of `DIRECTORY#index` or `DIRECTORY#best`.

    Raises:
        UnknownNameError: not such a reference, or the run has no such candidate.
        RunError: the directory holds no readable run, or none of its layers is scored yet.
    """
    match = re.fullmatch(r"(.+)#(\d+|best)", reference.strip())
    if match is None:
        raise UnknownNameError(f"{reference!r} names no search result: write DIRECTORY#17 or DIRECTORY#best")
    directory, which = match.groups()
    store = Store(Path(directory))
    try:
        if which == "best":
            ranked = scored(store)
            if not ranked:
                raise RunError(f"{directory} has no scored layer yet: let the search go on")
            return ranked[0].graph
        event = store.event("candidate", which)
        if event is None:
            raise UnknownNameError(f"{directory} has no candidate #{which}: give a smaller number, or #best")
        return space.to_graph(space.from_json(event.data["genes"]))
    finally:
        store.close()
