"""The rank term by `ops.svd`: the definition, as MindSpore operators."""

from __future__ import annotations

from typing import TypeVar

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

Array = TypeVar("Array", Tensor, np.ndarray)


def svd_dtype() -> ms.Type:
    """float64 where the device has it: in float32 a small gap at the cut costs the gradient its third digit."""
    return ms.float32 if ms.get_context("device_target") == "Ascend" else ms.float64


def svd_term(weight: Tensor, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    """`(loss, k, grad)` of a weight in its own precision (float32 or float64). Every shape is static."""
    matrix = weight.reshape(weight.shape[0], -1)
    normalised, norm = normalise(matrix)
    # MindSpore 2.7's svd now and then returns factors of another matrix when many entries are exactly zero (for 8 of
    # 1,500 random 16 x 27 matrices at 2 % density). A reflection that mixes the rows prevents that.
    axis = ops.cos(ops.arange(1, normalised.shape[0] + 1, dtype=ms.float32)).astype(matrix.dtype).reshape(-1, 1)
    axis = axis / ops.sqrt((axis * axis).sum())
    reflected = _reflect(normalised, axis)
    s, u, v = ops.svd(reflected, full_matrices=False, compute_uv=True)
    vt = ops.transpose(v, (1, 0))
    # If the factors are wrong all the same, the loss becomes NaN. That is loud, and `rank_term` then takes another way.
    wrong = ops.abs(ops.matmul(u * s, vt) - reflected).max() > 1e-3
    energy = s * s
    tail_energy = ops.CumSum(False, True)(energy, 0)
    distance = ops.abs(tail_energy - delta)
    tie = 4 * (2.0**-52 if matrix.dtype == ms.float64 else 2.0**-23)
    index = ops.arange(0, s.shape[0], dtype=ms.int32)
    closest = distance <= distance.min() + tie
    k = ops.select(ops.logical_and(closest, energy.sum() > 0), index, ops.zeros_like(index)).max()
    tail = (index >= k).astype(matrix.dtype)
    t_k = (energy * tail).sum()
    grad = closed_form(_reflect(ops.matmul(u * (s * tail), vt), axis), t_k, normalised, norm)
    loss = ops.select(wrong, ops.full_like(t_k, float("nan")), -t_k)
    return loss, k, grad.reshape(weight.shape)


def normalise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`(W / ||W||_F, ||W||_F)`. It is scaled first, so that no square under- or overflows. A zero matrix has norm 1."""
    scale = ops.abs(matrix).max()
    scale = ops.select(scale > 0, scale, ops.ones_like(scale))
    scaled = matrix / scale
    norm = ops.sqrt((scaled * scaled).sum())
    norm = ops.select(norm > 0, norm, ops.ones_like(norm))
    return scaled / norm, norm * scale


def closed_form(residual: Array, tail: Array | float, normalised: Array, norm: Array | float) -> Array:
    """The gradient `-(2 / ||W||_F) (R - t_k W^)`, of tensors or of NumPy arrays."""
    return (residual - tail * normalised) * (-2.0 / norm)


def _reflect(matrix: Tensor, axis: Tensor) -> Tensor:
    return matrix - 2 * ops.matmul(axis, ops.matmul(ops.transpose(axis, (1, 0)), matrix))
