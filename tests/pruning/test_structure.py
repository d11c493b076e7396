import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse import csgraph

from rpg_ms.pruning import drop_and_grow, rank_raising, structural_rank

# Rows 0 and 1 share their only column, row 3 is dead: structural rank 2 of 4.
MASK = np.array([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


def test_by_hand():
    assert structural_rank(MASK) == 2
    score = np.zeros(MASK.shape)
    score[0, 3] = score[1, 3] = 5  # one of rows 0 and 1 is left over; it can take column 3
    score[3, 3] = 4  # taken by then, so the dead row gets the best of the others
    score[3, 4] = 3
    score[2, 4] = 9  # row 2 has a match already
    raising = rank_raising(MASK, score, 10)
    assert raising.sum() == 2 and raising[3, 4] and raising[:2, 3].sum() == 1
    assert structural_rank(MASK | raising) == 4
    only = rank_raising(MASK, score, 1)
    assert only.sum() == 1 and only[:2, 3].any()  # the largest score first


def test_a_full_rank_mask_needs_nothing():
    assert not rank_raising(np.eye(3, 7, dtype=bool), np.ones((3, 7)), 5).any()


masks = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99), st.sampled_from([0.05, 0.2, 0.5])).map(
    lambda a: np.random.default_rng(a[2]).random((a[0], a[1], 3, 1)) < a[3])


@settings(deadline=None)
@given(mask=masks, limit=st.integers(0, 12))
def test_every_position_raises_the_rank_by_one(mask, limit):
    flat = mask.reshape(len(mask), -1)
    rank = csgraph.structural_rank(csr_matrix(flat))
    assert structural_rank(mask) == rank
    raising = rank_raising(mask, np.random.default_rng(1).random(mask.shape), limit)
    assert raising.sum() == min(limit, min(flat.shape) - rank) and not (raising & mask).any()
    assert structural_rank(mask | raising) == rank + raising.sum()


@pytest.mark.parametrize("raise_rank", [False, True])
def test_growth_spends_its_places_on_the_rank_first(raise_rank):
    weight = np.where(MASK, 1.0, 0.0)
    gradient = np.arange(20.0).reshape(4, 5)[::-1]  # largest in row 0
    gradient[0, 0] = 0.0
    _, mask = drop_and_grow(weight, MASK, gradient, 4, 3, raise_rank)
    assert mask.sum() == 7 and mask[MASK].all()
    assert structural_rank(mask) == (4 if raise_rank else 3)
