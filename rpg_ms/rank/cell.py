"""The rank term inside a MindSpore graph."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from rpg_ms.rank.matmul import matmul_terms
from rpg_ms.rank.svd import svd_dtype, svd_term
from rpg_ms.rank.term import check_options, rank_terms


class RankLoss(nn.Cell):
    """Rank term of a network, the mean of `-t_k` over its layers that are not all zero, with its exact gradient.

    Args:
        delta: error budget in (0, 1].
        backend: "gram" (on the host; CPU), "matmul" (multiplications only, layers of equal size in
            batches; CPU, GPU, Ascend) or "svd" (`ops.svd`; CPU, GPU, Ascend).

    Inputs:
        *weights: one or more Parameters or Tensors of two or more dimensions, first dimension `C_out` (of a transposed
            convolution `C_in`: its matrix has a row for each of them).

    Outputs:
        `(loss, k, gradients)`: a scalar, 0 when every weight is all zero; an int32 tensor `[len(weights)]`; and a
        tuple of tensors of the weights' shapes. Loss and gradients are at least float32.

    Raises:
        ValueError: an unknown backend, or `delta` outside (0, 1].
    """

    def __init__(self, delta: float = 0.1, backend: str = "gram") -> None:
        super().__init__()
        check_options(delta, backend)
        self.delta = delta
        self.backend = backend
        self.svd_dtype = svd_dtype()
        # Such an operator takes one tensor and gives one: see `_host_terms`.
        self.on_host = ops.Custom(
            self._on_host, func_type="pyfunc", out_shape=lambda shape: shape, out_dtype=lambda dtype: dtype
        )

    def construct(self, *weights: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        wide = ()
        for weight in weights:
            if weight.dtype in (ms.float16, ms.bfloat16):
                weight = weight.astype(ms.float32)
            wide += (weight,)
        if self.backend == "matmul":
            terms = matmul_terms(wide, self.delta)
        elif self.backend == "svd":
            terms = self._svd_terms(wide)
        else:
            terms = self._host_terms(wide)
        losses, ranks = (), ()
        for loss, k, _ in terms:
            losses += (loss,)
            ranks += (k,)
        losses = ops.stack(losses)
        # A layer that is all zero has a loss of exactly 0, and every other one has -t_k < 0 or NaN: count the latter.
        active = ops.maximum((losses != 0).astype(losses.dtype).sum(), ops.ones((), losses.dtype))
        gradients = ()
        for _, _, gradient in terms:
            gradients += (gradient / active,)
        return losses.sum() / active, ops.stack(ranks), gradients

    def _svd_terms(self, weights: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """`(loss, k, grad)` of every weight, one after the other."""
        terms = []
        for weight in weights:
            loss, k, grad = svd_term(weight.astype(self.svd_dtype), self.delta)
            terms.append((loss.astype(weight.dtype), k, grad.astype(weight.dtype)))
        return terms

    def _host_terms(self, weights: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The same by `rank_terms`. One vector goes to the host: every weight's rows, columns and entries.
        Another of the same size comes back, with loss, k and gradient in their places.
        """
        dtype = ms.float32
        for weight in weights:
            if weight.dtype == ms.float64:
                dtype = ms.float64
        parts = ()
        for weight in weights:
            rows = weight.shape[0]
            parts += (Tensor((rows, weight.size // rows), dtype), weight.reshape(-1).astype(dtype))
        answer = self.on_host(ops.cat(parts))
        terms, start = [], 0
        for weight in weights:
            end = start + 2 + weight.size
            grad = answer[start + 2 : end].reshape(weight.shape).astype(weight.dtype)
            terms.append((answer[start].astype(weight.dtype), answer[start + 1].astype(ms.int32), grad))
            start = end
        return terms

    def _on_host(self, vector: np.ndarray) -> np.ndarray:
        """What `_host_terms` asks for, from array to array."""
        weights, start = [], 0
        while start < vector.size:
            rows, columns = int(vector[start]), int(vector[start + 1])
            end = start + 2 + rows * columns
            weights.append(vector[start + 2 : end].reshape(rows, columns))
            start = end
        parts = []
        for loss, k, grad in rank_terms(weights, self.delta):
            parts += [np.array([loss, k], vector.dtype), grad.ravel()]
        return np.concatenate(parts)
