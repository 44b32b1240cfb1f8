"""Scenes with the masks that a detector found in them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks, make_grid, save_image

from normforge.train.transfer.detection.scene import Found, Scene

_LEAST_SCORE = 0.5
_SIDE = 240  # pixels of a scene in the picture


def draw_found(scenes: list[Scene], found: list[Found], names: tuple[str, ...], path: Path) -> None:
    """Write a PNG: scenes in two rows, with masks, boxes and classes of what was found with a score of 0.5 or more."""
    drawn = [_drawn(scene, some, names) for scene, some in zip(scenes, found, strict=True)]
    save_image(make_grid(torch.stack(drawn).float() / 255, nrow=-(-len(drawn) // 2)), path)


def _drawn(scene: Scene, found: Found, names: tuple[str, ...]) -> Tensor:
    """(3, side, side) of uint8."""
    factor = _SIDE / max(scene.image.shape[1:])
    size = [round(factor * n) for n in scene.image.shape[1:]]
    image = interpolate(scene.image[None].float(), size=size, mode="bilinear")[0].to(torch.uint8)
    sure = found.scores >= _LEAST_SCORE
    if sure.any():
        masks = interpolate(found.masks[sure][None].float(), size=size)[0] > 0.5
        colours = [_COLOURS[(int(label) - 1) % len(_COLOURS)] for label in found.labels[sure]]
        image = draw_segmentation_masks(image, masks, alpha=0.6, colors=colours)
        labels = [names[int(label) - 1] for label in found.labels[sure]]
        image = draw_bounding_boxes(image, factor * found.boxes[sure], labels, colors=colours)
    return pad(image, [0, _SIDE - size[1], 0, _SIDE - size[0]])


_COLOURS = ["#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6"]
