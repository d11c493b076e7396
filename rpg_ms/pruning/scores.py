"""What weights are dropped and grown by. To add a criterion, add a function and its row in `SCORES`.

A score is a function `(weight, gradient, rng) -> array` for one layer. The absolute value of what it returns is
ranked: a topology update keeps the weights of the largest drop score, and grows those of the largest grow score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np


def magnitude(weight: np.ndarray, gradient: Optional[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """`|w|`, as in RPG, GMP, RigL and most other methods."""
    return weight


def saliency(weight: np.ndarray, gradient: Optional[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """`|w · g|`: how much the loss changes, to first order, without the weight (SNIP, arXiv 1810.02340)."""
    return weight * gradient


def gradient(weight: np.ndarray, gradient: Optional[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """`|g|`: how fast the loss falls along a weight that is zero now (RigL, arXiv 1911.11134; RPG)."""
    return gradient


def random(weight: np.ndarray, gradient: Optional[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Float32 in [0, 1), as in SET (arXiv 1707.04780)."""
    return rng.random(weight.shape, np.float32)


@dataclass(frozen=True)
class Score:
    """A criterion: its function, and whether it needs the dense gradient of the objective."""

    function: Callable[[np.ndarray, Optional[np.ndarray], np.random.Generator], np.ndarray]
    needs_gradient: bool = False


SCORES: dict[str, Score] = {
    "magnitude": Score(magnitude),
    "saliency": Score(saliency, needs_gradient=True),
    "gradient": Score(gradient, needs_gradient=True),
    "random": Score(random),
}
