"""RoI align (He et al. 2017, section 3) over a feature pyramid: 2 x 2 samples a bin, torchvision's `aligned=False`.

`GatherAlign` takes all pixels that bilinear interpolation needs by one `gather` over the whole pyramid. Its gradient is
exact and the same to the bit at every run, for which `ops.ROIAlign` (`OperatorAlign`) has no warrant, but it keeps 16
pixels for every bin in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from rpg_ms.models.detection.boxes import area, columns

SAMPLES = 2  # a bin, in each direction
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # an RoI of 224 pixels takes its features at stride 2^4 (Lin et al. 2017)
CHUNK = 2**28  # values that one gather may take, 1 GB in float32


def level_of(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """The level of the pyramid, int32 `[...]` from 0, on which each of the boxes `[..., 4]` is pooled."""
    level = ops.zeros(boxes.shape[:-1], ms.int32)
    size = area(boxes)
    for stride in strides[1:]:
        # 1e-6 as in torchvision, so that a box of exactly 112 pixels goes up in spite of rounding.
        side = CANONICAL_SIZE * 2 ** (math.log2(stride) - CANONICAL_LEVEL - 1e-6)
        level = level + (size >= side**2).astype(ms.int32)
    return level


class GatherAlign(nn.Cell):
    """RoI align by one `gather`.

    Args:
        feature_sizes: height and width of each level.
        strides: pixels of the image between those of each level, powers of 2.
        output: bins in each direction.

    Inputs:
        features: a list of `[batch, channels, size, size]`, one a level.
        boxes: float32 `[batch, n, 4]` in pixels of the image; no gradient is taken for them.

    Outputs:
        float32 `[batch * n, channels, output, output]`.
    """

    def __init__(self, feature_sizes: Sequence[int], strides: Sequence[int], output: int) -> None:
        super().__init__()
        self.strides, self.output = tuple(strides), output
        self.pixels = sum(size**2 for size in feature_sizes)
        starts = np.cumsum([0, *(size**2 for size in feature_sizes[:-1])])
        self.starts, self.sizes = Tensor(starts.astype(np.int32)), Tensor(np.int32(feature_sizes))
        self.scales = Tensor(1 / np.float32(strides))
        places = np.arange(output)[:, None] + (np.arange(SAMPLES) + 0.5) / SAMPLES
        self.places = Tensor(places.reshape(1, 1, -1).astype(np.float32))  # of the samples, in bins

    def construct(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        batch, channels = features[0].shape[:2]
        rows = ()
        for level in features:
            rows += (level.reshape(batch, channels, -1).astype(ms.float32),)
        rows = ops.cat(rows, 2)
        rows = rows.swapaxes(1, 2).reshape(batch * self.pixels, channels)
        boxes = ops.stop_gradient(boxes)
        step = max(1, CHUNK // (batch * self.output**2 * 4 * SAMPLES**2 * channels))
        parts = ()
        for first in range(0, boxes.shape[1], step):
            parts += (self._align(rows, boxes[:, first : first + step]),)
        pooled = parts[0] if len(parts) == 1 else ops.cat(parts, 1)
        return (
            pooled.reshape(-1, self.output**2, channels).swapaxes(1, 2).reshape(-1, channels, self.output, self.output)
        )

    def _align(self, rows: Tensor, boxes: Tensor) -> Tensor:
        """From rows `[batch * pixels, channels]` to `[batch, n, output², channels]`."""
        batch, count = boxes.shape[:2]
        level = level_of(boxes, self.strides)
        size = ops.gather(self.sizes, level, 0)
        scale = ops.gather(self.scales, level, 0)
        x1, y1, x2, y2 = columns(boxes * ops.expand_dims(scale, -1))
        row, row_weight = self._pixels(y1, y2, size)
        column, column_weight = self._pixels(x1, x2, size)
        start = ops.gather(self.starts, level, 0) + ops.arange(batch).astype(ms.int32).reshape(-1, 1) * self.pixels
        bins = self.output
        row = (row * size.reshape(batch, count, 1, 1) + start.reshape(batch, count, 1, 1)).reshape(
            batch, count, bins, 1, -1, 1
        )
        index = row + column.reshape(batch, count, 1, bins, 1, -1)
        weight = row_weight.reshape(batch, count, bins, 1, -1, 1) * column_weight.reshape(batch, count, 1, bins, 1, -1)
        taken = ops.gather(rows, index.reshape(batch, count, bins * bins, -1), 0)
        # A product of matrices is five times as fast as multiplying and adding up on CPU.
        return ops.matmul(weight.reshape(batch, count, bins * bins, 1, -1), taken).squeeze(3)

    def _pixels(self, low: Tensor, high: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """In one direction, from the ends of the boxes `[batch, n]` in pixels of their levels, which have `size`: the
        pixels that are to be averaged, int32, and their weights, both `[batch, n, output, 2 * SAMPLES]`.
        """
        batch, count = low.shape
        low, high = ops.expand_dims(low, -1), ops.expand_dims(high, -1)
        place = low + self.places * (ops.maximum(high - low, 1.0) / self.output)
        last = ops.expand_dims(size, -1) - 1
        inside = ops.logical_and(place >= -1, place <= (last + 1).astype(ms.float32)).astype(ms.float32)
        place = ops.minimum(ops.relu(place), last.astype(ms.float32))
        first = ops.minimum(ops.relu(ops.floor(place)).astype(ms.int32), last)
        share = place - first.astype(ms.float32)
        pixels = ops.stack((first, ops.minimum(first + 1, last)), -1)
        weights = ops.stack((inside * (1 - share), inside * share), -1) / SAMPLES
        shape = (batch, count, self.output, 2 * SAMPLES)
        return pixels.reshape(shape), weights.reshape(shape)


class OperatorAlign(nn.Cell):
    """RoI align by `ops.ROIAlign`, which pools every RoI on every level, of which one is kept; as `GatherAlign`.

    Its `roi_end_mode=1` adds a pixel to the ends of a box, which are moved to make up for it. In mode 0, which does
    not, the gradient is that of mode 1 all the same, and wrong.
    """

    def __init__(self, feature_sizes: Sequence[int], strides: Sequence[int], output: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.pools = [ops.ROIAlign(output, output, 1 / stride, SAMPLES, 1) for stride in strides]

    def construct(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        boxes = ops.stop_gradient(boxes)
        batch, count = boxes.shape[:2]
        level = level_of(boxes, self.strides).reshape(-1, 1, 1, 1)
        image = ops.tile(ops.arange(batch).astype(ms.float32).reshape(-1, 1), (1, count))
        x1, y1, x2, y2 = columns(boxes)
        pooled = 0
        for i, stride in enumerate(self.strides):
            ends = ops.maximum(x2, x1 + stride) - 1, ops.maximum(y2, y1 + stride) - 1
            regions = ops.stack((image, x1, y1, ends[0], ends[1]), -1).reshape(-1, 5)
            part = self.pools[i](features[i].astype(ms.float32), regions)
            pooled = pooled + ops.select(level == i, part, ops.zeros_like(part))
        return pooled
