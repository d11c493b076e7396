"""The rank term inside a MindSpore graph."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from rpg_ms.rank.svd import svd_dtype, svd_term
from rpg_ms.rank.term import BACKENDS, rank_term


class RankLoss(nn.Cell):
    """Rank term of a network: the mean of `-t_k` over its layers that are not all zero.

    Differentiable: its gradient with respect to each weight is the closed form of `rpg_ms.rank.rank_term`
    (a constant truncation, no derivative through a decomposition). Runs in graph and PyNative mode.

    Args:
        delta: error budget in (0, 1].
        backend: "gram" (on the host, in float64; CPU) or "svd" (`ops.svd`; CPU, GPU, Ascend).

    Inputs:
        *weights: one or more Parameters or Tensors of two or more dimensions, first dimension `C_out`.

    Outputs:
        Scalar tensor, at least float32. `0` when every weight is all zero.

    Raises:
        ValueError: an unknown backend, or `delta` outside (0, 1].
    """

    def __init__(self, delta=0.1, backend="gram"):
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
        if not 0 < delta <= 1:
            raise ValueError(f"delta: {delta!r} is not in (0, 1]")
        self.delta = delta
        self.use_svd = backend == "svd"
        self.svd_dtype = svd_dtype()
        self.host_term = ops.Custom(self._host_term, func_type="pyfunc",
                                    out_shape=lambda shape: ((1,), (1,), shape),
                                    out_dtype=lambda dtype: (dtype, ms.int32, dtype))

    def construct(self, *weights):
        loss, _ = self.loss_and_ranks(weights)
        return loss

    def loss_and_ranks(self, weights):
        """`(loss, k)` for a tuple of weights; `k` is an int32 tensor of shape `[len(weights)]`."""
        losses, ranks, grads = (), (), ()
        for weight in weights:
            constant = ops.stop_gradient(weight)
            if constant.dtype in (ms.float16, ms.bfloat16):
                constant = constant.astype(ms.float32)
            if self.use_svd:
                loss, k, grad = svd_term(constant.astype(self.svd_dtype), self.delta)
                loss, grad = loss.astype(constant.dtype), grad.astype(constant.dtype)
            else:
                loss, k, grad = self.host_term(constant)
                loss, k = loss[0], k[0]
            losses += (loss,)
            ranks += (k,)
            grads += (grad,)
        losses, ranks = ops.stack(losses), ops.stack(ranks)
        # A layer that is all zero has loss exactly 0, every other one -t_k < 0 (or NaN): count the latter.
        active = ops.maximum((losses != 0).astype(losses.dtype).sum(), ops.ones((), losses.dtype))
        loss = ops.stop_gradient(losses.sum() / active)
        # <grad, W> minus itself: adds exactly nothing to the value and exactly `grad` to the derivative.
        for weight, grad in zip(weights, grads):
            inner = (ops.stop_gradient(grad / active) * weight).sum()
            loss = loss + (inner - ops.stop_gradient(inner))
        return loss, ops.stop_gradient(ranks)

    def _host_term(self, weight):
        loss, k, grad = rank_term(weight, self.delta, "gram")
        return np.array([loss], weight.dtype), np.array([k], np.int32), grad
