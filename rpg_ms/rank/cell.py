"""The rank term inside a MindSpore graph."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from rpg_ms.rank.matmul import matmul_terms
from rpg_ms.rank.svd import svd_dtype, svd_term
from rpg_ms.rank.term import check_options, rank_terms


class RankLoss(nn.Cell):
    """Rank term of a network: the mean of `-t_k` over its layers that are not all zero.

    Differentiable: its gradient with respect to each weight is the closed form of `rpg_ms.rank.rank_term`
    (a constant truncation, no derivative through a decomposition). Runs in graph and PyNative mode.

    Args:
        delta: error budget in (0, 1].
        backend: "gram" (on the host; CPU), "matmul" (multiplications only, layers of equal size in
            batches; CPU, GPU, Ascend) or "svd" (`ops.svd`; CPU, GPU, Ascend).

    Inputs:
        *weights: one or more Parameters or Tensors of two or more dimensions, first dimension `C_out` (of a transposed
            convolution `C_in`: its matrix has a row for each of them).

    Outputs:
        Scalar tensor, at least float32. `0` when every weight is all zero.

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

    def construct(self, *weights: Tensor) -> Tensor:
        loss, _ = self.loss_and_ranks(weights)
        return loss

    def loss_and_ranks(self, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`(loss, k)` for a tuple of weights. `k` is an int32 tensor of shape `[len(weights)]`."""
        constants = ()
        for weight in weights:
            constant = ops.stop_gradient(weight)
            if constant.dtype in (ms.float16, ms.bfloat16):
                constant = constant.astype(ms.float32)
            constants += (constant,)
        if self.backend == "matmul":
            terms = matmul_terms(constants, self.delta)
        elif self.backend == "svd":
            terms = self._svd_terms(constants)
        else:
            terms = self._host_terms(constants)
        losses, ranks, grads = (), (), ()
        for loss, k, grad in terms:
            losses += (loss,)
            ranks += (k,)
            grads += (grad,)
        losses, ranks = ops.stack(losses), ops.stack(ranks)
        # A layer that is all zero has a loss of exactly 0, and every other one has -t_k < 0 or NaN: count the latter.
        active = ops.maximum((losses != 0).astype(losses.dtype).sum(), ops.ones((), losses.dtype))
        loss = ops.stop_gradient(losses.sum() / active)
        # <grad, W> minus itself adds exactly nothing to the value and exactly `grad` to the derivative.
        for weight, grad in zip(weights, grads):
            inner = (ops.stop_gradient(grad / active) * weight).sum()
            loss = loss + (inner - ops.stop_gradient(inner))
        return loss, ops.stop_gradient(ranks)

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
        return np.concatenate(
            [
                part
                for loss, k, grad in rank_terms(weights, self.delta)
                for part in (np.array([loss, k], vector.dtype), grad.ravel())
            ]
        )
