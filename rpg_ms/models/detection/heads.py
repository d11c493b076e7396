"""What looks at each proposal: its class and box (Girshick 2015), and its mask (He et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import HeNormal

from rpg_ms.models.detection.boxes import at_least, clip, columns, decode, encode, sides, take
from rpg_ms.models.detection.convolution import convolution
from rpg_ms.models.detection.matching import match, sample
from rpg_ms.models.detection.rpn import box_loss, suppress_each

WEIGHTS = (10.0, 5.0)  # of shifts and sides in what is predicted
OBJECT = 0.5  # intersection over union of a proposal with an object, from which it stands for it
POSITIVE_SHARE = 0.25  # of the sampled RoIs, at most
OVERLAP = 0.5  # of two detections of a class, beyond which the lower one goes
SMALLEST = 1e-2  # pixels
CANDIDATES = 2000  # best pairs of proposal and class that become boxes: NMSWithMask takes at most 2,864
BOX_BINS, MASK_BINS = 7, 14
MASK_SIDE = 2 * MASK_BINS


class BoxHead(nn.Cell):
    """Two dense layers from pooled features `[n, channels, 7, 7]` to `[n, hidden]`."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc6 = nn.Dense(channels * BOX_BINS**2, hidden)
        self.fc7 = nn.Dense(hidden, hidden)

    def construct(self, pooled: Tensor) -> Tensor:
        return ops.relu(self.fc7(ops.relu(self.fc6(pooled.reshape(pooled.shape[0], -1)))))


class BoxPredictor(nn.Cell):
    """From `[n, hidden]` the logits of the classes `[n, classes]`, and a box for each, `[n, 4 * classes]`."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Dense(hidden, classes)
        self.bbox_pred = nn.Dense(hidden, 4 * classes)

    def construct(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(hidden), self.bbox_pred(hidden)


class MaskHead(nn.SequentialCell):
    """Four 3x3 convolutions on pooled features `[n, channels, 14, 14]`."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            [nn.SequentialCell([convolution(channels, channels, 3, _he_normal()), nn.ReLU()]) for _ in range(4)]
        )


class MaskPredictor(nn.Cell):
    """From `[n, channels, 14, 14]` the logits of a mask for every class, `[n, classes, 28, 28]`."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.Conv2dTranspose(
            channels, channels, 2, 2, pad_mode="valid", has_bias=True, weight_init=_he_normal(), bias_init="zeros"
        )
        self.mask_fcn_logits = convolution(channels, classes, 1, _he_normal())

    def construct(self, features: Tensor) -> Tensor:
        return self.mask_fcn_logits(ops.relu(self.conv5_mask(features)))


class RoIHeads(nn.Cell):
    """Classes, boxes and masks of proposals, and their losses.

    Args:
        channels: of the features.
        hidden: width of the dense layers.
        classes: the background included, which is class 0.
        aligns: RoI align for boxes and for masks; None in the place of the latter for a network without masks.
        rois: an image in the losses.
        detections: most of an image.
        score_threshold: which a detection's score exceeds.
        image_size: height and width of the images.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        classes: int,
        aligns: tuple[nn.Cell, Optional[nn.Cell]],
        rois: int,
        detections: int,
        score_threshold: float,
        image_size: int,
    ) -> None:
        super().__init__()
        self.classes, self.rois, self.detections, self.score_threshold = classes, rois, detections, score_threshold
        self.most_positive = max(1, int(POSITIVE_SHARE * rois))
        self.image_size = image_size
        self.masks = aligns[1] is not None
        self.box_align, self.box_head = aligns[0], BoxHead(channels, hidden)
        self.box_predictor = BoxPredictor(hidden, classes)
        if self.masks:
            self.mask_align, self.mask_head = aligns[1], MaskHead(channels)
            self.mask_predictor = MaskPredictor(channels, classes)

    def predict_boxes(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Of boxes `[batch, n, 4]` the logits `[batch, n, classes]` and what `decode` takes `[batch, n * classes, 4]`,
        both float32.
        """
        batch, count = boxes.shape[:2]
        logits, deltas = self.box_predictor(self.box_head(self.box_align(features, boxes)))
        return (
            logits.astype(ms.float32).reshape(batch, count, self.classes),
            deltas.astype(ms.float32).reshape(batch, count * self.classes, 4),
        )

    def predict_masks(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Of boxes `[batch, n, 4]` the logits of the masks of their `labels` `[batch, n]`: `[batch, n, 28, 28]`."""
        batch, count = boxes.shape[:2]
        logits = self.mask_predictor(self.mask_head(self.mask_align(features, boxes))).astype(ms.float32)
        rows = logits.reshape(batch, count * self.classes, MASK_SIDE**2)
        return take(rows, self._of_class(labels)).reshape(batch, count, MASK_SIDE, MASK_SIDE)

    def _of_class(self, labels: Tensor) -> Tensor:
        """Where the row of each label `[batch, n]` is among the rows of all classes."""
        return ops.arange(labels.shape[1]).astype(ms.int32) * self.classes + labels

    # ------------------------------------------------------------------------------------------ inference

    def detect(self, features: Sequence[Tensor], proposals: Tensor, found: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """The detections of each image; see `MaskRCNN`.

        Args:
            features: levels of the pyramid.
            proposals, found: what `RegionProposalNetwork.propose` returns.
            valid: float32 `[batch, 2]`, height and width of the images.
        """
        batch, count = found.shape
        logits, deltas = self.predict_boxes(features, proposals)
        scores = ops.softmax(logits, -1)[:, :, 1:]
        scores = ops.select(
            ops.logical_and(ops.expand_dims(found, -1), scores == scores), scores, ops.zeros_like(scores)
        )
        objects = self.classes - 1
        score, index = ops.TopK()(scores.reshape(batch, count * objects), min(CANDIDATES, count * objects))
        proposal = ops.floor_divide(index, objects)
        label = index - proposal * objects + 1
        boxes = decode(take(deltas, proposal * self.classes + label), take(proposals, proposal), WEIGHTS)
        boxes = clip(boxes, valid)
        fits = ops.logical_and(score > self.score_threshold, at_least(boxes, SMALLEST))
        boxes = boxes * ops.expand_dims(fits, -1).astype(ms.float32)  # an empty box suppresses none
        # Side by side, boxes of different classes do not overlap.
        shifted = boxes + ops.expand_dims(label.astype(ms.float32), -1) * (self.image_size + 1)
        stays = suppress_each(shifted, OVERLAP)
        score = score * ops.logical_and(stays, fits).astype(ms.float32)
        score, index = ops.TopK()(score, min(self.detections, score.shape[1]))
        is_detection = (score > 0).astype(ms.int32)
        boxes = take(boxes, index) * ops.expand_dims(is_detection, -1).astype(ms.float32)
        labels = ops.gather_elements(label, 1, index) * is_detection
        if not self.masks:
            return boxes, score, labels
        return boxes, score, labels, ops.sigmoid(self.predict_masks(features, boxes, labels))

    # ------------------------------------------------------------------------------------------ training

    def losses(
        self,
        features: Sequence[Tensor],
        proposals: Tensor,
        found: Tensor,
        boxes: Tensor,
        labels: Tensor,
        masks: Tensor,
        keys: Tensor,
    ) -> tuple[Tensor, ...]:
        """Losses of classes, boxes and, if there are any, masks: scalars, over a sample of the proposals and objects.

        Args:
            features: levels of the pyramid.
            proposals, found: what `RegionProposalNetwork.propose` returns.
            boxes, labels, masks: see `DetectionLoss`.
            keys: `[batch, proposals + g]`, see `sample`.
        """
        candidates = ops.cat((proposals, boxes), 1)
        exists = ops.cat((found, labels > 0), 1)
        positive, negative, of = match(candidates, boxes, labels, OBJECT, OBJECT, False)
        index, is_positive, is_sampled = sample(
            ops.logical_and(positive, exists), ops.logical_and(negative, exists), keys, self.rois, self.most_positive
        )
        rois, of = take(candidates, index), ops.gather_elements(of, 1, index)
        wanted = ops.gather_elements(labels, 1, of) * is_positive.astype(ms.int32)
        matched = take(boxes, of)
        logits, deltas = self.predict_boxes(features, rois)
        class_loss = ops.cross_entropy(logits.reshape(-1, self.classes), wanted.reshape(-1), reduction="none")
        count = ops.maximum(is_sampled.astype(ms.float32).sum(), 1.0)
        sampled = is_sampled.reshape(-1)
        class_loss = ops.select(sampled, class_loss, ops.zeros_like(class_loss)).sum() / count
        deltas = take(deltas, self._of_class(wanted))
        losses = class_loss, box_loss(deltas, encode(matched, rois, WEIGHTS), is_positive) / count
        if not self.masks:
            return losses
        # Objects come first in a sample: the rest of it has no mask.
        first = min(self.most_positive, rois.shape[1])
        rois, of, matched = rois[:, :first], of[:, :first], matched[:, :first]
        predicted = self.predict_masks(features, rois, wanted[:, :first])
        target = ops.stop_gradient(mask_targets(masks, of, matched, rois))
        loss = ops.binary_cross_entropy_with_logits(
            predicted, target, ops.ones_like(predicted), ops.ones_like(predicted), "none"
        ).mean((2, 3))
        counts = is_positive[:, :first]
        mask_loss = ops.select(counts, loss, ops.zeros_like(loss)).sum()
        return (*losses, mask_loss / ops.maximum(counts.astype(ms.float32).sum(), 1.0))


def mask_targets(masks: Tensor, of: Tensor, boxes: Tensor, rois: Tensor) -> Tensor:
    """The masks of objects as their RoIs see them: the mean of 2 x 2 bilinear samples in each of 28 x 28 bins.

    Args:
        masks: of the objects inside their boxes, uint8 `[batch, g, side, side]`.
        of: int32 `[batch, n]`, the object of each RoI.
        boxes: float32 `[batch, n, 4]`, its box.
        rois: float32 `[batch, n, 4]`.

    Returns:
        float32 `[batch, n, 28, 28]`, 0 to 1; 0 outside the box.
    """
    batch, objects, side = masks.shape[:3]
    count = of.shape[1]
    mask = take(masks.astype(ms.float32).reshape(batch, objects, side * side), of).reshape(batch, count, side, side)
    x1, y1, _, _ = columns(boxes)
    u1, v1, u2, v2 = columns(rois)
    width, height = sides(boxes)
    across = _sampling((u1 - x1) / ops.maximum(width, SMALLEST), (u2 - x1) / ops.maximum(width, SMALLEST), side)
    down = _sampling((v1 - y1) / ops.maximum(height, SMALLEST), (v2 - y1) / ops.maximum(height, SMALLEST), side)
    return ops.matmul(ops.matmul(down, mask), across.swapaxes(-1, -2))


def _sampling(low: Tensor, high: Tensor, side: int) -> Tensor:
    """Weights `[batch, n, 28, side]` of a mask's cells in the bins of RoIs, in one direction; `low` and `high`
    `[batch, n]` are the ends of the RoIs in sides of the box. A cell's value stands in its middle.
    """
    low, high = low.reshape(*low.shape, 1, 1, 1), high.reshape(*high.shape, 1, 1, 1)
    places = ops.arange(2 * MASK_SIDE).astype(ms.float32).reshape(1, 1, MASK_SIDE, 2, 1) + 0.5
    places = (low + (high - low) * (places / (2 * MASK_SIDE))) * side - 0.5
    cells = ops.arange(side).astype(ms.float32)
    return ops.relu(1 - ops.abs(places - cells)).mean(3)


def _he_normal() -> HeNormal:
    return HeNormal(mode="fan_out", nonlinearity="relu")
