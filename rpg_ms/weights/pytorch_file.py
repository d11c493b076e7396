"""PyTorch's own files (.pth, .pt, .th, .tar), read without PyTorch and without running what a pickle asks for.

A pickle is a small program that names functions and classes and has them called. Here a name is only a text: nothing
is imported, looked up or called, whatever it is. The few names in `FUNCTIONS`, which tensors and state dicts are made
of, stand for a few lines of this file each; everything else becomes a `StandIn`.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import zipfile
from collections import namedtuple
from typing import Any, BinaryIO, Callable, NoReturn, Optional, Union

import numpy as np

from rpg_ms.errors import UserError, one_line

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MOST_PARTS = 10**4  # of a pickled module, as modules can hold one another, and themselves
MODULE_PARTS = ("_parameters", "_buffers", "_modules")
DTYPES = {
    **dict(Double="f8", Float="f4", Half="f2", BFloat16="bfloat16", ComplexFloat="c8", ComplexDouble="c16"),
    **dict(Long="i8", Int="i4", Short="i2", Char="i1", Byte="u1", Bool="b1", Untyped="u1"),
    **dict(QInt8="i1", QUInt8="u1", QInt32="i4"),  # quantized
}
STORAGES = {f"{module}.{name}Storage": dtype for name, dtype in DTYPES.items() for module in ("torch", "torch.storage")}


def is_pytorch(head: bytes) -> bool:
    """Whether a file that begins with these bytes is one of PyTorch's, or at least a pickle or zip archive."""
    return head[:4] == b"PK\x03\x04" or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_pytorch(path: Union[str, os.PathLike]) -> Any:
    """The content of a file written by `torch.save`.

    Returns:
        Containers and plain values, with tensors as arrays that cannot be written to, what else there is as `StandIn`,
        and in dicts modules as their state dicts and NumPy arrays of numbers as arrays. bfloat16 becomes float32. Equal
        views of one storage, such as tied weights, are one array.

    Raises:
        UserError: damaged, big-endian or a TorchScript program.
    """
    try:
        with open(path, "rb") as file:
            return _plain(_read_zip(file) if file.peek(2)[:2] == b"PK" else _read_legacy(file), {})
    except Exception as error:  # a damaged pickle can raise nearly anything
        text = one_line(str(error)) or type(error).__name__
        raise UserError(f"{path}: not a PyTorch file that can be read safely, or damaged: {text}") from None


def to_array(content: bytes, dtype: str) -> np.ndarray:
    """Bytes as a flat array of `dtype` (NumPy's name, or "bfloat16", which becomes float32)."""
    if dtype != "bfloat16":
        return np.frombuffer(content, dtype)
    # A bfloat16 is the upper half of a float32.
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


def _read_zip(file: BinaryIO) -> Any:
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")), None)
        if root is None:
            raise pickle.UnpicklingError("a zip archive without data.pkl")
        if any(name.startswith(root + "code/") for name in entries):
            raise pickle.UnpicklingError("a TorchScript program; save the state_dict() of what torch.jit.load gives")
        if sum(entry.file_size for entry in entries.values()) > size:
            raise pickle.UnpicklingError("entries that are compressed or overlap, unlike those of PyTorch")
        if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
            raise pickle.UnpicklingError("written on a big-endian machine")
        main = io.BytesIO(archive.read(root + "data.pkl"))
        return _Unpickler(main, lambda key, dtype, _: to_array(archive.read(f"{root}data/{key}"), dtype)).load()


def _read_legacy(file: BinaryIO) -> Any:
    """Before PyTorch 1.6: four pickles, the list of storage keys, then each storage's size and values.

    The fourth pickle, the content, is read twice: for the types of the storages, and once these are read.
    """
    file = io.BytesIO(file.read())  # which gives no more than there is, whatever size is asked for
    announced, storages = {}, {}

    def announce(key: str, dtype: str, size: int) -> None:
        announced[key] = dtype, size

    magic, protocol, system = (_Unpickler(file, announce).load() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("a pickle, but not of PyTorch")
    if not system["little_endian"]:
        raise pickle.UnpicklingError("written on a big-endian machine")
    start = file.tell()
    _Unpickler(file, announce).load()
    for key in _Unpickler(file, announce).load():
        if type(key) is not str or key not in announced:
            raise pickle.UnpicklingError("a storage of an unknown type")
        dtype, announced_size = announced[key]
        size = int.from_bytes(file.read(8), "little")
        if size != announced_size:
            raise pickle.UnpicklingError(f"a storage of {size} values where {announced_size} were announced")
        storages[key] = to_array(file.read(size * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)), dtype)
    file.seek(start)
    return _Unpickler(file, lambda key, *_: storages[key]).load()


# ----------------------------------------------------------------------------------------------------
# Pickles
# ----------------------------------------------------------------------------------------------------


class StandIn:
    """In the place of a function, class or object of the pickle: its name and what the pickle gave it.

    `args` is None for the function or class itself and else a tuple; `entries` has what the object was filled with if
    it is like a dict, and `state` what it was to restore itself from. What a list or set is filled with is forgotten.
    """

    def __init__(self, name: str, args: Optional[tuple] = None) -> None:
        self.name, self.args, self.state, self.entries = name, args, None, {}

    def __repr__(self) -> str:
        return self.name[:100]

    def __call__(self, *args: Any) -> Any:
        """What a call of the function or class stands for."""
        if self.args is not None:
            return StandIn("an object", args)
        return FUNCTIONS[self.name](*args) if self.name in FUNCTIONS else StandIn(self.name, args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, _: Any) -> None:
        """Forget an item, or with `extend` a list of them."""

    extend = add = append


class _Dict(dict):
    def __setstate__(self, state: Any) -> None:  # the attributes of an OrderedDict
        pass


class _Unpickler(pickle._Unpickler):  # the one in Python, which needs no memory that the file only asks for
    """Reads a pickle to plain values, containers, arrays and `StandIn`s.

    Nothing outside this module is called.

    Args:
        file: what to read.
        storage: from a storage's key, the name of its dtype as `to_array` takes it and its size to its values, a flat
            array; None if they are not there yet.
    """

    # Classes are called as functions are: NEWOBJ asks for `cls.__new__(cls, *args)`.
    dispatch = {**pickle._Unpickler.dispatch, pickle.NEWOBJ[0]: pickle._Unpickler.load_reduce}

    def __init__(self, file: BinaryIO, storage: Callable[[str, str, int], Optional[np.ndarray]]) -> None:
        super().__init__(file, encoding="latin1")  # of Python 2's strings, NumPy's values among them
        self.storage, self.storages = storage, {}

    def find_class(self, module: str, name: str) -> StandIn:
        return StandIn(f"{module}.{name}")

    def get_extension(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError("a registered extension")

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # arguments by name
        self.load_reduce()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def persistent_load(self, pid: Any) -> Any:
        if len(pid) == 4 and pid[0] == "module":  # a class with its source text, in whole modules before 1.6
            return pid[1]
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, StandIn) or not isinstance(key, str):
            raise pickle.UnpicklingError("a stored object that is not a tensor's storage")
        if view and view[0] is not None:  # part of another storage, as PyTorch wrote before 0.4
            raise pickle.UnpicklingError("a storage that is a view of another")
        if dtype.name not in STORAGES:
            return StandIn(dtype.name, ())
        if key not in self.storages:
            flat = self.storage(key, STORAGES[dtype.name], size)
            if flat is not None and len(flat) != size:
                raise pickle.UnpicklingError(f"a storage of {len(flat)} values, announced were {size}")
            self.storages[key] = StandIn("a storage", ()) if flat is None else _Storage(flat, {})
        return self.storages[key]


_Storage = namedtuple("_Storage", "flat views")  # a flat array, and its views by (offset, shape, strides)


def _rebuild_tensor(storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Any:
    """A view of a storage: an array that cannot be written to, so that it needs no memory of its own."""
    if isinstance(storage, StandIn):  # of a type that is not known here
        return storage
    if not isinstance(storage, _Storage) or not all(type(i) is int for i in (offset, *shape, *strides)):
        raise pickle.UnpicklingError("a tensor without a storage or a shape")
    flat, views = storage
    place = offset, tuple(shape), tuple(strides)
    if place not in views:
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0 or math.prod(shape) > len(flat):
            raise pickle.UnpicklingError(f"a tensor of shape {shape} and strides {strides}")
        if math.prod(shape) and last >= len(flat):
            raise pickle.UnpicklingError(f"a tensor that ends at {last} in a storage of {len(flat)} values")
        steps = [stride * flat.itemsize for stride in strides]
        views[place] = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
    return views[place]


FUNCTIONS = {
    "collections.OrderedDict": _Dict,
    "collections.defaultdict": lambda *_: _Dict(),
    "builtins.set": set,
    "__builtin__.set": set,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda data, *_: data,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, _, args, *__: function(*args),
    "torch.Size": lambda sides=(): sides,
    "copyreg._reconstructor": lambda kind, *_: kind(),
    "copy_reg._reconstructor": lambda kind, *_: kind(),
}


# ----------------------------------------------------------------------------------------------------
# Modules and NumPy's arrays
# ----------------------------------------------------------------------------------------------------


def _plain(item: Any, done: dict[int, dict]) -> Any:
    """What `read_pytorch` returns for an item; `done` has the dicts that were met, as one may hold itself."""
    if isinstance(item, StandIn) and not item.entries:
        if _is_module(item):
            return _state_dict(item)
        array = _numpy_array(item)
        return item if array is None else array
    if isinstance(item, (dict, StandIn)):
        if id(item) not in done:
            done[id(item)] = plain = {}
            entries = item if isinstance(item, dict) else item.entries
            plain.update((name, _plain(value, done)) for name, value in entries.items())
        return done[id(item)]
    return item


def _is_module(item: Any) -> bool:
    """Whether a stand-in is one of a torch.nn.Module."""
    state = item.state if isinstance(item, StandIn) else None
    return isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in MODULE_PARTS)


def _state_dict(module: StandIn) -> dict[str, Any]:
    """`{name: tensor}`: what a pickled module's `state_dict()` would give."""
    found, todo = {}, [("", module)]
    for prefix, module in todo:
        parameters, buffers, modules = (module.state[part] for part in MODULE_PARTS)
        passing = module.state.get("_non_persistent_buffers_set", ())
        for name, value in (*parameters.items(), *buffers.items()):
            if value is not None and name not in passing:
                found[f"{prefix}{name}"] = value
        todo.extend((f"{prefix}{name}.", part) for name, part in modules.items() if _is_module(part))
        if len(todo) > MOST_PARTS:
            raise pickle.UnpicklingError("a module of too many parts")
    return found


def _numpy_array(item: StandIn) -> Optional[np.ndarray]:
    """The NumPy array of numbers that a stand-in is one of, else None."""
    try:
        if item.name.endswith("multiarray._reconstruct"):
            _, shape, dtype, fortran, content = item.state
        elif item.name.endswith("numeric._frombuffer"):
            content, dtype, shape, fortran = *item.args[:3], item.args[3] == "F"
        else:
            return None
        content = content.args[0] if isinstance(content, StandIn) else content  # protocol 2 has _codecs.encode(text)
        content = content.encode("latin1") if isinstance(content, str) else content
        if not re.fullmatch("[fiub][1248]", dtype.args[0]) or dtype.state[1] == ">":
            return None
        return np.frombuffer(content, dtype.args[0]).reshape(shape, order="F" if fortran else "C")
    except (AttributeError, IndexError, TypeError, ValueError):  # of another kind, or damaged
        return None
