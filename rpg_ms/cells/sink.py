"""Several training steps in one graph."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops


class SunkSteps(nn.Cell):
    """Plain steps one after the other in one graph, so that the device need not wait for the host.

    A loop of the graph: unrolled, the graph would grow with the number of steps.

    Args:
        plain_step: a Cell from a batch to a scalar loss.

    Inputs:
        *inputs: the batches, stacked: each tensor `[steps, ...]`.

    Outputs:
        The losses, float32 `[steps]`.
    """

    def __init__(self, plain_step: nn.Cell, steps: int) -> None:
        super().__init__(auto_prefix=False)
        self.plain_step = plain_step
        self.steps = steps
        self.index = ms.Tensor(np.arange(steps), ms.int32)
        self.losses = ms.Tensor(np.zeros(steps), ms.float32)

    def construct(self, *inputs: ms.Tensor) -> ms.Tensor:
        losses = self.losses
        step = ops.zeros((), ms.int32)
        while step < self.steps:
            batch = ()
            for stacked in inputs:
                batch += (ops.gather(stacked, step, 0),)
            loss = self.plain_step(*batch)
            losses = ops.select(self.index == step, loss.astype(ms.float32), losses)
            step = step + 1
        return losses
