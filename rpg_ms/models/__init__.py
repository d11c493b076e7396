"""Networks by name: this package's own, and every image model of mindcv."""
from __future__ import annotations

import difflib
from functools import partial

import mindcv

from rpg_ms.errors import UserError
from rpg_ms.models.resnet_cifar import CifarResNet

MODELS = {
    "resnet_small": partial(CifarResNet, 20, stem_stride=2),
    **{f"cifar_resnet{depth}": partial(CifarResNet, depth) for depth in (8, 20, 32, 44, 56, 110)},
}


def create_model(name, num_classes, in_channels):
    """A network by name, with fresh weights.

    Args:
        name: one of `MODELS`, or any name mindcv knows.
        num_classes: width of the classifier.
        in_channels: channels of the images.

    Raises:
        UserError: an unknown name.
    """
    if name in MODELS:
        return MODELS[name](num_classes=num_classes, in_channels=in_channels)
    known = mindcv.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, [*MODELS, *known], 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"model.name: {name!r} is not one of {', '.join(MODELS)}, nor a model of mindcv{hint}")
    return mindcv.create_model(name, num_classes=num_classes, in_channels=in_channels)
