import re
import statistics

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normforge.errors import OptionError
from normforge.ir import parse
from normforge.kernels.module import Layer
from normforge.train.config import NETWORKS, Networks
from normforge.train.networks import build, compiled
from normforge.train.networks.build import BUILDERS
from normforge.train.networks.places import Affine

MOBILE = {"width": 0.25, "depth": 0.34, "stages": 4}
SMALL = Networks(
    resnet={"width": 0.05, "depths": [1, 2]},
    mobilenet={"width": 0.1, "depth": 0.34, "stages": 3},
    efficientnet={"width": 0.1, "depth": 0.34, "stages": 3},
    nf_resnet={"width": 0.05, "depths": [1, 2]},
    vit={"dim": 8, "depth": 1, "heads": 2, "patch": 4},
    plain={"channels": [8, 8, 12, 12]},
)
LAYER = "evonorm-s0"


pytestmark = pytest.mark.usefixtures("one_thread")


class Stub(nn.Module):
    """A layer that checks where it was put, and counts how often it runs."""

    def __init__(self, channels: int, channel_dim: int) -> None:
        super().__init__()
        self.channels, self.channel_dim, self.runs = channels, channel_dim, 0
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[self.channel_dim] == self.channels
        assert x.dim() == (4 if self.channel_dim == 1 else 3)
        self.runs += 1
        return torch.tanh(x)


def stub(channels: int, *, channel_dim: int = 1) -> nn.Module:
    return Stub(channels, channel_dim)


def network(name: str, config: Networks = SMALL, layer=stub, in_channels=1, classes=10, size=8, seed=0) -> nn.Module:
    return build(name, config, layer, in_channels=in_channels, classes=classes, size=size, seed=seed)


def modules(model: nn.Module, kind: type) -> list:
    return [m for m in model.modules() if isinstance(m, kind)]


def test_table_has_every_network():
    assert tuple(BUILDERS) == NETWORKS
    with pytest.raises(OptionError, match="did you mean 'mobilenet'"):
        network("mobilnet")


@pytest.mark.parametrize(
    ("name", "config", "layers", "affines"),
    [
        # three a block and one before the head
        ("resnet", {"depths": [3, 4, 6, 3]}, 3 * 16 + 1, 0),
        ("nf_resnet", {"depths": [1, 2]}, 3 * 3 + 1, 0),
        # stem, one in the block that does not expand, two in each other, head; an affine a block
        ("mobilenet", {"depth": 1, "stages": 7}, 1 + 1 + 2 * (2 + 3 + 4 + 3 + 3 + 1) + 1, 1 + 16),
        ("mobilenet", MOBILE, 1 + 1 + 2 * (1 + 2 + 2) + 1, 1 + 5),
        ("efficientnet", {"depth": 1, "stages": 7}, 1 + 1 + 2 * (2 + 2 + 3 + 3 + 4 + 1) + 1, 1 + 15),
        ("efficientnet", MOBILE, 1 + 1 + 2 * (1 + 1 + 2) + 1, 1 + 4),
        # two a block and the last
        ("vit", {"depth": 3}, 2 * 3 + 1, 0),
        ("plain", {}, 5, 0),
    ],
)
def test_every_place_has_the_layer(name, config, layers, affines):
    model = network(name, Networks(**{name: config}))
    places = modules(model, Stub)
    assert (len(places), len(modules(model, Affine))) == (layers, affines)
    assert {p.channel_dim for p in places} == {-1 if name == "vit" else 1}
    model(torch.randn(2, 1, 8, 8))
    assert all(p.runs == 1 for p in places)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_stock_norm_or_activation_is_left(name):
    stock = ("Norm", "ReLU", "SiLU", "Swish", "Place")
    left = {n: type(m).__name__ for n, m in network(name).named_modules()}
    left = {n: kind for n, kind in left.items() if any(s in kind for s in stock)}
    inner = {n for n in left if re.search(r"\.se\.act1$", n)}  # of squeeze-and-excitation
    assert bool(inner) == (name == "efficientnet")
    assert left.keys() == inner


def test_linear_bottlenecks_have_the_affine_only():
    for name in ("mobilenet", "efficientnet"):
        for stage in network(name, Networks(**{name: MOBILE})).blocks:
            for block in stage:
                *inner, last = [m for n, m in block.named_children() if n.startswith("bn")]
                assert type(last) is Affine and all(type(m) is Stub for m in inner)
    affine, x = Affine(3), torch.randn(2, 3, 4, 5)
    assert torch.equal(affine(x), x)
    affine.weight.data, affine.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 5.0, 7.0])
    torch.testing.assert_close(affine(x)[:, 2], 3 * x[:, 2] + 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_a_function_of_the_seed_alone(name):
    def noisy(channels, *, channel_dim=1):
        torch.rand(channels)
        return nn.Identity()

    torch.manual_seed(5)
    one = network(name, seed=3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)  # the global stream has not moved
    torch.manual_seed(6)
    two = dict(network(name, layer=noisy, seed=3).named_parameters())
    assert len(two) > 5
    assert all(torch.equal(p, one.get_parameter(n)) for n, p in two.items())
    other = dict(network(name, seed=4).named_parameters())
    assert any(not torch.equal(p, other[n]) for n, p in two.items())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_sizes(name, in_channels):
    for size in (8, 12, 28, 32):
        model = network(name, in_channels=in_channels, classes=7, size=size)
        assert model(torch.randn(2, in_channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_layout_does_not_matter(name):
    model = network(name).double().eval()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    expected = model(x)
    last = {"memory_format": torch.channels_last}
    torch.testing.assert_close(model.to(**last)(x.contiguous(**last)), expected)


def test_resnet_channels_and_strides():
    model = network("resnet", Networks(resnet={"width": 0.125, "depths": [1, 1, 1]}))
    assert [s.blocks[-1].conv3.out_channels for s in model.stages] == [32, 64, 128]
    assert model.stem[0].out_channels == 8
    sides = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, x, y: sides.append(y.shape[-1]))
    model(torch.randn(1, 1, 16, 16))
    assert sides == [16, 8, 4]


def test_the_plain_network_halves_its_map_at_every_second_convolution():
    model = network("plain", Networks(), size=8)
    seen = []
    for place in modules(model, Stub):
        place.register_forward_hook(lambda module, x, y: seen.append(y.shape[1:]))
    model(torch.randn(1, 1, 8, 8))
    assert seen == [(16, 8, 8), (16, 8, 8), (32, 4, 4), (32, 4, 4), (64, 2, 2)]


def test_groups_are_taken_where_they_divide_the_channels():
    config = Networks(plain={"channels": [8, 12, 64]})
    for asked, groups in ((None, [8, 12, 32]), (8, [8, 12, 8]), (4, [4, 4, 4])):
        model = network("plain", config, layer=compiled(parse("gn-relu"), "eager", asked))
        assert [m.groups for m in modules(model, Layer)] == groups


@pytest.mark.parametrize("name", ["mobilenet", "efficientnet"])
@pytest.mark.parametrize("stages", [4, 7])
@pytest.mark.parametrize(("size", "last"), [(4, 4), (8, 4), (12, 3), (28, 4), (32, 4)])
def test_strides_leave_a_map_of_about_4x4(name, stages, size, last):
    model = network(name, Networks(**{name: MOBILE | {"stages": stages}}), size=size)
    seen = []
    model.conv_head.register_forward_hook(lambda module, x, y: seen.append(y.shape))
    model(torch.randn(1, 1, size, size))
    assert seen == [(1, 320, last, last)]  # 1280 × 0.25 channels


def kernels(model: nn.Module) -> list[tuple[int, int]]:
    return [(s[0].conv_dw.kernel_size[0], s[0].conv_dw.stride[0]) for s in model.blocks]


def test_large_images_have_the_strides_and_kernels_of_the_paper():
    full = Networks(efficientnet={"width": 0.1, "depth": 0.1, "stages": 7})
    model = network("efficientnet", full, size=224)
    assert model.conv_stem.stride == (2, 2)
    assert kernels(model) == [(3, 1), (3, 2), (5, 2), (3, 2), (5, 1), (5, 2), (3, 1)]
    model = network("efficientnet", full, size=32)
    assert model.conv_stem.stride == (1, 1)
    assert kernels(model) == [(3, 1), (3, 1), (5, 2), (3, 2), (5, 1), (3, 2), (3, 1)]  # no 5×5 on a 4×4 map


def test_nf_blocks_track_the_expected_variance():
    config = Networks(nf_resnet={"width": 0.25, "depths": [2, 2], "alpha": 0.5})
    layer = compiled(parse("1.7871872 * silu(x) * gamma + beta"), "eager")
    model = network("nf_resnet", config, layer=layer)
    assert [b.beta**-2 for b in model.blocks] == pytest.approx([1, 1.25, 1.5, 1.25])
    for block in model.blocks[1::2]:  # they start as their shortcuts
        x = torch.randn(4, block.conv1.in_channels, 4, 4)
        assert torch.equal(block(x), x)
    variances = []
    for seed in range(4):  # that of few channels depends on their weights
        model, seen = network("nf_resnet", config, layer=layer, seed=seed), []
        torch.manual_seed(seed)
        for block in model.blocks:
            block.skip_gain.data.fill_(1.0)
            block.register_forward_pre_hook(lambda module, x, to=seen: to.append(x[0].var().item() * module.beta**2))
        model(torch.randn(32, 1, 8, 8))
        variances.append(seen)
    # Zeros around an image take some variance from every 3×3 convolution; without beta the third would be 1.5.
    assert all(0.7 < statistics.mean(block) < 1.1 for block in zip(*variances, strict=True)), variances
    assert all(c.gain.ndim == 1 for c in modules(model, nn.Conv2d) if hasattr(c, "gain"))  # and so do not decay


def test_vit_refuses_what_does_not_divide():
    with pytest.raises(OptionError, match=r"networks\.vit\.patch = 5"):
        network("vit", Networks(vit={"patch": 5}))
    with pytest.raises(OptionError, match=r"networks\.vit\.heads = 5"):
        network("vit", Networks(vit={"heads": 5, "dim": 48}))


def compiled_network(name: str, backend: str = "auto") -> nn.Module:
    model = network(name, layer=compiled(parse(LAYER), backend))
    for key, p in model.named_parameters():
        if key.endswith("skip_gain"):  # at its start, 0, no gradient passes the branch
            p.data.fill_(0.5)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    model = compiled_network(name)
    assert {m.channel_dim for m in modules(model, Layer)} == {-1 if name == "vit" else 1}
    cross_entropy(model(torch.randn(16, 1, 8, 8)), torch.arange(16) % 10).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NETWORKS)
def test_double_backward_is_that_of_eager(name):
    torch.manual_seed(0)
    images, labels = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3, 7])
    second = []
    for backend in ("auto", "eager"):
        model = compiled_network(name, backend).double()
        weights = list(model.parameters())
        first = torch.autograd.grad(cross_entropy(model(images), labels), weights, create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), weights))
    for (key, _), ours, theirs in zip(model.named_parameters(), *second, strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, key=key: f"{key}: {m}")
    assert any(s.abs().max() > 0 for s in second[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_learnt(name):
    torch.manual_seed(0)
    images, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 10
    model = network(name, layer=compiled(parse("bn-relu")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(60):
        losses.append(cross_entropy(model(images), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert min(losses) < losses[0] / 2, losses[-1]
