"""Dead filters of a sparse layer."""

from __future__ import annotations

import numpy as np


def dead_filters(weight: np.ndarray, transposed: bool = False, groups: int = 1) -> tuple[int, int]:
    """How many output channels have no weight but zeros, and how many there are: `(int, int)`.

    Args:
        weight: array `[outputs, inputs / groups, ...]`; of a transposed convolution
            `[inputs, outputs / groups, ...]`.
        transposed: whether it is one.
        groups: groups of a transposed convolution; other weights tell them by their shape.
    """
    weight = np.asarray(weight)
    if transposed:
        by_group = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        alive = by_group.any(axis=(1, 3)).reshape(-1)
    else:
        alive = weight.reshape(len(weight), -1).any(axis=1)
    return int(np.count_nonzero(~alive)), alive.size
