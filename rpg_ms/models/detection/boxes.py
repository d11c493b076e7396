"""Box arithmetic on Tensors, elementwise and in float32.

A box is x1, y1, x2, y2 in pixels, its width x2 - x1: torchvision's convention. MindSpore's own operators for boxes add
one pixel to every side, `NMSWithMask` alone does not.
"""

from __future__ import annotations

import math

from mindspore import Tensor, ops

LARGEST_LOG = math.log(1000 / 16)  # of a predicted side over its reference: keeps exp() from overflowing
SMALLEST_SIDE = 1e-3  # pixels; padding has sides of 0, by which nothing may be divided


def columns(x: Tensor) -> tuple[Tensor, ...]:
    """The entries of the last axis, each without it; by operators that the ONNX export has."""
    parts = ()
    for part in ops.split(x, 1, -1):
        parts += (ops.squeeze(part, -1),)
    return parts


def sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Widths and heights of boxes `[..., 4]`, each `[...]`."""
    x1, y1, x2, y2 = columns(boxes)
    return x2 - x1, y2 - y1


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Areas that boxes `[..., n, 4]` and `[..., m, 4]` share, `[..., n, m]`."""
    x1, y1, x2, y2 = columns(ops.expand_dims(first, -2))
    u1, v1, u2, v2 = columns(ops.expand_dims(second, -3))
    width = ops.minimum(x2, u2) - ops.maximum(x1, u1)
    height = ops.minimum(y2, v2) - ops.maximum(y1, v1)
    return ops.relu(width) * ops.relu(height)


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes `[..., 4]`, `[...]`."""
    width, height = sides(boxes)
    return width * height


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes `[..., n, 4]` and `[..., m, 4]`, `[..., n, m]`; 0 with an empty box."""
    shared = intersection(first, second)
    union = ops.expand_dims(area(first), -1) + ops.expand_dims(area(second), -2) - shared
    return shared / ops.maximum(union, SMALLEST_SIDE**2)


def coverage(boxes: Tensor, others: Tensor) -> Tensor:
    """Share of each of the boxes `[..., n, 4]` that lies in each of the others `[..., m, 4]`, `[..., n, m]`."""
    return intersection(boxes, others) / ops.expand_dims(ops.maximum(area(boxes), SMALLEST_SIDE**2), -1)


def encode(boxes: Tensor, references: Tensor, weights: tuple[float, float]) -> Tensor:
    """What a network has to predict at the references to get the boxes (Ren et al. 2015, section 3.1.2).

    Args:
        boxes: `[..., 4]`.
        references: anchors or proposals, of a shape that broadcasts.
        weights: factors on the shifts and on the logarithms of the sides.

    Returns:
        `[..., 4]`: shifts of the centre in sides of the reference, logarithms of the ratios of the sides.
    """
    x, y, width, height = _centred(references)
    u, v, wide, high = _centred(boxes)
    return ops.stack(
        (
            weights[0] * (u - x) / width,
            weights[0] * (v - y) / height,
            weights[1] * ops.log(wide / width),
            weights[1] * ops.log(high / height),
        ),
        axis=-1,
    )


def decode(deltas: Tensor, references: Tensor, weights: tuple[float, float]) -> Tensor:
    """Boxes `[..., 4]` that a network predicts by `deltas` at `references`: the inverse of `encode`."""
    x, y, width, height = _centred(references)
    dx, dy, dw, dh = columns(deltas)
    u = dx / weights[0] * width + x
    v = dy / weights[0] * height + y
    half_wide = 0.5 * ops.exp(ops.minimum(dw / weights[1], LARGEST_LOG)) * width
    half_high = 0.5 * ops.exp(ops.minimum(dh / weights[1], LARGEST_LOG)) * height
    return ops.stack((u - half_wide, v - half_high, u + half_wide, v + half_high), axis=-1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre and sides of boxes."""
    x1, y1, x2, y2 = columns(boxes)
    width, height = x2 - x1, y2 - y1
    return (x1 + 0.5 * width, y1 + 0.5 * height, ops.maximum(width, SMALLEST_SIDE), ops.maximum(height, SMALLEST_SIDE))


def clip(boxes: Tensor, valid: Tensor) -> Tensor:
    """Boxes `[batch, n, 4]` cut at the borders of their images, `valid` `[batch, 2]` (height, width).

    A coordinate that is not a number becomes 0, as it is to index pixels.
    """
    height, width = columns(ops.expand_dims(valid, 1))
    limits = ops.stack((width, height, width, height), axis=-1)
    boxes = ops.select(boxes == boxes, boxes, ops.zeros_like(boxes))  # NaN; ONNX export lacks isnan
    return ops.minimum(ops.relu(boxes), limits)


def at_least(boxes: Tensor, side: float) -> Tensor:
    """Which of the boxes `[..., 4]` are at least `side` pixels wide and high, bool `[...]`."""
    width, height = sides(boxes)
    return ops.logical_and(width >= side, height >= side)


def take(values: Tensor, index: Tensor) -> Tensor:
    """From values `[batch, n, c]` the rows `index` `[batch, k]`, `[batch, k, c]`, with a reproducible gradient."""
    batch, count, width = values.shape
    start = ops.expand_dims(ops.arange(0, batch * count, count, dtype=index.dtype), 1)
    return ops.gather(values.reshape(batch * count, width), index + start, 0)
