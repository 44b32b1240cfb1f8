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
from normforge.passes import Degeneracy


class Fate(enum.StrEnum):
    """Where a candidate's way ended, in the order of the funnel."""

    DEGENERATE = "degenerate"  # by its types or by dependence, without numbers
    DUPLICATE = "duplicate"  # the same function as an earlier candidate
    PROBING = "probing"  # the layer alone: values or gradients not finite
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


def refuse_static(graph: Graph, seen: Mapping[str, int]) -> Outcome | None:
    """The static stages: None for a layer that is worth numbers.

    Args:
        graph: the layer.
        seen: index by `hash` of the candidates before it.
    """
    try:
        findings = Degeneracy().run(graph)
        if findings:
            return Outcome(Fate.DEGENERATE, f"{findings[0].stage}: {findings[0].reason}")
        if graph.hash in seen:
            return Outcome(Fate.DUPLICATE, f"the same function as candidate {seen[graph.hash]}")
    except UNDECIDED as e:  # a drawn layer is arbitrary input: it may cost itself, never the run
        return Outcome(Fate.ERROR, f"{type(e).__name__} in the static stages: {e}")
    return None


def formula(graph: Graph) -> str:
    """The formula, or the dump where sharing makes the formula too long."""
    try:
        return str(graph)
    except ParseError:
        return graph.dump()
