"""Packed sparse networks: the weights that the masks keep, where they are, and the rest of the network as it is.

Version 2 of the format is a safetensors file. Its metadata hold `Header` as JSON under "rpg_ms.packed". Its tensors are
little-endian and each in the order of the table:

- `table`, uint8: a JSON list, deflated by zlib, of the network's parameters: `PrunedTensor` or `RestTensor`.
- `positions`, uint8: where the masks of all pruned tensors, one after another, are 1 (`encode_positions`).
- `values`, float32, float16 or int8: the weights there, in row-major order.
- `exponents`, uint8, with int8 only: one for each index `c` of each pruned tensor's first axis, the output channel. A
  weight is its value times `2 ** (exponents[c] - 127)`. (E8M0, the scale of the OCP Microscaling formats: a byte a
  channel, and exact.)
- `rest`, uint8: the bytes of all other parameters.

`sha256` in the header is that of the whole file with these 64 digits as zeros, so that no byte can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any, Literal, Optional, Union

import numpy as np
import safetensors
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from safetensors.numpy import save

from rpg_ms.errors import UserError, one_line
from rpg_ms.weights.positions import decode_positions, deflate, encode_positions, inflate

FORMAT = "rpg_ms.packed"
VERSION = 2
VALUE_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8"}  # and what safetensors calls them
MASK = "_mask"  # a mask's name is its weight's name with this behind it
BIAS = 127  # of the exponents
LARGEST = 2**30  # weights; what a file may unpack to if its reader knows no better
LARGEST_TABLE = 2**22  # bytes
LARGEST_HEADER = 10**8  # bytes; the limit of safetensors itself
NO_DIGEST = "0" * 64

Arrays = dict[str, np.ndarray]


class _Version(BaseModel):
    version: int


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class About(_Strict, extra="allow"):
    """What the network in a packed file is: what every task says, and any other JSON values that its own task adds.

    `step` and `seconds` are those of the training run, or null.
    """

    task: str
    model: str
    step: Optional[int]
    seconds: Optional[float]

    @model_validator(mode="after")
    def _is_json(self) -> About:
        json.dumps(self.model_dump(), allow_nan=False)  # the parser would take NaN and Infinity, which are not JSON
        return self


class Header(_Strict):
    """What a packed file says of itself. `prunable` and `nonzero` count positions of masks."""

    version: Literal[2]
    about: About
    value_type: Literal["float32", "float16", "int8"]
    prunable: int
    nonzero: int
    sha256: str


class PrunedTensor(_Strict):
    """A weight with a mask; `weight_dtype` is the network's, whatever its values are stored as."""

    name: str
    shape: list[int] = Field(min_length=1)
    weight_dtype: Literal["float32", "float16"] = "float32"


class RestTensor(_Strict):
    """Any other parameter."""

    name: str
    shape: list[int]
    dtype: Literal["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


Table = list[Union[PrunedTensor, RestTensor]]


# ----------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------


def _encode_values(
    values: np.ndarray, channels: np.ndarray, channel_count: int, value_type: str
) -> tuple[np.ndarray, np.ndarray]:
    """float32 `[count]` as `value_type`, and the channels' exponents, uint8 `[channel_count]` or none."""
    if value_type != "int8":
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, which is refused
            return values.astype(value_type), np.zeros(0, np.uint8)
    largest = np.zeros(channel_count, np.float32)
    np.maximum.at(largest, channels, np.abs(values))
    # The smallest power of two by which the largest weight is at most 127; frexp's fraction is in [0.5, 1).
    exponents = np.maximum(np.frexp(largest)[1] - 7, 1 - BIAS)
    exponents += np.rint(np.ldexp(largest.astype(np.float64), -exponents)) > 127
    scaled = np.ldexp(values.astype(np.float64), -exponents[channels])
    return np.rint(scaled).astype(np.int8), (exponents + BIAS).astype(np.uint8)


def _decode_values(values: np.ndarray, exponents: Optional[np.ndarray], channels: np.ndarray) -> np.ndarray:
    """What `_encode_values` was given, rounded; float32 `[count]`."""
    if values.dtype != np.int8:
        return values.astype(np.float32)
    if (values == -128).any():
        raise ValueError("a value of -128, which is not in [-127, 127]")
    with np.errstate(over="ignore"):
        exponents = exponents[channels].astype(np.int32) - BIAS
        return np.ldexp(values.astype(np.float64), exponents).astype(np.float32)


def round_weight(weight: np.ndarray, value_type: str) -> tuple[np.ndarray, np.ndarray]:
    """A weight as a file keeps its values, and the scale of each index of its first axis; float32 both.

    Args:
        weight: any shape of at least one axis.
        value_type: "float16" or "int8"; the scale of the first is 1.

    Raises:
        ValueError: it is not finite, or not in `value_type`.
    """
    channels = np.repeat(np.arange(len(weight)), weight.size // len(weight))
    values, exponents = _encode_values(weight.astype(np.float32).ravel(), channels, len(weight), value_type)
    if not (np.isfinite(weight).all() and np.isfinite(values).all()):
        raise ValueError(f"has weights that are not finite, or too large for {value_type}")
    exponents = exponents.astype(np.int32) - BIAS if value_type == "int8" else np.zeros(len(weight), np.int32)
    return values.astype(np.float32).reshape(weight.shape), np.ldexp(np.float32(1), exponents)


# ----------------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------------


def pack(arrays: Mapping[str, np.ndarray], value_type: str, about: Mapping[str, Any]) -> bytes:
    """The content of a packed file.

    Args:
        arrays: `{name: array}`, all parameters of a network. A weight, float32 or float16, is pruned if there is a
            `NAME_mask`, bool of its shape, and it is 0 wherever that is.
        value_type: "float32" (exact), "float16" or "int8"; of the pruned weights only.
        about: what `About` holds, as plain JSON values.

    Raises:
        ValueError: what the format cannot hold; also weights that are not finite, or not in `value_type`.
    """
    masks = {name + MASK for name in arrays if name + MASK in arrays}
    table, kept, values, exponents, rest = [], [], [], [], []
    for name, array in arrays.items():
        if name in masks:
            continue
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
        entry = {"name": name, "shape": array.shape}
        if name + MASK not in masks:
            table.append({**entry, "dtype": array.dtype.name})
            rest.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
            continue
        mask = arrays[name + MASK]
        is_weight = array.dtype in (np.float32, np.float16)
        if not is_weight or mask.dtype != np.bool_ or mask.shape != array.shape or array[~mask].any():
            raise ValueError(f"{name} is not a float32 or float16 weight that is 0 wherever its mask is")
        channels = np.flatnonzero(mask) // (array.size // len(array))
        own_values, own_exponents = _encode_values(array[mask].astype(np.float32), channels, len(array), value_type)
        if not np.isfinite(own_values).all():
            raise ValueError(f"{name} has weights that are too large for {value_type}")
        table.append({**entry, **({"weight_dtype": "float16"} if array.dtype == np.float16 else {})})
        kept.append(mask.ravel())
        values.append(own_values)
        exponents.append(own_exponents)
    mask = _joined(kept, np.bool_)
    tensors = {
        "table": np.frombuffer(deflate(_json(table).encode()), np.uint8),
        "positions": np.frombuffer(encode_positions(mask), np.uint8),
        "values": _joined(values, value_type),
        "rest": np.frombuffer(b"".join(rest), np.uint8),
        **({"exponents": _joined(exponents, np.uint8)} if value_type == "int8" else {}),
    }
    counts = {"prunable": mask.size, "nonzero": len(tensors["values"])}
    header = {"sha256": NO_DIGEST, "version": VERSION, "about": dict(about), "value_type": value_type, **counts}
    content = save(tensors, {FORMAT: _json(header)})
    return content.replace(NO_DIGEST.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _joined(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])


# ----------------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------------


def is_packed(path: Union[str, PathLike]) -> bool:
    """Whether a file, which can be read, is a safetensors file of a packed network, whole or not."""
    return f'"{FORMAT}"'.encode() in _read_json_header(path)


def read_header(path: Union[str, PathLike]) -> Header:
    """The `Header` of a packed file that `read_packed` has accepted."""
    return _parse_header(_read_json_header(path))


def read_packed(path: Union[str, PathLike], largest: int = LARGEST) -> tuple[Header, Arrays]:
    """`unpack` of a file; a UserError says that it cannot be read, or is no whole packed network so large at most."""
    try:
        with open(path, "rb") as file:
            return unpack(file.read(), largest)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: a packed network that cannot be used: {one_line(str(error))}") from None


def unpack(content: bytes, largest: int = LARGEST) -> tuple[Header, Arrays]:
    """The parameters in a packed file: `(Header, {name: array})`, masks included, as `pack` took them.

    Nothing is allocated for what the content only announces until it has been found to be what was written. A
    ValueError refuses what is damaged, of another version, or of more than `largest` weights once unpacked.
    """
    tensors = dict(safetensors.deserialize(content))
    header = _parse_header(_json_header(content))
    _check_digest(header, content)
    _check_tensors(header, tensors)
    table = _parsed(Table, inflate(tensors["table"]["data"], LARGEST_TABLE, "table"), "table")
    _check_sizes(header, table, tensors, largest)
    rest, arrays = memoryview(tensors["rest"]["data"]), {}
    pruned = _unpack_pruned(header, [entry for entry in table if isinstance(entry, PrunedTensor)], tensors)
    for entry in table:
        if isinstance(entry, RestTensor):
            dtype = np.dtype(entry.dtype)
            array = np.frombuffer(rest[: entry.bytes], dtype.newbyteorder("<")).astype(dtype)
            if entry.dtype == "bool" and (array.view(np.uint8) > 1).any():
                raise ValueError(f"{entry.name} is neither true nor false")
            rest = rest[entry.bytes :]
        else:
            array, mask = next(pruned)
            arrays[entry.name + MASK] = mask.reshape(entry.shape)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{entry.name} is not finite")
        arrays[entry.name] = array.reshape(entry.shape)
    return header, arrays


def _unpack_pruned(
    header: Header, entries: list[PrunedTensor], tensors: Mapping[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each pruned tensor the weight and the mask, bool, both flat."""
    positions = decode_positions(tensors["positions"]["data"], header.nonzero, header.prunable)
    values = np.frombuffer(tensors["values"]["data"], np.dtype(header.value_type).newbyteorder("<"))
    exponents = np.frombuffer(tensors["exponents"]["data"], np.uint8) if "exponents" in tensors else None
    start = 0  # of the tensor among all prunable weights
    for entry in entries:
        size = math.prod(entry.shape)
        first, end = np.searchsorted(positions, (start, start + size))
        indices = positions[first:end] - start
        array, mask = np.zeros(size, entry.weight_dtype), np.zeros(size, np.bool_)
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, which is refused
            array[indices] = _decode_values(values[first:end], exponents, indices // (size // entry.shape[0]))
        mask[indices] = True
        yield array, mask
        start += size
        exponents = None if exponents is None else exponents[entry.shape[0] :]


def _parse_header(json_header: bytes) -> Header:
    try:
        text = json.loads(json_header)["__metadata__"][FORMAT]
    except (ValueError, KeyError):
        raise ValueError("its header is damaged") from None
    version = _parsed(_Version, text, "header").version
    if version != VERSION:
        raise ValueError(f"version {version} of the format, this program reads version {VERSION}")
    return _parsed(Header, text, "header")


def _check_digest(header: Header, content: bytes) -> None:
    digest = header.sha256.encode()
    written = content.replace(digest, NO_DIGEST.encode(), 1)
    if _json_header(content).count(digest) != 1 or header.sha256 != hashlib.sha256(written).hexdigest():
        raise ValueError("its checksum is wrong")


def _check_tensors(header: Header, tensors: Mapping[str, Any]) -> None:
    """Refuse a file that lacks a tensor, has one more, or one of another type."""
    kinds = {"table": "U8", "positions": "U8", "rest": "U8", "values": VALUE_TYPES[header.value_type]}
    if header.value_type == "int8":
        kinds["exponents"] = "U8"
    found = {name: tensor["dtype"] for name, tensor in tensors.items() if len(tensor["shape"]) == 1}
    if found != kinds or len(found) != len(tensors):
        raise ValueError(f"it does not hold {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}")


def _check_sizes(header: Header, table: Table, tensors: Mapping[str, Any], largest: int) -> None:
    """Refuse a table and a header whose numbers are not those of the tensors and the reader."""
    pruned = [entry for entry in table if isinstance(entry, PrunedTensor)]
    names = [entry.name for entry in table] + [entry.name + MASK for entry in pruned]
    if len(set(names)) != len(names):
        raise ValueError("its table names a parameter twice")
    if any(len(entry.shape) > 8 or any(not 1 <= side < 2**31 for side in entry.shape) for entry in table):
        raise ValueError("its table has a shape that no parameter has")
    size = sum(math.prod(entry.shape) for entry in table)
    if size > largest:
        raise ValueError(
            f"{header.about.model} with {size} weights once unpacked, more than the {largest} that are expected here"
        )
    prunable = sum(math.prod(entry.shape) for entry in pruned)
    if header.prunable != prunable:
        raise ValueError(f"its header counts {header.prunable} prunable weights, its table {prunable}")
    counted = {
        "values": (header.nonzero, "header"),
        "rest": (sum(entry.bytes for entry in table if isinstance(entry, RestTensor)), "table"),
        "exponents": (sum(entry.shape[0] for entry in pruned), "table"),
    }
    for name, (count, source) in counted.items():
        if name in tensors and tensors[name]["shape"] != [count]:
            raise ValueError(f"its {name} are {tensors[name]['shape'][0]}, not the {count} of its {source}")


def _parsed(kind: Any, text: Union[str, bytes], part: str) -> Any:
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise ValueError(f"its {part} is malformed: {error.errors()[0]['msg']}") from None


def _json_header(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _read_json_header(path: Union[str, PathLike]) -> bytes:
    with open(path, "rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), LARGEST_HEADER))
