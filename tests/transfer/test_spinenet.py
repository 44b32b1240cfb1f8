import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from normforge.errors import OptionError
from normforge.kernels.compile import compile as compile_layer
from normforge.testing import assert_close
from normforge.train.networks.places import Affine
from normforge.train.transfer.detection.spinenet import CONFIGS, SpineNet, SpineNetConfig

TINY = CONFIGS["spinenet_tiny"]
SMALL = replace(TINY, min_level=3, max_level=7, deepest=7)  # the whole published graph
EVERYTHING = replace(SMALL, min_level=2)

# Blocks from 2 on, as the paper's code lists them: level, bottleneck or residual, inputs, whether it leaves.
PUBLISHED = """2b(0,1) 4r(0,1) 3b(2,3) 4b(2,4) 6r(3,5) 4b(3,5) 5r(6,7) 7r(6,8) 5b(8,9) 5b(8,10)
               4b(5,10)* 3b(4,10)* 5b(7,12)* 7b(5,14)* 6b(12,14)* 2b(2,13)*"""
BLOCKS = {0: (2, "b", (), ""), 1: (2, "b", (0,), "")} | {
    i: (int(level), kind, (int(a), int(b)), star)
    for i, (level, kind, a, b, star) in enumerate(re.findall(r"(\d)([br])\((\d+),(\d+)\)(\*?)", PUBLISHED), start=2)
}


class Stub(nn.Module):
    """A layer that checks where it was put, and counts how often it runs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.runs = channels, 0
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dim() == 4 and x.shape[1] == self.channels
        self.runs += 1
        return torch.tanh(self.norm(x))


class Bare(nn.Tanh):
    """An activation after a sum, nowhere flat: every path shows in a gradient."""


def stub(channels: int, *, channel_dim: int = 1) -> nn.Module:
    assert channel_dim == 1
    return Stub(channels)


def batch_norm(channels: int, *, channel_dim: int = 1) -> nn.Module:
    return nn.BatchNorm2d(channels)


def compiled(text: str):
    return lambda channels, *, channel_dim=1: compile_layer(text, channels)


def network(config: SpineNetConfig, layer=stub, **options) -> SpineNet:
    torch.manual_seed(0)
    return SpineNet(config, layer, **options)


def image(side: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def modules(model: nn.Module, kind: type) -> list:
    return [m for m in model.modules() if isinstance(m, kind)]


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def on_meta(name: str, **changes) -> SpineNet:
    with torch.device("meta"):
        return SpineNet(replace(CONFIGS[name], **changes), batch_norm)


@pytest.mark.parametrize(("name", "expected"), [("49s", 9.2), ("49", 22.0), ("96", 36.5)])
def test_parameters_of_all_levels(name, expected):
    assert round(millions(on_meta(f"spinenet{name}", min_level=2)), 1) == expected


def test_parameters_as_published():
    """The paper's classifier of ImageNet is one linear layer on SpineNet-143, and has 60.5 million together with it."""
    model = on_meta("spinenet143")
    classifier = nn.Linear(model.out_channels, 1000, device="meta")
    assert round(millions(model) + millions(classifier), 1) == 60.5


def test_levels_have_exact_strides():
    model = network(replace(CONFIGS["spinenet49s"], scale=0.1, stem=8, ends=12))
    assert model.levels == (3, 4, 5, 6, 7) and model.out_channels == 12
    out = model(image(256))
    assert {level: tuple(x.shape) for level, x in out.items()} == {
        str(k): (2, 12, 256 // 2**k, 256 // 2**k) for k in range(3, 8)
    }
    assert list(out) == ["3", "4", "5", "6", "7"]


@pytest.mark.parametrize("size", [(96, 96), (97, 61), (33, 200), (1, 1)])
@pytest.mark.parametrize("deepest", [7, 5])
def test_odd_sizes_are_rounded_up(size, deepest):
    config = replace(EVERYTHING, deepest=deepest, max_level=deepest)
    out = network(config)(torch.randn(1, 3, *size))
    for level, x in out.items():
        assert tuple(x.shape[-2:]) == tuple(-(-side // 2 ** int(level)) for side in size)


@pytest.mark.parametrize("config", [TINY, SMALL, replace(TINY, deepest=7), replace(TINY, repeats=2)])
def test_nothing_is_dead(config):
    model = network(config, activation=Bare)
    x = image(96).requires_grad_()
    out = model(x)
    for level in out.values():
        (gradient,) = torch.autograd.grad(level.square().sum(), x, retain_graph=True)
        assert gradient.flatten(1).any(1).all()
    sum(level.square().sum() for level in out.values()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_every_place_runs_once():
    activations = []
    model = network(SMALL, activation=lambda: activations.append(Bare()) or activations[-1])
    runs = Counter()
    for module in (*activations, *modules(model, Affine)):
        module.register_forward_hook(lambda module, *_: runs.update([module]))
    model(image(128))
    built = {i: block for i, block in BLOCKS.items() if i != 17}  # it leaves at level 2
    connections = [(BLOCKS[j][0], block[0]) for i, block in built.items() if i > 1 for j in block[2]]
    down = sum(target > source for source, target in connections)
    inside = sum(2 if kind == "b" else 1 for _, kind, *_ in built.values())
    assert len(modules(model, Stub)) == 1 + inside + len(connections) + down + 5 == 82
    assert len(modules(model, Affine)) == len(built) + len(connections) + 1 == 48  # one shortcut is a projection
    assert len(activations) == 2 * len(built) - 2 == 32  # after each unit's sum, and each join's
    assert all(layer.runs == 1 for layer in modules(model, Stub))
    assert set(runs.values()) == {1} and len(runs) == 80
    assert len(modules(network(replace(EVERYTHING)), (Stub, Affine))) == 82 + 48 + 7 + 1  # 2b(2,13)*, and its end


def test_blocks_read_what_the_paper_says():
    """Each block's output is cut off the graph, so a gradient reaches what it reads directly, and no more."""
    model = network(EVERYTHING, activation=Bare)
    outputs, leaves = {}, {}

    def cut(i: int):
        def hook(module, given, output):
            outputs[i], leaves[i] = output, output.detach().requires_grad_()
            return leaves[i]

        return hook

    for name, block in model.blocks.items():
        block.register_forward_hook(cut(int(name)))
    levels = model(image(128))

    def read(output: torch.Tensor) -> tuple:
        gradients = torch.autograd.grad(output.square().sum(), list(leaves.values()), allow_unused=True)
        return tuple(i for i, g in zip(leaves, gradients, strict=True) if g is not None and g.any())

    expected = {i: inputs for i, (_, _, inputs, _) in BLOCKS.items()}
    expected[14] = (7, 11, 12)  # it takes in 11, of its level and width, that nobody has read
    assert {i: read(output) for i, output in outputs.items()} == expected
    leaving = {str(level): (i,) for i, (level, _, _, star) in BLOCKS.items() if star}
    assert {level: read(output) for level, output in levels.items()} == leaving
    for i, (level, kind, _, _) in BLOCKS.items():
        assert outputs[i].shape[1:] == (
            {2: 8, 3: 16}.get(level, 32) * (4 if kind == "b" else 1),
            *[128 // 2**level] * 2,
        )
        assert [c.kernel_size[0] for c in modules(model.blocks[str(i)].get_submodule("0.branch"), nn.Conv2d)] == (
            [1, 3, 1] if kind == "b" else [3, 3]
        )


@torch.no_grad()
def test_block_11_is_added_as_it_is():
    model = network(EVERYTHING, activation=nn.Identity).double()
    given = {}
    for name in ("11", "14"):
        model.blocks[name].register_forward_hook(
            lambda _, inputs, output, name=name: given.update({name: (inputs, output)})
        )
    model(image(128).double())
    (before,), eleven = given["14"][0], given["11"][1]
    model.blocks["11"].register_forward_hook(lambda *_: torch.zeros_like(eleven))
    model(image(128).double())
    assert_close(before - given["14"][0][0], eleven, length=3)


def test_only_what_the_levels_need_is_built():
    model = network(TINY)
    assert model.levels == (2, 3, 4)
    assert set(map(int, model.blocks)) == {*range(11), 12, 13, 17}
    assert set(map(int, network(replace(SMALL, min_level=5, max_level=5)).blocks)) == {*range(13), 14}


@torch.no_grad()
def test_enlarging_last_is_enlarging_before_the_convolution():
    model = network(EVERYTHING).double()
    resample = model.joins["4"].resampled[1].steps  # from level 4 to level 3
    x = torch.randn(2, 32, 5, 7, dtype=torch.float64)
    nn.init.normal_(resample[-1].weight)
    nn.init.normal_(resample[-1].bias)
    published = resample[3](resample[2](interpolate(resample[1](resample[0](x)), (9, 14))))
    assert_close(model.joins["4"].resampled[1](x, (9, 14)), published, length=resample[2].in_channels)


def test_weights_start_as_the_authors_do():
    for conv in modules(network(CONFIGS["spinenet49s"]), nn.Conv2d):
        assert conv.bias is None
        fan_in, count = conv.weight[0].numel(), conv.weight.numel()
        scaled = conv.weight.detach() * fan_in**0.5
        assert scaled.abs().max() <= 2 / 0.8796  # truncated at two deviations of the normal it is cut from
        assert abs(scaled.square().mean() - 1) < 5 * (2 / count) ** 0.5


def test_weights_do_not_depend_on_the_layer():
    def drawing(channels: int, *, channel_dim: int = 1) -> nn.Module:
        torch.rand(())
        return batch_norm(channels)

    pairs = zip(modules(network(TINY), nn.Conv2d), modules(network(TINY, drawing), nn.Conv2d), strict=True)
    assert all(torch.equal(a.weight, b.weight) for a, b in pairs)


def test_compiled_layer_trains_and_evaluates():
    model = network(TINY, compiled("evonorm-s0"))
    x = image(96, batch=4)
    trained = model(x)
    loss = sum(level.square().mean() for level in trained.values())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    with torch.no_grad():
        evaluated = model.eval()(x)
    for level in ("2", "3", "4"):  # it has no running statistics
        assert trained[level].isfinite().all() and torch.equal(trained[level], evaluated[level])


def test_tiny_one_has_no_level_of_one_position():
    """Of one position and one channel a variance is 0: EvoNorm-S0 multiplies by about sigmoid(0) / ε**0.5 there."""
    sizes = {}
    for deepest in (5, 7):
        model = network(replace(TINY, deepest=deepest), compiled("evonorm-s0"))
        outputs = []
        for block in model.blocks.values():
            block.register_forward_hook(lambda _, given, output, outputs=outputs: outputs.append(output))
        model(image(96, batch=4))
        sizes[deepest] = max(x.detach().std().item() for x in outputs)
        assert min(x[0, 0].numel() for x in outputs) == (9 if deepest == 5 else 1)
    assert sizes[7] > sizes[5] * 0.5 / 1e-5**0.5


def test_backbone_of_mask_rcnn():
    backbone = network(TINY, batch_norm)
    model = MaskRCNN(
        backbone,
        3,
        min_size=96,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((14,), (26,), (44,)), ((0.5, 1.0, 2.0),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["2", "3", "4"], 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(["2", "3", "4"], 14, 2),
    )
    masks = torch.zeros(1, 96, 96, dtype=torch.uint8)
    masks[0, 20:60, 30:70] = 1
    target = {"boxes": torch.tensor([[30.0, 20, 70, 60]]), "labels": torch.tensor([1]), "masks": masks}
    losses = model([*image(96)], [target, target])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    with torch.no_grad():
        assert len(model.eval()([*image(96)])) == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"min_level": 1}, "levels 1 to 7 cannot leave a SpineNet: give some between 2 and 7"),
        ({"max_level": 8}, "levels 3 to 8 cannot leave"),
        ({"min_level": 5, "max_level": 4, "deepest": 7}, "levels 5 to 4 cannot leave"),
        ({"deepest": 6}, "cannot be 6: give one from 7 to 7"),
        ({"max_level": 3, "deepest": 3}, "cannot be 3: give one from 4 to 7"),
        ({"repeats": 0}, "give each at least 1"),
        ({"scale": 0.02}, "scale 0.02 and alpha 0.5 leave a connection of a SpineNet no channel"),
    ],
)
def test_mistakes_are_named(wrong, says):
    with pytest.raises(OptionError, match=re.escape(says)):
        SpineNetConfig(**wrong)
