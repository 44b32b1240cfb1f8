"""The configuration of a transfer: what is trained, on what, and how; a recipe by name or from a file, and `a.b=c` over
it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field

from normforge.errors import OptionError, nearest
from normforge.train import settings
from normforge.train.config import Section
from normforge.train.transfer.detection.settings import DetectionRecipe, Detector, SceneData
from normforge.train.transfer.synthesis.settings import SynthesisRecipe

NONE = "none"
"""A layer's name in a study: gain, bias and ReLU (`AFFINE_RELU`), no normalization."""


class Run(Section):
    """How a training runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=256, description="of a training on a CPU; none: its share")
    checkpoint: int = Field(default=100, ge=1, description="steps between checkpoints; the last step has one")
    evaluate: int | None = Field(default=None, ge=1, description="steps between evaluations; none: a third of all")
    backend: Literal["auto", "c", "triton", "eager"] = Field(default="auto", description="of layers")


class DetectionRun(Run):
    """How a training of a detector runs."""

    loaders: int = Field(default=4, ge=0, le=128, description="threads that read images of coco:DIR")
    ap: Literal["faster_coco_eval", "pycocotools"] = Field(
        default="faster_coco_eval", description="the package that computes average precision"
    )


class TransferConfig(Section):
    """What the trainings of both tasks have in common; `MAY_CHANGE` may differ when one is continued."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("run.threads", "run.loaders", "run.checkpoint", "run.ap")

    name: str = Field(default="small", description="of the recipe that it started from")
    layer: str = Field(default="bn-relu", description="a name or a formula")
    seed: int = Field(default=0, ge=0, description="of weights, batches and everything drawn while training")
    run: Run = Run()


class DetectionConfig(TransferConfig):
    """Everything that a training of a detector depends on."""

    task: Literal["detection"] = "detection"
    data: SceneData = SceneData()
    model: Detector = Detector()
    recipe: DetectionRecipe = DetectionRecipe()
    run: DetectionRun = DetectionRun()


class ImageData(Section):
    """The choice of images for synthesis."""

    source: str = Field(
        default="digits", description="digits, fractals, cifar10:DIR, imagefolder:DIR, or another of normforge train"
    )
    size: int | None = Field(default=None, description="side in pixels: 16, 32, 64 or 128; none: nearest to their own")
    seed: int = Field(default=0, ge=0, description="of the split, and of the fractals")


class SynthesisConfig(TransferConfig):
    """Everything that a training of a BigGAN depends on."""

    task: Literal["gan"] = "gan"
    data: ImageData = ImageData()
    recipe: SynthesisRecipe = SynthesisRecipe()


_COCO: dict[str, Any] = {
    # arXiv 2004.02967 trains from nothing; size, batch and rate are what one GPU can do, by the linear rule.
    "data": {"flip": True},
    "model": {
        "width": 1.0, "depths": (3, 4, 6, 3), "channels": 256, "top": 6, "anchor": 8.0, "regions": 512,
        "proposals": 1000, "detections": 100, "box_convs": 4, "box_fc": 1024, "mask_convs": 4, "head_channels": 256,
        "min_size": 640, "max_size": 1066, "groups": None,
    },
    "recipe": {
        "batch": 16, "images": 4_000_000, "warmup_images": 32_000, "rate": 0.1, "rate_for": 64,
        "weight_decay": 4e-5, "dtype": "bfloat16",
    },
    "run": {"checkpoint": 1000, "evaluate": 20_000},
}  # fmt: skip
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "detection": {
        "small": {},
        "coco": _COCO,
        "coco-spinenet49": _COCO | {"model": _COCO["model"] | {"backbone": "spinenet49", "anchor": 4.0}},
    },
    "gan": {
        "small": {},
        # After the authors' code for CIFAR-10 (ajbrock/BigGAN-PyTorch), but with noise at each block.
        "cifar": {
            "data": {"size": 32},
            "recipe": {
                "steps": 125_000, "batch": 50, "d_steps": 4, "g_rate": 2e-4, "d_rate": 2e-4, "channels": 64,
                "groups": None, "ema": 0.9999, "ema_start": 1000, "init": "normal", "samples": 10_000,
            },
            "run": {"checkpoint": 1000, "evaluate": 5000},
        },
    },
}  # fmt: skip
CONFIGS: dict[str, type[DetectionConfig] | type[SynthesisConfig]] = {
    "detection": DetectionConfig,
    "gan": SynthesisConfig,
}
Config = DetectionConfig | SynthesisConfig


def load_config(task: str, recipe: str = "small", given: Iterable[str] = ()) -> Config:
    """The configuration of a recipe, changed by single settings.

    Args:
        task: detection or gan.
        recipe: a key of `RECIPES`, or a TOML file with the sections and keys of the task's configuration, whose `name`
            may be one.
        given: `section.key=value`.

    Raises:
        OptionError: an unknown task, recipe, key or value; the nearest known one is named.
    """
    if task not in CONFIGS:
        raise OptionError(f"there is no task {task!r}{nearest(task, CONFIGS)}: choose detection or gan")
    made: Config = settings.configured(
        CONFIGS[task],
        RECIPES[task],
        recipe,
        given,
        counted=_COUNTED if task == "detection" else {},
        elsewhere={key: f"{key} is not set like that: give {option}" for key, option in _ELSEWHERE.items()},
    )
    return made


_COUNTED = {"recipe.steps": "recipe.images", "recipe.warmup": "recipe.warmup_images"}
_ELSEWHERE = {
    "name": "--recipe, or name in a file",
    "task": "detection or gan after normforge transfer",
    "layer": "--layers",
    "seed": "--seeds and --first-seed",
    "recipe.seed": "--seeds and --first-seed",
}
