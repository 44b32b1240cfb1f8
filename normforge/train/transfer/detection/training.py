"""The training of a detector with one layer: instance segmentation as a task that layers carry over to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normforge.streams import torch_seed
from normforge.train.harness.checkpoint import load_weights
from normforge.train.loop import Diverged, autocast, memory_format, rate_at
from normforge.train.networks.places import LayerFactory
from normforge.train.optimizer import Average, optimizer_of
from normforge.train.transfer.detection.batches import SceneBatches
from normforge.train.transfer.detection.coco import CocoScenes, results
from normforge.train.transfer.detection.mask_rcnn import mask_rcnn
from normforge.train.transfer.detection.precision import AveragePrecision
from normforge.train.transfer.detection.scene import Found, Scene, Scenes
from normforge.train.transfer.detection.settings import DetectionRecipe, Detector
from normforge.train.transfer.task import Task

_AT_ONCE = 20  # images in evaluation
_LEAST_MASK = 0.5  # probability of a pixel that belongs to an instance
_SHOWN = 8  # scenes in a picture


class Detection(Task):
    """Mask R-CNN with a layer, trained from nothing.

    Args:
        layer: makes the module of a place.
        model: backbone and heads.
        recipe: with its steps counted, see `DetectionRecipe.resolved`.
        train, validation, test: scenes.
        flip: mirror training images at random.
        device: of the model.
        threads: that read scenes ahead.
        backend: of average precision: faster_coco_eval or pycocotools.

    Attributes:
        model: torchvision's MaskRCNN.
    """

    def __init__(
        self,
        layer: LayerFactory,
        model: Detector,
        recipe: DetectionRecipe,
        train: Scenes,
        validation: Scenes,
        test: Scenes,
        *,
        flip: bool,
        device: torch.device,
        threads: int = 0,
        backend: str = "faster_coco_eval",
    ) -> None:
        self.recipe, self.total, self.done = recipe, recipe.steps, 0
        self._parts = {False: validation, True: test}
        self._device, self._backend = device, backend
        made = mask_rcnn(model, layer, len(train.names), torch_seed(recipe.seed, "weights", 0))
        self.model: nn.Module = made.to(device).to(memory_format=memory_format(recipe))
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.batches = SceneBatches(train, recipe.batch, recipe.seed, flip, threads)
        self.optimizer = optimizer_of(self.model, recipe, recipe.rate)
        self.average = None if recipe.ema is None else Average(self.model, self.optimizer, recipe.ema)
        self._rows: list[dict[str, Any]] = []  # of COCO's results
        self.model.train()

    def advance(self, steps: int) -> dict[str, float]:
        """Train up to step `steps`; means of the five losses and their sum.

        Raises:
            Diverged: a loss, or weights, are not finite.
        """
        sums: dict[str, float] = {}
        before = self.done
        while self.done < steps:
            for name, value in self._step(self.batches.next()).items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: value / (self.done - before) for name, value in sums.items()}

    def _step(self, scenes: list[Scene]) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.recipe, self.done)
        images = [self._image(scene) for scene in scenes]
        with self._finite(), autocast(self.recipe, images[0]):
            losses: dict[str, Tensor] = self.model(images, [self._target(scene) for scene in scenes])
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.done += 1
        named = {name.removeprefix("loss_"): float(loss.detach()) for name, loss in losses.items()}
        named["loss"] = float(total.detach())
        if not math.isfinite(named["loss"]):
            raise Diverged(f"the loss is {named['loss']} at step {self.done}")
        self.optimizer.zero_grad()
        total.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        if self.average:
            self.average.update()
        return named

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """What torchvision raises of boxes that are not finite is a divergence, where the weights are not finite."""
        try:
            yield
        except (AssertionError, IndexError, RuntimeError) as e:
            if all(bool(t.isfinite().all()) for t in [*self.model.parameters(), *self.model.buffers()]):
                raise
            raise Diverged(f"weights are not finite after step {self.done}") from e

    def _image(self, scene: Scene) -> Tensor:
        return scene.image.to(self._device).float() / 255

    def _target(self, scene: Scene) -> dict[str, Tensor]:
        kept = ~scene.crowd
        return {
            "boxes": scene.boxes[kept].to(self._device),
            "labels": scene.labels[kept].to(self._device),
            "masks": scene.masks[kept].to(self._device),
        }

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Average precisions of boxes and masks on validation scenes, or on test scenes at the end."""
        part = self._parts[final]
        precision = AveragePrecision(self._backend)
        self._rows = []
        for start in range(0, len(part), _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, len(part)))
            scenes = [part[i] for i in indices]
            for i, scene, found in zip(indices, scenes, self.found(scenes), strict=True):
                precision.update(found, scene)
                if final and isinstance(part, CocoScenes):
                    self._rows += results(found, part, i)
        return precision.compute()

    @torch.no_grad()
    def found(self, scenes: list[Scene]) -> list[Found]:
        """What the model, or its average, finds in scenes; on the CPU."""
        images = [self._image(scene) for scene in scenes]
        self.model.eval()
        with self.average.in_place() if self.average else nullcontext(), self._finite():  # noqa: SIM117
            with autocast(self.recipe, images[0]):
                outputs = self.model(images)
        self.model.train()
        return [
            Found(
                output["boxes"].float().cpu(),
                output["scores"].float().cpu(),
                output["labels"].cpu(),
                (output["masks"][:, 0] > _LEAST_MASK).to(torch.uint8).cpu(),
            )
            for output in outputs
        ]

    def pictures(self, folder: Path) -> list[Path]:
        """A picture of test scenes with the masks that were found; of coco:DIR also `detections.json`: what was found,
        in the format of COCO's results."""
        from normforge.train.transfer.detection.pictures import draw_found

        part = self._parts[True]
        scenes = [part[i] for i in range(min(_SHOWN, len(part)))]
        if self._rows:
            (folder / "detections.json").write_text(json.dumps(self._rows))
        path = folder / "found.png"
        draw_found(scenes, self.found(scenes), part.names, path)
        return [path]

    def state_dict(self) -> dict[str, Any]:
        """Weights, momentum, average, batches, steps."""
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "batches": self.batches.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.done = state["done"]
        load_weights(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.batches.load_state_dict(state["batches"])

    def close(self) -> None:
        """End the threads that read scenes."""
        self.batches.close()
