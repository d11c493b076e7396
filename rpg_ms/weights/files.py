"""Weights in files: MindSpore checkpoints, PyTorch's files, safetensors and packed networks, all read to arrays
by name.
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

import mindspore as ms
import numpy as np
import safetensors

from rpg_ms.errors import UserError, one_line
from rpg_ms.weights import packed
from rpg_ms.weights.pytorch_file import StandIn, is_pytorch, read_pytorch, to_array

# Where a training checkpoint keeps its network. Averaged weights come first: they are what is evaluated.
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
ENTRIES = (*AVERAGES, "state_dict", "model_state_dict", "model", "net", "network", "module")
LONGEST_ENTRY = 100  # characters
COUNTERS = ("num_batches_tracked", "n_averaged")  # of batches: no weights

# What MindSpore's optimizers keep for every weight and put before its name, and what they count.
SLOTS = re.compile(
    r"(?:(?:moments?|moment[12]|adam_[mv]|lamb_[mv]|accum|accum_update|stat|mean_square|mean_grad|"
    r"linear|prev|step_size|exp_avg|exp_avg_sq|max_exp_avg_sq|exp_inf|vhat|momentum_buf|ax_)\.|mu_|eta_)(.+)"
)
STEPS = re.compile(
    r"global_step|learning_rate(_group_\d+)?|momentum|beta[12]_power|epoch_num|step_num|scale_sense|"
    r"current_iterator_step|last_overflow_iterator_step"
)
DTYPES = dict(F64="f8", F32="f4", F16="f2", BF16="bfloat16", I64="i8", I32="i4", I16="i2", I8="i1", U8="u1", BOOL="b1")


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    `weights` is `{name: array}`; `unread` `{name: what it is}` of tensors that are not read here; `mindspore` whether
    MindSpore wrote it as a checkpoint.
    """

    weights: dict[str, np.ndarray]
    unread: dict[str, str] = field(default_factory=dict)
    mindspore: bool = False

    def beside(self, name: str) -> bool:
        """Whether one of the weights is no network's, but an optimizer's or a counter, by its name."""
        slot = SLOTS.fullmatch(name)
        if self.mindspore and "." not in name and name in self.weights and self.weights[name].size <= 1:
            return True  # of append_dict, with any name
        return bool(slot and slot[1] in self.weights or STEPS.fullmatch(name))


def read_weights(path: Union[str, os.PathLike], **options: Any) -> dict[str, np.ndarray]:
    """The network in a file, as `{name: array}` in the file's order and under the file's names; see `read_file`."""
    return read_file(path, **options).weights


def read_file(
    path: Union[str, os.PathLike],
    entry: Optional[str] = None,
    largest: int = packed.LARGEST,
    entry_key: str = "rpg-ms convert --entry",
) -> Contents:
    """What a file holds but counters of batches, and but what in a checkpoint of this package is not the network's.

    Args:
        path: a MindSpore checkpoint, a file of `torch.save`, a safetensors file or a packed network, told apart by
            content.
        entry: which entry of a wrapped PyTorch file to take, "a.b" for one in another; None for the first of `ENTRIES`
            that it has.
        largest: how many weights, at most, a packed network may have once unpacked.
        entry_key: where the user names an entry, for the message.

    Raises:
        UserError: missing, damaged, or without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a directory, not a file' if path.is_dir() else 'no such file'}")
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":  # the length of a JSON header
        contents = Contents(_read_safetensors(path, largest))
    elif is_pytorch(head):
        return _read_state_dict(path, entry, entry_key)
    else:
        _refuse_no_weights(path, head)
        contents = Contents(_read_mindspore(path), mindspore=True)
    if entry is not None:
        raise UserError(f"{path}: {entry!r} cannot be taken from it, only PyTorch's files have entries")
    return contents


def _refuse_no_weights(path: Path, head: bytes) -> None:
    """Say what a file is that often stands where weights should."""
    text = head.lstrip().lower()
    if not head:
        raise UserError(f"{path}: an empty file")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a pointer of git-LFS, not the weights themselves; `git lfs pull` fetches them")
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        raise UserError(f"{path}: a web page, not weights; what was downloaded is not the file itself")


def _read_state_dict(path: Path, entry: Optional[str], entry_key: str) -> Contents:
    content = read_pytorch(path)
    if isinstance(content, StandIn):
        raise UserError(f"{path}: holds a {content!r}, neither weights by name nor a module, and its code is not run")
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not weights by name")
    entries = _entries(content)
    if entry is None:
        entry = next((name for name in ENTRIES if isinstance(content.get(name), dict)), "")
    found = {name: value for name, value in entries.get(entry, {}).items() if isinstance(name, str)}
    weights = {n: v for n, v in found.items() if isinstance(v, np.ndarray) and not n.endswith(COUNTERS)}
    if not weights:
        where = f" in an entry {entry!r}" if entry else ""
        others = [path for path, part in entries.items() if any(isinstance(v, np.ndarray) for v in part.values())]
        what = f"weights are in {shorten(others)}: name one by {entry_key}" if others else f"it has {shorten(content)}"
        raise UserError(f"{path}: no weights{where}; {what}")
    return Contents(weights, {name: repr(value) for name, value in found.items() if isinstance(value, StandIn)})


def _entries(content: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """The content under "", and every dict in it, however deep, by its path: "a.b" is the entry b of the entry a."""
    found, todo = {}, [("", content)]
    for path, entry in todo:
        found.setdefault(path, entry)  # names may have dots: the outer one counts
        parts = [(f"{path}.{name}" if path else name, part) for name, part in entry.items() if isinstance(name, str)]
        todo += [(path, part) for path, part in parts if isinstance(part, dict) and len(path) <= LONGEST_ENTRY]
    return found


def _read_safetensors(path: Path, largest: int) -> dict[str, np.ndarray]:
    if packed.is_packed(path):
        return packed.read_packed(path, largest)[1]
    try:
        return {
            name: to_array(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in safetensors.deserialize(path.read_bytes())
            if not name.endswith(COUNTERS)
        }
    except KeyError as error:
        raise UserError(f"{path}: a tensor of type {error}, not one of {', '.join(DTYPES)}") from None
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file, or damaged: {one_line(str(error))}") from None


def has_checksum(path: Path, content: bytes) -> bool:
    """Whether a file's content ends with MindSpore's CRC-32 of what comes before; UserError if that is wrong."""
    if content[-17:-10] != b"crc_num":
        return False
    if binascii.crc32(content[:-17]) != int.from_bytes(content[-10:], "big"):
        raise UserError(f"{path}: damaged: its checksum is wrong")
    return True


def _read_mindspore(path: Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    has_checksum(path, content)
    try:
        if content[:1] != b"\n":  # with which their first tensor begins
            raise ValueError("it begins like none of them")
        if path.suffix != ".ckpt":
            raise ValueError("if it is one of MindSpore, its name has to end with .ckpt")
        loaded = ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{path}: truncated, or not a checkpoint of MindSpore, PyTorch or safetensors: {one_line(str(error))}"
        ) from None
    return {
        name: (value.astype(ms.float32) if value.dtype == ms.bfloat16 else value).asnumpy()
        for name, value in loaded.items()
        if isinstance(value, ms.Tensor) and ":" not in name
    }  # with a colon: the state of a training run


def shorten(names: Iterable[Any], most: int = 6) -> str:
    """The first few of `names`, and how many more there are, as text."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
