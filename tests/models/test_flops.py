"""Multiply-adds of small networks, counted by hand."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.models import create_model
from rpg_ms.models.flops import layer_flops, parameter_count


def keep(layer, count):
    mask = np.zeros(layer.weight.size, bool)
    mask[:count] = True
    mask = mask.reshape(layer.weight.shape)
    set_topology(layer, layer.weight.asnumpy(), mask)


CASES = {
    # 10 x 10 pixels, stride 2, padded: 5 x 5 outputs of 6 channels, each of 4 * 3 * 3 products
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, "pad", 1), (4, 10, 10), 25 * 6 * 36, 25),
    "no padding": (lambda: nn.Conv2d(4, 6, 3, pad_mode="valid"), (4, 10, 10), 64 * 6 * 36, 64),
    # two groups: each output sees 2 of the 4 channels
    "grouped": (lambda: nn.Conv2d(4, 6, 3, 1, "same", group=2), (4, 10, 10), 100 * 6 * 18, 100),
    "conv1d": (lambda: nn.Conv1d(2, 3, 5, pad_mode="valid"), (2, 14), 10 * 3 * 10, 10),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, pad_mode="valid"), (2, 3, 4, 5), 2 * 3 * 4 * 3 * 16, 24),
    # every one of the 5 x 5 inputs is multiplied with 6 * 2 * 2 weights for each of 4 channels
    "transposed": (lambda: nn.Conv2dTranspose(4, 6, 2, 2), (4, 5, 5), 25 * 4 * 24, 25),
    "dense": (lambda: nn.Dense(7, 3), (7,), 21, 1),
    "dense on a sequence": (lambda: nn.Dense(7, 3), (11, 7), 11 * 21, 11),
    "dense on a grid": (lambda: nn.Dense(7, 3), (4, 5, 7), 20 * 21, 20),
}


@pytest.mark.parametrize("name", CASES)
def test_layers(name):
    build, shape, dense, positions = CASES[name]
    network = nn.SequentialCell(build())
    found = sparsify(network)
    keep(found.layers[0], 5)
    assert layer_flops(network, found, shape) == ([(dense, 5 * positions)], 0)


class Reused(nn.Cell):
    """One layer used twice, one never."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Dense(6, 6)
        self.never = nn.Dense(6, 6)
        self.drop = nn.Dropout(p=0.5)

    def construct(self, x):
        return self.twice(self.drop(self.twice(x)))


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_calls_count_and_the_network_stays_as_it_was(mode):
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        network = Reused().set_train()
        found = sparsify(network)
        keep(found.layers[0], 10)
        assert layer_flops(network, found, (6,)) == ([(72, 20), (0, 0)], 0)
        assert ms.get_context("mode") == mode and network.training and network.drop.training
        batch = ms.Tensor(np.ones((2, 6), np.float32))
        network.set_train(False)
        assert network(batch).shape == (2, 6)
        assert layer_flops(network, found, (6,)) == ([(72, 20), (0, 0)], 0), "after it was compiled"
        assert not network.training
    finally:
        ms.set_context(mode=before)


def test_resnet20_has_its_known_cost():
    """He et al. 2016, table 6: 0.27 million weights; 40.6 million multiply-adds are the usual figure."""
    network = create_model("cifar_resnet20", 10, 3, 32)
    found = sparsify(network)
    statistics = network.bn1.moving_mean.asnumpy().copy()
    flops, others = layer_flops(network, found, (3, 32, 32))
    assert others == 0 and parameter_count(network) == sum(p.size for p in network.trainable_params())
    assert flops[0] == (16 * 27 * 1024,) * 2 and flops[-1] == (640, 640)
    assert sum(dense for dense, _ in flops) == 40_551_040
    assert np.array_equal(network.bn1.moving_mean.asnumpy(), statistics)


def test_layers_that_are_not_pruned_cost_as_well():
    network = nn.SequentialCell(
        [nn.Conv2d(1, 4, 3, has_bias=True), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Dense(4 * 16, 3)]
    )
    network[2].weight.requires_grad = False
    found = sparsify(network, ["4"])
    keep(found.layers[0], 5)
    assert layer_flops(network, found, (1, 4, 4)) == ([(16 * 36, 16 * 5)], 16 * 16 + 4 * 16 * 3)
    assert parameter_count(network) == 36 + 4 + 8 + 16 + 4 * 16 * 3 + 3
