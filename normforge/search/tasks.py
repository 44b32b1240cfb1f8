"""What is sent to a worker. Needs no torch, so that the front end does not load it."""

from __future__ import annotations

from dataclasses import dataclass

from normforge.search.config import Config


@dataclass(frozen=True)
class Task:
    """A layer to evaluate.

    Attributes:
        key: of the event that will hold the outcome: a candidate's index, or `name/repeat` in the final.
        graph: JSON of the layer.
        config: of the run.
        repeat: which initial weights and batches; 0 in the search.
        final: full training alone, with test accuracy, instead of the funnel.
    """

    key: str
    graph: str
    config: Config
    repeat: int = 0
    final: bool = False
