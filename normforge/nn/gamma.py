"""γ, the factor that gives an activation of standard normal noise the variance 1 (Brock et al., arXiv 2101.08692)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normforge.errors import OptionError, nearest

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "log_sigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}

# What the authors' code multiplies by (`base.py`), found by sampling: up to 0.09 % above the integrals. Their weights
# were trained with these. Their gelu is the tanh form.
AUTHORS: dict[str, float] = {
    "identity": 1.0,
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "leaky_relu": 1.70590341091156,
    "elu": 1.2716004848480225,
    "celu": 1.270926833152771,
    "selu": 1.0008515119552612,
    "gelu": 1.7015043497085571,
    "gelu_tanh": 1.7015043497085571,
    "silu": 1.7881293296813965,
    "softplus": 1.9203323125839233,
    "softsign": 2.338853120803833,
    "log_sigmoid": 1.9193484783172607,
    "sigmoid": 4.803835391998291,
    "tanh": 1.5939117670059204,
}

SOURCES = ("exact", "authors")
_REACH, _NODES = 14, 40  # beyond 14 deviations there is less than rounding; Gauss-Legendre nodes a unit of z


def gamma_of(activation: str | Activation, source: str = "exact") -> float:
    """γ = 1/√Var g(z) of an activation g, for z of the standard normal distribution (arXiv 2101.08692, section 4.2).

    The integrals are exact up to rounding for activations that are smooth between whole numbers.

    Args:
        activation: a name of `ACTIVATIONS`, or any function of tensors, such as a module of torch.
        source: "exact" for the integral; "authors" for the constant of the authors' code, which is sampled, and which
            their published weights were trained with.

    Raises:
        OptionError: an unknown name or source, or an activation that is constant or not finite.
    """
    if source not in SOURCES:
        raise OptionError(f"γ is one of {', '.join(SOURCES)}, not {source!r}{nearest(str(source), SOURCES)}")
    if source == "authors":
        if activation not in AUTHORS:
            raise OptionError(
                f"the authors give no γ for {activation!r}{nearest(str(activation), AUTHORS)}: take 'exact'"
            )
        return AUTHORS[str(activation)]
    if not isinstance(activation, str):
        return _integral(activation)
    if activation not in ACTIVATIONS:
        raise OptionError(f"there is no activation {activation!r}{nearest(activation, ACTIVATIONS)}")
    return _named(activation)


@functools.cache
def _named(name: str) -> float:
    return _integral(ACTIVATIONS[name])


def _integral(activation: Activation) -> float:
    # Panels of a unit: the kinks of relu6, hardswish and their like are at whole numbers.
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    z = (np.arange(-_REACH, _REACH)[:, None] + (nodes + 1) / 2).ravel()
    density = np.tile(weights / 2, 2 * _REACH) * np.exp(-z * z / 2)
    density /= density.sum()
    with torch.no_grad():
        # On the CPU, whatever the device that a network is being built on.
        y = activation(torch.from_numpy(z)).numpy()
    variance = float(density @ (y - density @ y) ** 2)
    if not 0 < variance < np.inf:
        raise OptionError(f"the activation has the variance {variance} on noise: it has no γ")
    return 1 / math.sqrt(variance)
