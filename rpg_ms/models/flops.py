"""What a network costs: parameters, and multiply-adds per layer, dense and of the non-zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np
from mindspore import nn

from rpg_ms.cells.masked import CONVOLUTIONS, DENSES, TRANSPOSED

if TYPE_CHECKING:
    from rpg_ms.cells.masked import Sparsified

# The running statistics of nn.BatchNorm* and mint.nn.BatchNorm*.
STATISTICS = ("moving_mean", "moving_variance", "running_mean", "running_var")


def parameter_count(network: nn.Cell) -> int:
    """Parameters that are or could be trained: not masks, statistics or counters, but frozen ones too."""
    return sum(
        parameter.size
        for parameter in network.get_parameters()
        if parameter.is_floating_point() and not parameter.name.endswith(STATISTICS)
    )


def try_image(network: nn.Cell, input_shape: Sequence[int]) -> Any:
    """What the network returns for one input of `input_shape`, all zero, computed by now.

    In inference and PyNative mode, whose errors are short, and where cells call their hooks; both modes are as before
    afterwards.
    """
    mode, training = ms.get_context("mode"), network.training
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        returned = network.set_train(False)(ms.Tensor(np.zeros((1, *input_shape), np.float32)))
        if isinstance(returned, ms.Tensor):
            returned.asnumpy()
        return returned
    finally:
        network.set_train(training)
        ms.set_context(mode=mode)


def layer_flops(
    network: nn.Cell, sparsified: Sparsified, input_shape: Sequence[int]
) -> tuple[list[tuple[int, int]], int]:
    """Multiply-adds of each layer for one input, which are often called FLOPs.

    A weight is used once at every position of its layer: of the output for a convolution, of the input for a
    transposed one, of the sequence (if there is one) for a dense layer. The positions come from one forward
    pass. What a convolution multiplies with its padding counts; biases, norms, activations and the products
    within attention do not.

    Args:
        network: the masked network, in any mode; its weights and statistics stay as they are.
        sparsified: its `Sparsified`.
        input_shape: of one input without the batch, such as `(channels, height, width)`.

    Returns:
        `(layers, others)`: of each of `sparsified.layers` the multiply-adds of the dense layer and of the non-zeros,
        the weights that its mask keeps, both 0 if the forward pass leaves it out; and those of the convolutions and
        dense layers that are not pruned (excluded, frozen).
    """
    cells = [cell for _, cell in network.cells_and_names() if isinstance(cell, (*CONVOLUTIONS, *DENSES))]
    positions = {id(cell.weight): 0 for cell in cells}

    def record(cell: nn.Cell, inputs: tuple[ms.Tensor, ...], output: ms.Tensor) -> None:
        values = inputs[0] if isinstance(cell, TRANSPOSED) else output
        positions[id(cell.weight)] += values.size // cell.weight.shape[0]  # the layer's channels there

    hooks = [cell.register_forward_hook(record) for cell in cells]
    try:
        try_image(network, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    used = [(positions[id(layer.weight)], layer.mask) for layer in sparsified.layers]
    layers = [(count * mask.size, count * int(np.count_nonzero(mask.asnumpy()))) for count, mask in used]
    sizes = {id(cell.weight): cell.weight.size for cell in cells}
    return layers, sum(count * sizes[key] for key, count in positions.items()) - sum(dense for dense, _ in layers)
