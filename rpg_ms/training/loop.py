"""The training loop."""
from __future__ import annotations

import math
import time

from tqdm import tqdm

from rpg_ms.errors import UserError
from rpg_ms.training import checkpoint


def train(config, task, network, found, step_cell, rates, folder, ranks):
    """Train to the end and return the summary that is written to the run's folder.

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
        UserError: the loss is no longer finite, or the ranks' weights are no longer the same.
    """
    total = len(rates)
    started = time.monotonic()
    state = {"model": config.model.name}
    figures = {}
    with tqdm(total=total, unit="step", disable=None) as bar:
        for batch in task.train_batches(step_cell.step_number, total):
            loss = step_cell(*batch)
            step = step_cell.step_number
            record = step_cell.record
            if record is not None:
                folder.log("topology", **vars(record), digest=ranks.check_equal(network, step))
                if not math.isfinite(record.rank_loss):
                    raise UserError(f"the rank term is not finite at step {step}")
            if step % config.train.log_every == 0 or step == total:
                loss = float(ranks.gather(loss.asnumpy()).mean())
                folder.log("train", step=step, epoch=step / task.steps_per_epoch, loss=loss, lr=rates[step - 1])
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                if not math.isfinite(loss):
                    raise UserError(f"the loss is {loss} at step {step}, learning rate {rates[step - 1]:g}; "
                                    f"{_last_good(folder)}")
            bar.update()
            epoch, within = divmod(step, task.steps_per_epoch)
            if within == 0 and (epoch % config.train.eval_every == 0 or step == total):
                ranks.average_statistics(network)
                figures = task.evaluate(network)
                step_cell.set_train()
                counts = {"density": found.density, "nonzero": found.nonzero, "prunable": found.prunable}
                folder.log("evaluation", step=step, epoch=epoch, **figures, **counts)
                shown = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
                tqdm.write(f"epoch {epoch}/{config.train.epochs}  density {found.density:.4f}  {shown}")
            if step == total or (within == 0 if config.checkpoint.every_steps == 0
                                 else step % config.checkpoint.every_steps == 0):
                state.update(step=step, seconds=round(time.monotonic() - started, 1))
                ranks.average_statistics(network)
                if ranks.first:
                    checkpoint.save(folder.checkpoint, network, step_cell, state)
    summary = {**figures, "density": found.density, "nonzero": found.nonzero, "prunable": found.prunable,
               "steps": state["step"], "seconds": state["seconds"]}
    folder.finish(summary)
    return summary


def _last_good(folder):
    return f"the last checkpoint is {folder.checkpoint}" if folder.checkpoint.exists() else "no checkpoint yet"
