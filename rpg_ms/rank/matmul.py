"""The rank term by matrix multiplications and elementwise operations alone, for accelerators.

The projector onto the eigenvectors of a Gram matrix `G` below a threshold `mu` is `(I - sign(G - mu I)) / 2`. The matrix
sign comes from a Newton-Schulz iteration: quintic steps with the coefficients of Jordan et al. 2024 ("Muon"), which
raise small values fast, then cubic ones, which converge to one. The threshold at which the tail energy crosses `delta`
is found by bisection of its logarithm. Everything is float32 and batched over matrices of equal size.
"""
from __future__ import annotations

import mindspore as ms
from mindspore import ops

BISECTIONS = 16
QUINTIC_STEPS = 10
CUBIC_STEPS = 4
SMALLEST = 1e-7  # of the energy: eigenvalues below it are rounding in float32


def normalise(matrix):
    """`(W / ||W||_F, ||W||_F)`, scaled first so that no square under- or overflows; a zero matrix has norm 1."""
    scale = ops.abs(matrix).max()
    scale = ops.select(scale > 0, scale, ops.ones_like(scale))
    scaled = matrix / scale
    norm = ops.sqrt((scaled * scaled).sum())
    norm = ops.select(norm > 0, norm, ops.ones_like(norm))
    return scaled / norm, norm * scale


def gram(normalised):
    """The smaller Gram matrix, `[s, s]`."""
    transposed = ops.transpose(normalised, (1, 0))
    if normalised.shape[0] <= normalised.shape[1]:
        return ops.matmul(normalised, transposed)
    return ops.matmul(transposed, normalised)


def project(projector, normalised):
    """What a projector of the smaller side leaves of the matrix."""
    if normalised.shape[0] <= normalised.shape[1]:
        return ops.matmul(projector, normalised)
    return ops.matmul(normalised, projector)


def tail_projectors(grams, delta):
    """Projectors onto the tails of Gram matrices: `(projectors [b, s, s], t_k [b], k [b] int32)`.

    Args:
        grams: float32 tensor `[b, s, s]`, symmetric, positive semi-definite, of trace 1 (or zero).
        delta: error budget in (0, 1].
    """
    size = grams.shape[1]
    identity = ops.eye(size, size, ms.float32)
    high = ops.sqrt((grams * grams).sum((1, 2), keepdims=True)) * 1.001 + SMALLEST  # above every eigenvalue
    low = ops.full_like(high, SMALLEST)
    count_high, count_low = ops.full_like(high, size), _count(_projector(grams, low, identity), identity)
    step = ops.zeros((), ms.int32)
    while step < BISECTIONS:  # a loop of the graph: unrolled it takes minutes to compile
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

    # What lies between is one eigenvalue, or some that are equal to float32's eye: of these the share is taken that
    # comes closest to the budget, and in the projector that share of all.
    smaller, larger = _projector(grams, low, identity), _projector(grams, high, identity)
    energy_smaller, energy_larger = _energy(smaller, grams), _energy(larger, grams)
    between = ops.round(count_high - count_low)
    between = ops.select(between < 1, ops.ones_like(between), between)
    each = (energy_larger - energy_smaller) / between
    each = ops.select(each > 0, each, ops.ones_like(each))
    fewest = (count_low < 0.5).astype(ms.float32)  # at least one eigenvalue is discarded
    taken = ops.ceil((delta - energy_smaller) / each - 0.5)
    taken = ops.maximum(fewest, ops.minimum(taken, between))
    projector = smaller + (larger - smaller) * (taken / between)
    energy = energy_smaller + taken * each
    k = size - ops.round(count_low) - taken
    k = ops.select(energy > SMALLEST, k, ops.full_like(k, size - 1))  # all tails of zeros tie
    zero = (grams * identity).sum((1, 2), keepdims=True) <= 0
    k, energy = ops.select(zero, ops.zeros_like(k), k), ops.select(zero, ops.zeros_like(energy), energy)
    return projector, energy.reshape(-1), ops.clamp(k, 0, size - 1).astype(ms.int32).reshape(-1)


def closed_form(projector, tail, normalised, norm):
    """The gradient of the rank term in the weight: `-(2 / ||W||_F) (R - t_k W^)`."""
    return (project(projector, normalised) - tail * normalised) * (-2.0 / norm)


def _projector(grams, threshold, identity):
    sign = grams - threshold * identity
    sign = sign / ops.sqrt((sign * sign).sum((1, 2), keepdims=True))
    for _ in range(QUINTIC_STEPS):
        square = ops.bmm(sign, sign)
        sign = 3.4445 * sign + ops.bmm(sign, 2.0315 * ops.bmm(square, square) - 4.7750 * square)
    for _ in range(CUBIC_STEPS):
        sign = 1.5 * sign - 0.5 * ops.bmm(sign, ops.bmm(sign, sign))
    return 0.5 * (identity - sign)


def _count(projector, identity):
    """How many eigenvalues the projector takes: its trace, `[b, 1, 1]`."""
    return (projector * identity).sum((1, 2), keepdims=True)


def _energy(projector, grams):
    """`tr(P G)`, `[b, 1, 1]`."""
    return (projector * grams).sum((1, 2), keepdims=True)
