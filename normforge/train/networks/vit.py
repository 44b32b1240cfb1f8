"""A small vision transformer (Dosovitskiy et al., arXiv 2010.11929), the layer in place of LayerNorm."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from normforge.errors import OptionError
from normforge.train.config import ViT


def vit(config: ViT, *, in_channels: int, classes: int, size: int) -> nn.Module:
    """A vision transformer: timm's, with its own LayerNorms: two places a block and one before the pooling.

    Args:
        config: dim, depth, heads, patch.
        in_channels: of the images.
        classes: of the logits.
        size: of an image's side in pixels.

    Returns:
        A module from images (N, in_channels, size, size) to logits (N, classes). Tokens are averaged, there is no class
        token; the last layer sees the tokens (N, T, C) before the average, so that moments over positions mean the
        same there as elsewhere.

    Raises:
        OptionError: the patch does not divide the image, or the heads not the dim.
    """
    if size % config.patch:
        raise OptionError(
            f"networks.vit.patch = {config.patch} does not divide a side of {size} pixels: give a divisor of {size}"
        )
    if config.dim % config.heads:
        raise OptionError(f"networks.vit.heads = {config.heads} does not divide networks.vit.dim = {config.dim}")
    model = VisionTransformer(
        img_size=size,
        patch_size=config.patch,
        in_chans=in_channels,
        num_classes=classes,
        global_pool="avg",
        class_token=False,
        fc_norm=False,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        weight_init="jax",  # the authors'; timm's own leaves 200 steps of SGD at half the accuracy
    )
    # The authors' head starts at zero, which lets no gradient through to a layer; so as in timm's ResNet:
    nn.init.normal_(model.head.weight, 0.0, 0.01)
    for block in model.blocks:
        # The stability test differentiates twice, which torch's fused attention cannot.
        block.attn.fused_attn = False
    return model
