"""Which anchors and proposals stand for which objects, and a sample of them, with static shapes.

Sampling uses random numbers that come with the batch, so that it is the same on every device and after a resume.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

from rpg_ms.models.detection.boxes import coverage, iou

IN_CROWD = 0.5  # share of a box in a crowd beyond which it is no background


def match(
    candidates: Tensor, boxes: Tensor, labels: Tensor, high: float, low: float, best_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare candidates with the objects of their image.

    Args:
        candidates: anchors or proposals `[batch or 1, n, 4]`.
        boxes: of objects, `[batch, g, 4]`.
        labels: int32 `[batch, g]`: 0 for padding, -1 for a crowd, which is matched by nothing.
        high: intersection over union from which a candidate is an object.
        low: the same, below which it is background, unless it lies in a crowd; in between it is neither.
        best_too: whether the candidates that overlap an object most are objects as well, however little that is.

    Returns:
        `(positive, negative, object)`, each `[batch, n]`: bool, bool, and int32, the object that overlaps the most.
    """
    is_object = ops.expand_dims(labels > 0, 1)
    overlap = iou(candidates, boxes)
    overlap = ops.select(is_object, overlap, ops.full_like(overlap, -1.0))
    best = ops.amax(overlap, -1)
    positive = best >= high
    if best_too:
        highest = ops.amax(overlap, 1, keepdims=True)
        is_highest = ops.logical_and(overlap == highest, highest > 0)
        positive = ops.logical_or(positive, ops.any(is_highest, -1))
    is_crowd = ops.expand_dims(labels < 0, 1).astype(ms.float32)
    in_crowd = ops.amax(coverage(candidates, boxes) * is_crowd, -1) >= IN_CROWD
    negative = ops.logical_and(best < low, ops.logical_not(ops.logical_or(positive, in_crowd)))
    return positive, negative, ops.argmax(overlap, -1).astype(ms.int32)


def sample(
    positive: Tensor, negative: Tensor, keys: Tensor, count: int, most_positive: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A random sample of candidates: up to `most_positive` objects, and background for the rest of `count`.

    Args:
        positive: bool `[batch, n]`.
        negative: bool `[batch, n]`, of others.
        keys: random numbers of [0, 1), float32 `[batch, n]`: those with the largest are taken.
        count: of the sample of an image.
        most_positive: of them.

    Returns:
        `(index, is_positive, is_sampled)`, each `[batch, k]` with k = min(count, n): int32, bool and bool. Objects come
        first, then background, then what is not of the sample, where there are too few of either.
    """
    count = min(count, keys.shape[1])
    ranked = positive.astype(ms.float32) * (1 + keys)
    bar = ops.TopK()(ranked, min(most_positive, count))[0][:, -1:]  # 0 if all of them are taken
    chosen = ops.logical_and(positive, ranked >= bar).astype(ms.float32)
    value, index = ops.TopK()(chosen * (3 + keys) + negative.astype(ms.float32) * (1 + keys), count)
    return index, value >= 3, value > 0
