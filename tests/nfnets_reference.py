"""NFNets and NF-ResNets written a second time, in float64, after the papers and the authors' code.

Functions of a tree of tensors by haiku's names. Nothing is folded: γ multiplies activations, a block divides by its
standard deviation after the activation, convolutions pad by hand, weights are standardized as the formula says, in
haiku's layout (height, width, in, out). Nothing of normforge is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Tree = dict[str, dict[str, Tensor]]
ALPHA = 0.2


@dataclass(frozen=True)
class Kind:
    """A family of networks.

    Attributes:
        top, block: names of modules.
        stem: name, kernel, output channels, stride of each convolution.
        two_convs, pooled: of blocks, as in the package's configuration; pool: a max pool ends the stem.
        ratio, group: channels inside of a block over its output's, and channels a group (0: one group).
        se: ratio of squeeze and excitation (0: none).
        head: channels of the 1×1 convolution at the end (0: none).
        strides: of the stages.
    """

    top: str
    block: str
    stem: tuple[tuple[str, int, int, int], ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    ratio: float
    group: int
    se: float
    head: int
    gamma: float
    two_convs: bool
    pooled: bool
    tanh_gelu: bool
    strides: tuple[int, ...] = (1, 2, 2, 2)


def nfnet_kind(n: int, gamma: float) -> Kind:
    """NFNet-Fn."""
    stem = tuple((f"stem_conv{i}", 3, c, s) for i, (c, s) in enumerate(((16, 2), (32, 1), (64, 1), (128, 2))))
    depths = tuple((n + 1) * d for d in (1, 2, 6, 3))
    widths = (256, 512, 1536, 1536)
    return Kind("NFNet", "nf_block", stem, depths, widths, 0.5, 128, 0.5, 3072, gamma, True, True, True)


def resnet_kind(
    depths: tuple[int, ...], gamma: float, se: float = 0.0, widths: tuple[int, ...] = (256, 512, 1024, 2048)
) -> Kind:
    """An NF-ResNet."""
    stem = (("initial_conv", 7, 64, 2),)
    return Kind("NF_ResNet", "nf_res_block", stem, depths, widths, 0.25, 0, se, 0, gamma, False, False, False)


def shapes(kind: Kind, classes: int = 1000) -> dict[str, dict[str, tuple[int, ...]]]:
    """Every array of a network."""
    made: dict[str, dict[str, tuple[int, ...]]] = {}

    def conv(name: str, kernel: int, inputs: int, outputs: int) -> None:
        made[f"{kind.top}/~/{name}"] = {
            "w": (kernel, kernel, inputs, outputs),
            "gain": (outputs,),
            "bias": (outputs,),
        }

    def linear(name: str, inputs: int, outputs: int) -> None:
        made[f"{kind.top}/~/{name}"] = {"w": (inputs, outputs), "b": (outputs,)}

    channels = 3
    for name, kernel, outputs, _ in kind.stem:
        conv(name, kernel, channels, outputs)
        channels = outputs
    for i, (_, width, stride, _) in enumerate(blocks(kind)):
        name = kind.block + (f"_{i}" if i else "")
        groups = max(1, int(width * kind.ratio) // kind.group) if kind.group else 1
        middle = groups * kind.group if kind.group else int(width * kind.ratio)
        made[f"{kind.top}/~/{name}"] = {"skip_gain": ()}
        conv(f"{name}/~/conv0", 1, channels, middle)
        conv(f"{name}/~/conv1", 3, middle // groups, middle)
        if kind.two_convs:
            conv(f"{name}/~/conv1b", 3, middle // groups, middle)
        conv(f"{name}/~/conv2", 1, middle, width)
        if stride > 1 or channels != width:
            conv(f"{name}/~/conv_shortcut", 1, channels, width)
        if kind.se:
            linear(f"{name}/~/squeeze_excite/~/linear", width, int(width * kind.se))
            linear(f"{name}/~/squeeze_excite/~/linear_1", int(width * kind.se), width)
        channels = width
    if kind.head:
        conv("final_conv", 1, channels, kind.head)
        channels = kind.head
    linear("linear", channels, classes)
    return made


def blocks(kind: Kind) -> list[tuple[int, int, int, float]]:
    """Of each block its stage, width, stride, and the standard deviation expected of what it is given."""
    made, std = [], 1.0
    for stage, (depth, width, stride) in enumerate(zip(kind.depths, kind.widths, kind.strides, strict=True)):
        for i in range(depth):
            made.append((stage, width, stride if i == 0 else 1, std))
            std = math.sqrt((1.0 if i == 0 else std**2) + ALPHA**2)
    return made


def random_tree(kind: Kind, seed: int = 0, classes: int = 1000) -> dict[str, dict[str, np.ndarray]]:
    """Weights at their usual size, everything else away from its start."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == "w":
            return rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))
        return rng.uniform(0.5, 1.5, shape) if "gain" in name else rng.uniform(-0.2, 0.2, shape)

    return {m: {n: draw(n, s) for n, s in entries.items()} for m, entries in shapes(kind, classes).items()}


def forward(kind: Kind, tree: Tree, x: Tensor) -> Tensor:
    """Logits (N, classes) of images x (N, 3, H, W)."""
    act = _gelu if kind.tanh_gelu else F.relu

    def g(x: Tensor) -> Tensor:
        return kind.gamma * act(x)

    for i, (name, _, _, stride) in enumerate(kind.stem):
        x = conv(tree, f"{kind.top}/~/{name}", g(x) if i else x, stride)
    if not kind.pooled:
        x = max_pool(x)
    for i, (_, _, stride, std) in enumerate(blocks(kind)):
        x = block(kind, tree, f"{kind.top}/~/{kind.block}" + (f"_{i}" if i else ""), x, stride, std, g)
    if kind.head:
        x = conv(tree, f"{kind.top}/~/final_conv", x)
    last = tree[f"{kind.top}/~/linear"]
    return g(x).mean((2, 3)) @ last["w"] + last["b"]


def block(
    kind: Kind, tree: Tree, name: str, x: Tensor, stride: int, std: float, g: Callable[[Tensor], Tensor]
) -> Tensor:
    """One residual block of x (N, C, H, W)."""
    h = g(x) / std
    shortcut = x
    if f"{name}/~/conv_shortcut" in tree:
        pooled = kind.pooled and stride > 1
        shortcut = conv(tree, f"{name}/~/conv_shortcut", mean_pool(h) if pooled else h, 1 if pooled else stride)
    y = conv(tree, f"{name}/~/conv1", g(conv(tree, f"{name}/~/conv0", h)), stride)
    if kind.two_convs:
        y = conv(tree, f"{name}/~/conv1b", g(y))
    y = conv(tree, f"{name}/~/conv2", g(y))
    if kind.se:
        first, second = (tree[f"{name}/~/squeeze_excite/~/{n}"] for n in ("linear", "linear_1"))
        gates = F.relu(y.mean((2, 3)) @ first["w"] + first["b"]) @ second["w"] + second["b"]
        y = 2 * y / (1 + torch.exp(-gates))[:, :, None, None]
    return shortcut + ALPHA * tree[name]["skip_gain"] * y


def conv(tree: Tree, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """A convolution with the standardized weight, SAME padding; groups follow from the shapes."""
    w, gain, bias = (tree[name][n] for n in ("w", "gain", "bias"))
    fan_in = math.prod(w.shape[:-1])
    centred = w - w.mean((0, 1, 2))
    variance = (centred**2).mean((0, 1, 2))
    scaled = centred * (gain / torch.sqrt(torch.clamp(fan_in * variance, min=1e-4)))
    padded = same(x, w.shape[0], stride, 0.0)
    y = F.conv2d(padded, scaled.permute(3, 2, 0, 1), stride=stride, groups=x.shape[1] // w.shape[2])
    return y + bias[:, None, None]


def same(x: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """x with the border that makes ⌈size / stride⌉ windows; of an odd number of rows one more at the bottom."""

    def border(size: int) -> tuple[int, int]:
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    return F.pad(x, (*border(x.shape[3]), *border(x.shape[2])), value=value)


def max_pool(x: Tensor) -> Tensor:
    """3×3, stride 2; nothing beyond the edges counts."""
    return F.max_pool2d(same(x, 3, 2, -math.inf), 3, 2)


def mean_pool(x: Tensor) -> Tensor:
    """2×2, stride 2, of what lies inside."""
    total, count = (F.avg_pool2d(same(t, 2, 2, 0.0), 2, 2) for t in (x, torch.ones_like(x)))
    return total / count


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def to_ours(array: Tensor, shape: Sequence[int]) -> Tensor:
    """A weight or its gradient in torch's layout: (out, in, height, width), or (out, in)."""
    turned = array.permute(3, 2, 0, 1) if array.dim() == 4 else array.T if array.dim() == 2 else array
    return turned.reshape(tuple(shape))


def small_kind(gamma: float) -> Kind:
    """An NFNet of five blocks, to be fast."""
    stem = tuple((f"stem_conv{i}", 3, c, s) for i, (c, s) in enumerate(((4, 2), (8, 1), (8, 1), (16, 2))))
    return Kind("NFNet", "nf_block", stem, (1, 2, 1, 1), (32, 64, 64, 96), 0.5, 16, 0.5, 64, gamma, True, True, True)


def names(kind: Kind) -> list[tuple[str, str]]:
    """Module and entry of every array."""
    return [(module, entry) for module, entries in shapes(kind).items() for entry in entries]


def our_names(kind: Kind) -> list[str]:
    """The package's name of every array, in the order of `names`."""
    where = [(stage, i) for stage, depth in enumerate(kind.depths) for i in range(depth)]
    modules = {"initial_conv": "stem.conv", "final_conv": "final_conv", "linear": "head.fc"}
    modules |= {f"stem_conv{i}": f"stem.conv{i + 1}" for i in range(4)}
    inner = {"": "", "conv0": ".conv1", "conv1": ".conv2", "conv1b": ".conv2b", "conv2": ".conv3"}
    inner |= {"conv_shortcut": ".downsample.conv", "linear": ".attn_last.fc1", "linear_1": ".attn_last.fc2"}
    for number, (stage, i) in enumerate(where):
        block_name = kind.block + (f"_{number}" if number else "")
        for theirs, ours in inner.items():
            part = f"/~/squeeze_excite/~/{theirs}" if theirs.startswith("linear") else f"/~/{theirs}" if theirs else ""
            modules[f"{block_name}{part}"] = f"stages.{stage}.{i}{ours}"
    entries = {"w": "weight", "b": "bias", "skip_gain": "skipinit_gain"}
    return [f"{modules[m.removeprefix(f'{kind.top}/~/')]}.{entries.get(e, e)}" for m, e in names(kind)]
