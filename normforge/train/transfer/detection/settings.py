"""Settings of detection: scenes, the detector, how it is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from normforge.train.config import Optimization, Section, check_recipe

AFFINE_RELU = "relu(x * gamma + beta)"
"""Gain, bias and ReLU: what is left of a layer without its norm."""


class Drawn(Section):
    """Scenes that the program draws."""

    size: int = Field(default=96, ge=32, le=1024, description="pixels of a side")
    train: int = Field(default=1200, ge=1, description="scenes")
    validation: int = Field(default=60, ge=1, description="scenes")
    test: int = Field(default=200, ge=1, description="scenes")
    objects: int = Field(default=5, ge=1, le=50, description="in a scene, at most")
    difficulty: float = Field(default=1.0, ge=0, description="scale of the noise")


class SceneData(Section):
    """The choice of scenes."""

    source: str = Field(default="shapes", description="shapes, fractals, or coco:DIR in COCO's layout")
    seed: int = Field(default=0, ge=0, description="of what is drawn")
    flip: bool = Field(default=True, description="mirror training images at random")
    drawn: Drawn = Drawn()


class Detector(Section):
    """Mask R-CNN (arXiv 1703.06870): backbone, pyramid, heads. The defaults are for drawn scenes."""

    backbone: Literal[
        "resnet", "spinenet_tiny", "spinenet49s", "spinenet49", "spinenet96", "spinenet143", "spinenet190"
    ] = Field(default="resnet", description="resnet: pre-activation bottlenecks and an FPN; spinenets have no FPN")
    width: float = Field(default=0.125, gt=0, le=4, description="of resnet: of 64 channels in the stem, 256, 512, ...")
    depths: tuple[int, ...] = Field(default=(2, 2, 2), min_length=2, max_length=4, description="of resnet: blocks")
    channels: int = Field(default=48, ge=8, description="of the pyramid")
    top: int = Field(default=4, ge=3, le=7, description="of resnet: coarsest level of the pyramid; level k: stride 2^k")
    anchor: float = Field(default=3.5, gt=0, description="side of a level's anchors, in its strides")
    regions: int = Field(default=16, ge=4, description="regions of an image that the heads are trained on")
    proposals: int = Field(default=200, ge=10, description="of an image, kept at each level and after suppression")
    detections: int = Field(default=20, ge=1, description="of an image, at most")
    box_convs: int = Field(default=2, ge=0, le=8)
    box_fc: int = Field(default=128, ge=8, description="features before the box predictor")
    fc_layer: Literal["same", "relu"] = Field(
        default="same",
        description="after those features, which have no positions; relu: gain, bias and ReLU, for layers with moments "
        "over positions alone",
    )
    mask_convs: int = Field(default=2, ge=1, le=8)
    head_channels: int = Field(default=48, ge=8, description="of the convolutions of both heads")
    min_size: int = Field(default=96, ge=32, description="to which the shorter side of an image is resized")
    max_size: int = Field(default=96, ge=32, description="which the longer side does not exceed then")
    groups: int | None = Field(default=4, ge=1, description="of w,h,c/g in places whose channels it divides")


class DetectionRecipe(Optimization):
    """How a detector is trained."""

    batch: int = Field(default=8, ge=1, description="images a step")
    steps: int = Field(default=400, ge=1, description="where images is none")
    warmup: int = Field(default=0, ge=0, description="steps in which the rate rises, where warmup_images is none")
    images: int | None = Field(
        default=3200, ge=1, description="that a training sees, whatever the batch, in place of steps"
    )
    warmup_images: int | None = Field(default=400, ge=0, description="in place of warmup; at most half of images")
    rate: float = Field(default=0.1, gt=0, description="learning rate, at the top of the schedule")
    rate_for: int | None = Field(
        default=8, ge=1, description="images a step that rate is for, and at others in proportion; none: as it is"
    )
    clip_norm: float | None = Field(default=10.0, gt=0, description="largest norm of all gradients together")
    layout: Literal["nchw", "nhwc"] = Field(default="nchw", description="memory layout of images and filters")

    def resolved(self) -> DetectionRecipe:
        """The recipe with steps in place of images.

        Raises:
            OptionError: settings that do not go together.
        """
        counts: dict[str, int] = {}
        if self.images is not None:
            counts["steps"] = max(1, self.images // self.batch)
        if self.warmup_images is not None:
            counts["warmup"] = min(self.warmup_images // self.batch, counts.get("steps", self.steps) // 2)
        made = self.model_copy(update=counts)
        check_recipe(made)
        return made
