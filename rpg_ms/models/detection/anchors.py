"""Anchors of a region proposal network (Ren et al. 2015, section 3.1.1), placed as torchvision places them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RATIOS = (0.5, 1.0, 2.0)  # height over width


def anchors(image_size: int, feature_sizes: Sequence[int], sizes: Sequence[float]) -> list[np.ndarray]:
    """The anchors of every level.

    A level's grid steps by whole pixels, `image_size // feature size`, from the corner and not from the middle of a
    pixel, and the corners of an anchor at (0, 0) are rounded: all as torchvision does it.

    Args:
        image_size: height and width of the images.
        feature_sizes: height and width of each level.
        sizes: side of a square anchor, one a level, in pixels.

    Returns:
        A float32 array `[feature size² * 3, 4]` for each level, in the order row, column, ratio.
    """
    levels = []
    for feature_size, size in zip(feature_sizes, sizes):
        heights = np.sqrt(np.float32(RATIOS)) * np.float32(size)
        widths = np.float32(1) / np.sqrt(np.float32(RATIOS)) * np.float32(size)
        base = np.round(np.stack([-widths, -heights, widths, heights], 1) / 2)
        steps = np.arange(feature_size, dtype=np.float32) * (image_size // feature_size)
        y, x = np.meshgrid(steps, steps, indexing="ij")
        corners = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        levels.append((corners + base).reshape(-1, 4).astype(np.float32))
    return levels
