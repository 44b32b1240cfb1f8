"""The unit of a search's budget: one full training of its first rung.

A training costs steps · batch · multiply-adds of its network. The unit, 1 eq, is what a layer costs that comes
through the first rung: the micro training; the short training on all networks; or, where there is no ladder, the full
training on all networks.
"""

from __future__ import annotations

from normforge.search.config import Config
from normforge.train.config import Recipe
from normforge.train.data import Data
from normforge.train.networks.cost import multiply_adds


def micro_recipe(config: Config) -> Recipe:
    """The recipe of the micro rung: the run's, with steps, batch and rate of its own and a cosine from the start."""
    rules = config.ladder.micro
    own = {"steps": rules.steps, "batch": rules.batch, "rate": rules.rate, "schedule": "cosine"}
    own |= {"warmup": 0, "rate_for": None, "accumulate": 1}
    return config.recipe.model_copy(update=own)


def equivalents(config: Config, data: Data, steps: dict[str, int]) -> float:
    """The cost of trainings in eq.

    Args:
        config: of the run.
        data: of the run, for the shapes of its images.
        steps: done, by network, `micro` for that rung's; of trainings with small batches, by `small_batch/network`.
    """
    first = config.ladder.use[:1]
    if first == ("micro",):
        unit = {"micro": config.ladder.micro.steps}
    else:
        unit = dict.fromkeys(
            config.networks.use, config.quality.steps if first == ("quality",) else config.recipe.steps
        )
    spent, one = (sum(_cost(config, data, n, count) for n, count in part.items()) for part in (steps, unit))
    return round(spent / one, 4)


def _cost(config: Config, data: Data, name: str, steps: int) -> int:
    stage, _, network = name.rpartition("/")
    images = data.train.images
    side, batch = config.data.crop or images.shape[-1], config.recipe.batch
    if name == "micro":
        network, side, batch = "plain", min(config.ladder.micro.size, images.shape[-1]), config.ladder.micro.batch
    if stage == "small_batch":
        batch = config.objectives.small_batch
    return steps * batch * multiply_adds(network, config.networks, images.shape[1], data.classes, side)
