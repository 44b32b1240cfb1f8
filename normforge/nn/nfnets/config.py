"""What a normalization-free network is made of, and the published ones by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from normforge.errors import OptionError, nearest
from normforge.kernels.rows.formula import check_rule


@dataclass(frozen=True)
class Config:
    """A normalization-free network.

    Attributes:
        depths, widths: of each stage, blocks and output channels.
        stem: channels of its convolutions. Several: 3×3, the first and the last with stride 2, activations between.
            One: 7×7 with stride 2, and a max pool.
        activation: a name of `normforge.nn.gamma.ACTIVATIONS`.
        bottleneck: channels within a block over its output's.
        group_size: channels a group of the 3×3 convolutions; None for one group.
        two_convs: 3×3 convolutions in a block are two.
        attention: "se", "eca" or None.
        se_ratio: hidden channels of "se" over its channels.
        head: channels of the 1×1 convolution at the end; 0 for none.
        skip_gain: the branch is multiplied by a learnt scalar that starts at 0 (SkipInit). Without, the gains of the
            branch's last convolution start at 0.
        pooled: a shortcut is pooled 2×2, and not strided, before its 1×1 convolution.
        same: zeros are padded by TensorFlow's rule; else symmetrically.
        gamma_everywhere: γ is a factor of every convolution's weight, the first one's and the last one's too, and not
            of activations: as timm does it outside its dm_nfnets.
        rule: of weight standardization, "paper" or "timm"; see `ScaledConv2d`.
        gamma: "exact" or "authors"; see `gamma_of`.
        alpha: α, what a branch is multiplied by.
        drop_rate: of dropout before the classifier.
        stochastic_depth: the rate that those of the blocks rise to.
        train_size, test_size: of images, in pixels.

    Raises:
        OptionError: an unknown rule, or a rate that is not from 0 up to 1.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: tuple[int, ...]
    activation: str = "relu"
    bottleneck: float = 0.25
    group_size: int | None = None
    two_convs: bool = False
    attention: str | None = None
    se_ratio: float = 0.5
    head: int = 0
    skip_gain: bool = True
    pooled: bool = False
    same: bool = True
    gamma_everywhere: bool = False
    rule: str = "paper"
    gamma: str = "exact"
    alpha: float = 0.2
    drop_rate: float = 0.0
    stochastic_depth: float = 0.0
    train_size: int = 224
    test_size: int = 224

    def __post_init__(self) -> None:
        check_rule(self.rule)
        for what, rate in (("drop_rate", self.drop_rate), ("stochastic_depth", self.stochastic_depth)):
            if not 0 <= rate < 1:
                raise OptionError(f"{what} is a rate from 0 up to 1, not {rate!r}")


@dataclass(frozen=True)
class Place:
    """Where a block stands.

    Attributes:
        stage, index: its number among the stages, and in its stage.
        inputs, outputs: channels.
        stride: of its first 3×3 convolution.
        variance: that of its input at the start, if all goes as predicted; activations are divided by its root.
        after: that of its output, with a skip gain of 1.
        drop: the rate of stochastic depth.
    """

    stage: int
    index: int
    inputs: int
    outputs: int
    stride: int
    variance: float
    after: float
    drop: float

    @property
    def transition(self) -> bool:
        """Does the shortcut have a convolution? The variance starts at 1 again after it."""
        return self.stride != 1 or self.inputs != self.outputs


def places(config: Config) -> Iterator[Place]:
    """The blocks of a network in their order (Brock et al., arXiv 2101.08692, section 3; the authors' `nfnet.py`)."""
    channels, variance, number = config.stem[-1], 1.0, 0
    # The authors divide by the number of blocks, timm by one less.
    steps = sum(config.depths) - (config.rule == "timm")
    for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        for index in range(depth):
            after = (1.0 if index == 0 else variance) + config.alpha**2
            drop = config.stochastic_depth * number / max(steps, 1)
            yield Place(stage, index, channels, width, 2 if stage and not index else 1, variance, after, drop)
            channels, variance, number = width, after, number + 1


# Dropout, and the sizes of images in training and in tests (Brock et al., arXiv 2102.06171, table 1 and its code).
_F = (
    (0.2, 192, 256),
    (0.3, 224, 320),
    (0.4, 256, 352),
    (0.4, 320, 416),
    (0.5, 384, 512),
    (0.5, 416, 544),
    (0.5, 448, 576),
)
# timm's light networks: multiples of F0's depths, channels of the head, sizes of images.
_ECA = {"eca_nfnet_l0": (1, 2304, 224, 288), "eca_nfnet_l1": (2, 3072, 256, 320), "eca_nfnet_l2": (3, 3072, 320, 384)}
RESNETS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
NFNETS = (*(f"nfnet_f{n}" for n in range(len(_F))), *(f"nfnet_f{n}+" for n in range(len(_F))), *_ECA)
NAMES = (*NFNETS, *(f"nf_resnet{depth}" for depth in RESNETS))


def nfnet_config(name: str, rule: str | None = None, gamma: str | None = None) -> Config:
    """The configuration of an NFNet; see `nfnet`.

    Raises:
        OptionError: an unknown name or rule, or the paper's rule for a network of timm's.
    """
    if name not in NFNETS:
        raise OptionError(f"there is no NFNet {name!r}{nearest(str(name), NFNETS)}: they are {', '.join(NFNETS)}")
    if name in _ECA:
        if rule not in (None, "timm"):
            raise OptionError(f"{name} is a network of timm's own: it has no rule but 'timm', not {rule!r}")
        times, head, train, test = _ECA[name]
        return Config(
            depths=_times(times), widths=(256, 512, 1536, 1536), stem=(16, 32, 64, 128), activation="silu",
            group_size=64, two_convs=True, attention="eca", head=head, skip_gain=False, pooled=True, same=False,
            gamma_everywhere=True, rule="timm", gamma=gamma or "authors", train_size=train, test_size=test,
        )  # fmt: skip
    number, wide, rule = int(name.removeprefix("nfnet_f").rstrip("+")), name.endswith("+"), rule or "paper"
    widths = (384, 768, 2048, 2048) if wide else (256, 512, 1536, 1536)
    drop, train, test = _F[number]
    return Config(
        depths=_times(number + 1), widths=widths, stem=(16, 32, 64, widths[0] // 2),
        # jax.nn.gelu is the form with tanh, timm's the one with erf.
        activation="gelu" if rule == "timm" else "gelu_tanh",
        bottleneck=0.5, group_size=128, two_convs=True, attention="se", head=2 * widths[-1], pooled=True, rule=rule,
        gamma=gamma or ("authors" if rule == "timm" else "exact"),
        drop_rate=drop, stochastic_depth=0.25, train_size=train, test_size=test,
    )  # fmt: skip


def resnet_config(depth: int, rule: str = "paper", gamma: str | None = None, se: bool = False) -> Config:
    """The configuration of an NF-ResNet; see `nf_resnet`.

    Raises:
        OptionError: an unknown depth or rule.
    """
    if depth not in RESNETS:
        raise OptionError(f"there is no NF-ResNet of depth {depth!r}: they are {', '.join(map(str, RESNETS))}")
    theirs = rule == "timm"
    return Config(
        depths=RESNETS[depth], widths=(256, 512, 1024, 2048), stem=(64,), attention="se" if se else None,
        se_ratio=1 / 16 if theirs else 0.25, skip_gain=not theirs, pooled=theirs, same=not theirs,
        gamma_everywhere=theirs, rule=rule, gamma=gamma or ("authors" if theirs else "exact"),
        stochastic_depth=0.0 if theirs else 0.1,
        train_size=256 if theirs else 224, test_size=288 if theirs else 224,
    )  # fmt: skip


def _times(n: int) -> tuple[int, ...]:
    return tuple(n * depth for depth in (1, 2, 6, 3))
