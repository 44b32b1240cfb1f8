"""Tasks, which are sent to workers. Needs no torch, so that the front end does not load it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from normforge.ir.graph import Graph
from normforge.search.config import Config

WORK = "normforge.search.evaluate:run_task"
"""The function that a worker calls for a task, imported there alone."""

Piece = dict[str, Any]
"""What one stage found on one network; see `evaluate`."""


@dataclass(frozen=True)
class Task:
    """A layer to evaluate.

    Attributes:
        key: of the event that will hold the outcome: a candidate's index, or `name/repeat` in the final.
        graph: the layer.
        config: of the run.
        repeat: which initial weights and batches; 0 in the search.
        final: full training alone on the longer recipe, judged on held-out and test images, instead of the funnel.
        limits: by network, the loss at `early.at` above which, on every network, the training is stopped.
        known: pieces that need not be computed again, by `stage/network`.
    """

    key: str
    graph: Graph
    config: Config
    repeat: int = 0
    final: bool = False
    limits: dict[str, float] = field(default_factory=dict)
    known: dict[str, Piece] = field(default_factory=dict)
