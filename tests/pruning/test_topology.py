import ast
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpg_ms.pruning import (
    cosine_drop_fraction,
    drop_and_grow,
    exponential_density,
    global_counts,
    largest,
    start_masks,
    survivors,
    update_topology,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def golden_updates():
    """Each recorded update as (file, number), and a reader that is only run in the test."""
    return [(name, number) for name in ("topology_rpg90", "topology_gmp95") for number in range(19)]


class Recorded:
    """One update of a recorded run."""

    def __init__(self, name, number):
        self.file = np.load(GOLDEN / f"{name}.npz")
        self.number = number
        self.shapes = [ast.literal_eval(str(shape)) for shape in self.file["shapes"]]

    def __getitem__(self, key):
        return self.file[f"u{self.number:03d}_{key}"]

    def layers(self, key):
        return [self[f"{key}{layer}"] for layer in range(len(self.shapes))]

    def masks(self, key):
        return [
            np.unpackbits(packed, count=math.prod(shape)).astype(bool).reshape(shape)
            for packed, shape in zip(self.layers(key), self.shapes)
        ]


def test_every_recorded_update_is_tested():
    for name in ("topology_rpg90", "topology_gmp95"):
        assert int(np.load(GOLDEN / f"{name}.npz")["n_updates"]) == 19


@pytest.mark.parametrize("name, number", golden_updates())
def test_drop_and_grow_matches_the_released_implementation(name, number):
    update = Recorded(name, number)
    inputs = zip(
        update.layers("w_before"),
        update.masks("survivors"),
        update.layers("dense_grad"),
        update.layers("n_remain"),
        update.layers("n_grow"),
    )
    expected = zip(update.layers("w_after"), update.masks("mask_after"))
    for (weight, surviving, grad, n_remain, n_grow), (w_after, mask_after) in zip(inputs, expected):
        new_weight, new_mask = drop_and_grow(weight, surviving, grad, int(n_remain - n_grow), int(n_grow))
        np.testing.assert_array_equal(new_mask, mask_after)
        np.testing.assert_array_equal(new_weight, w_after)


@pytest.mark.parametrize("name, number", golden_updates())
def test_global_cut_and_schedules_match_up_to_the_one_weight_they_round(name, number):
    update = Recorded(name, number)
    last = update.file["iterative_t_end"] // update.file["delta_t"]
    target = float(update.file["density"])
    density = exponential_density(number, int(last), target)  # the released code's first update has number 0
    if f"u{number:03d}_density_target" in update.file:
        assert density == pytest.approx(float(update["density_target"]), rel=1e-12)

    weights = update.layers("w_before")
    ours = survivors(weights, global_counts(weights, density, min_per_layer=0))
    assert sum(np.sum(a != b) for a, b in zip(ours, update.masks("survivors"))) <= 1

    end_step, alpha = int(update.file["t_end"]), float(update.file["alpha"])
    fraction = cosine_drop_fraction(int(update["step"]), end_step, alpha)
    assert fraction == pytest.approx(float(update["drop_fraction"]), rel=1e-12)
    assert [math.floor(fraction * n) for n in update.layers("n_remain")] == update.layers("n_grow")


# --- largest ------------------------------------------------------------------------------------------------


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=60),
    st.data(),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_largest_is_that_of_a_full_sort(values, data, dtype):
    count = data.draw(st.integers(0, len(values)))
    chosen = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    expected = np.isin(np.arange(len(values)), chosen)
    np.testing.assert_array_equal(largest(np.array(values, dtype), count), expected)


def test_largest_keeps_the_shape_and_prefers_the_lowest_flat_index():
    values = np.array([[1.0, 2.0, 2.0], [2.0, 0.0, 3.0]])
    assert largest(values, 3).tolist() == [[False, True, True], [False, False, True]]
    assert largest(values.T, 3).tolist() == [[False, True], [True, False], [False, True]]
    assert largest(np.array([-0.0, 0.0, -0.0]), 2).tolist() == [True, True, False]
    assert largest(np.array([-np.inf, 1.0, np.inf]), 2).tolist() == [False, True, True]


def test_largest_refuses_what_it_cannot_rank():
    for count in (-1, 4):
        with pytest.raises(ValueError, match=rf"count must be in \[0, 3\], got {count}"):
            largest(np.arange(3.0), count)
    with pytest.raises(ValueError, match="NaN"):
        largest(np.array([1.0, np.nan, 2.0]), 1)


# --- survivors ----------------------------------------------------------------------------------------------


def test_survivors_of_the_global_cut_are_the_largest_of_the_network():
    rng = np.random.default_rng(1)
    weights = [rng.integers(-4, 5, shape).astype(np.float32) for shape in ((5, 4, 3, 3), (6, 7), (30, 2))]
    masks = survivors(weights, global_counts(weights, 0.3, min_per_layer=0))
    order = np.argsort(-np.abs(np.concatenate(weights, axis=None)), kind="stable")
    expected = np.isin(np.arange(order.size), order[: round(0.3 * order.size)])
    np.testing.assert_array_equal(np.concatenate(masks, axis=None), expected)
    assert [mask.shape for mask in masks] == [weight.shape for weight in weights]


def test_survivors_refuse_by_layer():
    weights = [np.ones((2, 2)), np.ones((2, 3))]
    with pytest.raises(ValueError, match="layer 1 has 6 weights and cannot keep 7"):
        survivors(weights, [1, 7])
    with pytest.raises(ValueError, match="2 layers of weights, but 1 entries"):
        survivors(weights, [1])
    weights[1][0, 0] = np.nan
    with pytest.raises(ValueError, match="weight of layer 1: 1 of 6 entries are NaN"):
        survivors(weights, [1, 1])


# --- drop and grow ------------------------------------------------------------------------------------------


def drop_and_grow_by_sorting(weight, surviving, grad, n_keep, n_grow):
    """The definition, one position at a time."""
    flat, inside, scores = weight.ravel().tolist(), surviving.ravel().tolist(), grad.ravel().tolist()
    magnitude = [abs(value) if alive else 0.0 for value, alive in zip(flat, inside)]
    kept = sorted(range(len(flat)), key=lambda i: (-magnitude[i], i))[:n_keep]
    others = [i for i in range(len(flat)) if i not in kept]
    active = kept + sorted(others, key=lambda i: (-abs(scores[i]), i))[:n_grow]
    new_weight = [flat[i] if i in active and inside[i] else 0.0 for i in range(len(flat))]
    new_mask = [i in active for i in range(len(flat))]
    return np.reshape(new_weight, weight.shape), np.reshape(new_mask, weight.shape)


@settings(max_examples=1000, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.data(),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_drop_and_grow_is_its_definition(rows, columns, tied, seed, data, dtype):
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, (2, rows, columns)) if tied else rng.standard_normal((2, rows, columns))
    weight, grad = values.astype(dtype)
    surviving = rng.random((rows, columns)) < 0.5
    n_keep = data.draw(st.integers(0, weight.size))
    n_grow = data.draw(st.integers(0, weight.size - n_keep))
    before = weight.copy(), surviving.copy(), grad.copy()

    new_weight, new_mask = drop_and_grow(weight, surviving, grad, n_keep, n_grow)

    expected_weight, expected_mask = drop_and_grow_by_sorting(weight, surviving, grad, n_keep, n_grow)
    np.testing.assert_array_equal(new_mask, expected_mask)
    np.testing.assert_array_equal(new_weight, expected_weight)
    assert new_mask.sum() == n_keep + n_grow
    assert new_weight.dtype == dtype and new_mask.dtype == bool
    assert not np.signbit(new_weight[~(new_mask & surviving)]).any()  # +0.0, not -0.0
    for array, old in zip((weight, surviving, grad), before):
        np.testing.assert_array_equal(array, old)


def test_drop_and_grow_known_by_hand():
    weight = np.array([[5.0, -4.0, 3.0, -2.0], [0.0, 9.0, -1.0, 0.0]], np.float32)
    surviving = np.array([[True, True, True, True], [False, False, True, False]])  # the 9 fell to the cut
    grad = np.array([[9.0, 9.0, 0.1, -0.8], [0.7, -0.9, 0.0, 0.2]], np.float32)
    new_weight, new_mask = drop_and_grow(weight, surviving, grad, n_keep=2, n_grow=2)
    # Kept: 5 and -4. Grown: where |g| is 0.9 (no survivor, starts at 0) and 0.8 (a survivor, keeps -2).
    assert new_mask.astype(int).tolist() == [[1, 1, 0, 1], [0, 1, 0, 0]]
    assert new_weight.tolist() == [[5.0, -4.0, 0.0, -2.0], [0.0, 0.0, 0.0, 0.0]]


def test_keeps_as_many_as_asked_when_too_few_weights_are_non_zero():
    weight = np.array([[0.0, 0.0, 7.0, 0.0, 0.0, 1.0]])
    surviving = np.array([[False, False, True, False, True, False]])
    new_weight, new_mask = drop_and_grow(weight, surviving, np.arange(6.0)[None], n_keep=3, n_grow=1)
    # 7, then zeros by flat index (whether survivors or not); of the rest the last has the largest gradient.
    assert new_mask.tolist() == [[True, True, True, False, False, True]]
    assert new_weight.tolist() == [[0.0, 0.0, 7.0, 0.0, 0.0, 0.0]]


def test_gradient_is_not_needed_without_growth():
    weight = np.array([[1.0, -3.0, 2.0]])
    new_weight, new_mask = drop_and_grow(weight, np.ones((1, 3), bool), None, n_keep=2, n_grow=0)
    assert new_mask.tolist() == [[False, True, True]] and new_weight.tolist() == [[0.0, -3.0, 2.0]]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"survivors": np.ones((2, 3))}, r"survivors must be boolean of shape \(2, 3\), got float64"),
        (
            {"survivors": np.ones((3, 2), bool)},
            r"survivors must be boolean of shape \(2, 3\), got bool of shape \(3, 2\)",
        ),
        ({"n_keep": 6}, "cannot keep 6 and grow 1 of the 6 weights"),
        ({"n_keep": -1}, "cannot keep -1"),
        ({"dense_grad": None}, r"growing 1 weights needs a gradient of shape \(2, 3\), got None"),
        ({"dense_grad": np.ones((3, 2))}, r"got shape \(3, 2\)"),
        ({"dense_grad": np.full((2, 3), np.inf)}, "gradient: 6 of 6 entries are NaN or infinite"),
        ({"weight": np.full((2, 3), np.nan)}, "weight: 6 of 6 entries are NaN or infinite"),
    ],
)
def test_drop_and_grow_refuses_nonsense(changes, message):
    arguments = {
        "weight": np.ones((2, 3)),
        "survivors": np.ones((2, 3), bool),
        "dense_grad": np.ones((2, 3)),
        "n_keep": 2,
        "n_grow": 1,
    }
    with pytest.raises(ValueError, match=message):
        drop_and_grow(**{**arguments, **changes})


# --- the network --------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0), st.floats(0.0, 1.0))
def test_update_topology_is_the_cut_then_drop_and_grow(seed, density, drop_fraction):
    rng = np.random.default_rng(seed)
    shapes = (4, 3, 3, 3), (5, 4), (7, 7)
    weights, grads = ([rng.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(2))
    counts = global_counts(weights, density)
    updated = update_topology(weights, grads, counts, drop_fraction)
    assert [mask.sum() for _, mask in updated] == counts
    cut = survivors(weights, counts)
    for weight, surviving, grad, count, result in zip(weights, cut, grads, counts, updated):
        n_grow = math.floor(drop_fraction * count)
        for ours, alone in zip(result, drop_and_grow(weight, surviving, grad, count - n_grow, n_grow)):
            np.testing.assert_array_equal(ours, alone)


def test_update_topology_without_growth_is_the_magnitude_cut():
    weights = [np.array([[3.0, -1.0], [0.5, 2.0]]), np.array([[-4.0, 0.1]])]
    (first, first_mask), (second, second_mask) = update_topology(weights, None, [2, 1], 0.0)
    assert first.tolist() == [[3.0, 0.0], [0.0, 2.0]]
    assert first_mask.tolist() == [[True, False], [False, True]]
    assert second.tolist() == [[-4.0, 0.0]] and second_mask.tolist() == [[True, False]]


def test_update_topology_refuses_by_layer():
    weights = [np.ones((2, 4)), np.ones((4, 2))]
    grads = [np.ones((2, 4)), np.ones((4, 2))]
    with pytest.raises(ValueError, match="drop fraction of 0.5 needs dense gradients"):
        update_topology(weights, None, [4, 4], 0.5)
    with pytest.raises(ValueError, match=r"drop_fraction must be in \[0, 1\], got 1.5"):
        update_topology(weights, grads, [4, 4], 1.5)
    with pytest.raises(ValueError, match="2 layers of weights, but 1 entries"):
        update_topology(weights, grads[:1], [4, 4], 0.5)
    grads[1][0, 0] = np.nan
    with pytest.raises(ValueError, match="gradient of layer 1: 1 of 8 entries are NaN"):
        update_topology(weights, grads, [4, 4], 0.5)


def test_survivors_of_millions_of_equal_weights_need_no_index_arrays():
    weights = [np.zeros((64, 1024), np.float32) for _ in range(40)]
    tracemalloc.start()
    try:
        masks = survivors(weights, [1000] * 40)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.5 * sum(weight.nbytes for weight in weights)  # a quarter is the masks themselves
    assert all(mask.ravel()[:1000].all() and mask.sum() == 1000 for mask in masks)


def test_start_masks():
    weights = [np.array([[3.0, -4.0], [1.0, 2.0]]), np.arange(6.0).reshape(2, 3)]
    by_size = start_masks(weights, [2, 1], "magnitude", seed=0)
    assert by_size[0].tolist() == [[True, True], [False, False]]
    assert np.flatnonzero(by_size[1]).tolist() == [5]
    weights = [np.arange(4000.0), np.arange(4000.0)]
    first, again, other = (start_masks(weights, [1000, 1000], "random", seed) for seed in (7, 7, 8))
    assert [mask.sum() for mask in first] == [1000, 1000]
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert abs(first[0][2000:].sum() - 500) < 100  # anywhere, not where weights are large
