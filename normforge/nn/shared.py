"""An activation that a model calls at several places, at some of them on what a layer has activated already."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from normforge.errors import OptionError


class SharedActivation(nn.Module):
    """Applies an activation in some of the calls of its owner's forward pass, and passes its input on in the others.

    It counts calls, from the beginning of each forward pass of the owner, so one model is not to be run by two threads
    at once.

    Attributes:
        activation: it. applied: for each call in turn, whether it is applied.
    """

    def __init__(self, activation: nn.Module, applied: Sequence[bool]) -> None:
        super().__init__()
        self.activation = activation
        self.applied = tuple(applied)
        self.turn = 0
        self.training = activation.training

    def begin(self, owner: nn.Module, args: object) -> None:
        """The owner's forward pass begins: a forward pre-hook of it."""
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x, or x.

        Raises:
            OptionError: a further call than there were when the model was converted.
        """
        if self.turn >= len(self.applied):
            raise OptionError(
                f"the activation is called more often than the {len(self.applied)} times that were seen when the model "
                "was converted: convert it with an example= of this kind"
            )
        applied = self.applied[self.turn]
        self.turn += 1
        return self.activation(x) if applied else x

    def extra_repr(self) -> str:
        """Which calls are applied."""
        return "applied in calls " + ", ".join(str(i) for i, applied in enumerate(self.applied) if applied)
