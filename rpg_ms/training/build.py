"""From the configuration to the objects of a training run."""
from __future__ import annotations

import atexit
import dataclasses
import tempfile

import mindspore as ms
import numpy as np
from mindcv.optim.adamw import AdamW
from mindcv.scheduler.dynamic_lr import cosine_decay_refined_lr, linear_refined_lr, multi_step_lr
from mindspore import amp, nn

from rpg_ms.cells import SoftThreshold, SparseTrainStep, WeightAverage, sparsify
from rpg_ms.cells.masked import NothingMatches, set_topology
from rpg_ms.errors import UserError
from rpg_ms.files import working_folder
from rpg_ms.models import create_model
from rpg_ms.models.compiling import compile_graph, reason
from rpg_ms.models.flops import try_image
from rpg_ms.pruning.allocation import ALLOCATIONS
from rpg_ms.pruning.calendar import UpdateCalendar
from rpg_ms.pruning.methods import METHODS
from rpg_ms.pruning.topology import start_masks
from rpg_ms.rank import RankLoss
from rpg_ms.weights import load_weights

MOST_STEPS = 10_000_000  # whose rates, which MindSpore's optimizers want in a list, take 5 s and 1 GB


def build_network(config, task, pretrained=None, mixed_precision=True):
    """The network of a configuration with its masks: `(network, Sparsified)`.

    Masks are all ones, unless `pretrained`, a file of weights to start from, holds a pruned network.

    Args:
        mixed_precision: whether it computes at `train.amp_level`; its weights are float32 either way.

    Raises:
        UserError: an unknown network, one that does not fit the task's images and classes or has nothing to prune,
            exclusions that match nothing, or weights that do not fit.
    """
    model, (channels, size, _) = config.model, task.input_shape
    network = create_model(model.name, task.classes, channels, size, model.width, model.pool_padding)
    _check_fit(network, config, task)
    try:
        found = sparsify(network, config.pruning.exclude)
    except NothingMatches as error:
        raise UserError(f"pruning.exclude: {error}") from None
    except ValueError as error:
        raise UserError(f"model.name: {model.name}: {error}") from None
    if pretrained is not None:
        try:
            load_weights(pretrained, network, found, model.pretrained_allow, model.pretrained_entry,
                         model.pretrained_prefix, "model.pretrained_{}")
        except UserError as error:
            raise UserError(f"model.pretrained: {error}") from None
    if mixed_precision and config.train.amp_level != "O0":
        network = _mixed_precision(network, config.train.amp_level)
    return network, found


def _check_fit(network, config, task):
    """Try one image, all zero: its size or the number of classes may not be what the network is made for."""
    name, data = config.model.name, config.data.name
    try:
        returned = try_image(network, task.input_shape)
    except Exception as error:  # of any kind, from anybody's network
        size = " x ".join(str(n) for n in task.input_shape)
        raise UserError(f"model.name: {name} cannot take images of {size} (data.name: {data}): "
                        f"{reason(error)[:300]}") from None
    shape = tuple(returned.shape) if isinstance(returned, ms.Tensor) else type(returned).__name__
    if shape != (1, task.classes):
        raise UserError(f"model.name: {name} returns {shape} for one image of {data}, not (1, {task.classes}), a number "
                        "for each class")


def _mixed_precision(network, level):
    """The network at an amp level.

    At O1 MindSpore writes its source anew into the current folder, and reads that when it compiles: it gets a
    folder which is there until the process ends.
    """
    folder = tempfile.TemporaryDirectory(prefix="rpg_ms-")
    atexit.register(folder.cleanup)
    with working_folder(folder.name):
        return amp.auto_mixed_precision(network, level)


def learning_rates(config, steps_per_epoch):
    """The learning rate of every step: a list of floats, one a step.

    Raises:
        UserError: a warm-up that is no shorter than training, or more than `MOST_STEPS` steps.
    """
    schedule, peak = config.schedule, config.optimizer.lr
    total = config.train.epochs * steps_per_epoch
    if total > MOST_STEPS:
        raise UserError(f"train.epochs: {config.train.epochs} epochs of {steps_per_epoch} steps are {total} steps, "
                        f"more than {MOST_STEPS}")
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


def build_optimizer(config, parameters, rates):
    """The optimizer of an `OptimizerConfig` for the parameters, in their order, with the learning rate of every step.

    Unless `decay_norm_and_bias`, only what is called `weight` and has two or more dimensions decays: no scale of a norm
    (`mint` calls it `weight`, `nn` gamma), no bias or table of biases, no token or position embedding.
    """
    decays = {parameter.name: config.decay_norm_and_bias or (
        parameter.ndim > 1 and parameter.name.rpartition(".")[2] == "weight") for parameter in parameters}
    groups = [([p for p in parameters if decays[p.name]], config.weight_decay),
              ([p for p in parameters if not decays[p.name]], 0.0)]
    groups = [{"params": some, "weight_decay": decay} for some, decay in groups if some]
    groups.append({"order_params": parameters})
    if config.name == "sgd":
        return nn.Momentum(groups, rates, config.momentum, use_nesterov=config.nesterov)
    return {"adam": nn.Adam, "adamw": AdamW}[config.name](groups, rates)


def build_train_step(config, task, network, layers, device, ranks):
    """The train-one-step cell of a configuration, with its optimizer: `(SparseTrainStep, learning rates)`.

    Puts the masks that the method starts from in place.

    Raises:
        UserError: a calendar that cannot reach the target density, a floor per layer that the target cannot hold, or a
            network that is pruned to less than the target already.
    """
    pruning, rank, method = config.pruning, config.rank, METHODS[config.pruning.method]
    rates = learning_rates(config, task.steps_per_epoch)
    if method.prunes:  # here, so that the floor per layer fits into the target and not only into today's density
        try:
            weights = [layer.weight.asnumpy() for layer in layers]
            counts = ALLOCATIONS[pruning.allocation](weights, pruning.density, pruning.min_per_layer)
        except ValueError as error:
            raise UserError(f"pruning.density: {error}") from None
        kept = sum(int(np.count_nonzero(layer.mask.asnumpy())) for layer in layers)
        if kept < sum(counts) and pruning.start != "random" and pruning.schedule != "alternating":
            raise UserError(f"pruning.density: {pruning.density} is more than model.pretrained has, a network pruned to "
                            f"{kept} of {sum(weight.size for weight in weights)} weights; only acdc and methods that "
                            "begin with random masks open one")
        if pruning.start != "dense":
            for layer, weight, mask in zip(layers, weights, start_masks(weights, counts, pruning.start, config.seed)):
                set_topology(layer, weight, mask)
    parameters, soft_threshold = network.trainable_params(), None
    if method.soft_threshold:
        soft_threshold = SoftThreshold(layers)
        parameters = soft_threshold.trained(parameters)
    optimizer = build_optimizer(config.optimizer, parameters, rates)
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
        reduce=ranks.mean_of_gradients(), sink_size=sink_size(config, device, task.steps_per_epoch))
    return step.set_train(), rates


def compile_step(config, task, network, step):
    """Compile in graph mode the training step, without running it, and the evaluation; the network is left to train.

    It is the step between topology updates; the graphs at updates are pieces of it.

    Raises:
        UserError: the network does not compile.
    """
    arrays = task.zero_batch(config.train.batch_size // config.train.micro_batches)
    cell = step.plain_step if config.train.micro_batches == 1 else step.task
    pauses = (config.train.log_every, task.steps_per_epoch, config.checkpoint.every_steps or step.sink_size)
    if step.can_sink() and step.sink_size <= min(pauses):
        cell, arrays = step.sunk_steps, [np.stack([array] * step.sink_size) for array in arrays]
    compile_graph(cell, arrays, network, config.model.name, "training step")
    task.compile_evaluation(network)
    step.set_train()


def sink_size(config, device, steps_per_epoch):
    """How many plain steps run in one graph: `train.sink_size`, or by the device; 1 in PyNative mode.

    No more than there are between two logged lines and in an epoch, which the host looks at.
    """
    if config.mode != "graph":
        return 1
    train = config.train
    return min(train.sink_size or (train.log_every if device == "Ascend" else 1), train.log_every, steps_per_epoch)


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
