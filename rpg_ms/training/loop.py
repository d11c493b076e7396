"""The training loop."""
from __future__ import annotations

import signal
import time
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from rpg_ms.errors import CutShort, RunStopped, UserError
from rpg_ms.pruning.allocation import target_count
from rpg_ms.pruning.methods import METHODS
from rpg_ms.training.checkpoint import Checkpoints, split_of


def train(config, task, network, found, step_cell, rates, folder, ranks):
    """Train to the end, from the newest checkpoint in the folder if there is one; return the run's summary.

    Args:
        config: `rpg_ms.config.Config`.
        task: what is trained for (`rpg_ms.tasks`).
        network: the masked network.
        found: its `Sparsified`.
        step_cell: SparseTrainStep around it.
        rates: learning rate of every step.
        folder: `RunFolder`, on the first rank; `NoFolder` on the others.
        ranks: `rpg_ms.training.distributed.Ranks`.

    Raises:
        RunStopped: the ranks' weights are no longer the same; the loss, a gradient or a weight is not finite; the disk
            is full; an image cannot be read; a worker of the loader is dead; stdout is broken; or SIGTERM came, and a
            checkpoint was written.
        UserError: the checkpoints of a run that should go on are damaged, or of another number of steps or ranks, or
            no update is left that could reach the target density.
    """
    total = len(rates)
    checkpoints = Checkpoints(folder.path, config.checkpoint.keep, ranks)
    state = checkpoints.restore(network, step_cell, tqdm.write)
    if state is None:
        state = {"model": config.model.name, "step": 0, "seconds": 0.0, "metrics_length": 0, "figures": {},
                 "best": None, "best_step": None}
    elif not folder.allow_changes:
        _check_same_run(state, total, ranks.size)
    if state["step"] > total:
        raise UserError(f"{folder.path}: the run is at step {state['step']}, beyond the last, {total}")
    if state["step"] > 0:
        _check_target_in_reach(config, found, step_cell)
    if folder.changes:  # a best checkpoint of another configuration, perhaps at another density, is none of this one
        state.update(best=None, best_step=None)
    ranks.check_same(state["step"], f"{folder.path}: the ranks go on after different steps")
    ranks.check_equal(network, state["step"])
    state.update(total_steps=total, ranks=ranks.size, split=split_of(config))
    folder.begin()
    folder.cut_metrics(state["metrics_length"])
    if state["step"] > 0:
        tqdm.write(f"going on after step {state['step']} of {total}")
    else:
        folder.log("start", **_counts(found))  # not all 1: weights to start from may be pruned
    started = time.monotonic() - state["seconds"]
    stop = False
    losses = []  # (first step, loss or losses) since the last look: looking makes the host wait for the device

    def check_losses():
        for first, some in losses:
            for step, loss in enumerate(np.atleast_1d(some.asnumpy()), first):
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss}", step)
        losses.clear()

    def save_checkpoint(is_best=False):
        check_losses()
        ranks.average_statistics(network, step_cell.average)
        now = {"step": step_cell.step_number, "seconds": round(time.monotonic() - started, 1),
               "metrics_length": folder.metrics_length()}
        try:
            checkpoints.save(network, step_cell, {**state, **now}, is_best)
        except FloatingPointError as error:
            raise FloatingPointError(error.args[0], now["step"]) from None
        state.update(now)

    try:
        with _sigterm() as terminated, tqdm(total=total, initial=state["step"], unit="step", disable=None) as bar:
            every = config.checkpoint.every_steps
            pauses = (config.train.log_every, task.steps_per_epoch, every or total)  # between them nothing is due
            batches = iter(task.train_batches(state["step"], total))
            while step_cell.step_number < total:
                before = step_cell.step_number
                if step_cell.can_sink() and all(before % pause + step_cell.sink_size <= pause for pause in pauses):
                    loss = step_cell.sink([next(batches) for _ in range(step_cell.sink_size)])
                else:
                    loss = step_cell(*next(batches))
                _take_ctrl_c_back()
                losses.append((before + 1, loss))
                step = step_cell.step_number
                if step == total and step_cell.record is None:
                    step_cell.finish()
                if step_cell.record is not None:
                    check_losses()
                    folder.log("topology", **vars(step_cell.record), digest=ranks.check_equal(network, step))
                if step % config.train.log_every == 0 or step == total:
                    check_losses()
                    loss = float(ranks.gather(np.atleast_1d(loss.asnumpy())[-1]).mean())
                    folder.log("train", step=step, epoch=step / task.steps_per_epoch, loss=loss, lr=rates[step - 1])
                    bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(step - before)
                epoch, within = divmod(step, task.steps_per_epoch)
                is_best = False
                if within == 0 and (epoch % config.train.eval_every == 0 or step == total):
                    ranks.average_statistics(network, step_cell.average)
                    state["figures"] = _evaluate(task, network, step_cell)
                    folder.log("evaluation", step=step, epoch=epoch, **state["figures"], **_counts(found))
                    shown = "  ".join(f"{name} {value:.2f}" for name, value in state["figures"].items())
                    tqdm.write(f"epoch {epoch}/{config.train.epochs}  density {found.density:.4f}  {shown}")
                    at_target = step_cell.calendar is None or (step >= step_cell.calendar.reach_step
                                                               and not step_cell.pending)
                    if at_target and (state["best"] is None or state["figures"][task.metric] > state["best"]):
                        state["best"], state["best_step"], is_best = state["figures"][task.metric], step, True
                if within == 0 or (every and step % every == 0):
                    save_checkpoint(is_best)
                # Ranks must stop at the same step, so they ask each other, though not at every step.
                if ranks.size == 1 or step % config.train.log_every == 0:
                    stop = step < total and ranks.gather(np.uint8(len(terminated) > 0)).any()
                if stop:
                    if state["step"] != step:
                        save_checkpoint()
                    ranks.meet()  # the launcher ends all ranks when the first of them leaves
                    raise RunStopped(f"stopped by SIGTERM after step {step} of {total}; {_last_good(state, checkpoints)}; "
                                     f"--resume {folder.path} goes on", 128 + signal.SIGTERM)
        summary = {**state["figures"], **_counts(found), "rank": found.rank, "steps": state["step"], "seconds": state["seconds"]}
        folder.finish(summary)
        return summary
    except FloatingPointError as error:
        step = error.args[1] if len(error.args) > 1 else step_cell.step_number + 1
        raise RunStopped(f"{error.args[0]} at step {step}, learning rate {rates[min(step, total) - 1]:g}; "
                         f"{_last_good(state, checkpoints)}") from None
    except CutShort as error:
        goes_on = f"; --resume {folder.path} goes on from it" if checkpoints.last.exists() else ""
        raise RunStopped(f"{error}; the run had come to step {step_cell.step_number} of {total}; "
                         f"{_last_good(state, checkpoints)}{goes_on}") from None
    except OSError as error:
        raise RunStopped(f"{folder.path}: cannot be written: {error.strerror}; {_last_good(state, checkpoints)}") from None


def _check_same_run(state, total, ranks):
    for what, was, now in (("ranks", state["ranks"], ranks), ("steps in all", state["total_steps"], total)):
        if was != now:
            raise UserError(f"the run began with {was} {what}, now it would have {now}, which changes the "
                            "result; --allow_changes goes on all the same")


def _check_target_in_reach(config, found, step_cell):
    """A run that goes on with another calendar or target may be past the update that would reach it."""
    if not METHODS[config.pruning.method].prunes or step_cell.will_reach_target():
        return
    target = target_count(found.prunable, config.pruning.density)
    if found.nonzero != target:
        raise UserError(f"pruning.density: {config.pruning.density} keeps {target} weights; the run has {found.nonzero} "
                        f"after step {step_cell.step_number}, and no topology update is left to change that")


def _evaluate(task, network, step_cell):
    """The task's figures, and those of the averaged weights with "_ema" to their names."""
    figures = task.evaluate(network)
    if step_cell.average is not None:
        with step_cell.average.in_place():
            figures.update({f"{name}_ema": value for name, value in task.evaluate(network).items()})
    step_cell.set_train()
    return figures


def _counts(found):
    return {"density": found.density, "nonzero": found.nonzero, "prunable": found.prunable}


def _last_good(state, checkpoints):
    if not checkpoints.last.exists():
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {checkpoints.last}, of step {state['step']}"


def _take_ctrl_c_back():
    """Where it compiles, MindSpore leaves a handler of its own in the place of Python's: Ctrl-C becomes SIGTERM."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not None:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _sigterm():
    """Within the block SIGTERM does not end the process: it fills the list that the block is given."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
