import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpg_ms.pruning.allocation import (
    ALLOCATIONS,
    erk_counts,
    global_counts,
    target_count,
    uniform_counts,
    uniform_first_dense_counts,
)

shapes = st.lists(st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple), min_size=1, max_size=7)
densities = st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.125, 0.5, 1.0]))


def random_weights(layer_shapes, seed, values=None):
    """Normal weights of very different scales per layer, or draws from a few `values` so that ties abound."""
    rng = np.random.default_rng(seed)
    if values is not None:
        return [rng.choice(values, shape).astype(np.float32) for shape in layer_shapes]
    return [(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3)).astype(np.float32) for shape in layer_shapes]


def largest_by_sorting(weights, count):
    """The K largest |w| of the network, by definition: sorted by magnitude, then layer, then flat index."""
    entries = [
        (-abs(float(value)), layer, index)
        for layer, weight in enumerate(weights)
        for index, value in enumerate(weight.ravel())
    ]
    return [sum(1 for entry in sorted(entries)[:count] if entry[1] == layer) for layer in range(len(weights))]


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
@settings(max_examples=1500, deadline=None)
@given(shapes, densities, st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_every_allocation_is_exact(name, layer_shapes, density, min_per_layer, seed):
    weights = random_weights(layer_shapes, seed)
    sizes = [weight.size for weight in weights]
    floors = [min(min_per_layer, size) for size in sizes]
    if name == "uniform_first_dense":
        floors[0] = sizes[0]
    kept = int(round(density * sum(sizes)))

    if kept < sum(floors):
        with pytest.raises(ValueError, match=f"keeps {kept} of {sum(sizes)} weights.* needs {sum(floors)}$"):
            ALLOCATIONS[name](weights, density, min_per_layer)
        return
    counts = ALLOCATIONS[name](weights, density, min_per_layer)
    assert sum(counts) == kept
    assert all(type(count) is int and low <= count <= high for count, low, high in zip(counts, floors, sizes))


@settings(max_examples=500, deadline=None)
@given(shapes, densities, st.booleans(), st.integers(0, 2**32 - 1))
def test_global_counts_are_those_of_a_full_sort(layer_shapes, density, tied, seed):
    weights = random_weights(layer_shapes, seed, values=[-1.0, -0.5, -0.0, 0.0, 0.5] if tied else None)
    kept = target_count(sum(weight.size for weight in weights), density)
    assert global_counts(weights, density, min_per_layer=0) == largest_by_sorting(weights, kept)


@settings(max_examples=500, deadline=None)
@given(shapes, densities, st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_floors_are_paid_one_by_one_from_most_slack(layer_shapes, density, min_per_layer, seed):
    weights = random_weights(layer_shapes, seed)
    floors = [min(min_per_layer, weight.size) for weight in weights]
    if target_count(sum(weight.size for weight in weights), density) < sum(floors):
        return
    without = global_counts(weights, density, min_per_layer=0)
    expected = [max(count, floor) for count, floor in zip(without, floors)]
    while sum(expected) > sum(without):
        slacks = [count - floor for count, floor in zip(expected, floors)]
        expected[slacks.index(max(slacks))] -= 1
    assert global_counts(weights, density, min_per_layer) == expected


def test_target_count_rounds_to_nearest():
    assert [target_count(10, density) for density in (0.0, 0.04, 0.06, 0.14, 0.16, 1)] == [0, 0, 1, 1, 2, 10]
    assert target_count(25_502_912, 0.1) == 2_550_291
    with pytest.raises(ValueError, match=r"density must be in \[0, 1\], got 1.5"):
        target_count(10, 1.5)


def test_global_known_by_hand():
    weights = [np.array([[3.0, -1.0], [0.5, 0.0]]), np.array([[-4.0, 2.0]]), np.array([[0.1, -0.2, 0.3]])]
    assert global_counts(weights, 4 / 9, min_per_layer=0) == [2, 2, 0]  # 4, 3, 2, 1
    assert global_counts(weights, 4 / 9) == [1, 2, 1]  # slack 1 and 1: the first layer gives
    assert global_counts(weights, 1.0) == [4, 2, 3]


def test_global_ties_go_to_the_earlier_layer():
    weights = [np.full((2, 2), 0.5), np.array([[-0.5, 0.5, 2.0]]), np.full((1, 3), 0.5)]
    assert global_counts(weights, 0.2, min_per_layer=0) == [1, 1, 0]
    assert global_counts(weights, 0.6, min_per_layer=0) == [4, 2, 0]
    assert global_counts(weights, 0.8, min_per_layer=0) == [4, 3, 1]


def test_floor_comes_from_the_layer_with_most_slack():
    weights = [np.full((1, 4), 3.0), np.full((1, 9), 2.0), np.full((1, 7), 1.0)]
    assert global_counts(weights, 0.6, min_per_layer=0) == [4, 8, 0]
    assert global_counts(weights, 0.6, min_per_layer=1) == [4, 7, 1]
    assert global_counts(weights, 0.6, min_per_layer=4) == [4, 4, 4]
    with pytest.raises(ValueError, match="density 0.6 keeps 12 of 20 weights, .* over 3 layers needs 14"):
        global_counts(weights, 0.6, min_per_layer=5)


def test_uniform_known_by_hand():
    weights = [np.ones((1, 10)), np.ones((1, 15)), np.ones((1, 5))]
    assert uniform_counts(weights, 0.2) == [2, 3, 1]
    assert uniform_counts(weights, 8 / 30) == [3, 4, 1]  # 2.67, 4, 1.33: largest remainder
    assert uniform_counts([np.ones((1, 5))] * 4, 0.5) == [3, 3, 2, 2]  # 2.5 each: ties in layer order


def test_uniform_first_dense_known_by_hand():
    weights = [np.ones((1, 10)), np.ones((2, 20)), np.ones((5, 10))]
    assert uniform_first_dense_counts(weights, 0.28) == [10, 8, 10]
    with pytest.raises(ValueError, match="keeps 10 of 100 weights, but the whole first layer .* needs 12"):
        uniform_first_dense_counts(weights, 0.1)


def test_erk_known_by_hand():
    # sum(shape) is 4, 14, 18 and 36 stay: exactly one per unit, which just fills the 2×2 layer.
    weights = [np.ones((2, 2)), np.ones((7, 7)), np.ones((9, 9))]
    assert erk_counts(weights, 36 / 134) == [4, 14, 18]
    # Twice the density: 72·4/36 = 8 is capped at 4, and the other 68 are shared 14 : 18.
    assert erk_counts(weights, 72 / 134) == [4, 30, 38]
    # Kernels count their height and width: sums 8 + 4 + 3 + 3 = 18 and 8 + 4 + 1 + 1 = 14.
    assert erk_counts([np.ones((8, 4, 3, 3)), np.ones((8, 4, 1, 1))], 32 / 320) == [18, 14]


@settings(max_examples=300, deadline=None)
@given(shapes, st.floats(0.05, 0.95))
def test_erk_density_follows_its_proportion_below_the_cap(layer_shapes, density):
    weights = [np.ones(shape) for shape in layer_shapes]
    counts = erk_counts(weights, density, min_per_layer=0)
    ratios = [count / sum(weight.shape) for count, weight in zip(counts, weights) if count < weight.size]
    slop = [1 / sum(weight.shape) for count, weight in zip(counts, weights) if count < weight.size]
    for ratio, error in zip(ratios, slop):  # equal up to one weight of rounding in either layer
        assert abs(ratio - ratios[0]) <= error + slop[0]
    for count, weight in zip(counts, weights):
        if ratios and count == weight.size:  # a full layer is one that would have had at least as much
            least = min(ratio + error for ratio, error in zip(ratios, slop))
            assert count / sum(weight.shape) <= least + 1 / sum(weight.shape)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_global_counts_in_each_precision(dtype):
    weights = [w.astype(dtype) for w in random_weights([(4, 3, 3, 3), (5, 4), (7, 7)], seed=3)]
    assert global_counts(weights, 0.3, min_per_layer=0) == largest_by_sorting(weights, target_count(177, 0.3))


def test_mixed_precision_is_compared_in_the_wider_one():
    third = np.float32(1 / 3)  # 0.33333334 in float32, 0.33325195 in float16
    weights = [np.full((1, 2), 1 / 3, np.float16), np.full((1, 2), third, np.float32)]
    assert global_counts(weights, 0.5, min_per_layer=0) == [0, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_layer(bad):
    weights = random_weights([(3, 3), (4, 4), (5, 5)], seed=0)
    weights[1][2, 2] = bad
    with pytest.raises(ValueError, match="weight of layer 1: 1 of 16 entries are NaN or infinite"):
        global_counts(weights, 0.5)


@pytest.mark.parametrize("name", sorted(ALLOCATIONS))
def test_nonsense_is_refused(name):
    weights = [np.ones((2, 2))]
    with pytest.raises(ValueError, match="density must be in"):
        ALLOCATIONS[name](weights, float("nan"))
    with pytest.raises(ValueError, match="min_per_layer must be at least 0, got -1"):
        ALLOCATIONS[name](weights, 0.5, -1)
    with pytest.raises(ValueError, match="nothing to prune: 0 layers"):
        ALLOCATIONS[name]([], 0.5)


def test_global_counts_on_millions_of_weights_make_one_copy():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((64, 1024), dtype=np.float32) for _ in range(40)]
    before = [weight.copy() for weight in weights]
    tracemalloc.start()
    try:
        counts = global_counts(weights, 0.1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * sum(weight.nbytes for weight in weights)  # float64 or sort indices: at least 2
    assert all(np.array_equal(weight, old) for weight, old in zip(weights, before))
    threshold = np.sort(np.abs(np.concatenate(weights, axis=None)))[-sum(counts)]
    assert counts == [int(np.sum(np.abs(weight) >= threshold)) for weight in weights]
