"""Ranks and dead filters of small matrices whose answer is known by hand."""
import numpy as np
import pytest

from rpg_ms.pruning import structural_rank
from rpg_ms.report.layers import dead_filters, full_rank, numeric_rank

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


def test_dead_filters():
    weight = np.ones((4, 2, 3, 3), np.float32)
    weight[1] = 0
    weight[2, 0] = 0  # half of it lives
    assert dead_filters(weight) == (1, 4)
    assert dead_filters(np.array([[0, 0], [0, 1e-30], [0, 0]], np.float32)) == (2, 3)


@pytest.mark.parametrize("groups, dead", [(1, 1), (2, 2)])
def test_dead_filters_of_a_transposed_convolution(groups, dead):
    """Its output channels are on the second axis, of each group anew."""
    weight = np.ones((4, 3, 2, 2), np.float32)  # 4 inputs, 3 outputs a group
    weight[:, 1] = 0
    assert dead_filters(weight, transposed=True, groups=groups) == (dead, 3 * groups)
    weight[3, 1, 0, 0] = 1  # an input of the last group
    assert dead_filters(weight, transposed=True, groups=groups) == (dead - 1, 3 * groups)
