"""Training of a person's own model: `normforge train`."""

from __future__ import annotations

from normforge.train.harness.config import RECIPES, TrainConfig, load_config
from normforge.train.harness.run import Finished, evaluate_checkpoint, load_trained, train

__all__ = ["RECIPES", "Finished", "TrainConfig", "evaluate_checkpoint", "load_config", "load_trained", "train"]
