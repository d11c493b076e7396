"""The training loop."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
from tqdm import tqdm

from rpg_ms.errors import CutShort, NotFinite, RunStopped
from rpg_ms.training.session import Session

if TYPE_CHECKING:
    from mindspore import nn

    from rpg_ms.cells import SparseTrainStep, Sparsified
    from rpg_ms.config import Config
    from rpg_ms.tasks.task import Task
    from rpg_ms.training.distributed import World
    from rpg_ms.training.run_folder import NoFolder


@dataclass(frozen=True)
class Hook:
    """Something that is done after the steps for which `is_due(step)` holds."""

    is_due: Callable[[int], bool]
    act: Callable[[], None]


def train(
    config: Config,
    task: Task,
    network: nn.Cell,
    sparsified: Sparsified,
    step_cell: SparseTrainStep,
    rates: Sequence[float],
    folder: NoFolder,
    world: World,
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint in the folder if there is one; return the run's summary.

    Arguments as of `rpg_ms.training.session.Session`.

    Raises:
        RunStopped: the processes' weights are no longer the same; the loss, a gradient or a weight is not finite; the
            disk is full; an image cannot be read; a worker of the loader is dead; stdout is broken; or SIGTERM came,
            and a checkpoint was written.
        UserError: as Session.
    """
    session = Session(config, task, network, sparsified, step_cell, rates, folder, world)
    hooks = hooks_of(session)
    with (
        _explained(session),
        _sigterm() as received,
        tqdm(total=session.total, initial=session.step, unit="step", disable=None) as session.bar,
    ):
        batches = iter(task.train_batches(session.step, session.total))
        while session.step < session.total:
            before = session.step
            inner = range(before + 1, before + step_cell.sink_size)
            several = step_cell.can_sink() and not any(hook.is_due(step) for hook in hooks for step in inner)
            session.advance(batches, several)
            for hook in hooks:
                if hook.is_due(session.step):
                    hook.act()
            session.bar.update(session.step - before)
            # The processes must stop at the same step, so they ask each other, though not at every step.
            if session.step < session.total and (world.size == 1 or session.step % config.train.log_every == 0):
                if world.gather(np.uint8(len(received) > 0)).any():
                    session.stop(128 + signal.SIGTERM, "SIGTERM")
        return session.finish()


def hooks_of(session: Session) -> tuple[Hook, ...]:
    """What is done between the steps of a run, in this order."""
    config, total, step_cell = session.config, session.total, session.step_cell
    epoch, every = session.task.steps_per_epoch, config.checkpoint.every_steps

    def evaluation_is_due(step: int) -> bool:
        return step % epoch == 0 and (step // epoch % config.train.eval_every == 0 or step == total)

    return (
        Hook(lambda step: step == step_cell.step_number and step_cell.record is not None, session.log_topology),
        Hook(lambda step: step % config.train.log_every == 0 or step == total, session.log_loss),
        Hook(evaluation_is_due, session.evaluate),
        Hook(lambda step: step % epoch == 0 or (every > 0 and step % every == 0), session.save_checkpoint),
    )


@contextmanager
def _explained(session: Session) -> Iterator[None]:
    """Within the block what ends a run early becomes a RunStopped that says which checkpoint is good."""
    try:
        yield
    except NotFinite as error:
        raise RunStopped(
            f"{error} at step {error.step}, learning rate "
            f"{session.rates[min(error.step, session.total) - 1]:g}; {session.last_good()}"
        ) from None
    except CutShort as error:
        goes_on = f"; --resume {session.folder.path} goes on from it" if session.checkpoints.last.exists() else ""
        raise RunStopped(
            f"{error}; the run had come to step {session.step} of {session.total}; {session.last_good()}{goes_on}"
        ) from None
    except OSError as error:
        raise RunStopped(f"{session.folder.path}: cannot be written: {error.strerror}; {session.last_good()}") from None


@contextmanager
def _sigterm() -> Iterator[list[bool]]:
    """Within the block SIGTERM does not end the process: it fills the list that the block is given."""
    received: list[bool] = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
