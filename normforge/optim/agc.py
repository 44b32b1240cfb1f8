"""Adaptive gradient clipping in front of any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normforge.errors import OptionError
from normforge.kernels.rows.formula import check_rule
from normforge.kernels.rows.units import check_gradient, check_whole, local, scaled, scales
from normforge.optim.wrapped import Wrapped

EPS = 1e-3


def check_settings(group: dict[str, Any]) -> None:
    """Raise OptionError for what a group says of clipping, or for parameters that cannot be clipped."""
    for name in ("agc", "agc_eps"):
        value = group.get(name, EPS if name == "agc_eps" else None)
        is_positive = isinstance(value, float | int) and value > 0
        if not is_positive and (value is not None or name == "agc_eps"):
            raise OptionError(f"{name} is a positive number{' or None' if name == 'agc' else ''}, and is {value!r}")
    check_rule(group.get("agc_units", "paper"))
    for p in group["params"]:
        check_whole(p)


class AGC(Wrapped):
    """An optimizer whose gradients are clipped adaptively before each step (Brock et al., arXiv 2102.06171, section 4).

    A gradient G of a unit with weights W becomes G · λ·max(‖W‖, ε) / ‖G‖ where ‖G‖ is more than λ·max(‖W‖, ε): in
    `p.grad`, after a closure has been called. A unit is a row of a weight (out, ...), or a whole tensor of which at
    most one axis is longer than one. Parameters without a gradient are left out. NaN stays NaN.

    Under DDP gradients are those of all processes by then. Of FSDP2's parameters rows are local; the norms of tensors
    that are one unit take one small all-reduce together. With a GradScaler `scaler.step(optimizer)` unscales first.

    Args:
        optimizer: any; its groups, state, hooks for schedulers and `state_dict` are this one's too.
        clipping: λ; 0.01 for batches of 1024 to 4096 and SGD, smaller for larger ones. A group's "agc" is its own λ, or
            None for no clipping, as of the classifier's weight: see `param_groups`.
        eps: ε, the least norm that weights count as; a group's "agc_eps" is its own. What starts at 0, as a skip gain
            does, has its gradient cut to λ·ε until it has grown: a larger ε lets it.

    Raises:
        OptionError: λ or ε is not positive; parameters that are flattened by FSDP (version 1), or no floating point.
    """

    def __init__(self, optimizer: Optimizer, clipping: float = 0.01, eps: float = EPS) -> None:
        super().__init__(optimizer, agc=clipping, agc_eps=eps, agc_units="paper")
        check_settings(self.options | {"params": []})
        for group in self.param_groups:
            check_settings(self.options | group)
        self._complete()

    def _complete(self) -> None:
        for group in self.param_groups:
            for name, value in self.options.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer."""
        for p in param_group["params"] if isinstance(param_group["params"], list | tuple) else ():
            check_whole(p)
        check_settings(self.options | param_group | {"params": []})
        super().add_param_group(param_group)
        self._complete()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or what that of the optimizer alone did."""
        super().load_state_dict(state_dict)
        self._complete()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip the gradients, and take a step of the optimizer."""
        if closure is None:
            self.clip()
            return self.optimizer.step()

        def clipped() -> Any:
            loss = closure()
            self.clip()
            return loss

        return self.optimizer.step(clipped)

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the gradients in place, as `step` does.

        Raises:
            OptionError: a sparse gradient.
        """
        together: dict[tuple[Any, ...], list[Tensor]] = {}
        for group in self.param_groups:
            if group["agc"] is None:
                continue
            for p in group["params"]:
                if p.grad is not None:
                    check_gradient(p.grad)
                    where = (p.device, p.grad.dtype)
                    settings = (group["agc"], group["agc_eps"], group["agc_units"])
                    together.setdefault((settings, where), []).append(p)
        for (settings, _), params in together.items():
            grads = [p.grad for p in params if p.grad is not None]
            clipped = scaled(grads, scales(params, grads, *settings))
            torch._foreach_copy_([local(g) for g in grads], clipped)
