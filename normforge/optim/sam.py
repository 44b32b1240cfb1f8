"""Sharpness-aware minimization around any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from normforge.errors import OptionError
from normforge.optim.wrapped import Wrapped


class SAM(Wrapped):
    """Steps along the gradient at the worst near point (Foret et al., arXiv 2010.01412, algorithm 1).

    The point is W + ρ · G / ‖G‖, G the gradient of all parameters on a part of the batch; 20 % of it is what NFNet-F5
    and F6 were trained with (Brock et al., arXiv 2102.06171, appendix), which costs a fifth to two fifths more time.

        for x, y in loader:
            optimizer.step(lambda x, y: loss(model(x), y), x, y)

    The optimizer may be an `AGC` or `SGD`: the second gradient, of the whole batch, is what it clips.

    Args:
        optimizer: any, whose groups, state and `state_dict` are this one's too.
        rho: ρ.
        share: of the samples of a batch, the first of them, for the way up.

    Raises:
        OptionError: ρ is not positive, or the share not in (0, 1].
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05, share: float = 0.2) -> None:
        if not rho > 0:
            raise OptionError(f"rho is a positive number, and is {rho!r}")
        if not 0 < share <= 1:
            raise OptionError(f"share is a part of the batch, above 0 and at most 1, and is {share!r}")
        super().__init__(optimizer, rho=rho, share=share)

    def step(self, closure: Callable[..., Tensor], *batch: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the gradients, both times, and take a step.

        Args:
            closure: the loss (a scalar) of tensors like those of the batch; it does not call `backward`.
            batch: tensors (N, ...). Without any, the closure is called twice with nothing.

        Returns:
            The loss of the whole batch, at the near point.
        """
        params = [p for g in self.param_groups for p in g["params"]]
        sizes = {len(t) for t in batch}
        if len(sizes) > 1:
            raise OptionError(f"the tensors of a batch have as many samples each, and have {sorted(sizes)}")
        part = max(1, round(self.options["share"] * sizes.pop())) if sizes else 0
        moved = self._ascend(params, closure, [t[:part] for t in batch])
        try:
            self.zero_grad()
            with torch.enable_grad():
                loss = closure(*batch)
                loss.backward()
        finally:
            with torch.no_grad():
                for p, before in moved:
                    p.copy_(before)
        self.optimizer.step()
        return loss.detach()

    def _ascend(self, params: list[Tensor], closure: Callable[..., Tensor], batch: list[Tensor]) -> list[Any]:
        """Move the parameters to the near point. Returns them with what they were."""
        self.zero_grad()
        with torch.enable_grad():
            closure(*batch).backward()
        found = [(p, p.grad) for p in params if p.grad is not None]
        if not found:
            return []
        with torch.no_grad():
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g).float() for _, g in found]))
            length = self.options["rho"] / norm.clamp_min(1e-12)
            moved = [(p, p.detach().clone()) for p, _ in found]
            for p, g in found:
                p.add_(g * length.to(g.dtype))
        return moved
