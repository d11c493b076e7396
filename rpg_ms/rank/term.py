"""The adversarial rank term of one weight matrix, in closed form (arXiv 2311.17493, section 3).

A kernel `W` is viewed as a matrix `C_out x (C_in/groups * kh * kw)` and normalised, `W^ = W / ||W||_F = U S V^T`. Then

    t_k  = sum of sigma_i^2 over i > k                  the tail energy after keeping rank k; t_0 = 1
    k    = the k in 0..r-1 with t_k closest to delta    the larger k on a tie
    loss = -||W^ - A_k||_F^2 = -t_k                     A_k is the truncation to rank k, a constant
    dloss/dW = -(2 / ||W||_F) (R - t_k W^)              R = W^ - A_k

The gradient is exact. A_k is the best approximation of rank k, so the loss is stationary in it at fixed k, and the
second summand is the derivative of the normalisation.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mindspore import Tensor
from threadpoolctl import threadpool_limits

from rpg_ms.rank.matmul import matmul_terms
from rpg_ms.rank.svd import closed_form, svd_dtype, svd_term

BACKENDS = ("svd", "gram", "matmul")

FLOAT32_ERROR = 1e-3  # The gradient's error may be this large by a bound that is several times too high.

_log = logging.getLogger(__name__)


def rank_term(weight: np.ndarray | Tensor, delta: float, backend: str = "gram") -> tuple[float, int, np.ndarray]:
    """Loss, rank and gradient of the rank term of one layer.

    Args:
        weight: NumPy array or MindSpore Tensor, floating point, of two or more dimensions, the first one `C_out`.
        delta: error budget, the share of the energy to be discarded, in (0, 1].
        backend: "svd" (`ops.svd`) computes in float64, on Ascend in float32. "gram" takes the eigenvalues of the
            smaller Gram matrix on the host. It computes in float64, or in float32 where that is accurate enough for a
            float32 weight. "matmul" uses multiplications only, in float32. Its k may be off by one where eigenvalues
            are equal to float32's eye.

    Returns:
        `(loss, k, grad)`: a float, an int and an array of the weight's shape and dtype. A weight that is all zero gives
        `(0.0, 0, zeros)`, and one with a NaN or an infinity gives `(nan, 0, nans)`.

    Raises:
        ValueError: an unknown backend, `delta` outside (0, 1], fewer than two dimensions, no floating-point dtype.
    """
    check_options(delta, backend)
    weight = weight.asnumpy() if isinstance(weight, Tensor) else np.asarray(weight)
    if weight.ndim < 2 or not np.issubdtype(weight.dtype, np.floating):
        raise ValueError(
            f"weight: {weight.dtype} of shape {weight.shape} is not floating point of two or more dimensions"
        )
    largest = np.abs(weight).max()
    if not np.isfinite(largest):
        return float("nan"), 0, np.full_like(weight, np.nan)
    if largest == 0:
        return 0.0, 0, np.zeros_like(weight)
    compute = {"svd": _svd, "gram": _gram, "matmul": _matmul}[backend]
    loss, k, grad = compute(weight.reshape(len(weight), -1), delta)
    return loss, k, grad.reshape(weight.shape).astype(weight.dtype, copy=False)


def rank_terms(weights: list[np.ndarray], delta: float) -> list[tuple[float, int, np.ndarray]]:
    """`rank_term` of every weight by the backend "gram", side by side on the process's cores.

    Each layer has one thread: on matrices of this size, several BLAS threads for one layer take longer.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda weight: rank_term(weight, delta), weights))


def check_options(delta: float, backend: str) -> None:
    """Raise a ValueError for an unknown backend or a `delta` outside (0, 1]."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    if not 0 < delta <= 1:
        raise ValueError(f"delta: {delta!r} is not in (0, 1]")


def choose_rank(tail_energy: np.ndarray, delta: float) -> int:
    """The `k` whose `tail_energy[k]` is closest to `delta`. On a tie, up to rounding, it is the larger `k`."""
    distance = np.abs(tail_energy - delta)
    tie = 4 * np.finfo(tail_energy.dtype).eps
    return int(np.flatnonzero(distance <= distance.min() + tie)[-1])


def _normalise(matrix: np.ndarray, dtype: type) -> tuple[np.ndarray, float]:
    """`(W / ||W||_F, ||W||_F)`. The matrix is scaled first, so that no square under- or overflows."""
    matrix = matrix.astype(dtype)
    scale = np.abs(matrix).max()
    matrix /= scale
    norm = np.linalg.norm(matrix)
    matrix /= norm
    return matrix, float(norm) * float(scale)


def _gram(matrix: np.ndarray, delta: float) -> tuple[float, int, np.ndarray]:
    try:
        if matrix.dtype != np.float64:
            loss, k, grad, error = _eigen_term(matrix, delta, np.float32)
            if error <= FLOAT32_ERROR:
                return loss, k, grad
        return _eigen_term(matrix, delta, np.float64)[:3]
    except np.linalg.LinAlgError:
        return _lapack_svd(matrix, delta)


def _eigen_term(matrix: np.ndarray, delta: float, dtype: type) -> tuple[float, int, np.ndarray, float]:
    """`(loss, k, grad, error)` of a matrix by the eigenvalues of its smaller Gram matrix, computed in `dtype`.

    `error` bounds the relative error of the gradient, roughly and from above. It is infinite where the precision does
    not settle k or does not hold the gradient. A decomposition that does not converge is a `LinAlgError`.
    """
    normalised, norm = _normalise(matrix, dtype)
    if dtype == np.float32 and not 1e-30 < norm < 1e30:
        return 0.0, 0, normalised, np.inf  # float32 does not hold 2 / ||W||.
    wide = normalised.shape[0] <= normalised.shape[1]
    values, vectors = np.linalg.eigh(normalised @ normalised.T if wide else normalised.T @ normalised)
    # The values ascend, so their cumulative sums are the tails t_{r-1}, ..., t_0, without cancellation.
    energy = np.maximum(values, 0).astype(np.float64)
    energy /= energy.sum()
    tail_energy = np.cumsum(energy)[::-1]
    k = choose_rank(tail_energy, delta)
    tail, cut = float(tail_energy[k]), len(energy) - k
    basis = vectors[:, :cut]
    grad = basis @ (basis.T @ normalised) if wide else (normalised @ basis) @ basis.T
    normalised *= tail
    grad -= normalised
    grad *= -2.0 / norm
    return -tail, k, grad, _gradient_error(energy, cut, np.abs(tail_energy - delta), float(np.finfo(dtype).eps))


def _gradient_error(energy: np.ndarray, cut: int, distance: np.ndarray, precision: float) -> float:
    """The `error` of `_eigen_term` for ascending energies of which the first `cut` are the tail."""
    if len(energy) > 1 and np.diff(np.sort(distance)[:2]) <= 100 * precision:
        return np.inf  # Another k is as good.
    if cut == len(energy):
        return 0.0
    gap, tail = energy[cut] - energy[cut - 1], energy[:cut].sum()
    if gap <= 0 or tail <= 0:
        return np.inf
    # Rounding turns the vectors at the cut by (rounding of G) / (gap between their eigenvalues).
    return 10 * precision * energy[-1] / gap * np.sqrt(2 * energy[cut] / (tail * (1 - tail)))


def _lapack_svd(matrix: np.ndarray, delta: float) -> tuple[float, int, np.ndarray]:
    """The definition by NumPy's SVD, which the other ways fall back to."""
    normalised, norm = _normalise(matrix, np.float64)
    u, s, vt = np.linalg.svd(normalised, full_matrices=False)
    tail_energy = np.cumsum((s * s)[::-1])[::-1]
    k = choose_rank(tail_energy, delta)
    tail = float(tail_energy[k])
    return -tail, k, closed_form((u[:, k:] * s[k:]) @ vt[k:], tail, normalised, norm)


def _matmul(matrix: np.ndarray, delta: float) -> tuple[float, int, np.ndarray]:
    ((loss, k, grad),) = matmul_terms((Tensor(matrix.astype(np.float32)),), delta)
    return float(loss.asnumpy()), int(k.asnumpy()), grad.asnumpy()


def _svd(matrix: np.ndarray, delta: float) -> tuple[float, int, np.ndarray]:
    loss, k, grad = svd_term(Tensor(matrix).astype(svd_dtype()), delta)
    loss, k, grad = float(loss.asnumpy()), int(k.asnumpy()), grad.asnumpy()
    if np.isfinite(loss) and np.isfinite(grad).all():
        return loss, k, grad
    _log.warning("ops.svd of a %d x %d weight gave a result that is not finite; using LAPACK", *matrix.shape)
    return _lapack_svd(matrix, delta)
