"""Packed content of which a byte was changed, or a part by somebody who knows the format."""

import hashlib
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from safetensors.numpy import load, save

from packed_arrays import ABOUT, same, small
from rpg_ms.weights.packed import FORMAT, NO_DIGEST, pack, unpack
from rpg_ms.weights.positions import deflate


@pytest.mark.parametrize("value_type", ["float32", "int8"])
def test_every_changed_byte_is_noticed(value_type):
    content = pack(small(), value_type, ABOUT)
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        for change in (1 << rng.integers(8), rng.integers(1, 256)):
            changed = bytearray(content)
            changed[place] ^= int(change)
            with pytest.raises(Exception) as caught:
                unpack(bytes(changed))
            assert isinstance(caught.value, ValueError) or type(caught.value).__name__ == "SafetensorError"


def forged(value_type="float32", header=None, table=None, tensors=None):
    """A packed file changed by somebody who knows the format: each argument changes a part."""
    content = pack(small(), value_type, ABOUT)
    length = int.from_bytes(content[:8], "little")
    said = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][FORMAT])
    parts = {name: part.copy() for name, part in load(content).items()}
    if table:
        rows = json.loads(zlib.decompress(parts["table"].tobytes()))
        table(rows)
        parts["table"] = np.frombuffer(zlib.compress(json.dumps(rows).encode()), np.uint8)
    if tensors:
        tensors(parts)
    said["sha256"] = NO_DIGEST
    if header:
        header(said)
    content = save(parts, {FORMAT: json.dumps(said)})
    return content.replace(NO_DIGEST.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def put(part, value, *keys):
    """A function that sets `part[keys[0]][keys[1]]... = value` in what it is given."""

    def change(whole):
        for key in keys[:-1]:
            whole = whole[key]
        whole[keys[-1]] = value

    return {part: change}


def deflated(content):
    return np.frombuffer(deflate(content), np.uint8)


def test_forgery_that_changes_nothing_is_accepted():
    assert same(unpack(forged())[1], small())
    assert same(unpack(forged("int8"))[1], unpack(pack(small(), "int8", ABOUT))[1])


@pytest.mark.parametrize(
    "change, words",
    [
        (put("header", 1, "version"), "version 1 of the format, this program reads version 2"),
        (put("header", "2", "version"), "header is malformed"),
        (put("header", "float8", "value_type"), "header is malformed"),
        (put("header", "float16", "value_type"), r"does not hold .*values \(F16\)"),
        (put("header", 5, "nonzero"), "its values are 4, not the 5 of its header"),
        (put("header", -1, "nonzero"), "its values are 4, not the -1"),
        (put("header", 10**30, "nonzero"), "its values are 4, not the 1000"),
        (put("header", 29, "prunable"), "header counts 29 prunable weights, its table 28"),
        (put("header", 10**30, "prunable"), "header counts 1000"),
        (put("header", 1, "more"), "header is malformed"),
        (put("header", "x", "sha256"), "checksum is wrong"),
        (put("header", float("nan"), "about", "seconds"), "header is malformed"),
        (put("header", "1", "about", "step"), "header is malformed"),
        (put("header", None, "about", "model"), "header is malformed"),
        ({"header": lambda said: said["about"].pop("task")}, "header is malformed"),
        (put("header", float("inf"), "about", "more"), "header is malformed"),
        (put("header", [[float("nan")]], "about", "more"), "header is malformed"),
        (put("header", [], "about"), "header is malformed"),
        (put("table", [2, 3, 3], 0, "shape"), "header counts"),
        (put("table", [3, 2, 4], 0, "shape"), None),  # as many weights: only the network can tell
        (put("table", [2, -3, -4], 0, "shape"), "shape that no parameter has"),
        (put("table", [], 0, "shape"), "table is malformed"),
        (put("table", [0, 2**62], 1, "shape"), "shape that no parameter has"),
        (put("table", [2**30, 2**30], 1, "shape"), "more than the 1073741824"),
        (put("table", [10**30], 1, "shape"), "shape that no parameter has"),
        (put("table", [2.0, 2], 1, "shape"), "table is malformed"),
        (put("table", 3, 0, "nonzero"), "table is malformed"),
        (put("table", "a", 1, "name"), "names a parameter twice"),
        (put("table", "a_mask", 2, "name"), "names a parameter twice"),
        (put("table", "object", 2, "dtype"), "table is malformed"),
        (put("table", "float64", 2, "dtype"), "its rest are"),
        (put("table", [2**20], 2, "shape"), "its rest are"),
        ({"table": lambda rows: rows.pop()}, "its rest are"),
        ({"table": lambda rows: rows.append({"name": "x"})}, "table is malformed"),
        (put("tensors", np.float32("nan"), "values", 1), "a is not finite"),
        (put("tensors", np.float32("inf"), "values", 1), "a is not finite"),
        (put("tensors", 255, "rest", 3), "scale is not finite"),  # of the number 1, bits 24 to 31
        (put("tensors", 2, "rest", -1), "neither true nor false"),
        (put("tensors", 1, "positions", -1), "list of positions is damaged"),
        (put("tensors", np.zeros(9, np.uint8), "positions"), "list of positions is damaged"),
        (put("tensors", np.zeros(0, np.uint8), "positions"), "list of positions is truncated, or longer than 4 bytes"),
        (
            put("tensors", deflated(bytes([2, 5, 0, 10, 0])), "positions"),
            "positions is truncated, or longer than 4 bytes",
        ),
        (put("tensors", deflated(bytes([2, 5, 0])), "positions"), "its positions are not those of 4 weights"),
        (put("tensors", deflated(bytes([2, 5, 0, 255])), "positions"), "its positions are not those of 4 weights"),
        (put("tensors", deflated(bytes([2, 5, 0, 18])), "positions"), "a position beyond its 28 prunable weights"),
        (
            put("tensors", deflated(bytes([2, 5, 0, 17])), "positions"),
            None,
        ),  # where the mask of b is 0: as good a network
        (put("tensors", deflated(bytes(10**8)), "positions"), "positions is truncated, or longer than 4 bytes"),
        (put("tensors", np.zeros((2, 2), np.float32), "values"), "does not hold"),
        (put("tensors", np.zeros(4, np.float64), "values"), "does not hold"),
        (put("tensors", np.zeros(5, np.float32), "values"), "its values are 5, not the 4"),
        (put("tensors", np.zeros(4, np.uint8), "exponents"), "does not hold"),
        ({"tensors": lambda parts: parts.pop("rest")}, "does not hold"),
        (put("tensors", np.zeros(9, np.uint8), "table"), "table is damaged"),
        (put("tensors", deflated(b"[" * 10**6), "table"), "table is malformed"),
        (put("tensors", deflated(b"1" * 10**6), "table"), "table is malformed"),
        (put("tensors", deflated(b" " * 10**7), "table"), "truncated, or longer than"),
        (put("tensors", deflated(b"{}"), "table"), "table is malformed"),
        (put("tensors", deflated(b"\xff"), "table"), "table is malformed"),
        (put("tensors", np.append(deflated(b"[]"), np.uint8(0)), "table"), "truncated, or longer than"),
        ({"value_type": "int8", **put("tensors", -128, "values", 0)}, "-128"),
        ({"value_type": "int8", **put("tensors", 255, "exponents", 0)}, "a is not finite"),
        ({"value_type": "int8", **put("tensors", np.zeros(3, np.uint8), "exponents")}, "exponents are 3, not"),
        ({"value_type": "int8", "tensors": lambda parts: parts.pop("exponents")}, "does not hold"),
    ],
)
def test_forged_files(change, words):
    content = forged(**change)
    tracemalloc.start()
    try:
        if words is None:
            assert not same(unpack(content)[1], small())
            return
        with pytest.raises(ValueError, match=words):
            unpack(content)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
