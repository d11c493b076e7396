"""Graph and PyNative mode: each repeats itself to the bit, and they agree with each other to float tolerance."""

import mindspore as ms
import numpy as np
import pytest
from mindcv.optim import create_optimizer

from networks import WithLoss, pruner, rank_term
from rpg_ms.cells import SparseTrainStep, sparsify
from rpg_ms.models import create_model


def run(mode, steps):
    """Losses, the first step's gradients, and weights and masks after every step."""
    ms.set_context(mode=mode)
    ms.set_seed(1)
    network = create_model("cifar_resnet8", 10, 1)
    found = sparsify(network)
    optimizer = create_optimizer(network.trainable_params(), "momentum", lr=[0.05] * 20, weight_decay=1e-4)
    step = SparseTrainStep(
        WithLoss(network),
        optimizer,
        found.layers,
        pruner(total_steps=10, update_every=2, prune_until=0.8),
        rank_term(found.layers, delta=0.1),
    ).set_train()
    rng = np.random.default_rng(0)
    losses, snapshots, gradients = [], [], None
    for t in range(steps):
        x = ms.Tensor(rng.standard_normal((16, 1, 16, 16)), ms.float32)
        y = ms.Tensor(rng.integers(0, 10, 16), ms.int32)
        if t == 0:
            gradients = [g.asnumpy().copy() for g in step.task(x, y)[1]]
        losses.append(float(step(x, y).asnumpy()))
        snapshots.append([(layer.weight.asnumpy().copy(), layer.mask.asnumpy().copy()) for layer in found.layers])
    ms.set_context(mode=ms.GRAPH_MODE)
    return losses, gradients, snapshots


@pytest.fixture(scope="module")
def runs():
    return {mode: [run(mode, 8), run(mode, 8)] for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE)}


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_repeats_itself_to_the_bit(runs, mode):
    first, second = runs[mode]
    assert first[0] == second[0]
    for one, other in zip(first[2], second[2]):
        for (w1, m1), (w2, m2) in zip(one, other):
            assert w1.tobytes() == w2.tobytes() and m1.tobytes() == m2.tobytes()
    assert not np.array_equal(first[2][-1][0][1], first[2][0][0][1])  # through topology updates


def test_modes_agree(runs):
    graph, pynative = runs[ms.GRAPH_MODE][0], runs[ms.PYNATIVE_MODE][0]
    np.testing.assert_allclose(graph[0][:2], pynative[0][:2], rtol=1e-4)
    for g, p in zip(graph[1], pynative[1]):
        assert np.linalg.norm(g - p) <= 1e-3 * np.linalg.norm(g) + 1e-6
    # Masks of the first update, up to weights that lie within rounding of the cut.
    for (_, gm), (_, pm) in zip(graph[2][1], pynative[2][1]):
        differ = gm != pm
        assert np.count_nonzero(differ) <= 0.002 * differ.size + 2
        assert abs(int(gm.sum()) - int(pm.sum())) <= 2
