"""normforge: normalization-activation layers, compiled and discovered.

A layer is a formula. `parse` reads one, and `load` finds one in files and searches too; `compile` makes an nn.Module of
it, and `check` tells what is wrong with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from normforge import errors
from normforge.ir import Graph, layers, parse
from normforge.ir.layers import READERS
from normforge.loading import lazy, register_with_torch
from normforge.passes import simplify
from normforge.passes.inputs import conditional

if TYPE_CHECKING:
    from normforge import nn, optim
    from normforge.api.load import load
    from normforge.api.look import check, grad
    from normforge.codegen.public import plan, source
    from normforge.kernels.compile import compile
    from normforge.kernels.module import Layer
    from normforge.kernels.pool import empty_pool
    from normforge.kernels.settings import freeze, set_backend, sync
    from normforge.nn.convert import convert
    from normforge.nn.export import export
    from normforge.nn.factory import norm_act

__version__ = "0.1.0"

# What needs torch is imported when it is first asked for: reading formulas stays light.
_LAZY = {
    "compile": "normforge.kernels.compile",
    "Layer": "normforge.kernels.module",
    "check": "normforge.api.look",
    "convert": "normforge.nn.convert",
    "empty_pool": "normforge.kernels.pool",
    "export": "normforge.nn.export",
    "freeze": "normforge.kernels.settings",
    "grad": "normforge.api.look",
    "load": "normforge.api.load",
    "norm_act": "normforge.nn.factory",
    "plan": "normforge.codegen.public",
    "set_backend": "normforge.kernels.settings",
    "source": "normforge.codegen.public",
    "sync": "normforge.kernels.settings",
}
_PARTS = ("nn", "optim")

__all__ = [
    "Graph",
    "Layer",
    "check",
    "compile",
    "conditional",
    "convert",
    "empty_pool",
    "errors",
    "export",
    "freeze",
    "grad",
    "layers",
    "load",
    "nn",
    "norm_act",
    "optim",
    "parse",
    "plan",
    "set_backend",
    "simplify",
    "source",
    "sync",
]


__getattr__ = lazy(__name__, _LAZY, _PARTS)


def _found(text: str) -> Graph | None:
    """The layer of a search result such as runs/demo#17; None of any other text."""
    if "#" not in text:
        return None
    reader = importlib.import_module("normforge.api.load")
    found: Graph | None = reader.load(text) if reader.candidate_named(text) else None
    return found


READERS.append(_found)
register_with_torch()
