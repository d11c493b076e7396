"""What the tests of files of weights share: networks, their values, and weights under PyTorch's names."""

import mindspore as ms
import numpy as np

from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.models import create_model
from rpg_ms.weights import to_pytorch


def build(name="cifar_resnet8", classes=10, channels=3, seed=0):
    """A masked network whose every Parameter is random, statistics included."""
    network = create_model(name, classes, channels, 32)
    rng = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(rng.random(parameter.shape) + 0.1, parameter.dtype))
    return network, sparsify(network)


def values(network):
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def same(network, other):
    one, two = values(network), values(other)
    return list(one) == list(two) and all(np.array_equal(one[name], two[name]) for name in one)


def pruned_state_dict(density=0.1, channels=3, seed=0):
    """PyTorch's weights of a network with zeros in its convolutions and dense layer."""
    network, found = build(channels=channels, seed=seed)
    rng = np.random.default_rng(seed)
    for layer in found.layers:
        set_topology(layer, layer.weight.asnumpy(), rng.random(layer.weight.shape) < density)
    return to_pytorch(network), found


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}
