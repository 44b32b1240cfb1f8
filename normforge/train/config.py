"""Options of networks, data and training: validated sections of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


class ViT(Section):
    """The options of a vision transformer, the layer in place of LayerNorm, over channels last."""

    dim: int = Field(default=48, ge=8)
    depth: int = Field(default=3, ge=1)
    heads: int = Field(default=3, ge=1)
    patch: int = Field(default=4, ge=1, description="pixels of a patch's side")


NETWORKS = ("resnet", "mobilenet", "efficientnet", "nf_resnet", "vit")


class Networks(Section):
    """The proxy networks, one layer in every norm-act place."""

    use: tuple[Literal["resnet", "mobilenet", "efficientnet", "nf_resnet", "vit"], ...] = Field(
        default=("resnet",), min_length=1, description="a layer is scored on each of them"
    )
    resnet: ResNet = ResNet()
    mobilenet: MobileNet = MobileNet()
    efficientnet: EfficientNet = EfficientNet()
    nf_resnet: NFResNet = NFResNet()
    vit: ViT = ViT()


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


class Recipe(Section):
    """The recipe of a training inside a proxy network."""

    seed: int = Field(default=0, ge=0, description="of weights and batches, the same for every layer")
    steps: int = Field(default=200, ge=1)
    batch: int = Field(default=64, ge=1)
    rate: float = Field(default=0.1, gt=0, description="learning rate at the first step")
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0, description="of matrices and filters only")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16 is by autocast")
    layout: Literal["nchw", "nhwc"] = Field(default="nhwc", description="memory layout of images and filters")
