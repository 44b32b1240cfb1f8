"""The training of a BigGAN: figures, samples, averages, resuming, images and pictures."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from reference import compare, tolerance
from torch import Tensor

import normforge as nf
from normforge.errors import OptionError
from normforge.kernels import toolchain
from normforge.train.data.parts import Data
from normforge.train.loop import Diverged
from normforge.train.transfer.synthesis.features import Judge, classifier
from normforge.train.transfer.synthesis.figures import Moments, frechet, score
from normforge.train.transfer.synthesis.images import Range, images_of
from normforge.train.transfer.synthesis.inception import inception
from normforge.train.transfer.synthesis.sampling import noise, standing
from normforge.train.transfer.synthesis.settings import SynthesisRecipe
from normforge.train.transfer.synthesis.training import Synthesis

CPU = torch.device("cpu")
BACKEND = "auto" if toolchain.find_compiler() else "eager"
TINY: dict[str, Any] = {
    "steps": 6, "batch": 8, "channels": 1, "z": 4, "shared": 6, "ema": 0.5, "ema_start": 2, "standing": 3, "samples": 20
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Data:
    return images_of("digits", 16)


def task(data: Data, layer: str = "bn-relu", **options: Any) -> Synthesis:
    return Synthesis(nf.parse(layer), data, SynthesisRecipe(**(TINY | options)), 7, CPU, BACKEND)


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, in order."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [t for v in state.values() for t in tensors(v)]
    if isinstance(state, list | tuple):
        return [t for v in state for t in tensors(v)]
    return []


def same(a: Synthesis, b: Synthesis) -> bool:
    one, other = tensors(a.state_dict()), tensors(b.state_dict())
    assert len(one) == len(other) > 100
    return a.done == b.done and all(x.equal(y) for x, y in zip(one, other, strict=True))


def test_distance_is_that_of_the_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=rng, dtype=torch.float64)
    a = torch.randn(60, 12, generator=rng, dtype=torch.float64)
    b = torch.randn(80, 12, generator=rng, dtype=torch.float64) @ mixed + 1
    means = [x.numpy().mean(0) for x in (a, b)]
    first, second = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(first @ second).real
    want = ((means[0] - means[1]) ** 2).sum() + np.trace(first + second - 2 * root)
    got = frechet(Moments.of(a), Moments.of(b))
    allowed = tolerance(torch.float64, 12 * 80, float(want))
    compare(torch.tensor(got, dtype=torch.float64), torch.tensor(want), allowed, "distance")


def test_distance_of_singular_covariances_and_of_equal_sets() -> None:
    a = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # of rank 4
    shift = torch.arange(20, dtype=torch.float64)
    allowed = tolerance(torch.float64, 20, 2470.0) ** 0.5  # roots of eigenvalues that are 0 but for rounding
    assert abs(frechet(Moments.of(a), Moments.of(a))) < allowed
    assert abs(frechet(Moments.of(a), Moments.of(a + shift)) - 2470) < allowed


def test_what_is_not_finite_has_no_distance() -> None:
    a = torch.ones(3, 2)
    assert math.isnan(frechet(Moments.of(a), Moments.of(a * math.inf)))


def test_score_counts_classes() -> None:
    certain = 1000 * torch.eye(4).repeat(5, 1)
    assert score(torch.zeros(8, 4)) == pytest.approx(1)
    assert score(certain) == pytest.approx(4)
    assert score(certain, splits=5) == pytest.approx(4)
    assert score(certain[:1].repeat(8, 1)) == pytest.approx(1)


def test_judge_of_real_images_and_of_noise(data: Data) -> None:
    judge = Judge(data, CPU)
    assert judge.held_out == 897
    assert judge.accuracy > 0.95
    images, labels = data.train.images, data.train.labels
    rng = torch.Generator().manual_seed(0)
    noisy = [images + s * torch.randn(images.shape, generator=rng) for s in (0, 0.1, 0.3, 1)]
    found = [judge.figures(some, labels)["fd"] for some in noisy]
    assert abs(found[0]) < tolerance(torch.float32, len(images), 1.0)
    assert found == sorted(found)
    assert 0 < judge.floor < found[-1]
    wrong = judge.figures(images, (labels + 1) % 10)
    assert wrong["accuracy"] < 0.05
    assert wrong["score"] > 5


def test_all_runs_have_one_classifier(data: Data) -> None:
    first, second = classifier(data), classifier(data)
    assert not first.training
    assert all(a.equal(b) for a, b in zip(tensors(first.state_dict()), tensors(second.state_dict()), strict=True))


def test_truncation_bounds_the_noise() -> None:
    rng = torch.Generator().manual_seed(0)
    free, bounded = noise(500, 20, rng), noise(500, 20, rng, 0.5)
    assert free.abs().max() > 2
    assert bounded.abs().max() <= 0.5
    # Drawn again beyond the bound, not put onto it.
    assert bounded.unique().numel() > 9000


@pytest.mark.parametrize("layer", ["bn-relu", "evonorm-s0", "relu(x * gamma + beta)"])
def test_a_training_resumed_from_a_file_is_the_same(data: Data, layer: str, tmp_path: Path) -> None:
    options = {"d_steps": 2} if layer == "bn-relu" else {}
    whole, half = task(data, layer, **options), task(data, layer, **options)
    whole.advance(6)
    half.advance(3)
    torch.save(half.state_dict(), tmp_path / "state.pt")
    resumed = task(data, layer, **options)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert not same(resumed, whole)
    losses = resumed.advance(6)
    assert same(resumed, whole)
    assert not same(half, whole)
    assert set(losses) == {"discriminator", "generator"}
    assert all(map(math.isfinite, losses.values()))
    assert all(map(math.isnan, resumed.advance(6).values()))


def test_evaluation_and_pictures_change_nothing(data: Data, tmp_path: Path) -> None:
    alone, watched = task(data), task(data)
    alone.advance(6)
    for step in (1, 3, 6):
        watched.advance(step)
        figures = watched.evaluate(final=step == 6)
        assert figures == watched.evaluate(final=step == 6)
        watched.pictures(tmp_path)
    assert same(alone, watched)
    assert set(figures) == {
        "fd", "accuracy", "score", "fd_raw", "accuracy_raw", "fd_floor", "accuracy_real", "score_real"
    }  # fmt: skip
    assert all(map(math.isfinite, figures.values()))
    assert figures["fd_floor"] < figures["fd"]


def test_global_random_state_is_left_alone(data: Data) -> None:
    before = torch.get_rng_state()
    training = task(data)
    training.advance(2)
    training.evaluate(final=True)
    assert torch.get_rng_state().equal(before)


def test_the_average_is_of_weights_alone(data: Data) -> None:
    training = task(data)
    want: dict[str, Tensor] = {}
    for step in range(1, 7):
        training.advance(step)
        for name, p in training.generator.named_parameters():
            want[name] = p.detach().clone() if step <= TINY["ema_start"] else want[name].lerp(p.detach(), 0.5)
    kept = dict(training.average.module.named_parameters())
    assert all(kept[name].equal(value) for name, value in want.items())
    assert any(not kept[name].equal(p) for name, p in training.generator.named_parameters())
    buffers = dict(training.average.module.named_buffers())
    assert {"_u", "_v", "running_mean", "running_var"} <= {name.rpartition(".")[2] for name in buffers}
    assert all(buffers[name].equal(b) for name, b in training.generator.named_buffers())


def test_standing_statistics_are_of_their_batches_alone(data: Data) -> None:
    training = task(data)
    training.advance(3)
    spoiled = copy.deepcopy(training.generator)
    with torch.no_grad():
        for name, buffer in spoiled.named_buffers():
            if "running" in name:
                buffer.add_(100)
    before = [t.clone() for t in tensors(training.generator.state_dict())]
    made = [standing(g, 4, 8, torch.Generator().manual_seed(1)) for g in (training.generator, spoiled)]
    assert all(a.equal(b) for a, b in zip(*(tensors(m.state_dict()) for m in made), strict=True))
    assert not made[0].training
    assert all(a.equal(b) for a, b in zip(before, tensors(training.generator.state_dict()), strict=True))
    # One batch's are that batch's: the mean of the last layer's input is what its buffer has.
    one, seen = standing(training.generator, 1, 8, torch.Generator().manual_seed(1)), []
    again = copy.deepcopy(training.generator).train()
    again.layer.register_forward_hook(lambda _, x, __: seen.append(x[0]))
    rng = torch.Generator().manual_seed(1)
    z = noise(8, again.noise, rng)
    again(z, torch.randint(10, (8,), generator=rng))
    mean = seen[0].detach().mean((0, 2, 3))
    compare(one.layer.running_mean, mean, tolerance(torch.float32, 8 * 256, 1 + float(mean.abs().max())), "mean")


def test_a_loss_that_is_not_finite_ends_the_training(data: Data) -> None:
    training = task(data, g_rate=1e38, steps=20)
    with pytest.raises(Diverged, match="at step"):
        training.advance(20)


def test_weights_and_batches_are_the_seeds(data: Data) -> None:
    recipe = SynthesisRecipe(**TINY)
    one, other = (Synthesis(nf.parse("bn-relu"), data, recipe, seed, CPU, BACKEND) for seed in (1, 2))
    assert not one.generator.shared.weight.equal(other.generator.shared.weight)
    layer = Synthesis(nf.parse("evonorm-s0"), data, recipe, 1, CPU, BACKEND)
    assert layer.generator.shared.weight.equal(one.generator.shared.weight)
    ours, theirs = (dict(t.discriminator.named_parameters()) for t in (one, layer))
    assert all(theirs[name].equal(p) for name, p in ours.items())
    assert one.parameters == sum(p.numel() for p in one.generator.parameters())


def test_images_are_mapped_to_one_range_and_back(data: Data) -> None:
    scale = Range.of(data.train)
    unit = scale.to_unit(data.train.images)
    assert (unit.min(), unit.max()) == (-1, 1)
    largest = float(data.train.images.abs().max())
    compare(scale.from_unit(unit), data.train.images, tolerance(torch.float32, 4, 4 * largest), "images")


def test_images_of_sources_and_sizes(tmp_path: Path) -> None:
    small, large = images_of("digits"), images_of("digits", 32)
    assert small.train.images.shape == (900, 1, 16, 16)
    assert large.test.images.shape == (300, 1, 32, 32)
    assert small.digest != large.digest
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(10):
            side = 20 + i
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    assert images_of(f"imagefolder:{tmp_path}", 32).train.images.shape == (14, 3, 32, 32)
    with pytest.raises(OptionError, match="any size"):
        images_of(f"imagefolder:{tmp_path}")
    with pytest.raises(OptionError, match="16, 32, 64 or 128"):
        images_of("digits", 20)
    with pytest.raises(OptionError, match="did you mean 'digits'"):
        images_of("digit")
    with pytest.raises(OptionError, match="there is no file"):
        images_of(f"cifar10:{tmp_path / 'nowhere'}")


def test_a_sheet_of_samples(data: Data, tmp_path: Path) -> None:
    training = task(data, truncation=1.0)
    (file,) = training.pictures(tmp_path / "new")
    with Image.open(file) as picture:
        # Ten samples of ten classes, each 4 × 16 px and 2 px apart.
        assert picture.size == (10 * 66 + 2, 10 * 66 + 2)
    before = file.read_bytes()
    training.pictures(tmp_path / "new")
    assert file.read_bytes() == before
    training.advance(2)
    training.pictures(tmp_path / "new")
    assert file.read_bytes() != before


def test_inception_weights_that_cannot_be_had(tmp_path: Path, data: Data) -> None:
    (tmp_path / "other.pt").write_bytes(b"no weights")
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "few.pt")
    for name in ("nowhere.pt", "other.pt", "few.pt"):
        with pytest.raises(OptionError, match="torch-fidelity"):
            inception(tmp_path / name, CPU)
    with pytest.raises(OptionError, match="torch-fidelity"):
        task(data, inception=str(tmp_path / "nowhere.pt"))


def test_settings_that_have_no_meaning(data: Data) -> None:
    with pytest.raises(OptionError, match="betas"):
        task(data, betas=(0.0, 1.0))
