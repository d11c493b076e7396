"""The packed sparse checkpoint: written, read back and compared before success is reported."""
from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import ops

from rpg_ms.errors import UserError
from rpg_ms.files import atomic_path
from rpg_ms.weights.packed import MASK, pack, read_packed

__all__ = ["export_packed", "read_packed", "write_packed"]


def export_packed(network, found, task, file_name, value_type, about):
    """Write a network as a packed file, and measure what rounding its weights costs.

    Args:
        network: the masked network with its weights, left as it is.
        found: its `Sparsified`.
        task: what evaluates it.
        file_name: where to; `.packed` is appended if it is missing.
        value_type, about: see `rpg_ms.weights.packed.pack`.

    Returns:
        `{"file", "format", "bytes", "value_type", "density", "nonzero", "prunable"}`; with float16 and int8
        also "max_weight_difference", the task's figures of what the file holds ("top1") and those of the
        network as it was ("checkpoint_top1").

    Raises:
        UserError: see `write_packed`.
    """
    path = Path(file_name if str(file_name).endswith(".packed") else f"{file_name}.packed")
    arrays = write_packed(path, network, value_type, about)
    report = {"file": str(path), "format": "PACKED", "bytes": path.stat().st_size, "value_type": value_type,
              "density": found.density, "nonzero": found.nonzero, "prunable": found.prunable}
    if value_type != "float32":
        before = _arrays(network)
        figures = {f"checkpoint_{name}": figure for name, figure in task.evaluate(network).items()}
        _assign(network, arrays)
        names = [layer.weight.name for layer in found.layers]
        difference = max(float(np.abs(arrays[name] - before[name]).max()) for name in names)
        report.update({"max_weight_difference": difference, **task.evaluate(network), **figures})
        _assign(network, before)
    return report


def write_packed(path, network, value_type="float32", about=None):
    """Write a network as a packed file, atomically, once it has been read back and compared.

    Returns:
        `{name: array}`: the parameters as the file holds them.

    Raises:
        UserError: the file cannot be written, or weights are not finite or too large for `value_type`.
    """
    path, before = Path(path), _arrays(network)
    try:
        content = pack(before, value_type, about)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
            _, arrays = read_packed(temporary, sum(array.size for array in before.values()))
            _compare(path, before, arrays, value_type)
    except ValueError as error:
        raise UserError(f"{path}: cannot be packed as {value_type}: {error}") from None
    except OSError as error:
        raise UserError(f"--file_name: {path} could not be written: {error.strerror or error}") from None
    return arrays


def _compare(path, before, after, value_type):
    """Refuse what was read back unless it is the same to the bit, and rounded weights as near as can be."""
    differing = sorted(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        one, other = before[name], after[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            differing.append(name)
            continue
        if name + MASK in before:
            one = np.where(before[name + MASK], one, one.dtype.type(0))  # a zero outside may be a negative one
            if value_type == "float16":
                one = one.astype(np.float16).astype(other.dtype)
            if value_type == "int8":  # half a step; a step is at most 1/63 of a channel's largest weight
                limit = np.abs(one.astype(np.float32)).reshape(len(one), -1).max(1) / 126 + 2.0 ** -126
                error = np.abs(one.astype(np.float32) - other).reshape(len(one), -1).max(1)
                one = other if (error <= limit).all() else one
        if one.tobytes() != other.tobytes():
            differing.append(name)
    if differing:
        raise UserError(f"{path}: {differing[0]} is not what was written")


def _arrays(network):
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def _assign(network, arrays):
    for parameter in network.get_parameters():
        ops.assign(parameter, ms.Tensor(arrays[parameter.name], parameter.dtype))
