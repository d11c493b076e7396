"""DeiT-S (Touvron et al. 2021, arXiv 2012.12877), on mindcv's vision transformer."""

from __future__ import annotations

from functools import partial

from mindcv.models.vit import VisionTransformer
from mindspore import nn


def deit_small(num_classes: int = 1000, in_channels: int = 3, image_size: int = 224) -> VisionTransformer:
    """DeiT-S without the distillation token: embedding 384, depth 12, 6 heads, patches of 16 x 16 pixels.

    Exact GELU and an epsilon of 1e-6, as in the published weights; stochastic depth 0.1, as in their training.
    Takes images `[batch, in_channels, image_size, image_size]`, returns logits `[batch, num_classes]`.
    """
    return VisionTransformer(
        image_size=image_size,
        patch_size=16,
        in_channels=in_channels,
        embed_dim=384,
        depth=12,
        num_heads=6,
        drop_path_rate=0.1,
        act_layer=partial(nn.GELU, approximate=False),
        norm_layer=partial(nn.LayerNorm, epsilon=1e-6),
        num_classes=num_classes,
    )
