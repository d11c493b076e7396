"""The task's loss and its dense gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import mindspore as ms
from mindspore import amp, nn, ops


class TaskGradients(nn.Cell):
    """One forward and backward pass: the task loss and its dense gradient.

    Weights are zero where their masks are and masks are not part of the graph, so the gradient at a masked
    position is the true derivative there.

    Args:
        network_with_loss: a Cell from the batch to a scalar task loss.
        parameters: the trainable Parameters to differentiate by.
        scaler: a `mindspore.amp` loss scaler, or None; what comes out is unscaled.
        share: factor on the gradient, for a piece of a batch.
        reduce: a Cell from the gradients to their mean over the processes, or None for a single one.

    Outputs:
        `(loss, gradients, finite)`; `finite` is a bool scalar, always True without a scaler.
    """

    def __init__(
        self,
        network_with_loss: nn.Cell,
        parameters: Sequence[ms.Parameter],
        scaler: Optional[amp.LossScaler] = None,
        share: float = 1.0,
        reduce: Optional[nn.Cell] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network = network_with_loss
        self.scaler = scaler
        self.share = share
        self.reduce = reduce
        self.finite = ms.Tensor(True)
        self.value_and_grad = ops.value_and_grad(self.scaled_loss, None, parameters, has_aux=True)

    def scaled_loss(self, *inputs: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        """`(what is differentiated, loss)`."""
        loss = self.network(*inputs)
        scaled = loss
        if self.share != 1:
            scaled = loss * self.share
        if self.scaler is not None:
            scaled = self.scaler.scale(scaled)
        return scaled, loss

    def construct(self, *inputs: ms.Tensor) -> tuple[ms.Tensor, tuple[ms.Tensor, ...], ms.Tensor]:
        (_, loss), gradients = self.value_and_grad(*inputs)
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        if self.scaler is None:
            return loss, gradients, self.finite
        return loss, self.scaler.unscale(gradients), amp.all_finite(gradients)


class InPieces:
    """`TaskGradients` of a whole batch, computed in equal pieces one after the other, to save memory.

    `task.share` is one over the number of pieces, which divides the batch.
    """

    def __init__(self, task: TaskGradients, pieces: int) -> None:
        self.task = task
        self.pieces = pieces
        self.add = _AddGradients()

    def __call__(self, *inputs: ms.Tensor) -> tuple:
        """`(loss, gradients, finite)`, as `TaskGradients`."""
        size = inputs[0].shape[0] // self.pieces
        total_loss, total, all_finite = None, None, None
        for i in range(self.pieces):
            loss, gradients, finite = self.task(*(tensor[i * size : (i + 1) * size] for tensor in inputs))
            loss = loss / self.pieces
            total_loss = loss if i == 0 else total_loss + loss
            total = gradients if i == 0 else self.add(*total, *gradients)
            all_finite = finite if i == 0 else ops.logical_and(all_finite, finite)
        return total_loss, total, all_finite


class _AddGradients(nn.Cell):
    """The sums of two tuples of gradients, given one after the other."""

    def construct(self, *gradients: ms.Tensor) -> tuple[ms.Tensor, ...]:
        half = len(gradients) // 2
        total = ()
        for a, b in zip(gradients[:half], gradients[half:]):
            total += (a + b,)
        return total
