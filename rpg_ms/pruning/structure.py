"""The structural rank of a mask: the largest rank that any weights on it can have."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csgraph, csr_matrix


def structural_rank(mask: np.ndarray) -> int:
    """Structural rank of a boolean mask of two or more dimensions, viewed as `shape[0] x rest`.

    It is the size of a maximum matching between the rows and the columns that the mask joins.
    """
    return int(csgraph.structural_rank(csr_matrix(mask.reshape(mask.shape[0], -1))))
