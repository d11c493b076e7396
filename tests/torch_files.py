"""Writes files as `torch.save` does, without PyTorch: for tests of what reads them."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
PROTOCOL = 2


class Tensor:
    """A view of a flat array that PyTorch calls a storage; by default all of it."""

    def __init__(self, values, storage=None, offset=0, shape=None, strides=None, kind=None):
        values = np.asarray(values, order="C")
        self.storage = values.ravel() if storage is None else storage
        self.kind = kind or STORAGES[str(self.storage.dtype)]
        self.offset = offset
        self.shape = values.shape if shape is None else shape
        self.strides = tuple(n // values.itemsize for n in values.strides) if strides is None else strides


def _global(module, name):
    value = types.new_class(name)
    value.__module__, value.__qualname__ = module, name
    return value


class _Pickler(pickle.Pickler):
    def __init__(self, file, legacy):
        super().__init__(file, PROTOCOL)
        self.legacy, self.storages = legacy, {}
        self.torch, self.utils = sys.modules["torch"], sys.modules["torch._utils"]

    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        self.storages[obj.key] = obj.values
        pid = ("storage", getattr(self.torch, obj.kind), obj.key, "cpu", obj.values.size)
        return pid + (None,) if self.legacy else pid

    def reducer_override(self, obj):
        if not isinstance(obj, Tensor):
            return NotImplemented
        storage = _Storage(str(id(obj.storage)), obj.kind, obj.storage)
        arguments = storage, obj.offset, obj.shape, obj.strides, False, OrderedDict()
        return self.utils._rebuild_tensor_v2, arguments


class _Storage:
    def __init__(self, key, kind, values):
        self.key, self.kind, self.values = key, kind, values


class Array:
    """A NumPy array that stays one in the file, as NumPy pickles it."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return self.value.__reduce__()


class Named:
    """An object of a class that only the file knows: `module.name`, called with `args`, with `state`."""

    kinds = {}

    def __init__(self, name, args=(), state=None):
        self.name, self.args, self.state = name, args, state
        self.kinds.setdefault(name, _global(*name.rsplit(".", 1)))

    def __reduce__(self):
        return (self.kinds[self.name], self.args) + (() if self.state is None else (self.state,))


def module(parameters=(), buffers=(), modules=(), not_saved=()):
    """A pickled torch.nn.Module with these arrays and parts."""
    state = {
        "training": True,
        "_parameters": dict(parameters),
        "_buffers": dict(buffers),
        "_modules": dict(modules),
        "_non_persistent_buffers_set": set(not_saved),
    }
    return Named("torch.nn.modules.module.Module", state=state)


def save(path, content, legacy=False, compression=zipfile.ZIP_STORED):
    """Write `content`, containers with `Tensor`s or NumPy arrays in them, to a file in one of PyTorch's layouts."""
    modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    for kind in [*STORAGES.values(), "BFloat16Storage"]:
        setattr(modules["torch"], kind, _global("torch", kind))
    modules["torch._utils"]._rebuild_tensor_v2 = _global("torch._utils", "_rebuild_tensor_v2")
    for kind in Named.kinds.values():
        parts = kind.__module__.split(".")
        for end in range(1, len(parts) + 1):  # a module is only found if those above it are
            modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        setattr(modules[kind.__module__], kind.__name__, kind)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        file = io.BytesIO()
        pickler = _Pickler(file, legacy)
        pickler.dump(_tensors(content))
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    if legacy:
        with open(path, "wb") as out:
            for header in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
                pickle.dump(header, out, PROTOCOL)
            out.write(file.getvalue())
            pickle.dump(sorted(pickler.storages), out, PROTOCOL)
            for key in sorted(pickler.storages):
                values = pickler.storages[key]
                out.write(values.size.to_bytes(8, "little") + values.tobytes())
        return
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, values in pickler.storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())


def _tensors(content):
    if isinstance(content, np.ndarray):
        return Tensor(content)
    if isinstance(content, Named):
        return Named(content.name, _tensors(content.args), _tensors(content.state))
    if isinstance(content, dict):
        for key in content:
            content[key] = _tensors(content[key])
    if type(content) in (list, tuple):
        return type(content)(map(_tensors, content))
    return content
