"""Packed checkpoints: the coder by hand, exact round trips, the size, files that are damaged or forged."""

import hashlib
import json
import math
import tracemalloc
import zlib

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from doors import TINY, door, last_json, refused
from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.deploy import packed as deploy_packed
from rpg_ms.deploy.export import export
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.training.checkpoint import load_network
from rpg_ms.weights import load_weights, read_weights
from rpg_ms.weights.packed import FORMAT, NO_DIGEST, pack, read_header, unpack
from rpg_ms.weights.positions import decode_positions, deflate, encode_positions

ABOUT = {
    "task": "classification",
    "model": "cifar_resnet8",
    "num_classes": 10,
    "input_shape": [1, 28, 28],
    "step": 48,
    "seconds": 1.25,
}


def build(density=0.05, exclude=(), classes=10, seed=0):
    """A masked network, every Parameter of it random, a few kept weights exactly zero."""
    network = create_model("cifar_resnet8", classes, 1)
    found = sparsify(network, exclude)
    rng = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(rng.standard_normal(parameter.shape), parameter.dtype))
    for layer in found.layers:
        mask = rng.random(layer.weight.shape) < density
        mask.flat[3] = True
        weight = layer.weight.asnumpy().copy()
        weight.flat[3] = 0
        set_topology(layer, weight, mask)
    return network, found


def values(network):
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def small():
    """A packed network of two pruned tensors, one empty, and three others."""
    mask = np.zeros((2, 3, 4), np.bool_)
    mask.flat[[2, 8, 9, 20]] = True
    weight = np.zeros((2, 3, 4), np.float32)
    weight.flat[[2, 8, 9, 20]] = 1, -0.25, 0, 0.999
    return {
        "a": weight,
        "a_mask": mask,
        "b": np.zeros((2, 2), np.float32),
        "b_mask": np.zeros((2, 2), np.bool_),
        "scale": np.array([1, 2], np.float32),
        "steps": np.array(7, np.int64),
        "on": np.array([True, False]),
    }


# ----------------------------------------------------------------------------------------------------
# The coder
# ----------------------------------------------------------------------------------------------------


def gaps(*code):
    """A list of positions from the bytes of its gaps."""
    return zlib.compress(bytes(code))


def test_positions_by_hand():
    mask = np.zeros(3000, np.bool_)
    mask[[2, 8, 9, 264, 520, 1286]] = True  # the gaps 2, 5, 0, 254, 255, 765
    code = encode_positions(mask)
    assert list(zlib.decompress(code)) == [2, 5, 0, 254, 255, 0, 255, 255, 255, 0]
    assert decode_positions(code, 6, 3000).tolist() == np.flatnonzero(mask).tolist()
    assert decode_positions(code, 6, 1287).tolist() == np.flatnonzero(mask).tolist()
    with pytest.raises(ValueError, match="a position beyond its 1286 prunable weights"):
        decode_positions(code, 6, 1286)
    assert zlib.decompress(encode_positions(np.zeros(9, np.bool_))) == b""
    assert decode_positions(gaps(), 0, 9).tolist() == []


@pytest.mark.parametrize(
    "code, count, size, words",
    [
        (gaps(1, 2), 1, 99, "not those of 1 weights|longer than 1 bytes"),
        (gaps(1, 2), 3, 99, "not those of 3 weights"),
        (gaps(1, 255), 2, 999, "not those of 2 weights"),  # a gap that does not end
        (gaps(1, 2, 255), 2, 999, "not those of 2 weights"),
        (gaps(255), 0, 999, "not those of 0 weights"),
        (gaps(1, 2), 2, 4, "beyond its 4 prunable"),
        (gaps(0, 0), 2, 1, "beyond its 1 prunable"),
        (gaps(1, 2)[:-1], 2, 99, "truncated, or longer"),
        (gaps(1, 2) + b"x", 2, 99, "truncated, or longer"),
        (gaps(1, 2) + gaps(3), 2, 99, "truncated, or longer"),
        (b"", 2, 99, "truncated, or longer"),
        (b"not of zlib", 2, 99, "list of positions is damaged"),
    ],
)
def test_codes_that_are_none(code, count, size, words):
    with pytest.raises(ValueError, match=words):
        decode_positions(code, count, size)


def test_a_bomb_is_inflated_no_further_than_its_mask_is_long():
    bombs = [zlib.compress(byte * 2**24) for byte in (b"\0", b"\xff")]
    tracemalloc.start()
    try:
        for content in bombs:
            with pytest.raises(ValueError, match="truncated, or longer than 1392 bytes"):
                decode_positions(content, 1000, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 2**18
    finally:
        tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.integers(0, 99))
def test_positions_round_trip(size, density, seed):
    mask = np.random.default_rng(seed).random(size) < density**3
    assert np.array_equal(decode_positions(encode_positions(mask), int(mask.sum()), size), np.flatnonzero(mask))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.booleans(), st.integers(0, 60), st.integers(1, 5000))
def test_any_code_is_refused_or_increasing_and_in_range(content, whole, count, size):
    try:
        indices = decode_positions(zlib.compress(content) if whole else content, count, size)
    except ValueError:
        return
    assert len(indices) == count and (np.diff(indices, prepend=-1) > 0).all() and (indices < size).all()


@pytest.mark.parametrize(
    "density, share",
    [(0.005, 0.9), (0.01, 0.5), (0.02, 0.35), (0.05, 0.25), (0.2, 0.18), (0.5, 0.06), (0.9, 1.15), (1, 0.03)],
)
def test_positions_are_short(density, share):
    """Beyond the entropy, at most `share` percent of the float32 weights and the entropy."""
    mask = np.random.default_rng(0).random(500_000) < density
    density = mask.mean()
    entropy = mask.size / 8 * -sum(p * math.log2(p) for p in (density, 1 - density) if p)
    assert len(encode_positions(mask)) - entropy <= share / 100 * (4 * mask.sum() + entropy)


def test_int8_by_hand():
    arrays = small()
    header, after = unpack(pack(arrays, "int8", ABOUT))
    # Channel 0: the largest weight 1 is 64 steps of 2**-6; of the next smaller step it would be 128.
    # Channel 1: 0.999 would be 127.9 steps of 2**-7, rounded more than 127, so the step is 2**-6 as well.
    assert after["a"].flat[[2, 8, 9, 20]].tolist() == [1, -0.25, 0, 1] and header.nonzero == 4
    assert np.array_equal(after["a_mask"], arrays["a_mask"]) and after["scale"].tolist() == [1, 2]


@settings(max_examples=100, deadline=None)
@given(st.integers(-140, 126), st.integers(0, 99))
def test_int8_is_off_by_half_a_step_at_most(exponent, seed):
    rng = np.random.default_rng(seed)
    weight = np.ldexp(rng.uniform(-1, 1, (5, 7)), exponent).astype(np.float32)
    weight[0] = 0
    _, after = unpack(pack({"w": weight, "w_mask": np.ones((5, 7), np.bool_)}, "int8", ABOUT))
    largest = np.abs(weight).max(1).astype(np.float64)
    step = np.exp2(np.maximum(np.ceil(np.log2(largest / 127.5 + 1e-300)), -126))
    assert (np.abs(after["w"].astype(np.float64) - weight).max(1) <= step / 2 * (1 + 1e-6)).all()


# ----------------------------------------------------------------------------------------------------
# Round trips and the size
# ----------------------------------------------------------------------------------------------------

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from(["float64", "float32", "float16", "int64", "uint8", "bool"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(SHAPES, st.floats(0, 1)), max_size=4),
    st.lists(st.tuples(SHAPES, DTYPES), max_size=4),
    st.integers(0, 99),
)
def test_round_trip_to_the_bit(pruned, rest, seed):
    rng, arrays = np.random.default_rng(seed), {}
    for i, (shape, density) in enumerate(pruned):
        mask = rng.random(shape) < density
        weight = rng.standard_normal(shape).astype(np.float32)
        weight[rng.random(shape) < 0.2] = rng.choice([0.0, -0.0, 1e-45, 3e38])
        arrays[f"layer{i}.weight"] = np.where(mask, weight, np.float32(0))
        arrays[f"layer{i}.weight_mask"] = mask
    for i, (shape, dtype) in enumerate(rest):
        arrays[f"rest{i}"] = (rng.random(shape) * 9).astype(dtype)
    content = pack(arrays, "float32", ABOUT)
    header, after = unpack(content)
    assert same(arrays, after) and content == pack(after, "float32", ABOUT)
    assert header.nonzero == sum(int(a.sum()) for name, a in arrays.items() if name.endswith("_mask"))
    assert header.about.model_dump() == ABOUT


def test_what_another_task_says_of_its_network():
    """Any JSON values come back; what is none is refused, written and read."""
    about = {
        **ABOUT,
        "task": "detection",
        "anchors": [[10, 13.5], [16, 30]],
        "strides": {"p3": 8, "p4": None},
        "mosaic": True,
    }
    assert unpack(pack(small(), "float32", about))[0].about.model_dump() == about
    for value in (float("nan"), [float("inf")]):
        with pytest.raises(ValueError, match="JSON"):
            pack(small(), "float32", {**about, "anchors": value})
    zeros = {**about, "note": NO_DIGEST}  # like the place of the checksum
    assert unpack(pack(small(), "float32", zeros))[0].about.note == NO_DIGEST


@pytest.mark.parametrize("spread", ["even", "uneven", "one layer"])
def test_size_at_98_percent(spread):
    """At most 1.10 of the values, the entropy of where they are, and the rest as it is."""
    network = create_model("cifar_resnet20", 10, 3)
    found = sparsify(network)
    rng = np.random.default_rng(0)
    sizes = [layer.weight.size for layer in found.layers]
    scores = rng.random(found.prunable)
    if spread == "uneven":
        scores *= np.repeat(rng.random(len(sizes)) ** 4, sizes)
    elif spread == "one layer":
        scores += np.repeat(np.arange(len(sizes)) == 15, sizes)
    keep = np.zeros(found.prunable, np.bool_)
    keep[np.argsort(-scores)[: round(0.02 * found.prunable)]] = True
    for layer, mask in zip(found.layers, np.split(keep, np.cumsum(sizes)[:-1])):
        mask = mask.reshape(layer.weight.shape)
        set_topology(layer, rng.standard_normal(mask.shape).astype(np.float32), mask)
    arrays = values(network)
    pruned = {layer.weight.name for layer in found.layers} | {layer.mask.name for layer in found.layers}
    rest = sum(array.nbytes for name, array in arrays.items() if name not in pruned)
    nonzero, density = found.nonzero, found.density
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    for value_type, bits in {"float32": 32, "float16": 16, "int8": 8}.items():
        content = pack(arrays, value_type, {**ABOUT, "model": "cifar_resnet20"})
        assert len(content) <= 1.10 * (nonzero * (bits + entropy / density) / 8 + rest), value_type


# ----------------------------------------------------------------------------------------------------
# Files, networks, front doors
# ----------------------------------------------------------------------------------------------------


class FirstWeight:
    """A task whose figure is the sum of one layer's weights."""

    def about(self):
        return {name: ABOUT[name] for name in ("task", "model", "num_classes", "input_shape")}

    def compile_evaluation(self, network):
        pass

    def evaluate(self, network):
        return {"top1": float(network.linear.weight.asnumpy().astype(np.float64).sum())}


def packed(path, network, found, value_type=None):
    """Export a network; the report."""
    return export(
        network, found, FirstWeight(), "PACKED", path, trained={"step": 48, "seconds": 1.25}, value_type=value_type
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "net.packed"
    packed(path, *build())
    return path


def test_a_packed_file_is_a_checkpoint(file):
    expected, _ = build()
    network, found = build(seed=1)
    assert load_network(file, network, found) == {"step": 48, "seconds": 1.25}
    assert same(values(expected), values(network)) and found.nonzero == build()[1].nonzero
    with pytest.raises(UserError, match="no average"):
        load_network(file, network, found, average=True)


def test_a_packed_file_is_a_start(file):
    """With another classifier, as model.pretrained: masks and all."""
    network, found = build(classes=100, seed=1)
    with pytest.raises(UserError, match=r"linear.weight \(\(10, 64\) in the file, \(100, 64\) in the net"):
        load_weights(file, network, found)
    load_weights(file, network, found, allow=["linear.*"])
    before, after = values(build()[0]), values(network)
    assert all(np.array_equal(before[name], after[name]) for name in before if not name.startswith("linear."))


@pytest.mark.parametrize(
    "packed_without, loaded_without, words",
    [(["conv1"], [], "pruning.exclude"), ([], ["conv1"], "not used: conv1.weight_mask")],
)
def test_other_exclusions(tmp_path, packed_without, loaded_without, words):
    packed(tmp_path / "x.packed", *build(exclude=packed_without))
    with pytest.raises(UserError, match=words):
        load_network(tmp_path / "x.packed", *build(exclude=loaded_without))


@pytest.mark.parametrize("value_type", ["float32", "float16", "int8"])
def test_report(tmp_path, value_type):
    network, found = build()
    before = values(network)
    report = packed(tmp_path / "a" / "net", network, found, value_type)
    assert same(before, values(network)) and read_header(report["file"]).about.model_dump() == ABOUT
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["net.packed"]
    assert report["file"] == str(tmp_path / "a" / "net.packed") and report["bytes"] == len(
        (tmp_path / "a" / "net.packed").read_bytes()
    )
    after = read_weights(report["file"])
    assert report["density"] == found.density and all(
        np.array_equal(after[layer.mask.name], layer.mask.asnumpy()) for layer in found.layers
    )
    if value_type == "float32":
        assert same(before, after) and "top1" not in report
    else:
        total = {
            name: array["linear.weight"].astype(np.float64).sum()
            for name, array in {"top1": after, "checkpoint_top1": before}.items()
        }
        assert {name: report[name] for name in total} == total and report["top1"] != report["checkpoint_top1"]
        assert report["max_weight_difference"] == max(
            np.abs(after[layer.weight.name] - before[layer.weight.name]).max() for layer in found.layers
        )
        assert 0 < report["max_weight_difference"] < {"float16": 2e-3, "int8": 4 / 126}[value_type]


@pytest.mark.parametrize("value_type", ["float32", "float16", "int8"])
def test_float16_networks(tmp_path, value_type):
    """Come back as float16: to the bit but for int8."""
    network, found = build()
    for layer in found.layers:
        layer.weight.set_dtype(ms.float16)
    network.linear.bias.set_dtype(ms.float16)
    before = values(network)
    packed(tmp_path / "x.packed", network, found, value_type)
    after = read_weights(tmp_path / "x.packed")
    assert before["conv1.weight"].dtype == after["conv1.weight"].dtype == np.float16
    assert same(before, values(network))
    if value_type == "int8":
        assert all(np.allclose(after[name], before[name], atol=4 / 126) for name in before)
    else:
        assert same(before, after)
    again, found_again = build(seed=1)  # of float32, which takes them
    load_weights(tmp_path / "x.packed", again, found_again)
    assert found_again.nonzero == found.nonzero
    assert np.array_equal(again.conv1.weight.asnumpy(), after["conv1.weight"].astype(np.float32))


def test_what_cannot_be_packed(tmp_path):
    network, found = build()
    layer = found.layers[0]
    set_topology(layer, layer.weight.asnumpy() * np.float32(1e6), layer.mask.asnumpy())
    with pytest.raises(UserError, match=f"as float16: {layer.weight.name} has weights that are too large"):
        packed(tmp_path / "x.packed", network, found, "float16")
    set_topology(layer, np.full(layer.weight.shape, np.inf, np.float32), layer.mask.asnumpy())
    with pytest.raises(UserError, match=f"{layer.weight.name} is not finite"):
        packed(tmp_path / "x.packed", network, found)
    with pytest.raises(UserError, match="^--file_name: /proc/nowhere/x.packed could not be written: No such file"):
        packed("/proc/nowhere/x.packed", *build())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value_type", ["float32", "float16", "int8"])
def test_what_was_written_wrong_is_not_kept(tmp_path, monkeypatch, value_type):
    def tampering(arrays, *rest):
        wrong = {**arrays, "linear.weight": arrays["linear.weight"] * np.float32(1.1)}
        return pack(wrong, *rest)

    (tmp_path / "x.packed").write_text("before")
    monkeypatch.setattr(deploy_packed, "pack", tampering)
    with pytest.raises(UserError, match="linear.weight is not what was written"):
        packed(tmp_path / "x.packed", *build(), value_type)
    assert [path.name for path in tmp_path.iterdir()] == ["x.packed"]
    assert (tmp_path / "x.packed").read_text() == "before"


def test_front_doors(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    summary = last_json(
        door(
            "train.py",
            "--config",
            "tiny.yaml",
            "--output_dir",
            "out",
            "--set",
            "train.epochs=1",
            "pruning.update_every=1",
            cwd=tmp_path,
        )
    )
    report = last_json(
        door(
            "export.py",
            "--config",
            "tiny.yaml",
            "--checkpoint_path",
            "out/last.ckpt",
            "--file_format",
            "PACKED",
            "--file_name",
            "net",
            cwd=tmp_path,
        )
    )
    assert report["nonzero"] == summary["nonzero"] and report["density"] == summary["density"]
    size = (tmp_path / "out/last.ckpt").stat().st_size
    assert report["bytes"] == (tmp_path / "net.packed").stat().st_size < 0.2 * size
    assert summary == last_json(
        door("eval.py", "--config", "tiny.yaml", "--checkpoint_path", "net.packed", cwd=tmp_path)
    )
    values = ms.load_checkpoint(str(tmp_path / "out/last.ckpt"))
    after = read_weights(tmp_path / "net.packed")
    assert same(
        {name: value.asnumpy() for name, value in values.items() if isinstance(value, ms.Tensor) and ":" not in name},
        after,
    )
    report = last_json(
        door(
            "export.py",
            "--config",
            "tiny.yaml",
            "--checkpoint_path",
            "net.packed",
            "--file_format",
            "MINDIR",
            "--file_name",
            "net",
            cwd=tmp_path,
        )
    )
    assert report["density"] == summary["density"] and report["max_abs_difference"] <= 1e-5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--value_type", "int8"], ["--value_type", "PACKED", "MINDIR"]),
        (["--file_format", "PACKED", "--batch_size", "2"], ["--batch_size", "PACKED"]),
        (["--file_format", "PACKED", "--value_type", "int4"], ["--value_type", "int4", "int8"]),
    ],
)
def test_mistakes(tmp_path, arguments, words):
    refused(
        door(
            "export.py",
            "--config",
            "x.yaml",
            "--checkpoint_path",
            "x.ckpt",
            "--file_name",
            "x",
            *arguments,
            cwd=tmp_path,
        ),
        *words,
    )


# ----------------------------------------------------------------------------------------------------
# Damaged and hostile files
# ----------------------------------------------------------------------------------------------------


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


def test_damaged_files_are_refused_and_change_nothing(file, tmp_path):
    """Hundreds of truncated, extended, overwritten and shuffled files through what the front doors call."""
    content, rng = file.read_bytes(), np.random.default_rng(1)
    network, found = build(seed=1)
    before, path = values(network), tmp_path / "bad.packed"
    for trial in range(400):
        start, stop = sorted(rng.integers(0, len(content) + 1, 2))
        start = start if trial % 8 else start % 900  # the header, more often than its share
        changed = [
            content[:start],
            content + rng.bytes(int(rng.integers(1, 100))),
            content[:start] + bytes([content[start % len(content)] ^ 1 << int(rng.integers(8))]) + content[start + 1 :],
            content[:start] + content[stop:],
            content[:start] + rng.bytes(int(stop - start)) + content[stop:],
            content[:start] + rng.bytes(5) + content[start:],
            content[stop:] + content[:stop],
            content[:start] + content[start:stop][::-1] + content[stop:],
        ][trial % 8]
        if changed == content:
            continue
        path.write_bytes(changed)
        with pytest.raises(UserError) as caught:
            load_network(path, network, found)
        text = str(caught.value)
        assert "bad.packed" in text and "\n" not in text and len(text) < 600
    assert same(before, values(network))


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


def test_a_network_too_large_for_its_reader(file, tmp_path):
    assert len(read_weights(file, largest=100_000)) > 8
    with pytest.raises(UserError, match="net.packed: .*cifar_resnet8 with [0-9]+ weights once unpacked"):
        read_weights(file, largest=10_000)
    bomb = {"a": np.zeros((1, 2**25), np.float32), "a_mask": np.zeros((1, 2**25), np.bool_)}
    (tmp_path / "bomb.packed").write_bytes(pack(bomb, "float32", ABOUT))
    assert (tmp_path / "bomb.packed").stat().st_size < 2000
    network, found = build()
    with pytest.raises(UserError, match="33554432 weights once unpacked"):
        load_network(tmp_path / "bomb.packed", network, found)
