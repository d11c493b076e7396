"""How many weights each layer keeps.

An allocation is a plain function `(weights, density, min_per_layer=1) -> list[int]`: from the prunable
weights of a network (a sequence of L float arrays with `N_l` elements each, `N` in all) to one count per
layer. Every allocation promises the same: the counts sum to exactly `round(density * N)`, none exceeds
`N_l`, and none is below `min(min_per_layer, N_l)`. Where the rule gives a layer less than that floor, the
missing weights are taken one after the other from whichever layer stands highest above its own floor (the
first of them, on a tie). ValueError is raised when there is no such list of counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable

import numpy as np

from .magnitude import finite_magnitude

Allocation = Callable[..., "list[int]"]


def target_count(total: int, density: float) -> int:
    """How many of `total` weights stay at `density`: `round(density * total)`. ValueError outside [0, 1]."""
    if not 0 <= density <= 1:
        raise ValueError(f"density must be in [0, 1], got {density}")
    return int(round(float(density) * total))


def at_floor(count: int, size: int, min_per_layer: int) -> bool:
    """Whether a layer of `size` weights that keeps `count` has lost all that it may lose."""
    return count < size and count <= min_per_layer


def global_counts(weights: Sequence[np.ndarray], density: float, min_per_layer: int = 1) -> list[int]:
    """Global magnitude: a layer's count is how many of the K largest `|w|` in the whole network lie in it.

    Equal magnitudes rank by layer order, then flat index. Apart from one layer at a time, the only array
    made is one of N magnitudes in the weights' own precision. Raises ValueError, naming the layer's index,
    for NaN or infinity.
    """
    sizes = _sizes(weights)
    floors = _floors(sizes, min_per_layer)
    kept = _feasible_count(sizes, density, floors)
    magnitudes = np.empty(sum(sizes), dtype=np.result_type(*weights))
    start = 0
    for layer, (weight, size) in enumerate(zip(weights, sizes)):
        magnitudes[start : start + size] = finite_magnitude(weight, f"weight of layer {layer}").ravel()
        start += size
    if kept == 0:
        return [0] * len(sizes)
    cut = magnitudes.size - kept
    magnitudes.partition(cut)
    threshold = magnitudes[cut]

    above, equal = [], []
    for weight in weights:
        # In the threshold's precision: rounding it to that of a half-precision layer would move the cut.
        magnitude = np.abs(weight).astype(magnitudes.dtype, copy=False)
        above.append(np.count_nonzero(magnitude > threshold))
        equal.append(np.count_nonzero(magnitude == threshold))
    open_places = kept - sum(above)
    counts = []
    for n_above, n_equal in zip(above, equal):
        n_ties = min(n_equal, open_places)
        open_places -= n_ties
        counts.append(n_above + n_ties)
    return _raised_to_floors(counts, floors)


def uniform_counts(weights: Sequence[np.ndarray], density: float, min_per_layer: int = 1) -> list[int]:
    """The same density in every layer, rounded by largest remainder (the earlier layer on a tie)."""
    return _counts_by_score(weights, density, min_per_layer, [np.size(weight) for weight in weights])


def uniform_first_dense_counts(weights: Sequence[np.ndarray], density: float, min_per_layer: int = 1) -> list[int]:
    """The first layer whole, and one density for all others such that the network's is `density`.

    Used by RigL (arXiv 1911.11134, section 3), here with the overall count exact. ValueError when the first
    layer and the floors of the others need more than the whole network keeps.
    """
    sizes = _sizes(weights)
    floors = sizes[:1] + _floors(sizes, min_per_layer)[1:]
    kept = _feasible_count(sizes, density, floors, also="the whole first layer and ")
    counts = sizes[:1] + _proportional(kept - sizes[0], sizes[1:], sizes[1:])
    return _raised_to_floors(counts, floors)


def erk_counts(weights: Sequence[np.ndarray], density: float, min_per_layer: int = 1) -> list[int]:
    """Erdős–Rényi kernel: a layer's density is proportional to `sum(shape) / prod(shape)`.

    For a kernel `C_out × C_in × kh × kw` that is `(C_out + C_in + kh + kw) / (C_out · C_in · kh · kw)`. A
    layer that would exceed density 1 is kept whole and its excess shared among the others in the same
    proportion (Mocanu et al. 2018, arXiv 1707.04780; Evci et al. 2020, arXiv 1911.11134, section 3).
    Rounded by largest remainder.
    """
    return _counts_by_score(weights, density, min_per_layer, [sum(np.shape(weight)) for weight in weights])


ALLOCATIONS: dict[str, Allocation] = {
    "global": global_counts,
    "uniform": uniform_counts,
    "uniform_first_dense": uniform_first_dense_counts,
    "erk": erk_counts,
}


def _counts_by_score(weights: Sequence[np.ndarray], density: float, min_per_layer: int, scores: list[int]) -> list[int]:
    sizes = _sizes(weights)
    floors = _floors(sizes, min_per_layer)
    kept = _feasible_count(sizes, density, floors)
    return _raised_to_floors(_proportional(kept, scores, sizes), floors)


def _sizes(weights: Sequence[np.ndarray]) -> list[int]:
    sizes = [math.prod(np.shape(weight)) for weight in weights]
    if sum(sizes) == 0:
        raise ValueError(f"nothing to prune: {len(sizes)} layers with no weights in them")
    return sizes


def _floors(sizes: list[int], min_per_layer: int) -> list[int]:
    if min_per_layer < 0:
        raise ValueError(f"min_per_layer must be at least 0, got {min_per_layer}")
    return [min(min_per_layer, size) for size in sizes]


def _feasible_count(sizes: list[int], density: float, floors: list[int], also: str = "") -> int:
    """The network's count at `density`, or ValueError when the floors alone need more."""
    total = sum(sizes)
    kept = target_count(total, density)
    if kept < sum(floors):
        raise ValueError(
            f"density {density} keeps {kept} of {total} weights, but {also}the per-layer "
            f"minimum over {len(sizes)} layers needs {sum(floors)}"
        )
    return kept


def _proportional(total: int, scores: list[int], sizes: list[int]) -> list[int]:
    """Share out `total` in proportion to `scores`, at most `sizes[l]` each, by largest remainder.

    In Python integers, so that neither the sum nor a tie depends on rounding.
    """
    counts = list(sizes)
    shared = list(range(len(sizes)))  # layers not full yet
    while True:
        score_sum = sum(scores[layer] for layer in shared)
        full = [layer for layer in shared if total * scores[layer] >= sizes[layer] * score_sum]
        if not full:
            break
        total -= sum(sizes[layer] for layer in full)
        shared = [layer for layer in shared if layer not in full]
    for layer in shared:
        counts[layer] = total * scores[layer] // score_sum
    missing = total - sum(counts[layer] for layer in shared)
    by_remainder = sorted(shared, key=lambda layer: -(total * scores[layer] % score_sum))  # stable
    for layer in by_remainder[:missing]:
        counts[layer] += 1
    return counts


def _raised_to_floors(counts: list[int], floors: list[int]) -> list[int]:
    """Raise each count to its floor and level the highest slacks down until the sum is what it was."""
    owed = sum(max(floor - count, 0) for count, floor in zip(counts, floors))
    slacks = [max(count - floor, 0) for count, floor in zip(counts, floors)]

    # The lowest level to cut all slacks down to without freeing more than is owed. By bisection: `owed` is
    # unbounded, and one weight at a time could take millions of turns.
    low, level = 0, max(slacks)
    while low < level:
        middle = (low + level) // 2
        if sum(max(slack - middle, 0) for slack in slacks) <= owed:
            level = middle
        else:
            low = middle + 1
    left = [min(slack, level) for slack in slacks]
    owed -= sum(slacks) - sum(left)
    for layer, slack in enumerate(left):  # the rest, one each from layers that stand at the level
        if owed and slack == level:
            left[layer] -= 1
            owed -= 1
    return [floor + slack for floor, slack in zip(floors, left)]
