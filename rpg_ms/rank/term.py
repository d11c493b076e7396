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
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import mindspore as ms
import numpy as np
import scipy.linalg
from mindspore import Tensor
from threadpoolctl import ThreadpoolController

from rpg_ms.rank import matmul, svd
from rpg_ms.rank.lapack import SymmetricEigen

BACKENDS = ("svd", "gram", "matmul")

FLOAT32_ERROR = 1e-3  # of the gradient, by a bound that is several times too large; above it, float64

_log = logging.getLogger(__name__)
_blas_lock = threading.Lock()  # the number of BLAS threads is the whole process's


def rank_term(weight, delta, backend="gram"):
    """Loss, rank and gradient of the rank term of one layer.

    Args:
        weight: NumPy array or MindSpore Tensor of two or more dimensions, the first one `C_out`; floating point.
        delta: error budget, the share of the energy to be discarded, in (0, 1].
        backend: "svd" (`ops.svd`), in float64 (on Ascend in float32); "gram" (eigenvalues of the smaller Gram
            matrix), in float32 where that is accurate enough for a float32 weight, in float64 elsewhere; or "matmul"
            (multiplications only), in float32, whose k may be off by one where eigenvalues are equal to float32's eye.

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
    found = None
    if backend == "gram" and matrix.dtype != np.float64:
        found = _gram_in_float32(matrix.astype(np.float32, copy=False), delta)
    if found is None:
        if not np.isfinite(matrix).all():
            return float("nan"), 0, np.full_like(weight, np.nan)
        if not matrix.any():
            return 0.0, 0, np.zeros_like(weight)
        found = {"svd": _svd, "gram": _gram, "matmul": _matmul}[backend](matrix, delta)
    loss, k, grad = found
    return loss, k, grad.reshape(weight.shape).astype(weight.dtype, copy=False)


def rank_terms(weights, delta):
    """`[(loss, k, grad), ...]` of many weights by the backend "gram", side by side on the process's cores.

    Arguments, returns and raises as `rank_term`, for a list of weights.
    """
    # One thread to a layer: on matrices of this size more of them for each take longer. The largest go first.
    order = sorted(range(len(weights)), key=lambda i: -min(len(weights[i]), weights[i].size // max(len(weights[i]), 1)))
    with _blas_lock, _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = dict(zip(order, pool.map(lambda i: rank_term(weights[i], delta), order)))
    return [found[i] for i in range(len(weights))]


@lru_cache(maxsize=None)
def _blas():
    return ThreadpoolController()


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


def _gram_in_float32(matrix, delta):
    """`(loss, k, grad)`, or None where float32 is not accurate enough, or the matrix zero or not finite."""
    try:
        loss, k, grad, error = _eigen_term(matrix, delta)
    except np.linalg.LinAlgError:
        return None
    return (loss, k, grad) if error <= FLOAT32_ERROR else None


def _gram(matrix, delta):
    normalised, norm = _normalise(matrix)
    try:
        loss, k, grad, _ = _eigen_term(normalised, delta)
    except np.linalg.LinAlgError as error:
        _log.warning("eigen-decomposition of a %d x %d weight failed (%s); using an SVD", *matrix.shape, error)
        return _dense_svd(normalised, norm, delta)
    return loss, k, grad / norm


def _eigen_term(matrix, delta):
    """`(loss, k, grad, error)` of a matrix by the eigenvalues of its smaller Gram matrix, in the matrix's precision.

    `error` bounds the relative error of the gradient, roughly and from above; infinite where the precision does not
    settle k, or squares under- or overflow. Raises `LinAlgError` where the decomposition fails.
    """
    rows, columns = matrix.shape
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
        total = float(np.trace(gram, dtype=np.float64))
    precision = float(np.finfo(matrix.dtype).eps)
    if not 1e-20 < total < 1e20:
        return 0.0, 0, None, np.inf
    eigen = SymmetricEigen(gram)
    # They ascend: cumulative sums from the small end are the tails t_{r-1}, ..., t_0, without cancellation.
    energy = np.maximum(eigen.values, 0).astype(np.float64) / total
    tail_energy = np.cumsum(energy)[::-1]
    k = choose_rank(tail_energy, delta)
    tail, size = float(tail_energy[k]), len(energy)

    # -(2 / ||W||) (R - t W^) is a multiple of the projection of W on the smaller of head and tail, and one of W.
    if k <= size // 2:
        side, of_side, of_matrix = eigen.vectors(size - k, size), 2 / total, -2 / total * (1 - tail)
    else:
        side, of_side, of_matrix = eigen.vectors(0, size - k), -2 / total, 2 / total * tail
    if not np.isfinite(side).all():
        raise np.linalg.LinAlgError("eigenvectors are not finite")
    scaled = side * matrix.dtype.type(of_side)
    grad = scaled @ (side.T @ matrix) if rows <= columns else (matrix @ side) @ scaled.T
    of_matrix = matrix.dtype.type(of_matrix)
    for row in range(0, rows, 16):  # piece by piece, in the processor's cache
        grad[row:row + 16] += of_matrix * matrix[row:row + 16]

    distance = np.sort(np.abs(tail_energy - delta))
    settled = size == 1 or distance[1] - distance[0] > 100 * precision
    error = 0.0
    if k > 0:  # rounding turns the vectors at the cut by (rounding of G) / (gap between their eigenvalues)
        last = energy[size - k]
        gap = last - energy[size - k - 1]
        turned = 10 * precision * energy[-1] / gap if gap > 0 else np.inf
        error = turned * np.sqrt(2 * last / (tail * (1 - tail))) if tail > 0 else np.inf
    return -tail, k, grad, error if settled else np.inf


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
