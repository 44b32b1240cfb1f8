"""What a recipe says, beside the same written out in torch."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import normforge as nf
from normforge.errors import OptionError
from normforge.streams import stream
from normforge.train.config import Recipe, check_recipe
from normforge.train.data import Part
from normforge.train.data.batches import ArrayBatches
from normforge.train.data.mixed import mixed
from normforge.train.loop import Training, rate_at

CLASSES = 3


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nf.compile("bn-relu", 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    ).to(dtype)


def part(dtype: torch.dtype = torch.float64, count: int = 24) -> Part:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, 5, 5, generator=generator, dtype=dtype)
    return Part(images, torch.arange(count) % CLASSES)


def batches(recipe: Recipe, images: Part, **more) -> ArrayBatches:
    return ArrayBatches(images, recipe.batch, stream(0, "batches", 0), **more)


def trained(recipe: Recipe, model: nn.Module | None = None) -> Training:
    training = Training(model or network(), batches(recipe, part()), recipe)
    training.advance(recipe.steps)
    return training


def by_hand(recipe: Recipe, change=lambda model, step: None) -> tuple[nn.Module, list[torch.Tensor]]:
    """The same in torch's own operations; `change` works on gradients. Also the last linear layer's weight by step."""
    model, data, passed = network(), part(), []
    decay, rest = ([p for p in model.parameters() if (p.ndim > 1) is d] for d in (True, False))
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest}]
    if recipe.optimizer == "adamw":
        groups[1]["weight_decay"] = 0.0
        optimizer = torch.optim.AdamW(groups, lr=1.0)
    else:
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=recipe.momentum, nesterov=recipe.nesterov)
    order = stream(0, "batches", 0).permutation(len(data))
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(recipe, step)
        optimizer.zero_grad()
        chosen = torch.from_numpy(order[step * recipe.batch : (step + 1) * recipe.batch])
        for k in range(recipe.accumulate):
            some = chosen.chunk(recipe.accumulate)[k]
            logits = model(data.images[some])
            loss = cross_entropy(logits, data.labels[some], label_smoothing=recipe.smoothing)
            (loss * len(some) / recipe.batch).backward()
        change(model, step)
        optimizer.step()
        passed.append(model[-1].weight.detach().clone())
    return model, passed


@pytest.mark.parametrize(
    "settings",
    [
        {"nesterov": True, "weight_decay": 0.1},
        {"accumulate": 2, "smoothing": 0.1},
        {"optimizer": "adamw", "rate": 0.01, "weight_decay": 0.1},
        {"warmup": 1, "schedule": "constant"},
        {"rate": 0.05, "rate_for": 2},
    ],
    ids=lambda s: ",".join(s),
)
def test_steps_are_those_of_torch(settings):
    recipe = Recipe.model_validate({"steps": 3, "batch": 6, "layout": "nchw"} | settings)
    check_recipe(recipe)
    mine, (theirs, _) = trained(recipe).model, by_hand(recipe)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_norm_of_all_gradients_is_clipped():
    recipe = Recipe(steps=3, batch=6, clip_norm=0.05)
    norms = []

    def clip(model: nn.Module, step: int) -> None:
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)))

    theirs, _ = by_hand(recipe, clip)
    assert max(norms) > 0.05
    for a, b in zip(trained(recipe).model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_who_is_clipped_adaptively():
    """The classifier's weight is not, unless it is asked for, nor single numbers where they are left out."""

    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*network())
            self.gain = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def free(**settings) -> set[str]:
        model = Scaled()
        training = Training(model, batches(Recipe(), part()), Recipe(agc=0.01, **settings))
        names = {id(p): n for n, p in model.named_parameters()}
        groups = [g for g in training.optimizer.param_groups if g["agc"] is None]
        return {names[id(p)] for g in groups for p in g["params"]}

    assert free() == {"4.weight"}
    assert free(agc_classifier=True) == set()
    assert free(agc_gains=False) == {"4.weight", "gain"}
    assert free(optimizer="adamw") == {"4.weight"}


@pytest.mark.parametrize("optimizer", ("sgd", "adamw"))
@pytest.mark.parametrize("share", (0.5, "paper"))
def test_the_average_is_evaluated_and_put_back(optimizer, share):
    recipe = Recipe(steps=4, batch=6, rate=0.01, ema=share, optimizer=optimizer)
    _, weights = by_hand(recipe)
    mean = network()[-1].weight.detach()
    for step, weight in enumerate(weights):
        kept = 0.5 if share == 0.5 else (1 + step) / (10 + step)
        mean = kept * mean + (1 - kept) * weight
    training = trained(recipe)
    model, seen = training.model, []
    model[-1].register_forward_pre_hook(lambda module, x: seen.append(module.weight.detach().clone()))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    averaged, _ = training.evaluate(part())
    torch.testing.assert_close(seen[0], mean, atol=1e-7, rtol=1e-6)  # averages are kept in float32 at least
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert averaged != Training(model, batches(recipe, part()), Recipe()).evaluate(part())[0]


def test_running_statistics_are_averaged_too():
    recipe = Recipe(steps=3, batch=6, ema=0.5)
    training = Training(network(), batches(recipe, part()), recipe)
    statistics = [training.model[1].running_mean.clone()]
    for step in range(3):
        training.advance(step + 1)
        statistics.append(training.model[1].running_mean.clone())
    seen = []
    training.model[1].register_forward_pre_hook(lambda module, x: seen.append(module.running_mean.clone()))
    training.evaluate(part())
    first, *rest = statistics
    for value in rest:
        first = 0.5 * first + 0.5 * value
    torch.testing.assert_close(seen[0], first)


def test_the_schedule():
    recipe = Recipe(steps=10, warmup=4, rate=0.2, batch=512, rate_for=256)
    assert [rate_at(recipe, s) for s in range(5)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [rate_at(recipe, s) for s in (4, 7, 10)] == pytest.approx([0.4, 0.2, 0])
    assert rate_at(recipe.model_copy(update={"schedule": "constant"}), 9) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nesterov": True, "momentum": 0}, "recipe.momentum above 0"),
        ({"nesterov": True, "optimizer": "adamw"}, "recipe.nesterov=false"),
        ({"agc": 0.1, "clip_norm": 1}, "choose one"),
        ({"warmup": 200}, "lower it"),
        ({"accumulate": 3}, "does not divide recipe.batch = 64"),
        ({"ema": 1.5}, "between 0 and 1"),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    with pytest.raises(OptionError, match=words):
        check_recipe(Recipe.model_validate(settings))


# Batches


@pytest.mark.parametrize("world", (2, 3))
def test_processes_share_the_batches_of_one(world):
    recipe = Recipe(batch=6)
    whole = batches(recipe, part(count=20))
    shares = [batches(recipe, part(count=20), rank=r, world=world) for r in range(world)]
    for _ in range(5):
        images, labels = whole.next()
        for rank, share in enumerate(shares):
            mine, theirs = share.next()
            assert torch.equal(mine, images[rank::world]) and torch.equal(theirs, labels[rank::world])


def test_a_stream_of_batches_goes_on():
    recipe = Recipe(batch=6)
    one, other = (batches(recipe, part(count=20)) for _ in range(2))
    for _ in range(4):
        one.next()
    other.load_state_dict(one.state_dict())
    for _ in range(4):  # over the end of an epoch
        assert all(map(torch.equal, one.next(), other.next()))


def test_mixup_and_cutmix_take_half_of_the_images_each():
    data = part(torch.float32, 40)
    recipe = Recipe(batch=20, mixup=0.4, cutmix=1.0)
    plain = batches(recipe, data)
    made = mixed(batches(recipe, data), recipe, CLASSES, 0, data.limits)
    images, labels = made.next()
    before, hard = plain.next()
    assert images.shape == before.shape and labels.shape == (20, CLASSES)
    torch.testing.assert_close(labels.sum(1), torch.ones(20))
    partners = torch.cat([before[:10].roll(1, 0), before[10:].roll(1, 0)])
    for k in range(10):  # MixUp: every pixel by the share that the label has
        share = labels[k, hard[k]] if hard[k] != hard[(k - 1) % 10] else None
        if share is not None:
            torch.testing.assert_close(images[k], share * before[k] + (1 - share) * partners[k])
    for k in range(10, 20):  # CutMix: each pixel of one of the two
        own, other = images[k] == before[k], images[k] == partners[k]
        assert (own | other).all()
        if hard[k] != hard[10 + (k - 11) % 10]:
            assert labels[k, hard[k]].item() == pytest.approx(own.float().mean().item(), abs=1e-6)
    assert not torch.equal(images[:10], before[:10]) and not torch.equal(images[10:], before[10:])


@pytest.mark.parametrize("channels", (1, 3))
def test_random_operations_stay_within_the_range_of_the_images(channels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(70, channels, 8, 8, generator=generator)
    data = Part(images, torch.arange(70) % CLASSES)
    recipe = Recipe(batch=70, randaugment=2, magnitude=15)
    low, high = data.limits()
    changed = 0.0
    stream_of = mixed(batches(recipe, data), recipe, CLASSES, 0, data.limits)
    plain = batches(recipe, data)
    for _ in range(4):
        made, labels = stream_of.next()
        before, same = plain.next()
        assert torch.equal(labels, same) and made.dtype == torch.float32 and made.isfinite().all()
        assert ((made >= low[:, None, None] - 1e-5) & (made <= high[:, None, None] + 1e-5)).all()
        changed += (made - before).abs().amax((1, 2, 3)).gt(0.05).float().mean().item() / 4
    assert changed > 0.5


def test_mixing_draws_from_a_generator_of_its_own():
    data = part(torch.float32, 40)
    recipe = Recipe(batch=20, mixup=0.4, cutmix=1.0, randaugment=1)
    one, other = (mixed(batches(recipe, data), recipe, CLASSES, 7, data.limits) for _ in range(2))
    before = torch.get_rng_state()
    one.next()
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        assert all(map(torch.equal, one.next(), other.next()))


def test_nothing_asked_is_nothing_mixed():
    data = part(torch.float32)
    plain = batches(Recipe(), data)
    assert mixed(plain, Recipe(), CLASSES, 0, data.limits) is plain


def test_soft_labels_are_learnt_from():
    data = part(torch.float32)
    recipe = Recipe(steps=2, batch=12, mixup=1.0, smoothing=0.1, accumulate=2)
    training = Training(network(torch.float32), mixed(batches(recipe, data), recipe, CLASSES, 0, data.limits), recipe)
    assert math.isfinite(training.advance(2))
