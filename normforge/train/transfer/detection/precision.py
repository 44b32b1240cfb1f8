"""COCO's average precision, by torchmetrics around one of the packages that compute it."""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from typing import Any

import numpy as np

from normforge.errors import OptionError, nearest
from normforge.train.transfer.detection.scene import Found, Scene

_BACKENDS = {  # the module that codes masks, which needs the package's compiled part; what installs it
    "faster_coco_eval": ("faster_coco_eval.core.mask", "'normforge[transfer]'"),
    "pycocotools": ("pycocotools.mask", "pycocotools"),
}
_THRESHOLDS = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
_KINDS = {"box": "bbox", "mask": "segm"}


class AveragePrecision:
    """The average precision of boxes and of masks over scenes (arXiv 1405.0312; cocodataset.org, "Detection").

    Of an image, the 100 instances of a class with the best scores count. Of masks only run lengths are kept. In a
    training of many processes, each has its own scenes and figures.

    Args:
        backend: the package that computes it, faster_coco_eval or pycocotools; their figures are the same.

    Raises:
        OptionError: a backend that is not known; torchmetrics or the backend that cannot be imported.
    """

    def __init__(self, backend: str = "faster_coco_eval") -> None:
        if backend not in _BACKENDS:
            raise OptionError(
                f"average precision has no backend {backend!r}: give {' or '.join(_BACKENDS)}"
                f"{nearest(backend, _BACKENDS)}"
            )
        module, package = _BACKENDS[backend]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _imported(module, package)
            detection = _imported("torchmetrics.detection", "'normforge[transfer]'")
            self._metric = detection.MeanAveragePrecision(
                iou_type=tuple(_KINDS.values()),
                # COCO's, in float64. torchmetrics' own are rounded to float32: a recall or an overlap that is 0.7 falls
                # on the other side, and average precision differs by up to 3e-4.
                iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
                rec_thresholds=np.linspace(0, 1, 101).tolist(),
                backend=backend,
                sync_on_compute=False,
            )
        self._metric.warn_on_many_detections = False

    def update(self, found: Found, scene: Scene) -> None:
        """Take in a scene and what was found in it, on any device."""
        # No areas are given: they would matter for the figures of small and large instances alone.
        self._metric.update(
            [
                {
                    "boxes": found.boxes.float().cpu(),
                    "scores": found.scores.float().cpu(),
                    "labels": found.labels.cpu(),
                    "masks": found.masks.cpu(),
                }
            ],
            [
                {
                    "boxes": scene.boxes.float().cpu(),
                    "labels": scene.labels.cpu(),
                    "masks": scene.masks.cpu(),
                    "iscrowd": scene.crowd.long().cpu(),
                }
            ],
        )

    def compute(self) -> dict[str, float]:
        """The figures of all scenes so far.

        Returns:
            `box_ap`, `box_ap50`, `box_ap75`, `mask_ap`, `mask_ap50`, `mask_ap75` in [0, 1]: means over the classes of
            which there is an instance, at intersections over union of 0.5 to 0.95, of 0.5 and of 0.75. NaN where no
            scene has an instance, crowds aside; COCO says -1 there.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figures = self._metric.compute()
        values = {
            f"{name}_{threshold}": float(figures[f"{kind}_{key}"])
            for name, kind in _KINDS.items()
            for threshold, key in _THRESHOLDS.items()
        }
        return {name: value if value >= 0 else math.nan for name, value in values.items()}


def _imported(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as e:  # RuntimeError: of a package built for another torch
        name, reason = module.partition(".")[0], str(e).split("\n")[0]
        raise OptionError(
            f"average precision needs {name}, which cannot be imported: {reason}: pip install {package}"
        ) from None
