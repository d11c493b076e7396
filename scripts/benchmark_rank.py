"""The rank term of a ResNet-50 against the decompositions it stands for: python scripts/benchmark.py rank"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
from benchmark_steps import DENSITY, Figure, masked_step, seconds

OURS = f"53 convolutions of ResNet-50 at {DENSITY:.0%} density"
CHINESE = f"ResNet-50 的 53 个卷积，密度 {DENSITY:.0%}"


def rank() -> Iterator[Figure]:
    """Loss, k and gradient of every convolution, by the package's host backend and by plain decompositions.

    The host backend calls NumPy's `eigh`. Calling the parts of LAPACK's driver one by one, so that only the
    eigenvectors of the tail are transformed back, takes 0.57 times the CPU seconds: under 1 % of a training step at
    an update every 100 steps, which 72 lines of ctypes are not worth.
    """
    from rpg_ms.rank import rank_term, rank_terms

    masked = masked_step("resnet50", 224)
    weights = [layer.weight.asnumpy() for layer in masked.layers if layer.kind == "conv"]
    found = rank_terms(weights, 0.1)
    processor = min(seconds(lambda: rank_terms(weights, 0.1), time.process_time) for _ in range(5))
    english = f"rank term and gradient by the backend gram, processor seconds, {OURS}"
    yield "rank_seconds", english, f"用 gram 后端求秩项及梯度的处理器秒数，{CHINESE}", round(processor, 2), None
    yield from decompositions(weights)
    yield from torch_decompositions(weights)
    exact = [rank_term(weight.astype(np.float64), 0.1, "gram") for weight in weights]
    if [k for _, k, _ in found] != [k for _, k, _ in exact]:
        raise AssertionError("k differs from float64's")
    error = max(np.linalg.norm(a - b) / np.linalg.norm(b) for (*_, a), (*_, b) in zip(found, exact))
    english = "largest relative error of its gradient against float64 (k equal everywhere)"
    chinese = "其梯度与 float64 结果相比的最大相对误差（各层 k 均相同）"
    yield "rank_error", english, chinese, float(f"{error:.0e}"), "≤ 1e-3"


def decompositions(weights: list[np.ndarray]) -> Iterator[Figure]:
    """Other ways to the term, by MindSpore and SciPy, as multiples of the host backend's seconds."""
    import mindspore as ms
    from mindspore import ops

    from rpg_ms.rank import rank_term

    matrices = matrices_of(weights)
    ours = host_seconds(weights)
    svd = seconds(lambda: [rank_term(weight, 0.1, "svd") for weight in weights])
    english = f"rank term and gradient by `ops.svd` (float64) / by the backend gram, {OURS}"
    chinese = f"用 `ops.svd`（float64）求秩项及梯度 / 用 gram 后端，{CHINESE}"
    yield "rank_svd", english, chinese, round(svd / ours, 1), "≥ 50"
    svd = seconds(lambda: [[x.asnumpy() for x in ops.svd(ms.Tensor(m), full_matrices=False)] for m in matrices])
    english, chinese = "`ops.svd` alone in float32 / the same", "仅 `ops.svd`（float32）/ 同上"
    yield "rank_ops_svd", english, chinese, round(svd / ours, 1), None
    plain = min(seconds(lambda: [plain_gram(m.astype(np.float64), 0.1) for m in matrices]) for _ in range(3))
    english = "a plain `scipy.linalg.eigh` of each Gram matrix (float64) / the same"
    chinese = "直接对每个 Gram 矩阵调用 `scipy.linalg.eigh`（float64）/ 同上"
    yield "rank_plain", english, chinese, round(plain / ours, 1), None


def torch_decompositions(weights: list[np.ndarray]) -> Iterator[Figure]:
    """PyTorch's singular value decompositions as multiples of the host backend's seconds."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: left out", file=sys.stderr)
        return
    matrices = [torch.from_numpy(matrix) for matrix in matrices_of(weights)]
    ours = host_seconds(weights)
    for key, full, aim in (("rank_torch_full", True, "≥ 8"), ("rank_torch_svd", False, None)):

        def decompose(full: bool = full) -> list:
            return [torch.linalg.svd(matrix, full_matrices=full) for matrix in matrices]

        svd = min(seconds(decompose) for _ in range(2))
        call = f"`torch.linalg.svd(W, full_matrices={full})`"
        yield key, f"{call} alone in float32 / the same", f"仅 {call}（float32）/ 同上", round(svd / ours, 1), aim


def matrices_of(weights: list[np.ndarray]) -> list[np.ndarray]:
    return [weight.reshape(len(weight), -1) for weight in weights]


def host_seconds(weights: list[np.ndarray]) -> float:
    from rpg_ms.rank import rank_terms

    return min(seconds(lambda: rank_terms(weights, 0.1)) for _ in range(5))


def plain_gram(w: np.ndarray, delta: float) -> tuple[float, int, np.ndarray]:
    """Loss, k and gradient of the rank term of a matrix, as one would write them down."""
    from scipy.linalg import eigh

    w_hat = w / np.linalg.norm(w)
    wide = w.shape[0] <= w.shape[1]
    energy, basis = eigh(w_hat @ w_hat.T if wide else w_hat.T @ w_hat, driver="evd")
    tail_energy = np.cumsum(energy)[::-1]
    k = np.abs(tail_energy - delta).argmin()
    tail = basis[:, : len(energy) - k]
    residual = tail @ (tail.T @ w_hat) if wide else (w_hat @ tail) @ tail.T
    return -tail_energy[k], k, -2 / np.linalg.norm(w) * (residual - tail_energy[k] * w_hat)
