"""The region proposal network (Ren et al. 2015) on a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from rpg_ms.models.detection.anchors import RATIOS
from rpg_ms.models.detection.boxes import at_least, clip, decode, encode, take
from rpg_ms.models.detection.convolution import convolution
from rpg_ms.models.detection.matching import match, sample

WEIGHTS = (1.0, 1.0)  # of shifts and sides in what is predicted
POSITIVE, NEGATIVE = 0.7, 0.3  # intersection over union with an object
SAMPLED, MOST_POSITIVE = 256, 128  # anchors an image in the loss
OVERLAP = 0.7  # of two proposals, beyond which the lower one goes
SMALLEST = 1e-3  # pixels
LOWEST = -1e30  # in the place of logits that count for nothing
BETA = 1 / 9  # where the loss of a box turns from quadratic to linear


def suppress(boxes: Tensor, overlap: float) -> Tensor:
    """Non-maximum suppression of boxes `[n, 4]`, the best first: which of them stay, bool `[n]`."""
    count = boxes.shape[0]
    # MindSpore sorts by score on CPU and by nothing on Ascend: the order that the boxes have is what both must see.
    order = ops.arange(count, 0, -1, dtype=ms.float32).reshape(count, 1)
    return ops.NMSWithMask(overlap)(ops.cat((boxes, order), 1))[2]


def suppress_each(boxes: Tensor, overlap: float) -> Tensor:
    """`suppress` for each image's boxes `[batch, n, 4]`: bool `[batch, n]`."""
    stays = ()
    for i in range(boxes.shape[0]):
        stays += (suppress(boxes[i], overlap),)
    return ops.stack(stays)


def box_loss(predicted: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """Sum of the smooth L1 losses of rows `[..., 4]` for which `counts` `[...]` is true."""
    loss = ops.smooth_l1_loss(predicted, ops.stop_gradient(wanted), BETA, "none").sum(-1)
    return ops.select(counts, loss, ops.zeros_like(loss)).sum()


class RPNHead(nn.Cell):
    """A 3x3 convolution, and for each anchor a logit and four numbers for a box; the same on every level.

    Inputs:
        A list of `[batch, channels, size, size]`.

    Outputs:
        A list of logits `[batch, size² * anchors]` and one of boxes as `encode` has them,
        `[batch, size² * anchors, 4]`, in the order of the anchors.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.SequentialCell(
            [nn.SequentialCell([convolution(channels, channels, 3, Normal(0.01)), nn.ReLU()])]
        )
        self.cls_logits = convolution(channels, len(RATIOS), 1, Normal(0.01))
        self.bbox_pred = convolution(channels, 4 * len(RATIOS), 1, Normal(0.01))

    def construct(self, features: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        logits, deltas = (), ()  # tuples everywhere: the ONNX export has no lists
        for feature in features:
            hidden = self.conv(feature)
            batch = hidden.shape[0]
            logits += (self.cls_logits(hidden).permute(0, 2, 3, 1).reshape(batch, -1),)
            boxes = self.bbox_pred(hidden)
            deltas += (boxes.permute(0, 2, 3, 1).reshape(batch, -1, 4),)
        return logits, deltas


class RegionProposalNetwork(nn.Cell):
    """Proposals of objects, and their losses.

    Args:
        channels: of the features.
        anchors: an array `[n, 4]` for each level.
        pre_nms: most proposals of a level before non-maximum suppression.
        proposals: most of an image after it.
    """

    def __init__(self, channels: int, anchors: Sequence[np.ndarray], pre_nms: int, proposals: int) -> None:
        super().__init__()
        self.head = RPNHead(channels)
        self.anchors = [Tensor(level) for level in anchors]
        self.all_anchors = Tensor(np.concatenate(anchors)[None])
        self.most = [min(pre_nms, len(level)) for level in anchors]
        self.proposals = min(proposals, sum(self.most))

    def propose(self, logits: Sequence[Tensor], deltas: Sequence[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """The best proposals of each image, best first.

        Args:
            logits: float32, a tuple of `[batch, n]`.
            deltas: float32, a tuple of `[batch, n, 4]`.
            valid: float32 `[batch, 2]`, height and width of the images.

        Returns:
            Boxes `[batch, proposals, 4]`, and which of them are proposals, bool `[batch, proposals]`; where there are
            fewer, the others are empty boxes. No gradient goes through either.
        """
        boxes, scores = (), ()
        for i, anchors in enumerate(self.anchors):
            logit = ops.stop_gradient(logits[i])
            logit = ops.select(logit == logit, logit, ops.full_like(logit, LOWEST))  # NaN; ONNX export lacks isnan
            score, index = ops.TopK()(logit, self.most[i])
            box = decode(take(ops.stop_gradient(deltas[i]), index), ops.gather(anchors, index, 0), WEIGHTS)
            box = clip(box, valid)
            large = at_least(box, SMALLEST)
            box = box * ops.expand_dims(large, -1).astype(ms.float32)  # an empty box suppresses none
            stays = suppress_each(box, OVERLAP)
            boxes += (box,)
            scores += (ops.select(ops.logical_and(stays, large), score, ops.full_like(score, LOWEST)),)
        score, index = ops.TopK()(ops.cat(scores, 1), self.proposals)
        found = score > LOWEST
        box = take(ops.cat(boxes, 1), index) * ops.expand_dims(found, -1).astype(ms.float32)
        return ops.stop_gradient(box), found

    def losses(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], boxes: Tensor, labels: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses of the logits and of the boxes, two scalars, over a sample of anchors.

        Args:
            logits, deltas: as for `propose`.
            boxes: of the objects, `[batch, g, 4]`.
            labels: int32 `[batch, g]`, see `match`.
            keys: `[batch, anchors]`, see `sample`.
        """
        positive, negative, of = match(self.all_anchors, boxes, labels, POSITIVE, NEGATIVE, True)
        index, is_positive, is_sampled = sample(positive, negative, keys, SAMPLED, MOST_POSITIVE)
        count = ops.maximum(is_sampled.astype(ms.float32).sum(), 1.0)
        logit = take(ops.expand_dims(ops.cat(logits, 1), -1), index).squeeze(-1)
        loss = ops.binary_cross_entropy_with_logits(
            logit, is_positive.astype(ms.float32), ops.ones_like(logit), ops.ones_like(logit), "none"
        )
        loss = ops.select(is_sampled, loss, ops.zeros_like(loss)).sum() / count
        wanted = take(boxes, ops.gather_elements(of, 1, index))
        wanted = encode(wanted, ops.gather(self.all_anchors[0], index, 0), WEIGHTS)
        return loss, box_loss(take(ops.cat(deltas, 1), index), wanted, is_positive) / count
