"""How dense the network is after each topology update, and how much of it is redrawn.

A density schedule is a plain function `(update, updates, density) -> float`. Updates count from 1; 0 stands
for the time before the first update, where every density schedule is at 1.0. From update number `updates` on, the
value is `density` itself, not a number near it. `density` is the fraction of prunable weights that stay, in
(0, 1].
"""

from __future__ import annotations

import math
from typing import Callable

DensitySchedule = Callable[[int, int, float], float]


def exponential_density(update: int, updates: int, density: float) -> float:
    """`d^(n/T)`: each update removes the same fraction of what is left (arXiv 2311.17493)."""
    _check(update, updates, density)
    if update >= updates:
        return density
    return density ** (update / updates)


def cubic_density(update: int, updates: int, density: float) -> float:
    """`d + (1 − d)(1 − n/T)³`: fast, then slower (Zhu & Gupta 2017, arXiv 1710.01878, equation 1)."""
    _check(update, updates, density)
    if update >= updates:
        return density
    return density + (1 - density) * (1 - update / updates) ** 3


def constant_density(update: int, updates: int, density: float) -> float:
    """`d` from the first update on: one-shot pruning, or sparse training at a fixed density."""
    _check(update, updates, density)
    return density if update >= 1 else 1.0


def alternating_density(update: int, updates: int, density: float) -> float:
    """Dense (1.0) and sparse (`d`) phases in turn, the last one sparse (AC/DC, arXiv 2106.12379).

    The time up to update `updates` has 17 parts: two dense ones, then sparse and dense in turn, and two dense
    ones at the end. Over 85 of 100 epochs that is the paper's ImageNet run, with phases of five epochs.
    """
    _check(update, updates, density)
    part = 17 * update // updates
    return density if part >= 17 or (2 <= part < 15 and part % 2 == 0) else 1.0


DENSITY_SCHEDULES: dict[str, DensitySchedule] = {
    "exponential": exponential_density,
    "cubic": cubic_density,
    "constant": constant_density,
    "alternating": alternating_density,
}

# Fewer updates cannot hold all phases of a density schedule, and it would be another method.
LEAST_UPDATES = {"alternating": 16}


def cosine_drop_fraction(step: int, end_step: int, alpha: float) -> float:
    """`f(t) = α/2 · (1 + cos(π t / T_end))`, the share of a layer's weights that is regrown at step `t`.

    Falls from `α` at step 0 to 0 at `end_step` (arXiv 2311.17493; as in RigL, arXiv 1911.11134).
    Raises ValueError unless `0 <= step <= end_step`, `end_step >= 1` and `0 <= alpha <= 1`.
    """
    if end_step < 1:
        raise ValueError(f"end_step must be at least 1, got {end_step}")
    if not 0 <= step <= end_step:
        raise ValueError(f"step must be in [0, {end_step}], where the topology freezes, got {step}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    return alpha / 2 * (1 + math.cos(math.pi * step / end_step))


def constant_drop_fraction(step: int, end_step: int, alpha: float) -> float:
    """`α` at every step up to `end_step` (SET, arXiv 1707.04780). Raises as `cosine_drop_fraction` does."""
    cosine_drop_fraction(step, end_step, alpha)
    return alpha


DROP_DECAYS = {"cosine": cosine_drop_fraction, "constant": constant_drop_fraction}


def _check(update: int, updates: int, density: float) -> None:
    if updates < 1:
        raise ValueError(f"updates must be at least 1, got {updates}")
    if not update >= 0:
        raise ValueError(f"update must be at least 0, got {update}")
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
