"""A training run under way: how far it has come, and what can be done between two of its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Optional

import mindspore as ms
import numpy as np
from tqdm import tqdm

from rpg_ms.errors import NotFinite, RunStopped, UserError
from rpg_ms.pruning.allocation import at_floor
from rpg_ms.tasks import figures_of
from rpg_ms.training.checkpoint import Checkpoints, split_of

if TYPE_CHECKING:
    from mindspore import nn

    from rpg_ms.cells import SparseTrainStep, Sparsified
    from rpg_ms.config import Config
    from rpg_ms.tasks.task import Task
    from rpg_ms.training.distributed import World
    from rpg_ms.training.run_folder import RunFolder


@dataclass(frozen=True)
class Progress:
    """How far a run has come, as its checkpoints say it."""

    model: str
    split: dict[str, Any]  # the keys that say which training images are held out
    total_steps: int
    world_size: int  # processes
    teacher: Optional[str] = None  # SHA-256 of the file of weights that a teacher has
    step: int = 0
    seconds: float = 0.0
    metrics_length: int = 0  # bytes of metrics.jsonl by then
    figures: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    best: Optional[float] = None  # of the figure that chooses the best checkpoint
    best_step: Optional[int] = None


@dataclass
class Session:
    """A run with everything that it is made of, from its newest checkpoint on if there is one.

    Args:
        network, sparsified: the masked network, and its `Sparsified`.
        step_cell: SparseTrainStep around it.
        rates: learning rate of every step.

    Raises:
        UserError: the checkpoints are damaged, or of another number of steps or processes, or no update is left that
            could reach the target density.
    """

    config: Config
    task: Task
    network: nn.Cell
    sparsified: Sparsified
    step_cell: SparseTrainStep
    rates: Sequence[float]
    folder: RunFolder
    world: World

    def __post_init__(self) -> None:
        self.total = len(self.rates)
        self.checkpoints = Checkpoints(self.folder.path, self.config.checkpoint.keep, self.world)
        self.bar: Optional[tqdm] = None
        self._losses: list[tuple[int, ms.Tensor]] = []  # not looked at yet: looking makes the host wait for the device
        self._loss: Optional[ms.Tensor] = None
        self._is_best = False
        self._at_floor: set[str] = set()  # names of layers
        self.progress = self._restore()
        self.folder.begin(self.progress.metrics_length)
        if self.step > 0:
            tqdm.write(f"going on after step {self.step} of {self.total}")
        else:
            taught = {"teacher": self.progress.teacher} if self.progress.teacher else {}
            self.folder.log("start", **self.sparsified.counts(), **taught)  # not all 1: it may be pruned already
        self._warn_of_floors([int(np.count_nonzero(layer.mask.asnumpy())) for layer in self.sparsified.layers])
        self._started = time.monotonic() - self.progress.seconds

    @property
    def step(self) -> int:
        """The number of steps made."""
        return self.step_cell.step_number

    # -------------------------------------------------------------------------------------- from a checkpoint

    def _restore(self) -> Progress:
        teacher = self.task.teacher.sha256() if self.task.teacher else None
        fresh = Progress(self.config.model.name, split_of(self.config), self.total, self.world.size, teacher)
        names = [one.name for one in fields(Progress)]
        state = self.checkpoints.restore(self.network, self.step_cell, tqdm.write, names)
        progress = fresh if state is None else Progress(**{name: state[name] for name in names})
        if not self.folder.allow_changes:
            self._check_same_run(progress, teacher)
        if self.step > self.total:
            raise UserError(f"{self.folder.path}: the run is at step {self.step}, beyond the last, {self.total}")
        if self.step > 0:
            self._check_target_in_reach()
        if self.folder.changes:  # a best checkpoint of another configuration, perhaps at another density
            progress = replace(progress, best=None, best_step=None)
        self.world.check_same(self.step, f"{self.folder.path}: the ranks go on after different steps")
        self.world.check_equal(self.network, self.step)
        return replace(progress, total_steps=self.total, world_size=self.world.size, split=fresh.split, teacher=teacher)

    def _check_same_run(self, earlier: Progress, teacher: Optional[str]) -> None:
        for what, was, now in (
            ("ranks", earlier.world_size, self.world.size),
            ("steps in all", earlier.total_steps, self.total),
        ):
            if was != now:
                raise UserError(
                    f"the run began with {was} {what}, now it would have {now}, which changes the "
                    "result; --allow_changes goes on all the same"
                )
        if earlier.teacher != teacher:
            raise UserError(
                "distill.teacher: not the file of weights that the run began with, which changes the result; "
                "--allow_changes goes on all the same"
            )

    def _check_target_in_reach(self) -> None:
        """A run that goes on with another calendar or target may be past the update that would reach it."""
        pruner = self.step_cell.pruner
        if not pruner.method.prunes or pruner.reaches_target_after(self.step):
            return
        target = pruner.target(self.sparsified.prunable)
        if self.sparsified.nonzero != target:
            raise UserError(
                f"pruning.density: {self.config.pruning.density} keeps {target} weights; the run has "
                f"{self.sparsified.nonzero} after step {self.step}, and no topology update is left to change that"
            )

    # ------------------------------------------------------------------------------------------ steps

    def advance(self, batches: Iterator, several: bool) -> None:
        """Train one step, or as many as sink together in one graph."""
        first = self.step + 1
        if several:
            self._loss = self.step_cell.sink([tuple(next(batches).values()) for _ in range(self.step_cell.sink_size)])
        else:
            self._loss = self.step_cell(*next(batches).values())
        self._losses.append((first, self._loss))
        if self.step == self.total and self.step_cell.record is None:
            self.step_cell.finish()
        if self.step_cell.record is not None:
            self._log_topology()

    def _log_topology(self) -> None:
        """Log the topology update just made; the processes must agree on it."""
        self._check_losses()
        self._warn_of_floors(self.step_cell.record.layer_nonzero)
        digest = self.world.check_equal(self.network, self.step)
        self.folder.log("topology", **vars(self.step_cell.record), digest=digest)

    def _check_losses(self) -> None:
        """Raise NotFinite for a loss since the last look that is not finite."""
        for first, some in self._losses:
            for step, loss in enumerate(np.atleast_1d(some.asnumpy()), first):
                if not np.isfinite(loss):
                    raise NotFinite(f"the loss is {loss}", step)
        self._losses.clear()

    # --------------------------------------------------------------------------------- between the steps

    def _warn_of_floors(self, counts: Sequence[int]) -> None:
        """Name in one line the layers that have come down to their floor since the last one."""
        floor = self.config.pruning.min_per_layer
        low = [
            layer.name
            for layer, count in zip(self.sparsified.layers, counts)
            if at_floor(count, layer.mask.size, floor)
        ]
        new = [name for name in low if name not in self._at_floor]
        self._at_floor = set(low)
        if new:
            shown = ", ".join(new[:5]) + (f" and {len(new) - 5} more" if len(new) > 5 else "")
            tqdm.write(
                f"warning: at step {self.step} down to pruning.min_per_layer ({floor}): {shown}; pruning.exclude keeps "
                "layers dense, pruning.allocation=erk spares small ones"
            )

    def log_loss(self) -> None:
        """Log the last step's loss, the mean over the processes."""
        self._check_losses()
        loss = float(self.world.gather(np.atleast_1d(self._loss.asnumpy())[-1]).mean())
        epoch = self.step / self.task.steps_per_epoch
        self.folder.log("train", step=self.step, epoch=epoch, loss=loss, lr=self.rates[self.step - 1])
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)

    def evaluate(self) -> None:
        """Measure the task's figures, also of the averaged weights, whose names end with "_ema"."""
        average = self.step_cell.average
        self.world.average_statistics(self.network, average)
        figures = self.task.evaluate(self.network)
        if average is not None:
            with average.in_place():
                figures.update({f"{name}_ema": value for name, value in self.task.evaluate(self.network).items()})
        self.step_cell.set_train()
        epoch = self.step // self.task.steps_per_epoch
        self.folder.log("evaluation", step=self.step, epoch=epoch, **figures, **self.sparsified.counts())
        shown = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
        tqdm.write(f"epoch {epoch}/{self.config.train.epochs}  density {self.sparsified.density:.4f}  {shown}")
        self.progress = replace(self.progress, figures=figures)
        figure, best = figures[figures_of(self.config)[0].name], self.progress.best
        if self.step_cell.pruner.at_target(self.step) and (best is None or figure > best):
            self.progress = replace(self.progress, best=figure, best_step=self.step)
            self._is_best = True

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step."""
        self._check_losses()
        self.world.average_statistics(self.network, self.step_cell.average)
        progress = replace(
            self.progress,
            step=self.step,
            seconds=round(time.monotonic() - self._started, 1),
            metrics_length=self.folder.metrics_length(),
        )
        self.checkpoints.save(self.network, self.step_cell, asdict(progress), self._is_best)
        self.progress, self._is_best = progress, False

    def stop(self, status: int, by: str) -> None:
        """Write a checkpoint, unless there is one of this step, and raise RunStopped."""
        if self.progress.step != self.step:
            self.save_checkpoint()
        self.world.barrier()  # the launcher ends all processes when the first of them leaves
        raise RunStopped(
            f"stopped by {by} after step {self.step} of {self.total}; {self.last_good()}; "
            f"--resume {self.folder.path} goes on",
            status,
        )

    def finish(self) -> dict[str, Any]:
        """Write the summary of the finished run and return it."""
        summary = {
            **self.progress.figures,
            **self.sparsified.counts(),
            "rank": self.sparsified.mean_rank(),
            "steps": self.progress.step,
            "seconds": self.progress.seconds,
        }
        self.folder.finish(summary)
        return summary

    def last_good(self) -> str:
        """Which checkpoint the run can go on from, in words."""
        if not self.checkpoints.last.exists():
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.checkpoints.last}, of step {self.progress.step}"
