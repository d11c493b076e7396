"""The rank term by `ops.svd`: the definition, as MindSpore operators."""
from __future__ import annotations

import mindspore as ms
from mindspore import ops

from rpg_ms.rank.matmul import normalise


def svd_dtype():
    """float64 where the device has it: in float32 a small gap at the cut costs the gradient its third digit."""
    return ms.float32 if ms.get_context("device_target") == "Ascend" else ms.float64


def svd_term(weight, delta):
    """Rank term of one weight by `ops.svd`: `(loss, k, grad)` as tensors, `grad` of the weight's shape.

    The definition, in the weight's precision (float32 or float64), of static shape throughout.
    """
    matrix = weight.reshape(weight.shape[0], -1)
    normalised, norm = normalise(matrix)
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
    k = ops.select(ops.logical_and(closest, energy.sum() > 0), index, ops.zeros_like(index)).max()
    tail = (index >= k).astype(matrix.dtype)
    t_k = (energy * tail).sum()
    residual = _reflect(ops.matmul(u * (s * tail), vt), axis)
    grad = (residual - t_k * normalised) * (-2.0 / norm)
    loss = ops.select(wrong, ops.full_like(t_k, float("nan")), -t_k)
    return loss, k, grad.reshape(weight.shape)


def _reflect(matrix, axis):
    return matrix - 2 * ops.matmul(axis, ops.matmul(ops.transpose(axis, (1, 0)), matrix))
