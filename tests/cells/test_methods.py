"""What makes each method that method, seen on a small network in training."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from networks import Net, WithLoss, pruner
from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.config import load_config
from rpg_ms.errors import UserError
from rpg_ms.pruning import METHODS, erk_counts, global_counts, survivors, target_count
from rpg_ms.training.build import build_rank_term, build_train_step, idle_rank_term
from rpg_ms.training.distributed import ALONE

STEPS = 40


class Task:
    """Random batches, ten to an epoch."""

    steps_per_epoch = 10

    def with_loss(self, network):
        return WithLoss(network)


def batch(step):
    rng = np.random.default_rng(step)
    return ms.Tensor(rng.standard_normal((8, 2, 6, 6)), ms.float32), ms.Tensor(rng.integers(0, 3, 8), ms.int32)


@pytest.fixture
def build(tmp_path):
    """`build(method, "key=value", ...) -> (found, step)` with density 0.2 and an update every four steps.

    With `pruned` the network that training starts from is already pruned, to that density.
    """
    ms.set_context(mode=ms.PYNATIVE_MODE)

    def make(method, *settings, seed=0, pruned=None):
        file = tmp_path / "run.yaml"
        file.write_text("train: {epochs: 4, batch_size: 8}\noptimizer: {lr: 0.05}\n")
        ours = [f"pruning.method={method}", "pruning.density=0.2", "pruning.update_every=4"]
        config = load_config(file, [*ours, *settings], seed=seed)
        ms.set_seed(5)
        network = Net().set_train()
        found = sparsify(network)
        if pruned is not None:
            weights = [layer.weight.asnumpy() for layer in found.layers]
            for layer, weight, mask in zip(found.layers, weights, survivors(weights, global_counts(weights, pruned))):
                set_topology(layer, weight, mask)
        step, _ = build_train_step(config, Task(), network, found.layers, "CPU", ALONE)
        step.note = idle_rank_term(config, step)
        return found, step

    yield make
    ms.set_context(mode=ms.GRAPH_MODE)


def arrays(found):
    """Copies of all weights and masks."""
    return (
        [layer.weight.asnumpy().copy() for layer in found.layers],
        [layer.mask.asnumpy().copy() for layer in found.layers],
    )


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.prunes])
def test_ends_at_exactly_the_target_and_takes_the_rank_term(build, method):
    ends = []
    for settings in (), ("rank.lambda=1", "rank.every=step"):
        found, step = build(
            method,
            "train.epochs=2",
            "pruning.update_every=1",
            "pruning.prune_until=0.8",
            "pruning.freeze_after=0.9",
            *settings,
        )
        for t in range(2 * Task.steps_per_epoch):
            loss = step(*batch(t))
            assert np.isfinite(loss.asnumpy())
            for layer in found.layers:
                assert not layer.weight.asnumpy()[~layer.mask.asnumpy()].any()
        assert found.nonzero == target_count(found.prunable, 0.2)
        ends.append(arrays(found)[0])
    assert not same(*ends)  # the rank term drove the weights


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.prunes])
def test_a_rank_term_that_changes_nothing_is_known(build, method):
    """On updates only the term must change the weights, or train.py says that it does not."""
    ends = []
    for strength in 0, 50:
        found, step = build(method, "pruning.update_every=2", f"rank.lambda={strength}")
        for t in range(STEPS):
            step(*batch(t))
        ends.append(arrays(found)[0])
    assert (step.note is not None) == same(*ends) == (method in ("one_shot", "static", "set"))
    assert step.note is None or f"pruning.method={method} has no update" in step.note
    assert build(method, "pruning.update_every=2", "rank.lambda=50", "rank.every=step")[1].note is None


def test_a_rank_term_without_layers_is_known(tmp_path):
    layers = sparsify(nn.SequentialCell(nn.Flatten(), nn.Dense(72, 3))).layers
    file = tmp_path / "run.yaml"
    file.write_text("pruning: {method: rpg}")
    for dense in (False, True):
        config = load_config(file, [f"rank.include_dense={dense}".lower()])
        term = build_rank_term(config.rank, layers, "CPU", None)
        assert (term is not None) == dense
        note = idle_rank_term(config, SimpleNamespace(rank_term=term, pruner=pruner()))
        assert (note is None) == dense and (dense or "no convolution to prune" in note)


def test_one_shot_keeps_the_largest_weights_from_the_start(build):
    ms.set_seed(5)
    dense = [p.asnumpy() for p in Net().trainable_params() if p.ndim > 1]
    found, step = build("one_shot")
    weights, masks = arrays(found)
    cut = np.sort(np.concatenate([abs(w).ravel() for w in dense]))[-found.nonzero]
    assert same(masks, [abs(w) >= cut for w in dense]) and found.nonzero == target_count(found.prunable, 0.2)
    assert same(weights, [w * m for w, m in zip(dense, masks)])
    for t in range(STEPS):
        step(*batch(t))
        assert step.record is None
    assert same(arrays(found)[1], masks)


def test_static_masks_are_random_and_stay(build):
    found, step = build("static")
    masks = arrays(found)[1]
    assert [m.sum() for m in masks] == erk_counts(masks, 0.2)
    assert same(masks, arrays(build("static")[0])[1])
    assert not same(masks, arrays(build("static", seed=1)[0])[1])
    for t in range(STEPS):
        step(*batch(t))
    assert same(arrays(found)[1], masks)


def test_uniform_gmp_prunes_every_layer_alike(build):
    found, step = build("gmp_uniform", "pruning.schedule=constant")
    for t in range(4):
        step(*batch(t))
    assert [layer.mask.asnumpy().sum() for layer in found.layers] == pytest.approx(
        [0.2 * layer.mask.size for layer in found.layers], abs=1
    )


@pytest.mark.parametrize("method, by_gradient", [("set", False), ("rigl", True)])
def test_set_and_rigl_drop_the_smallest_and_grow(build, method, by_gradient):
    found, step = build(method, "pruning.freeze_after=1", "pruning.prune_until=0.5")
    counts = erk_counts([layer.mask.asnumpy() for layer in found.layers], 0.2)
    for t in range(3):
        step(*batch(t))
    weights, masks = arrays(found)
    weight_parameters = ms.ParameterTuple([layer.weight for layer in found.layers])
    gradients = [g.asnumpy().copy() for g in ms.grad(step.task.network, None, weight_parameters)(*batch(3))]
    fraction = 0.3 if method == "set" else 0.15 * (1 + np.cos(np.pi * 4 / STEPS))
    step(*batch(3))
    assert step.record.drop_fraction == pytest.approx(fraction)
    largest_gradients = True
    for weight, mask, gradient, layer, count in zip(weights, masks, gradients, found.layers, counts):
        n_grow = int(fraction * count)
        kept = np.zeros(mask.size, bool)
        kept[np.argsort(-abs(np.where(mask, weight, 0)).ravel(), kind="stable")[: count - n_grow]] = True
        new = layer.mask.asnumpy().ravel()
        assert new.sum() == count and new[kept].all()
        grown = new & ~kept
        score = np.where(kept, -1, abs(gradient).ravel())
        largest_gradients &= set(np.flatnonzero(grown)) == set(np.argsort(-score, kind="stable")[:n_grow])
    assert largest_gradients == by_gradient


def test_set_draws_the_same_places_when_it_is_run_again(build):
    ends = []
    for seed in (0, 0, 1):
        found, step = build("set", seed=seed)
        for t in range(8):
            step(*batch(t))
        ends.append(arrays(found)[1])
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


def test_set_and_its_updates_of_one_epoch(build):
    found, step = build("set", "pruning.update_every=0")
    updates = []
    for t in range(STEPS):
        step(*batch(t))
        updates += [t + 1] if step.record else []
    assert updates == [10, 20, 30]  # not at the end: no step would train what grew there


def test_granet_regrows_while_it_prunes(build):
    found, step = build("granet", "pruning.prune_until=0.8")
    for t in range(7):
        step(*batch(t))
    weights, _ = arrays(found)
    parameters = ms.ParameterTuple([layer.weight for layer in found.layers])
    gradients = [g.asnumpy().copy() for g in ms.grad(step.task.network, None, parameters)(*batch(7))]
    step(*batch(7))
    counts = global_counts(weights, step.pruner.calendar.density_at(8))
    assert step.record.layer_nonzero == counts and 0.2 < step.record.density < 1
    fraction = 0.25 * (1 + np.cos(np.pi * 8 / STEPS))
    assert step.record.drop_fraction == pytest.approx(fraction)
    for weight, gradient, layer, count in zip(weights, gradients, found.layers, counts):
        n_grow = int(fraction * count)
        kept = np.argsort(-abs(weight).ravel(), kind="stable")[: count - n_grow]
        score = abs(gradient).ravel()
        score[kept] = -1
        grown = np.argsort(-score, kind="stable")[:n_grow]
        assert n_grow > 0 and set(np.flatnonzero(layer.mask.asnumpy())) == {*kept, *grown}


@pytest.mark.parametrize("pruned", [0.4, 0.2])
@pytest.mark.parametrize("method", ["rpg", "rpg_erk", "gmp", "granet", "st3"])
def test_a_network_that_was_pruned_before_is_not_opened_again(build, method, pruned):
    found, step = build(method, "pruning.update_every=1", pruned=pruned)
    assert found.nonzero == target_count(found.prunable, pruned)
    counts = []
    for t in range(STEPS):
        step(*batch(t))
        counts.append(found.nonzero)
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (target_count(found.prunable, pruned), target_count(found.prunable, 0.2))


@pytest.mark.parametrize(
    "method, opens",
    [
        ("rpg", False),
        ("gmp", False),
        ("one_shot", False),
        ("st3", False),
        ("acdc", True),
        ("rigl", True),
        ("static", True),
    ],
)
def test_a_target_above_what_a_pruned_network_has(build, method, opens):
    if opens:
        assert build(method, "pruning.update_every=1", pruned=0.1)
    else:
        with pytest.raises(
            UserError, match=r"^pruning.density: 0.2 is more than model.pretrained has, .* to 56 of 564 "
        ):
            build(method, "pruning.update_every=1", pruned=0.1)


def test_acdc_opens_a_network_that_was_pruned_before(build):
    found, step = build("acdc", "pruning.update_every=1", pruned=0.1)
    densities = []
    for t in range(STEPS):
        step(*batch(t))
        densities.append(found.density)
    assert max(densities) == 1 and densities[-1] == pytest.approx(0.2, abs=1e-3)


def test_acdc_opens_all_masks_with_zero_weights_and_no_momentum(build):
    found, step = build("acdc", "pruning.update_every=1")  # 34 updates to T_prune, phases of two steps
    parameters = ms.ParameterTuple([layer.weight for layer in found.layers])
    densities, masks = [], None
    for t in range(STEPS):
        weights, _ = arrays(found)
        gradients = [g.asnumpy().copy() for g in ms.grad(step.task.network, None, parameters)(*batch(t))]
        step(*batch(t))
        densities.append(found.density)
        if t and densities[t] == 1 > densities[t - 1]:
            dense_begins = t
            for layer, weight, gradient in zip(found.layers, weights, gradients):
                moment = next(m for m in step.optimizer.moments if m.name.endswith(layer.weight.name))
                # Reset, then one step: no momentum from before, and what was masked learns at once.
                assert np.allclose(moment.asnumpy(), gradient + 5e-4 * weight, rtol=1e-3, atol=1e-6)
                assert layer.mask.asnumpy().all() and abs(layer.weight.asnumpy()[weight == 0]).max() > 0
        elif t and densities[t] < 1 and densities[t - 1] < 1:
            assert same(masks, arrays(found)[1])  # fixed within a sparse phase
        masks = arrays(found)[1]
    changes = [t + 1 for t in range(1, STEPS) if densities[t] != densities[t - 1]]
    assert len(changes) == 15 and dense_begins < 34 and densities[-1] == pytest.approx(0.2, abs=1e-3)


def test_st3_by_hand(build):
    """Latent weights 4, -3, 1, 0.5: half of them stay, the threshold is 1, the rest by the rescaling rule."""
    found, step = build("st3")
    soft = step.soft_threshold
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal(layer.weight.shape).astype(np.float32) * 0.01 for layer in found.layers]
    latents[2][0, :4] = 4, -3, 1, 0.5
    latents[2][0, 4:] = latents[2][1:] = 0
    for parameter, value in zip(soft.latents, latents):
        ops.assign(parameter, ms.Tensor(value))
    masks = [np.zeros(layer.weight.shape, bool) for layer in found.layers]
    masks[2][0, :2] = True
    soft.set_masks(masks, True)
    share = ((4 + 3) / 8 + 1e-6) / ((4 + 3 + 1 + 0.5) / 8 + 1e-6)
    expected = np.zeros((3, 8))
    expected[0, :2] = np.array([4 - 1, -3 + 1]) * 1.01 / (share + 0.01)
    assert np.allclose(found.layers[2].weight.asnumpy(), expected, rtol=1e-5)
    assert not found.layers[0].weight.asnumpy().any()


def test_st3_leaves_no_layer_empty_that_has_a_mask(build):
    """One cut of the network would take all of the first layer; the floor per layer keeps one weight of it."""
    found, step = build("st3")
    soft = step.soft_threshold
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal(layer.weight.shape).astype(np.float32) + 4 for layer in found.layers]
    latents[0] *= 0.001
    for parameter, value in zip(soft.latents, latents):
        ops.assign(parameter, ms.Tensor(value))
    counts = global_counts(latents, 0.2)
    soft.set_masks(survivors(latents, counts), True)
    assert counts[0] == 1
    for layer in found.layers:
        assert np.array_equal(layer.weight.asnumpy() != 0, layer.mask.asnumpy())
    assert [float(threshold.asnumpy()) for threshold in soft.thresholds[1:]] == pytest.approx(
        [np.sort(np.concatenate([a.ravel() for a in latents[1:]]))[-sum(counts)]] * 2, rel=0.01
    )


def test_st3_s_average_is_as_sparse_as_its_network(build):
    found, step = build("st3", "train.ema_decay=0.5")
    for t in range(STEPS):
        step(*batch(t))
        averages = {average.name: average.asnumpy() for average in step.average.averages}
        for layer, latent in zip(found.layers, step.soft_threshold.latents):
            off = ~layer.mask.asnumpy()
            assert not averages[f"average.{layer.weight.name}"][off].any()
            assert latent.asnumpy()[off].all()  # and what is masked goes on learning
    assert off.any()


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_st3_goes_straight_through(build, mode):
    found, step = build(
        "st3", "optimizer.momentum=0", "optimizer.weight_decay=0", "pruning.schedule=constant", "schedule.name=constant"
    )
    ms.set_context(mode=mode)
    for t in range(5):
        step(*batch(t))
    soft = step.soft_threshold
    _, masks = arrays(found)
    parameters = ms.ParameterTuple([layer.weight for layer in found.layers])
    gradients = [g.asnumpy().copy() for g in ms.grad(step.task.network, None, parameters)(*batch(5))]
    before = [latent.asnumpy().copy() for latent in soft.latents]
    step(*batch(5))  # no update
    for latent, old, gradient, mask, layer in zip(soft.latents, before, gradients, masks, found.layers):
        assert np.allclose(latent.asnumpy(), old - 0.05 * gradient, rtol=1e-4, atol=1e-6)
        assert abs(gradient[~mask]).max() > 0  # pruned weights learn
        assert np.array_equal(layer.mask.asnumpy(), mask)
    out = np.argwhere(~masks[1])[0]
    latent = soft.latents[1].asnumpy().copy()
    latent[tuple(out)] = 9
    ops.assign(soft.latents[1], ms.Tensor(latent))
    for t in (6, 7):
        step(*batch(t))
    assert step.record is not None and found.layers[1].mask.asnumpy()[tuple(out)]  # and come back
    assert abs(found.layers[1].weight.asnumpy()[tuple(out)]) > 1
    assert found.nonzero == target_count(found.prunable, 0.2)
