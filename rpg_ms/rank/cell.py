"""The rank term inside a MindSpore graph."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from rpg_ms.rank import matmul
from rpg_ms.rank.svd import svd_dtype, svd_term
from rpg_ms.rank.term import BACKENDS, rank_terms


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

    def __init__(self, delta=0.1, backend="gram"):
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
        if not 0 < delta <= 1:
            raise ValueError(f"delta: {delta!r} is not in (0, 1]")
        self.delta = delta
        self.backend = backend
        self.svd_dtype = svd_dtype()
        # One tensor in and one out is what such an operator takes: see _host_terms.
        self.on_host = ops.Custom(self._on_host, func_type="pyfunc", out_shape=lambda shape: shape,
                                  out_dtype=lambda dtype: dtype)

    def construct(self, *weights):
        loss, _ = self.loss_and_ranks(weights)
        return loss

    def loss_and_ranks(self, weights):
        """`(loss, k)` for a tuple of weights; `k` is an int32 tensor of shape `[len(weights)]`."""
        constants = ()
        for weight in weights:
            constant = ops.stop_gradient(weight)
            if constant.dtype in (ms.float16, ms.bfloat16):
                constant = constant.astype(ms.float32)
            constants += (constant,)
        if self.backend == "matmul":
            terms = self._batched_terms(constants)
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
        # A layer that is all zero has loss exactly 0, every other one -t_k < 0 (or NaN): count the latter.
        active = ops.maximum((losses != 0).astype(losses.dtype).sum(), ops.ones((), losses.dtype))
        loss = ops.stop_gradient(losses.sum() / active)
        # <grad, W> minus itself: adds exactly nothing to the value and exactly `grad` to the derivative.
        for weight, grad in zip(weights, grads):
            inner = (ops.stop_gradient(grad / active) * weight).sum()
            loss = loss + (inner - ops.stop_gradient(inner))
        return loss, ops.stop_gradient(ranks)

    def _svd_terms(self, weights):
        """`(loss, k, gradient)` of every weight, one after the other."""
        terms = ()
        for weight in weights:
            loss, k, grad = svd_term(weight.astype(self.svd_dtype), self.delta)
            terms += ((loss.astype(weight.dtype), k, grad.astype(weight.dtype)),)
        return terms

    def _host_terms(self, weights):
        """The same by `rank_terms`. One vector goes to the host: how many weights, rows and columns of each, and all
        their entries. Back comes one with loss and k in the place of rows and columns, and the gradients.
        """
        dtype = ms.float32
        for weight in weights:
            if weight.dtype == ms.float64:
                dtype = ms.float64
        header, parts = (len(weights),), ()
        for weight in weights:
            header += (weight.shape[0], weight.size // weight.shape[0])
            parts += (weight.reshape(-1).astype(dtype),)
        answer = self.on_host(ops.cat((Tensor(header, dtype), *parts)))
        terms, start = (), len(header)
        for i, weight in enumerate(weights):
            grad = answer[start:start + weight.size].reshape(weight.shape)
            terms += ((answer[1 + 2 * i].astype(weight.dtype), answer[2 + 2 * i].astype(ms.int32),
                       grad.astype(weight.dtype)),)
            start += weight.size
        return terms

    def _batched_terms(self, weights):
        """The same by multiplications: one batch for all weights whose smaller sides are equal."""
        matrices, norms, sizes = (), (), ()
        for weight in weights:
            matrix, norm = matmul.normalise(weight.reshape(weight.shape[0], -1).astype(ms.float32))
            matrices += (matrix,)
            norms += (norm,)
            sizes += (min(matrix.shape[0], matrix.shape[1]),)
        places = [(0, 0)] * len(weights)  # which batch, which of it
        batches = []
        for size in set(sizes):
            members = [i for i in range(len(sizes)) if sizes[i] == size]
            for place, i in enumerate(members):
                places[i] = (len(batches), place)
            grams = ops.stack([matmul.gram(matrices[i]) for i in members])
            batches.append(matmul.tail_projectors(grams, self.delta))
        terms = ()
        for i, weight in enumerate(weights):
            batch, place = places[i]
            projectors, tails, ranks = batches[batch]
            tail = tails[place]
            grad = matmul.closed_form(projectors[place], tail, matrices[i], norms[i])
            terms += ((-tail.astype(weight.dtype), ranks[place], grad.reshape(weight.shape).astype(weight.dtype)),)
        return terms

    def _on_host(self, vector):
        """What `_host_terms` asks for, from array to array."""
        count = int(vector[0])
        shapes = vector[1:1 + 2 * count].astype(np.int64).reshape(count, 2)
        ends = 1 + 2 * count + np.cumsum(shapes.prod(1))
        weights = [vector[end - rows * columns:end].reshape(rows, columns)
                   for end, (rows, columns) in zip(ends, shapes)]
        answer = np.empty_like(vector)
        answer[0] = count
        for i, (loss, k, grad) in enumerate(rank_terms(weights, self.delta)):
            answer[1 + 2 * i:3 + 2 * i] = loss, k
            answer[ends[i] - grad.size:ends[i]] = grad.ravel()
        return answer
