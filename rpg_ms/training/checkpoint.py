"""Checkpoints: everything a run needs to go on, in one MindSpore file that is whole or absent.

A file holds the network's parameters (weights, statistics, masks) under their own names, so MindSpore's
`load_checkpoint` reads it into the network; the optimizer's state under `optimizer:NAME`; and `rpg_state`, a JSON
text with the step, the training time and the network's name. It ends with MindSpore's CRC-32 of the content.
"""
from __future__ import annotations

import binascii
import json
import os
from pathlib import Path

import mindspore as ms

from rpg_ms.errors import UserError, one_line
from rpg_ms.training.run_folder import atomic_path
from rpg_ms.weights import load_weights

OPTIMIZER = "optimizer:"
STATE = "rpg_state"


def save(path, network, step_cell, state):
    """Write a checkpoint atomically.

    Args:
        path: file to write.
        network: the masked network.
        step_cell: the SparseTrainStep, for its optimizer's state.
        state: dict of plain values; "step", "seconds" and "model" at least.
    """
    entries = [{"name": name, "data": parameter} for name, parameter in network.parameters_and_names()]
    entries += [{"name": OPTIMIZER + name, "data": parameter}
                for name, parameter in optimizer_state(step_cell.optimizer).items()]
    entries += [{"name": OPTIMIZER + "rng_state", "data": ms.get_rng_state()}]
    with atomic_path(path) as temporary:
        # MindSpore appends ".ckpt" to other names.
        written = temporary.with_name(temporary.name + ".ckpt")
        ms.save_checkpoint(entries, str(written), append_dict={STATE: json.dumps(state)}, crc_check=True)
        os.chmod(written, 0o644)
        os.replace(written, temporary)


def optimizer_state(optimizer):
    """The optimizer's own Parameters by name: moments and step counter, without weights and learning-rate table."""
    weights = {id(parameter) for parameter in optimizer.parameters}
    return {name: parameter for name, parameter in optimizer.parameters_and_names()
            if id(parameter) not in weights and "learning_rate" not in name}


def load_network(path, network, found, model_name):
    """Read a file's network parameters into `network` and return the checkpoint's state.

    Besides checkpoints of training runs this takes any file of weights (`rpg_ms.weights.load_weights`), whose state
    has neither step nor time.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """
    values = _read(path)
    if not isinstance(values.get(STATE), str):
        load_weights(path, network, found)
        return {"step": None, "seconds": None}
    state = json.loads(values.pop(STATE))
    values = {name: value for name, value in values.items() if not name.startswith(OPTIMIZER)}
    wanted = {name: tuple(parameter.shape) for name, parameter in network.parameters_and_names()}
    found = {name: tuple(value.shape) for name, value in values.items()}
    if wanted != found:
        differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        name = differing[0]
        raise UserError(f"{path}: a checkpoint of another network ({state.get('model')}, the configuration says "
                        f"{model_name}): {name} is {_shape(found.get(name))} in the file and "
                        f"{_shape(wanted.get(name))} in the network; {len(differing)} parameters differ")
    ms.load_param_into_net(network, values, strict_load=True)
    for name, parameter in network.parameters_and_names():
        if name.endswith("weight_mask"):
            weight = values[name[:-len("_mask")]].asnumpy()
            if weight[~values[name].asnumpy()].any():
                raise UserError(f"{path}: damaged: {name[:-len('_mask')]} is not zero where its mask is")
    return state


def _read(path):
    """The content of a checkpoint with a checksum; nothing of any other file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a directory, not a checkpoint' if path.is_dir() else 'no such checkpoint'}")
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if content[-17:-10] != b"crc_num":
        return {}
    if binascii.crc32(content[:-17]) != int.from_bytes(content[-10:], "big"):
        raise UserError(f"{path}: damaged: its checksum is wrong")
    try:
        return ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint: {one_line(str(error))}") from None


def _shape(shape):
    return "missing" if shape is None else f"of shape {shape}"
