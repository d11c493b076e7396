"""The train-one-step cell: task loss, rank term, masked gradients, optimizer and topology updates.

Which weights stay is decided on the host, in NumPy, every so many steps; everything else is compiled. This is the
only place that knows both.
"""
from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import amp, nn, ops

from rpg_ms.cells.masked import masked_gradient, set_topology
from rpg_ms.pruning.allocation import ALLOCATIONS
from rpg_ms.pruning.topology import random_scores, update_topology


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


class TaskGradients(nn.Cell):
    """One forward and backward pass: the task loss and its dense gradient.

    Weights are zero where their masks are and masks are not part of the graph, so the gradient at a masked
    position is the true derivative there.

    Args:
        network_with_loss: a Cell from the batch to a scalar task loss.
        parameters: the trainable Parameters to differentiate by.
        scaler: a `mindspore.amp` loss scaler, or None; what comes out is unscaled.
        share: factor on the gradient, for a piece of a batch.
        reduce: a Cell from the gradients to their mean over the ranks, or None with one rank.

    Outputs:
        `(loss, gradients, finite)`; `finite` is a bool scalar, always True without a scaler.
    """

    def __init__(self, network_with_loss, parameters, scaler=None, share=1.0, reduce=None):
        super().__init__(auto_prefix=False)
        self.network = network_with_loss
        self.scaler = scaler
        self.share = share
        self.reduce = reduce
        self.finite = ms.Tensor(True)
        self.value_and_grad = ops.value_and_grad(self.scaled_loss, None, parameters, has_aux=True)

    def scaled_loss(self, *inputs):
        """`(what is differentiated, loss)`."""
        loss = self.network(*inputs)
        scaled = loss
        if self.share != 1:
            scaled = loss * self.share
        if self.scaler is not None:
            scaled = self.scaler.scale(scaled)
        return scaled, loss

    def construct(self, *inputs):
        (_, loss), gradients = self.value_and_grad(*inputs)
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        if self.scaler is None:
            return loss, gradients, self.finite
        return loss, self.scaler.unscale(gradients), amp.all_finite(gradients)


class RankGradients(nn.Cell):
    """The rank term and its gradient, times lambda: `(rank_loss, ranks, gradients)`; float32 at any precision.

    With `reduce` the gradient is the mean over the ranks: computed from the same weights, it is the same on all of them
    up to the rounding of their processors, which must not part their masks.

    Inputs:
        *after: Tensors to be computed first, so that collectives keep one order on all ranks.
    """

    def __init__(self, rank_loss, rank_weight, weights, reduce=None):
        super().__init__(auto_prefix=False)
        self.rank_loss = rank_loss
        self.rank_weight = rank_weight
        self.weights = ms.ParameterTuple(weights)
        self.reduce = reduce
        self.value_and_grad = ops.value_and_grad(self.weighted, None, self.weights, has_aux=True)

    def weighted(self):
        """`(lambda * L_rank, L_rank, k)`."""
        loss, ranks = self.rank_loss.loss_and_ranks(self.weights)
        return self.rank_weight * loss, loss, ranks

    def construct(self, *after):
        (_, loss, ranks), gradients = self.value_and_grad()
        if self.reduce is not None:
            gradients = self.reduce((ops.depend(gradients[0], after), *gradients[1:]))
        return loss, ranks, gradients


class ApplyGradients(nn.Cell):
    """An optimizer step on masked gradients.

    A weight that is zero, has no gradient and no optimizer state stays exactly zero under every optimizer offered
    here, weight decay included: nothing needs to be masked after the step.

    Args:
        optimizer: a `mindspore.nn.Optimizer`.
        layers: the MaskedLayers.
        clip_norm: largest global norm of the masked gradient, or None.
        scaler: a loss scaler to adjust, or None. With it, a step whose gradient is not finite is left out; the
            learning-rate schedule goes on.
        soft_threshold: the SoftThreshold whose latent weights the optimizer steps on, or None.
        average: a WeightAverage to update, or None.
    """

    def __init__(self, optimizer, layers, clip_norm=None, scaler=None, soft_threshold=None, average=None):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.scaler = scaler
        self.soft_threshold = soft_threshold
        self.average = average
        index = {id(layer.weight): i for i, layer in enumerate(layers)}
        self.masks = ms.ParameterTuple([layer.mask for layer in layers])
        self.mask_of = tuple(index.get(id(parameter), -1) for parameter in optimizer.parameters)

    def construct(self, finite, *gradients):  # one by one: graph mode takes a tuple for a constant and compiles anew
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


class PlainStep(nn.Cell):
    """A training step between topology updates, as one graph: gradients, then optimizer."""

    def __init__(self, task, rank, rank_of, apply):
        super().__init__(auto_prefix=False)
        self.task = task
        self.rank = rank
        self.rank_of = rank_of
        self.apply_gradients = apply

    def construct(self, *inputs):
        loss, gradients, finite = self.task(*inputs)
        if self.rank is not None:
            _, _, rank_gradients = self.rank(gradients[0])
            gradients = add_rank(gradients, rank_gradients, self.rank_of)
        return ops.depend(loss, self.apply_gradients(finite, *gradients))


class SunkSteps(nn.Cell):
    """Plain steps one after the other in one graph, so that the device need not wait for the host.

    A loop of the graph: unrolled, the graph would grow with the number of steps.

    Args:
        plain_step: a Cell from a batch to a scalar float32 loss.
        steps: how many.

    Inputs:
        *inputs: the batches, stacked: each tensor `[steps, ...]`.

    Outputs:
        The losses, float32 `[steps]`.
    """

    def __init__(self, plain_step, steps):
        super().__init__(auto_prefix=False)
        self.plain_step = plain_step
        self.steps = steps
        self.index = ms.Tensor(np.arange(steps), ms.int32)
        self.losses = ms.Tensor(np.zeros(steps), ms.float32)

    def construct(self, *inputs):
        losses = self.losses
        step = ops.zeros((), ms.int32)
        while step < self.steps:
            batch = ()
            for stacked in inputs:
                batch += (ops.gather(stacked, step, 0),)
            loss = self.plain_step(*batch)
            losses = ops.select(self.index == step, loss.astype(ms.float32), losses)
            step = step + 1
        return losses


class AddGradients(nn.Cell):
    """The sums of two tuples of gradients, given one after the other."""

    def construct(self, *gradients):
        half = len(gradients) // 2
        total = ()
        for a, b in zip(gradients[:half], gradients[half:]):
            total += (a + b,)
        return total


class WeightAverage(nn.Cell):
    """An exponential moving average of a network's weights and statistics, exactly as sparse as the network.

    Masked weights are zero, so their averages decay to it; at a topology update they are set to zero at once
    (`MaskState`).

    Args:
        network: the masked network.
        decay: share of the average that is kept each step.
    """

    def __init__(self, network, decay):
        super().__init__(auto_prefix=False)
        self.fresh = 1 - decay
        self.sources = ms.ParameterTuple([p for p in network.get_parameters() if p.is_floating_point()])
        self.averages = ms.ParameterTuple([
            ms.Parameter(ms.Tensor(p.asnumpy().copy()), name=f"average.{p.name}", requires_grad=False)
            for p in self.sources])

    def construct(self):
        for average, source in zip(self.averages, self.sources):
            ops.assign_add(average, (source - average) * self.fresh)
        return True

    @contextmanager
    def in_place(self):
        """Within the block the network's weights are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self):
        for average, source in zip(self.averages, self.sources):
            held = ms.Tensor(source.asnumpy().copy())
            ops.assign(source, average)
            ops.assign(average, held)


class MaskState(nn.Cell):
    """Zeroes momentum, moments and any other per-weight state where the weight's mask is 0.

    Args:
        kept: pairs (state, the Parameter that it is kept of).
        layers: the MaskedLayers.
    """

    def __init__(self, kept, layers):
        super().__init__(auto_prefix=False)
        masks = {layer.weight.name: layer.mask for layer in layers}
        pairs = [(state, masks[owner.name]) for state, owner in kept if owner.name in masks]
        self.states = ms.ParameterTuple([state for state, _ in pairs])
        self.masks = ms.ParameterTuple([mask for _, mask in pairs])

    def construct(self):
        for state, mask in zip(self.states, self.masks):
            ops.assign(state, masked_gradient(mask, state))
        return True


class ResetState(nn.Cell):
    """Zeroes states: momentum, moments and any other that an optimizer keeps of its parameters."""

    def __init__(self, states):
        super().__init__(auto_prefix=False)
        self.states = ms.ParameterTuple(states)

    def construct(self):
        for state in self.states:
            ops.assign(state, ops.zeros_like(state))
        return True


def optimizer_state(optimizer):
    """Pairs (state, the Parameter that it is kept of) of an optimizer's momentum, moments and the like."""
    parameters = {id(parameter) for parameter in optimizer.parameters}
    pairs = [(state, _owner(state, optimizer.parameters)) for state in optimizer.get_parameters()
             if id(state) not in parameters]
    return [(state, owner) for state, owner in pairs if owner is not None]


def _owner(state, parameters):
    # "moments.head.fc.weight" is the state of "head.fc.weight", also where there is an "fc.weight".
    owners = [p for p in parameters if state.name.endswith("." + p.name) and state.shape == p.shape]
    return max(owners, key=lambda p: len(p.name), default=None)


class SparseTrainStep(nn.Cell):
    """Trains one step per call and redraws the masks when the calendar says so.

    On an update step the dense gradient of the objective `L = L_task + lambda * L_rank` is taken and the masks are
    redrawn; with `alpha > 0` the optimizer then rests, with `alpha = 0` (plain gradual pruning) it steps as usual, on
    the new masks. This is the order of the released implementation of arXiv 2311.17493.

    With a loss scaler, an update whose gradient is not finite is postponed to the next step that has a finite one.

    Args:
        network_with_loss: a Cell from the batch to a scalar task loss, its layers masked by `sparsify`.
        optimizer: a `mindspore.nn.Optimizer` of its trainable parameters.
        layers: the MaskedLayers to prune.
        calendar: `rpg_ms.pruning.UpdateCalendar`, or None to leave the topology alone. An update that can change
            nothing (no regrowth, and the density of the one before it) is left out. A network that is pruned already
            is pruned further, never denser as a whole, except by schedule "alternating" or for a target above its
            density; which of its layers keep how many is the allocation's choice.
        alpha: share of a layer's weights dropped and grown at first.
        grow: name in `rpg_ms.pruning.GROW_SCORES`.
        raise_rank: whether weights grow first where they raise the structural rank of a mask.
        seed: of random growth.
        allocation: name in `rpg_ms.pruning.ALLOCATIONS`.
        min_per_layer: fewest weights left in a layer.
        rank_loss: `rpg_ms.rank.RankLoss`, or None for no rank term.
        rank_weight: lambda.
        rank_every: "update" (the rank term steers regrowth only) or "step" (it also drives the weights).
        rank_dense: whether dense layers take part in the rank term besides convolutions.
        grad_accumulation: regrowth ranks the mean of the dense gradients of so many steps, the update's the last.
        micro_batches: pieces a batch is computed in; the gradient is their mean.
        clip_norm: largest global norm of the masked gradient, or None.
        scaler: a `mindspore.amp` loss scaler for mixed precision, or None.
        soft_threshold: a SoftThreshold of the layers (ST-3), or None; the optimizer's parameters are its `trained`.
        average: a WeightAverage to keep, or None.
        reduce: a Cell from the gradients to their mean over the ranks, or None with one rank.
        sink_size: plain steps that `sink` runs in one graph.

    Inputs:
        *inputs: one batch.

    Outputs:
        The task loss, a scalar Tensor. `step_number` counts steps from 1; `record` holds the TopologyRecord of the
        step just made, None if it was a plain one.

    Raises:
        FloatingPointError: at an update step without a scaler, a weight or a gradient is not finite.
    """

    def __init__(self, network_with_loss, optimizer, layers, calendar=None, alpha=0.0, allocation="global",
                 min_per_layer=1, grow="gradient", raise_rank=False, seed=0, rank_loss=None, rank_weight=0.0,
                 rank_every="update", rank_dense=False, grad_accumulation=1, micro_batches=1, clip_norm=None,
                 scaler=None, soft_threshold=None, average=None, reduce=None, sink_size=1):
        super().__init__(auto_prefix=False)
        self.optimizer = optimizer
        self.layers = layers
        self.calendar = calendar
        self.alpha = alpha
        self.allocation = allocation
        self.min_per_layer = min_per_layer
        self.grow = grow
        self.raise_rank = raise_rank
        self.seed = seed
        self.grad_accumulation = grad_accumulation
        self.micro_batches = micro_batches
        self.scaler = scaler
        self.soft_threshold = soft_threshold
        self.average = average
        self.step_number = 0
        self.record = None
        self.pending = False  # a due update waits for a finite gradient
        self.window = None  # sum of the dense gradients since the window before the next update began
        self.window_steps = 0

        parameters = optimizer.parameters
        if soft_threshold is not None:
            parameters = ms.ParameterTuple(soft_threshold.differentiated(parameters))
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self.gradient_of = [index[id(layer.weight)] for layer in layers]
        rank_layers = [layer for layer in layers if rank_dense or layer.kind == "conv"]
        self.rank, self.rank_of = None, (-1,) * len(index)
        self.rank_wanted = rank_loss is not None and rank_weight > 0
        if self.rank_wanted and rank_layers:
            self.rank = RankGradients(rank_loss, rank_weight, [layer.weight for layer in rank_layers], reduce)
            position = {id(layer.weight): i for i, layer in enumerate(rank_layers)}
            self.rank_of = tuple(position.get(id(parameter), -1) for parameter in parameters)
        self.rank_drives = self.rank is not None and rank_every == "step"
        self.task = TaskGradients(network_with_loss, parameters, scaler, 1 / micro_batches, reduce)
        self.apply_gradients = ApplyGradients(optimizer, layers, clip_norm, scaler, soft_threshold, average)
        self.plain_step = PlainStep(self.task, self.rank if self.rank_drives else None, self.rank_of,
                                    self.apply_gradients)
        self.sink_size = sink_size
        self.sunk_steps = SunkSteps(self.plain_step, sink_size)
        self.add = AddGradients()
        kept = optimizer_state(optimizer)
        self.reset_state = ResetState([state for state, _ in kept])
        if average is not None:
            kept += zip(average.averages, average.sources)
        self.mask_state = MaskState(kept, layers)

    def __call__(self, *inputs):
        step = self.step_number + 1
        self.record = None
        if self.pending or self._is_due(step):
            loss = self._update_step(step, inputs)
        elif self._is_open(step):
            loss = self._open_step(step, inputs)
        else:
            loss = self.plain_step(*inputs)
        self.step_number = step
        return loss

    @property
    def rank_is_idle(self):
        """Whether there is a rank term that changes nothing: it acts on updates only, and none takes up its gradient."""
        return self.rank is not None and not self.rank_drives and (
            self.calendar is None or (self.alpha > 0 and self.grow != "gradient"))

    @property
    def rank_is_empty(self):
        """Whether a rank term was asked for, and no layer takes part in it."""
        return self.rank is None and self.rank_wanted

    def will_reach_target(self):
        """Whether an update that is still to come leaves the calendar's target density."""
        return self.pending or (self.calendar is not None and any(
            self._is_due(step) and self.calendar.density_at(step) == self.calendar.density
            for step in self.calendar.steps() if step > self.step_number))

    def can_sink(self):
        """Whether the next `sink_size` steps can run in one graph: the host has no part in any of them."""
        steps = range(self.step_number + 1, self.step_number + 1 + self.sink_size)
        return self.sink_size > 1 and not self.pending and not any(
            self._is_due(step) or self._is_open(step) for step in steps)

    def sink(self, batches):
        """Train the next `sink_size` steps, on as many batches, in one graph: as that many calls, one dispatch.

        Args:
            batches: list of tuples of Tensors, `sink_size` of them, all of the same shapes.

        Returns:
            The losses, a float32 Tensor `[sink_size]`.

        Raises:
            ValueError: the number of batches, or a step that `can_sink` says cannot be one of them.
        """
        if len(batches) != self.sink_size or not self.can_sink():
            raise ValueError(f"{len(batches)} batches after step {self.step_number} cannot be sunk; "
                             f"sink_size is {self.sink_size}")
        self.record = None
        losses = self.sunk_steps(*(ms.Tensor(np.stack([tensor.asnumpy() for tensor in tensors]))
                                   for tensors in zip(*batches)))
        self.step_number += self.sink_size
        return losses

    def _is_due(self, step):
        if self.calendar is None or not self.calendar.is_update(step):
            return False
        regrows = self.alpha > 0 and self.calendar.regrows(step)
        return regrows or self.soft_threshold is not None or self.calendar.changes_density(step)

    def _is_open(self, step):
        """Whether the host sees the gradients of this step."""
        return self.micro_batches > 1 or self._in_window(step)

    def finish(self):
        """Make an update that is still waiting for a finite gradient, without regrowth: the target is met."""
        self.record = None
        if self.pending:
            self._redraw(self.step_number, None, 0.0, None)

    def _task_gradients(self, inputs):
        """`(loss, gradients, finite)` of a whole batch, computed in its pieces."""
        if self.micro_batches == 1:
            return self.task(*inputs)
        size = inputs[0].shape[0] // self.micro_batches
        loss, gradients, finite = None, None, None
        for i in range(self.micro_batches):
            piece = [tensor[i * size:(i + 1) * size] for tensor in inputs]
            piece_loss, piece_gradients, piece_finite = self.task(*piece)
            piece_loss = piece_loss / self.micro_batches
            loss = piece_loss if i == 0 else loss + piece_loss
            gradients = piece_gradients if i == 0 else self.add(*gradients, *piece_gradients)
            finite = piece_finite if i == 0 else ops.logical_and(finite, piece_finite)
        return loss, gradients, finite

    def _open_step(self, step, inputs):
        """A plain step in pieces that the host sees: for micro-batches, and to average the dense gradient."""
        loss, gradients, finite = self._task_gradients(inputs)
        in_window = self._in_window(step) and bool(finite.asnumpy())
        driven = gradients
        if self.rank is not None and (self.rank_drives or in_window):
            _, _, rank_gradients = self.rank()
            gradients = add_rank(gradients, rank_gradients, self.rank_of)
            driven = gradients if self.rank_drives else driven
        if in_window:
            dense = [gradients[i].asnumpy() for i in self.gradient_of]
            self.window = [a + b for a, b in zip(self.window, dense)] if self.window else [d.copy() for d in dense]
            self.window_steps += 1
        self.apply_gradients(finite, *driven)
        return loss

    def _in_window(self, step):
        """Whether this step's dense gradient counts for the next update."""
        if self.grad_accumulation == 1 or self.calendar is None or self.alpha == 0 or self.grow != "gradient":
            return False
        update_every = self.calendar.update_every
        update = -(-step // update_every) * update_every
        return self.calendar.regrows(update) and update - step < self.grad_accumulation

    def _update_step(self, step, inputs):
        loss, gradients, finite = self._task_gradients(inputs)
        if not finite.asnumpy():
            self.pending = True
            self.apply_gradients(finite, *gradients)  # lowers the loss scale
            return loss
        rank = None
        if self.rank is not None:
            *rank, rank_gradients = self.rank()
            gradients = add_rank(gradients, rank_gradients, self.rank_of)
        fraction = self.calendar.drop_fraction(step, self.alpha)
        dense = None
        if fraction > 0 and self.grow == "random":
            dense = random_scores([layer.mask for layer in self.layers], [self.seed, step])
        elif fraction > 0:
            dense = [gradients[i].asnumpy() for i in self.gradient_of]
            if self.window_steps:
                dense = [(a + b) / (self.window_steps + 1) for a, b in zip(self.window, dense)]
        self._redraw(step, dense, fraction, rank)
        if self.alpha > 0:
            # The optimizer rests, its learning-rate schedule does not.
            ops.assign_add(self.optimizer.global_step, ms.Tensor([1], ms.int32))
        else:
            self.apply_gradients(finite, *gradients)
        return loss

    def _redraw(self, step, dense, fraction, rank):
        """Decide the new masks on the host and put them in place."""
        parameters = self.soft_threshold.latents if self.soft_threshold else [layer.weight for layer in self.layers]
        weights = [parameter.asnumpy() for parameter in parameters]
        for layer, weight, gradient in zip(self.layers, weights, dense or weights):
            if not (np.isfinite(weight).all() and np.isfinite(gradient).all()):
                raise FloatingPointError(f"a weight or gradient of {layer.name} is not finite")
        old_masks = [layer.mask.asnumpy().copy() for layer in self.layers]
        total, kept = sum(mask.size for mask in old_masks), sum(int(np.count_nonzero(mask)) for mask in old_masks)
        density = self.calendar.density_at(step)
        if self.calendar.schedule != "alternating":  # without dense phases a network that is pruned is not opened
            density = min(density, max(kept / total, self.calendar.density))
        counts = ALLOCATIONS[self.allocation](weights, density, self.min_per_layer)
        updated = update_topology(weights, dense, counts, fraction, self.raise_rank)
        if self.soft_threshold:
            self.soft_threshold.set_masks([mask for _, mask in updated], self.allocation == "global")
        else:
            for layer, (weight, mask) in zip(self.layers, updated):
                set_topology(layer, weight, mask)
        grown = sum(int(np.count_nonzero(mask & ~old)) for (_, mask), old in zip(updated, old_masks))
        nonzero = int(sum(counts))
        if nonzero > kept:
            self.reset_state()  # a dense phase begins: as published for AC/DC
        self.mask_state()
        self.pending, self.window, self.window_steps = False, None, 0
        self.record = TopologyRecord(
            step=step, density=nonzero / total, nonzero=nonzero,
            drop_fraction=fraction, grown=grown, layer_nonzero=[int(count) for count in counts],
            rank_loss=float(rank[0].asnumpy()) if rank else 0.0, ranks=rank[1].asnumpy().tolist() if rank else [])


def add_rank(gradients, rank_gradients, rank_of):
    """The gradients plus those of the rank term, which belong to the positions `rank_of[i] >= 0`."""
    total = ()
    for gradient, i in zip(gradients, rank_of):
        if i >= 0:
            gradient = gradient + rank_gradients[i]
        total += (gradient,)
    return total
