"""Batch norms whose statistics, scales and shifts stay as they were loaded."""

from __future__ import annotations

from mindspore import Tensor, nn, ops


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` as in inference, also in training, and not trained; `eps` may be 0."""

    def construct(self, x: Tensor) -> Tensor:
        scale = self.gamma * ops.rsqrt(self.moving_variance + self.eps)
        shift = self.beta - self.moving_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


def set_norms(network: nn.Cell, frozen: bool, epsilon: float) -> None:
    """Give every `nn.BatchNorm2d` in a network its epsilon, and freeze it where it is to be `frozen`."""
    for name, cell in list(network.cells_and_names()):
        if type(cell) is not nn.BatchNorm2d:
            continue
        norm = (FrozenBatchNorm2d if frozen else nn.BatchNorm2d)(cell.num_features, epsilon)
        for parameter in norm.get_parameters():
            parameter.requires_grad = parameter.requires_grad and not frozen
        _replace(network, name, norm)


def _replace(network: nn.Cell, name: str, cell: nn.Cell) -> None:
    """Put a cell where `name` says; in a sequence, which keeps a list of its cells besides, as well."""
    *path, last = name.split(".")
    for part in path:
        network = network._cells[part]
    if isinstance(network, nn.SequentialCell):
        network[int(last)] = cell
    else:
        setattr(network, last, cell)
