"""Steps that people train with: adaptive gradient clipping, SGD in one pass over memory, sharpness-aware minimization.

The names here are imported when they are first asked for: `import normforge` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normforge.optim.agc import AGC
    from normforge.optim.groups import param_groups
    from normforge.optim.sam import SAM
    from normforge.optim.sgd import SGD

_LAZY = {"AGC": "agc", "SAM": "sam", "SGD": "sgd", "param_groups": "groups"}

__all__ = ["AGC", "SAM", "SGD", "param_groups"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
