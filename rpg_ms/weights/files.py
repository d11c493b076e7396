"""Weights in files: MindSpore checkpoints, PyTorch's files, safetensors and packed networks, all read to arrays
by name.
"""
from __future__ import annotations

import binascii
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
import safetensors

from rpg_ms.errors import UserError, one_line
from rpg_ms.weights import packed
from rpg_ms.weights.pytorch_file import is_pytorch, read_pytorch, to_array

# Where a training checkpoint keeps its network. Averaged weights come first: they are what is evaluated.
ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model",
           "net", "network", "module")
COUNTERS = ("num_batches_tracked", "n_averaged")  # of batches: no weights

SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "I64": "<i8",
                      "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "<b1"}


def read_weights(path, entry=None, largest=packed.LARGEST):
    """The network in a file, as `{name: array}` in the file's order and under the file's names.

    Args:
        path: a MindSpore checkpoint, a file of `torch.save`, a safetensors file or a packed network, told apart
            by content.
        entry: which entry of a wrapped PyTorch file to take; None for the first of `ENTRIES` that it has.
        largest: how many weights, at most, a packed network may have once unpacked.

    Counters of batches are left out, and what in a checkpoint of this package is not the network's.

    Raises:
        UserError: missing, damaged, unsafe, or without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a directory, not a file' if path.is_dir() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if head[5:] == b"\0\0\0{":  # the length of a JSON header
        read = partial(_read_safetensors, largest=largest)
    elif is_pytorch(head):
        return _read_state_dict(path, entry)
    else:
        read = _read_mindspore
    if entry is not None:
        raise UserError(f"{path}: {entry!r} cannot be taken from it, only PyTorch's files have entries")
    return read(path)


def _read_state_dict(path, entry):
    content = read_pytorch(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not weights by name")
    if entry is None:
        entry = next((name for name in ENTRIES if isinstance(content.get(name), dict)), None)
    elif entry not in content:
        raise UserError(f"{path}: has no entry {entry!r}; it has {shorten(content)}")
    found = content if entry is None else content[entry]
    weights = {}
    if isinstance(found, dict):
        weights = {str(name): value for name, value in found.items()
                   if isinstance(value, np.ndarray) and not str(name).endswith(COUNTERS)}
    if not weights:
        where = "" if entry is None else f" in its entry {entry!r}"
        raise UserError(f"{path}: no weights{where}; it has {shorten(content)}")
    return weights


def _read_safetensors(path, largest):
    if packed.is_packed(path):
        return packed.read_packed(path, largest)[1]
    try:
        return {name: to_array(tensor["data"], SAFETENSORS_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
                for name, tensor in safetensors.deserialize(path.read_bytes())
                if not name.endswith(COUNTERS)}
    except KeyError as error:
        raise UserError(f"{path}: a tensor of type {error}, not one of "
                        f"{', '.join(SAFETENSORS_DTYPES)}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file, or damaged: {one_line(str(error))}") from None


def has_checksum(path, content):
    """Whether a file's content ends with MindSpore's CRC-32 of what comes before; UserError if that is wrong."""
    if content[-17:-10] != b"crc_num":
        return False
    if binascii.crc32(content[:-17]) != int.from_bytes(content[-10:], "big"):
        raise UserError(f"{path}: damaged: its checksum is wrong")
    return True


def _read_mindspore(path):
    has_checksum(path, path.read_bytes())
    try:
        if path.suffix != ".ckpt":
            raise ValueError("its name does not end with .ckpt")
        loaded = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: truncated, or not a checkpoint of MindSpore, PyTorch or safetensors: "
                        f"{one_line(str(error))}") from None
    return {name: value.asnumpy() for name, value in loaded.items()
            if isinstance(value, ms.Tensor) and ":" not in name}  # with a colon: the state of a training run


def shorten(names, most=6):
    """The first few of `names`, and how many more there are, as text."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
