"""The activations that conversion knows, each as a formula of `x`: torch's and timm's, told by their class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

_GELU_TANH = "0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x**3)))"
_HARD_MISH = "0.5 * x * clamp(x + 2, 0, 2)"


def _gelu(m: Any) -> str:
    return _GELU_TANH if getattr(m, "approximate", "none") == "tanh" else "gelu(x)"


def _elu(alpha: float) -> str:
    return "elu(x)" if alpha == 1 else f"where(x > 0, x, {alpha!r} * (exp(min(x, 0)) - 1))"


def _softplus(m: Any) -> str:
    return f"where({m.beta!r} * x > {m.threshold!r}, x, softplus({m.beta!r} * x) / {m.beta!r})"


# By package and class. What the language cannot say, such as a PReLU with its parameters, is None.
_FORMULAS: dict[str, Callable[[Any], str] | str | None] = {
    "torch.ReLU": "relu(x)",
    "torch.ReLU6": "relu6(x)",
    "torch.SiLU": "silu(x)",
    "torch.GELU": _gelu,
    "torch.Sigmoid": "sigmoid(x)",
    "torch.Tanh": "tanh(x)",
    "torch.Hardswish": "hardswish(x)",
    "torch.Hardsigmoid": "hardsigmoid(x)",
    "torch.Hardtanh": lambda m: f"clamp(x, {m.min_val!r}, {m.max_val!r})",
    "torch.LeakyReLU": lambda m: f"where(x > 0, x, {m.negative_slope!r} * x)",
    "torch.ELU": lambda m: _elu(m.alpha),
    "torch.CELU": lambda m: f"where(x > 0, x, {m.alpha!r} * (exp(min(x, 0) / {m.alpha!r}) - 1))",
    "torch.SELU": "1.0507009873554805 * where(x > 0, x, 1.6732632423543772 * (exp(min(x, 0)) - 1))",
    "torch.Mish": "mish(x)",
    "torch.Softplus": _softplus,
    "torch.Softsign": "x / (1 + abs(x))",
    "torch.Tanhshrink": "x - tanh(x)",
    "torch.Hardshrink": lambda m: f"where(abs(x) > {m.lambd!r}, x, 0)",
    "torch.Threshold": lambda m: f"where(x > {m.threshold!r}, x, {m.value!r})",
    "torch.LogSigmoid": "-softplus(-x)",
    "torch.PReLU": None,
    "torch.RReLU": None,
    "timm.Swish": "silu(x)",
    "timm.SwishMe": "silu(x)",
    "timm.Mish": "mish(x)",
    "timm.MishMe": "mish(x)",
    "timm.Sigmoid": "sigmoid(x)",
    "timm.Tanh": "tanh(x)",
    "timm.HardSwish": "hardswish(x)",
    "timm.HardSwishMe": "hardswish(x)",
    "timm.HardSigmoid": "hardsigmoid(x)",
    "timm.HardSigmoidMe": "hardsigmoid(x)",
    "timm.HardMish": _HARD_MISH,
    "timm.HardMishMe": _HARD_MISH,
    "timm.PReLU": None,
    "timm.GELU": "gelu(x)",
    "timm.GELUTanh": _GELU_TANH,
    "timm.QuickGELU": "x * sigmoid(1.702 * x)",
}
# Functions that are activations too, as `forward` may call them.
FUNCTIONS = {
    "relu", "relu6", "silu", "swish", "gelu", "gelu_tanh", "quick_gelu", "sigmoid", "tanh", "hardswish", "hard_swish",
    "hardsigmoid", "hard_sigmoid", "hardtanh", "leaky_relu", "elu", "celu", "selu", "mish", "hard_mish", "softplus",
    "prelu", "rrelu", "logsigmoid", "threshold", "clamp", "clamp_min",
}  # fmt: skip


def is_activation(module: nn.Module) -> bool:
    """Is a module one of the known activations?"""
    return _name(module) in _FORMULAS


def activation_formula(module: nn.Module) -> str | None:
    """The formula of x that an activation is; None where it cannot be said."""
    formula = _FORMULAS.get(_name(module))
    return formula(module) if callable(formula) else formula


def is_activation_function(name: str) -> bool:
    """Is a function, or a method of tensors, one of the known activations, by its name?"""
    return name.rstrip("_") in FUNCTIONS


def _name(module: nn.Module) -> str:
    cls = type(module)
    return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"
