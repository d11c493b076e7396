"""Packed sparse networks: the weights that the masks keep, where they are, and the rest of the network as is.

Version 1 of the format is a safetensors file. Its metadata hold `Header` as JSON under "rpg_ms.packed";
its tensors are, all little-endian and each in the order of the table:

- `table`, uint8: a JSON list, deflated by zlib, of the network's parameters: `PrunedTensor` or `RestTensor`.
- `positions`, uint8: of each pruned tensor `bytes` bytes, which say where its mask is 1 (`encode_positions`).
- `values`, float32, float16 or int8: the weights there, in row-major order.
- `exponents`, uint8, with int8 only: one for each index `c` of each pruned tensor's first axis, the output
  channel; a weight is its value times `2 ** (exponents[c] - 127)`. (E8M0, the scale of the OCP Microscaling
  formats: a byte a channel, and exact.)
- `rest`, uint8: the bytes of all other parameters.

`sha256` in the header is that of the whole file with these 64 digits as zeros: no byte can change unnoticed.

Positions are Golomb-Rice coded (Rice & Plaunt 1971): for randomly placed weights within 2 % of the entropy at
densities up to 5 %, and at no density more than a bit a position.
"""
from __future__ import annotations

import hashlib
import json
import math
import zlib
from typing import List, Literal, Optional, Union

import numpy as np
import safetensors
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.numpy import save

from rpg_ms.errors import UserError, one_line

FORMAT = "rpg_ms.packed"
VERSION = 1
VALUE_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8"}  # and what safetensors calls them
MASK = "_mask"  # a mask's name is its weight's with this
BIAS = 127  # of the exponents
LARGEST = 2 ** 30  # weights; what a file may unpack to if its reader knows no better
LARGEST_TABLE = 2 ** 22  # bytes
LARGEST_HEADER = 10 ** 8  # bytes; safetensors' own limit
NO_DIGEST = "0" * 64


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Version(BaseModel):
    version: int


class Header(_Strict):
    """What a packed file says of itself.

    `prunable` and `nonzero` count positions of masks; `step` and `seconds` are the training run's, or null.
    """

    version: Literal[1]
    model: str
    num_classes: int
    input_shape: List[int]
    value_type: Literal["float32", "float16", "int8"]
    prunable: int
    nonzero: int
    step: Optional[int]
    seconds: Optional[float] = Field(allow_inf_nan=False)
    sha256: str


class PrunedTensor(_Strict):
    """A weight with a mask: how many ones the mask has, how and in how many bytes they are coded."""

    name: str
    shape: List[int] = Field(min_length=1)
    nonzero: int = Field(ge=0)
    rice: int = Field(ge=0)
    bytes: int = Field(ge=0)
    dtype: Literal["float32", "float16"] = "float32"  # of the network's weight, whatever its values are stored as


class RestTensor(_Strict):
    """Any other parameter."""

    name: str
    shape: List[int]
    dtype: Literal["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]

    @property
    def bytes(self):
        """Its size in the file."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


_TABLE = TypeAdapter(List[Union[PrunedTensor, RestTensor]])


# ----------------------------------------------------------------------------------------------------
# Positions
# ----------------------------------------------------------------------------------------------------


def encode_positions(mask):
    """Where a mask is 1, Golomb-Rice coded.

    The gap before each one is the number of zeros since the one before it. Of every gap come first the `rice`
    low bits, the lowest first; then of every gap the rest in unary, as many zeros and a one. With `rice` 0 it
    is the mask itself, up to its last one. Bits fill bytes from the highest.

    Args:
        mask: bool array of any shape, taken in row-major order.

    Returns:
        `(rice, uint8 array)`, with the `rice` that makes the array shortest.
    """
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    rice = min(range(mask.size.bit_length()), key=lambda bits: len(gaps) * bits + int((gaps >> bits).sum()))
    ends = np.cumsum((gaps >> rice) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    low = [(gaps >> bit & 1).astype(np.uint8) for bit in range(rice)]
    return rice, np.packbits(np.concatenate([np.stack(low, 1).ravel(), unary]) if low else unary)


def decode_positions(code, rice, count, size):
    """The flat indices, increasing, of the `count` ones of a mask of `size` positions: int64 `[count]`.

    Needs memory in proportion to `code`, whatever it holds.

    Raises:
        ValueError: `code` is not the code of such a mask.
    """
    bits = np.unpackbits(code)
    ends = np.flatnonzero(bits[count * rice:])
    if rice > size.bit_length() or len(ends) != count:
        raise ValueError(f"a mask of {count} ones that its code does not hold")
    if len(bits) - count * rice - (ends[-1] + 1 if count else 0) not in range(8):
        raise ValueError("the code of a mask that ends too early or too late")
    gaps = np.diff(ends, prepend=-1) - 1
    if (gaps > size >> rice).any():
        raise ValueError(f"an index beyond the {size} weights of a tensor")
    gaps <<= rice
    for bit in range(rice):
        gaps |= bits[bit:count * rice:rice].astype(np.int64) << bit
    indices = np.cumsum(gaps + 1) - 1
    if count and indices[-1] >= size:
        raise ValueError(f"an index beyond the {size} weights of a tensor")
    return indices


# ----------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------


def _encode_values(values, channels, channel_count, value_type):
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


def _decode_values(values, exponents, channels):
    if values.dtype != np.int8:
        return values.astype(np.float32)
    if (values == -128).any():
        raise ValueError("a value of -128, which is not in [-127, 127]")
    with np.errstate(over="ignore"):
        exponents = exponents[channels].astype(np.int32) - BIAS
        return np.ldexp(values.astype(np.float64), exponents).astype(np.float32)


# ----------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------


def pack(arrays, value_type, about):
    """The content of a packed file.

    Args:
        arrays: `{name: array}`, all parameters of a network; a weight, float32 or float16, is pruned if there is a
            `NAME_mask`, bool of its shape, and it is 0 wherever that is.
        value_type: "float32" (exact), "float16" or "int8"; of the pruned weights only.
        about: dict of the header's `model`, `num_classes`, `input_shape`, `step` and `seconds`.

    Raises:
        ValueError: what the format cannot hold; also weights that are not finite, or not in `value_type`.
    """
    masks = {name + MASK for name in arrays if name + MASK in arrays}
    table, positions, values, exponents, rest = [], [], [], [], []
    for name, array in arrays.items():
        if name in masks:
            continue
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
        if name + MASK not in masks:
            table.append({"name": name, "shape": array.shape, "dtype": array.dtype.name})
            rest.append(array.astype(array.dtype.newbyteorder("<")).tobytes())
            continue
        mask = arrays[name + MASK]
        if (array.dtype not in (np.float32, np.float16) or mask.dtype != np.bool_ or mask.shape != array.shape
                or array[~mask].any()):
            raise ValueError(f"{name} is not a float32 or float16 weight that is 0 wherever its mask is")
        rice, code = encode_positions(mask)
        channels = np.flatnonzero(mask) // (array.size // len(array))
        own_values, own_exponents = _encode_values(array[mask].astype(np.float32), channels, len(array), value_type)
        if not np.isfinite(own_values).all():
            raise ValueError(f"{name} has weights that are too large for {value_type}")
        table.append({"name": name, "shape": array.shape, "nonzero": len(own_values), "rice": rice,
                      "bytes": len(code), **({"dtype": "float16"} if array.dtype == np.float16 else {})})
        positions.append(code)
        values.append(own_values)
        exponents.append(own_exponents)
    tensors = {
        "table": np.frombuffer(zlib.compress(json.dumps(table, separators=(",", ":")).encode(), 9), np.uint8),
        "positions": _joined(positions, np.uint8),
        "values": _joined(values, value_type),
        "rest": np.frombuffer(b"".join(rest), np.uint8),
        **({"exponents": _joined(exponents, np.uint8)} if value_type == "int8" else {})}
    header = {"version": VERSION, **about, "value_type": value_type,
              "prunable": sum(arrays[name].size for name in masks), "nonzero": len(tensors["values"]),
              "sha256": NO_DIGEST}
    content = save(tensors, {FORMAT: json.dumps(header, separators=(",", ":"))})
    return content.replace(NO_DIGEST.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def is_packed(path):
    """Whether a file, which can be read, is a safetensors file of a packed network, whole or not."""
    return f'"{FORMAT}"'.encode() in _read_json_header(path)


def read_header(path):
    """The `Header` of a packed file that `read_packed` has accepted."""
    return _parse_header(_read_json_header(path))


def _parse_header(json_header):
    try:
        text = json.loads(json_header)["__metadata__"][FORMAT]
    except (ValueError, KeyError):
        raise ValueError("its header is damaged") from None
    version = _validated(_Version.model_validate_json, text, "header").version
    if version != VERSION:
        raise ValueError(f"version {version} of the format, this program reads version {VERSION}")
    return _validated(Header.model_validate_json, text, "header")


def unpack(content, largest=LARGEST):
    """The parameters in a packed file: `(Header, {name: array})`, masks included, as `pack` took them.

    Nothing is allocated for what the content only announces until it has been found to be what was written.

    Args:
        content: the file's bytes.
        largest: how many weights, at most, it may hold once unpacked.

    Raises:
        ValueError: damaged, of another version, or larger than that.
    """
    tensors = dict(safetensors.deserialize(content))
    header = _parse_header(_json_header(content))
    if _json_header(content).count(header.sha256.encode()) != 1 or header.sha256 != hashlib.sha256(
            content.replace(header.sha256.encode(), NO_DIGEST.encode(), 1)).hexdigest():
        raise ValueError("its checksum is wrong")
    kinds = {"table": "U8", "positions": "U8", "rest": "U8", "values": VALUE_TYPES[header.value_type]}
    if header.value_type == "int8":
        kinds["exponents"] = "U8"
    if {name: (tensor["dtype"], len(tensor["shape"])) for name, tensor in tensors.items()} != {
            name: (kind, 1) for name, kind in kinds.items()}:
        raise ValueError(f"it does not hold {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}")
    table = _read_table(tensors["table"]["data"])
    _check_sizes(header, table, tensors, largest)

    code = np.frombuffer(tensors["positions"]["data"], np.uint8)
    values = np.frombuffer(tensors["values"]["data"], np.dtype(header.value_type).newbyteorder("<"))
    exponents = np.frombuffer(tensors["exponents"]["data"], np.uint8) if "exponents" in tensors else None
    rest, arrays = memoryview(tensors["rest"]["data"]), {}
    for entry in table:
        if isinstance(entry, RestTensor):
            dtype = np.dtype(entry.dtype)
            array = np.frombuffer(rest[:entry.bytes], dtype.newbyteorder("<")).astype(dtype)
            if entry.dtype == "bool" and (array.view(np.uint8) > 1).any():
                raise ValueError(f"{entry.name} is neither true nor false")
            rest = rest[entry.bytes:]
        else:
            size = math.prod(entry.shape)
            indices = decode_positions(code[:entry.bytes], entry.rice, entry.nonzero, size)
            channels = indices // (size // entry.shape[0])
            array, mask = np.zeros(size, entry.dtype), np.zeros(size, np.bool_)
            with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, which is refused
                array[indices] = _decode_values(values[:entry.nonzero], exponents, channels)
            mask[indices] = True
            arrays[entry.name + MASK] = mask.reshape(entry.shape)
            code, values = code[entry.bytes:], values[entry.nonzero:]
            exponents = None if exponents is None else exponents[entry.shape[0]:]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{entry.name} is not finite")
        arrays[entry.name] = array.reshape(entry.shape)
    return header, arrays


def read_packed(path, largest=LARGEST):
    """`unpack` of a file.

    Raises:
        UserError: it cannot be read, or is not a whole packed network of at most `largest` weights.
    """
    try:
        with open(path, "rb") as file:
            return unpack(file.read(), largest)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: a packed network that cannot be used: {one_line(str(error))}") from None


def _read_table(deflated):
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(deflated, LARGEST_TABLE)
    except zlib.error:
        raise ValueError("its table is damaged") from None
    if not inflate.eof or inflate.unused_data:
        raise ValueError(f"its table is truncated, or longer than {LARGEST_TABLE} bytes")
    return _validated(_TABLE.validate_json, text, "table")


def _check_sizes(header, table, tensors, largest):
    """Refuse a table whose numbers are not those of the tensors, the header and the reader."""
    pruned = [entry for entry in table if isinstance(entry, PrunedTensor)]
    names = [entry.name for entry in table] + [entry.name + MASK for entry in pruned]
    if len(set(names)) != len(names):
        raise ValueError("its table names a parameter twice")
    if any(len(entry.shape) > 8 or any(not 1 <= side < 2 ** 31 for side in entry.shape) for entry in table):
        raise ValueError("its table has a shape that no parameter has")
    size = sum(math.prod(entry.shape) for entry in table)
    if size > largest:
        raise ValueError(f"{header.model} with {size} weights once unpacked, more than the {largest} that are"
                         " expected here")
    prunable = sum(math.prod(entry.shape) for entry in pruned)
    counted = {"positions": sum(entry.bytes for entry in pruned),
               "values": sum(entry.nonzero for entry in pruned),
               "rest": sum(entry.bytes for entry in table if isinstance(entry, RestTensor)),
               "exponents": sum(entry.shape[0] for entry in pruned)}
    for name, count in counted.items():
        if name in tensors and tensors[name]["shape"] != [count]:
            raise ValueError(f"its {name} are {tensors[name]['shape'][0]}, not the {count} of its table")
    if (header.prunable, header.nonzero) != (prunable, counted["values"]):
        raise ValueError(f"its header counts {header.nonzero} of {header.prunable} weights, its table "
                         f"{counted['values']} of {prunable}")


def _validated(validate, text, part):
    try:
        return validate(text)
    except ValidationError as error:
        raise ValueError(f"its {part} is malformed: {error.errors()[0]['msg']}") from None


def _json_header(content):
    return content[8:8 + int.from_bytes(content[:8], "little")]


def _read_json_header(path):
    with open(path, "rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), LARGEST_HEADER))


def _joined(arrays, dtype):
    return np.concatenate([np.zeros(0, dtype), *arrays])
