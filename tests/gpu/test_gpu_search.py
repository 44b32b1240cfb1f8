"""The search's training on a GPU: a step captured as a CUDA graph is the step that it was."""

import pytest
import torch

pytest.importorskip("pydantic")  # which a machine with a GPU and no network may lack

from normforge.ir import parse
from normforge.search.config import load
from normforge.search.evaluate import run_task
from normforge.search.funnel import Fate
from normforge.search.tasks import Task
from normforge.streams import stream
from normforge.train.config import Recipe
from normforge.train.data import load_data
from normforge.train.loop import _WARM, Training
from normforge.train.networks import build, compiled

QUICK = load("demo", ["recipe.steps=8", "quality.steps=4", "quality.threshold=0", "stability.steps=2"])


def trained(captured: bool) -> Training:
    part = load_data(QUICK.data).train.to("cuda")
    layer = compiled(parse("evonorm-s0"))
    model = build("resnet", QUICK.networks, layer, in_channels=1, classes=10, size=8, seed=0).to("cuda")
    training = Training(model, part, Recipe(steps=_WARM + 5), stream(0, "batches", 0))
    if not captured:
        training._step = training._whole_step
    training.advance(_WARM + 5)
    return training


def test_a_captured_step_trains_alike():
    with_graph, without = trained(captured=True), trained(captured=False)
    assert with_graph._captured is not None and without._captured is None
    for ours, theirs in zip(with_graph.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_layer_goes_through_the_funnel():
    outcome = run_task(Task("0", parse("evonorm-s0"), QUICK))
    assert outcome.fate is Fate.SCORED, outcome.reason
    assert outcome.peak > 0
