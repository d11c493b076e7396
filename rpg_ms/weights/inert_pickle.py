"""Pickles read without running what they ask for.

A pickle is a small program that names functions and classes and has them called. Here a name is only a text: nothing
is imported, looked up or called, whatever it is. The few names in `FUNCTIONS`, which tensors and state dicts are made
of, stand for a few lines of this file each; everything else becomes a `StandIn`, which remembers what it stands for.
"""

from __future__ import annotations

import pickle
from collections import namedtuple
from collections.abc import Iterable, Sequence
from struct import unpack
from typing import Any, BinaryIO, NoReturn, Optional, Union

DTYPES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": "bfloat16",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Bool": "<b1",
    "ComplexFloat": "<c8",
    "ComplexDouble": "<c16",
    "QInt8": "<i1",
    "QUInt8": "<u1",
    "QInt32": "<i4",
    "Untyped": "<u1",
}
STORAGES = {f"{module}.{name}Storage": dtype for name, dtype in DTYPES.items() for module in ("torch", "torch.storage")}
MOST_SIDES = 32  # of a tensor; NumPy takes no more

Storage = namedtuple("Storage", "dtype key size")
Tensor = namedtuple("Tensor", "storage offset shape strides")


class StandIn:
    """In the place of a function, class or object of the pickle: its name and what the pickle gave it.

    `args` is None for the function or class itself and else a tuple; `entries` is a dict if the object was filled
    like one, and `state` what it was to restore itself from.
    """

    __slots__ = ("name", "args", "state", "entries")

    def __init__(self, name: str, args: Optional[tuple] = None) -> None:
        self.name, self.args, self.state, self.entries = name, args, None, None

    def __repr__(self) -> str:
        return self.name[:100]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Union[Tensor, StandIn]:
    if isinstance(storage, StandIn):  # of a type that is not known here
        return storage
    sides = all(type(part) in (tuple, list) and len(part) <= MOST_SIDES for part in (shape, strides))
    if not isinstance(storage, Storage) or not sides or not all(type(i) is int for i in (offset, *shape, *strides)):
        raise pickle.UnpicklingError("a tensor without a storage or a shape")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _first(data: Any, *_: Any) -> Any:
    return data


def _rebuild_from_type(function: Any, _: Any, args: Any, *__: Any) -> Any:
    return _made(function, args)


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    return _put({}, [part for key, value in items for part in (key, value)])


def _reconstructor(kind: Any, *_: Any) -> StandIn:
    return StandIn(_name(kind), ())


FUNCTIONS = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda *_: {},
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": lambda sides=(): sides,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
}


def _name(function: Any) -> str:
    return function.name if isinstance(function, StandIn) and function.args is None else "an object"


def _made(function: Any, args: Any) -> Any:
    """What a call of a function or class stands for."""
    name, args = _name(function), args if type(args) is tuple else ()
    return FUNCTIONS[name](*args) if name in FUNCTIONS else StandIn(name, args)


def _put(target: dict[Any, Any], items: Sequence[Any]) -> dict[Any, Any]:
    """Keys and values, by turns, into a dict. Only texts are hashed: to hash a deep tuple can end the process."""
    for key, value in zip(items[::2], items[1::2]):
        target[key if type(key) is str else StandIn("a key", ())] = value
    return target


class InertUnpickler(pickle._Unpickler):  # the one in Python, in which every operation can be replaced
    """Reads a pickle to None, bool, int, float, str, bytes, list, tuple, dict, `Tensor` and `StandIn`; keys are texts.

    Nothing outside this module is called, and memory is in proportion to the file: nothing is copied that the file
    can refer to many times.

    Raises:
        Exception: nearly any, if the pickle is damaged.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")  # of Python 2's strings, NumPy's values among them
        self.storages = {}

    def find_class(self, module: str, name: str) -> StandIn:
        return StandIn(f"{module}.{name}")

    def get_extension(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError("a registered extension")

    def persistent_load(self, pid: Any) -> Any:
        if len(pid) == 4 and pid[0] == "module":  # a class with its source text, in whole modules before 1.6
            return pid[1]
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, StandIn) or type(size) is not int or not isinstance(key, str):
            raise pickle.UnpicklingError("a stored object that is not a tensor's storage")
        if view and view[0] is not None:  # part of another storage, as PyTorch wrote before 0.4
            raise pickle.UnpicklingError("a storage that is a view of another")
        if dtype.name not in STORAGES:
            return StandIn(dtype.name, ())
        return self.storages.setdefault(key, Storage(STORAGES[dtype.name], key, size))

    def _instantiate(self, kind: Any, args: Iterable[Any]) -> None:  # INST and OBJ
        self.append(_made(kind, tuple(args)))

    def _reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.append(_made(function, args))

    def _new_object_ex(self) -> None:
        self.stack.pop()  # arguments by name
        self._reduce()

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StandIn) and target.args is not None:
            target.state = state

    def _set_items(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.entries = _put(target.entries or {}, items)
        elif type(target) is dict:
            _put(target, items)
        else:
            raise pickle.UnpicklingError("entries of what has none")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _extend(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, StandIn):
            raise pickle.UnpicklingError("items of what has none")

    def _add_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if not isinstance(target, StandIn) or not target.args:
            raise pickle.UnpicklingError("items of what is no set")
        target.args[0].extend(items)

    def _dict(self) -> None:
        items = self.pop_mark()  # which changes what `append` appends to
        self.append(_put({}, items))

    def _frozen_set(self) -> None:
        items = self.pop_mark()
        self.append(StandIn("builtins.frozenset", (items,)))

    def _byte_array(self) -> None:
        content = self.read(unpack("<Q", self.read(8))[0])
        self.append(content)

    dispatch.update(
        {
            pickle.REDUCE[0]: _reduce,
            pickle.NEWOBJ[0]: _reduce,
            pickle.NEWOBJ_EX[0]: _new_object_ex,
            pickle.BUILD[0]: _build,
            pickle.DICT[0]: _dict,
            pickle.FROZENSET[0]: _frozen_set,
            pickle.BYTEARRAY8[0]: _byte_array,
            pickle.SETITEM[0]: _set_item,
            pickle.SETITEMS[0]: lambda self: self._set_items(self.pop_mark()),
            pickle.APPEND[0]: lambda self: self._extend([self.stack.pop()]),
            pickle.APPENDS[0]: lambda self: self._extend(self.pop_mark()),
            pickle.EMPTY_SET[0]: lambda self: self.append(StandIn("builtins.set", ([],))),
            pickle.ADDITEMS[0]: _add_items,
        }
    )
