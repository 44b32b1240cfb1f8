"""Images mixed with one another, and changed by random operations, in batches on their device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import one_hot

from normforge.errors import OptionError
from normforge.train.config import Recipe
from normforge.train.data.batches import Batch, Batches

Limits = Callable[[], tuple[torch.Tensor, torch.Tensor]]
_DRAWS = 32  # of random operations for a batch; images beside each other share theirs where there are more


class Mixed:
    """Batches with MixUp (arXiv 1710.09412), CutMix (1905.04899) and then RandAugment (1909.13719), in this order as in
    the code of NFNets: half of the images by each of the first two, where both are asked for. They are torchvision's.

    Args:
        batches: what is mixed; labels (N,).
        recipe: says how.
        classes: number of labels.
        seed: of all that is drawn.
        limits: gives the least and largest value that each channel of images can have, (C,) on their device.

    Raises:
        OptionError: torchvision cannot be imported.
    """

    def __init__(self, batches: Batches, recipe: Recipe, classes: int, seed: int, limits: Limits) -> None:
        try:
            from torchvision.transforms import v2
        except (ImportError, RuntimeError) as e:  # RuntimeError: of one built for another torch
            reason = str(e).split("\n")[0]
            raise OptionError(f"recipe.mixup, cutmix and randaugment need torchvision, but: {reason}") from None
        self._batches, self._classes = batches, classes
        self._random = torch.Generator().manual_seed(seed).get_state()
        mixers = [v2.MixUp(alpha=recipe.mixup, num_classes=classes)] if recipe.mixup else []
        if recipe.cutmix:
            mixers.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
        self._mixers = mixers
        self._operations = (
            v2.RandAugment(recipe.randaugment, recipe.magnitude, interpolation=v2.InterpolationMode.BILINEAR)
            if recipe.randaugment
            else None
        )
        low, high = limits()
        self._low, self._range = low[:, None, None], (high - low).clamp(min=1e-12)[:, None, None]

    def next(self) -> Batch:
        """The next batch; labels (N, classes) where images are mixed."""
        images, labels = self._batches.next()
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
            torch.set_rng_state(self._random)
            if self._mixers:
                images, labels = self._mix(images, labels)
            if self._operations is not None:
                images = self._operate(images)
            self._random = torch.get_rng_state()
        return images, labels

    def _operate(self, images: torch.Tensor) -> torch.Tensor:
        assert self._operations is not None
        size = -(-len(images) // _DRAWS)
        scaled = ((images - self._low) / self._range).clamp(0, 1)  # a crop may have zeros around the image
        changed = torch.cat([self._operations(part) for part in scaled.split(size)])
        return changed * self._range + self._low

    def _mix(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        sizes = [len(images) // len(self._mixers)] * (len(self._mixers) - 1)
        sizes.append(len(images) - sum(sizes))
        parts = []
        for mixer, some, theirs in zip(self._mixers, images.split(sizes), labels.split(sizes), strict=True):
            if len(some) > 1:
                parts.append(mixer(some, theirs))
            elif len(some):  # nothing to be mixed with
                parts.append((some, one_hot(theirs, self._classes).float()))
        mixed, soft = zip(*parts, strict=True)
        return torch.cat(mixed), torch.cat(soft)

    def state_dict(self) -> dict[str, Any]:
        """That of the batches, and of the generator."""
        return {"batches": self._batches.state_dict(), "random": self._random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._batches.load_state_dict(state["batches"])
        self._random = state["random"]

    def close(self) -> None:
        """That of the batches."""
        self._batches.close()


def mixed(batches: Batches, recipe: Recipe, classes: int, seed: int, limits: Limits) -> Batches:
    """The batches as a recipe asks for them; see `Mixed`."""
    if not (recipe.mixup or recipe.cutmix or recipe.randaugment):
        return batches
    return Mixed(batches, recipe, classes, seed, limits)
