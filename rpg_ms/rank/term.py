"""The adversarial rank term of one weight matrix, in closed form (arXiv 2311.17493, section 3).

For a kernel `W` viewed as `C_out x (C_in/groups * kh * kw)` and normalised, `W^ = W / ||W||_F = U S V^T`:

    t_k  = sum of sigma_i^2 over i > k                  tail energy after keeping rank k, t_0 = 1
    k    = the k in 0..r-1 with t_k closest to delta    the larger k on a tie
    loss = -||W^ - A_k||_F^2 = -t_k                     A_k: truncation to rank k, a constant
    dloss/dW = -(2 / ||W||_F) (R - t_k W^)              R = W^ - A_k

The gradient is exact: A_k is the best rank-k approximation, so it is stationary at fixed k, and the second
summand is the derivative of the normalisation.
"""
from __future__ import annotations

import logging

import mindspore as ms
import numpy as np
import scipy.linalg
from mindspore import Tensor

from rpg_ms.rank import matmul, svd

BACKENDS = ("svd", "gram", "matmul")

_log = logging.getLogger(__name__)


def rank_term(weight, delta, backend="gram"):
    """Loss, rank and gradient of the rank term of one layer.

    Args:
        weight: NumPy array or MindSpore Tensor of two or more dimensions, the first one `C_out`; floating point.
        delta: error budget, the share of the energy to be discarded, in (0, 1].
        backend: "gram" (eigenvalues of the smaller Gram matrix) or "svd" (`ops.svd`), both of which compute in
            float64, whatever the weight's dtype (`ops.svd` on Ascend in float32); or "matmul" (multiplications only),
            in float32, whose k may be off by one where eigenvalues are equal to float32's eye.

    Returns:
        `(loss, k, grad)`: float, int, array of the weight's shape and dtype. A weight that is all zero gives
        `(0.0, 0, zeros)`; one with a NaN or an infinity gives `(nan, 0, nans)`.

    Raises:
        ValueError: an unknown backend, `delta` outside (0, 1], fewer than two dimensions, no floating-point dtype.
    """
    weight = weight.asnumpy() if hasattr(weight, "asnumpy") else np.asarray(weight)
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    if not 0 < delta <= 1:
        raise ValueError(f"delta: {delta!r} is not in (0, 1]")
    if weight.ndim < 2 or not np.issubdtype(weight.dtype, np.floating):
        raise ValueError(f"weight: {weight.dtype} of shape {weight.shape}; wanted floating point, two or more dimensions")
    matrix = weight.reshape(weight.shape[0], -1)
    if not np.isfinite(matrix).all():
        return float("nan"), 0, np.full_like(weight, np.nan)
    if not matrix.any():
        return 0.0, 0, np.zeros_like(weight)
    loss, k, grad = {"svd": _svd, "gram": _gram, "matmul": _matmul}[backend](matrix, delta)
    return loss, k, grad.reshape(weight.shape).astype(weight.dtype, copy=False)


def choose_rank(tail_energy, delta):
    """The `k` whose `tail_energy[k]` is closest to `delta`; on a tie, up to rounding, the larger `k`."""
    distance = np.abs(tail_energy - delta)
    tie = 4 * np.finfo(tail_energy.dtype).eps
    return int(np.flatnonzero(distance <= distance.min() + tie)[-1])


def _normalise(matrix):
    """`(W / ||W||_F, ||W||_F)` in float64; scaled first, so that no square under- or overflows."""
    matrix = matrix.astype(np.float64)
    scale = np.abs(matrix).max()
    matrix /= scale
    norm = np.linalg.norm(matrix)
    matrix /= norm
    return matrix, norm * scale


def _gram(matrix, delta):
    normalised, norm = _normalise(matrix)
    rows, columns = normalised.shape
    try:
        gram = normalised @ normalised.T if rows <= columns else normalised.T @ normalised
        energy, basis = scipy.linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        if not (np.isfinite(energy).all() and np.isfinite(basis).all()):
            raise np.linalg.LinAlgError("eigenvalues or vectors are not finite")
    except np.linalg.LinAlgError as error:
        _log.warning("eigen-decomposition of a %d x %d weight failed (%s); using an SVD", rows, columns, error)
        return _dense_svd(normalised, norm, delta)
    # eigh sorts upwards: cumulative sums from the small end are the tails t_{r-1}, ..., t_0, without cancellation.
    tail_energy = np.cumsum(np.maximum(energy, 0))[::-1]
    k = choose_rank(tail_energy, delta)
    head = basis[:, len(energy) - k:]
    tail = basis[:, :len(energy) - k]
    smaller = head if k <= len(energy) // 2 else tail
    projected = smaller @ (smaller.T @ normalised) if rows <= columns else (normalised @ smaller) @ smaller.T
    residual = normalised - projected if smaller is head else projected
    return _closed_form(normalised, norm, residual, tail_energy[k], k)


def _dense_svd(normalised, norm, delta):
    """The definition by LAPACK's slowest and most robust driver: what the other ways fall back to."""
    u, s, vt = scipy.linalg.svd(normalised, full_matrices=False, lapack_driver="gesvd")
    tail_energy = np.cumsum((s * s)[::-1])[::-1]
    k = choose_rank(tail_energy, delta)
    residual = (u[:, k:] * s[k:]) @ vt[k:]
    return _closed_form(normalised, norm, residual, tail_energy[k], k)


def _closed_form(normalised, norm, residual, tail, k):
    return -float(tail), k, (-2.0 / norm) * (residual - tail * normalised)


def _matmul(matrix, delta):
    normalised, norm = matmul.normalise(Tensor(matrix).astype(ms.float32))
    projectors, tails, ranks = matmul.tail_projectors(matmul.gram(normalised).expand_dims(0), delta)
    grad = matmul.closed_form(projectors[0], tails[0], normalised, norm)
    return -float(tails.asnumpy()[0]), int(ranks.asnumpy()[0]), grad.asnumpy()


def _svd(matrix, delta):
    loss, k, grad = svd.svd_term(Tensor(matrix).astype(svd.svd_dtype()), delta)
    loss, k, grad = float(loss.asnumpy()), int(k.asnumpy()), grad.asnumpy()
    if np.isfinite(loss) and np.isfinite(grad).all():
        return loss, k, grad
    _log.warning("ops.svd of a %d x %d weight gave a result that is not finite; using LAPACK", *matrix.shape)
    return _dense_svd(*_normalise(matrix), delta)
