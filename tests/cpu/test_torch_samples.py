"""torch's own samples of its norms (`torch.testing._internal.common_modules`), computed by the layers they become."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.common_modules import module_db

import normforge as nf
from normforge.errors import ShapeError

NORMS = ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")
INFOS = [i for i in module_db if i.module_cls.__name__.startswith(NORMS)]
UNBATCHED = {nn.InstanceNorm1d: 2, nn.InstanceNorm2d: 3, nn.InstanceNorm3d: 4}  # axes of one sample


def test_there_are_samples() -> None:
    assert len(INFOS) == 9


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("info", INFOS, ids=lambda i: i.module_cls.__name__)
@pytest.mark.filterwarnings("ignore")
def test_samples(info: Any, training: bool) -> None:
    samples = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=training)
    seen: Counter[str] = Counter()
    for sample in samples:
        made, given = sample.constructor_input, sample.forward_input
        norm = info.module_cls(*made.args, **made.kwargs, device="cpu", dtype=torch.float64).train(training)
        with torch.no_grad():
            for p in norm.parameters():
                p.add_(torch.randn_like(p) * 0.3)
        layer, report = nf.convert(norm, "same", backend="c")
        x = given.args[0]
        if report.left:
            seen["left"] += 1
            assert any(why in report.left[0].reason for why in ("track_running_stats", "running stat", "several axes"))
            continue
        if x.dim() == UNBATCHED.get(info.module_cls):
            seen["unbatched"] += 1
            with pytest.raises(ShapeError, match="batch axis"):
                layer(x)
            continue
        if x.numel() == 0:
            assert layer(x).shape == norm(x).shape
            continue
        seen["same"] += 1
        torch.testing.assert_close(layer(x), norm(x), msg=str(made))
        theirs = dict(norm.named_buffers())
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(buffer, theirs[name], msg=name)
        nf.freeze(layer)  # gradcheck calls many times
        if not layer.running or not training:
            torch.autograd.gradcheck(layer, (x,), fast_mode=True, check_batched_grad=True)
            torch.autograd.gradgradcheck(layer, (x,), fast_mode=True, check_batched_grad=True)
    assert seen["same"]


@pytest.mark.parametrize(
    "factory", [{"device": "meta"}, {"dtype": torch.float64}, {"device": "cpu", "dtype": torch.float16}]
)
def test_factory_arguments(factory: dict[str, Any]) -> None:
    theirs, ours = nn.BatchNorm2d(4, **factory), nf.compile("batchnorm", 4, **factory)
    for name in ("weight", "bias", "running_mean"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.device == b.device and (a.dtype == b.dtype or name == "running_mean")
