"""Checkpoints: everything a run needs to go on, in one MindSpore file that is whole or absent.

A file holds the network's parameters (weights, statistics, masks) under their own names, so MindSpore's
`load_checkpoint` reads it into the network; the state of the training step (optimizer, loss scaler, weight average)
under names with a colon; and `rpg_state`, a JSON text with the step, the training time and more. It ends with
MindSpore's CRC-32 of the content.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from rpg_ms.cells.average import AVERAGE
from rpg_ms.errors import NotFinite, UserError, one_line
from rpg_ms.files import atomic_path
from rpg_ms.weights import load_weights, packed
from rpg_ms.weights.files import has_checksum

if TYPE_CHECKING:
    from rpg_ms.cells import SparseTrainStep, Sparsified
    from rpg_ms.config import Config
    from rpg_ms.training.distributed import World

STATE = "rpg_state"


def split_of(config: Config) -> dict[str, Any]:
    """The keys that say which training images a run with `data.validation` holds out, with their values."""
    return {"data.validation": config.data.validation, "data.limit": config.data.limit, "seed": config.seed}


def check_held_out(path: Union[str, os.PathLike], state: Mapping[str, Any], config: Config) -> None:
    """Refuse, as a UserError, to evaluate a checkpoint on images that it was trained on.

    Args:
        path, state: the checkpoint; a state without a record of what was held out cannot be checked.
        config: whose `data.validation` says what is evaluated.
    """
    own, now = state.get("split"), split_of(config)
    if config.data.validation > 0 and own is not None and own != now:
        differing = ", ".join(
            f"{key} is {now[key]}, in training it was {own[key]}" for key in now if own[key] != now[key]
        )
        raise UserError(
            f"{path}: would be evaluated on images that it was trained on: {differing}; data.validation=0 "
            "evaluates on the test images"
        )


class Checkpoints:
    """The checkpoints of a run's folder.

    `checkpoints/step-N.ckpt` are the newest `keep`; `last.ckpt` is the newest of them and `best.ckpt` the best at
    target density, as hard links where the file system has them. All processes of `world` read, the first one writes.
    """

    def __init__(self, folder: Union[str, os.PathLike], keep: int, world: World) -> None:
        self.keep, self.world = keep, world
        self.steps, self.last, self.best = (Path(folder) / name for name in ("checkpoints", "last.ckpt", "best.ckpt"))

    def save(self, network: nn.Cell, step_cell: SparseTrainStep, state: Mapping[str, Any], is_best: bool) -> None:
        """Write the checkpoint of a step; once it is safely on disk, the older ones beyond `keep` go.

        So do those of later steps: damaged ones, which `restore` has passed over.
        """
        if not self.world.first:
            return
        self.steps.mkdir(exist_ok=True)
        path = self.steps / f"step-{state['step']:09d}.ckpt"
        save(path, network, step_cell, state)
        _link(path, self.last)
        if is_best:
            _link(path, self.best)
        files = self._newest_first()
        newest = files.index(path)
        for stale in files[:newest] + files[newest + self.keep :]:
            stale.unlink()

    def restore(
        self, network: nn.Cell, step_cell: SparseTrainStep, report: Callable[[str], Any], names: Sequence[str] = ()
    ) -> Optional[dict[str, Any]]:
        """Load the newest whole checkpoint and return its state, or None if there is none.

        A damaged one is named to `report` and the one before it used. The state has at least the `names`.

        Raises:
            UserError: checkpoints are there, but all are damaged, or the newest whole one is of another network or of
                an earlier version, or lacks state that this training needs.
        """
        damaged = []
        for path in self._newest_first():
            try:
                values = _read(path)
                if STATE not in values:
                    raise UserError(f"{path}: no checksum at its end: truncated")
            except UserError as error:
                damaged.append(str(error))
                report(str(error))
                continue
            state = _load_network(path, values, network)
            lacking = [name for name in names if name not in state]
            if lacking:
                raise UserError(f"{path}: holds no {', '.join(lacking)}: a checkpoint of an earlier version of rpg_ms")
            try:
                step_cell.load_state(values, state)
            except KeyError as error:
                raise UserError(
                    f"{path}: holds no {error.args[0]}: the run began with another optimizer, method, train.ema_decay "
                    "or train.amp_level"
                ) from None
            ms.set_rng_state(values["rng:state"])
            if self.world.first:  # the run may have ended before the file had its other names
                _link(path, self.last)
                if state["best_step"] == state["step"]:
                    _link(path, self.best)
            return state
        if damaged:
            raise UserError(f"{self.steps}: no whole checkpoint left to resume from; {damaged[0]}")
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self.steps.glob("step-*.ckpt"), reverse=True)


def save(path: Union[str, os.PathLike], network: nn.Cell, step_cell: SparseTrainStep, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        network, step_cell: the masked network and the SparseTrainStep around it.
        state: dict of plain values; "step", "seconds" and "model" at least.

    Raises:
        NotFinite: a parameter is not finite: such a checkpoint would be good for nothing.
    """
    parameters, values = step_cell.state()
    entries = {**{parameter.name: parameter for parameter in network.get_parameters()}, **parameters}
    for name, parameter in entries.items():
        array = parameter.asnumpy()
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFinite(f"{name} is not finite", state["step"])
    entries["rng:state"] = ms.get_rng_state()
    with atomic_path(path) as temporary:
        logging.disable(logging.CRITICAL)  # MindSpore logs what it raises as well
        try:
            ms.save_checkpoint(
                [{"name": name, "data": data} for name, data in entries.items()],
                str(temporary),
                append_dict={STATE: json.dumps({**state, **values})},
                crc_check=True,
            )
        finally:
            logging.disable(logging.NOTSET)


def load_network(
    path: Union[str, os.PathLike], network: nn.Cell, sparsified: Sparsified, average: bool = False
) -> dict[str, Any]:
    """Read a file's network parameters into `network` and return the checkpoint's state.

    Besides checkpoints of training runs this takes any file of weights (`rpg_ms.weights.load_weights`), whose state
    has neither step nor time, unless it is a packed checkpoint. With `average` the exponential moving average of the
    weights is taken in their place.

    Raises:
        UserError: the file is missing, damaged, of another network, or without an average.
    """
    values = _read(path)
    if not isinstance(values.get(STATE), str):
        if average:
            raise UserError(f"{path}: not a checkpoint of a training run, so it holds no average of the weights")
        load_weights(path, network, sparsified)
        if not packed.is_packed(path):
            return {"step": None, "seconds": None}
        header = packed.read_header(path)
        if (header.nonzero, header.prunable) != (sparsified.nonzero, sparsified.prunable):
            raise UserError(
                f"{path}: {header.nonzero} of {header.prunable} prunable weights are kept, not "
                f"{sparsified.nonzero} of {sparsified.prunable}: packed with another pruning.exclude"
            )
        return {"step": header.about.step, "seconds": header.about.seconds}
    state = _load_network(path, values, network)
    if average:
        averages = {name[len(AVERAGE) :]: value for name, value in values.items() if name.startswith(AVERAGE)}
        if not averages:
            raise UserError(f"{path}: holds no average of the weights; it was trained without train.ema_decay")
        for parameter in network.get_parameters():
            if parameter.name in averages:
                ops.assign(parameter, averages[parameter.name])
    return state


def _load_network(path: Union[str, os.PathLike], values: Mapping[str, Any], network: nn.Cell) -> dict[str, Any]:
    state = json.loads(values[STATE])
    wanted = {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}
    found = {name: tuple(value.shape) for name, value in values.items() if ":" not in name and name != STATE}
    if wanted != found:
        differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        name = differing[0]
        in_file, in_network = (
            f"of shape {shapes[name]}" if name in shapes else "missing" for shapes in (found, wanted)
        )
        raise UserError(
            f"{path}: a checkpoint of another network than the configuration's ({state['model']}): {name} "
            f"is {in_file} in the file and {in_network} in the network; {len(differing)} parameters differ"
        )
    for name in wanted:
        if name.endswith("weight_mask"):
            weight = name[: -len("_mask")]
            if values[weight].asnumpy()[~values[name].asnumpy()].any():
                raise UserError(f"{path}: damaged: {weight} is not zero where its mask is")
    for parameter in network.get_parameters():
        ops.assign(parameter, values[parameter.name])
    return state


def _link(source: Path, target: Path) -> None:
    """Make `target` another name of `source`, replacing what was there in one step."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)


def _read(path: Union[str, os.PathLike]) -> dict[str, Any]:
    """The content of a checkpoint with a checksum; nothing of any other file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a directory, not a checkpoint' if path.is_dir() else 'no such checkpoint'}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not has_checksum(path, content):
        return {}
    try:
        return ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint: {one_line(str(error))}") from None
