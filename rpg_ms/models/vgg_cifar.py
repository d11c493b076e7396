"""VGG-19 with batch norm for small images, as in the pruning literature (Liu et al. 2019, arXiv 1810.05270)."""

from __future__ import annotations

from mindspore import Tensor, nn
from mindspore.common.initializer import HeNormal, Normal

CHANNELS = (64, 64, "pool", 128, 128, "pool", *4 * [256], "pool", *4 * [512], "pool", *4 * [512])


class CifarVGG19(nn.Cell):
    """Sixteen 3x3 convolutions, each with batch norm and ReLU, average pooling, one dense layer.

    Takes images `[batch, in_channels, height, width]` of at least 16 pixels a side, returns logits `[batch, classes]`.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers = []
        for channels in CHANNELS:
            if channels == "pool":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                init = HeNormal(mode="fan_out", nonlinearity="relu")
                convolution = nn.Conv2d(in_channels, channels, 3, pad_mode="pad", padding=1, weight_init=init)
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
        self.features = nn.SequentialCell(layers)
        self.classifier = nn.Dense(in_channels, num_classes, weight_init=Normal(0.01))

    def construct(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
