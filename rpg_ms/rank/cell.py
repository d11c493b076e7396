"""The rank term inside a MindSpore graph."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops

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


def svd_dtype():
    """float64 where the device has it: in float32 a small gap at the cut costs the gradient its third digit."""
    return ms.float32 if ms.get_context("device_target") == "Ascend" else ms.float64


def svd_term(weight, delta):
    """Rank term of one weight by `ops.svd`: `(loss, k, grad)` as tensors, `grad` of the weight's shape.

    The definition, in the weight's precision (float32 or float64), of static shape throughout.
    """
    matrix = weight.reshape(weight.shape[0], -1)
    scale = ops.abs(matrix).max()
    scale = ops.select(scale > 0, scale, ops.ones_like(scale))  # so that no square under- or overflows
    scaled = matrix / scale
    norm = ops.sqrt((scaled * scaled).sum())
    norm = ops.select(norm > 0, norm, ops.ones_like(norm))
    normalised = scaled / norm
    # The rows are mixed by a reflection first: with many exact zeros, as in a sparse weight, MindSpore 2.7's svd now and
    # then returns factors of another matrix (8 of 1,500 random 16 x 27 ones at 2 % density; none when reflected).
    axis = ops.cos(ops.arange(1, normalised.shape[0] + 1, dtype=ms.float32)).astype(matrix.dtype).reshape(-1, 1)
    axis = axis / ops.sqrt((axis * axis).sum())
    reflected = _reflect(normalised, axis)
    s, u, v = ops.svd(reflected, full_matrices=False, compute_uv=True)
    vt = ops.transpose(v, (1, 0))
    # Should it still be wrong, the loss becomes NaN: loud, and `rank_term` then takes another way.
    wrong = ops.abs(ops.matmul(u * s, vt) - reflected).max() > 1e-3
    energy = s * s
    tail_energy = ops.CumSum(False, True)(energy, 0)
    distance = ops.abs(tail_energy - delta)
    tie = 4 * (2.0 ** -52 if matrix.dtype == ms.float64 else 2.0 ** -23)
    index = ops.arange(0, s.shape[0], dtype=ms.int32)
    closest = distance <= distance.min() + tie
    k = ops.select(closest, index, ops.zeros_like(index)).max()
    tail = (index >= k).astype(matrix.dtype)
    t_k = (energy * tail).sum()
    residual = _reflect(ops.matmul(u * (s * tail), vt), axis)
    grad = (residual - t_k * normalised) * (-2.0 / norm) / scale
    loss = ops.select(wrong, ops.full_like(t_k, float("nan")), -t_k)
    return loss, k, grad.reshape(weight.shape)


def _reflect(matrix, axis):
    return matrix - 2 * ops.matmul(axis, ops.matmul(ops.transpose(axis, (1, 0)), matrix))
