"""An optimizer around another."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


class Wrapped(Optimizer):
    """An optimizer whose groups, state and `state_dict` are those of the one that it wraps.

    Schedulers, GradScaler and hooks take it as any other.

    Attributes:
        optimizer: what it wraps. options: its own settings.
    """

    optimizer: Any
    options: dict[str, Any]

    def __init__(self, optimizer: Optimizer, **options: Any) -> None:
        # Not torch's constructor, which makes groups and a state.
        self.__setstate__({"optimizer": optimizer, "options": options})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the optimizer."""
        return self.optimizer.param_groups  # type: ignore[no-any-return]

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of the optimizer."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The defaults of the optimizer."""
        return self.optimizer.defaults  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "options": self.options}

    def __repr__(self) -> str:
        said = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{type(self).__name__}({said}, {self.optimizer!r})"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer."""
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of the optimizer."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer."""
        return self.optimizer.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave."""
        self.optimizer.load_state_dict(state_dict)
