"""Options of a training of BigGAN: a validated section of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from normforge.errors import OptionError
from normforge.train.config import Section


class SynthesisRecipe(Section):
    """The recipe of a BigGAN. The defaults are for digits of 16 px, a minute on one core.

    Those of the paper for 128 px (arXiv 1809.11096, appendix C): batch 2048, two steps of D, rates 5e-5 and 2e-4,
    channels 96, ema 0.9999 from step 20000.
    """

    steps: int = Field(default=400, ge=1, description="of the generator")
    batch: int = Field(default=32, ge=2, description="images a step")
    d_steps: int = Field(default=1, ge=1, description="steps of the discriminator for each of the generator")
    g_rate: float = Field(default=5e-4, gt=0, description="learning rate of the generator")
    d_rate: float = Field(default=1e-3, gt=0, description="learning rate of the discriminator")
    betas: tuple[float, float] = Field(default=(0.0, 0.999), description="of Adam")
    eps: float = Field(default=1e-6, gt=0, description="of Adam")
    channels: int = Field(default=8, ge=1, description="unit of width; the widest maps have 4 or 16 times as many")
    groups: int | None = Field(
        default=4,
        ge=1,
        description="of w,h,c/g in places whose channels it divides; elsewhere, and where none, as nf.compile",
    )
    z: int = Field(default=20, ge=1, description="numbers of noise for the first map, and for each block")
    shared: int = Field(default=128, ge=1, description="size of the generator's class embedding")
    ema: float = Field(default=0.99, ge=0, lt=1, description="share of the average of weights that a step keeps")
    ema_start: int = Field(default=100, ge=0, description="step from which weights are averaged; copied before")
    init: Literal["orthogonal", "normal"] = Field(default="orthogonal", description="normal: of deviation 0.02")
    truncation: float | None = Field(
        default=None, gt=0, description="largest magnitude of noise in samples; none: any; training always takes any"
    )
    standing: int = Field(default=16, ge=1, description="batches that running statistics are taken of before sampling")
    samples: int = Field(default=1000, ge=2, description="images drawn for the figures")
    inception: str | None = Field(
        default=None, description="torch-fidelity's weights-inception-2015-12-05-6726825d.pth, for FID and IS"
    )


def check_synthesis(recipe: SynthesisRecipe) -> None:
    """Refuse settings that do not go together.

    Raises:
        OptionError: it names them.
    """
    if not all(0 <= beta < 1 for beta in recipe.betas):
        raise OptionError(f"betas = {recipe.betas} are two numbers from 0 to below 1, such as 0 and 0.999")
