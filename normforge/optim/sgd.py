"""SGD with adaptive gradient clipping, momentum and an average of the weights, in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from normforge.errors import OptionError
from normforge.kernels.backends import AUTO
from normforge.kernels.rows.sgd import Settings, Step, paper_share
from normforge.kernels.rows.step import take
from normforge.kernels.rows.units import check_gradient
from normforge.kernels.settings import check_backend
from normforge.optim.agc import EPS, check_settings

MOMENTUM, AVERAGE, ASIDE = "momentum_buffer", "ema", "weights"


class SGD(Optimizer):
    """Stochastic gradient descent as NFNets are trained (Brock et al., arXiv 2102.06171, section 4 and its code).

    Of each unit, in float32 and this order: G is clipped (see `AGC`), weight_decay · W is added, then
    M ← momentum · M + G from M = 0, G ← G + momentum · M with Nesterov's or M without, W ← W − lr · G, and the average
    E ← d · E + (1 − d) · W from E = W. Equal to `AGC(torch.optim.SGD(...))` to rounding.

    On CPUs and GPUs one kernel does all of it for many tensors, reading a row once from memory; where there is no
    compiler, and for tensors without rows in memory, torch's foreach operations. Results do not depend on the number of
    threads. Gradients are left as they are; parameters without one are left out. Momentum and average are float32 under
    16-bit parameters, also in checkpoints.

    Args:
        params: parameters, or groups, which may have any of the settings; see `param_groups`.
        lr: the learning rate.
        momentum, nesterov, weight_decay: as of torch's SGD, without dampening; decay is coupled.
        agc: λ of adaptive clipping; None for none.
        ema: the share d of the average that a step keeps, or "paper": min(0.99999, (1 + t) / (10 + t)) at step t from
            0; None for no average. `swap_ema` puts it in the place of the weights.
        agc_eps: ε of clipping; a larger one for what starts at 0 and must grow.
        capturable: may be captured in a CUDA graph: lr is then a tensor on the device, or stays what it was.
        backend: "auto", "c", "triton" or "eager".

    Raises:
        OptionError: a setting out of range; parameters that are flattened by FSDP (version 1), or no floating point.
        BackendError: a backend asked for by name cannot be had, or, at a step, does not run where the parameters are.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        agc: float | None = None,
        ema: float | str | None = None,
        *,
        agc_eps: float = EPS,
        capturable: bool = False,
        backend: str = AUTO,
    ) -> None:
        check_backend(backend)
        self.backend = backend
        defaults: dict[str, Any] = dict(
            lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, ema=ema,
            capturable=capturable, steps=0,
        )  # fmt: skip
        # A group that says nothing of clipping may be told by an `AGC` around this.
        if agc is not None or agc_eps != EPS:
            defaults |= {"agc": agc, "agc_eps": agc_eps}
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "backend": self.backend}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose settings are checked."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
        except OptionError:
            del self.param_groups[-1]
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or torch's SGD did; momentum and average keep their float32.

        Raises:
            OptionError: the state of an SGD with `maximize` or `dampening`.
        """
        for group in state_dict["param_groups"]:
            if group.get("maximize") or group.get("dampening"):
                raise OptionError("the state is of an SGD with maximize or dampening, which this one has not")
        if any(ASIDE in s for s in self.state.values()):
            self.swap_ema()  # the weights back, which the state that is left has
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            for p, index in zip(group["params"], saved["params"], strict=True):
                for name in (MOMENTUM, AVERAGE):
                    kept = state_dict["state"].get(index, {}).get(name)
                    if kept is not None and kept.dtype != self.state[p][name].dtype:  # torch gave it that of p
                        self.state[p][name] = kept.to(device=p.device, copy=True)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it is one kernel already
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: computes gradients anew and returns the loss.

        Returns:
            The loss of the closure, or None.

        Raises:
            OptionError: a sparse gradient, or the weights are averages now.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._advance(group)
        return loss

    def _advance(self, group: dict[str, Any]) -> None:
        made = []
        for p in group["params"]:
            if p.grad is not None:
                check_gradient(p.grad)
                made.append(self._prepared(p, group))
        if not made:
            return
        device = made[0].param.device
        captured = group["capturable"] and device.type != "cpu"
        steps = group["steps"]
        if captured and not (isinstance(steps, Tensor) and steps.device == device):  # or it was loaded
            group["steps"] = torch.full((1,), float(group["steps"]), device=device)
        lr, steps, ema = group["lr"], group["steps"], group["ema"]
        settings = Settings(
            lr if captured or not isinstance(lr, Tensor) else lr.item(), group["momentum"], group["nesterov"],
            group["weight_decay"], group.get("agc"), group.get("agc_eps", EPS), group.get("agc_units", "paper"),
            None if captured and ema == "paper" else paper_share(steps) if ema == "paper" else ema,
            steps if captured and ema == "paper" else None,
        )  # fmt: skip
        take(made, settings, self.backend)
        increment_version([s.param for s in made])
        group["steps"] += 1

    def _prepared(self, p: Tensor, group: dict[str, Any]) -> Step:
        state = self.state[p]
        if ASIDE in state:
            raise OptionError("the weights are their averages now: call swap_ema() again before the next step")
        wide = torch.float64 if p.dtype == torch.float64 else torch.float32
        if group["momentum"] and state.get(MOMENTUM) is None:
            state[MOMENTUM] = torch.zeros_like(p, dtype=wide)
        if group["ema"] is not None and AVERAGE not in state:
            state[AVERAGE] = p.detach().to(wide, copy=True)
        assert p.grad is not None
        momentum = state[MOMENTUM] if group["momentum"] else None
        return Step(p, p.grad, momentum, state[AVERAGE] if group["ema"] is not None else None)

    @torch.no_grad()
    def swap_ema(self) -> None:
        """Exchange the weights and their averages; once more puts the weights back, as they were.

        Raises:
            OptionError: there are no averages yet.
        """
        found = [(p, self.state[p]) for g in self.param_groups for p in g["params"] if AVERAGE in self.state[p]]
        if not found:
            raise OptionError("there are no averages: make the optimizer with ema=, and take a step")
        for p, state in found:
            if ASIDE in state:
                p.copy_(state.pop(ASIDE))
            else:
                state[ASIDE] = p.detach().clone()
                p.copy_(state[AVERAGE])


def _check(group: dict[str, Any]) -> None:
    check_settings(group)
    for name in ("lr", "momentum", "weight_decay"):
        value = group[name]
        if not isinstance(value, float | int | Tensor) or not value >= 0:
            raise OptionError(f"{name} is a number that is not negative, and is {value!r}")
    if group["nesterov"] and not group["momentum"]:
        raise OptionError("nesterov=True takes a momentum above 0")
    ema = group["ema"]
    if ema is not None and ema != "paper" and not (isinstance(ema, float | int) and 0 <= ema < 1):
        raise OptionError(f'ema is a number from 0 to below 1, "paper" or None, and is {ema!r}')
