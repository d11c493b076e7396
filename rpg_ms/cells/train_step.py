"""The train-one-step cell: task loss, rank term, masked gradients, optimizer and topology updates.

Which weights stay is decided on the host, in NumPy, every so many steps; everything else is compiled. This is the
only place that knows both.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from rpg_ms.cells.masked import masked_gradient, set_topology
from rpg_ms.pruning.allocation import ALLOCATIONS
from rpg_ms.pruning.topology import update_topology


@dataclass(frozen=True)
class TopologyRecord:
    """What one topology update did."""

    step: int
    density: float
    nonzero: int
    drop_fraction: float
    grown: int  # positions active after the update and not before it
    layer_nonzero: list = field(repr=False)
    ranks: list = field(repr=False)  # k of each layer in the rank term; empty without it
    rank_loss: float = 0.0


class ObjectiveGradients(nn.Cell):
    """One forward and backward pass: the objective `L = L_task + lambda * L_rank` and its dense gradient.

    Weights are zero where their masks are and masks are not part of the graph, so the gradient at a masked
    position is the true derivative of `L` there.

    Args:
        network_with_loss: a Cell from the batch to a scalar task loss.
        parameters: the trainable Parameters to differentiate by.
        rank_loss: `rpg_ms.rank.RankLoss`, or None for the task loss alone.
        rank_weight: lambda.
        rank_weights: the Parameters in the rank term.
        reduce: a Cell from the gradients to their mean over the ranks, or None with one rank.

    Outputs:
        `(task_loss, rank_loss, ranks, gradients)`; `rank_loss` and `ranks` are zeros without a rank term.
    """

    def __init__(self, network_with_loss, parameters, rank_loss=None, rank_weight=0.0, rank_weights=(),
                 reduce=None):
        super().__init__(auto_prefix=False)
        self.network = network_with_loss
        self.rank_loss = rank_loss
        self.rank_weight = rank_weight
        self.rank_weights = ms.ParameterTuple(rank_weights)
        self.no_rank = (ms.Tensor(0.0, ms.float32), ms.Tensor(np.zeros(1, np.int32)))
        self.reduce = reduce
        self.value_and_grad = ops.value_and_grad(self.objective, None, parameters, has_aux=True)

    def objective(self, *inputs):
        """`(L, L_task, L_rank, k)`."""
        task_loss = self.network(*inputs)
        if self.rank_loss is None:
            rank_loss, ranks = self.no_rank
            return task_loss, task_loss, rank_loss, ranks
        rank_loss, ranks = self.rank_loss.loss_and_ranks(self.rank_weights)
        return task_loss + self.rank_weight * rank_loss, task_loss, rank_loss, ranks

    def construct(self, *inputs):
        (_, task_loss, rank_loss, ranks), gradients = self.value_and_grad(*inputs)
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        return task_loss, rank_loss, ranks, gradients


class ApplyGradients(nn.Cell):
    """An optimizer step on masked gradients.

    A weight that is zero, has no gradient and no optimizer state stays exactly zero under every optimizer offered
    here, weight decay included: nothing needs to be masked after the step.
    """

    def __init__(self, optimizer, layers):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        index = {id(layer.weight): i for i, layer in enumerate(layers)}
        self.masks = ms.ParameterTuple([layer.mask for layer in layers])
        self.mask_of = tuple(index.get(id(parameter), -1) for parameter in optimizer.parameters)

    def construct(self, gradients):
        masked = ()
        for gradient, i in zip(gradients, self.mask_of):
            if i >= 0:
                gradient = masked_gradient(self.masks[i], gradient)
            masked += (gradient,)
        return self.optimizer(masked)


class PlainStep(nn.Cell):
    """A training step between topology updates, as one graph: gradients, then optimizer."""

    def __init__(self, gradients, apply):
        super().__init__(auto_prefix=False)
        self.gradients = gradients
        self.apply_gradients = apply

    def construct(self, *inputs):
        loss, _, _, gradients = self.gradients(*inputs)
        return ops.depend(loss, self.apply_gradients(gradients))


class MaskOptimizerState(nn.Cell):
    """Zeroes momentum, moments and any other per-weight optimizer state where the mask is 0."""

    def __init__(self, optimizer, layers):
        super().__init__(auto_prefix=False)
        masks = {layer.weight.name: layer.mask for layer in layers}
        pairs = []
        for state in optimizer.get_parameters():
            # "moments.head.fc.weight" is the state of "head.fc.weight", also where there is an "fc.weight".
            owners = [p for p in optimizer.parameters
                      if state.name.endswith("." + p.name) and state.shape == p.shape]
            owner = max(owners, key=lambda p: len(p.name), default=None)
            if owner is not None and owner.name in masks:
                pairs.append((state, masks[owner.name]))
        self.states = ms.ParameterTuple([state for state, _ in pairs])
        self.masks = ms.ParameterTuple([mask for _, mask in pairs])

    def construct(self):
        done = ()
        for state, mask in zip(self.states, self.masks):
            done += (ops.assign(state, masked_gradient(mask, state)),)
        return done


class SparseTrainStep(nn.Cell):
    """Trains one step per call and redraws the masks when the calendar says so.

    On an update step the dense gradient of the objective is taken and the masks are redrawn; with `alpha > 0` the
    optimizer then rests, with `alpha = 0` (plain gradual pruning) it steps as usual, on the new masks. This is the
    order of the released implementation of arXiv 2311.17493.

    Args:
        network_with_loss: a Cell from the batch to a scalar task loss, its layers masked by `sparsify`.
        optimizer: a `mindspore.nn.Optimizer` of its trainable parameters.
        layers: the MaskedLayers to prune.
        calendar: `rpg_ms.pruning.UpdateCalendar`, or None to leave the topology alone.
        alpha: share of a layer's weights dropped and grown at first.
        allocation: name in `rpg_ms.pruning.ALLOCATIONS`.
        min_per_layer: fewest weights left in a layer.
        rank_loss: `rpg_ms.rank.RankLoss`, or None for no rank term.
        rank_weight: lambda.
        rank_every: "update" (the rank term steers regrowth only) or "step" (it also drives the weights).
        rank_dense: whether dense layers take part in the rank term besides convolutions.
        reduce: a Cell from the gradients to their mean over the ranks, or None with one rank.

    Inputs:
        *inputs: one batch.

    Outputs:
        The task loss, a scalar Tensor. `step_number` counts steps from 1; `record` holds the TopologyRecord of the
        step just made, None if it was a plain one.
    """

    def __init__(self, network_with_loss, optimizer, layers, calendar=None, alpha=0.0, allocation="global",
                 min_per_layer=1, rank_loss=None, rank_weight=0.0, rank_every="update", rank_dense=False,
                 reduce=None):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.layers = layers
        self.calendar = calendar
        self.alpha = alpha
        self.allocate = ALLOCATIONS[allocation]
        self.min_per_layer = min_per_layer
        self.step_number = 0
        self.record = None

        rank_layers = [layer for layer in layers if rank_dense or layer.kind == "conv"]
        with_rank = rank_loss is not None and rank_weight > 0 and bool(rank_layers)
        task = ObjectiveGradients(network_with_loss, optimizer.parameters, reduce=reduce)
        self.objective = ObjectiveGradients(
            network_with_loss, optimizer.parameters, rank_loss, rank_weight,
            [layer.weight for layer in rank_layers], reduce) if with_rank else task
        self.apply_gradients = ApplyGradients(optimizer, layers)
        self.plain_step = PlainStep(self.objective if rank_every == "step" else task, self.apply_gradients)
        self.mask_state = MaskOptimizerState(optimizer, layers)
        self.has_rank = with_rank
        index = {id(parameter): i for i, parameter in enumerate(optimizer.parameters)}
        self.gradient_of = [index[id(layer.weight)] for layer in layers]

    def __call__(self, *inputs):
        step = self.step_number + 1
        self.record = None
        if self.calendar is not None and self.calendar.is_update(step):
            loss = self._update_step(step, inputs)
        else:
            loss = self.plain_step(*inputs)
        self.step_number = step
        return loss

    def _update_step(self, step, inputs):
        loss, rank_loss, ranks, gradients = self.objective(*inputs)
        fraction = self.calendar.drop_fraction(step, self.alpha)
        dense = [gradients[i].asnumpy() for i in self.gradient_of] if fraction > 0 else None
        weights = [layer.weight.asnumpy() for layer in self.layers]
        counts = self.allocate(weights, self.calendar.density_at(step), self.min_per_layer)
        grown = 0
        for layer, (weight, mask) in zip(self.layers, update_topology(weights, dense, counts, fraction)):
            grown += int(np.count_nonzero(mask & ~layer.mask.asnumpy()))
            set_topology(layer, weight, mask)
        self.mask_state()
        if self.alpha > 0:
            # The optimizer rests, its learning-rate schedule does not.
            ops.assign(self.optimizer.global_step, ms.Tensor([step], ms.int32))
        else:
            self.apply_gradients(gradients)
        nonzero = int(sum(counts))
        self.record = TopologyRecord(
            step=step, density=nonzero / sum(weight.size for weight in weights), nonzero=nonzero,
            drop_fraction=fraction, grown=grown, layer_nonzero=[int(count) for count in counts],
            ranks=ranks.asnumpy().tolist() if self.has_rank else [],
            rank_loss=float(rank_loss.asnumpy()) if self.has_rank else 0.0)
        return loss
