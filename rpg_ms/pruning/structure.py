"""The structural rank of a mask, and where one more weight raises it.

The structural rank of a mask is the largest rank that any weights on it can have: the size of a maximum matching
between the rows and the columns of the matrix `C_out x (C_in/groups * kh * kw)` whose entries are the mask's.
"""
from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching


def structural_rank(mask: np.ndarray) -> int:
    """Structural rank of a boolean mask of two or more dimensions, the first one `C_out`."""
    return int(np.count_nonzero(_column_of_row(mask) >= 0))


def rank_raising(mask: np.ndarray, score: np.ndarray, limit: int) -> np.ndarray:
    """Up to `limit` positions outside `mask` each of which raises the structural rank by one.

    They join rows and columns that a maximum matching leaves over, the largest scores first, every row and column
    once.

    Args:
        mask: boolean array of two or more dimensions, the first one `C_out`.
        score: float array of the same shape, at least 0.
        limit: the most positions to return.

    Returns:
        Boolean array of the mask's shape: `min(limit, full rank - structural rank)` entries are True.
    """
    matched = _column_of_row(mask)
    rows = np.flatnonzero(matched < 0)
    columns = np.setdiff1d(np.arange(mask.size // mask.shape[0]), matched)
    left = score.reshape(mask.shape[0], -1)[np.ix_(rows, columns)]  # a copy
    raising = np.zeros((mask.shape[0], mask.size // mask.shape[0]), bool)
    for _ in range(min(limit, len(rows), len(columns))):
        row, column = np.unravel_index(np.argmax(left), left.shape)
        raising[rows[row], columns[column]] = True
        left[row, :] = left[:, column] = -1
    return raising.reshape(mask.shape)


def _column_of_row(mask):
    """The column that a maximum matching gives each row, -1 where it gives none."""
    return maximum_bipartite_matching(csr_matrix(mask.reshape(mask.shape[0], -1)), perm_type="column")
