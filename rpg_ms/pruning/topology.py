"""Which weights stay: the cut at the layers' counts, and drop and grow (arXiv 2311.17493).

Masks are boolean arrays of the weight's shape, True where a weight is active. Everything is ranked by
selection, O(n), never by sorting; equal values rank by flat index, so every machine and process decides the
same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Optional

import numpy as np

from .magnitude import finite_magnitude

STARTS = ("dense", "random", "magnitude")  # the masks before the first step


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Boolean array of `values`' shape, True at the `count` largest entries; ties to the lowest flat index.

    Raises ValueError for NaN, or for a `count` outside [0, values.size].
    """
    values = np.asarray(values)
    if not 0 <= count <= values.size:
        raise ValueError(f"count must be in [0, {values.size}], got {count}")
    if values.size and np.isnan(values.max()):
        raise ValueError("NaN cannot be ranked")
    if count in (0, values.size):
        return np.full(values.shape, count > 0)

    flat = values.ravel()
    cut = flat.size - count
    threshold = np.partition(flat, cut)[cut]
    chosen = flat > threshold
    tied = flat == threshold
    end = _end_of_first(tied, count - np.count_nonzero(chosen))
    chosen[:end] |= tied[:end]
    return chosen.reshape(values.shape)


def start_masks(weights: Sequence[np.ndarray], counts: Sequence[int], start: str, seed: int) -> list[np.ndarray]:
    """The masks before the first step: `counts[l]` places of layer `l`, the largest `|w|` or, for `start` "random",
    drawn at random, the same for the same seed.
    """
    if start == "magnitude":
        return survivors(weights, counts)
    rng = np.random.default_rng([seed])
    return survivors([rng.random(np.shape(weight), np.float32) for weight in weights], counts)


def survivors(weights: Sequence[np.ndarray], counts: Sequence[int]) -> list[np.ndarray]:
    """Per layer, the boolean mask of its `counts[l]` largest `|w|`.

    With counts from `global_counts` this is the global magnitude cut. Raises ValueError, naming the layer's
    index, for NaN or infinity and for a count that the layer cannot hold.
    """

    def mask(layer: int, weight: np.ndarray, count: int) -> np.ndarray:
        magnitude = finite_magnitude(weight, f"weight of layer {layer}")
        if not 0 <= count <= magnitude.size:
            raise ValueError(f"layer {layer} has {magnitude.size} weights and cannot keep {count}")
        return largest(magnitude, count)

    return _for_each_layer(mask, weights, counts)


def drop_and_grow(
    weight: np.ndarray,
    survivors: np.ndarray,
    dense_grad: Optional[np.ndarray],
    n_keep: int,
    n_grow: int,
    drop_score: Optional[np.ndarray] = None,
    where: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Redraw one layer's mask: keep the largest weights, grow where the gradient is largest.

    Kept are the `n_keep` largest `|w|`, where a weight outside `survivors` counts as 0. Among *all* other
    positions the `n_grow` largest `|g|` are grown, so a survivor that was just dropped may come straight
    back.

    Args:
        weight: float array, the layer's weight.
        survivors: boolean array of the same shape, the mask after the magnitude cut.
        dense_grad: float array of the same shape: the gradient of the loss in every weight, active or not,
            or any other score whose magnitude says where to grow. May be None if `n_grow` is 0.
        drop_score: array whose magnitude says what to keep; None for the weight itself.
        where: what to call the layer in an error.

    Returns:
        `(new_weight, new_mask)`, new arrays. Exactly `n_keep + n_grow` entries of the mask are True,
        even where there are fewer non-zero survivors than that. The weight has its old dtype and, at active
        survivors, its old value; it is +0.0 everywhere else.

    Raises:
        ValueError: shapes differ, the counts do not fit, or the weight or gradient holds NaN or infinity.
    """
    if survivors.dtype != bool or survivors.shape != weight.shape:
        raise ValueError(
            f"survivors{where} must be boolean of shape {weight.shape}, "
            f"got {survivors.dtype} of shape {survivors.shape}"
        )
    if n_keep < 0 or n_grow < 0 or n_keep + n_grow > weight.size:
        raise ValueError(f"cannot keep {n_keep} and grow {n_grow} of the {weight.size} weights{where}")

    score = finite_magnitude(weight if drop_score is None else drop_score, f"weight{where}")
    score[~survivors] = 0
    active = largest(score, n_keep)
    if n_grow > 0:
        if dense_grad is None or np.shape(dense_grad) != weight.shape:
            given = "None" if dense_grad is None else f"shape {np.shape(dense_grad)}"
            raise ValueError(f"growing {n_grow} weights needs a gradient{where} of shape {weight.shape}, got {given}")
        score = finite_magnitude(dense_grad, f"gradient{where}")
        score[active] = -1  # below every magnitude: a kept position is never grown as well
        active |= largest(score, n_grow)

    new_weight = np.zeros_like(weight)
    np.copyto(new_weight, weight, where=active & survivors)
    return new_weight, active


def update_topology(
    weights: Sequence[np.ndarray],
    grow_scores: Optional[Sequence[np.ndarray]],
    counts: Sequence[int],
    drop_fraction: float,
    drop_scores: Optional[Sequence[np.ndarray]] = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """One topology update of a network: `(new_weight, new_mask)` per layer, `counts[l]` of them active.

    Of a layer's `n_l` places, `n_grow = floor(drop_fraction * n_l)` are grown and the rest kept
    (`drop_and_grow`).

    Args:
        grow_scores: array per layer whose magnitude says where to grow; may be None when `drop_fraction` is 0.
        drop_fraction: share of a layer's places that is grown anew, in [0, 1].
        drop_scores: array per layer whose magnitude says what to keep; None for the weights themselves.

    Raises:
        ValueError: as `survivors` and `drop_and_grow` raise it, naming the layer's index.
    """
    if not 0 <= drop_fraction <= 1:
        raise ValueError(f"drop_fraction must be in [0, 1], got {drop_fraction}")
    if grow_scores is None:
        if drop_fraction > 0:
            raise ValueError(f"a drop fraction of {drop_fraction} needs dense gradients to grow by, got None")
        grow_scores = [None] * len(weights)
    drop_scores = weights if drop_scores is None else drop_scores
    masks = survivors(drop_scores, counts)

    def redrawn(layer: int, weight: np.ndarray, grow_score: Optional[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        n_grow = math.floor(drop_fraction * counts[layer])
        n_keep, where = counts[layer] - n_grow, f" of layer {layer}"
        return drop_and_grow(weight, masks[layer], grow_score, n_keep, n_grow, drop_scores[layer], where)

    return _for_each_layer(redrawn, weights, grow_scores)


def _end_of_first(flags: np.ndarray, count: int) -> int:
    """The shortest prefix of a flat boolean array that holds `count` (at least 1) True entries."""
    start, end = 0, flags.size
    while end - start > 1:  # halving: one pass in all, and no array of indices
        middle = (start + end) // 2
        found = np.count_nonzero(flags[start:middle])
        if found >= count:
            end = middle
        else:
            start, count = middle, count - found
    return end


def _for_each_layer(function: Callable[..., Any], weights: Sequence[np.ndarray], others: Sequence[Any]) -> list[Any]:
    """`[function(layer, weight, other), ...]`, a thread to each layer: NumPy's selection runs beside itself."""
    if len(weights) != len(others):
        raise ValueError(f"{len(weights)} layers of weights, but {len(others)} entries to go with them")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(function, range(len(weights)), weights, others))
