"""PyTorch's own files (.pth, .pt, .th, .tar), read without PyTorch and without running what a pickle asks for.

`inert_pickle` reads the pickle; here its tensors get their values. What is no weight stays an inert stand-in.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import zipfile
from typing import Any, BinaryIO, Callable, Optional, Union

import numpy as np

from rpg_ms.errors import UserError, one_line
from rpg_ms.weights.inert_pickle import InertUnpickler, StandIn, Storage, Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
LARGER = 16  # times the file: what all its tensors together may take, as several may be views of one storage
LONGEST = 2 * 10**6  # characters of all the names in a pickled module
MODULE_PARTS = ("_parameters", "_buffers", "_modules")


def is_pytorch(head: bytes) -> bool:
    """Whether a file that begins with these bytes is one of PyTorch's, or at least a pickle or zip archive."""
    return head[:4] == b"PK\x03\x04" or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_pytorch(path: Union[str, os.PathLike]) -> Any:
    """The content of a file written by `torch.save`.

    Returns:
        Containers (dicts and lists) and plain values, with tensors and NumPy arrays of numbers as arrays, modules as
        their state dicts, and whatever else there is as a `StandIn`. bfloat16 becomes float32. Equal views of one
        storage, such as tied weights, are one array.

    Raises:
        UserError: damaged, big-endian or a TorchScript program.
    """
    try:
        with open(path, "rb") as file:
            return _read_zip(file) if file.peek(2)[:2] == b"PK" else _read_legacy(file)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        text = one_line(str(error)) or type(error).__name__
        raise UserError(f"{path}: not a PyTorch file that can be read safely, or damaged: {text}") from None


def to_array(content: bytes, dtype: str) -> np.ndarray:
    """Bytes as a flat array of `dtype` (NumPy's name, or "bfloat16", which becomes float32)."""
    if dtype != "bfloat16":
        return np.frombuffer(content, dtype)
    # A bfloat16 is the upper half of a float32.
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


def _item_size(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


# ----------------------------------------------------------------------------------------------------
# The two layouts
# ----------------------------------------------------------------------------------------------------


def _read_zip(file: BinaryIO) -> Any:
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")), None)
        if root is None:
            raise pickle.UnpicklingError("a zip archive without data.pkl")
        if any(name.startswith(root + "code/") for name in entries):
            raise pickle.UnpicklingError("a TorchScript program; save the state_dict() of what torch.jit.load gives")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise pickle.UnpicklingError("compressed, which PyTorch's files are not")
        if sum(entry.file_size for entry in entries.values()) > size:
            raise pickle.UnpicklingError("entries that overlap")
        if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
            raise pickle.UnpicklingError("written on a big-endian machine")
        content = InertUnpickler(io.BytesIO(archive.read(root + "data.pkl"))).load()
        cache = {}

        def values(storage: Storage) -> np.ndarray:
            if storage.key not in cache:
                cache[storage.key] = to_array(archive.read(f"{root}data/{storage.key}"), storage.dtype)
            return cache[storage.key]

        return _Resolver(values, LARGER * size).resolved(content)


def _read_legacy(file: BinaryIO) -> Any:
    """Before PyTorch 1.6: four pickles, the list of storage keys, then each storage's size and values."""
    file = io.BytesIO(file.read())  # which gives no more than there is, whatever size is asked for
    magic, protocol, system = (InertUnpickler(file).load() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("a pickle, but not of PyTorch")
    if not system["little_endian"]:
        raise pickle.UnpicklingError("written on a big-endian machine")
    main = InertUnpickler(file)
    content = main.load()
    storages = {}
    for key in InertUnpickler(file).load():
        if type(key) is not str or key not in main.storages:
            raise pickle.UnpicklingError("a storage of an unknown type")
        storage = main.storages[key]
        size = int.from_bytes(file.read(8), "little")
        if size != storage.size:
            raise pickle.UnpicklingError(f"a storage of {size} values where {storage.size} were announced")
        storages[key] = to_array(file.read(size * _item_size(storage.dtype)), storage.dtype)
    return _Resolver(lambda storage: storages[storage.key], LARGER * len(file.getbuffer())).resolved(content)


# ----------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------


class _Resolver:
    """Puts arrays in the place of tensors.

    Args:
        values: `values(storage)` is a storage's flat array.
        most: how many bytes all arrays together may take.
    """

    def __init__(self, values: Callable[[Storage], np.ndarray], most: int) -> None:
        self.values, self.left = values, most
        self.arrays, self.done = {}, {}

    def resolved(self, item: Any) -> Any:
        """What `read_pytorch` returns for `item`; what a pickle refers to many times is resolved once."""
        if isinstance(item, Tensor):
            if item not in self.arrays:
                self.arrays[item] = self._array(item)
            return self.arrays[item]
        if type(item) not in (dict, list, tuple, StandIn):
            return item
        if id(item) in self.done:
            return self.done[id(item)][1]
        result = {} if type(item) is dict else item if type(item) is StandIn else []
        self.done[id(item)] = item, result  # before it is filled, as it may hold itself
        if type(item) is dict:
            result.update((key, self.resolved(value)) for key, value in item.items())
        elif type(item) is not StandIn:
            result.extend(self.resolved(value) for value in item)
        elif item.entries is not None:
            result = self.resolved(item.entries)
        elif _is_module(item):
            result = self.resolved(_state_dict(item))
        elif _numpy_parts(item):
            result = self._numpy_array(*_numpy_parts(item))
        self.done[id(item)] = item, result
        return result

    def _array(self, tensor: Tensor) -> np.ndarray:
        storage, offset, shape, strides = tensor
        flat = self.values(storage)
        if len(flat) != storage.size:
            raise pickle.UnpicklingError(f"a storage of {len(flat)} values, announced were {storage.size}")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0 or math.prod(shape) > len(flat):
            raise pickle.UnpicklingError(f"a tensor of shape {shape} and strides {strides}")
        if math.prod(shape) and last >= len(flat):
            raise pickle.UnpicklingError(f"a tensor that ends at {last} in a storage of {len(flat)} values")
        self._spend(math.prod(shape) * flat.itemsize)
        bytes_ = [stride * flat.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, bytes_).copy()

    def _numpy_array(self, content: Union[str, bytes], dtype: str, shape: tuple[int, ...], order: str) -> np.ndarray:
        if isinstance(content, str):
            self._spend(len(content))
            content = content.encode("latin1")
        return np.frombuffer(content, dtype).reshape(shape, order=order)

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise pickle.UnpicklingError(f"arrays of more than {LARGER} times the file's size")


def _is_module(item: Any) -> bool:
    """Whether a stand-in is one of a torch.nn.Module."""
    return (
        isinstance(item, StandIn)
        and type(item.state) is dict
        and all(type(item.state.get(part)) is dict for part in MODULE_PARTS)
    )


def _state_dict(module: StandIn) -> dict[str, Any]:
    """`{name: tensor}`: what a pickled module's `state_dict()` would give."""
    found, todo, length = {}, [("", module)], 0
    for prefix, module in todo:
        parameters, buffers, modules = (module.state[part] for part in MODULE_PARTS)
        passing = module.state.get("_non_persistent_buffers_set")
        passing = passing.args[0] if isinstance(passing, StandIn) and passing.args else []
        length += (
            sum(
                len(prefix) + len(name) for part in (parameters, buffers, modules) for name in part if type(name) is str
            )
            + len(parameters)
            + len(buffers)
            + len(modules)
            + len(passing)
        )
        if length > LONGEST:  # modules can hold one another, and themselves
            raise pickle.UnpicklingError("a module of too many parts")
        passing = {name for name in passing if type(name) is str}
        for name, value in (*parameters.items(), *buffers.items()):
            if type(name) is str and value is not None and name not in passing:
                found[prefix + name] = value
        todo.extend(
            (f"{prefix}{name}.", part) for name, part in modules.items() if type(name) is str and _is_module(part)
        )
    return found


def _numpy_parts(item: StandIn) -> Optional[tuple[Union[str, bytes], str, tuple[int, ...], str]]:
    """`(content, dtype, shape, order)` of the NumPy array of numbers that a stand-in is one of, else None."""
    try:
        if item.name.endswith("multiarray._reconstruct"):
            _, shape, dtype, fortran, content = item.state
        elif item.name.endswith("numeric._frombuffer"):
            content, dtype, shape, fortran = *item.args[:3], item.args[3] == "F"
        else:
            return None
        if isinstance(content, StandIn) and content.name == "_codecs.encode":  # how protocol 2 writes bytes
            content = content.args[0]
        known = dtype.name == "numpy.dtype" and re.fullmatch("[fiub][1248]", dtype.args[0]) and dtype.state[1] != ">"
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    return (content, dtype.args[0], shape, "F" if fortran else "C") if known and type(content) in (str, bytes) else None
