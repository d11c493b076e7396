"""Ranks of small matrices whose answer is known by hand."""
import numpy as np
import pytest

from rpg_ms.pruning import structural_rank
from rpg_ms.rank import full_rank, mean_rank, numeric_rank


def test_numeric_rank_can_be_below_the_structural_one():
    equal = np.array([[1, 2], [2, 4]], np.float32)
    assert structural_rank(equal != 0) == 2 and numeric_rank(equal) == 1
    assert numeric_rank(np.diag([1, 1e-3, 1e-9]).astype(np.float32)) == 2  # 1e-9 is noise to float32
    assert numeric_rank(np.diag([1, 1e-3, 1e-9])) == 3  # but not to float64
    assert numeric_rank(np.zeros((2, 3), np.float32)) == 0


def test_random_weights_reach_the_structural_rank():
    rng = np.random.default_rng(0)
    for density in (0.02, 0.1, 0.5):
        mask = rng.random((24, 3, 3, 3)) < density
        weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float32)
        assert numeric_rank(weight) == structural_rank(mask) <= full_rank(weight) == 24
        assert numeric_rank(weight) == np.linalg.matrix_rank(weight.reshape(24, 27))


def test_full_rank_is_the_smaller_side():
    assert full_rank(np.zeros((16, 3, 3, 3))) == 16 and full_rank(np.zeros((64, 3, 3, 3))) == 27


def test_mean_rank_counts_every_layer_alike():
    """Full rank 2 and rank 1; full rank 27 and rank 27: 75 % on average, not 28 of 29."""
    wide = np.random.default_rng(0).standard_normal((64, 3, 3, 3)).astype(np.float32)
    assert mean_rank([np.ones((2, 5), np.float32), wide]) == pytest.approx(75)
