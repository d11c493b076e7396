"""The loss of a network that learns from another one."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops


class Distilled(nn.Cell):
    """Loss with a share of the divergence from a teacher: `(1 - w) L + w T^2 KL(teacher || network)`.

    The divergence is between the softmax of both outputs over the temperature T, the mean over the batch; the factor
    T^2 keeps its gradient as large as without the temperature (arXiv 1503.02531, section 2).

    Args:
        network: a Cell from the first input to outputs `[b, classes]`.
        loss: a Cell from the outputs and the second input to a scalar.
        weight: w, in (0, 1].
        temperature: T, above 0.

    Inputs:
        images, labels, the teacher's outputs `[b, classes]`.
    """

    def __init__(self, network: nn.Cell, loss: nn.Cell, weight: float, temperature: float) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss
        self.weight = weight
        self.temperature = temperature

    def construct(self, images: ms.Tensor, labels: ms.Tensor, teacher: ms.Tensor) -> ms.Tensor:
        outputs = self.network(images)
        wanted = ops.log_softmax(teacher.astype(ms.float32) / self.temperature, -1)
        found = ops.log_softmax(outputs.astype(ms.float32) / self.temperature, -1)
        divergence = (ops.exp(wanted) * (wanted - found)).sum(-1).mean() * self.temperature**2
        return (1 - self.weight) * self.loss(outputs, labels) + self.weight * divergence
