"""The operations that a network is lowered to, on planes.

A plane is one channel's image of one tensor. Channels are all that operations read: so a concatenation, a split, a
channel shuffle or a padding by channels is only another list of planes and costs nothing, and a plane that nothing
reads is left out wherever it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

Space = tuple[int, int]  # height and width
POINT: Space = (1, 1)  # planes of this space are single numbers, one behind the other
SMALLEST = -float(np.finfo(np.float32).max)


@dataclass(eq=False)
class Operation:
    """Writes planes of one buffer.

    Args:
        space: height and width of the planes that it writes.
        outputs: int64 `[planes]`, their numbers.
        gaps: whether something reads beyond a plane's edge, so that zeros have to be there.
    """

    space: Space
    outputs: np.ndarray
    gaps: bool = False

    def reads(self) -> np.ndarray:
        """The planes that it reads, each once."""
        raise NotImplementedError

    def keep(self, kept: np.ndarray) -> None:
        """Write only the planes for which `kept`, bool `[planes]`, is true."""
        self.outputs = self.outputs[kept]


@dataclass(eq=False)
class Input(Operation):
    """The network's input, which lies outside the arena, without padding."""

    def reads(self) -> np.ndarray:
        return np.zeros(0, np.int64)

    def keep(self, kept: np.ndarray) -> None:
        """It is where it is."""


@dataclass(eq=False)
class PlaneByPlane(Operation):
    """One plane from one or two others.

    Args:
        kind: "mean" of a plane; "average", a pooling that does not count padding; "gate", the product of two planes or
            of a plane and a number; "phase", every `stride`-th pixel of every `stride`-th row from `start` on.
        sources: int64 `[1 or 2, planes]`.
        source: space of these planes; of a gate, of the second ones.
        kernel, stride, pads: of a pooling, and the stride of a phase: rows, columns; pads above and on the left.
        start: the first row and column of a phase.
        fill: what a phase has beyond its edges.
    """

    kind: str = ""
    sources: np.ndarray = None
    source: Space = POINT
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    start: tuple[int, int] = (0, 0)
    fill: float = 0.0

    def reads(self) -> np.ndarray:
        return np.unique(self.sources)

    def keep(self, kept: np.ndarray) -> None:
        self.outputs, self.sources = self.outputs[kept], self.sources[:, kept]


@dataclass(eq=False)
class Whole(Operation):
    """All of some planes at once.

    Args:
        kind: "flat", the pixels of all planes one behind the other; "softmax" over the planes.
        sources: int64 `[planes read]`.
        source: space of these planes.
    """

    kind: str = ""
    sources: np.ndarray = None
    source: Space = POINT

    def reads(self) -> np.ndarray:
        return np.unique(self.sources)

    def keep(self, kept: np.ndarray) -> None:
        """Nothing is left out."""


@dataclass(frozen=True)
class Activation:
    """`clip` to [low, high], or another kind; `low` is the slope of "leaky"."""

    kind: str = "none"
    low: float = SMALLEST
    high: float = -SMALLEST

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Of numbers, for channels that are constant."""
        x = np.asarray(x, np.float64)
        if self.kind == "clip":
            return np.clip(x, self.low, self.high)
        if self.kind == "leaky":
            return np.where(x > 0, x, self.low * x)
        gate = 1 / (1 + np.exp(-x)) if self.kind in ("sigmoid", "swish") else np.clip(x / 6 + 0.5, 0, 1)
        return {"none": x, "sigmoid": gate, "hard_sigmoid": gate}.get(self.kind, x * gate)


LINEAR = Activation()


@dataclass(eq=False)
class Rows(Operation):
    """Each plane is an activation of a weighted sum (or the largest) of shifted planes.

    Entry `i` adds `weight[i]` times plane `plane[i]`, shifted by `down[i]` rows and `right[i]` columns, to output
    `row[i]`. Where `packed[i]`, the weight is still to be multiplied by `scale` of its row.

    Args:
        row, plane, down, right, weight: `[entries]`, sorted by row.
        packed: bool `[entries]`.
        product: bool `[entries]`; whether it is a multiply-add of a convolution or a dense layer.
        scale, bias: float32 `[planes]`.
        activation: of the sum.
        maximum: the largest instead of the sum.
    """

    row: np.ndarray = None
    plane: np.ndarray = None
    down: np.ndarray = None
    right: np.ndarray = None
    weight: np.ndarray = None
    packed: np.ndarray = None
    product: np.ndarray = None
    scale: np.ndarray = None
    bias: np.ndarray = None
    activation: Activation = LINEAR
    maximum: bool = False

    ENTRIES = ("row", "plane", "down", "right", "weight", "packed", "product")

    def reads(self) -> np.ndarray:
        return np.unique(self.plane)

    def keep(self, kept: np.ndarray) -> None:
        entries = kept[self.row]
        for name in self.ENTRIES:
            setattr(self, name, getattr(self, name)[entries])
        self.row = (np.cumsum(kept) - 1)[self.row]
        self.outputs, self.scale, self.bias = self.outputs[kept], self.scale[kept], self.bias[kept]


@dataclass(frozen=True)
class Value:
    """A tensor that has been computed, or will have been.

    Args:
        shape: as ONNX has it, with a batch of 1.
        planes: int64; its shape is the beginning of `shape`, whose rest are the axes of `space`.
        space: height and width of each plane.
        pads: zeros around each plane that are still to be there: above, left, below, right.
    """

    shape: tuple[int, ...]
    planes: np.ndarray
    space: Space
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass
class Term:
    """A convolution within a `Linear`.

    Args:
        weight: float32 `[outputs, inputs / groups, height, width]`.
        planes: int64 `[inputs]`.
        source: space of these planes.
        scale: float64 `[outputs]`, by which its rows are still to be multiplied.
        stride, dilation: rows, columns.
        pads: above, left, below, right.
        groups: as in a convolution.
        packed: whether the weights are to be kept in fewer bits.
        product: whether it counts as multiply-adds.
    """

    weight: np.ndarray
    planes: np.ndarray
    source: Space
    scale: np.ndarray
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    packed: bool = False
    product: bool = False


@dataclass
class Linear:
    """A sum of terms that has not been computed yet, so that what follows can still be folded into it."""

    shape: tuple[int, ...]
    space: Space
    terms: list[Term]
    bias: np.ndarray  # float64 [outputs]


@dataclass(frozen=True)
class Plane:
    """An output of an operation; with none, `constant` everywhere."""

    operation: Optional[Operation]
    constant: float = 0.0
