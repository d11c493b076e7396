"""Mask R-CNN with a feature pyramid (He et al. 2017), by torchvision's names and numbers, all shapes static."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from rpg_ms.models.detection.heads import RoIHeads
from rpg_ms.models.detection.rpn import RegionProposalNetwork


class MaskRCNN(nn.Cell):
    """Finds objects in images: boxes, scores, classes and masks; Faster R-CNN if the heads have no masks.

    Where there are fewer objects than rows, the others are padding with a score of 0. `keys` is how many random numbers
    an image needs in training, and `predictors` are patterns of the names of the last layers, whose weights are small
    for their importance.

    Inputs:
        images: float32 `[batch, 3, size, size]`, normalised, each in the top left corner.
        valid: float32 `[batch, 2]`, height and width of the images therein; None if they fill it.

    Outputs:
        boxes float32 `[batch, d, 4]`, scores float32 `[batch, d]`, labels int32 `[batch, d]` and masks float32
        `[batch, d, 28, 28]`, probabilities inside the box; the best first. `d` is the number of detections, or of
        proposals times classes if that is less.
    """

    def __init__(
        self, backbone: nn.Cell, rpn: RegionProposalNetwork, roi_heads: RoIHeads, image_size: int, boxes_per_image: int
    ) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads
        self.whole = Tensor(np.full((1, 2), image_size, np.float32))
        self.anchors = rpn.all_anchors.shape[1]
        self.keys = self.anchors + rpn.proposals + boxes_per_image
        masks = ("roi_heads.mask_predictor.mask_fcn_logits",) if roi_heads.masks else ()
        self.predictors = ("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.*", *masks)

    def construct(self, images: Tensor, valid: Optional[Tensor] = None) -> tuple[Tensor, ...]:
        if valid is None:
            valid = self.whole.tile((images.shape[0], 1))
        features, logits, deltas = self._proposing(images)
        proposals, found = self.rpn.propose(logits, deltas, valid)
        return self.roi_heads.detect(features[:-1], proposals, found, valid)

    def losses(
        self, images: Tensor, valid: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor, keys: Tensor
    ) -> tuple[Tensor, ...]:
        """Losses of proposed objects and boxes, of classes, boxes and masks: scalars. See `DetectionLoss`."""
        features, logits, deltas = self._proposing(images)
        first = self.rpn.losses(logits, deltas, boxes, labels, keys[:, : self.anchors])
        proposals, found = self.rpn.propose(logits, deltas, valid)
        keys = keys[:, self.anchors :]
        return (*first, *self.roi_heads.losses(features[:-1], proposals, found, boxes, labels, masks, keys))

    def _proposing(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Levels of the pyramid, logits and boxes on each, the latter in float32."""
        features = self.backbone(images)
        logits, deltas = self.rpn.head(features)
        wide_logits, wide_deltas = (), ()
        for i in range(len(logits)):
            wide_logits += (logits[i].astype(ms.float32),)
            wide_deltas += (deltas[i].astype(ms.float32),)
        return features, wide_logits, wide_deltas

    def convert_parts(self, convert: Callable[[nn.Cell], nn.Cell]) -> None:
        """Replace what has weights by `convert` of it, for mixed precision; boxes stay in float32."""
        heads = self.roi_heads
        self.backbone = convert(self.backbone)
        self.rpn.head = convert(self.rpn.head)
        heads.box_head, heads.box_predictor = convert(heads.box_head), convert(heads.box_predictor)
        if heads.masks:
            heads.mask_head, heads.mask_predictor = convert(heads.mask_head), convert(heads.mask_predictor)


class DetectionLoss(nn.Cell):
    """A network with the plain sum of its five losses, or four without masks.

    Inputs:
        images: float32 `[batch, 3, size, size]`.
        valid: float32 `[batch, 2]`, height and width of the images therein.
        boxes: float32 `[batch, g, 4]`, of the objects.
        labels: int32 `[batch, g]`: their classes from 1; 0 for padding, -1 for a crowd, in which nothing is background.
        masks: uint8 `[batch, g, side, side]`, of 0 and 1: each object's mask inside its box.
        keys: float32 `[batch, network.keys]`, uniform random numbers of [0, 1).

    Outputs:
        A scalar.
    """

    def __init__(self, network: MaskRCNN) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(
        self, images: Tensor, valid: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor, keys: Tensor
    ) -> Tensor:
        total = 0.0
        for loss in self.network.losses(images, valid, boxes, labels, masks, keys):
            total = total + loss
        return total
