"""The rank that weight matrices have: what the rank term is there to keep high."""
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


def mean_rank(weights):
    """Numeric rank of arrays as `numeric_rank` takes them, in percent of their full rank: the mean, a float."""
    return 100 * float(np.mean([numeric_rank(weight) / full_rank(weight) for weight in weights]))
