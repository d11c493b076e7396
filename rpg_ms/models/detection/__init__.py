"""Detectors by name: Mask R-CNN and Faster R-CNN with a feature pyramid on a residual network."""

from __future__ import annotations

from dataclasses import dataclass

from mindcv.models.resnet import ResNet
from mindspore import nn

from rpg_ms.errors import UserError
from rpg_ms.models import CIFAR_RESNETS, PaddedMaxPool, create_model, name_by_place
from rpg_ms.models.detection.anchors import anchors
from rpg_ms.models.detection.fpn import Backbone, FeaturePyramid, ResNetBody
from rpg_ms.models.detection.heads import BOX_BINS, MASK_BINS, RoIHeads
from rpg_ms.models.detection.mask_rcnn import DetectionLoss, MaskRCNN
from rpg_ms.models.detection.norm import set_norms
from rpg_ms.models.detection.roi_align import GatherAlign, OperatorAlign
from rpg_ms.models.detection.rpn import RegionProposalNetwork

__all__ = ["DetectionLoss", "DetectionSettings", "MaskRCNN", "create_detector"]

PREFIX = "maskrcnn_"
SUFFIX = "_fpn"  # which torchvision's names have
ANCHOR_STRIDES = 8  # side of the anchors of a level in strides, unless they are given


@dataclass(frozen=True)
class DetectionSettings:
    """How a detector is built. The group `detection` of a configuration has the same keys, and `model.masks` the first.

    Args:
        masks: whether it predicts masks.
        boxes_per_image: objects of an image in training, padding included.
        proposals: an image after non-maximum suppression, in training and inference.
        pre_nms_proposals: a level before it.
        rois_per_image: sampled from the proposals for the losses of the heads.
        detections: most of an image.
        score_threshold: which a detection's score exceeds.
        trainable_layers: parts of the backbone that are trained, from the last stage: 4 stages and the first
            convolution make 5.
        norm: of the backbone, "live", or "frozen" as loaded.
        norm_epsilon: added to its variances; torchvision's COCO_V1 weights want frozen norms and 0.
        fpn_channels: width of the feature pyramid.
        hidden: width of the dense layers.
        anchor_sizes: sides of the square anchors in pixels, one a level; () for 8 strides each.
        roi_align: "gather", or "operator" for MindSpore's own.
    """

    masks: bool = True
    boxes_per_image: int = 32
    proposals: int = 1000
    pre_nms_proposals: int = 1000
    rois_per_image: int = 512
    detections: int = 100
    score_threshold: float = 0.05
    trainable_layers: int = 5
    norm: str = "live"
    norm_epsilon: float = 1e-5
    fpn_channels: int = 256
    hidden: int = 1024
    anchor_sizes: tuple[float, ...] = ()
    roi_align: str = "gather"


def create_detector(
    name: str, classes: int, image_size: int, width: float = 1.0, settings: DetectionSettings = DetectionSettings()
) -> MaskRCNN:
    """A detector by name, with fresh weights.

    Args:
        name: `maskrcnn_` and a residual network of this package or of mindcv; torchvision's `_fpn` may follow.
        classes: the background included: 91 for COCO by torchvision.
        image_size: height and width of the images.
        width: factor on the channels of a CIFAR ResNet.
        settings: a `DetectionSettings`, or anything with its attributes.

    Raises:
        UserError: an unknown network, one that is no residual network, or settings that do not fit it.
    """
    backbone = name[len(PREFIX) :].removesuffix(SUFFIX) if name.startswith(PREFIX) else ""
    if not backbone or ":" in backbone:
        raise UserError(
            f"model.name: {name!r} is not {PREFIX} and a residual network, such as {PREFIX}resnet50{SUFFIX}"
        )
    network = create_model(backbone, 2, 3, image_size, width)
    body, channels, strides = _body(network, backbone)
    if image_size % strides[-1]:
        raise UserError(f"data.image_size: {image_size} is not a multiple of {strides[-1]}, the stride of {name}")
    sizes = [image_size // stride for stride in strides]
    levels = [*sizes, -(-sizes[-1] // 2)]
    anchor_sizes = settings.anchor_sizes or [ANCHOR_STRIDES * stride for stride in (*strides, 2 * strides[-1])]
    if len(anchor_sizes) != len(levels):
        raise UserError(f"detection.anchor_sizes: {len(anchor_sizes)} sizes, not one for each of {len(levels)} levels")
    set_norms(body, settings.norm == "frozen", settings.norm_epsilon)
    _freeze(body, settings.trainable_layers)
    align = {"gather": GatherAlign, "operator": OperatorAlign}[settings.roi_align]
    heads = RoIHeads(
        settings.fpn_channels,
        settings.hidden,
        classes,
        (align(sizes, strides, BOX_BINS), align(sizes, strides, MASK_BINS) if settings.masks else None),
        settings.rois_per_image,
        settings.detections,
        settings.score_threshold,
        image_size,
    )
    rpn = RegionProposalNetwork(
        settings.fpn_channels, anchors(image_size, levels, anchor_sizes), settings.pre_nms_proposals, settings.proposals
    )
    detector = MaskRCNN(
        Backbone(body, FeaturePyramid(channels, settings.fpn_channels)),
        rpn,
        heads,
        image_size,
        settings.boxes_per_image,
    )
    name_by_place(detector)
    return detector


def _body(network: nn.Cell, name: str) -> tuple[ResNetBody, list[int], list[int]]:
    """The stages of a residual network, their channels and their strides."""
    if name in CIFAR_RESNETS:
        stages = [network.layer1, network.layer2, network.layer3]
        first = 2 * network.conv1.stride[0]  # of its first convolution, and the pooling that follows here
        channels = [stage[-1].bn2.num_features for stage in stages]
        return ResNetBody(network, PaddedMaxPool()), channels, [first * 2**i for i in range(len(stages))]
    if not isinstance(network, ResNet):
        raise UserError(f"model.name: {name} is not a residual network of mindcv, nor {', '.join(CIFAR_RESNETS)}")
    stages = network.feature_info[1:]
    channels, strides = [stage["chs"] for stage in stages], [stage["reduction"] for stage in stages]
    return ResNetBody(network, network.max_pool), channels, strides


def _freeze(body: ResNetBody, trained: int) -> None:
    """Leave only so many parts to train, the last ones."""
    parts = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    parts = [[getattr(body, name) for name in part] for part in parts if getattr(body, part[0]) is not None]
    for part in parts[: max(0, len(parts) - trained)]:
        for cell in part:
            for parameter in cell.get_parameters():
                parameter.requires_grad = False
