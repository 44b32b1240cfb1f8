"""Signal propagation: what is measured, what is predicted, and the command that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from test_cli import call as call_any
from test_nfnets import small
from torch import nn

from normforge.errors import OptionError, ShapeError
from normforge.nn import nf_resnet, nfnet, signal_propagation
from normforge.testing import assert_close


def test_a_resnet_follows_its_prediction() -> None:
    """The variances that one network had when they were first measured, to the two digits written down then."""
    rows = []
    for seed in range(8):
        torch.manual_seed(seed)
        rows.append(signal_propagation(nf_resnet(50, num_classes=0), size=56, seed=seed)[1:7])
    measured = torch.tensor([[row.variance for row in some] for some in rows])
    # Three deviations of the difference between one network and the mean of eight.
    spread = 3 * measured.std(0) * (1 + 1 / len(rows)) ** 0.5
    expected = torch.tensor([1.03, 1.07, 1.11, 1.02, 1.05, 1.08])
    assert bool(((measured.mean(0) - expected).abs() <= spread + 0.005).all()), measured.mean(0)
    predicted = torch.tensor([row.predicted for row in rows[0]])
    assert_close(predicted, [1.04, 1.08, 1.12] * 2, "float32")
    # Zeros beyond the edges take some of it away.
    assert bool((measured.mean(0) < predicted).all())
    assert all(row.squared_mean < 0.01 for some in rows for row in some)


def test_an_nfnet_cannot_on_noise() -> None:
    """Each average pool of a shortcut quarters the variance of noise."""
    torch.manual_seed(0)
    model = nfnet("nfnet_f0", num_classes=0)
    rows = {row.name: row for row in signal_propagation(model, size=128, batch=2)}
    assert list(rows) == ["stem", *(f"stages.{s}.{i}" for s, depth in enumerate((1, 2, 6, 3)) for i in range(depth))]
    assert (rows["stem"].predicted, round(rows["stages.3.2"].predicted or 0, 2)) == (1, 1.12)
    before = ("stages.0.0", "stages.1.1", "stages.2.5")
    for last, first in zip(before, ("stages.1.0", "stages.2.0", "stages.3.0"), strict=True):
        assert 3 < rows[last].variance / rows[first].variance < 8
    assert all(row.squared_mean < 0.01 for row in rows.values())


def test_the_model_is_left_alone() -> None:
    for model in (small(), timm.create_model("resnet18")):
        before = {n: p.clone() for n, p in model.state_dict().items()}
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        first, second = (signal_propagation(model, size=32, batch=2) for _ in range(2))
        assert first == second and first != signal_propagation(model, size=32, batch=2, seed=1)
        assert model.training
        assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
        alone = signal_propagation(model, size=32, batch=2, branches=False)
        assert alone[0] == first[0] and alone[-1].variance < first[-1].variance
    shortcuts = signal_propagation(small(), size=32, batch=2, branches=False)
    assert shortcuts[2].variance == shortcuts[3].variance


@pytest.mark.parametrize(
    ("name", "size", "names"),
    [
        ("resnet18", 32, ["stem", "layer1.0", "layer1.1", "layer2.0"]),
        ("densenet121", 32, ["stem", "features.denseblock1.denselayer1", "features.denseblock1.denselayer2"]),
        ("vit_tiny_patch16_224", None, ["stem", "blocks.0", "blocks.1"]),
        ("test_nfnet", 32, ["stem", "stages.0.0", "stages.1.0"]),
    ],
)
def test_blocks_of_timm(name: str, size: int | None, names: list[str]) -> None:
    rows = signal_propagation(timm.create_model(name), size=size, batch=2)
    assert [row.name for row in rows][: len(names)] == names
    assert all(row.variance > 0 and row.predicted is None for row in rows)


def test_values_are_those_of_the_block() -> None:
    torch.manual_seed(0)
    model = small().double().eval()
    row = signal_propagation(model, size=32, batch=3, branches=False)[1]
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        y = model.stages[0](model.stem(x))
    torch.testing.assert_close(row.squared_mean, float((y.mean((0, 2, 3)) ** 2).mean()))
    torch.testing.assert_close(row.variance, float(y.var((0, 2, 3), correction=0).mean()))


def test_mistakes() -> None:
    with pytest.raises(OptionError, match="no blocks are known of Sequential"):
        signal_propagation(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(OptionError, match="takes no images"):
        signal_propagation(timm.create_model("vit_tiny_patch16_224"), size=50)
    with pytest.raises(ShapeError, match="at least 1"):
        signal_propagation(small(), batch=0)


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    return call_any(monkeypatch, capsys, "signal", *arguments)


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    png = tmp_path / "signal.png"
    code, out, err = call(monkeypatch, capsys, "nf_resnet50", "--size", "32", "--batch", "2", "--out", str(png))
    lines = out.splitlines()
    assert code == 0 and not err and lines[0].split() == ["after", "squared", "mean", "variance", "predicted"]
    assert lines[2].split()[::3] == ["stages.0.0", "1.04"] and len(lines) == 1 + 17 + 1
    assert png.read_bytes().startswith(b"\x89PNG") and lines[-1] == f"drawn into {png}"
    code, converted, _ = call(monkeypatch, capsys, "resnet18", "--layer", "evonorm-s0", "--size", "32", "--batch", "2")
    plain = call(monkeypatch, capsys, "resnet18", "--size", "32", "--batch", "2")[1]
    assert code == 0 and converted != plain and "layer4.1" in converted
    assert call(monkeypatch, capsys, "resnet18", "--size", "32", "--batch", "2")[1] == plain
    theirs = call(monkeypatch, capsys, "timm/nf_resnet50", "--size", "32", "--batch", "2", "--no-branches")[1]
    assert "stages.0.0" in theirs and "1.04" not in theirs


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["nf_resnet51"], "did you mean 'nf_resnet5"),
        (["nfnet_f0", "--layer", "bn-relu"], "leave out --layer"),
        (["resnet18", "--layer", "evonorm-zz"], "did you mean"),
        (["resnet18", "--size", "32", "--batch", "2", "--out", "unused/a.png"], "cannot draw"),
        (["resnet18", "--size", "32", "--batch", "1"], "more than 1 value per channel"),
        (["vit_tiny_patch16_224", "--size", "50", "--batch", "1"], "takes no images"),
        (["resnet18", "--size", "0"], "--size"),
    ],
)
def test_mistakes_of_the_command(
    arguments: list[str], phrase: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 2 and phrase in err and "Traceback" not in out + err
