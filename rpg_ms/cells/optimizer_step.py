"""The optimizer's part of a step, and the state that it keeps of each weight."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Optional

import mindspore as ms
from mindspore import amp, nn, ops

from rpg_ms.cells.average import WeightAverage
from rpg_ms.cells.masked import MaskedLayer, masked_gradient
from rpg_ms.cells.soft_threshold import SoftThreshold


class ApplyGradients(nn.Cell):
    """An optimizer step on masked gradients; arguments as of `SparseTrainStep` and its options.

    A weight that is zero, has no gradient and no optimizer state stays exactly zero under every optimizer offered
    here, weight decay included: nothing needs to be masked after the step. With a loss scaler, a step whose gradient is
    not finite is left out; the learning-rate schedule goes on.
    """

    def __init__(
        self,
        optimizer: nn.Optimizer,
        layers: Sequence[MaskedLayer],
        clip_norm: Optional[float] = None,
        scaler: Optional[amp.LossScaler] = None,
        soft_threshold: Optional[SoftThreshold] = None,
        average: Optional[WeightAverage] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.scaler = scaler
        self.soft_threshold = soft_threshold
        self.average = average
        index = {id(layer.weight): i for i, layer in enumerate(layers)}
        self.masks = ms.ParameterTuple([layer.mask for layer in layers])
        self.mask_of = tuple(index.get(id(parameter), -1) for parameter in optimizer.parameters)

    def construct(self, finite: ms.Tensor, *gradients: ms.Tensor) -> ms.Tensor:
        # The gradients come one by one: graph mode takes a tuple for a constant and compiles anew.
        masked = ()
        for gradient, i in zip(gradients, self.mask_of):
            if i >= 0:
                gradient = masked_gradient(self.masks[i], gradient)
            masked += (gradient,)
        if self.clip_norm is not None:
            masked = ops.clip_by_global_norm(masked, self.clip_norm)
        if self.scaler is None:
            self.optimizer(masked)
        else:
            self.scaler.adjust(finite)
            if finite:
                self.optimizer(masked)
            else:
                ops.assign_add(self.optimizer.global_step, 1)
        if self.soft_threshold is not None:
            self.soft_threshold()
        if self.average is not None:
            self.average()
        return finite


class MaskState(nn.Cell):
    """Zeroes per-weight state, given as pairs (state, the Parameter that it is kept of), where the mask is 0."""

    def __init__(self, kept: Iterable[tuple[ms.Parameter, ms.Parameter]], layers: Sequence[MaskedLayer]) -> None:
        super().__init__(auto_prefix=False)
        masks = {layer.weight.name: layer.mask for layer in layers}
        pairs = [(state, masks[owner.name]) for state, owner in kept if owner.name in masks]
        self.states = ms.ParameterTuple([state for state, _ in pairs])
        self.masks = ms.ParameterTuple([mask for _, mask in pairs])

    def construct(self) -> bool:
        for state, mask in zip(self.states, self.masks):
            ops.assign(state, masked_gradient(mask, state))
        return True


class ResetState(nn.Cell):
    """Zeroes states."""

    def __init__(self, states: Sequence[ms.Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.states = ms.ParameterTuple(states)

    def construct(self) -> bool:
        for state in self.states:
            ops.assign(state, ops.zeros_like(state))
        return True


def optimizer_state(optimizer: nn.Optimizer) -> list[tuple[ms.Parameter, ms.Parameter]]:
    """Pairs (state, the Parameter that it is kept of) of an optimizer's momentum, moments and the like."""
    parameters = {id(parameter) for parameter in optimizer.parameters}
    pairs = []
    for state in optimizer.get_parameters():
        owners = [p for p in optimizer.parameters if state.name.endswith("." + p.name) and state.shape == p.shape]
        if owners and id(state) not in parameters:
            # "moments.head.fc.weight" is the state of "head.fc.weight", also where there is an "fc.weight".
            pairs.append((state, max(owners, key=lambda p: len(p.name))))
    return pairs
