"""The optimizer of a recipe, and the average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from normforge.kernels.rows.sgd import paper_share
from normforge.optim.agc import AGC
from normforge.optim.groups import classifiers
from normforge.optim.sgd import SGD
from normforge.train.config import Optimization


def optimizer_of(model: nn.Module, recipe: Optimization, rate: float | Tensor) -> Optimizer:
    """The optimizer that a recipe asks for.

    Only matrices and filters decay: not v0, v1, gamma, beta, nor biases (EvoNorm, appendix), nor gains. Of what
    adaptive clipping clips, `agc_classifier` leaves out the classifier's weight, and `agc_gains` what is one number.

    Args:
        model: on its device.
        recipe: optimizer, momentum, weight decay, clipping and average.
        rate: of learning; a tensor on the device where steps are captured.
    """
    heads = [] if recipe.agc_classifier else [getattr(head, "weight", None) for head in classifiers(model)]
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for p in model.parameters():
        if p.requires_grad:
            free = any(p is weight for weight in heads) or (not recipe.agc_gains and p.numel() == 1)
            groups.setdefault((p.ndim > 1, free), []).append(p)
    params: list[dict[str, Any]] = [
        {"params": some, "weight_decay": recipe.weight_decay if decays else 0.0} | ({"agc": None} if free else {})
        for (decays, free), some in groups.items()
    ]
    sharded = {isinstance(p, DTensor) for some in groups.values() for p in some}  # torch's fused SGD takes none
    if recipe.optimizer == "adamw":
        together = len(sharded) == 1  # one call takes either kind
        made: Optimizer = torch.optim.AdamW(
            params, lr=rate, capturable=isinstance(rate, Tensor), fused=together, foreach=None if together else False
        )
        return AGC(made, recipe.agc) if recipe.agc else made
    if recipe.agc or recipe.ema is not None or any(sharded):  # one pass over memory for all of it
        return SGD(
            params, rate, recipe.momentum, recipe.nesterov, agc=recipe.agc, ema=recipe.ema,
            capturable=isinstance(rate, Tensor),
        )  # fmt: skip
    return torch.optim.SGD(params, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


class Average:
    """An average of weights and buffers over the steps of a training, to evaluate with.

    Weights are averaged by `nf.optim.SGD` in its own pass, and here beside other optimizers; running statistics here.

    Args:
        model: whose it is.
        optimizer: of the model.
        share: of the average that a step keeps, or "paper"; see `Recipe.ema`.

    Attributes:
        buffers: averages of the model's running statistics.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, share: float | str) -> None:
        self._share, self._steps = share, 0
        self._sgd = optimizer if isinstance(optimizer, SGD) else None
        weights = [] if self._sgd else [p for p in model.parameters() if p.requires_grad]
        buffers = [b for b in model.buffers() if b.is_floating_point()]
        self._live = [t.detach() for t in [*weights, *buffers]]
        self._kept = [t.clone() for t in self._live]
        self.buffers = self._kept[len(weights) :]

    @torch.no_grad()
    def update(self) -> None:
        """Take in what the model is now, after a step."""
        share = paper_share(self._steps) if self._share == "paper" else float(self._share)
        if self._live:
            torch._foreach_lerp_(self._kept, self._live, 1 - share)
        self._steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model is its average inside."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model and its average; once more puts the model back. Before the first step they are equal."""
        if not self._steps:
            return
        if self._sgd:
            self._sgd.swap_ema()
        for live, kept in zip(self._live, self._kept, strict=True):
            aside = live.clone()
            live.copy_(kept)
            kept.copy_(aside)

    def state_dict(self) -> dict[str, Any]:
        """The average, but for what the optimizer holds."""
        return {"steps": self._steps, "kept": self._kept}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._steps = state["steps"]
        for mine, stored in zip(self._kept, state["kept"], strict=True):
            mine.copy_(stored)
