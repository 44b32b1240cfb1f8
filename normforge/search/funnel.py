"""The funnel: what can become of a candidate, and the stages that need no numbers.

The stages in order of rising cost are degenerate and duplicate, here; probing, quality, stability and full
training, in `evaluate`. Each refusal carries its reason.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from normforge.errors import ParseError
from normforge.ir.graph import Graph
from normforge.passes import Degeneracy, fingerprint


class Fate(enum.StrEnum):
    """Where a candidate's way ended, in the order of the funnel."""

    DEGENERATE = "degenerate"  # by its types, by dependence, by range or by form, without numbers
    DUPLICATE = "duplicate"  # the same function as an earlier candidate, or the same numbers
    PROBING = "probing"  # the layer alone and in a stack of convolutions: not finite, dead or exploding
    QUALITY = "quality"  # short training
    STABILITY = "stability"  # gradient ascent on the gradient norm
    FULL = "full"  # full training not finite
    ERROR = "error"  # raised an exception
    CRASHED = "crashed"  # its worker died
    TIMEOUT = "timeout"  # its worker was stopped at the time limit
    SCORED = "scored"  # came through


# What arithmetic on a drawn layer's constants may raise in the passes.
UNDECIDED = (ArithmeticError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Outcome:
    """What became of a layer.

    Attributes:
        fate: where its way ended.
        reason: one sentence for a refusal, empty for a scored layer.
        loss: validation cross-entropy after full training, in nats; None before that.
        accuracy: validation accuracy at the last training step done; None before that.
        test: test accuracy, in the final comparison only.
        seconds: by stage.
    """

    fate: Fate
    reason: str = ""
    loss: float | None = None
    accuracy: float | None = None
    test: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; empty fields are left out."""
        return {k: v for k, v in asdict(self).items() if v not in (None, "", {})}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Outcome:
        """The inverse of `to_json`; other keys are ignored."""
        known = {k: values[k] for k in Outcome.__dataclass_fields__ if k in values}
        return Outcome(**{**known, "fate": Fate(values["fate"])})


class Seen:
    """The candidates that a run has looked at, by `hash` and by fingerprint."""

    def __init__(self) -> None:
        self._by: dict[str, dict[str, int]] = {"hash": {}, "fingerprint": {}}

    def add(self, index: int, keys: Mapping[str, Any]) -> None:
        """Remember candidate `index` by `keys["hash"]` and, where it has one, `keys["fingerprint"]`."""
        for name, known in self._by.items():
            if keys.get(name):
                known.setdefault(keys[name], index)

    def find(self, name: str, key: str | None) -> int | None:
        """The first candidate that has this key."""
        return self._by[name].get(key) if key else None


def refuse_static(graph: Graph, seen: Seen) -> tuple[Outcome | None, dict[str, str]]:
    """The static stages.

    Args:
        graph: the layer.
        seen: the candidates before it.

    Returns:
        None for a layer that is worth training, and its keys: `hash` and, where it has one, `fingerprint`.
    """
    try:
        findings = Degeneracy().run(graph)
        if findings:
            return Outcome(Fate.DEGENERATE, f"{findings[0].stage}: {findings[0].reason}"), {}
        keys = {"hash": graph.hash}
        earlier = seen.find("hash", graph.hash)
        if earlier is not None:
            return Outcome(Fate.DUPLICATE, f"hash: the same function as candidate {earlier}"), {}
        if numbers := fingerprint(graph):
            keys["fingerprint"] = numbers
            earlier = seen.find("fingerprint", numbers)
            if earlier is not None:
                return Outcome(Fate.DUPLICATE, f"fingerprint: the same numbers as candidate {earlier}"), {}
    except UNDECIDED as e:  # a drawn layer is arbitrary input: it may cost itself, never the run
        return Outcome(Fate.ERROR, f"{type(e).__name__} in the static stages: {e}"), {}
    return None, keys


def formula(graph: Graph) -> str:
    """The formula, or the dump where sharing makes the formula too long."""
    try:
        return str(graph)
    except ParseError:
        return graph.dump()
