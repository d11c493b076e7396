import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpg_ms.pruning import structural_rank


@pytest.mark.parametrize(
    "mask, rank",
    [
        (
            [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]],
            2,
        ),  # two rows share a column, one is dead
        (np.eye(3, 7), 3),
        (np.zeros((2, 3)), 0),
    ],
)
def test_by_hand(mask, rank):
    assert structural_rank(np.asarray(mask, bool)) == rank


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99), st.sampled_from([0.2, 0.5, 0.8]))
def test_it_is_the_largest_matching_of_rows_and_columns(rows, columns, seed, density):
    mask = np.random.default_rng(seed).random((rows, columns, 1, 1)) < density
    flat = mask.reshape(rows, columns)
    size = min(rows, columns)
    matchings = (
        sum(flat[row, column] for row, column in zip(chosen, order))
        for chosen in itertools.permutations(range(rows), size)
        for order in itertools.permutations(range(columns), size)
    )
    assert structural_rank(mask) == max(matchings)
