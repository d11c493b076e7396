"""PyTorch's own files (.pth, .pt, .th, .tar), read without PyTorch and without running what a pickle asks for.

A pickle names functions and has them called. Here only the names in `ALLOWED` mean something, and none of them
is imported: each stands for a few lines below that rebuild an array or a container. Any other ends the reading.
"""
from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import namedtuple

import numpy as np

from rpg_ms.errors import UserError, one_line

LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
LEGACY_PROTOCOL = 1001

DTYPES = {"Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": "bfloat16", "Long": "<i8", "Int": "<i4",
          "Short": "<i2", "Char": "<i1", "Byte": "<u1", "Bool": "<b1"}

_Storage = namedtuple("_Storage", "dtype key size")
_Tensor = namedtuple("_Tensor", "storage offset shape strides")


def is_pytorch(head):
    """Whether a file that begins with these bytes is one of PyTorch's, or at least a pickle or zip archive."""
    return head[:4] == b"PK\x03\x04" or head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_pytorch(path):
    """The content of a file written by `torch.save`: containers and plain values, tensors as NumPy arrays.

    bfloat16 becomes float32; command lines and NumPy scalars are passed over.

    Raises:
        UserError: damaged, big-endian, or a pickle that asks for anything but tensors and plain containers.
    """
    try:
        with open(path, "rb") as file:
            return _read_zip(file) if file.peek(2)[:2] == b"PK" else _read_legacy(file)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        text = one_line(str(error)) or type(error).__name__
        raise UserError(f"{path}: not a PyTorch file that can be read safely, or damaged: {text}") from None


def to_array(content, dtype):
    """Bytes as a flat array of `dtype` (NumPy's name, or "bfloat16", which becomes float32)."""
    if dtype != "bfloat16":
        return np.frombuffer(content, dtype)
    # A bfloat16 is the upper half of a float32.
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


def _item_size(dtype):
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


# ----------------------------------------------------------------------------------------------------
# The two layouts
# ----------------------------------------------------------------------------------------------------


def _read_zip(file):
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise pickle.UnpicklingError("compressed, which PyTorch's files are not")
        root = next((name[:-len("data.pkl")] for name in entries if name.endswith("/data.pkl")), None)
        if root is None:
            raise pickle.UnpicklingError("a zip archive without data.pkl")
        if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
            raise pickle.UnpicklingError("written on a big-endian machine")
        content = _Unpickler(io.BytesIO(archive.read(root + "data.pkl")), "zip").load()
        cache = {}

        def values(storage):
            if storage.key not in cache:
                cache[storage.key] = to_array(archive.read(f"{root}data/{storage.key}"), storage.dtype)
            return cache[storage.key]
        return _resolve(content, values)


def _read_legacy(file):
    """Before PyTorch 1.6: four pickles, the list of storage keys, then each storage's size and values."""
    magic, protocol, system = (_Unpickler(file, "legacy").load() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("a pickle, but not of PyTorch")
    if not system["little_endian"]:
        raise pickle.UnpicklingError("written on a big-endian machine")
    main = _Unpickler(file, "legacy")
    content = main.load()
    storages = {}
    for key in _Unpickler(file, "legacy").load():
        storage = main.storages[key]
        size = int.from_bytes(file.read(8), "little")
        if size != storage.size:
            raise pickle.UnpicklingError(f"a storage of {size} values where {storage.size} were announced")
        storages[key] = to_array(file.read(size * _item_size(storage.dtype)), storage.dtype)
    return _resolve(content, lambda storage: storages[storage.key])


def _resolve(content, values):
    """`content` with every tensor as an array of its own; `values(storage)` is a storage's flat array."""
    if isinstance(content, _Tensor):
        storage, offset, shape, strides = content
        flat = values(storage)
        if len(flat) != storage.size:
            raise pickle.UnpicklingError(f"a storage of {len(flat)} values, announced were {storage.size}")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0 or math.prod(shape) > len(flat):
            raise pickle.UnpicklingError(f"a tensor of shape {shape} and strides {strides}")
        if math.prod(shape) and last >= len(flat):
            raise pickle.UnpicklingError(f"a tensor that ends at {last} in a storage of {len(flat)} values")
        bytes_ = [stride * flat.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, bytes_).copy()
    if isinstance(content, dict):
        return {key: _resolve(value, values) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_resolve(value, values) for value in content]
    return content


# ----------------------------------------------------------------------------------------------------
# What a pickle may ask for
# ----------------------------------------------------------------------------------------------------


class _Function:
    """A function for a pickle to call, with nothing on it that a pickle could change."""

    __slots__ = ("_call",)

    def __init__(self, call):
        self._call = call

    def __call__(self, *args):
        return self._call(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a pickle that changes a function")


class _Dict(dict):
    """An OrderedDict's entries without its attributes (PyTorch hangs version numbers on a state dict)."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _Ignored:
    """Something that is no weight and often found beside weights: made with any arguments, holds nothing."""

    __slots__ = ()

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage) or not all(type(i) is int for i in (offset, *shape, *strides)):
        raise pickle.UnpicklingError("a tensor without a storage or a shape")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data, *_):
    return data


ALLOWED = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("torch", "Size"): _Function(tuple),
    **{("torch", f"{name}Storage"): dtype for name, dtype in DTYPES.items()},
    # A command line's options and NumPy's scalars, as timm and DeiT keep them beside the weights.
    ("argparse", "Namespace"): _Ignored,
    ("numpy.core.multiarray", "scalar"): _Ignored,
    ("numpy._core.multiarray", "scalar"): _Ignored,
    ("numpy", "dtype"): _Ignored,
    ("_codecs", "encode"): _Ignored,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, layout):
        super().__init__(file)
        self.layout = layout
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither a tensor nor a "
                                         "plain container")
        return ALLOWED[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, size, *view = pid
        if (kind != "storage" or dtype not in DTYPES.values() or type(size) is not int
                or not isinstance(key, str)):
            raise pickle.UnpicklingError("a stored object that is not a tensor's storage")
        if view and view[0] is not None:  # part of another storage, as PyTorch wrote before 0.4
            raise pickle.UnpicklingError("a storage that is a view of another")
        return self.storages.setdefault(key, _Storage(dtype, key, size))
