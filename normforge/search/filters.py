"""The filters: what a drawn layer must pass before it takes a slot, in order of cost.

All are options but the static stages, the hash and the fingerprint:

    degenerate   by its types, by dependence, by range or by form, without numbers
    duplicate    of an earlier candidate: one function (hash), the same numbers (fingerprint), or so near by behaviour
                 that a network could not tell the two apart, or that training begins with the same layer
    signal       z and a penalty for being linear above a threshold (see `normforge.probing.signal`)
    duplicate    of one family with an earlier candidate, which takes longest to know
    probing      not finite, dead or exploding (see `normforge.probing.probe`); else the first stage of an evaluation

Only candidates that have taken a slot are earlier ones. What a layer is refused for depends on them and on nothing
else, so that a run that goes on refuses what it would have refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from normforge.ir.graph import Graph
from normforge.passes import Degeneracy, fingerprint
from normforge.probing.behaviour import Vector, behaviour
from normforge.probing.probe import probe
from normforge.probing.signal import signal
from normforge.search.behaviours import Behaviours
from normforge.search.config import Config
from normforge.search.funnel import UNDECIDED, Fate, Outcome, Refused, timed


@dataclass
class Keys:
    """By what later layers are known to be duplicates of one, and what it took to find out.

    Attributes:
        hash: identity of its function; empty for a refused layer.
        fingerprint: of its numbers, where it has one.
        family: of its function, up to what parameters absorb; empty where the filter is off.
        behaviour: its vector; None where the filter is off or there is none. Not stored: it is computed again.
        start: the vector with all parameters at their starts, likewise.
        seconds: by stage, of the filters.
    """

    hash: str = ""
    fingerprint: str = ""
    family: str = ""
    behaviour: Vector | None = None
    start: Vector | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def stored(self) -> dict[str, str]:
        """What a store keeps."""
        named = {"hash": self.hash, "fingerprint": self.fingerprint, "family": self.family}
        return {name: key for name, key in named.items() if key}


_WHAT = {"hash": "the same function as", "fingerprint": "the same numbers as", "family": "of one family with"}


class Filters:
    """The candidates that a run has given slots, and whether a layer may join them.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        self._rules, self._seed = config.filters, config.recipe.seed
        self._by: dict[str, dict[str, int]] = {name: {} for name in _WHAT}
        self._behaviours, self._starts = Behaviours(), Behaviours()

    def refuse(self, graph: Graph) -> tuple[Outcome | None, Keys]:
        """What becomes of a layer that fails a filter; None for one that is worth training, and its keys.

        Args:
            graph: the layer.
        """
        keys = Keys()
        try:
            with timed(keys.seconds, "static"):
                self._distinct(graph, keys)
            if self._rules.signal:
                with timed(keys.seconds, "signal"):
                    self._gate(graph)
            if self._rules.family:
                with timed(keys.seconds, "static"):
                    keys.family = self._new("family", graph.family_hash)
            if self._rules.probing:
                with timed(keys.seconds, "probing"):
                    if findings := probe(graph, seed=self._seed).findings:
                        raise Refused(Fate.PROBING, findings[0].reason)
        except Refused as refused:
            return Outcome(refused.fate, str(refused)), Keys(seconds=keys.seconds)
        except UNDECIDED as e:  # a drawn layer is arbitrary input: it may cost itself, never the run
            reason = f"{type(e).__name__} in the static stages: {e}"
            return Outcome(Fate.ERROR, reason), Keys(seconds=keys.seconds)
        return None, keys

    def add(self, index: int, keys: Keys) -> None:
        """Remember a candidate."""
        for name, key in keys.stored.items():
            self._by[name].setdefault(key, index)
        if keys.behaviour is not None:
            self._behaviours.add(index, keys.behaviour)
        if keys.start is not None:
            self._starts.add(index, keys.start)

    def restored(self, graph: Graph, stored: Mapping[str, str]) -> Keys:
        """The keys of a candidate that had taken a slot.

        Args:
            graph: the layer.
            stored: `Keys.stored` of then.
        """
        vector = behaviour(graph) if self._rules.behaviour else None
        start = behaviour(graph, moved=False) if self._rules.start else None
        return Keys(stored["hash"], stored.get("fingerprint", ""), stored.get("family", ""), vector, start)

    def _distinct(self, graph: Graph, keys: Keys) -> None:
        """Fill in the keys, one after the other, each dearer than the one before.

        Raises:
            Refused: degenerate or a duplicate.
        """
        findings = Degeneracy().run(graph)
        if findings:
            raise Refused(Fate.DEGENERATE, f"{findings[0].stage}: {findings[0].reason}")
        keys.hash = self._new("hash", graph.hash)
        keys.fingerprint = self._new("fingerprint", fingerprint(graph) or "")
        if self._rules.behaviour:
            keys.behaviour = behaviour(graph)
            _far("behaviour", keys.behaviour, self._behaviours, self._rules.behaviour)
        if self._rules.start:
            keys.start = behaviour(graph, moved=False)
            _far("start", keys.start, self._starts, self._rules.start)

    def _new(self, name: str, key: str) -> str:
        earlier = self._by[name].get(key) if key else None
        if earlier is not None:
            raise Refused(Fate.DUPLICATE, f"{name}: {_WHAT[name]} candidate {earlier}")
        return key

    def _gate(self, graph: Graph) -> None:
        rules = self._rules
        found = signal(graph, enough=lambda s: s.gated(rules.linearity) > rules.signal)
        gated = found.gated(rules.linearity)
        if gated > rules.signal:
            parts = f"variance {found.variance:.2f}, gradient {found.gradient:.2f}, 2 × scale {found.scale:.2f}"
            linear = f", and {gated - found.z:.2f} for R² {found.linearity:.3f} on x" if gated > found.z else ""
            raise Refused(Fate.GATE, f"z of at least {found.z:.2f} ({parts}){linear}: above {rules.signal:g}")


def _far(name: str, vector: Vector | None, stored: Behaviours, least: float) -> None:
    if vector is not None and (near := stored.nearest(vector, least)):
        raise Refused(Fate.DUPLICATE, f"{name}: cosine {near[1]:.4f} with candidate {near[0]}")
