"""What a network costs: multiply-adds per layer, dense and of the non-zeros."""
from __future__ import annotations

import mindspore as ms
import numpy as np

from rpg_ms.cells.masked import TRANSPOSED


def layer_flops(network, found, input_shape):
    """Multiply-adds of each layer for one input, which are often called FLOPs.

    A weight is used once at every position of its layer: of the output for a convolution, of the input for a
    transposed one, of the sequence (if there is one) for a dense layer. The positions come from one forward
    pass. What a convolution multiplies with its padding counts; biases, norms, activations and the products
    within attention do not.

    Args:
        network: the masked network, in any mode; its weights and statistics stay as they are.
        found: its `Sparsified`.
        input_shape: shape of one input without the batch, such as `(channels, height, width)`.

    Returns:
        list of (int, int), one a layer of `found.layers`: multiply-adds of the dense layer, and of the
        non-zeros, the weights that its mask keeps. A layer that the forward pass leaves out has (0, 0).
    """
    index = {id(layer.weight): i for i, layer in enumerate(found.layers)}
    positions = [0] * len(found.layers)

    def record(cell, inputs, output):
        values = inputs[0] if isinstance(cell, TRANSPOSED) else output
        positions[index[id(cell.weight)]] += values.size // cell.weight.shape[0]  # the layer's channels there

    hooks = [cell.register_forward_hook(record) for _, cell in network.cells_and_names()
             if id(getattr(cell, "weight", None)) in index]
    mode, training = ms.get_context("mode"), network.training
    try:
        ms.set_context(mode=ms.PYNATIVE_MODE)  # compiled cells do not call hooks
        network.set_train(False)
        network(ms.Tensor(np.zeros((1, *input_shape), np.float32)))
    finally:
        for hook in hooks:
            hook.remove()
        network.set_train(training)
        ms.set_context(mode=mode)
    return [(count * layer.mask.size, count * int(np.count_nonzero(layer.mask.asnumpy())))
            for count, layer in zip(positions, found.layers)]
