"""What a sparse layer looks like: rank and dead filters, from arrays."""
from __future__ import annotations

import numpy as np


def full_rank(weight):
    """The largest rank that a matrix of the weight's `shape[0] x rest` can have."""
    return min(len(weight), weight.size // len(weight))


def numeric_rank(weight):
    """Rank of a float array of two or more dimensions, viewed as `shape[0] x rest`.

    Counted are the singular values above `max(rows, columns) * eps * largest`, with the eps of the weight's
    own dtype, as in `numpy.linalg.matrix_rank`; they are computed in float64.
    """
    matrix = np.asarray(weight).reshape(len(weight), -1)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return int(np.count_nonzero(values > values.max() * max(matrix.shape) * np.finfo(matrix.dtype).eps))


def dead_filters(weight, transposed=False, groups=1):
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
