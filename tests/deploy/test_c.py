"""Exports to C: whole networks, options, what is told of them, and what is refused."""

import json
import subprocess

import mindspore as ms
import numpy as np
import pytest
from mindcv.models.densenet import DenseNet
from mindcv.models.resnet import BasicBlock, Bottleneck, ResNet
from mindspore import nn, ops

from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.deploy.c import compiled
from rpg_ms.deploy.c import format as c_format
from rpg_ms.deploy.export import export
from rpg_ms.errors import UserError
from rpg_ms.models import create_model, vgg_cifar

needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="there is no C compiler")


def pruned(network, density=0.2):
    """The network with that share of its weights and batch norms that have seen something, and its `Sparsified`."""
    rng = np.random.default_rng(0)
    found = sparsify(network)
    for layer in found.layers:
        weight = layer.weight.asnumpy()
        mask = rng.random(weight.shape) < density
        fan_in = weight[0].size * density
        values = rng.standard_normal(weight.shape).astype(np.float32) * np.float32((2 / max(fan_in, 1)) ** 0.5)
        set_topology(layer, values, mask)
    for parameter in network.get_parameters():
        if parameter.name.endswith(("beta", "moving_mean")):
            parameter.set_data(ms.Tensor(rng.normal(0, 0.1, parameter.shape).astype(np.float32)))
        if parameter.name.endswith("moving_variance"):
            parameter.set_data(ms.Tensor(rng.uniform(0.5, 1.5, parameter.shape).astype(np.float32)))
    return network, found


@pytest.fixture(scope="module")
def small():
    return pruned(create_model("cifar_resnet8", 10, 1, width=0.25))


def narrow_vgg(monkeypatch):
    monkeypatch.setattr(vgg_cifar, "CHANNELS", [c if c == "pool" else c // 8 for c in vgg_cifar.CHANNELS])
    return create_model("cifar_vgg19", 10, 1, 28)


def own(_):
    """A network of a user's own, with layers that no model of the registry has so."""
    return nn.SequentialCell(
        nn.Conv2d(1, 6, 5, 2, pad_mode="valid", has_bias=True),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2, 1, pad_mode="same"),
        nn.Conv2d(6, 8, 3, dilation=2, group=2),
        nn.Sigmoid(),
        nn.MaxPool2d(3, 2, pad_mode="same"),
        nn.Flatten(),
        nn.Dense(8 * 6 * 6, 20, activation="relu"),
        nn.Dense(20, 10),
    )


FAMILIES = {
    "cifar_resnet20": lambda _: create_model("cifar_resnet20", 10, 1),
    "cifar_resnet56": lambda _: create_model("cifar_resnet56", 10, 1, width=0.25),
    "cifar_vgg19": narrow_vgg,
    "resnet18": lambda _: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10, in_channels=1),
    "resnet50": lambda _: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, in_channels=1),
    "mobilenet_v1": lambda _: create_model("mobilenet_v1_025", 10, 1, 28),
    "mobilenet_v2": lambda _: create_model("mobilenet_v2_035_96", 10, 1, 28),
    "mobilenet_v3": lambda _: create_model("mobilenet_v3_small_075", 10, 1, 28),  # squeeze and excite, hard swish
    "densenet": lambda _: DenseNet(8, (2, 2, 2), 16, num_classes=10, in_channels=1),
    "efficientnet": lambda _: create_model("efficientnet_b0", 10, 1, 28),
    "own": own,
}


@needs_compiler
@pytest.mark.parametrize(
    "family", [name if name == "cifar_resnet20" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family(family, task, tmp_path, monkeypatch):
    ms.set_seed(3)
    network, found = pruned(FAMILIES[family](monkeypatch))
    report = export(network, found, task, "C", tmp_path / "net")
    assert report["max_abs_difference"] is not None
    outputs = network.set_train(False)(ms.Tensor(task.inputs(8))).asnumpy()
    assert np.ptp(outputs, axis=0).max() > 1e-6, "the same for every image, which proves nothing"
    assert report["executed_multiply_adds"] <= report["nonzero_multiply_adds"] < report["multiply_adds"]


@needs_compiler
def test_pixels_in_probabilities_out_by_the_example(small, task, tmp_path):
    network, found = small
    report = export(network, found, task, "C", tmp_path / "net/", normalize_input=True, softmax=True)
    pixels = np.stack([np.asarray(task.dataset.test.image(i), np.float32)[None] for i in range(3)])
    subprocess.run(["make", "CFLAGS=-O1"], cwd=tmp_path / "net", check=True, capture_output=True)
    printed = subprocess.run(["./net"], cwd=tmp_path / "net", input=pixels.tobytes(), capture_output=True, check=True)
    found = np.array([line.split() for line in printed.stdout.splitlines()], np.float32)
    expected = ops.softmax(network(ms.Tensor(task.inputs(3))), 1).asnumpy()
    assert found.shape == (3, 10) and np.abs(found - expected).max() < 1e-5
    assert report["input_values"] == "pixels, 0 to 255" and report["softmax"] is True


@needs_compiler
def test_what_lies_in_the_folder_and_beside_it(small, task, tmp_path, capsys):
    report = export(*small, task, "C", tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "net.json"]
    names = {path.name for path in (tmp_path / "net").iterdir()}
    assert names == {"net.c", "net.h", "main.c", "Makefile", "README.md"}
    beside = json.loads((tmp_path / "net.json").read_text())
    assert beside["input_shape"] == [1, 1, 28, 28] and set(beside["sha256"]) == names
    for name in ("executed_multiply_adds", "multiply_adds_reduction", "code_bytes", "weights_bytes", "arena_bytes"):
        assert beside[name] == report[name] > 0
    numbers = compiled.macros(tmp_path / "net")
    assert numbers["NET_INPUT_SIZE"] == 784 and numbers["NET_OUTPUT_SIZE"] == 10
    assert numbers["NET_ARENA_BYTES"] == report["arena_bytes"] and numbers["NET_WEIGHTS_BYTES"] == 0
    assert report["multiply_adds"] / report["executed_multiply_adds"] == pytest.approx(
        report["multiply_adds_reduction"], abs=0.01
    )
    assert "a dense runtime" not in capsys.readouterr().err
    again = export(*small, task, "C", tmp_path / "net")  # replaces it
    assert again["sha256"] == report["sha256"]
    (tmp_path / "net/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--file_name: .*net holds notes.txt, which no export wrote; choose another"):
        export(*small, task, "C", tmp_path / "net")
    with pytest.raises(UserError, match="--file_name: .*net.json is a file; choose another"):
        export(*small, task, "C", tmp_path / "net.json")
    assert (tmp_path / "net/notes.txt").read_text() == "mine"


@needs_compiler
def test_a_network_that_is_hardly_sparse_is_warned_of(task, tmp_path, capsys):
    network, found = pruned(create_model("cifar_resnet8", 10, 1, width=0.25), density=0.6)
    report = export(network, found, task, "C", tmp_path / "net")
    assert report["multiply_adds_reduction"] < 3
    assert "the masks leave 1/1.7 of cifar_resnet8's multiply-adds; below about 1/3" in capsys.readouterr().err


@needs_compiler
@pytest.mark.parametrize("value_type, size", [("float16", 4), ("int8", 3)])
def test_rounded_weights(value_type, size, task, small, tmp_path):
    network, found = small
    before = [layer.weight.asnumpy().copy() for layer in found.layers]
    exact = export(network, found, task, "C", tmp_path / "exact")
    report = export(network, found, task, "C", tmp_path / "net", value_type=value_type)
    assert report["value_type"] == value_type and {"top1", "checkpoint_top1"} <= report.keys()
    assert report["checkpoint_top1"] == exact["top1"] and report["max_weight_difference"] > 0
    saved = exact["weights_bytes"] - report["weights_bytes"]
    assert saved >= 0.7 * (8 - size) * found.nonzero
    assert all(np.array_equal(one, layer.weight.asnumpy()) for one, layer in zip(before, found.layers))


def test_without_a_compiler_it_is_written_and_said_not_to_be_verified(small, task, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    report = export(*small, task, "C", tmp_path / "net")
    assert report["max_abs_difference"] is None and report["code_bytes"] is None
    assert "net was not verified, as there is no C compiler here" in capsys.readouterr().err
    assert (tmp_path / "net/net.c").exists()


@needs_compiler
def test_a_network_that_disagrees_is_not_left(small, task, tmp_path, monkeypatch):
    honest = c_format.read_graph

    def tampered(path):
        graph = honest(path)
        graph.constants["linear.weight"] = graph.constants["linear.weight"] * np.float32(1.001)
        return graph

    monkeypatch.setattr(c_format, "read_graph", tampered)
    with pytest.raises(UserError, match="net: its outputs differ from the network's by .*, more than"):
        export(*small, task, "C", tmp_path / "net")
    assert not list(tmp_path.iterdir())


class Attention(nn.Cell):
    """What transformers compute: a product of two things that are both computed."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(28, 28)
        self.out = nn.Dense(28 * 28, 10)

    def construct(self, x):
        x = x.reshape(28, 28)
        x = ops.matmul(x, self.dense(x))
        return self.out(x.reshape(1, -1))


def test_what_c_cannot_hold_is_named(task, tmp_path):
    network, found = pruned(Attention())
    with pytest.raises(UserError) as refusal:
        export(network, found, task, "C", tmp_path / "net")
    assert str(refusal.value).startswith("--file_format: cifar_resnet8 cannot be exported to C: it lacks the operator ")
    assert str(refusal.value).endswith("; ONNX takes it") and not list(tmp_path.iterdir())
