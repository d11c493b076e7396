"""The convolutions of a detector outside of its backbone: all have a bias and keep the size."""

from __future__ import annotations

from mindspore import nn
from mindspore.common.initializer import Initializer


def convolution(channels_in: int, channels: int, kernel: int, weight_init: Initializer) -> nn.Conv2d:
    """A convolution of an odd kernel, padded so that the size stays, with a bias that begins at zero."""
    return nn.Conv2d(
        channels_in,
        channels,
        kernel,
        pad_mode="pad",
        padding=kernel // 2,
        has_bias=True,
        weight_init=weight_init,
        bias_init="zeros",
    )
