"""A residual network's stages as a feature pyramid (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from mindcv.models.resnet import BasicBlock, Bottleneck
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import HeUniform

from rpg_ms.models.detection.convolution import convolution


class _BasicBlock(BasicBlock):
    def construct(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        shortcut = x if self.down_sample is None else self.down_sample(x)
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class _Bottleneck(Bottleneck):
    def construct(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        shortcut = x if self.down_sample is None else self.down_sample(x)
        return self.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNetBody(nn.Cell):
    """The stages of a residual network, of mindcv or of this package, without its classifier.

    A network for small images has no pooling after its first convolution; here it gets the one that the others have.

    Inputs:
        float tensor `[batch, 3, size, size]`.

    Outputs:
        A tuple of feature maps, one a stage.
    """

    def __init__(self, network: nn.Cell, max_pool: nn.Cell) -> None:
        super().__init__()
        self.conv1, self.bn1, self.max_pool = network.conv1, network.bn1, max_pool
        self.layer1, self.layer2, self.layer3 = network.layer1, network.layer2, network.layer3
        self.layer4 = getattr(network, "layer4", None)
        # mindcv's blocks add in place, which makes the compiler warn of a dozen nodes in a network as large as this.
        for _, cell in self.cells_and_names():
            cell.__class__ = {BasicBlock: _BasicBlock, Bottleneck: _Bottleneck}.get(type(cell), type(cell))

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        first = self.layer1(self.max_pool(ops.relu(self.bn1(self.conv1(images)))))
        second = self.layer2(first)
        third = self.layer3(second)
        if self.layer4 is None:
            return first, second, third
        return first, second, third, self.layer4(third)


class FeaturePyramid(nn.Cell):
    """Feature maps of the same width for every stage, and one more of half the resolution.

    Args:
        channels_in: channels of each stage.
        channels: of all that comes out.

    Inputs:
        A tuple of feature maps, the largest first.

    Outputs:
        A tuple with one more, the largest first.
    """

    def __init__(self, channels_in: Sequence[int], channels: int) -> None:
        super().__init__()
        self.inner_blocks = nn.CellList([_convolution(inside, channels, 1) for inside in channels_in])
        self.layer_blocks = nn.CellList([_convolution(channels, channels, 3) for _ in channels_in])
        self.halve = nn.MaxPool2d(1, 2)

    def construct(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        last = len(stages) - 1
        inner = self.inner_blocks[last](stages[last])
        levels = (self.layer_blocks[last](inner),)
        for i in range(last - 1, -1, -1):
            inner = self.inner_blocks[i](stages[i]) + ops.ResizeNearestNeighbor(stages[i].shape[2:])(inner)
            levels = (self.layer_blocks[i](inner), *levels)
        return (*levels, self.halve(levels[last]))


class Backbone(nn.Cell):
    """Images to the levels of a feature pyramid."""

    def __init__(self, body: nn.Cell, fpn: nn.Cell) -> None:
        super().__init__()
        self.body, self.fpn = body, fpn

    def construct(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.fpn(self.body(images))


def _convolution(channels_in: int, channels: int, kernel: int) -> nn.SequentialCell:
    """A convolution in a sequence of its own, as torchvision names it."""
    return nn.SequentialCell([convolution(channels_in, channels, kernel, HeUniform(1.0))])
