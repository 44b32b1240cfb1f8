"""The configuration of a training: a recipe by name or from a file, and `a.b=c` over it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field

from normforge.train import settings
from normforge.train.config import DataConfig, Networks, Recipe, Section, check_recipe


class TrainData(DataConfig):
    """The choice of images: the search's, and `imagenet:DIR`, folders of images that are read while training."""

    source: str = Field(
        default="fractals",
        description="digits, fractals, cifar10:DIR, cifar100:DIR, mnist:DIR, fashion:DIR, imagefolder:DIR, npz:FILE, "
        "or imagenet:DIR with train/CLASS/ and val/CLASS/",
    )
    size: int | None = Field(
        default=None, ge=4, le=1024, description="side of images of a folder; none: of imagenet:DIR the model's own"
    )
    test_size: int | None = Field(
        default=None, ge=4, le=1024, description="side of test images of imagenet:DIR; none: the model's own, or size"
    )


class TrainRecipe(Recipe):
    """A recipe that may count in epochs, and that changes the model too."""

    epochs: float | None = Field(default=None, gt=0, description="in place of steps")
    warmup_epochs: float | None = Field(default=None, ge=0, description="in place of warmup; at most half of the steps")
    drop: float | None = Field(default=None, ge=0, lt=1, description="dropout; none: the model's own")
    drop_path: float | None = Field(default=None, ge=0, lt=1, description="stochastic depth; none: the model's own")

    def resolved(self, images: int) -> TrainRecipe:
        """The recipe with steps in place of epochs, for so many training images, of which an epoch drops what does not
        fill a batch.

        Raises:
            OptionError: settings that do not go together.
        """
        an_epoch = max(1, images // self.batch)
        counts: dict[str, int] = {}
        if self.epochs is not None:
            counts["steps"] = max(1, round(self.epochs * an_epoch))
        if self.warmup_epochs is not None:
            counts["warmup"] = min(round(self.warmup_epochs * an_epoch), counts.get("steps", self.steps) // 2)
        made = self.model_copy(update=counts)
        check_recipe(made)
        return made


class Run(Section):
    """How a training runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, le=256, description="of each process on a CPU; none: torch's")
    loaders: int = Field(default=2, ge=0, le=128, description="processes that read images of imagenet:DIR")
    checkpoint: int = Field(default=500, ge=1, description="steps between checkpoints; the last step has one")
    evaluate: int | None = Field(default=None, ge=1, description="steps between evaluations; none: an epoch")
    parallel: Literal["ddp", "fsdp"] = Field(default="ddp", description="of several processes; fsdp is FSDP2")
    sync: bool = Field(default=False, description="moments over the batch of all processes (nf.sync)")
    backend: Literal["auto", "c", "triton", "eager"] = Field(default="auto", description="of layers")
    compile: bool = Field(default=False, description="the network by torch.compile")
    tensorboard: bool = Field(default=False, description="write events for TensorBoard")


class TrainConfig(Section):
    """Everything that a training depends on; `MAY_CHANGE` may differ when it is continued."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("run.threads", "run.loaders", "run.checkpoint", "run.tensorboard")

    name: str = Field(default="small", description="of the recipe that it started from")
    model: str = Field(
        default="proxy/resnet", description="nf_resnet50, nfnet_f0, ...; any model of timm; proxy/resnet, ..."
    )
    layer: str = Field(
        default="", description="a name or a formula, put in the place of norms and their activations; empty: none"
    )
    networks: Networks = Networks()
    data: TrainData = TrainData()
    recipe: TrainRecipe = TrainRecipe()
    run: Run = Run()


# arXiv 2102.06171, section 5 and its code: SGD in batches of 4096, 0.1 for 256 images.
_NFNET: dict[str, Any] = {
    "batch": 4096, "epochs": 360, "warmup_epochs": 5, "rate": 0.1, "rate_for": 256, "nesterov": True,
    "weight_decay": 2e-5, "agc": 0.01, "ema": "paper", "smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0,
    "randaugment": 4, "magnitude": 15, "dtype": "bfloat16",
}  # fmt: skip
_IMAGENET: dict[str, Any] = {
    "batch": 1024, "epochs": 90, "warmup_epochs": 5, "rate": 0.1, "rate_for": 256, "weight_decay": 1e-4,
    "smoothing": 0.1, "dtype": "bfloat16",
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "small": {
        "recipe": {"batch": 128, "epochs": 8, "warmup_epochs": 0.5, "rate": 0.2, "nesterov": True},
        "networks": {"groups": 4},
    },
    "resnet": {"model": "resnet50", "recipe": _IMAGENET | {"nesterov": True}, "data": {"flip": True}},
    # The paper keeps what its networks are trained with under BatchNorm (arXiv 2004.02967, appendix C).
    "evonorm-imagenet": {
        "model": "resnetv2_50", "layer": "evonorm-s0", "recipe": _IMAGENET | {"nesterov": True}, "data": {"flip": True},
    },
    "nfnet": {"model": "nfnet_f0", "recipe": _NFNET, "data": {"flip": True}},
}  # fmt: skip


def load_config(recipe: str = "small", given: Iterable[str] = ()) -> TrainConfig:
    """The configuration of a recipe, changed by single settings.

    Args:
        recipe: a key of `RECIPES`, or a TOML file with the sections and keys of `TrainConfig`, whose `name` may be one.
        given: `section.key=value`.

    Raises:
        OptionError: an unknown recipe, key or value; the nearest known one is named.
    """
    return settings.configured(
        TrainConfig,
        RECIPES,
        recipe,
        given,
        counted={"recipe.steps": "recipe.epochs", "recipe.warmup": "recipe.warmup_epochs"},
        elsewhere={"name": "the recipe is not set like that: give --recipe, or name in a file"},
    )
