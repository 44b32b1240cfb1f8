"""NFNets and NF-ResNets: against a reference written apart, against timm, and every number that is published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import nfnets_reference as ref
import pytest
import reference
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import normforge as nf
from normforge.errors import OptionError
from normforge.nn import NormFreeNet, ScaledConv2d, fold, gamma_of, load_pretrained, nf_resnet, nfnet
from normforge.nn.nfnets import Config, named
from normforge.nn.nfnets.blocks import NormFreeBlock
from normforge.nn.nfnets.config import nfnet_config
from normforge.testing import assert_close

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
GELU, RELU = 1.7015043497085571, 1.7139588594436646  # of the authors' code


def equal(got: Tensor, want: Tensor, what: str, length: int, order: int = 0) -> None:
    """Up to rounding of float64 sums of `length` terms."""
    got, want = got.detach(), want.detach()
    reference.compare(got, want, reference.tolerance(torch.float64, length, float(want.abs().max()), order), what)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moved(model: nn.Module) -> nn.Module:
    """In float64, with gains, biases and skip gains away from their starts."""
    generator = torch.Generator().manual_seed(1)
    model = model.double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("gain"):
                p.copy_(0.5 + torch.rand(p.shape, generator=generator))
            elif name.endswith("bias"):
                p.copy_(0.4 * torch.rand(p.shape, generator=generator) - 0.2)
    return model


def blocks_of(model: nn.Module) -> list[NormFreeBlock]:
    return [m for m in model.modules() if isinstance(m, NormFreeBlock)]


def small(**given: object) -> NormFreeNet:
    """The network of `ref.small_kind`."""
    config = Config(
        (1, 2, 1, 1), (32, 64, 64, 96), (4, 8, 8, 16), "gelu_tanh", 0.5, 16, True, "se", 0.5, 64, True, True,
        gamma="authors",
    )  # fmt: skip
    return NormFreeNet(replace(config, **given), 10)  # type: ignore[arg-type]


NETWORKS = {
    "small": lambda: (ref.small_kind(GELU), small(), 10),
    "nfnet_f0": lambda: (ref.nfnet_kind(0, GELU), nfnet("nfnet_f0", gamma="authors"), 1000),
    "nf_resnet50": lambda: (ref.resnet_kind(DEPTHS[50], RELU), nf_resnet(50, gamma="authors"), 1000),
    "nf_resnet50 with se": lambda: (
        ref.resnet_kind((2, 1, 1, 1), RELU, 0.25, (64, 32, 48, 32)),
        NormFreeNet(
            replace(nf_resnet(50, se=True, gamma="authors").config, depths=(2, 1, 1, 1), widths=(64, 32, 48, 32))
        ),
        1000,
    ),
    "nfnet_f1": lambda: (ref.nfnet_kind(1, GELU), nfnet("nfnet_f1", gamma="authors"), 1000),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * n.startswith("nfnet")) for n in NETWORKS])
def test_against_the_reference(name: str) -> None:
    """Logits and gradients of all parameters, in float64; 48 pixels, which is 3 before the last stage: odd."""
    with torch.device("meta"):
        kind, model, classes = NETWORKS[name]()
    model = model.double().to_empty(device="cpu")
    arrays = ref.random_tree(kind, classes=classes)
    load_pretrained(model.eval(), arrays)
    tree = {m: {n: torch.from_numpy(a).requires_grad_() for n, a in e.items()} for m, e in arrays.items()}
    x = noise(2, 3, 48, 48)
    got, want = model(x), ref.forward(kind, tree, x)
    equal(got, want, "logits", model.num_features)
    cotangent = noise(*got.shape)
    (got * cotangent).sum().backward()
    (want * cotangent).sum().backward()
    positions = 2 * 24 * 24 * kind.stem[-1][2]  # of the largest activation, which gradients are summed over
    gradients = {n: p.grad for n, p in model.named_parameters()}
    names = list(ref.names(kind))
    assert len(names) == len(gradients)
    for (module, entry), ours in zip(names, ref.our_names(kind), strict=True):
        gradient = gradients.pop(ours)
        equal(gradient, ref.to_ours(tree[module][entry].grad, gradient.shape), ours, positions, order=1)
    assert not gradients


THEIRS = {
    "dm_nfnet_f0": (lambda: nfnet("nfnet_f0", rule="timm"), 48),
    "nf_resnet50": (lambda: nf_resnet(50, rule="timm"), 65),
    "nf_seresnet50": (lambda: nf_resnet(50, rule="timm", se=True), 48),
    "eca_nfnet_l0": (lambda: nfnet("eca_nfnet_l0"), 48),
}


@pytest.mark.parametrize("name", THEIRS)
def test_against_timm(name: str) -> None:
    """timm's state dict loads, and gives timm's logits."""
    make, size = THEIRS[name]
    theirs = moved(timm.create_model(name)).eval()
    ours = make().double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = noise(1, 3, size, size)
    with torch.no_grad():
        equal(ours(x), theirs(x), "logits", ours.num_features)


def test_names_are_those_of_timm() -> None:
    with torch.device("meta"):
        for ours, theirs in (("nfnet_f1", "dm_nfnet_f1"), ("eca_nfnet_l2", "eca_nfnet_l2")):
            assert set(named(ours).state_dict()) == set(timm.create_model(theirs).state_dict())
        assert set(nf_resnet(101, rule="timm").state_dict()) == set(timm.create_model("nf_resnet101").state_dict())


# Parameters, and multiply-adds of one test image in units of 10⁷ (NFNets: arXiv 2102.06171, table 3).
F = (
    (71_489_284, 1238), (132_634_256, 3554), (193_779_228, 6259), (254_924_200, 11476), (316_069_172, 21524),
    (377_214_144, 28976), (438_359_116, 37728),
)  # fmt: skip


@pytest.mark.parametrize("n", [pytest.param(n, marks=[pytest.mark.slow] * (n > 1)) for n in range(len(F))])
def test_published_sizes(n: int) -> None:
    with torch.device("meta"):
        model = nfnet(f"nfnet_f{n}").eval()
    assert sum(p.numel() for p in model.parameters()) == F[n][0]
    assert len(list(model.parameters())) == 233 + 204 * n
    size = model.config.test_size
    fold(model, inplace=True)  # the weights' own arithmetic is no multiply-add of the table
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size))
    assert round(counter.get_total_flops() / 2 / 1e7) == F[n][1]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameters() -> None:
    with torch.device("meta"):
        for depth, parameters in ((50, 25_557_048), (101, 44_549_193), (152, 60_192_858), (200, 64_673_898)):
            assert count(nf_resnet(depth)) == parameters
        for name, millions in (("l0", 24.14), ("l1", 41.41), ("l2", 56.72)):
            assert round(count(nfnet(f"eca_nfnet_{name}")) / 1e6, 2) == millions
        assert round(count(nfnet("nfnet_f4+")) / 1e6) == 525
        assert count(nfnet("nfnet_f0", num_classes=0)) == F[0][0] - 3072 * 1000 - 1000


def test_variances() -> None:
    with torch.device("meta"):
        f0, largest = blocks_of(nfnet("nfnet_f0")), [blocks_of(nfnet(f"nfnet_f{n}")) for n in (0, 1, 6)]
    expected = [1, 1.04, 1.04, 1.08, 1.04, 1.08, 1.12, 1.16, 1.20, 1.24, 1.04, 1.08]
    assert_close([b.expected_variance for b in f0], expected)
    assert_close([b.predicted_variance for b in f0], [1.04, 1.04, 1.08, *expected[4:10], 1.04, 1.08, 1.12])
    assert_close([max(b.expected_variance for b in blocks) for blocks in largest], [1.24, 1.48, 2.68])
    gamma = gamma_of("gelu_tanh")
    assert_close([b.conv1.how.scale for b in f0], [gamma * v**-0.5 for v in expected])
    assert [b.conv3.how.scale for b in f0] == [gamma] * 12
    assert all(b.downsample is None or b.downsample.conv.how.scale == b.conv1.how.scale for b in f0)
    assert [b.conv2.groups for b in f0] == [1, 2, 2, *[6] * 9]


def test_one_block() -> None:
    """Of a stage's second block, which has no convolution in its shortcut."""
    kind = ref.small_kind(GELU)
    model = load_pretrained(small().double(), ref.random_tree(kind, classes=10)).eval()
    tree = {m: {n: torch.from_numpy(a) for n, a in e.items()} for m, e in ref.random_tree(kind, classes=10).items()}
    x = noise(2, 64, 5, 6)

    def act(x: Tensor) -> Tensor:
        return GELU * nn.functional.gelu(x, approximate="tanh")

    want = ref.block(kind, tree, "NFNet/~/nf_block_2", x, 1, 1.04**0.5, act)
    equal(model.stages[1][1](x), want, "block", 64 * 9)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (9, 5), (2, 2), (1, 1)])
def test_same_padding(size: tuple[int, int]) -> None:
    """Of an odd number of zeros the one more is below and to the right, as torch's padding is not."""
    x = noise(1, 4, *size)
    net = nf_resnet(50, in_chans=4)
    pool = net.stem.pool
    assert torch.equal(pool(x), ref.max_pool(x)) and bool(torch.isfinite(pool(x)).all())
    conv = net.stem.conv.double()
    weight = conv.standardized()
    want = nn.functional.conv2d(ref.same(x, 7, 2, 0.0), weight, stride=2)
    equal(conv(x), want, "stem", 4 * 49)
    shortcut = small().stages[1][0].downsample.pool
    equal(shortcut(x), ref.mean_pool(x), "pool", 4)
    if size == (8, 8):
        assert not torch.equal(pool(x), nn.functional.max_pool2d(x, 3, 2, 1))


GAMMAS = {
    "relu": 1.7128586, "gelu": 1.7009262, "gelu_tanh": 1.7009166, "silu": 1.7871872, "tanh": 1.5925374,
    "sigmoid": 4.8013134, "elu": 1.2708434, "softplus": 1.919126, "leaky_relu": 1.7048316, "selu": 1.0,
}  # fmt: skip


def test_gamma() -> None:
    for name, gamma in GAMMAS.items():
        assert round(gamma_of(name), 7) == gamma
    assert_close(gamma_of("relu"), (2 / (1 - 1 / torch.pi)) ** 0.5)
    assert gamma_of(nn.SiLU()) == gamma_of("silu")
    assert (gamma_of("gelu_tanh", "authors"), gamma_of("relu", "authors")) == (GELU, RELU)
    for wrong, phrase in (("rellu", "'relu'"), ("relu", "'exact'"), (torch.zeros_like, "variance 0")):
        with pytest.raises(OptionError, match=phrase):
            gamma_of(wrong, "exat" if wrong == "relu" else "exact")
    with pytest.raises(OptionError, match="take 'exact'"):
        gamma_of("mish", "authors")


def test_starts() -> None:
    torch.manual_seed(0)
    model = nf_resnet(50, se=True)
    block = blocks_of(model)[0]
    for name, p in model.named_parameters():
        if name.endswith("skipinit_gain") or name.endswith("bias"):
            assert not p.any(), name
        elif name.endswith("gain"):
            assert bool((p == 1).all()), name

    def deviation(weight: Tensor, wanted: float) -> None:
        """Within four deviations of the estimate."""
        assert abs(float(weight.detach().std()) / wanted - 1) < 4 * (2 * weight.numel()) ** -0.5

    deviation(model.stem.conv.weight, (3 * 49) ** -0.5)
    deviation(model.head.fc.weight, 0.01)
    fc1 = block.attn_last.fc1.weight
    assert float(fc1.detach().abs().max()) <= 2 * 256**-0.5
    deviation(fc1, 0.8796256610342398 * 256**-0.5)  # of a normal variable cut at 2 deviations
    assert all(b.conv3.gain.any() for b in blocks_of(model))


def test_rule_of_weights() -> None:
    """The paper's clamp, timm's sum: smaller by √(1 + 1e-5·N) where N·σ² is 1."""
    paper, theirs = (nf_resnet(50, rule=rule).stages[0][0].conv2 for rule in ("paper", "timm"))
    theirs.load_state_dict(paper.state_dict())
    n = paper.weight[0].numel()
    q = n * paper.weight.double().flatten(1).var(1, correction=0)
    ratio = (theirs.standardized() / theirs.how.scale) / (paper.standardized() / paper.how.scale)
    want = (q.clamp(min=1e-4) / (q + 1e-5 * n)).sqrt()[:, None].expand(-1, n).float()
    assert_close(ratio.flatten(1).detach(), want.detach(), "float32", n)


def test_gelu_of_each() -> None:
    kinds = [
        {m.approximate for m in small(activation=a).modules() if isinstance(m, nn.GELU)} for a in ("gelu_tanh", "gelu")
    ]
    assert kinds == [{"tanh"}, {"none"}]
    with torch.device("meta"):
        assert [nfnet("nfnet_f0", rule=r).config.activation for r in ("paper", "timm")] == ["gelu_tanh", "gelu"]


def rates(model: nn.Module) -> list[float]:
    return [getattr(b.drop_path, "drop_prob", 0.0) for b in blocks_of(model)]


def test_rates_of_stochastic_depth() -> None:
    with torch.device("meta"):
        assert_close(rates(nfnet("nfnet_f0")), [0.25 * k / 12 for k in range(12)])
        assert_close(rates(nfnet("nfnet_f0", rule="timm")), [0.25 * k / 11 for k in range(12)])
        theirs = timm.create_model("dm_nfnet_f0", drop_path_rate=0.25)
        assert_close(
            [getattr(b.drop_path, "drop_prob", 0.0) for stage in theirs.stages for b in stage],
            rates(nfnet("nfnet_f0", rule="timm")), "float32",
        )  # fmt: skip
        assert_close(rates(nf_resnet(50)), [0.1 * k / 16 for k in range(16)])
        assert not any(rates(nfnet("nfnet_f0", stochastic_depth=0.0)))
        assert nfnet("nfnet_f0").head.drop.p == 0.2 and nfnet("nfnet_f0", drop_rate=0.0).head.drop.p == 0
    drops = [nfnet_config(f"nfnet_f{n}").drop_rate for n in range(7)]
    assert drops == [0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("rule", ["paper", "timm"])
def test_stochastic_depth(rule: str) -> None:
    """A branch is there or not, a sample at a time; only timm divides by what is kept."""
    torch.manual_seed(0)
    block = moved(small(rule=rule, stochastic_depth=0.5)).stages[3][0]
    keep, samples = 1 - block.drop_path.drop_prob, 200
    assert keep == 1 - 0.5 * 4 / (5 if rule == "paper" else 4)
    x = noise(1, 64, 4, 4).expand(samples, -1, -1, -1)
    with torch.no_grad():
        shortcut = block.downsample(block.act1(x[:1]))
        branch = block.eval()(x[:1]) - shortcut
        given = block.train()(x) - shortcut
    kept = given.abs().amax((1, 2, 3)) > branch.abs().max() / 2
    divided = 1.0 if rule == "paper" else keep
    equal(given[kept], (branch / divided).expand(int(kept.sum()), -1, -1, -1), "kept", 64)
    assert float(given[~kept].abs().max()) <= reference.tolerance(torch.float64, 64, float(shortcut.abs().max()))
    deviation = (samples * keep * (1 - keep)) ** 0.5
    assert abs(int(kept.sum()) - samples * keep) < 4 * deviation


def test_resnets_of_each() -> None:
    with torch.device("meta"):
        paper, theirs = nf_resnet(50), nf_resnet(50, rule="timm")
    gamma, authors = gamma_of("relu"), RELU
    assert isinstance(blocks_of(paper)[3].downsample.pool, nn.Identity)
    assert blocks_of(paper)[3].downsample.conv.stride == (2, 2)
    assert isinstance(blocks_of(theirs)[3].downsample.pool, nn.AvgPool2d)
    assert all(b.skipinit_gain is not None and b.conv3.gain_init == 1 for b in blocks_of(paper))
    assert all(b.skipinit_gain is None and b.conv3.gain_init == 0 for b in blocks_of(theirs))
    assert (paper.stem.conv.how.scale, paper.head.scale) == (1, gamma)
    assert (theirs.stem.conv.how.scale, theirs.head.scale) == (authors, 1)
    assert (paper.stem.conv.same, theirs.stem.conv.padding) == (True, (3, 3))
    assert_close([c.how.scale for c in scaled(theirs)], [authors * v**-0.5 for v in variances(theirs)])


def scaled(model: nn.Module) -> list[ScaledConv2d]:
    return [m for m in model.modules() if isinstance(m, ScaledConv2d)]


def variances(model: NormFreeNet) -> Iterable[float]:
    """What each convolution's input is divided by, squared."""
    yield 1.0
    for b in blocks_of(model):
        yield from [b.expected_variance] * (1 + (b.downsample is not None))
        yield from (1.0, 1.0)


def test_a_new_network_is_its_shortcuts() -> None:
    for model in (small(), small(skip_gain=False)):
        model = model.double().eval()
        x = noise(1, 64, 4, 4)
        block = model.stages[1][1]
        assert torch.equal(block(x), x)


def test_low_precision() -> None:
    """Under autocast activations stay in 16 bits from block to block: the factor does not widen them."""
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.stages(model.stem(torch.randn(2, 3, 32, 32))).dtype == torch.bfloat16
    x = torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)
    assert model.to(torch.bfloat16)(x).dtype == torch.bfloat16


def test_in_the_habits_of_timm() -> None:
    model = small()
    assert model.get_classifier() is model.head.fc and model.num_classes == 10
    x = torch.randn(2, 3, 32, 32)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 64)
    model.double().reset_classifier(7)
    assert model(x.double()).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    assert model(x.double()).shape == (2, 64)
    assert fold(moved(small())).eval()(x.double()).shape == (2, 10)
    assert nf.nn.nfnet is nfnet


def test_mistakes() -> None:
    for name, options, phrase in (
        ("nfnet_f00", {}, "did you mean 'nfnet_f0'"),
        (None, {}, "nfnet_f6"),
        ("nfnet_f0", {"rule": "tim"}, "did you mean 'timm'"),
        ("nfnet_f0", {"gamma": "exat"}, "did you mean 'exact'"),
        ("nfnet_f0", {"drop_rate": 1.5}, "drop_rate"),
        ("nfnet_f0", {"stochastic_depth": -0.1}, "stochastic_depth"),
        ("eca_nfnet_l0", {"rule": "paper"}, "timm's own"),
    ):
        with pytest.raises(OptionError, match=phrase), torch.device("meta"):
            nfnet(name, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="50, 101, 152, 200"):
        nf_resnet(34)
    with pytest.raises(OptionError, match="activation"):
        small(activation="mish")


@pytest.mark.parametrize("road", ["fx", "export", "compile", "fold"])
def test_other_roads(road: str) -> None:
    """A network that is traced, exported, compiled or folded is the same."""
    model, x = moved(small()).eval(), noise(2, 3, 37, 40)
    made = {
        "fx": lambda: torch.fx.symbolic_trace(model),
        "export": lambda: torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module(),
        "compile": lambda: torch.compile(model, backend="aot_eager"),
        "fold": lambda: fold(model),
    }[road]()
    with torch.no_grad():
        equal(made(x), model(x), road, model.num_features)
        if road == "export":
            equal(made(x[:1].repeat(3, 1, 1, 1)), model(x[:1]).repeat(3, 1), road, model.num_features)
    if road == "compile":
        model.train()
        made(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
