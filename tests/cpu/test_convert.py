"""Conversion of models: what belongs together, what is left, and that `"same"` changes nothing."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import normforge as nf
from normforge.errors import OptionError, ParseError
from normforge.nn.activations import activation_formula
from normforge.nn.convert import SAME
from normforge.nn.norms import norm_of

LAYER = "evonorm-s0"


def moved(model: nn.Module) -> nn.Module:
    """The model with what is one value a channel moved from its start, where different norms are equal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for m in model.modules():
            for p in m.parameters(recurse=False):
                if p.dim() == 1:
                    p.add_(torch.rand(p.shape, generator=generator) * 0.5 - 0.1)
            for name, b in m.named_buffers(recurse=False):
                if name == "running_mean":
                    b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
                elif name == "running_var":
                    b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
    return model


def equal(a: torch.Tensor, b: torch.Tensor, what: str, bound: float = 1e-9) -> None:
    """float64, equal up to rounding that deep networks make larger."""
    a, b = a.detach(), b.detach()
    largest = float((a - b).abs().max()) if a.numel() else 0.0
    assert largest <= bound * (1 + float(b.abs().max())), f"{what}: {largest}"


def check_same(model: nn.Module, *inputs: torch.Tensor, **given: Any) -> Any:
    """`"same"` equals the model, in outputs and gradients, in training and in inference; what it says it did."""
    model = moved(model).double()
    inputs = tuple(x.double() for x in inputs)
    report = None
    for training in (True, False):
        old = copy.deepcopy(model).train(training)
        new, report = nf.convert(old, SAME, backend="eager", **given)
        results = []
        for m in (new, old):
            torch.manual_seed(0)
            y = m(*inputs)
            weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
            (y * weights).sum().backward()
            results.append((y.detach(), {n: p.grad for n, p in m.named_parameters()}, dict(m.named_buffers())))
        (y, gradients, buffers), (want, wanted, kept) = results
        equal(y, want, "output")
        assert gradients.keys() == wanted.keys()
        for name, g in wanted.items():
            assert (g is None) == (gradients[name] is None), name
            if g is not None:
                equal(gradients[name], g, name)
        for name, b in kept.items():
            equal(buffers[name].double(), b.double(), name)
        assert set(new.state_dict()) == set(old.state_dict())
    return report


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {  # shape, norms, with an activation
    "resnet18 of torchvision": (lambda: torchvision.models.resnet18(), (2, 3, 32, 32), 20, 9),
    "densenet": (lambda: timm.create_model("densenet121", block_config=(2, 2)), (2, 3, 32, 32), 11, 11),
    "resnetv2": (lambda: timm.create_model("resnetv2_18", layers=(1, 1, 1, 1)), (2, 3, 32, 32), 9, 9),
    "mobilenetv3": (lambda: timm.create_model("mobilenetv3_small_050"), (2, 3, 32, 32), 34, 23),
    "convnext": (
        lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
        (2, 3, 32, 32),
        9,
        0,
    ),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=3),
        (2, 3, 32, 32),
        5,
        0,
    ),
    "mobilevit, by a run": (lambda: timm.create_model("mobilevit_xxs"), (2, 3, 64, 64), 53, 25),
}


@pytest.mark.parametrize("name", MODELS)
def test_same(name: str) -> None:
    make, shape, norms, activated = MODELS[name]
    torch.manual_seed(0)
    given = {"example": torch.zeros(shape, dtype=torch.float64)} if "run" in name else {}
    report = check_same(make(), torch.randn(shape), **given)
    assert len(report.replaced) == len(report.places) == norms and not report.left
    assert sum(bool(p.activation) for p in report.places) == activated
    assert ("example" in report.how) == ("run" in name)


def test_compiled_code_in_a_model() -> None:
    """float32 kernels in place of a network's norms, in training."""
    model = moved(torchvision.models.resnet18())
    new, report = nf.convert(model, SAME, backend="c")
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(new(x), model(x), rtol=1e-3, atol=1e-4)
    assert "20 of 20 norms replaced: 11 by batchnorm, 9 by bn-relu" in str(report)


def modules_of(cls: type[nn.Module], model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, cls)]


class Block(nn.Module):
    """A residual block that calls one activation three times, as torchvision's do."""

    def __init__(self, c: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block1, self.block2 = Block(), Block()
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block2(self.block1(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("example", [None, torch.randn(2, 3, 6, 6)], ids=["traced", "run"])
def test_activations_of_sums_and_classifiers_stay(example: torch.Tensor | None, monkeypatch: Any) -> None:
    if example is not None:  # what a model that cannot be traced goes through
        monkeypatch.setattr(Net, "forward", untraceable(Net.forward))
    model = Net()
    new, report = nf.convert(model, LAYER, example=example)
    assert [p.layer for p in report.places] == [LAYER, LAYER, "x * gamma + beta", LAYER, "x * gamma + beta"]
    assert [p.activation for p in report.places] == ["ReLU", "ReLU", "", "ReLU", ""]
    assert modules_of(nn.ReLU, new) == ["block1.relu.activation", "block2.relu.activation", "head.1"]
    # The blocks by hand: the layer, and ReLU after the sum alone.
    x = torch.randn(2, 8, 6, 6)
    block = new.block1
    for _ in range(2):
        want = F.relu(block.bn2(block.conv2(block.bn1(block.conv1(x)))) + x)
        torch.testing.assert_close(block(x), want)
    with pytest.raises(OptionError, match="more often"):
        block.relu(x), block.relu(x), block.relu(x)
    torch.testing.assert_close(block(x), want)  # a pass that failed leaves nothing behind
    again = pickle.loads(pickle.dumps(copy.deepcopy(new)))
    torch.testing.assert_close(again.block1(x), want)
    assert type(model.block1.bn1) is nn.BatchNorm2d and type(model.block1.relu) is nn.ReLU  # a copy was changed


def untraceable(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x if x.mean() > -1e9 else -x)

    return run


@pytest.mark.parametrize("traced", [True, False])
def test_same_of_blocks_that_share_an_activation(traced: bool, monkeypatch: Any) -> None:
    if not traced:
        monkeypatch.setattr(Net, "forward", untraceable(Net.forward))
    check_same(Net(), torch.randn(3, 3, 6, 6), example=torch.randn(2, 3, 6, 6).double())


class Cases(nn.Module):
    """Norms that nothing is to be taken from."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.act = nn.BatchNorm2d(4), nn.SiLU()  # another value uses the norm too
        self.function = nn.BatchNorm2d(4)
        self.prelu = nn.Sequential(nn.BatchNorm2d(4), nn.PReLU())
        self.unused = nn.BatchNorm2d(4)
        self.dropped = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU())
        self.identity = nn.Sequential(nn.BatchNorm2d(4), nn.Identity(), nn.Identity(), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice(x)
        y = y + self.act(y)
        y = F.relu(self.function(y), inplace=True)
        return self.identity(self.dropped(self.prelu(y)))


@pytest.mark.parametrize("traced", [True, False])
def test_what_belongs_together(traced: bool, monkeypatch: Any) -> None:
    if not traced:
        monkeypatch.setattr(Cases, "forward", untraceable(Cases.forward))
    x = torch.randn(3, 4, 5, 5)
    new, report = nf.convert(Cases(), LAYER, example=x)
    by_name = {p.name: p for p in report.places}
    affine = "x * gamma + beta"
    assert {n: p.layer for n, p in by_name.items()} == {
        "twice": affine, "function": "", "prelu.0": affine, "unused": "", "dropped.0": affine, "identity.0": LAYER,
    }  # fmt: skip
    assert "relu" in by_name["function"].reason and "not called" in by_name["unused"].reason
    assert isinstance(new.act, nn.SiLU) and isinstance(new.dropped[2], nn.ReLU) and isinstance(new.prelu[1], nn.PReLU)
    assert isinstance(new.identity[3], nn.Identity)
    check_same(Cases(), x, example=x.double())
    kept, _ = nf.convert(Cases(), LAYER, example=x, linear="keep")
    assert isinstance(kept.twice, nn.BatchNorm2d) and isinstance(kept.identity[0], nf.Layer)
    all_over, _ = nf.convert(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), "dyt", linear="layer")
    assert all_over[0].graph.hash == nf.layers["dyt"].hash and all_over[0].channel_dim == -1


def test_a_layer_that_is_only_a_norm_leaves_activations() -> None:
    new, report = nf.convert(Net(), "groupnorm", groups=4)
    assert {p.layer for p in report.places} == {"groupnorm"} and len(modules_of(nn.ReLU, new)) == 4
    fused = timm.layers.BatchNormAct2d(8)  # whose activation stands inside
    made, _ = nf.convert(nn.Sequential(fused), "groupnorm", groups=4)
    assert made[0].graph == nf.layers["gn-relu"]


def test_what_is_kept() -> None:
    """Parameters, statistics, ε, momentum, mode, dtype and hooks of each norm; the model itself where it is asked."""
    norm = nn.BatchNorm2d(4, eps=1e-3, momentum=0.3).double()
    norm.weight.requires_grad_(False)
    norm(torch.randn(3, 4, 5, 5).double())
    norm.eval()
    seen: list[str] = []
    norm.register_forward_hook(lambda *_: seen.append("first"))
    handle = norm.register_forward_hook(lambda *_: seen.append("second"))
    model = nn.Sequential(norm, nn.ReLU())
    model[1].register_forward_hook(lambda *_: seen.append("activation"))
    new, _ = nf.convert(model, SAME, inplace=True, backend="eager")
    assert new is model and isinstance(new[0], nf.Layer)
    made = new[0]
    assert made.weight is norm.weight and made.bias is norm.bias and not made.weight.requires_grad
    assert (made.eps, made.momentum, made.training) == (1e-3, 0.3, False)
    assert made.running_var is norm.running_var and int(made.num_batches_tracked) == 1
    new(torch.randn(3, 4, 5, 5).double())
    assert seen == ["first", "second", "activation"]
    handle.remove()
    new(torch.randn(3, 4, 5, 5).double())
    assert seen[3:] == ["first", "activation"]
    half, _ = nf.convert(nn.Sequential(nn.BatchNorm2d(4)).bfloat16(), SAME)
    assert half[0].weight.dtype == torch.bfloat16 and half[0].running_mean.dtype == torch.float32


def test_which_norms() -> None:
    new, report = nf.convert(Net(), LAYER, where="block1.*")
    assert modules_of(nf.Layer, new) == ["block1.bn1", "block1.bn2"]
    assert {p.reason for p in report.left} == {"not selected by where"}
    new, _ = nf.convert(Net(), LAYER, where=lambda name, module: name.endswith("bn1") and module.num_features == 8)
    assert modules_of(nf.Layer, new) == ["block1.bn1", "block2.bn1"]
    assert isinstance(nf.convert(nn.BatchNorm2d(4), "bn-relu")[0], nf.Layer)  # the model itself
    same, report = nf.convert(nn.Linear(3, 4), LAYER)
    assert isinstance(same, nn.Linear) and str(report).endswith("no norm was found")


class Own(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Renamed(nn.BatchNorm2d):
    pass


def test_what_cannot_be_said_is_left() -> None:
    parametrized = nn.BatchNorm2d(4)
    nn.utils.parametrize.register_parametrization(parametrized, "weight", nn.Identity())
    for norm, reason in (
        (nn.BatchNorm2d(4, track_running_stats=False), "track_running_stats=False"),
        (nn.LayerNorm((4, 5)), r"several axes, \(4, 5\)"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "running statistics of single samples"),
        (torchvision.ops.FrozenBatchNorm2d(4), "constants"),
        (timm.layers.BatchNormAct2d(4, drop_layer=nn.Dropout), "drops values"),
        (timm.layers.BatchNormAct2d(4, act_layer=nn.PReLU, act_kwargs={"inplace": None}), "PReLU, is no formula"),
        (Own(4), "forward of its own"),
        (parametrized, "parametrized"),
    ):
        if "PReLU" in reason:
            norm.act = nn.PReLU()
        new, report = nf.convert(norm, SAME)
        assert type(new) is type(norm) and len(report.left) == 1
        assert re.search(reason, report.left[0].reason), report.left
    assert nf.convert(Renamed(4), SAME)[1].replaced


def test_models_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
            return self.norm(x) * scale if x.sum() > 0 else x

    with pytest.raises(OptionError, match="give example="):
        nf.convert(Branching(), LAYER)
    with pytest.raises(OptionError, match="does not run on the example"):
        nf.convert(Branching(), LAYER, example=torch.randn(2, 5))
    model = Branching().train()
    for example in ((torch.ones(2, 4), 2.0), {"x": torch.ones(2, 4), "scale": 2.0}):
        new, report = nf.convert(model, "layernorm", example=example)
        assert report.replaced and new.training and "example" in report.how


def test_mistakes() -> None:
    for wrong, error, words in (
        ({"layer": "evonorm-s9"}, ParseError, "did you mean"),
        ({"layer": None}, OptionError, "a layer is a formula"),
        ({"layer": "adaln"}, OptionError, "more than x"),
        ({"layer": LAYER, "linear": "twins"}, OptionError, "linear is one of"),
        ({"layer": LAYER, "where": 3}, OptionError, "where is"),
        ({"layer": LAYER, "model": "resnet18"}, OptionError, "takes a module"),
        ({"layer": LAYER, "model": torch.compile(nn.BatchNorm2d(4))}, OptionError, "before torch.compile"),
        ({"layer": LAYER, "model": nn.LazyBatchNorm2d()}, OptionError, "run it once"),
    ):
        with pytest.raises(error, match=words):
            nf.convert(**({"model": nn.BatchNorm2d(4)} | wrong))


T = timm.layers
ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Sigmoid(), nn.Tanh(), nn.Hardswish(),
    nn.Hardsigmoid(), nn.Hardtanh(-0.5, 2.0), nn.LeakyReLU(0.2), nn.ELU(), nn.ELU(0.7), nn.CELU(1.3), nn.SELU(),
    nn.Mish(), nn.Softplus(), nn.Softplus(2.0, 5.0), nn.Softsign(), nn.Tanhshrink(), nn.Hardshrink(0.4),
    nn.Threshold(0.3, -1.0), nn.LogSigmoid(), T.Swish(), T.Mish(), T.HardSwish(), T.HardSigmoid(), T.HardMish(),
    T.activations_me.SwishMe(), T.activations_me.MishMe(), T.activations_me.HardSwishMe(), T.GELU(), T.GELUTanh(),
    T.activations_me.HardSigmoidMe(), T.activations_me.HardMishMe(), T.QuickGELU(), T.Sigmoid(), T.Tanh(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_activations_are_torchs_and_timms(activation: nn.Module) -> None:
    formula = activation_formula(activation)
    assert formula is not None
    layer = nf.compile(formula, 8, backend="eager").double()
    x = (torch.cat([torch.randn(16, 8) * 4, torch.tensor([[-200.0, -90, -30, -1e-9, 1e-9, 30, 90, 200]])])).double()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, want = layer(a), activation(b)
    equal(y, want, formula)
    y.sum().backward(), want.sum().backward()
    # torch's own derivatives of these two have constants of float32 in them, 1/6 and 1/α.
    bound = 1e-7 if isinstance(activation, nn.Hardsigmoid | nn.CELU) else 1e-9
    equal(a.grad, b.grad, f"gradient of {formula}", bound)


NORMS = [
    (nn.BatchNorm1d(8), (4, 8)), (nn.BatchNorm1d(8, affine=False), (4, 8, 5)), (nn.BatchNorm3d(8), (2, 8, 2, 3, 4)),
    (nn.SyncBatchNorm(8).eval(), (3, 8, 4, 4)), (nn.GroupNorm(2, 8), (3, 8, 5)), (nn.LayerNorm(8), (3, 5, 8)),
    (nn.LayerNorm(8, bias=False), (3, 8)), (nn.LayerNorm(8, elementwise_affine=False), (3, 2, 2, 8)),
    (nn.RMSNorm(8), (3, 5, 8)), (nn.InstanceNorm2d(8), (3, 8, 4, 4)), (nn.InstanceNorm1d(8, affine=True), (3, 8, 6)),
    (T.LayerNorm2d(8), (3, 8, 4, 4)), (T.norm.LayerNormExp2d(8), (3, 8, 4, 4)), (T.RmsNorm(8), (3, 5, 8)),
    (T.RmsNorm2d(8), (3, 8, 4, 4)), (T.SimpleNorm(8), (3, 5, 8)), (T.SimpleNorm2d(8), (3, 8, 4, 4)),
    (T.GroupNorm1(8), (3, 8, 4, 4)), (T.GroupNormAct(8, num_groups=2), (3, 8, 4, 4)),
    (T.BatchNormAct2d(8, act_layer=nn.SiLU), (3, 8, 4, 4)), (T.norm_act.LayerNormAct(8, act_layer=nn.GELU), (3, 5, 8)),
    (T.norm_act.LayerNormAct2d(8), (3, 8, 4, 4)), (T.norm_act.RmsNormAct2d(8), (3, 8, 4, 4)),
    (T.norm_act.GroupNorm1Act(8, act_layer=nn.Mish), (3, 8, 4, 4)),
    (torchvision.models.convnext.LayerNorm2d(8), (3, 8, 4, 4)),
]  # fmt: skip


@pytest.mark.parametrize("norm, shape", NORMS, ids=[type(norm).__name__ for norm, _ in NORMS])
def test_norms_are_torchs_and_timms(norm: nn.Module, shape: tuple[int, ...]) -> None:
    assert norm_of(norm) is not None
    x = torch.randn(shape, dtype=torch.float64)
    norm = moved(norm).double()
    new, report = nf.convert(norm, SAME, backend="eager")
    assert report.replaced
    equal(new(x), norm(x), str(report))


def test_factories() -> None:
    factory = pickle.loads(pickle.dumps(nf.norm_act(LAYER)))
    assert factory(64).graph == nf.layers[LAYER]
    assert str(factory(64, apply_act=False).graph) == "x * gamma + beta"
    assert nf.norm_act("bn-relu")(8, apply_act=False).graph == nf.layers["batchnorm"]
    assert nf.norm_act("batchnorm")(8, act_layer=nn.ReLU).graph == nf.layers["bn-relu"]
    assert nf.norm_act("batchnorm")(8, act_layer="silu", inplace=True).graph == nf.layers["bn-silu"]
    assert nf.norm_act("batchnorm")(8, act_layer=nn.ReLU, apply_act=False).graph == nf.layers["batchnorm"]
    bare = nf.norm_act("bn-relu")(8, 1e-3, 0.2, False)
    assert not list(bare.parameters()) and (bare.eps, bare.momentum) == (1e-3, 0.2)
    assert nf.norm_act(LAYER, eps=1e-3)(8, eps=1e-5).eps == 1e-3
    assert nf.norm_act(LAYER)(8, group_size=2).groups == 4 and nf.norm_act(LAYER, groups=8)(8, num_groups=2).groups == 8
    made = nf.norm_act("layernorm", channel_dim=-1)(8, device="meta", dtype=torch.float64)
    assert made.weight.device.type == "meta" and made.weight.dtype == torch.float64
    for wrong in ({"drop_layer": nn.Dropout}, {"track_running_stats": False}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            nf.norm_act("bn-relu")(8, **wrong)
    with pytest.raises(OptionError, match="PReLU"):
        nf.norm_act("batchnorm")(8, act_layer=nn.PReLU)
    with pytest.raises(OptionError, match="more than x"):
        nf.norm_act("adaln")


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnetv2_18", "regnetx_002", "tv mobilenet_v2", "vit"])
def test_networks_take_a_factory(name: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    if name == "vit":
        factory = nf.norm_act("layernorm", channel_dim=-1, backend="eager")
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, norm_layer=factory)
    elif name.startswith("tv "):
        model = torchvision.models.mobilenet_v2(norm_layer=nf.norm_act("batchnorm", backend="eager"))
    else:
        model = timm.create_model(name, norm_layer=nf.norm_act(LAYER, backend="eager"))
    assert not modules_of(nn.BatchNorm2d, model) and not modules_of(nn.LayerNorm, model)
    assert modules_of(nf.Layer, model) and model(x).isfinite().all()


def test_weights_of_timms_evonorms_load() -> None:
    for theirs, name in (
        (T.EvoNorm2dB0(8), "evonorm-b0"),
        (T.EvoNorm2dS0(8, groups=4), "evonorm-s0"),
    ):
        moved(theirs)
        theirs(torch.randn(4, 8, 3, 3))
        ours = nf.compile(name, 8, groups=4, eps=theirs.eps)
        ours.load_state_dict(theirs.state_dict(), strict=False)
        x = torch.randn(2, 8, 4, 4)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
