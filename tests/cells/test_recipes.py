"""Loss scaling, micro-batches, clipping, the weight average."""

import mindspore as ms
import numpy as np
import pytest
from mindcv.optim import create_optimizer
from mindspore import amp, mint, nn, ops

from networks import Net, pruner, rank_term
from rpg_ms.cells import SparseTrainStep, StepOptions, WeightAverage, sparsify
from rpg_ms.pruning.allocation import global_counts
from rpg_ms.pruning.topology import update_topology

CALENDAR = pruner().calendar
ONE = ms.Tensor(1.0, ms.float32)
INFINITY = ms.Tensor(np.inf, ms.float32)


class ScaledLoss(nn.Cell):
    """A network with cross-entropy, which `factor` scales."""

    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, y, factor):
        return ops.cross_entropy(self.network(x), y) * factor.mean()


def data(seed=0, n=8):
    rng = np.random.default_rng(seed)
    return ms.Tensor(rng.standard_normal((n, 2, 6, 6)), ms.float32), ms.Tensor(rng.integers(0, 3, n), ms.int32)


def build(prunes=True, average=None, every="update", **options):
    ms.set_seed(5)
    network = Net()
    found = sparsify(network)
    optimizer = create_optimizer(network.trainable_params(), "momentum", lr=[0.05] * 100, weight_decay=0.01)
    average = WeightAverage(network, average) if average else None
    step = SparseTrainStep(
        ScaledLoss(network),
        optimizer,
        found.layers,
        pruner() if prunes else None,
        rank_term(found.layers, every=every),
        average=average,
        options=StepOptions(**options),
    ).set_train()
    return network, found, step


def arrays(found):
    return [(layer.weight.asnumpy().copy(), layer.mask.asnumpy().copy()) for layer in found.layers]


def assert_equal(left, right):
    for (w1, m1), (w2, m2) in zip(left, right):
        assert np.array_equal(w1, w2) and np.array_equal(m1, m2)


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"], autouse=True)
def mode(request):
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def test_loss_scale_does_not_reach_weights_nor_masks():
    """A power of two scales exactly: the same run with and without it is the same to the bit."""
    runs = []
    for scaler in (None, amp.DynamicLossScaler(2**10, 2, 4)):
        _, found, step = build(scaler=scaler)
        for t in range(1, 13):
            step(*data(t), ONE)
        runs.append(arrays(found))
    assert_equal(*runs)
    assert scaler.scale_value.asnumpy() > 2**10  # it grew on the way


def test_overflow_leaves_a_plain_step_out():
    _, found, step = build(scaler=amp.DynamicLossScaler(2**10, 2, 100))
    step(*data(1), ONE)
    before = arrays(found)
    step(*data(2), INFINITY)
    assert_equal(arrays(found), before)
    assert step.scaler.scale_value.asnumpy() == 2**9
    assert step.optimizer.global_step.asnumpy().tolist() == [2]  # the learning rate's schedule goes on


def test_overflow_postpones_an_update_to_the_next_finite_step():
    _, found, step = build(scaler=amp.DynamicLossScaler(2**10, 2, 100))
    for t in (1, 2):
        step(*data(t), ONE)
    for t in (3, 4):
        step(*data(t), INFINITY)
        assert step.record is None and step.pruner.pending and found.density == 1
    step(*data(5), ONE)
    assert step.record.step == 5 and not step.pruner.pending
    assert found.nonzero == round(CALENDAR.density_at(3) * found.prunable)
    for t in range(6, 13):
        step(*data(t), ONE)
        assert (step.record is not None) == (t in (6, 9))
    assert found.nonzero == round(0.1 * found.prunable)


def test_overflow_to_the_end_still_meets_the_target():
    _, found, step = build(scaler=amp.DynamicLossScaler(2**10, 2, 100))
    for t in range(1, 13):
        step(*data(t), INFINITY if t >= 9 else ONE)
    assert step.pruner.pending and found.nonzero > round(0.1 * found.prunable)
    weights = [weight for weight, _ in arrays(found)]
    step.finish()
    assert found.nonzero == round(0.1 * found.prunable) and step.record.nonzero == found.nonzero
    expected = update_topology(weights, None, global_counts(weights, 0.1), 0.0)
    assert_equal(arrays(found), expected)


def test_without_a_scaler_a_gradient_that_is_not_finite_stops_the_update():
    _, found, step = build()
    before = None
    for t in (1, 2):
        step(*data(t), ONE)
    before = arrays(found)
    with pytest.raises(FloatingPointError, match="conv1"):
        step(*data(3), INFINITY)
    assert_equal(arrays(found), before)


def test_micro_batches_are_their_batch():
    runs = []
    for pieces in (1, 4):
        _, found, step = build(micro_batches=pieces)
        losses = []
        for t in range(1, 7):
            x, y = data(t, 16)
            losses.append(float(step(x, y, ms.Tensor(np.ones(16, np.float32))).asnumpy()))
        runs.append((losses, arrays(found)))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=1e-5)
    for (w1, m1), (w2, m2) in zip(runs[0][1], runs[1][1]):
        assert np.array_equal(m1, m2)  # two decisions, each from the whole batch's gradient
        np.testing.assert_allclose(w1, w2, rtol=1e-4, atol=1e-6)


def test_one_rank_term_in_however_many_pieces():
    """The rank term belongs to the step, not to its pieces: it must not be counted once for each."""
    gradients = []
    for pieces in (1, 4):
        _, found, step = build(prunes=False, micro_batches=pieces, every="step")
        before = found.layers[1].weight.asnumpy().copy()
        x, y = data(1, 16)
        step(x, y, ms.Tensor(np.ones(16, np.float32)))
        gradients.append(found.layers[1].weight.asnumpy() - before)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-7)


def test_clipping_bounds_the_masked_gradient():
    for clip, bounded in ((1e-3, True), (None, False)):
        network, _, step = build(prunes=False, clip_norm=clip)
        before = {p.name: p.asnumpy().copy() for p in network.trainable_params()}
        step(*data(1), ONE)
        # One step of momentum SGD from rest: gradient plus decay, so take the decay off again.
        moved = np.sqrt(
            sum(
                (((before[p.name] - p.asnumpy()) / 0.05 - 0.01 * before[p.name]) ** 2).sum()
                for p in network.trainable_params()
            )
        )
        assert (moved <= 1.05e-3) == bounded


def test_integer_parameters_have_no_average():
    network = mint.nn.BatchNorm2d(3)  # counts its batches
    average = WeightAverage(network, 0.5)
    ops.assign(network.running_mean, ms.Tensor([1.0, 2.0, 3.0]))
    average()
    assert {source.name for source in average.sources} == {"weight", "bias", "running_mean", "running_var"}
    with average.in_place():
        assert network.running_mean.asnumpy().tolist() == [0.5, 1.0, 1.5]


def test_weight_average_is_the_recurrence_and_as_sparse_as_the_network():
    network, found, step = build(average=0.8)
    expected = {p.name: p.asnumpy().copy() for p in network.get_parameters() if p.dtype == ms.float32}
    for t in range(1, 13):
        step(*data(t), ONE)
        masks = {layer.weight.name: layer.mask.asnumpy() for layer in found.layers}
        for parameter in network.get_parameters():
            if parameter.name not in expected:
                continue
            if step.record is None:  # the optimizer rests on an update
                expected[parameter.name] += (parameter.asnumpy() - expected[parameter.name]) * np.float32(0.2)
            expected[parameter.name] *= masks.get(parameter.name, 1)
    averages = {s.name: a.asnumpy().copy() for s, a in zip(step.average.sources, step.average.averages)}
    assert averages.keys() == expected.keys()
    for name, average in averages.items():
        np.testing.assert_allclose(average, expected[name], rtol=1e-4, atol=1e-6)
    for layer in found.layers:
        assert not averages[layer.weight.name][~layer.mask.asnumpy()].any()
    before = arrays(found)
    with step.average.in_place():
        assert np.array_equal(network.conv1.weight.asnumpy(), averages["conv1.weight"])
    assert_equal(arrays(found), before)
