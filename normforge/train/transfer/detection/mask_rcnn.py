"""Mask R-CNN (arXiv 1703.06870) of torchvision's parts, with one layer in every place of a norm and its activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from normforge.kernels.compile import compile
from normforge.train.networks.places import LayerFactory, Place, put
from normforge.train.transfer.detection.backbone import ResNetFPN
from normforge.train.transfer.detection.heads import BoxHead, BoxPredictor, ProposalHead, mask_head, mask_predictor
from normforge.train.transfer.detection.settings import AFFINE_RELU, Detector
from normforge.train.transfer.detection.spinenet import CONFIGS, SpineNet

_RATIOS = (0.5, 1.0, 2.0)  # height through width of anchors
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's and the authors'


def _place(channels: int, *, channel_dim: int = 1) -> nn.Module:
    return Place(channels)


def _box_head(config: Detector, channels: int) -> BoxHead:
    head = BoxHead(channels, config.head_channels, config.box_convs, config.box_fc)
    if config.fc_layer == "relu":
        head.layer = compile(AFFINE_RELU, config.box_fc)
    return head


def mask_rcnn(config: Detector, layer: LayerFactory, classes: int, seed: int) -> nn.Module:
    """A detector with random weights.

    Args:
        config: backbone, pyramid and heads.
        layer: makes the module of a place. Places without activation are `Affine`.
        classes: without the background.
        seed: of the weights, which depend on nothing else; the global random state is left as it was.

    Returns:
        torchvision's `MaskRCNN` in training mode: from a list of images (3, H, W) in [0, 1] and targets to a dict of
        losses; in evaluation from images to a list of dicts with boxes, labels, scores and masks (n, 1, H, W).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: Any = ResNetFPN(config) if config.backbone == "resnet" else SpineNet(CONFIGS[config.backbone], _place)
        levels, channels = backbone.levels, backbone.out_channels
        names = [str(level) for level in levels]
        sizes = tuple((round(config.anchor * 2**level),) for level in levels)
        model: nn.Module = MaskRCNN(
            backbone,
            None,
            min_size=config.min_size,
            max_size=config.max_size,
            # torchvision takes a level's stride for size / cells: so that it is, at the coarsest level too
            size_divisible=max(32, 2 ** max(levels)),
            image_mean=list(_MEAN),
            image_std=list(_DEVIATION),
            rpn_anchor_generator=AnchorGenerator(sizes, (_RATIOS,) * len(levels)),
            rpn_head=ProposalHead(channels, len(_RATIOS), len(levels)),
            rpn_pre_nms_top_n_train=config.proposals,
            rpn_pre_nms_top_n_test=config.proposals,
            rpn_post_nms_top_n_train=config.proposals,
            rpn_post_nms_top_n_test=config.proposals,
            box_roi_pool=MultiScaleRoIAlign(names, 7, 2),
            box_head=_box_head(config, channels),
            box_predictor=BoxPredictor(config.box_fc, classes + 1),
            box_batch_size_per_image=config.regions,
            box_detections_per_img=config.detections,
            mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
            mask_head=mask_head(channels, config.head_channels, config.mask_convs),
            mask_predictor=mask_predictor(config.head_channels, classes + 1),
        )
        return put(model, layer)
