"""From the configuration to the objects of a training run."""
from __future__ import annotations

import atexit
import dataclasses
import os
import tempfile

from mindcv.optim import create_optimizer
from mindcv.scheduler.dynamic_lr import cosine_decay_refined_lr, linear_refined_lr, multi_step_lr
from mindspore import amp

from rpg_ms.cells import SoftThreshold, SparseTrainStep, WeightAverage, sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.pruning.allocation import ALLOCATIONS
from rpg_ms.pruning.calendar import UpdateCalendar
from rpg_ms.pruning.methods import METHODS
from rpg_ms.pruning.topology import start_masks
from rpg_ms.rank import RankLoss
from rpg_ms.weights import load_weights


def build_network(config, task, pretrained=None, mixed_precision=True):
    """The network of a configuration with its masks: `(network, Sparsified)`.

    Masks are all ones, unless `pretrained`, a file of weights to start from, holds a pruned network.

    Args:
        mixed_precision: whether it computes at `train.amp_level`; its weights are float32 either way.

    Raises:
        UserError: an unknown network, exclusions that match nothing, or weights that do not fit.
    """
    model, (channels, size, _) = config.model, task.input_shape
    network = create_model(model.name, task.classes, channels, size, model.width, model.pool_padding)
    try:
        found = sparsify(network, config.pruning.exclude)
    except ValueError as error:
        raise UserError(f"pruning.exclude: {error}") from None
    if pretrained is not None:
        try:
            load_weights(pretrained, network, found, model.pretrained_allow, model.pretrained_entry,
                         "model.pretrained_allow")
        except UserError as error:
            raise UserError(f"model.pretrained: {error}") from None
    if mixed_precision and config.train.amp_level != "O0":
        network = _mixed_precision(network, config.train.amp_level)
    return network, found


def _mixed_precision(network, level):
    """The network at an amp level.

    At O1 MindSpore writes its source anew into the current folder, and reads that when it compiles: it gets a
    folder which is there until the process ends.
    """
    before = os.getcwd()
    folder = tempfile.TemporaryDirectory(prefix="rpg_ms-")
    atexit.register(folder.cleanup)
    os.chdir(folder.name)
    try:
        return amp.auto_mixed_precision(network, level)
    finally:
        os.chdir(before)


def learning_rates(config, steps_per_epoch):
    """The learning rate of every step: a list of floats, one a step."""
    schedule, peak = config.schedule, config.optimizer.lr
    total = config.train.epochs * steps_per_epoch
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        raise UserError(f"schedule.warmup_epochs: {schedule.warmup_epochs} is not less than train.epochs: "
                        f"{config.train.epochs}")
    # mindcv counts in epochs; with one step to an "epoch" its schedules change at every step.
    rates = [peak * (step + 1) / (warmup + 1) for step in range(warmup)]
    rest = {"lr": peak, "steps_per_epoch": 1, "epochs": total - warmup}
    if schedule.name == "cosine":
        rest.pop("lr")
        return rates + cosine_decay_refined_lr(total - warmup, schedule.end_lr, eta_max=peak, **rest)
    if schedule.name == "linear":
        return rates + linear_refined_lr(1.0, schedule.end_lr / peak, total - warmup, **rest)
    milestones = [round(fraction * total) - warmup for fraction in schedule.milestones]
    return rates + multi_step_lr(milestones if schedule.name == "step" else [], schedule.gamma, **rest)


def build_train_step(config, task, network, layers, device, ranks):
    """The train-one-step cell of a configuration, with its optimizer: `(SparseTrainStep, learning rates)`.

    Puts the masks that the method starts from in place.

    Raises:
        UserError: a calendar that cannot reach the target density, or a floor per layer that the target cannot hold.
    """
    pruning, rank, method = config.pruning, config.rank, METHODS[config.pruning.method]
    rates = learning_rates(config, task.steps_per_epoch)
    if method.prunes:  # here, so that the floor per layer fits into the target and not only into today's density
        try:
            weights = [layer.weight.asnumpy() for layer in layers]
            counts = ALLOCATIONS[pruning.allocation](weights, pruning.density, pruning.min_per_layer)
        except ValueError as error:
            raise UserError(f"pruning.density: {error}") from None
        if pruning.start != "dense":
            for layer, weight, mask in zip(layers, weights, start_masks(weights, counts, pruning.start, config.seed)):
                set_topology(layer, weight, mask)
    parameters, soft_threshold = network.trainable_params(), None
    if method.soft_threshold:
        soft_threshold = SoftThreshold(layers)
        parameters = soft_threshold.trained(parameters)
    optimizer = create_optimizer(
        parameters, "momentum" if config.optimizer.name == "sgd" else config.optimizer.name,
        lr=rates, weight_decay=config.optimizer.weight_decay, momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
        weight_decay_filter="disable" if config.optimizer.decay_norm_and_bias else "norm_and_bias")
    calendar = None
    if dataclasses.replace(method, start=pruning.start, alpha=pruning.alpha, schedule=pruning.schedule).updates:
        try:
            calendar = UpdateCalendar(
                total_steps=len(rates), update_every=pruning.update_every or task.steps_per_epoch,
                prune_until=pruning.prune_until, freeze_after=pruning.freeze_after, density=pruning.density,
                schedule=pruning.schedule, warmup_updates=pruning.warmup_updates, drop_decay=method.drop_decay)
        except ValueError as error:
            raise UserError(str(error)) from None
    train = config.train
    if train.batch_size % train.micro_batches:
        raise UserError(f"train.micro_batches: {train.micro_batches} does not divide train.batch_size: {train.batch_size}")
    step = SparseTrainStep(
        task.with_loss(network), optimizer, layers, calendar, pruning.alpha, pruning.allocation or "global",
        pruning.min_per_layer, method.grow, pruning.raise_rank, config.seed,
        rank_loss=RankLoss(rank.delta, rank_backend(rank.backend, device)) if rank.lambda_ > 0 else None,
        rank_weight=rank.lambda_, rank_every=rank.every, rank_dense=rank.include_dense,
        grad_accumulation=pruning.grad_accumulation, micro_batches=train.micro_batches, clip_norm=train.clip_norm,
        # 2^16, halved on overflow and doubled after 2,000 steps without: the customary numbers.
        scaler=None if train.amp_level == "O0" else amp.DynamicLossScaler(2 ** 16, 2, 2000),
        soft_threshold=soft_threshold,
        average=WeightAverage(network, train.ema_decay) if train.ema_decay is not None else None,
        reduce=ranks.mean_of_gradients(), sink_size=sink_size(config, device))
    return step.set_train(), rates


def sink_size(config, device):
    """How many plain steps run in one graph: `train.sink_size`, or by the device; 1 in PyNative mode."""
    if config.mode != "graph":
        return 1
    return config.train.sink_size or (config.train.log_every if device == "Ascend" else 1)


def rank_backend(backend, device):
    """The rank backend that "auto" stands for: `gram` on CPU, `matmul` elsewhere.

    Raises:
        UserError: `gram`, which works on the host, on another device than the CPU.
    """
    if backend == "auto":
        return "gram" if device == "CPU" else "matmul"
    if backend == "gram" and device != "CPU":
        raise UserError(f"rank.backend: gram runs on CPU only, not on {device}; use matmul or svd")
    return backend
