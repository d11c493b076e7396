"""Packed files: exported networks, what loads them, damaged ones."""

import mindspore as ms
import numpy as np
import pytest

from doors import door, refused
from packed_arrays import ABOUT, same
from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.deploy import packed as deploy_packed
from rpg_ms.deploy.export import export
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.training.checkpoint import load_network
from rpg_ms.weights import load_weights, read_weights
from rpg_ms.weights.packed import pack, read_header
from weight_networks import values


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
# Damaged files
# ----------------------------------------------------------------------------------------------------


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
