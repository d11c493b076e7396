"""The rank term of a network in training: its weight, its steps and its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from rpg_ms.cells.masked import MaskedLayer
from rpg_ms.rank import RankLoss


class RankTerm(nn.Cell):
    """`λ · L_rank` of some layers and its gradient (arXiv 2311.17493, section 3); float32 at any precision.

    With `reduce` the gradient is the mean over the processes: computed from the same weights, it is the same in all
    of them up to the rounding of their processors, which must not part their masks.

    Args:
        layers: the MaskedLayers that take part; convolutions, as published, or dense layers as well.
        weight, delta: λ, above 0, and the error budget δ in (0, 1].
        backend: name in `rpg_ms.rank.BACKENDS`.
        every: "update" (the term steers regrowth only) or "step" (it also drives the weights).
        reduce: a Cell from gradients to their mean over the processes, or None for a single one.
        share: the term's share in the score of regrowth (`mix`), in (0, 1), or None for the published sum; only where
            the term steers regrowth alone.

    Inputs:
        *after: Tensors to be computed first, so that collectives keep one order in all processes.

    Outputs:
        `(L_rank, k of each layer, gradients of λ · L_rank)`.

    Raises:
        ValueError: no layers, an unknown backend or `every`, or `delta` or `share` out of range.
    """

    def __init__(
        self,
        layers: Sequence[MaskedLayer],
        weight: float,
        delta: float = 0.1,
        backend: str = "gram",
        every: str = "update",
        reduce: Optional[nn.Cell] = None,
        share: Optional[float] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        if not layers:
            raise ValueError("a rank term needs a layer to act on")
        if every not in ("update", "step"):
            raise ValueError(f"every: {every!r} is not update or step")
        if share is not None and not (0 < share < 1 and every == "update"):
            raise ValueError(f"share: {share!r} is not in (0, 1), or the term drives the weights")
        self.layers = layers
        self.share = share
        self.weight = weight
        self.drives_weights = every == "step"
        self.rank_loss = RankLoss(delta, backend)
        self.weights = ms.ParameterTuple([layer.weight for layer in layers])
        self.reduce = reduce

    def construct(self, *after: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor, tuple[ms.Tensor, ...]]:
        loss, ranks, unweighted = self.rank_loss(*self.weights)
        gradients = ()
        for gradient, weight in zip(unweighted, self.weights):
            gradients += ((self.weight * gradient).astype(weight.dtype),)
        if self.reduce is not None:
            gradients = self.reduce((ops.depend(gradients[0], after), *gradients[1:]))
        return loss, ranks, gradients


def add_rank(
    gradients: tuple[ms.Tensor, ...], rank_gradients: tuple[ms.Tensor, ...], rank_of: Sequence[int]
) -> tuple[ms.Tensor, ...]:
    """The gradients plus those of the rank term, which belong to the positions `rank_of[i] >= 0`."""
    total = ()
    for gradient, i in zip(gradients, rank_of):
        if i >= 0:
            gradient = gradient + rank_gradients[i]
        total += (gradient,)
    return total


def mix(task: np.ndarray, rank: np.ndarray, share: float) -> np.ndarray:
    """`(1 - share) task / ||task|| + share rank / ||rank||`, float32: the score of regrowth in a layer.

    How large the two gradients are differs by orders of magnitude between networks, batches and times; `share` means
    the same everywhere. A gradient that is all zero adds nothing.
    """
    mixed = np.zeros(task.shape, np.float32)
    for gradient, part in ((task, 1 - share), (rank, share)):
        norm = np.linalg.norm(gradient.astype(np.float64))
        if norm > 0:
            mixed += np.float32(part / norm) * gradient
    return mixed
