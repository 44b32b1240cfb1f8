"""Options of networks, data and training: validated sections of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from normforge.errors import OptionError


class Section(BaseModel):
    """A part of a configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResNet(Section):
    """The options of ResNet-v2 with bottleneck blocks; (3, 4, 6, 3) and 0.25 are the paper's."""

    width: float = Field(default=0.125, gt=0, le=4, description="of 64 channels in the stem, 256, 512, ... after it")
    depths: tuple[int, ...] = Field(default=(1, 1, 1), min_length=1, max_length=4, description="blocks of each stage")


class MobileNet(Section):
    """The options of MobileNetV2; 0.5, 1 and 7 are the paper's."""

    width: float = Field(default=0.25, gt=0, le=4)
    depth: float = Field(default=0.34, gt=0, le=4, description="of 1, 2, 3, 4, 3, 3, 1 blocks, rounded up")
    stages: int = Field(default=4, ge=2, le=7, description="of those seven, the first")


class EfficientNet(Section):
    """The options of EfficientNet-B0; 0.5, 1 and 7 are the paper's."""

    width: float = Field(default=0.25, gt=0, le=4)
    depth: float = Field(default=0.34, gt=0, le=4, description="of 1, 2, 2, 3, 3, 4, 1 blocks, rounded up")
    stages: int = Field(default=4, ge=2, le=7, description="of those seven, the first")


class NFResNet(Section):
    """The options of a plain normalizer-free ResNet: scaled weight standardization, residual branches of size alpha."""

    width: float = Field(default=0.125, gt=0, le=4)
    depths: tuple[int, ...] = Field(default=(1, 1, 1), min_length=1, max_length=4)
    alpha: float = Field(default=0.2, gt=0, le=1)
    standardized: bool = Field(default=True, description="weights of convolutions; without, they are as they are")


class ViT(Section):
    """The options of a vision transformer, the layer in place of LayerNorm, over channels last."""

    dim: int = Field(default=48, ge=8)
    depth: int = Field(default=3, ge=1)
    heads: int = Field(default=3, ge=1)
    patch: int = Field(default=4, ge=1, description="pixels of a patch's side")


class Plain(Section):
    """3×3 convolutions without skips, the layer after each; every second one after the first halves the map."""

    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(16, 16, 32, 32, 64), min_length=1)


NETWORKS = ("resnet", "mobilenet", "efficientnet", "nf_resnet", "vit", "plain")


class Networks(Section):
    """The proxy networks, one layer in every norm-act place."""

    use: tuple[Literal["resnet", "mobilenet", "efficientnet", "nf_resnet", "vit", "plain"], ...] = Field(
        default=("resnet",), min_length=1, description="a layer is scored on each of them"
    )
    resnet: ResNet = ResNet()
    mobilenet: MobileNet = MobileNet()
    efficientnet: EfficientNet = EfficientNet()
    nf_resnet: NFResNet = NFResNet()
    vit: ViT = ViT()
    plain: Plain = Plain()
    groups: int | None = Field(
        default=None,
        ge=1,
        description="of the index set w,h,c/g in places whose channels it divides; none is 32, or fewer where there "
        "are fewer channels: there a group is one channel, and w,h,c/g the same as w,h",
    )


class Fractals(Section):
    """Images of iterated function systems, drawn by the program (after FractalDB, ACCV 2020)."""

    size: int = Field(default=12, ge=4, le=256, description="pixels of a side")
    classes: int = Field(default=10, ge=2, le=1000)
    train: int = Field(default=6000, ge=1, description="images")
    held_out: int = Field(default=4000, ge=3, description="images for validation, re-ranking and test together")
    difficulty: float = Field(default=1.0, ge=0, description="scale of jitter, rotation and noise")


class DataConfig(Section):
    """The choice of images and labels, and how training images are cropped and flipped."""

    source: str = Field(
        default="digits",
        description="digits, fractals, cifar10:DIR, cifar100:DIR, mnist:DIR, fashion:DIR, imagefolder:DIR or npz:FILE",
    )
    seed: int = Field(default=0, ge=0, description="of the split, and of the fractals")
    size: int | None = Field(default=None, ge=4, le=1024, description="resize images of a folder to this side")
    crop: int | None = Field(default=None, ge=1, description="side of random crops in training; evaluation is whole")
    pad: int = Field(default=0, ge=0, description="pixels of zeros around an image before it is cropped")
    flip: bool = Field(default=False, description="mirror training images at random")
    fractals: Fractals = Fractals()


class Optimization(Section):
    """How weights are found: steps, learning rate and schedule, optimizer, clipping, average, dtype, layout."""

    seed: int = Field(default=0, ge=0, description="of weights and batches, the same for every layer")
    steps: int = Field(default=200, ge=1)
    batch: int = Field(default=64, ge=1, description="images a step, of all processes together")
    rate: float = Field(default=0.1, gt=0, description="learning rate, at the top of the schedule")
    rate_for: int | None = Field(
        default=None,
        ge=1,
        description="images a step that rate is for, and at others in proportion (the linear rule); none: as it is",
    )
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = Field(default=0, ge=0, description="steps in which the rate rises from zero, in proportion")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0, description="of matrices and filters only")
    agc: float | None = Field(default=None, gt=0, description="λ of adaptive gradient clipping (arXiv 2102.06171)")
    agc_gains: bool = Field(default=True, description="clip also single numbers that start at zero, as skip gains do")
    agc_classifier: bool = Field(default=False, description="clip also the classifier's weight")
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of all gradients together")
    ema: float | Literal["paper"] | None = Field(
        default=None,
        description="share of an average of the weights that a step keeps, paper: min(0.99999, (1 + t) / (10 + t)); "
        "what is evaluated is the average",
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16 is by autocast")
    layout: Literal["nchw", "nhwc"] = Field(default="nhwc", description="memory layout of images and filters")


class Recipe(Optimization):
    """The recipe of a training of a classifier: of a candidate in a proxy network, and of a person's own model."""

    accumulate: int = Field(default=1, ge=1, description="parts that a process computes its share of a batch in")
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="of labels (arXiv 1512.00567)")
    mixup: float = Field(default=0.0, ge=0, description="of Beta(mixup, mixup), by which two images are mixed")
    cutmix: float = Field(default=0.0, ge=0, description="the same for a patch; half of the images each, if both are")
    randaugment: int = Field(default=0, ge=0, le=16, description="random operations on an image, after mixing")
    magnitude: int = Field(default=9, ge=0, le=30, description="of these operations")


def check_recipe(recipe: Optimization) -> None:
    """Refuse settings that do not go together.

    Raises:
        OptionError: it names them.
    """
    if recipe.nesterov and not recipe.momentum:
        raise OptionError("recipe.nesterov needs recipe.momentum above 0")
    if recipe.nesterov and recipe.optimizer != "sgd":
        raise OptionError(
            f"recipe.nesterov is of sgd: give recipe.nesterov=false with recipe.optimizer = {recipe.optimizer}"
        )
    if recipe.agc and recipe.clip_norm:
        raise OptionError("recipe.agc and recipe.clip_norm both clip gradients: choose one of them")
    if recipe.warmup >= recipe.steps:
        raise OptionError(f"recipe.warmup = {recipe.warmup} are the first of recipe.steps = {recipe.steps}: lower it")
    if isinstance(recipe, Recipe) and recipe.batch % recipe.accumulate:
        raise OptionError(f"recipe.accumulate = {recipe.accumulate} does not divide recipe.batch = {recipe.batch}")
    if isinstance(recipe.ema, float) and not 0 < recipe.ema < 1:
        raise OptionError(f"recipe.ema = {recipe.ema} is a share between 0 and 1, paper or none")
