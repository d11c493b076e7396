"""Soft-thresholded weights with straight-through gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from rpg_ms.cells.masked import MaskedLayer


class SoftThreshold(nn.Cell):
    """Keeps a dense latent copy `v` of every weight and computes the network's sparse weight from it:

        w = s * sign(v) * max(|v| - tau, 0)   where the mask is 1, and 0 elsewhere

    The optimizer steps on `v` with the gradient in `w` (straight through), so pruned weights go on learning and may
    come back when the masks are drawn anew. `s` rescales each output channel for what its mask has taken away:
    `1.01 / (mean |v| on the mask / mean |v| + 0.01)` (ST-3, arXiv 2212.01076, section 3, and the authors' code).

    Called, it assigns the weights and returns True.
    """

    def __init__(self, layers: Sequence[MaskedLayer]) -> None:
        super().__init__(auto_prefix=False)
        self.weights = ms.ParameterTuple([layer.weight for layer in layers])
        self.masks = ms.ParameterTuple([layer.mask for layer in layers])

        def parameters(kind: str, values: Iterable[np.ndarray], trained: bool = False) -> ms.ParameterTuple:
            return ms.ParameterTuple(
                [
                    ms.Parameter(ms.Tensor(value), name=f"{kind}.{weight.name}", requires_grad=trained)
                    for weight, value in zip(self.weights, values)
                ]
            )

        self.latents = parameters("latent", (weight.asnumpy().copy() for weight in self.weights), trained=True)
        self.thresholds = parameters("threshold", (np.float32(0) for _ in self.weights))
        shapes = (weight.shape[:1] + (1,) * (weight.ndim - 1) for weight in self.weights)
        self.scales = parameters("scale", (np.ones(shape, np.float32) for shape in shapes))

    def construct(self) -> bool:
        for weight, latent, mask, threshold, scale in zip(
            self.weights, self.latents, self.masks, self.thresholds, self.scales
        ):
            magnitude = ops.relu(ops.abs(latent) - threshold) * scale
            ops.assign(weight, ops.select(mask, ops.sign(latent) * magnitude, ops.zeros_like(latent)))
        return True

    def trained(self, parameters: Iterable[ms.Parameter]) -> list[ms.Parameter]:
        """The parameters for an optimizer: latent weights in the place of those that are computed from them."""
        latent_of = {id(weight): latent for weight, latent in zip(self.weights, self.latents)}
        return [latent_of.get(id(parameter), parameter) for parameter in parameters]

    def differentiated(self, parameters: Iterable[ms.Parameter]) -> list[ms.Parameter]:
        """The parameters whose gradients those for an optimizer (`trained`) go by."""
        weight_of = {id(latent): weight for weight, latent in zip(self.weights, self.latents)}
        return [weight_of.get(id(parameter), parameter) for parameter in parameters]

    def set_masks(self, masks: Sequence[np.ndarray], one_threshold: bool) -> None:
        """Put masks (boolean arrays) in place, with thresholds, scales and weights to go with them.

        A layer's threshold is the largest magnitude that its mask leaves out; with `one_threshold` the largest of
        all layers, for masks from one cut of the whole network, except in a layer that would lose a weight of its
        mask by it: one that keeps weights only for the sake of `pruning.min_per_layer`.
        """
        magnitudes = [np.abs(latent.asnumpy()) for latent in self.latents]
        thresholds = [magnitude.max(where=~mask, initial=0) for magnitude, mask in zip(magnitudes, masks)]
        if one_threshold:
            kept = [magnitude.min(where=mask, initial=np.inf) for magnitude, mask in zip(magnitudes, masks)]
            highest = max(thresholds)
            thresholds = [highest if highest < least else own for own, least in zip(thresholds, kept)]
        for i, (magnitude, mask) in enumerate(zip(magnitudes, masks)):
            axes = tuple(range(1, magnitude.ndim))
            share = ((magnitude * mask).mean(axes, keepdims=True) + 1e-6) / (magnitude.mean(axes, keepdims=True) + 1e-6)
            ops.assign(self.masks[i], ms.Tensor(mask))
            ops.assign(self.thresholds[i], ms.Tensor(thresholds[i], ms.float32))
            ops.assign(self.scales[i], ms.Tensor((1.01 / (share + 0.01)).astype(np.float32)))
        self()

    def state(self) -> dict[str, ms.Parameter]:
        """The Parameters that a checkpoint needs besides the network's, by name."""
        return {parameter.name: parameter for parameter in (*self.latents, *self.thresholds, *self.scales)}
