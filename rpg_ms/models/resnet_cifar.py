"""Residual networks for small images (He et al. 2016, section 4.2), parameter-free shortcuts."""

from __future__ import annotations

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import HeNormal


def _conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        channels_in,
        channels_out,
        3,
        stride,
        pad_mode="pad",
        padding=1,
        has_bias=False,
        weight_init=HeNormal(mode="fan_out", nonlinearity="relu"),
    )


class BasicBlock(nn.Cell):
    """Two 3x3 convolutions; a shortcut that strides over pixels and pads channels with zeros."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        # Subsampling as a pooling over single pixels: a strided slice has no working gradient in PyNative mode on CPU.
        self.subsample = nn.MaxPool2d(1, stride) if stride > 1 else None
        before = (channels_out - channels_in) // 2
        after = channels_out - channels_in - before
        self.pad = ops.Pad(((0, 0), (before, after), (0, 0), (0, 0))) if channels_out > channels_in else None

    def construct(self, x: Tensor) -> Tensor:
        out = ops.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.subsample is not None:
            x = self.subsample(x)
        if self.pad is not None:
            x = self.pad(x)
        return ops.relu(out + x)


class CifarResNet(nn.Cell):
    """Stem, three stages of basic blocks, average pooling, one dense layer.

    Args:
        depth: 6n + 2 for n blocks a stage: 8, 14, 20, 32, 44, 56, 110.
        num_classes: outputs.
        in_channels: channels of the images.
        width: channels of the stem; the stages have 1, 2 and 4 times as many.
        stem_stride: stride of the first convolution; 2 makes a network four times cheaper.

    Inputs:
        float tensor `[batch, in_channels, height, width]`.

    Outputs:
        Logits `[batch, num_classes]`.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 16, stem_stride: int = 1
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth: {depth} is not 6n + 2 with n >= 1")
        self.conv1 = _conv3x3(in_channels, width, stem_stride)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = (depth - 2) // 6
        self.layer1 = self._stage(width, width, 1, blocks)
        self.layer2 = self._stage(width, 2 * width, 2, blocks)
        self.layer3 = self._stage(2 * width, 4 * width, 2, blocks)
        self.linear = nn.Dense(4 * width, num_classes)

    @staticmethod
    def _stage(channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.SequentialCell:
        first = BasicBlock(channels_in, channels_out, stride)
        return nn.SequentialCell([first] + [BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)])

    def construct(self, x: Tensor) -> Tensor:
        x = ops.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))
