"""The C kernels over rows: built with the prelude of a dtype when first asked for, called with a table of tensors."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normforge.codegen.c.prelude import prelude
from normforge.kernels import toolchain
from normforge.kernels.launch_c import library, threads
from normforge.kernels.pool import POOL, form_of
from normforge.kernels.rows.formula import Standardization, Standardized
from normforge.kernels.rows.layout import like
from normforge.kernels.rows.sgd import Settings, Step
from normforge.kernels.rows.units import count_units

_WORD = re.compile(r"\w+")
_INT, _FLOAT, _POINTER = np.int64, np.float64, np.uint64
# The entries of a table, as the structs of the two files have them.
STEP = np.dtype(
    [("rows", _INT), ("length", _INT), ("w", _POINTER), ("g", _POINTER), ("m", _POINTER), ("e", _POINTER)]
    + [(name, _FLOAT) for name in ("lr", "momentum", "decay", "clip", "eps", "average")]
    + [("nesterov", _INT)]
)
WEIGHT = np.dtype(
    [("rows", _INT), ("length", _INT), ("w", _POINTER), ("gain", _POINTER), ("saved", _POINTER)]
    + [("scale", _FLOAT), ("eps", _FLOAT), ("timm", _INT)]
    + [(name, _POINTER) for name in ("u", "a", "b", "y", "dw", "dgain", "du")]
)
_ARGUMENTS: Any = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int]
_FUNCTIONS = ("nf_step", "nf_standardize", "nf_standardize_backward", "nf_standardize_again")


@cache
def source(dtype: torch.dtype) -> str:
    """The text of the kernels for tensors of a dtype."""
    files = resources.files("normforge.kernels.rows")
    text = "".join((files / name).read_text() for name in ("rows.h", "step.c", "standardize.c"))
    return prelude(str(dtype).removeprefix("torch."), frozenset(_WORD.findall(text))) + text


@cache
def _functions(dtype: torch.dtype) -> dict[str, Any]:
    loaded = library(text := source(dtype), lambda path: toolchain.compile_threaded(text, path))
    found = {name: loaded[name] for name in _FUNCTIONS}
    for function in found.values():
        function.restype, function.argtypes = None, _ARGUMENTS
    return found


def call(name: str, dtype: torch.dtype, table: np.ndarray[Any, Any]) -> None:
    """Run a kernel over the tensors of a table, which is contiguous and whose tensors live as long as the call.

    Raises:
        BackendError: there is no compiler, or it fails.
    """
    first = np.empty(len(table), _INT)
    _functions(dtype)[name](table.ctypes.data, len(table), first.ctypes.data, threads())


def forward(weights: Sequence[Tensor], gains: Sequence[Tensor], hows: Sequence[Standardization]) -> list[Standardized]:
    """Ŵ and what derivatives need of each weight."""
    made = [Standardized(_fresh(w), _statistics(w)) for w in weights]
    table = _table(weights, gains, hows, [m.saved for m in made])
    table["y"] = [m.value.data_ptr() for m in made]
    call("nf_standardize", weights[0].dtype, table)
    return made


def backward(
    us: Sequence[Tensor],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    hows: Sequence[Standardization],
    statistics: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of weights and gains for cotangents of Ŵ."""
    dws, dgains = [_fresh(w) for w in weights], [torch.empty_like(g) for g in gains]
    table = _table(weights, gains, hows, statistics)
    for name, tensors in (("u", us), ("dw", dws), ("dgain", dgains)):
        table[name] = [t.data_ptr() for t in tensors]
    call("nf_standardize_backward", weights[0].dtype, table)
    return dws, dgains


def again(
    of_w: Sequence[Tensor | None],
    of_gain: Sequence[Tensor | None],
    us: Sequence[Tensor],
    weights: Sequence[Tensor],
    gains: Sequence[Tensor],
    hows: Sequence[Standardization],
    statistics: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of cotangents, weights and gains for cotangents of what `backward` returns."""
    dus, dws, dgains = [_fresh(w) for w in weights], [_fresh(w) for w in weights], [torch.empty_like(g) for g in gains]
    table = _table(weights, gains, hows, statistics)
    for name, tensors in (("a", of_w), ("b", of_gain), ("u", us), ("du", dus), ("dw", dws), ("dgain", dgains)):
        table[name] = [0 if t is None else t.data_ptr() for t in tensors]
    call("nf_standardize_again", weights[0].dtype, table)
    return dus, dws, dgains


def _table(
    weights: Sequence[Tensor], gains: Sequence[Tensor], hows: Sequence[Standardization], saved: Sequence[Tensor]
) -> np.ndarray[Any, Any]:
    """A table with what all three kernels read."""
    entries = [
        (len(w), w.numel() // len(w) if len(w) else 0, w.data_ptr(), g.data_ptr(), s.data_ptr(), h.scale, h.eps,
         h.rule == "timm", 0, 0, 0, 0, 0, 0, 0)
        for w, g, h, s in zip(weights, gains, hows, saved, strict=True)
    ]  # fmt: skip
    return np.array(entries, WEIGHT)


def _fresh(w: Tensor) -> Tensor:
    return POOL.take(form_of(w.shape, w.stride(), w.dtype))


def _statistics(w: Tensor) -> Tensor:
    return torch.empty(len(w), 3, dtype=torch.float64, device="cpu")


def step(steps: Sequence[Step], settings: Settings) -> None:
    """Take a step of each, all of one dtype."""
    clipping = -1.0 if settings.clipping is None else settings.clipping
    average = settings.average or 0.0
    common = (float(settings.lr), settings.momentum, settings.decay, clipping, settings.eps, average, settings.nesterov)
    entries, held = [], []
    for p, g, m, e in steps:
        held.append(g := like(g, p))
        # Without clipping rows are nothing: threads share the elements.
        rows = count_units(p.shape, settings.units) if clipping >= 0 else p.numel()
        states = (0 if m is None else m.data_ptr(), 0 if e is None else e.data_ptr())
        entries.append((rows, p.numel() // rows, p.data_ptr(), g.data_ptr(), *states, *common))
    call("nf_step", steps[0].param.dtype, np.array(entries, STEP))
