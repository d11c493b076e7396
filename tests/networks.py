"""What the tests that train small networks of their own share."""

from dataclasses import replace

import numpy as np
from mindspore import nn, ops

from rpg_ms.cells import RankTerm, sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.pruning import METHODS, Pruner


class Net(nn.Cell):
    """Images `[n, 2, 6, 6]` to three classes, without batch norm: a batch's gradient is the mean of its pieces'."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3)
        self.conv2 = nn.Conv2d(6, 8, 3, 2)
        self.fc = nn.Dense(8, 3)

    def construct(self, x):
        return self.fc(ops.relu(self.conv2(ops.relu(self.conv1(x)))).mean((2, 3)))


class WithLoss(nn.Cell):
    """A network with cross-entropy, as a Cell from a batch to a scalar."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, y):
        return ops.cross_entropy(self.network(x), y)


def pruner(density=0.1, total_steps=12, **choices):
    """RPG's Pruner for a short run: an update every three steps, the target at step 9, and other choices on request."""
    calendar = {"update_every": 3, "prune_until": 0.75, "freeze_after": 0.8}
    options = {key: choices.pop(key) for key in ("min_per_layer", "seed") if key in choices}
    return Pruner(replace(METHODS["rpg"], **{**calendar, **choices}), density, total_steps, **options)


def rank_term(layers, weight=0.5, delta=0.2, backend="gram", every="update", dense=False, reduce=None):
    """The RankTerm of the convolutions, with `dense` of the dense layers as well; None for weight 0."""
    members = [layer for layer in layers if dense or layer.kind == "conv"]
    return RankTerm(members, weight, delta, backend, every, reduce) if weight else None


def pruned(network, density=0.3):
    """The network with that share of its weights, chosen at random, and its `Sparsified`."""
    rng = np.random.default_rng(0)
    found = sparsify(network)
    for layer in found.layers:
        set_topology(layer, layer.weight.asnumpy(), rng.random(layer.weight.shape) < density)
    return network, found
