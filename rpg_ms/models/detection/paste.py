"""Masks of detections from their boxes into the image, on the host, as torchvision pastes them."""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.5  # probability beyond which a pixel belongs to an object


def paste_masks(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks of the size of an image.

    A mask gets a border of one cell of zeros, its box grows with it and has whole pixels, the last included, and the
    mask is interpolated bilinearly.

    Args:
        masks: probabilities `[n, side, side]`.
        boxes: `[n, 4]`, in pixels of this image.
        height, width: of the image.

    Returns:
        bool `[n, height, width]`.
    """
    pasted = np.zeros((len(masks), height, width), bool)
    if not len(masks):
        return pasted
    side = masks.shape[-1]
    masks = np.pad(np.asarray(masks, np.float32), ((0, 0), (1, 1), (1, 1)))
    boxes = np.asarray(boxes, np.float32)
    centres = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    halves = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((side + 2) / side)
    # Towards zero, not down: a box may begin outside the image.
    whole = np.concatenate([centres - halves, centres + halves], 1).astype(np.int64)
    for out, mask, (x1, y1, x2, y2) in zip(pasted, masks, whole):
        rows, row_weights = _interpolation(y1, y2, height, side + 2)
        columns, column_weights = _interpolation(x1, x2, width, side + 2)
        out[rows, columns] = row_weights @ mask @ column_weights.T > THRESHOLD
    return pasted


def _interpolation(low: int, high: int, size: int, cells: int) -> tuple[slice, np.ndarray]:
    """In one direction, the pixels of an image of `size` from `low` to `high`, and the weights `[pixels, cells]` of a
    mask's cells in each.
    """
    length = max(high - low + 1, 1)
    first, last = max(low, 0), max(min(high + 1, size), max(low, 0))
    scale = np.float32(cells) / np.float32(length)
    places = np.maximum((np.arange(first - low, last - low, dtype=np.float32) + np.float32(0.5)) * scale - 0.5, 0)
    before = np.minimum(places.astype(np.int64), cells - 1)
    share = places - before
    weights = np.zeros((len(places), cells), np.float32)
    pixels = np.arange(len(places))
    weights[pixels, before] = 1 - share
    weights[pixels, np.minimum(before + 1, cells - 1)] += share
    return slice(first, last), weights
