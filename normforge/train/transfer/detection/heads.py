"""The heads of Mask R-CNN with a place for a layer after each convolution, after the box head's linear layer too.

As in the detection code of EvoNorm's authors: the region proposal network has one convolution for all levels, and a
layer of its own for each, since levels differ in their statistics.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from normforge.train.networks.places import Place


class ProposalHead(nn.Module):
    """The head of the region proposal network (arXiv 1506.01497, section 3.1).

    Args:
        channels: of the pyramid. anchors: in each position. levels: of the pyramid.
    """

    def __init__(self, channels: int, anchors: int, levels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(Place(channels) for _ in range(levels))
        self.cls_logits = nn.Conv2d(channels, anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * anchors, 1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        for conv in (self.cls_logits, self.bbox_pred):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, anchors, H, W) and box deltas (N, 4 anchors, H, W) of each level."""
        hidden = [layer(self.conv(x)) for layer, x in zip(self.layers, features, strict=True)]
        return [self.cls_logits(h) for h in hidden], [self.bbox_pred(h) for h in hidden]


class BoxHead(nn.Module):
    """Convolutions and one linear layer (arXiv 1803.08494, section 4.2: "4conv1fc").

    Args:
        channels: of the pyramid. width: of the convolutions. convs: how many. fc: features of the result.
        side: of regions, in cells.
    """

    def __init__(self, channels: int, width: int, convs: int, fc: int, side: int = 7) -> None:
        super().__init__()
        self.convs = _convs(channels, width, convs)
        self.fc = nn.Linear((width if convs else channels) * side * side, fc, bias=False)
        self.layer: nn.Module = Place(fc)
        nn.init.kaiming_normal_(self.fc.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Features (R, fc) of regions (R, channels, side, side)."""
        hidden: Tensor = self.layer(self.fc(self.convs(x).flatten(1)))
        return hidden


class BoxPredictor(nn.Module):
    """Class logits and box deltas of a region.

    Args:
        features: of a region. classes: with the background.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, classes)
        self.bbox_pred = nn.Linear(features, 4 * classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for linear in (self.cls_score, self.bbox_pred):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (R, classes) and deltas (R, 4 classes) of features (R, features)."""
        return self.cls_score(x), self.bbox_pred(x)


def mask_head(channels: int, width: int, convs: int) -> nn.Module:
    """Convolutions on regions (R, channels, 14, 14)."""
    return _convs(channels, width, convs)


def mask_predictor(width: int, classes: int) -> nn.Module:
    """Logits of masks (R, classes, 28, 28), of regions (R, width, 14, 14)."""
    deconv, logits = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False), nn.Conv2d(width, classes, 1)
    for module in (deconv, logits):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    assert logits.bias is not None
    nn.init.zeros_(logits.bias)
    return nn.Sequential(deconv, Place(width), logits)


def _convs(channels: int, width: int, count: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for before, after in pairwise([channels, *[width] * count]):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        modules += [conv, Place(after)]
    return nn.Sequential(*modules)
