import math

import pytest
import torch
from torch import nn

from normforge.ir import layers, parse
from normforge.search.config import Config, Stability, load
from normforge.search.double_backward import FastDoubleBackward
from normforge.search.evaluate import Evaluation, run_task
from normforge.search.funnel import Fate
from normforge.search.objectives import margin, traffic
from normforge.search.stability import gradient_ascent
from normforge.search.tasks import Task
from normforge.streams import stream
from normforge.train.config import DataConfig, Recipe
from normforge.train.data import load_data
from normforge.train.data.batches import ArrayBatches
from normforge.train.loop import Diverged, Training, evaluate
from normforge.train.networks import build, compiled

TINY = [
    "networks.resnet.width=0.03125",
    "networks.resnet.depths=1,1",
    "networks.mobilenet.width=0.1",
    "recipe.steps=6",
    "quality.steps=3",
    "quality.threshold=0",
    "stability.steps=2",
]
QUICK = load("digits", TINY)
BOTH = load("digits", [*TINY, "networks.use=resnet,mobilenet"])


pytestmark = pytest.mark.usefixtures("one_thread")


def network(name: str, seed: int = 0) -> nn.Module:
    return build("resnet", QUICK.networks, compiled(parse(name)), in_channels=1, classes=10, size=8, seed=seed)


def task(name: str, config: Config = QUICK, **fields) -> Task:
    return Task("0", parse(name), config, **fields)


def training(name: str, recipe: Recipe = QUICK.recipe) -> Training:
    batches = ArrayBatches(load_data(DataConfig()).train, recipe.batch, stream(0, "batches", 0))
    return Training(network(name), batches, recipe)


def test_training_in_pieces_is_training_in_one():
    weights = []
    for pieces in ((6,), (2, 6)):
        t = training("gn-silu")
        for steps in pieces:
            t.advance(steps)
        evaluate(t.model, load_data(DataConfig()).validation, t.recipe)
        weights.append(torch.cat([p.flatten() for p in t.model.parameters()]))
    assert torch.equal(*weights)


def test_sgd_is_torchs_on_the_same_batches():
    recipe = Recipe(steps=4, batch=8, rate=0.05, weight_decay=1e-2, nesterov=True)
    t, reference = training("gn-silu", recipe), network("gn-silu")
    t.advance(4)
    part, rng = load_data(DataConfig()).train, stream(0, "batches", 0)
    order = rng.permutation(len(part.labels))
    decay = [p for p in reference.parameters() if p.ndim > 1]
    plain = [p for p in reference.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 1e-2}, {"params": plain}], lr=0.05, momentum=0.9, nesterov=True
    )
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 4))
        batch = torch.from_numpy(order[8 * step : 8 * step + 8])
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(part.images[batch]), part.labels[batch]).backward()
        optimizer.step()
    for ours, theirs in zip(t.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_constant_schedule_keeps_the_rate():
    rates = {}
    for schedule in ("constant", "cosine"):
        t = training("gn-silu", Recipe(steps=4, schedule=schedule))
        t.advance(3)
        rates[schedule] = t.optimizer.param_groups[0]["lr"]
    assert rates["constant"] == 0.1
    assert rates["cosine"] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 2 / 4)))


def test_vectors_do_not_decay():
    t = training("evonorm-s0", Recipe(steps=1, momentum=0, weight_decay=1e-2))
    decay = {id(p): g["weight_decay"] for g in t.optimizer.param_groups for p in g["params"]}
    for p in t.model.parameters():
        assert decay[id(p)] == (1e-2 if p.ndim > 1 else 0)


@pytest.mark.parametrize("setting", [{"layout": "nchw"}, {"dtype": "bfloat16"}])
def test_layout_and_dtype_change_speed_not_meaning(setting):
    plain, other = training("gn-silu"), training("gn-silu", QUICK.recipe.model_copy(update=setting))
    plain.advance(2)
    other.advance(2)
    data = load_data(DataConfig()).validation
    (loss, _), (again, _) = (evaluate(t.model, data, t.recipe) for t in (plain, other))
    if "layout" in setting:
        assert loss == pytest.approx(again, rel=1e-4)
        assert plain.model.stages[0].blocks[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    else:
        assert loss != again and loss == pytest.approx(again, rel=0.05)  # eight bits of mantissa


def test_a_training_that_diverges_ends_early():
    t = training("x * gamma + beta", Recipe(steps=50, rate=1e6))
    with pytest.raises(Diverged, match="at step"):
        t.advance(50)
    assert t.done < 50


def test_the_attack_climbs():
    part = load_data(DataConfig()).train
    batch = part.images[:16], part.labels[:16]
    start, steps, stable = gradient_ascent(network("bn-relu"), *batch, Stability(steps=0))
    assert stable and steps == 0
    climbed, steps, stable = gradient_ascent(network("bn-relu"), *batch, Stability(steps=5))
    assert stable and steps == 5 and climbed > start
    raw, steps, stable = gradient_ascent(network("bn-relu"), *batch, Stability(steps=1, direction="raw", rate=1e-12))
    assert stable and raw == pytest.approx(start)
    largest, steps, stable = gradient_ascent(network("bn-relu"), *batch, Stability(steps=5, threshold=start * 1.001))
    assert not stable and 0 < steps <= 5 and largest > start


@pytest.mark.parametrize(
    ("weight", "options"),
    [((4, 1, 3, 3), {"groups": 4, "stride": 2, "padding": 1}), ((8, 2, 3, 3), {"groups": 2, "dilation": (1, 2)})],
)
def test_grouped_convolutions_are_differentiated_twice_as_they_are(weight, options):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 5, 5), weight, weight[:1])
    x, w, b = (torch.randn(s, generator=generator, dtype=torch.double).requires_grad_() for s in shapes)
    with FastDoubleBackward():
        assert torch.autograd.gradcheck(lambda *a: nn.functional.conv2d(*a, **options), (x, w, b))
        assert torch.autograd.gradgradcheck(lambda *a: nn.functional.conv2d(*a, **options), (x, w, b))
        assert type(nn.functional.conv2d(x, w, **options).grad_fn).__name__ == "_ConvolutionBackward"
        ours = nn.functional.conv2d(x, w, b, **options)
    torch.testing.assert_close(ours, nn.functional.conv2d(x, w, b, **options))


def test_a_good_layer_is_scored_the_same_each_time_on_every_network():
    first, again = run_task(task("gn-silu", BOTH)), run_task(task("gn-silu", BOTH))
    assert first.fate is Fate.SCORED
    assert list(first.seconds) == ["probing", "quality", "stability", "full"]
    assert list(first.scores) == list(first.loss) == list(first.accuracy) == ["resnet", "mobilenet"]
    assert first.scores == first.loss == again.loss and first.loss["resnet"] != first.loss["mobilenet"]
    assert not first.test and not first.holdout
    final = run_task(task("gn-silu", BOTH, repeat=1, final=True))
    assert list(final.test) == list(final.holdout) == ["resnet", "mobilenet"]
    assert final.loss != first.loss


def test_known_pieces_are_not_computed_again():
    first = run_task(task("gn-silu", BOTH))
    again = run_task(task("gn-silu", BOTH, known=first.pieces))
    assert again.cached == len(first.pieces) == 6
    assert again.scores == first.scores and again.gradient == first.gradient
    partly = {k: v for k, v in first.pieces.items() if k != "full/mobilenet"}
    third = run_task(task("gn-silu", BOTH, known=partly))
    assert third.cached == 5 and third.scores == first.scores
    forged = {**first.pieces, "quality/resnet": {"refused": ["quality", "planted"]}}
    refused = run_task(task("gn-silu", BOTH, known=forged))
    assert (refused.fate, refused.reason) == (Fate.QUALITY, "planted (resnet)")


def test_a_final_training_may_be_longer():
    config = load("digits", [*TINY, "final.longer=2"])
    evaluation = Evaluation(task("gn-silu", config, final=True))
    evaluation.run()
    assert evaluation.recipe.steps == 12


def test_further_objectives():
    names = "traffic,small_batch,shift,margin"
    outcome = run_task(task("gn-silu", load("digits", [*TINY, f"objectives.also={names}", "objectives.score=error"])))
    assert list(outcome.scores) == ["resnet", *names.split(",")]
    assert outcome.scores["resnet"] == pytest.approx(1 - outcome.accuracy["resnet"])
    assert outcome.scores["traffic"] == traffic(layers["gn-silu"]) == 2 + 3  # one read and write, two reads and a write
    assert outcome.scores["margin"] == pytest.approx(margin(outcome.gradient))
    assert 10 ** outcome.scores["margin"] == pytest.approx(outcome.gradient["resnet"])
    assert 0 <= outcome.scores["small_batch"] <= 1
    assert outcome.scores["shift"] > 0 and outcome.scores["shift"] != outcome.loss["resnet"]


@pytest.mark.parametrize(
    ("formula", "overrides", "fate", "reason"),
    [
        ("exp(exp(exp(square(x * 3)))) * gamma + beta", [], Fate.PROBING, "not finite"),
        ("x * 0 * gamma + beta", [], Fate.PROBING, "dx is zero"),
        ("bn-relu", ["quality.threshold=10"], Fate.QUALITY, "below 55"),
        ("bn-relu", ["stability.threshold=1e-9"], Fate.STABILITY, "gradient norm"),
        ("relu(x) * gamma + beta", ["recipe.rate=1e4"], Fate.QUALITY, "loss"),
    ],
)
def test_refusals_carry_their_reason(formula, overrides, fate, reason):
    outcome = run_task(task(formula, load("digits", [*TINY, *overrides])))
    assert outcome.fate is fate
    assert reason in outcome.reason
    assert not outcome.loss


def test_what_one_network_refuses_is_not_trained_on_the_next():
    config = load("digits", [*TINY, "networks.use=mobilenet,resnet", "quality.threshold=9.99"])
    outcome = run_task(task("gn-silu", config))
    assert outcome.fate is Fate.QUALITY and "(mobilenet)" in outcome.reason
    assert list(outcome.accuracy) == ["mobilenet"] and list(outcome.seconds) == ["probing", "quality"]


def test_early_stopping_needs_a_bad_loss_on_every_network():
    config = load("digits", [*TINY, "networks.use=resnet,mobilenet", "early.keep=0.5"])
    halfway = run_task(task("gn-silu", config)).halfway
    assert list(halfway) == ["resnet", "mobilenet"]
    below, above = ({n: v * f for n, v in halfway.items()} for f in (0.99, 1.01))
    stopped = run_task(task("gn-silu", config, limits=below))
    assert stopped.fate is Fate.EARLY and "not among the best 50%" in stopped.reason and "full" not in stopped.seconds
    assert run_task(task("gn-silu", config, limits=above)).fate is Fate.SCORED
    assert run_task(task("gn-silu", config, limits=below | {"mobilenet": above["mobilenet"]})).fate is Fate.SCORED


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bn-relu", "gn-relu", "gn-silu", "evonorm-b0", "evonorm-s0"])
def test_the_baselines_pass_the_funnel(name):
    outcome = run_task(Task("0", layers[name], load("digits", ["networks.use=resnet,mobilenet,efficientnet"])))
    assert outcome.fate is Fate.SCORED
    assert all(math.isfinite(v) for v in outcome.loss.values())
    assert min(outcome.accuracy.values()) > 0.8
