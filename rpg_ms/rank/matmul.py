"""The rank term by matrix multiplications and elementwise operations alone, for accelerators.

The projector onto the eigenvectors of a Gram matrix `G` below a threshold `mu` is `(I - sign(G - mu I)) / 2`. The
matrix sign comes from a Newton-Schulz iteration: quintic steps with the coefficients of Jordan et al. 2024 ("Muon"),
which raise small values fast, then cubic ones, which converge to one. The threshold at which the tail energy crosses
`delta` is found by bisection of its logarithm. Everything is float32 and batched over matrices of equal size.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

from rpg_ms.rank.svd import closed_form, normalise

BISECTIONS = 16
QUINTIC_STEPS = 10
CUBIC_STEPS = 4
SMALLEST = 1e-7  # Eigenvalues below this share of the energy are rounding in float32.


def matmul_terms(weights: tuple[Tensor, ...], delta: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`(loss, k, grad)` of every weight, loss and gradient in its dtype.

    The weights whose smaller sides are equal are one batch. An all-zero weight gives `(0, 0, zeros)`.
    """
    matrices, norms, sizes = (), (), ()
    for weight in weights:
        matrix, norm = normalise(weight.reshape(weight.shape[0], -1).astype(ms.float32))
        matrices += (matrix,)
        norms += (norm,)
        sizes += (min(matrix.shape[0], matrix.shape[1]),)
    terms = [()] * len(weights)
    for size in set(sizes):
        members = [i for i in range(len(sizes)) if sizes[i] == size]
        projectors, tails, ranks = tail_projectors(ops.stack([_gram(matrices[i]) for i in members]), delta)
        for place, i in enumerate(members):
            weight, tail = weights[i], tails[place]
            grad = closed_form(_project(projectors[place], matrices[i]), tail, matrices[i], norms[i])
            terms[i] = (-tail.astype(weight.dtype), ranks[place], grad.reshape(weight.shape).astype(weight.dtype))
    return terms


def tail_projectors(grams: Tensor, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Projectors onto the tails of Gram matrices: `(projectors [b, s, s], t_k [b], k [b] int32)`.

    Args:
        grams: float32 tensor `[b, s, s]`, symmetric, positive semi-definite, of trace 1 (or zero).
        delta: error budget in (0, 1].
    """
    size = grams.shape[1]
    identity = ops.eye(size, size, ms.float32)
    high = ops.sqrt((grams * grams).sum((1, 2), keepdims=True)) * 1.001 + SMALLEST  # It is above every eigenvalue.
    low = ops.full_like(high, SMALLEST)
    count_high, count_low = ops.full_like(high, size), _count(_projector(grams, low, identity), identity)
    step = ops.zeros((), ms.int32)
    while step < BISECTIONS:  # This is a loop of the graph. Unrolled it takes minutes to compile.
        middle = ops.sqrt(low * high)
        projector = _projector(grams, middle, identity)
        count = _count(projector, identity)
        below = _energy(projector, grams) <= delta
        # With one eigenvalue between them the thresholds stay: closer to it the sign would not converge.
        wide = count_high - count_low > 1.5
        raised, lowered = ops.logical_and(wide, below), ops.logical_and(wide, ops.logical_not(below))
        low, count_low = ops.select(raised, middle, low), ops.select(raised, count, count_low)
        high, count_high = ops.select(lowered, middle, high), ops.select(lowered, count, count_high)
        step = step + 1

    # Between the thresholds lies one eigenvalue, or several that float32 cannot tell apart. As many of these are taken
    # as come closest to the budget, and the projector takes that share of all of them.
    smaller, larger = _projector(grams, low, identity), _projector(grams, high, identity)
    energy_smaller, energy_larger = _energy(smaller, grams), _energy(larger, grams)
    between = ops.round(count_high - count_low)
    between = ops.select(between < 1, ops.ones_like(between), between)
    each = (energy_larger - energy_smaller) / between
    each = ops.select(each > 0, each, ops.ones_like(each))
    fewest = (count_low < 0.5).astype(ms.float32)  # At least one eigenvalue is discarded.
    taken = ops.ceil((delta - energy_smaller) / each - 0.5)
    taken = ops.maximum(fewest, ops.minimum(taken, between))
    projector = smaller + (larger - smaller) * (taken / between)
    energy = energy_smaller + taken * each
    k = size - ops.round(count_low) - taken
    k = ops.select(energy > SMALLEST, k, ops.full_like(k, size - 1))  # All tails of zeros tie.
    zero = (grams * identity).sum((1, 2), keepdims=True) <= 0
    k, energy = ops.select(zero, ops.zeros_like(k), k), ops.select(zero, ops.zeros_like(energy), energy)
    return projector, energy.reshape(-1), ops.clamp(k, 0, size - 1).astype(ms.int32).reshape(-1)


def _gram(normalised: Tensor) -> Tensor:
    """The smaller Gram matrix, `[s, s]`."""
    transposed = ops.transpose(normalised, (1, 0))
    if normalised.shape[0] <= normalised.shape[1]:
        return ops.matmul(normalised, transposed)
    return ops.matmul(transposed, normalised)


def _project(projector: Tensor, normalised: Tensor) -> Tensor:
    """What a projector of the smaller side leaves of the matrix."""
    if normalised.shape[0] <= normalised.shape[1]:
        return ops.matmul(projector, normalised)
    return ops.matmul(normalised, projector)


def _projector(grams: Tensor, threshold: Tensor, identity: Tensor) -> Tensor:
    """The projectors onto the eigenvectors below the thresholds `[b, 1, 1]`, `[b, s, s]`."""
    sign = grams - threshold * identity
    sign = sign / ops.sqrt((sign * sign).sum((1, 2), keepdims=True))
    for _ in range(QUINTIC_STEPS):
        square = ops.bmm(sign, sign)
        sign = 3.4445 * sign + ops.bmm(sign, 2.0315 * ops.bmm(square, square) - 4.7750 * square)
    for _ in range(CUBIC_STEPS):
        sign = 1.5 * sign - 0.5 * ops.bmm(sign, ops.bmm(sign, sign))
    return 0.5 * (identity - sign)


def _count(projector: Tensor, identity: Tensor) -> Tensor:
    """How many eigenvalues the projector takes: its trace, `[b, 1, 1]`."""
    return (projector * identity).sum((1, 2), keepdims=True)


def _energy(projector: Tensor, grams: Tensor) -> Tensor:
    """`tr(P G)`, `[b, 1, 1]`."""
    return (projector * grams).sum((1, 2), keepdims=True)
