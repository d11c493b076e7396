"""Dead filters of small matrices whose answer is known by hand."""

import numpy as np
import pytest

from rpg_ms.report.runs import dead_filters


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
