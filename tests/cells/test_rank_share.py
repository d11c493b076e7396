"""A rank term whose share in regrowth is given: exact masks, the same at any scale of the loss, and its record."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from networks import Net, WithLoss, pruner
from rpg_ms.cells import RankTerm, SparseTrainStep, sparsify
from rpg_ms.cells.rank_term import mix
from rpg_ms.pruning import global_counts, update_topology
from rpg_ms.rank import rank_term


class Scaled(nn.Cell):
    def __init__(self, network, factor):
        super().__init__(auto_prefix=False)
        self.network = WithLoss(network)
        self.factor = factor

    def construct(self, x, y):
        return self.network(x, y) * self.factor


def build(share=None, weight=0.5, factor=1.0):
    """A step at rate 0, so that the weights move by topology updates alone."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_seed(5)
    network = Net()
    found = sparsify(network)
    layers = [layer for layer in found.layers if layer.kind == "conv"]
    optimizer = nn.Momentum(network.trainable_params(), 1e-9, 0.0)
    term = RankTerm(layers, weight, 0.2, share=share)
    return found, SparseTrainStep(Scaled(network, factor), optimizer, found.layers, pruner(), term).set_train()


@pytest.fixture(autouse=True)
def graph_mode_after():
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def data(seed):
    rng = np.random.default_rng(seed)
    return ms.Tensor(rng.standard_normal((8, 2, 6, 6)), ms.float32), ms.Tensor(rng.integers(0, 3, 8), ms.int32)


def run(**options):
    found, step = build(**options)
    for t in range(1, 7):
        step(*data(t))
    return [layer.mask.asnumpy() for layer in found.layers], step.record


def test_masks_and_record_are_those_of_the_mixed_gradients():
    share = 0.6
    found, step = build(share)
    for t in range(1, 6):
        step(*data(t))
    weights = [layer.weight.asnumpy().copy() for layer in found.layers]
    gradients = [
        g.asnumpy()
        for g in ms.grad(step.task.network, None, ms.ParameterTuple([layer.weight for layer in found.layers]))(*data(6))
    ]
    mixed = list(gradients)
    for i in (0, 1):
        rank = rank_term(weights[i], 0.2)[2]
        mixed[i] = (1 - share) * gradients[i] / np.linalg.norm(gradients[i]) + share * rank / np.linalg.norm(rank)
    step(*data(6))
    counts = global_counts(weights, step.pruner.calendar.density_at(6))
    fraction = step.pruner.calendar.drop_fraction(6, 0.3)
    wanted = [mask for _, mask in update_topology(weights, mixed, counts, fraction)]
    alone = [mask for _, mask in update_topology(weights, gradients, counts, fraction)]
    for layer, mask in zip(found.layers, wanted):
        assert np.array_equal(layer.mask.asnumpy(), mask), layer.name
    regrown = sum(int(fraction * count) for count in counts)
    differing = sum(np.count_nonzero(mask & ~other) for mask, other in zip(wanted, alone))
    assert differing > 0 and step.record.rank_decided == differing / regrown


def test_a_share_means_the_same_at_any_scale_of_the_loss():
    masks, record = run(share=0.5)
    others, other = run(share=0.5, factor=1000.0)
    assert all(np.array_equal(one, two) for one, two in zip(masks, others))
    assert record.rank_decided == other.rank_decided
    # The published sum does not: the term is drowned where the task's gradient is large.
    assert run(weight=5.0, factor=1e4)[1].rank_decided == 0 < run(weight=5.0, factor=1e-4)[1].rank_decided


def test_a_larger_share_decides_more():
    decided = [run(share=share)[1].rank_decided for share in (0.01, 0.5, 0.99)]
    assert decided == sorted(decided) and decided[0] < decided[-1] <= 1


def test_mix_passes_over_what_is_zero():
    gradient = np.float32([[3, 0], [0, 4]])
    np.testing.assert_allclose(mix(gradient, np.zeros((2, 2), np.float32), 0.25), 0.75 * gradient / 5, rtol=1e-6)
    assert not mix(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), 0.25).any()


@pytest.mark.parametrize("share, every", [(0.0, "update"), (1.0, "update"), (0.5, "step")])
def test_shares_that_cannot_be(share, every):
    found, _ = build()
    with pytest.raises(ValueError, match="^share: "):
        RankTerm(found.layers[:1], 1.0, 0.2, every=every, share=share)
