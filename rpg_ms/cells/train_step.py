"""The train-one-step cell: task loss, rank term, masked gradients, optimizer and topology updates.

A `Pruner` decides, on the host and every so many steps, which weights stay; everything else is compiled. This is the
only place that knows both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import amp, nn, ops

from rpg_ms.cells.average import WeightAverage
from rpg_ms.cells.gradients import InPieces, TaskGradients
from rpg_ms.cells.masked import MaskedLayer, set_topology
from rpg_ms.cells.optimizer_step import ApplyGradients, MaskState, ResetState, optimizer_state
from rpg_ms.cells.rank_term import RankTerm, add_rank, mix
from rpg_ms.cells.sink import SunkSteps
from rpg_ms.cells.soft_threshold import SoftThreshold
from rpg_ms.errors import NotFinite
from rpg_ms.pruning import Pruner, TopologyRecord


@dataclass(frozen=True)
class StepOptions:
    """How a training step is computed.

    Args:
        micro_batches: pieces that a batch is computed in, one after the other; the gradient is their mean.
        clip_norm: largest global norm of the masked gradient, or None.
        scaler: a `mindspore.amp` loss scaler for mixed precision, or None.
        reduce: a Cell from the gradients to their mean over the processes, or None for a single one.
        sink_size: plain steps that `SparseTrainStep.sink` runs in one graph.
    """

    micro_batches: int = 1
    clip_norm: Optional[float] = None
    scaler: Optional[amp.LossScaler] = None
    reduce: Optional[nn.Cell] = None
    sink_size: int = 1


class PlainStep(nn.Cell):
    """A training step between topology updates, as one graph: gradients, then optimizer."""

    def __init__(
        self, task: TaskGradients, rank_term: Optional[RankTerm], rank_of: Sequence[int], apply: ApplyGradients
    ) -> None:
        super().__init__(auto_prefix=False)
        self.task = task
        self.rank_term = rank_term
        self.rank_of = rank_of
        self.apply_gradients = apply

    def construct(self, *inputs: ms.Tensor) -> ms.Tensor:
        loss, gradients, finite = self.task(*inputs)
        if self.rank_term is not None:
            _, _, rank_gradients = self.rank_term(gradients[0])
            gradients = add_rank(gradients, rank_gradients, self.rank_of)
        return ops.depend(loss, self.apply_gradients(finite, *gradients))


class SparseTrainStep(nn.Cell):
    """Trains one step per call and redraws the masks when the pruner says so.

    On an update step the dense gradient of the objective `L = L_task + λ · L_rank` is taken and the masks are redrawn;
    with regrowth the optimizer then rests, without it (plain gradual pruning) it steps as usual, on the new masks. This
    is the order of the released implementation of arXiv 2311.17493.

    With a loss scaler, an update whose gradient is not finite is postponed to the next step that has a finite one.

    Args:
        network_with_loss: a Cell from the batch to a scalar task loss, its layers masked by `sparsify`.
        optimizer: a `mindspore.nn.Optimizer` of its trainable parameters.
        layers: the MaskedLayers to prune.
        pruner: `rpg_ms.pruning.Pruner`, which decides about the masks, or None to leave them as they are.
        rank_term: `RankTerm`, or None.
        soft_threshold: a SoftThreshold of the layers (ST-3), or None; the optimizer's parameters are its `trained`.
        average: a WeightAverage to keep, or None.
        options: how a step is computed.

    Inputs:
        *inputs: one batch.

    Outputs:
        The task loss, a scalar Tensor. `step_number` counts steps from 1; `record` holds the TopologyRecord of the
        step just made, None if it was a plain one.

    Raises:
        NotFinite: at an update step without a scaler, a weight or a gradient is not finite.
    """

    def __init__(
        self,
        network_with_loss: nn.Cell,
        optimizer: nn.Optimizer,
        layers: Sequence[MaskedLayer],
        pruner: Optional[Pruner] = None,
        rank_term: Optional[RankTerm] = None,
        soft_threshold: Optional[SoftThreshold] = None,
        average: Optional[WeightAverage] = None,
        options: StepOptions = StepOptions(),
    ) -> None:
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.layers = layers
        self.pruner = pruner
        self.rank_term = rank_term
        self.soft_threshold = soft_threshold
        self.average = average
        self.scaler = options.scaler
        self.sink_size = options.sink_size
        self.step_number = 0
        self.record: Optional[TopologyRecord] = None

        parameters = optimizer.parameters
        if soft_threshold is not None:
            parameters = ms.ParameterTuple(soft_threshold.differentiated(parameters))
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self.gradient_of = [index[id(layer.weight)] for layer in layers]
        in_term = {id(layer.weight): i for i, layer in enumerate(rank_term.layers)} if rank_term is not None else {}
        self.rank_of = tuple(in_term.get(id(parameter), -1) for parameter in parameters)
        pieces = options.micro_batches
        self.task = TaskGradients(network_with_loss, parameters, options.scaler, 1 / pieces, options.reduce)
        self.in_pieces = InPieces(self.task, pieces) if pieces > 1 else None
        self.apply_gradients = ApplyGradients(
            optimizer, layers, options.clip_norm, options.scaler, soft_threshold, average
        )
        self.driving_term = rank_term if rank_term is not None and rank_term.drives_weights else None
        self.plain_step = PlainStep(self.task, self.driving_term, self.rank_of, self.apply_gradients)
        self.sunk_steps = SunkSteps(self.plain_step, options.sink_size)
        kept = optimizer_state(optimizer)
        self.reset_state = ResetState([state for state, _ in kept])
        if average is not None:
            kept += zip(average.averages, average.sources)
        self.mask_state = MaskState(kept, layers)

    def __call__(self, *inputs: ms.Tensor) -> ms.Tensor:
        step = self.step_number + 1
        self.record = None
        if self._is_update(step):
            loss = self._update_step(step, inputs)
        elif self.in_pieces is not None:
            loss = self._step_in_pieces(inputs)
        else:
            loss = self.plain_step(*inputs)
        self.step_number = step
        return loss

    def construct(self, *inputs: ms.Tensor) -> ms.Tensor:
        """Refuses to be compiled into another graph, which would pass over the topology updates."""
        raise RuntimeError(
            "SparseTrainStep decides about topology updates on the host, so it cannot be part of a graph: "
            "train with dataset_sink_mode=False"
        )

    # ---------------------------------------------------------------------------------- several at once

    def can_sink(self) -> bool:
        """Whether the next `sink_size` steps can run in one graph: the host has no part in any of them."""
        steps = range(self.step_number + 1, self.step_number + 1 + self.sink_size)
        return self.sink_size > 1 and self.in_pieces is None and not any(map(self._is_update, steps))

    def sink(self, batches: Sequence[Sequence[ms.Tensor]]) -> ms.Tensor:
        """Train the next steps on as many batches of equal shapes in one graph: the losses, float32 `[sink_size]`.

        Raises:
            ValueError: the number of batches, or a step that `can_sink` says cannot be one of them.
        """
        if len(batches) != self.sink_size or not self.can_sink():
            raise ValueError(
                f"{len(batches)} batches after step {self.step_number} cannot be sunk; sink_size is {self.sink_size}"
            )
        self.record = None
        stacked = (ms.Tensor(np.stack([tensor.asnumpy() for tensor in tensors])) for tensors in zip(*batches))
        losses = self.sunk_steps(*stacked)
        self.step_number += self.sink_size
        return losses

    # ----------------------------------------------------------------------------------- topology updates

    def finish(self) -> None:
        """Make an update that is still waiting for a finite gradient, without regrowth: the target is met."""
        self.record = None
        if self.pruner is not None and self.pruner.pending:
            self._update_topology(self.step_number, None, None, None)

    def _is_update(self, step: int) -> bool:
        return self.pruner is not None and self.pruner.is_due(step)

    def _step_in_pieces(self, inputs: Sequence[ms.Tensor]) -> ms.Tensor:
        loss, gradients, finite = self.in_pieces(*inputs)
        if self.driving_term is not None:
            gradients = add_rank(gradients, self.driving_term()[2], self.rank_of)
        self.apply_gradients(finite, *gradients)
        return loss

    def _update_step(self, step: int, inputs: Sequence[ms.Tensor]) -> ms.Tensor:
        loss, gradients, finite = (self.in_pieces or self.task)(*inputs)
        if not finite.asnumpy():
            self.pruner.pending = True
            self.apply_gradients(finite, *gradients)  # lowers the loss scale
            return loss
        ranked, rank, task = self.pruner.needs_gradient(step), None, None
        dense = self._of_layers(gradients) if ranked else None
        if self.rank_term is not None:
            task = dense
            *rank, rank_gradients = self.rank_term()
            if self.rank_term.share is None:
                gradients = add_rank(gradients, rank_gradients, self.rank_of)
                dense = self._of_layers(gradients) if ranked else None
            elif ranked:
                dense = self._mixed(task, rank_gradients)
        self._update_topology(step, dense, rank, task)
        if self.pruner.optimizer_rests:  # its learning-rate schedule does not
            ops.assign_add(self.optimizer.global_step, ms.Tensor([1], ms.int32))
        else:
            self.apply_gradients(finite, *gradients)
        return loss

    def _of_layers(self, gradients: Sequence[ms.Tensor]) -> list[np.ndarray]:
        return [gradients[i].asnumpy() for i in self.gradient_of]

    def _mixed(self, task: Sequence[np.ndarray], rank_gradients: Sequence[ms.Tensor]) -> list[np.ndarray]:
        """The layers' scores of regrowth where the rank term has a share of its own."""
        of = [self.rank_of[i] for i in self.gradient_of]
        share = self.rank_term.share
        return [one if r < 0 else mix(one, rank_gradients[r].asnumpy(), share) for one, r in zip(task, of)]

    def _update_topology(
        self, step: int, dense: Optional[list[np.ndarray]], rank: Optional[list], task: Optional[list[np.ndarray]]
    ) -> None:
        """Let the pruner decide about the masks, and put them in place."""
        parameters = self.soft_threshold.latents if self.soft_threshold else [layer.weight for layer in self.layers]
        weights = [parameter.asnumpy() for parameter in parameters]
        for layer, weight, gradient in zip(self.layers, weights, dense or weights):
            if not (np.isfinite(weight).all() and np.isfinite(gradient).all()):
                raise NotFinite(f"a weight or gradient of {layer.name} is not finite", step)
        masks = [layer.mask.asnumpy().copy() for layer in self.layers]
        update = self.pruner.update(step, weights, masks, dense, task)
        if self.soft_threshold:
            self.soft_threshold.set_masks(update.masks, self.pruner.method.allocation == "global")
        else:
            for layer, weight, mask in zip(self.layers, update.weights, update.masks):
                set_topology(layer, weight, mask)
        if update.opens:
            self.reset_state()  # a dense phase begins: as published for AC/DC
        self.mask_state()
        self.record = update.record
        if rank is not None:
            self.record = replace(self.record, rank_loss=float(rank[0].asnumpy()), ranks=rank[1].asnumpy().tolist())

    # ------------------------------------------------------------------------------------------ resuming

    def state(self) -> tuple[dict[str, ms.Parameter], dict[str, Any]]:
        """What training goes on from besides the network: Parameters by name, and plain values.

        The learning rates are not among them: they are the configuration's, and the optimizer's own counter of
        steps says where in them it is.
        """
        weights = {id(parameter) for parameter in self.optimizer.parameters}
        parameters = {
            f"optimizer:{parameter.name}": parameter
            for parameter in self.optimizer.get_parameters()
            if id(parameter) not in weights and "learning_rate" not in parameter.name
        }
        if self.scaler is not None:
            parameters["scaler:scale_value"] = self.scaler.scale_value
            parameters["scaler:counter"] = self.scaler.counter
        if self.soft_threshold is not None:
            parameters.update({f"soft:{name}": value for name, value in self.soft_threshold.state().items()})
        if self.average is not None:
            parameters.update(self.average.state())
        return parameters, {"step": self.step_number, "pending": self.pruner is not None and self.pruner.pending}

    def load_state(self, parameters: dict[str, ms.Tensor], values: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            KeyError: a Parameter that `state` names is missing; nothing has changed then.
        """
        own, _ = self.state()
        found = {name: parameters[name] for name in own}
        for name, parameter in own.items():
            ops.assign(parameter, found[name])
        self.step_number = values["step"]
        if self.pruner is not None:
            self.pruner.pending = values["pending"]
