"""Probing: known layers pass at every size tried, broken ones are refused with a reason, and the numbers are right."""

from __future__ import annotations

import math

import pytest
import torch
from named import LAYERS, NORMS

import normforge as nf
from normforge.ir import layers, parse
from normforge.passes import Check, Degeneracy
from normforge.probing.probe import DEPTH, NEEDED, NOISE, OTHERS, probe, propagate, trials
from normforge.probing.reproducible import quantised_weights
from normforge.streams import stream
from normforge.testing import tolerance


@pytest.mark.parametrize("name", [*LAYERS, *NORMS])
def test_no_named_layer_is_refused(name: str) -> None:
    graph = layers[name]
    assert Degeneracy().run(graph) == ()
    for width, depth in ((8, 4), (32, 12), (48, 24)):
        assert probe(graph, width=width, depth=depth).findings == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, *NORMS])
def test_no_named_layer_is_refused_at_any_size(name: str) -> None:
    for width in (2, 3, 8, 16, 32, 48, 64, 128):  # of one channel, layernorm-gelu is zero
        for depth in (1, 4, 12, 24, 50):
            assert probe(layers[name], width=width, depth=depth, seed=width + depth).findings == ()


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("exp(exp(x))", "y is not finite on noise of size 10"),
        ("exp(exp(exp(square(x * 3))))", "y is not finite on normal noise"),
        ("max(x, 40)", "dx is zero on normal noise"),
        ("x * square(x)", "activations are not finite after"),
        ("x * 10 + tanh(x)", "explodes"),
        ("tanh(x * 1e-2)", "dies out"),
        ("x * 1.3 + min(exp(x), 1)", "gradients are not finite 1 of them back"),  # 0 · ∞ wherever exp overflows
    ],
)
def test_refused(formula: str, reason: str) -> None:
    (finding,) = probe(parse(formula)).findings
    assert finding.stage is Check.PROBING
    assert reason in finding.reason
    assert finding.node == str(parse(formula))


def test_remarks_do_not_refuse() -> None:
    probed = probe(parse("tanh(x / sqrt(abs(x)))"))
    assert probed.findings == ()
    assert probed.remarks["zeros"] == "y is not finite"


def test_trials_name_every_input() -> None:
    found = trials(parse("relu(x)"))
    assert tuple(found) == (*NEEDED, *OTHERS)
    assert found[NOISE] == ""
    assert trials(parse("gamma"))[NOISE] == "dx is zero"


def test_propagation_is_what_its_words_say() -> None:
    """A stack written out by hand, two layers deep, in torch and float64."""
    found = propagate(parse("relu(x)"), depth=2, width=6, size=5, batch=4, seed=3)
    assert found.forward_ok and found.backward_ok
    assert (len(found.mean), len(found.variance), len(found.gradient)) == (3, 3, 3)
    rng = stream(3, "propagation", 6)
    x, cotangent = (torch.tensor(rng.standard_normal((4, 6, 5, 5))) for _ in range(2))
    y = x.requires_grad_()
    for _ in range(2):
        weight = rng.standard_normal((6, 6, 3, 3)) * math.sqrt(2 / 54)
        y = torch.nn.functional.conv2d(y, torch.tensor(quantised_weights(weight)), padding=1).clamp(min=0)
    channels = y.detach().transpose(0, 1).reshape(6, -1)
    allowed = tolerance("float32", 54)
    assert found.variance[2] == pytest.approx(float(channels.var(1, unbiased=False).mean()), rel=allowed)
    assert found.mean[2] == pytest.approx(float(channels.mean(1).square().mean()), rel=allowed)
    (dx,) = torch.autograd.grad(y, x, cotangent)
    assert found.gradient[0] == pytest.approx(float(dx.norm()), rel=allowed)


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert propagate(layers["gn-silu"], depth=3) == propagate(layers["gn-silu"], depth=3)
    assert propagate(layers["gn-silu"], depth=3) != propagate(layers["gn-silu"], depth=3, seed=1)


def test_check_puts_the_stages_together() -> None:
    report = nf.check(parse("x * square(x)"))
    assert [f.stage for f in report.findings] == [Check.PROBING]
    assert not report.ok
    assert nf.check(parse("x * square(x)"), probe=False).ok
    stages = ["type", "dependence", "range", "form", "probing, alone", "probing, propagation", "signal", "behaviour"]
    assert list(report.seconds) == stages
    good = nf.check(layers["gn-silu"])
    assert good.ok and good.propagation is not None and good.propagation.depth == DEPTH
    assert good.properties["traffic"] == [2, 3, 5]
    early = nf.check(parse("x / 0"))
    assert early.findings[0].stage is Check.RANGE and early.propagation is None
