"""Training of a person's own model: `normforge train`.

The names here are imported when they are first asked for: reading settings loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normforge.loading import lazy

if TYPE_CHECKING:
    from normforge.train.harness.config import RECIPES, TrainConfig, load_config
    from normforge.train.harness.run import Finished, evaluate_checkpoint, load_trained, train

_LAZY = {
    **dict.fromkeys(("RECIPES", "TrainConfig", "load_config"), "normforge.train.harness.config"),
    **dict.fromkeys(("Finished", "evaluate_checkpoint", "load_trained", "train"), "normforge.train.harness.run"),
}

__all__ = ["RECIPES", "Finished", "TrainConfig", "evaluate_checkpoint", "load_config", "load_trained", "train"]


__getattr__ = lazy(__name__, _LAZY)
