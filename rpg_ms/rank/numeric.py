"""The rank that weight matrices have: what the rank term is there to keep high."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

import numpy as np
from scipy.sparse import csr_matrix
from tqdm import tqdm

SPARSE = 0.05  # below this density a sparse product is faster than a dense one
MARGIN = 1.25  # an eigenvalue within this factor of the threshold is not trusted


def full_rank(weight: np.ndarray) -> int:
    """The largest rank that a matrix of the weight's `shape[0] x rest` can have."""
    return min(len(weight), weight.size // len(weight))


def numeric_rank(weight: np.ndarray) -> int:
    """Rank of a float array of two or more dimensions, viewed as `shape[0] x rest`.

    Counted are the singular values above `max(rows, columns) * eps * largest`, with the eps of the weight's
    own dtype, as in `numpy.linalg.matrix_rank`; they are computed in float64.
    """
    matrix = np.asarray(weight).reshape(len(weight), -1)
    threshold = max(matrix.shape) * np.finfo(matrix.dtype).eps  # relative to the largest singular value
    # Rows and columns of zeros have no singular value but 0.
    matrix = matrix[np.ix_(matrix.any(1), matrix.any(0))]
    if matrix.size == 0:
        return 0
    rank = _rank_by_gram(matrix if len(matrix) <= matrix.shape[1] else matrix.T, threshold)
    if rank is None:
        values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        rank = int(np.count_nonzero(values > values.max() * threshold))
    return rank


def _rank_by_gram(matrix: np.ndarray, threshold: float) -> Optional[int]:
    """The number of singular values above `threshold` times the largest, of a wide matrix without rows of zeros.

    They are the square roots of the Gram matrix's eigenvalues, which cost a fraction of the singular values. Computed
    in float64 these are off by less than `2 * rows * columns * eps` times the largest. To float32 weights, whose
    squared threshold is `(columns * eps32)^2` or more, this is less than 4 % of it: the count is that of the singular
    values unless an eigenvalue lies nearer than that to it.

    Returns:
        The number, or None where an eigenvalue is too near the threshold, or the threshold too low.
    """
    rows, columns = matrix.shape
    if not threshold**2 >= 20 * rows * columns * np.finfo(np.float64).eps:
        return None
    matrix = matrix.astype(np.float64)
    if np.count_nonzero(matrix) < SPARSE * matrix.size:
        sparse = csr_matrix(matrix)
        gram = (sparse @ sparse.T).toarray()
    else:
        gram = matrix @ matrix.T
    if not np.isfinite(gram).all():
        return None
    # Most often all are above the threshold. Cholesky's decomposition of what is left then shows it in less time; no
    # eigenvalue is above the largest sum of a row.
    largest = np.abs(gram).sum(1).max()
    try:
        np.linalg.cholesky(gram - np.diag(np.full(rows, MARGIN * threshold**2 * largest)))
        return rows
    except np.linalg.LinAlgError:
        values = np.linalg.eigvalsh(gram)
    limit = threshold**2 * values[-1]
    if np.any((values > limit / MARGIN) & (values < limit * MARGIN)):
        return None
    return int(np.count_nonzero(values > limit))


def mean_rank(weights: Iterable[np.ndarray]) -> float:
    """Numeric rank of arrays as `numeric_rank` takes them, in percent of their full rank: the mean, a float."""
    return 100 * float(np.mean([numeric_rank(weight) / full_rank(weight) for weight in with_bar(weights)]))


def with_bar(layers: Iterable[Any]) -> tqdm:
    """The layers, one after the other, with a bar in a terminal once they take more than seconds."""
    return tqdm(layers, desc="ranks", unit="layer", delay=3, leave=False, disable=None)
