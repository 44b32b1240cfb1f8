"""The training of a BigGAN with a layer in its generator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import relu
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from normforge.ir.graph import Graph
from normforge.streams import stream, torch_seed
from normforge.train.data.batches import ArrayBatches
from normforge.train.data.parts import Data, Part
from normforge.train.harness.checkpoint import load_weights
from normforge.train.loop import Diverged
from normforge.train.transfer.synthesis.biggan import Discriminator, Generator
from normforge.train.transfer.synthesis.features import Judge
from normforge.train.transfer.synthesis.figures import Moments
from normforge.train.transfer.synthesis.images import Range
from normforge.train.transfer.synthesis.inception import Inception, inception
from normforge.train.transfer.synthesis.pictures import sheet
from normforge.train.transfer.synthesis.sampling import images, labels, noise, standing
from normforge.train.transfer.synthesis.settings import SynthesisRecipe, check_synthesis
from normforge.train.transfer.task import Task

_LOOK = 16  # steps between two looks at the losses on a GPU, where each look waits for it


class Synthesis(Task):
    """A training of a BigGAN by the hinge loss (arXiv 1809.11096; ajbrock/BigGAN-PyTorch, train_fns.py), whose pieces
    together are the same as the whole; neither figures nor pictures change what follows.

    Attributes:
        done: steps done so far. total: steps in all. parameters: of the generator.
        generator, discriminator: as trained.
        average: of the generator's weights, a copy of them before the recipe's `ema_start`. Its buffers are those of
            the generator after the last step: running statistics and singular vectors are of other weights than its
            own, and are made anew before it is sampled from (`standing`).
    """

    def __init__(
        self,
        graph: Graph,
        data: Data,
        recipe: SynthesisRecipe,
        seed: int,
        device: torch.device,
        backend: str = "auto",
        groups: int | None = None,
    ) -> None:
        """Nothing is trained yet. Global random state is left as it was.

        Args:
            graph: the layer in the generator.
            data: images of 16, 32, 64 or 128 px, grey or of three channels; see `images_of`.
            recipe: of the training and of the figures.
            seed: of weights, batches and noise; the weights are the same for every layer.
            device: that is trained on.
            backend, groups: as of `normforge.compile`.

        Raises:
            OptionError: a layer without gamma and beta, or not of x alone; images of another side; Inception weights
                that cannot be had; settings that do not go together.
        """
        check_synthesis(recipe)
        self.recipe, self.done, self.total = recipe, 0, recipe.steps
        self._data, self._seed, self._device = data, seed, device
        self._inception = None if recipe.inception is None else inception(recipe.inception, device)
        _, colours, side, _ = data.train.images.shape
        widths: dict[str, Any] = {"image_channels": colours, "channels": recipe.channels, "init": recipe.init}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "synthesis weights", 0))
            self.discriminator = Discriminator(side, data.classes, **widths).to(device)
            self.generator = Generator(
                graph, side, data.classes, z=recipe.z, shared=recipe.shared, backend=backend, groups=groups, **widths
            ).to(device)
        self.parameters = sum(p.numel() for p in self.generator.parameters())
        adam: dict[str, Any] = {"betas": recipe.betas, "eps": recipe.eps, "fused": True}
        self._g_optimizer = torch.optim.Adam(self.generator.parameters(), lr=recipe.g_rate, **adam)
        self._d_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=recipe.d_rate, **adam)
        self.average = AveragedModel(
            self.generator, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=False
        )  # buffers are copied then
        self.average.requires_grad_(False)
        self._range = Range.of(data.train)
        unit = Part(self._range.to_unit(data.train.images), data.train.labels).to(device)
        self._batches = ArrayBatches(unit, recipe.batch, stream(seed, "synthesis batches", 0))
        # On the CPU, so that every device is given the same noise.
        self._rng = torch.Generator().manual_seed(torch_seed(seed, "synthesis noise", 0))
        self._judge: Judge | None = None
        self._reference: Moments | None = None

    @property
    def judge(self) -> Judge:
        """What samples are judged by; the first to ask for a data set's waits seconds for its training."""
        if self._judge is None:
            self._judge = Judge(self._data, self._device)
        return self._judge

    def advance(self, steps: int) -> dict[str, float]:
        """Train up to step `steps` of the generator.

        Returns:
            Means of the hinge losses of these steps, `discriminator` and `generator`; NaN where nothing was to be done.

        Raises:
            Diverged: a loss is not finite; the message says by which step.
        """
        self.generator.train()
        self.discriminator.train()
        look = 1 if self._device.type == "cpu" else _LOOK
        losses = []
        while self.done < steps:
            losses.append(torch.stack([self._discriminator_steps(), self._generator_step()]))
            if self.done < self.recipe.ema_start:
                self.average.n_averaged.zero_()  # which makes an update a copy
            self.average.update_parameters(self.generator)
            self.done += 1
            if self.done % look == 0 or self.done == steps:
                now = losses[-1].tolist()
                if not all(map(math.isfinite, now)):
                    raise Diverged(f"the losses of discriminator and generator are {now} at step {self.done}")
        means = torch.stack(losses).mean(0).tolist() if losses else [math.nan, math.nan]
        return dict(zip(("discriminator", "generator"), means, strict=True))

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Figures of samples of the averaged generator, against the training images, as is usual.

        Args:
            final: adds those of real images that were not trained on: `fd_floor`, `accuracy_real`, `score_real`.

        Returns:
            `fd`, the FD (own features), `accuracy` and `score`, as of `Judge.figures`; `fd_raw` and `accuracy_raw` of
            the generator as it is trained; `fid` and `is` of the averaged one where the recipe names Inception weights.
        """
        figures: dict[str, float] = {}
        for suffix, generator in (("", self._averaged), ("_raw", self.generator)):
            drawn, wanted = self._samples(generator)
            found = self.judge.figures(self._range.from_unit(drawn), wanted)
            figures |= {f"{name}{suffix}": value for name, value in found.items() if not suffix or name != "score"}
            if self._inception and not suffix:
                figures |= self._inception.figures((drawn + 1) / 2, self._real(self._inception))
        if final:
            judge = self.judge
            figures |= {"fd_floor": judge.floor, "accuracy_real": judge.accuracy, "score_real": judge.score}
        return figures

    def pictures(self, folder: Path) -> list[Path]:
        """Write `samples.png`, a sheet of samples of the averaged generator; see `pictures.sheet`."""
        made = self._standing(self._averaged)
        return [sheet(made, folder / "samples.png", self.recipe.truncation)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the training goes on from."""
        return {
            "done": self.done,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "g_optimizer": self._g_optimizer.state_dict(),
            "d_optimizer": self._d_optimizer.state_dict(),
            "batches": self._batches.state_dict(),
            "noise": self._rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same layer, data and recipe."""
        for name, module in (
            ("generator", self.generator), ("discriminator", self.discriminator), ("average", self.average),
        ):  # fmt: skip
            load_weights(module, state[name])
        self._g_optimizer.load_state_dict(state["g_optimizer"])
        self._d_optimizer.load_state_dict(state["d_optimizer"])
        self._batches.load_state_dict(state["batches"])
        self._rng.set_state(state["noise"].cpu())
        self.done = state["done"]

    def close(self) -> None:
        """Nothing was started."""

    @property
    def _averaged(self) -> Generator:
        return cast(Generator, self.average.module)

    def _discriminator_steps(self) -> Tensor:
        """Mean loss of the discriminator's steps."""
        self.discriminator.requires_grad_(True)
        losses = []
        for _ in range(self.recipe.d_steps):
            real, real_labels = self._batches.next()
            with torch.no_grad():
                fake, fake_labels = self._fakes(len(real))
            # One call for both, as in the source: the spectral norms are iterated once.
            scores = self.discriminator(torch.cat([fake, real]), torch.cat([fake_labels, real_labels]))
            on_fake, on_real = scores.split(len(real))
            losses.append(relu(1 - on_real).mean() + relu(1 + on_fake).mean())
            self._d_optimizer.zero_grad()
            losses[-1].backward()
            self._d_optimizer.step()
        return torch.stack(losses).detach().mean()

    def _generator_step(self) -> Tensor:
        self.discriminator.requires_grad_(False)
        fake, fake_labels = self._fakes(self._batches.batch)
        loss: Tensor = -self.discriminator(fake, fake_labels).mean()
        self._g_optimizer.zero_grad()
        loss.backward()
        self._g_optimizer.step()
        return loss.detach()

    def _fakes(self, count: int) -> tuple[Tensor, Tensor]:
        z = noise(count, self.generator.noise, self._rng).to(self._device)
        y = labels(count, self.generator.classes, self._rng).to(self._device)
        return self.generator(z, y), y

    def _standing(self, generator: Generator) -> Generator:
        rng = torch.Generator().manual_seed(torch_seed(self._seed, "synthesis standing", 0))
        recipe = self.recipe
        return standing(generator, recipe.standing, recipe.batch, rng, recipe.truncation)

    def _samples(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images between -1 and 1 on the CPU, and their labels; of the same noise at every call."""
        rng = torch.Generator().manual_seed(torch_seed(self._seed, "synthesis samples", 0))
        z = noise(self.recipe.samples, generator.noise, rng, self.recipe.truncation)
        y = labels(self.recipe.samples, generator.classes, rng)
        return images(self._standing(generator), z, y).cpu(), y

    def _real(self, network: Inception) -> Moments:
        """Inception's moments of the training images, once a training."""
        if self._reference is None:
            self._reference = network.moments((self._range.to_unit(self._data.train.images) + 1) / 2)
        return self._reference
