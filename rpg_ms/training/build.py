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
from rpg_ms.training.loop import hooks_of, sinks
from rpg_ms.weights import load_weights

if TYPE_CHECKING:
    from rpg_ms.config import Config, OptimizerConfig, RankConfig
    from rpg_ms.tasks.task import Task
    from rpg_ms.training.distributed import World

MOST_STEPS = 10_000_000  # whose rates, which MindSpore's optimizers want in a list, take 5 s and 1 GB


def build_network(
    config: Config, task: Task, pretrained: Optional[str] = None, mixed_precision: bool = True
) -> tuple[nn.Cell, Sparsified]:
    """The network of a configuration with its masks, all ones unless `pretrained`, a file of weights, is sparse.

    With `mixed_precision` it computes at `train.amp_level`; its weights are float32 either way.

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
            keys = (model.pretrained_allow, model.pretrained_entry, model.pretrained_prefix)
            load_weights(pretrained, network, sparsified, *keys, "model.pretrained_{}")
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
    """The learning rate of every step; UserError for a warm-up as long as training, or more than `MOST_STEPS` steps."""
    decay, peak = config.schedule, config.optimizer.lr
    total = config.train.epochs * steps_per_epoch
    if total > MOST_STEPS:
        raise UserError(
            f"train.epochs: {config.train.epochs} epochs of {steps_per_epoch} steps are {total} steps, "
            f"more than {MOST_STEPS}"
        )
    warmup = round(decay.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        raise UserError(
            f"schedule.warmup_epochs: {decay.warmup_epochs} is not less than train.epochs: {config.train.epochs}"
        )
    # mindcv counts in epochs; with one step to an "epoch" its learning-rate schedules change at every step.
    rates = [peak * (step + 1) / (warmup + 1) for step in range(warmup)]
    left = total - warmup
    length = {"steps_per_epoch": 1, "epochs": left}
    if decay.name == "cosine":
        return rates + cosine_decay_refined_lr(left, decay.end_lr, eta_max=peak, **length)
    if decay.name == "linear":
        return rates + linear_refined_lr(1.0, decay.end_lr / peak, left, lr=peak, **length)
    milestones = [round(fraction * total) - warmup for fraction in decay.milestones]
    return rates + multi_step_lr(milestones if decay.name == "step" else [], decay.gamma, lr=peak, **length)


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
    """`(SparseTrainStep, learning rates)` of a configuration; the masks that its method starts from are put in place.

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
    term = build_rank_term(config.rank, layers, device, reduce)
    average = WeightAverage(network, train.ema_decay) if train.ema_decay is not None else None
    # 2^16, halved on overflow and doubled after 2,000 steps without: the customary numbers.
    scaler = None if train.amp_level == "O0" else amp.DynamicLossScaler(2**16, 2, 2000)
    size = sink_size(config, device, task.steps_per_epoch)
    options = StepOptions(train.micro_batches, train.clip_norm, scaler, reduce, size)
    loss = task.with_loss(network)
    step = SparseTrainStep(loss, optimizer, layers, pruner, term, soft_threshold, average, options)
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
    """The RankTerm of a `RankConfig`, or None: lambda or the share is 0, or no layer takes part."""
    members = [layer for layer in layers if rank.include_dense or layer.kind == "conv"]
    weight = rank.lambda_ if rank.share is None else float(rank.share > 0)  # a share is brought to unit norm anyway
    if weight == 0 or not members:
        return None
    backend = rank_backend(rank.backend, device)
    return RankTerm(members, weight, rank.delta, backend, rank.every, reduce, rank.share)


def idle_rank_term(config: Config, step: SparseTrainStep) -> Optional[str]:
    """Why the rank term that a configuration asks for changes nothing, in one line, or None."""
    rank = config.rank
    name, value = ("lambda", rank.lambda_) if rank.share is None else ("share", rank.share)
    given = f"rank.{name}: {value:g} changes nothing, as"
    if value > 0 and step.rank_term is None:
        return (
            f"{given} {config.model.name} has no convolution to prune; rank.include_dense=true takes dense layers into "
            "the term"
        )
    # A share acts on regrowth alone.
    takes = step.pruner.takes_gradient if rank.share is None else step.pruner.grows_by_gradient
    if step.rank_term is not None and not step.rank_term.drives_weights and not takes:
        return (
            f"{given} pruning.method={config.pruning.method} has no update that takes up its gradient; "
            "rank.every=step lets the term drive the weights"
        )
    return None


def compile_step(config: Config, task: Task, network: nn.Cell, step: SparseTrainStep) -> None:
    """Compile in graph mode the training step, without running it, the evaluation and a teacher; UserError where that
    fails.

    It is the step between topology updates; the graphs at updates are pieces of it. The network is left to train.
    """
    arrays = list(task.zero_batch(config.train.batch_size // config.train.micro_batches).values())
    cell = step.plain_step if step.in_pieces is None else step.task
    if sinks(step, hooks_of(config, task)):
        cell, arrays = step.sunk_steps, [np.stack([array] * step.sink_size) for array in arrays]
    compile_graph(cell, arrays, network, config.model.name, "training step")
    task.compile_evaluation(network)
    if task.teacher:
        task.teacher.compile(task.zero_batch(config.train.batch_size)["image"])
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
    """What "auto" stands for: `gram` on CPU, `matmul` elsewhere. A UserError refuses `gram` elsewhere."""
    if backend == "auto":
        return "gram" if device == "CPU" else "matmul"
    if backend == "gram" and device != "CPU":
        raise UserError(f"rank.backend: gram runs on CPU only, not on {device}; use matmul or svd")
    return backend
