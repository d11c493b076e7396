"""From the configuration to the objects of a training run."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import numpy as np
from mindcv.optim.adamw import AdamW
from mindcv.scheduler.dynamic_lr import cosine_decay_refined_lr, linear_refined_lr, multi_step_lr
from mindspore import Parameter, amp, nn

from rpg_ms.cells import (
    MaskedLayer,
    RankTerm,
    SoftThreshold,
    SparseTrainStep,
    Sparsified,
    StepOptions,
    WeightAverage,
    sparsify,
)
from rpg_ms.cells.masked import NothingMatches, set_topology
from rpg_ms.errors import UserError
from rpg_ms.files import working_folder
from rpg_ms.models.compiling import compile_graph
from rpg_ms.models.detection import MaskRCNN
from rpg_ms.pruning import Pruner
from rpg_ms.weights import load_weights

if TYPE_CHECKING:
    from rpg_ms.config import Config, OptimizerConfig, RankConfig
    from rpg_ms.tasks.task import Task
    from rpg_ms.training.distributed import World

MOST_STEPS = 10_000_000  # whose rates, which MindSpore's optimizers want in a list, take 5 s and 1 GB


def build_network(
    config: Config, task: Task, pretrained: Optional[str] = None, mixed_precision: bool = True
) -> tuple[nn.Cell, Sparsified]:
    """The network of a configuration with its masks: `(network, Sparsified)`.

    Masks are all ones, unless `pretrained`, a file of weights to start from, holds a pruned network.

    Args:
        mixed_precision: whether it computes at `train.amp_level`; its weights are float32 either way.

    Raises:
        UserError: an unknown network, one that does not fit the task's images and classes or has nothing to prune,
            exclusions that match nothing, or weights that do not fit.
    """
    model = config.model
    network = task.network()
    try:
        sparsified = sparsify(network, config.pruning.exclude or ())
    except NothingMatches as error:
        raise UserError(f"pruning.exclude: {error}") from None
    except ValueError as error:
        raise UserError(f"model.name: {model.name}: {error}") from None
    if pretrained is not None:
        try:
            load_weights(
                pretrained,
                network,
                sparsified,
                model.pretrained_allow,
                model.pretrained_entry,
                model.pretrained_prefix,
                "model.pretrained_{}",
            )
        except UserError as error:
            raise UserError(f"model.pretrained: {error}") from None
    if mixed_precision and config.train.amp_level != "O0":
        network = _mixed_precision(network, config.train.amp_level)
    return network, sparsified


def _mixed_precision(network: nn.Cell, level: str) -> nn.Cell:
    """The network at an amp level.

    At O1 MindSpore writes its source anew into the current folder, and reads that when it compiles: it gets a
    folder which is there until the process ends. What a detector does with boxes stays in float32.
    """
    folder = tempfile.TemporaryDirectory(prefix="rpg_ms-")
    atexit.register(folder.cleanup)
    with working_folder(folder.name):
        if not isinstance(network, MaskRCNN):
            return amp.auto_mixed_precision(network, level)
        network.convert_parts(lambda part: amp.auto_mixed_precision(part, level))
        return network


def learning_rates(config: Config, steps_per_epoch: int) -> list[float]:
    """The learning rate of every step: a list of floats, one a step.

    Raises:
        UserError: a warm-up that is no shorter than training, or more than `MOST_STEPS` steps.
    """
    schedule, peak = config.schedule, config.optimizer.lr
    total = config.train.epochs * steps_per_epoch
    if total > MOST_STEPS:
        raise UserError(
            f"train.epochs: {config.train.epochs} epochs of {steps_per_epoch} steps are {total} steps, "
            f"more than {MOST_STEPS}"
        )
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        raise UserError(
            f"schedule.warmup_epochs: {schedule.warmup_epochs} is not less than train.epochs: {config.train.epochs}"
        )
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


def build_optimizer(config: OptimizerConfig, parameters: Sequence[Parameter], rates: Sequence[float]) -> nn.Optimizer:
    """The optimizer of an `OptimizerConfig` for the parameters, in their order, with the learning rate of every step.

    Unless `decay_norm_and_bias`, only what is called `weight` and has two or more dimensions decays: no scale of a norm
    (`mint` calls it `weight`, `nn` gamma), no bias or table of biases, no token or position embedding.
    """
    decays = {
        parameter.name: config.decay_norm_and_bias
        or (parameter.ndim > 1 and parameter.name.rpartition(".")[2] == "weight")
        for parameter in parameters
    }
    groups = [
        ([p for p in parameters if decays[p.name]], config.weight_decay),
        ([p for p in parameters if not decays[p.name]], 0.0),
    ]
    groups = [{"params": some, "weight_decay": decay} for some, decay in groups if some]
    groups.append({"order_params": parameters})
    if config.name == "sgd":
        return nn.Momentum(groups, rates, config.momentum, use_nesterov=config.nesterov)
    return {"adam": nn.Adam, "adamw": AdamW}[config.name](groups, rates)


def build_train_step(
    config: Config, task: Task, network: nn.Cell, layers: Sequence[MaskedLayer], device: str, world: World
) -> tuple[SparseTrainStep, list[float]]:
    """The train-one-step cell of a configuration, with its optimizer: `(SparseTrainStep, learning rates)`.

    Puts the masks that the method starts from in place.

    Raises:
        UserError: a calendar that cannot reach the target density, a floor per layer that the target cannot hold, or a
            network that is pruned to less than the target already.
    """
    train = config.train
    if train.batch_size % train.micro_batches:
        raise UserError(
            f"train.micro_batches: {train.micro_batches} does not divide train.batch_size: {train.batch_size}"
        )
    rates = learning_rates(config, task.steps_per_epoch)
    pruner = build_pruner(config, layers, len(rates), task.steps_per_epoch)
    parameters, soft_threshold = network.trainable_params(), None
    if pruner.method.soft_threshold:
        soft_threshold = SoftThreshold(layers)
        parameters = soft_threshold.trained(parameters)
    optimizer = build_optimizer(config.optimizer, parameters, rates)
    reduce = world.mean_of_gradients()
    options = StepOptions(
        micro_batches=train.micro_batches,
        clip_norm=train.clip_norm,
        reduce=reduce,
        sink_size=sink_size(config, device, task.steps_per_epoch),
        # 2^16, halved on overflow and doubled after 2,000 steps without: the customary numbers.
        scaler=None if train.amp_level == "O0" else amp.DynamicLossScaler(2**16, 2, 2000),
    )
    average = WeightAverage(network, train.ema_decay) if train.ema_decay is not None else None
    step = SparseTrainStep(
        task.with_loss(network),
        optimizer,
        layers,
        pruner,
        build_rank_term(config.rank, layers, device, reduce),
        soft_threshold,
        average,
        options,
    )
    return step.set_train(), rates


def build_pruner(config: Config, layers: Sequence[MaskedLayer], total_steps: int, steps_per_epoch: int) -> Pruner:
    """The Pruner of a configuration; the masks that its method starts from are put in place."""
    pruning = config.pruning
    weights = [layer.weight.asnumpy() for layer in layers]
    try:
        pruner = Pruner(
            config.method,
            pruning.density,
            total_steps,
            steps_per_epoch=steps_per_epoch,
            min_per_layer=pruning.min_per_layer,
            warmup_updates=pruning.warmup_updates,
            seed=config.seed,
        )
        masks = pruner.start(weights, [layer.mask.asnumpy() for layer in layers])
    except ValueError as error:
        raise UserError(str(error)) from None
    for layer, weight, mask in zip(layers, weights, masks or ()):
        set_topology(layer, weight, mask)
    return pruner


def build_rank_term(
    rank: RankConfig, layers: Sequence[MaskedLayer], device: str, reduce: Optional[nn.Cell]
) -> Optional[RankTerm]:
    """The RankTerm of a `RankConfig`, or None: lambda is 0, or no layer takes part."""
    members = [layer for layer in layers if rank.include_dense or layer.kind == "conv"]
    if rank.lambda_ == 0 or not members:
        return None
    return RankTerm(members, rank.lambda_, rank.delta, rank_backend(rank.backend, device), rank.every, reduce)


def idle_rank_term(config: Config, step: SparseTrainStep) -> Optional[str]:
    """Why the rank term that a configuration asks for changes nothing, in one line, or None."""
    given = f"rank.lambda: {config.rank.lambda_:g} changes nothing, as"
    if config.rank.lambda_ > 0 and step.rank_term is None:
        return (
            f"{given} {config.model.name} has no convolution to prune; rank.include_dense=true takes dense layers into "
            "the term"
        )
    if step.rank_term is not None and not step.rank_term.drives_weights and not step.pruner.takes_gradient:
        return (
            f"{given} pruning.method={config.pruning.method} has no update that takes up its gradient; "
            "rank.every=step lets the term drive the weights"
        )
    return None


def compile_step(config: Config, task: Task, network: nn.Cell, step: SparseTrainStep) -> None:
    """Compile in graph mode the training step, without running it, and the evaluation; the network is left to train.

    It is the step between topology updates; the graphs at updates are pieces of it.

    Raises:
        UserError: the network does not compile.
    """
    arrays = list(task.zero_batch(config.train.batch_size // config.train.micro_batches).values())
    cell = step.plain_step if step.in_pieces is None else step.task
    pauses = (config.train.log_every, task.steps_per_epoch, config.checkpoint.every_steps or step.sink_size)
    if step.can_sink() and step.sink_size <= min(pauses):
        cell, arrays = step.sunk_steps, [np.stack([array] * step.sink_size) for array in arrays]
    compile_graph(cell, arrays, network, config.model.name, "training step")
    task.compile_evaluation(network)
    step.set_train()


def sink_size(config: Config, device: str, steps_per_epoch: int) -> int:
    """How many plain steps run in one graph: `train.sink_size`, or by the device; 1 in PyNative mode.

    No more than there are between two logged lines and in an epoch, which the host looks at.
    """
    if config.mode != "graph":
        return 1
    train = config.train
    return min(train.sink_size or (train.log_every if device == "Ascend" else 1), train.log_every, steps_per_epoch)


def rank_backend(backend: str, device: str) -> str:
    """The rank backend that "auto" stands for: `gram` on CPU, `matmul` elsewhere.

    Raises:
        UserError: `gram`, which works on the host, on another device than the CPU.
    """
    if backend == "auto":
        return "gram" if device == "CPU" else "matmul"
    if backend == "gram" and device != "CPU":
        raise UserError(f"rank.backend: gram runs on CPU only, not on {device}; use matmul or svd")
    return backend
