import math

import pytest
import torch
from torch import nn

from normforge.ir import layers, parse
from normforge.kernels.module import Layer
from normforge.search.config import Config, Network, Recipe, Stability, load
from normforge.search.data import digits
from normforge.search.evaluate import run_task
from normforge.search.funnel import Fate
from normforge.search.proxy import compiled, resnet_v2
from normforge.search.stability import gradient_ascent
from normforge.search.streams import stream
from normforge.search.tasks import Task
from normforge.search.train import Diverged, Training, evaluate

QUICK = load(
    "demo", ["network.widths=8,16", "recipe.steps=6", "quality.steps=3", "quality.threshold=0", "stability.steps=2"]
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(name: str, config: Network = QUICK.network, seed: int = 0) -> nn.Module:
    return resnet_v2(config, compiled(parse(name)), in_channels=1, classes=10, seed=seed)


def task(name: str, **fields) -> Task:
    return Task("0", parse(name).to_json(), QUICK, **fields)


def test_digits_are_split_without_overlap():
    data = digits(0)
    assert [len(p.labels) for p in (data.train, data.validation, data.test)] == [1000, 397, 400]
    images = torch.cat([p.images for p in (data.train, data.validation, data.test)])
    assert len(images.unique(dim=0)) >= 1795  # the data set itself repeats an image at most
    assert images[:1000].mean().abs() < 1e-5
    assert not torch.equal(digits(1).train.images, data.train.images)


def test_every_norm_act_is_replaced():
    model = network("evonorm-s0", Network())
    replaced = [m.channels for m in model.modules() if isinstance(m, Layer)]
    assert len(replaced) == 3 * 3 + 1
    stock = (nn.ReLU, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    assert not any(isinstance(m, stock) for m in model.modules())
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_weights_are_named_by_the_seed_alone():
    torch.manual_seed(5)
    one = network("bn-relu", seed=3).state_dict()
    torch.manual_seed(6)
    assert all(torch.equal(v, one[k]) for k, v in network("bn-relu", seed=3).state_dict().items())


def test_training_in_pieces_is_training_in_one():
    weights = []
    for pieces in ((6,), (2, 6)):
        training = Training(network("gn-silu"), digits(0).train, QUICK.recipe, stream(0, "batches", 0))
        for steps in pieces:
            training.advance(steps)
        evaluate(training.model, digits(0).validation)
        weights.append(torch.cat([p.flatten() for p in training.model.parameters()]))
    assert torch.equal(*weights)


def test_vectors_do_not_decay():
    recipe = Recipe(steps=1, momentum=0, weight_decay=1e-2)
    training = Training(network("evonorm-s0"), digits(0).train, recipe, stream(0, "batches", 0))
    decay = {id(p): g["weight_decay"] for g in training._optimizer.param_groups for p in g["params"]}
    for name, p in training.model.named_parameters():
        assert decay[id(p)] == (
            1e-2 if name.endswith(("conv1.weight", "conv2.weight", "conv3.weight")) or p.ndim == 4 else 0
        )


def test_a_training_that_diverges_ends_early():
    training = Training(network("x * gamma + beta"), digits(0).train, Recipe(steps=50, rate=1e6), stream(0, "b", 0))
    with pytest.raises(Diverged, match="at step"):
        training.advance(50)
    assert training.done < 50


def test_the_attack_climbs():
    part = digits(0).train
    batch = part.images[:16], part.labels[:16]
    start, steps, stable = gradient_ascent(network("bn-relu"), *batch, Stability(steps=0))
    assert stable and steps == 0
    climbed, steps, stable = gradient_ascent(network("bn-relu"), *batch, Stability(steps=5))
    assert stable and steps == 5 and climbed > start
    largest, steps, stable = gradient_ascent(network("bn-relu"), *batch, Stability(steps=5, threshold=start * 1.001))
    assert not stable and 0 < steps <= 5 and largest > start


def test_a_good_layer_is_scored_the_same_each_time():
    first, again = run_task(task("gn-silu")), run_task(task("gn-silu"))
    assert first.fate is Fate.SCORED
    assert list(first.seconds) == ["probing", "quality", "stability", "full"]
    assert (first.loss, first.accuracy) == (again.loss, again.accuracy)
    assert first.test is None
    final = run_task(task("gn-silu", repeat=1, final=True))
    assert final.test is not None and final.loss != first.loss


@pytest.mark.parametrize(
    ("formula", "overrides", "fate", "reason"),
    [
        ("exp(exp(exp(square(x * 3)))) * gamma + beta", [], Fate.PROBING, "not finite"),
        ("x * 0 * gamma + beta", [], Fate.PROBING, "dx is zero"),
        ("bn-relu", ["quality.threshold=1"], Fate.QUALITY, "below 100%"),
        ("bn-relu", ["stability.threshold=1e-9"], Fate.STABILITY, "gradient norm"),
        ("relu(x) * gamma + beta", ["recipe.rate=1e4"], Fate.QUALITY, "loss"),
    ],
)
def test_refusals_carry_their_reason(formula, overrides, fate, reason):
    config = load("demo", ["network.widths=8", "recipe.steps=4", "quality.steps=3", "quality.threshold=0", *overrides])
    outcome = run_task(Task("0", parse(formula).to_json(), config))
    assert outcome.fate is fate
    assert reason in outcome.reason
    assert outcome.loss is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bn-relu", "gn-relu", "gn-silu", "evonorm-b0", "evonorm-s0"])
def test_the_baselines_pass_the_funnel(name):
    outcome = run_task(Task("0", layers[name].to_json(), Config()))
    assert outcome.fate is Fate.SCORED
    assert outcome.loss is not None and math.isfinite(outcome.loss)
    assert outcome.accuracy is not None and outcome.accuracy > 0.9
