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
    from rpg_ms.cells import SparseTrainStep
    from rpg_ms.config import Config
    from rpg_ms.tasks.task import Task


@dataclass(frozen=True)
class Hook:
    """Something that is done to a Session after the steps for which `is_due(step)` holds."""

    is_due: Callable[[int], bool]
    act: Callable[[Session], None]


def train(session: Session) -> dict[str, Any]:
    """Train to the end and return the run's summary.

    Raises:
        RunStopped: the processes' weights are no longer the same; the loss, a gradient or a weight is not finite; the
            disk is full; an image cannot be read; a worker of the loader is dead; stdout is broken; or SIGTERM came,
            and a checkpoint was written.
    """
    hooks, world = hooks_of(session.config, session.task), session.world
    with (
        _explained(session),
        _sigterm() as received,
        tqdm(total=session.total, initial=session.step, unit="step", disable=None) as session.bar,
    ):
        batches = iter(session.task.train_batches(session.step, session.total))
        while session.step < session.total:
            before = session.step
            session.advance(batches, sinks(session.step_cell, hooks))
            for hook in hooks:
                if hook.is_due(session.step):
                    hook.act(session)
            session.bar.update(session.step - before)
            # The processes must stop at the same step, so they ask each other, though not at every step.
            if session.step < session.total and (world.size == 1 or session.step % session.config.train.log_every == 0):
                if world.gather(np.uint8(len(received) > 0)).any():
                    session.stop(128 + signal.SIGTERM, "SIGTERM")
        return session.finish()


def hooks_of(config: Config, task: Task) -> tuple[Hook, ...]:
    """What is done between the steps of a run, in this order, besides logging each topology update."""
    epoch, every = task.steps_per_epoch, config.checkpoint.every_steps
    total = config.train.epochs * epoch

    def evaluation_is_due(step: int) -> bool:
        return step % epoch == 0 and (step // epoch % config.train.eval_every == 0 or step == total)

    return (
        Hook(lambda step: step % config.train.log_every == 0 or step == total, Session.log_loss),
        Hook(evaluation_is_due, Session.evaluate),
        Hook(lambda step: step % epoch == 0 or (every > 0 and step % every == 0), Session.save_checkpoint),
    )


def sinks(step_cell: SparseTrainStep, hooks: Sequence[Hook]) -> bool:
    """Whether the next `sink_size` steps run in one graph: nothing is due within them."""
    within = range(step_cell.step_number + 1, step_cell.step_number + step_cell.sink_size)
    return step_cell.can_sink() and not any(hook.is_due(step) for hook in hooks for step in within)


@contextmanager
def _explained(session: Session) -> Iterator[None]:
    """Within the block what ends a run early becomes a RunStopped that says which checkpoint is good."""
    try:
        yield
    except NotFinite as error:
        rate = session.rates[min(error.step, session.total) - 1]
        raise RunStopped(f"{error} at step {error.step}, learning rate {rate:g}; {session.last_good()}") from None
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
