import mindspore as ms
import numpy as np
import pytest
from mindcv.optim import create_optimizer
from mindspore import nn, ops

import networks
from networks import WithLoss, pruner
from rpg_ms.cells import SparseTrainStep, sparsify
from rpg_ms.pruning.allocation import global_counts
from rpg_ms.pruning.topology import update_topology
from rpg_ms.rank import rank_term

CALENDAR = pruner().calendar


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, 2)
        self.fc = nn.Dense(8, 3)

    def construct(self, x):
        x = ops.relu(self.bn(self.conv1(x)))
        return self.fc(ops.relu(self.conv2(x)).mean((2, 3)))


def data(seed=0, n=8):
    rng = np.random.default_rng(seed)
    return (ms.Tensor(rng.standard_normal((n, 2, 6, 6)), ms.float32), ms.Tensor(rng.integers(0, 3, n), ms.int32))


def build(
    prunes=True,
    alpha=0.3,
    rank=0.5,
    optimizer="momentum",
    lr=0.05,
    min_per_layer=1,
    optimizer_options=None,
    **rank_options,
):
    ms.set_seed(5)
    network = Net()
    found = sparsify(network)
    optimizer = create_optimizer(
        network.trainable_params(),
        optimizer,
        lr=[lr] * 100,
        weight_decay=0.01,
        weight_decay_filter="norm_and_bias",
        **(optimizer_options or {}),
    )
    step = SparseTrainStep(
        WithLoss(network),
        optimizer,
        found.layers,
        pruner(alpha=alpha, min_per_layer=min_per_layer) if prunes else None,
        networks.rank_term(found.layers, rank, **rank_options),
    ).set_train()
    return network, found, step


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"], autouse=True)
def mode(request):
    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=ms.GRAPH_MODE)


def assert_masked(found, optimizer):
    for layer in found.layers:
        off = ~layer.mask.asnumpy()
        assert not layer.weight.asnumpy()[off].any(), layer.name
        states = [
            p
            for p in optimizer.get_parameters()
            if p.name.endswith("." + layer.weight.name) and p.shape == layer.weight.shape
        ]
        for state in states:
            assert not state.asnumpy()[off].any(), state.name
    return True


@pytest.mark.parametrize(
    "optimizer, options",
    [
        ("momentum", {"momentum": 0.9}),
        ("momentum", {"momentum": 0.9, "nesterov": True}),
        ("momentum", {"momentum": 0.0}),
        ("adam", {}),
        ("adamw", {}),
    ],
    ids=["sgd", "nesterov", "no momentum", "adam", "adamw"],
)
def test_weights_are_exactly_zero_where_masked_after_every_step(optimizer, options):
    for alpha in (0.3, 0.0):
        _, found, step = build(optimizer=optimizer, alpha=alpha, optimizer_options=options)
        for t in range(1, 13):
            step(*data(t))
            assert_masked(found, step.optimizer)
            assert found.nonzero == round(CALENDAR.density_at(t) * found.prunable)
            assert (step.record is not None) == CALENDAR.is_update(t)
        assert found.nonzero == round(0.1 * found.prunable)


def test_update_is_the_numpy_one_on_the_dense_gradient():
    """The masks after an update equal those computed by hand from finite differences' own definition: the gradient of
    a copy of the network whose weights are the masked ones and which knows no masks at all.
    """
    network, found, step = build()
    for t in range(1, 6):
        step(*data(t))
    before = [layer.weight.asnumpy().copy() for layer in found.layers]
    assert found.density < 1

    twin = Net().set_train()
    ms.load_param_into_net(twin, {p.name: p for p in network.get_parameters() if "mask" not in p.name})
    weights = [twin.conv1.weight, twin.conv2.weight, twin.fc.weight]
    gradients = [g.asnumpy() for g in ms.grad(WithLoss(twin), None, ms.ParameterTuple(weights))(*data(6))]
    for i in (0, 1):  # the two convolutions are in the rank term
        gradients[i] = gradients[i] + 0.5 * rank_term(before[i], 0.2)[2] / 2
    assert all(g[~layer.mask.asnumpy()].any() for g, layer in zip(gradients, found.layers))

    step(*data(6))
    counts = global_counts(before, CALENDAR.density_at(6))
    expected = update_topology(before, gradients, counts, CALENDAR.drop_fraction(6, 0.3))
    for layer, (weight, mask) in zip(found.layers, expected):
        assert np.array_equal(layer.mask.asnumpy(), mask), layer.name
        assert np.array_equal(layer.weight.asnumpy(), weight), layer.name
    assert step.record.layer_nonzero == counts and step.record.nonzero == sum(counts)
    assert step.record.ranks == [rank_term(w, 0.2)[1] for w in before[:2]]
    assert step.record.rank_loss == pytest.approx(np.mean([rank_term(w, 0.2)[0] for w in before[:2]]), rel=1e-5)


def test_dense_gradient_at_masked_positions_by_finite_differences():
    network, found, step = build()
    for t in range(1, 5):
        step(*data(t))
    layer = found.layers[1]
    network.set_train(False)  # fixed batch statistics: a smooth function of the weight
    _, gradients, _ = step.task(*data(9))
    gradient = gradients[step.gradient_of[1]].asnumpy() + step.rank_term()[2][1].asnumpy()
    masked = np.argwhere(~layer.mask.asnumpy())
    weight = layer.weight.asnumpy().copy()

    def objective(w):
        layer.weight.set_data(ms.Tensor(w))
        return float(step.task(*data(9))[0].asnumpy()) + 0.5 * float(step.rank_term()[0].asnumpy())

    for position in masked[:: max(1, len(masked) // 5)]:
        moved = []
        for h in (3e-3, -3e-3):
            shifted = weight.copy()
            shifted[tuple(position)] += h
            moved.append(objective(shifted))
        assert gradient[tuple(position)] == pytest.approx((moved[0] - moved[1]) / 6e-3, rel=0.1, abs=2e-3)


def test_optimizer_rests_on_update_steps_with_regrowth_and_steps_without():
    for alpha, moves in ((0.3, False), (0.0, True)):
        network, found, step = build(alpha=alpha)
        for t in range(1, 3):
            step(*data(t))
        before = network.bn.gamma.asnumpy().copy()
        step(*data(3))
        assert (not np.array_equal(network.bn.gamma.asnumpy(), before)) == moves
        assert step.optimizer.global_step.asnumpy().tolist() == [3]  # the schedule goes on either way
        step(*data(4))
        assert step.optimizer.global_step.asnumpy().tolist() == [4]


def test_an_optimizer_that_was_used_before_goes_on_in_its_schedule():
    _, _, step = build()
    ops.assign(step.optimizer.global_step, ms.Tensor([20], ms.int32))
    for t in range(1, 5):
        step(*data(t))  # an update among them
    assert step.optimizer.global_step.asnumpy().tolist() == [24]


def test_gradual_magnitude_pruning_keeps_the_largest():
    _, found, step = build(alpha=0.0, rank=0, lr=1e-9, min_per_layer=0)  # weights stand still
    everything = np.concatenate([np.abs(layer.weight.asnumpy()).ravel() for layer in found.layers])
    for t in range(1, 13):
        step(*data(t))
    threshold = np.sort(everything)[-found.nonzero]
    kept = np.concatenate([layer.mask.asnumpy().ravel() for layer in found.layers])
    assert np.array_equal(kept, everything >= threshold)
    assert step.rank_term is None


def test_rank_term_on_every_step_drives_the_weights():
    moved = {}
    for every in ("update", "step"):
        network, found, step = build(prunes=False, every=every, rank=5.0)
        first = rank_term(network.conv2.weight.asnumpy(), 0.2)
        for _ in range(5):
            step(*data(0))
        moved[every] = network.conv2.weight.asnumpy().copy()
    assert not np.array_equal(moved["update"], moved["step"])
    k, tails = first[1], {}
    for every, weight in moved.items():
        s = np.linalg.svd(weight.reshape(8, -1), compute_uv=False)
        tails[every] = (s[k:] ** 2).sum() / (s**2).sum()
    assert tails["step"] > tails["update"]  # pushed away from rank k: more energy in the tail


def test_rank_term_takes_dense_layers_on_request():
    _, _, step = build(dense=True)
    for t in range(1, 4):
        step(*data(t))
    assert len(step.record.ranks) == 3


def test_both_backends_choose_the_same_masks():
    masks = []
    for backend in ("gram", "svd"):
        _, found, step = build(backend=backend)
        for t in range(1, 4):
            step(*data(t))
        masks.append([layer.mask.asnumpy() for layer in found.layers])
    assert all(np.array_equal(a, b) for a, b in zip(*masks))


def test_state_of_a_name_that_ends_like_another():
    """`head.fc.weight` and `fc.weight` have the same shape and end alike: each keeps its own state."""

    class Inner(nn.Cell):
        def __init__(self):
            super().__init__()
            self.fc = nn.Dense(4, 4, has_bias=False)

        def construct(self, x):
            return self.fc(x)

    class Outer(nn.Cell):
        def __init__(self):
            super().__init__()
            self.fc = nn.Dense(4, 4, has_bias=False)
            self.head = Inner()

        def construct(self, x, _):
            return ops.square(self.head(self.fc(x))).mean()

    ms.set_seed(1)
    network = Outer()
    found = sparsify(network)
    optimizer = create_optimizer(network.trainable_params(), "momentum", lr=0.1)
    decides = pruner(0.3, 4, update_every=2, prune_until=0.5, freeze_after=0.5)
    step = SparseTrainStep(network, optimizer, found.layers, decides).set_train()
    x = ms.Tensor(np.random.default_rng(0).standard_normal((5, 4)), ms.float32)
    for _ in range(2):
        step(x, x)
    names = {p.name: p.asnumpy() for p in optimizer.moments}
    for layer in found.layers:
        state = names[f"moments.{layer.weight.name}"]
        assert not state[~layer.mask.asnumpy()].any()
        assert state[layer.mask.asnumpy()].any()


def test_trains_under_mindspores_model():
    _, found, step = build()
    import mindspore.dataset as ds

    x, y = data(1, 32)
    batches = ds.NumpySlicesDataset((x.asnumpy(), y.asnumpy()), shuffle=False).batch(8)
    ms.Model(step).train(3, batches, dataset_sink_mode=False)
    assert step.step_number == 12 and found.nonzero == round(0.1 * found.prunable)


def test_is_refused_as_a_part_of_a_graph():
    """As MindSpore's Model would make it with dataset_sink_mode=True on a device: no topology update would happen."""

    class Wrapper(nn.Cell):
        def __init__(self, step):
            super().__init__(auto_prefix=False)
            self.step = step

        def construct(self, x, y):
            return self.step(x, y)

    _, found, step = build()
    if ms.get_context("mode") == ms.GRAPH_MODE:
        with pytest.raises(RuntimeError, match="dataset_sink_mode=False"):
            Wrapper(step)(*data())
    else:
        Wrapper(step)(*data())
        assert step.step_number == 1


def test_drop_by_saliency_keeps_the_largest_products_of_weight_and_gradient():
    network, found, _ = build(rank=0)
    optimizer = create_optimizer(network.trainable_params(), "momentum", lr=[0.05] * 100)
    step = SparseTrainStep(WithLoss(network), optimizer, found.layers, pruner(alpha=0.0, drop="saliency")).set_train()
    for t in range(1, 3):
        step(*data(t))
    weights = [layer.weight.asnumpy().copy() for layer in found.layers]
    gradients = [
        g.asnumpy()
        for g in ms.grad(step.task.network, None, ms.ParameterTuple([layer.weight for layer in found.layers]))(*data(3))
    ]
    step(*data(3))
    score = np.concatenate([np.abs(w * g).ravel() for w, g in zip(weights, gradients)])
    kept = np.concatenate([layer.mask.asnumpy().ravel() for layer in found.layers])
    assert 0 < kept.sum() < kept.size and score[kept].min() >= score[~kept].max() * (1 - 1e-4)
