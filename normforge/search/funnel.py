"""The funnel: what can become of a candidate.

The stages in order of rising cost are degenerate, duplicate and signal, in `filters`; probing, quality, stability,
early and full training, in `evaluate`. Each refusal carries its reason.
"""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from normforge.errors import ParseError
from normforge.ir.graph import Graph


class Fate(enum.StrEnum):
    """The ends of a candidate's way, in the order of the funnel."""

    DEGENERATE = "degenerate"  # by its types, by dependence, by range or by form, without numbers
    DUPLICATE = "duplicate"  # the function, the numbers, the family or the behaviour of an earlier candidate
    GATE = "signal"  # a signal does not keep its size on its way through it
    PROBING = "probing"  # the layer alone and in a stack of convolutions: not finite, dead or exploding
    MICRO = "micro"  # the micro training of the ladder: has not begun to learn
    QUALITY = "quality"  # short training
    STABILITY = "stability"  # gradient ascent on the gradient norm
    EARLY = "early"  # on the way, among the worst on every network
    FULL = "full"  # full training not finite
    ERROR = "error"  # raised an exception
    CRASHED = "crashed"  # its worker died
    TIMEOUT = "timeout"  # its worker was stopped at the time limit
    MEMORY = "memory"  # its worker was stopped at the memory limit
    PASSED = "passed"  # came through a rung of the ladder, and was not promoted to the next
    SCORED = "scored"  # came through


class Refused(Exception):
    """A stage has refused a layer: how its way ends, and the reason as the message."""

    def __init__(self, fate: Fate, reason: str) -> None:
        super().__init__(reason)
        self.fate = fate


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of what runs inside to the seconds of a stage."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 5)


# What arithmetic on a drawn layer's constants may raise in the passes.
UNDECIDED = (ArithmeticError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a layer. Dictionaries are by network, in the order of `networks.use`, as far as it came.

    Attributes:
        fate: where its way ended.
        reason: one sentence for a refusal, empty for a scored layer.
        scores: by objective, smaller is better: the networks, then the further objectives; `micro` on that rung. Of a
            layer that came through, or through a rung.
        rung: of the ladder, the highest that it came through.
        loss: validation cross-entropy at the end, in nats.
        accuracy: validation accuracy at the last evaluation.
        holdout: held-out cross-entropy; of the final trainings alone.
        test: test accuracy; of the final trainings alone.
        halfway: validation cross-entropy at `early.at`.
        gradient: largest gradient norm under attack.
        seconds: by stage, all networks together.
        trained: steps, weighted by their cost, in full trainings of the first rung; see `search.cost`.
        peak: most memory that its worker held meanwhile, in MiB: resident, or on the GPU; 0 where it is not known.
        cached: pieces that came from the cache.
        pieces: what each stage found on each network, for the cache; not stored with the run.
    """

    fate: Fate
    reason: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    holdout: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    halfway: dict[str, float] = field(default_factory=dict)
    gradient: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rung: str = ""
    trained: float = 0.0
    peak: float = 0.0
    cached: int = 0
    pieces: dict[str, dict[str, Any]] = field(default_factory=dict)

    def after(self, before: Outcome) -> Outcome:
        """The outcome of a layer that was promoted: this one, with what the rungs before it have found."""
        by_name = ("loss", "accuracy", "holdout", "test", "halfway", "gradient")
        merged: dict[str, Any] = {name: getattr(before, name) | getattr(self, name) for name in by_name}
        stages = before.seconds.keys() | self.seconds.keys()
        summed = {s: round(before.seconds.get(s, 0.0) + self.seconds.get(s, 0.0), 5) for s in sorted(stages)}
        return replace(
            self,
            **merged,
            scores=self.scores or before.scores,
            rung=self.rung or before.rung,
            seconds=summed,
            trained=round(before.trained + self.trained, 4),
            peak=max(before.peak, self.peak),
            cached=before.cached + self.cached,
        )

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values; empty fields and pieces are left out."""
        return {k: v for k, v in asdict(self).items() if k != "pieces" and v not in ("", {}, 0)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Outcome:
        """The outcome that JSON values say, the inverse of `to_json`; other keys are ignored."""
        known = {k: values[k] for k in Outcome.__dataclass_fields__ if k in values}
        return Outcome(**{**known, "fate": Fate(values["fate"])})


# The libraries of CUDA do not always come as far as torch's own words.
_LIBRARIES = ("CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED")
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory", *_LIBRARIES)
GPU_FULL = "the GPU has no memory left"


def out_of_memory(error: Exception) -> bool:
    """True where memory is what was missing; torch and C++ say so in words."""
    said = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
    return said or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def least_accuracy(times: float, classes: int, way: float = 0.5) -> float:
    """The accuracy of `times` chance, but no more than a share of the way from chance to 1: of two classes, where twice
    chance would be every image right, 75 %."""
    return min(times / classes, (1 + (classes - 1) * way) / classes)


def formula(graph: Graph) -> str:
    """The formula of a graph, or its dump where sharing makes the formula too long."""
    try:
        return str(graph)
    except ParseError:
        return graph.dump()
