"""Steps that people train with: adaptive gradient clipping, SGD in one pass over memory, sharpness-aware minimization.

The names here are imported when they are first asked for: `import normforge` loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normforge.loading import lazy

if TYPE_CHECKING:
    from normforge.optim.agc import AGC
    from normforge.optim.groups import param_groups
    from normforge.optim.sam import SAM
    from normforge.optim.sgd import SGD

_LAZY = {
    "AGC": "normforge.optim.agc",
    "SAM": "normforge.optim.sam",
    "SGD": "normforge.optim.sgd",
    "param_groups": "normforge.optim.groups",
}

__all__ = ["AGC", "SAM", "SGD", "param_groups"]


__getattr__ = lazy(__name__, _LAZY)
