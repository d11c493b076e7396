"""The magnitude that weights and gradients are ranked by."""

from __future__ import annotations

import numpy as np


def finite_magnitude(values: np.ndarray, name: str) -> np.ndarray:
    """`|values|` as a new array of the same shape and dtype.

    Raises ValueError, starting with `name`, when an entry is NaN or infinite: it has no place in a ranking.
    """
    magnitude = np.abs(values)
    if not np.isfinite(magnitude.max(initial=0)):  # max() passes NaN on, so one reduction finds both
        bad = magnitude.size - np.count_nonzero(np.isfinite(magnitude))
        raise ValueError(f"{name}: {bad} of {magnitude.size} entries are NaN or infinite; they cannot be ranked")
    return magnitude
