"""What a transferred layer is tried on: a training that can be advanced, judged, stored and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Task(Protocol):
    """A training of one layer from one seed.

    Attributes:
        done: steps done so far. total: steps in all.
        parameters: of the model, for people.
    """

    done: int
    total: int
    parameters: int

    def advance(self, steps: int) -> dict[str, float]:
        """Train up to step `steps`.

        Returns:
            Means of the losses of these steps, by name; `loss` is their sum, where there is one.

        Raises:
            Diverged: a loss is not finite; the message says by which step.
        """

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Figures of the model as it is, by name: on validation data, or at the end on test data."""

    def pictures(self, folder: Path) -> list[Path]:
        """Write pictures of what the model does; their files."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training goes on from, of tensors and plain values; torch's generators are kept by the
        caller."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def close(self) -> None:
        """End what it has started, such as threads that read images."""
