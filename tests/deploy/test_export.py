"""Exported files: that they compute and hold what the network does, and what is refused."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import pytest
from mindcv.models.resnet import Bottleneck, ResNet
from mindcv.models.vit import VisionTransformer
from mindspore import nn, ops

from networks import pruned
from rpg_ms.data.fashion_mnist import CLASSES
from rpg_ms.deploy import onnx_file
from rpg_ms.deploy.export import export
from rpg_ms.deploy.formats import FORMATS
from rpg_ms.deploy.onnx_operators import exportable
from rpg_ms.errors import UserError
from rpg_ms.models import create_model, vgg_cifar


def hard_activations():
    """What a MobileNetV3 has and a MobileNetV2 has not."""
    return nn.SequentialCell(
        [nn.Conv2d(1, 4, 3, 4), nn.HSwish(), nn.Conv2d(4, 4, 1), nn.HSigmoid(), nn.Flatten(), nn.Dense(4 * 7 * 7, 10)]
    )


def transformer():
    """DeiT as `deit_small` builds it, but small."""
    return VisionTransformer(
        image_size=28,
        patch_size=14,
        in_channels=1,
        embed_dim=24,
        depth=1,
        num_heads=3,
        num_classes=10,
        act_layer=partial(nn.GELU, approximate=False),
        norm_layer=partial(nn.LayerNorm, epsilon=1e-6),
    )


def narrow_vgg(monkeypatch):
    monkeypatch.setattr(vgg_cifar, "CHANNELS", [c if c == "pool" else c // 8 for c in vgg_cifar.CHANNELS])
    return create_model("cifar_vgg19", 10, 1, 28)


FAMILIES = {
    "cifar_resnet": lambda _: create_model("resnet_small", 10, 1, width=0.25),
    "cifar_vgg19": narrow_vgg,
    "deit": lambda _: transformer(),
    "resnet50": lambda _: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, in_channels=1),
    "mobilenet_v2": lambda _: create_model("mobilenet_v2_035_96", 10, 1, 28),
    "mobilenet_v3": lambda _: hard_activations(),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_onnxruntime(family, task, tmp_path, monkeypatch):
    ms.set_seed(3)
    network, found = pruned(FAMILIES[family](monkeypatch))
    classes = [type(cell) for _, cell in network.cells_and_names()]
    report = export(network, found, task, "ONNX", tmp_path / "net", batch_size=16)
    images = task.inputs(16)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    outputs = session.run(None, {"images": images})[0]
    expected = network.set_train(False)(ms.Tensor(images)).asnumpy()
    assert np.abs(outputs - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0, "the same for every image, which proves nothing"
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "net.onnx").graph.initializer
    }
    for layer in found.layers:
        assert np.array_equal(weights[layer.weight.name], layer.weight.asnumpy())
    assert report["density"] == found.density < 0.31
    assert [type(cell) for _, cell in network.cells_and_names()] == classes, "left as it was found"


def test_in_place_addition_is_in_place_again():
    class Twice(nn.Cell):
        def construct(self, x):
            out = x * 1
            same = out
            out += x
            return same

    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        before = Twice()(ms.Tensor([1.0])).asnumpy()  # 2 from MindSpore 2.10, 1 from 2.7
        with exportable(Twice()):
            assert Twice()(ms.Tensor([1.0])).asnumpy() == 1
        assert Twice()(ms.Tensor([1.0])).asnumpy() == before
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize(
    "formats", [("MINDIR", "ONNX", "ONNX"), ("ONNX", "MINDIR", "MINDIR")], ids=["mindir first", "onnx first"]
)
def test_again_in_one_process(formats, small, task, tmp_path):
    for i, file_format in enumerate(formats):
        report = export(*small, task, file_format, tmp_path / str(i), batch_size=16)
        assert report["max_abs_difference"] <= 1e-5


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_pixels_in_probabilities_out_for_any_batch(file_format, small, task, tmp_path):
    network, found = small
    report = export(
        network,
        found,
        task,
        file_format,
        tmp_path / "net",
        batch_size=16,
        dynamic_batch=True,
        normalize_input=True,
        softmax=True,
    )
    path = report["file"]
    if file_format == "MINDIR":
        graph = nn.GraphCell(ms.load(path))
    else:
        session = onnxruntime.InferenceSession(path)
        assert session.get_inputs()[0].shape == ["batch", 1, 28, 28]
        assert session.get_outputs()[0].shape == ["batch", 10]
    for batch in (1, 7):
        pixels = np.stack([np.asarray(task.dataset.test.image(i), np.float32)[None] for i in range(batch)])
        assert pixels.max() > 200
        outputs = (
            graph(ms.Tensor(pixels)).asnumpy() if file_format == "MINDIR" else session.run(None, {"images": pixels})[0]
        )
        expected = ops.softmax(network(ms.Tensor(task.inputs(batch))), 1).asnumpy()
        assert outputs.shape == (batch, 10) and np.abs(outputs - expected).max() < 1e-5
        assert np.allclose(outputs.sum(1), 1)
    assert report["input_shape"] == [None, 1, 28, 28] and report["input_values"] == "pixels, 0 to 255"
    assert report["normalize_input"] is True and report["softmax"] is True


def test_what_lies_beside_the_file(small, task, tmp_path):
    network, found = small
    (tmp_path / "net.onnx.json").write_text("of an earlier file")
    report = export(network, found, task, "ONNX", tmp_path / "net.onnx", batch_size=16)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]
    content = (tmp_path / "net.onnx").read_bytes()
    beside = json.loads((tmp_path / "net.onnx.json").read_text())
    assert beside == {
        "file": "net.onnx",
        "format": "ONNX",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "model": "cifar_resnet8",
        "input_shape": [16, 1, 28, 28],
        "input_layout": "NCHW",
        "input_dtype": "float32",
        "input_values": "(pixels / 255 - mean) / std",
        "normalize_input": False,
        "mean": [0.286],
        "std": [0.353],
        "softmax": False,
        "classes": 10,
        "class_names": list(CLASSES),
        "density": found.density,
        "nonzero": found.nonzero,
        "prunable": found.prunable,
        "top1": task.evaluate(network)["top1"],
        "rpg_ms": "0.1.0",
        "mindspore": ms.__version__,
    }
    # Width 4: the stem and two layers at 28 x 28 pixels, 8 channels at 14 x 14, 16 at 7 x 7, the classifier.
    dense = 28 * 28 * 9 * (1 * 4 + 2 * 4 * 4) + 14 * 14 * 9 * (4 * 8 + 8 * 8) + 7 * 7 * 9 * (8 * 16 + 16 * 16) + 16 * 10
    positions = [28 * 28] * 3 + [14 * 14] * 2 + [7 * 7] * 2 + [1]
    assert report["multiply_adds"] == dense
    assert report["nonzero_multiply_adds"] == sum(
        times * int(layer.mask.asnumpy().sum()) for times, layer in zip(positions, found.layers)
    )
    others = 10 + 2 * (3 * 4 + 2 * 8 + 2 * 16)  # the classifier's biases, scale and shift of each batch norm
    assert report["parameters"] == found.prunable + others
    assert report["nonzero_parameters"] == found.nonzero + others


class WithSpareLayer(nn.Cell):
    """A network with a layer that only training would run."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Dense(4, 4)
        self.dense = nn.Dense(28 * 28, 10)

    def construct(self, x):
        return self.dense(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_a_layer_that_inference_leaves_out_is_not_missed(file_format, task, tmp_path):
    network, found = pruned(WithSpareLayer())
    report = export(network, found, task, file_format, tmp_path / "net", batch_size=16)
    assert report["multiply_adds"] == 28 * 28 * 10


# ----------------------------------------------------------------------------------------------------
# Files that do not agree
# ----------------------------------------------------------------------------------------------------


def tamper(monkeypatch, file_format, name, change):
    """Let the exporter write other weights than the network's."""
    owner, function = (ms, "export") if file_format == "MINDIR" else (ms.onnx, "export")
    honest = getattr(owner, function)

    def tampering(deployed, *args, **kwargs):
        weight = deployed.network.parameters_dict()[name]
        before = weight.asnumpy().copy()
        weight.set_data(ms.Tensor(change(before)))
        honest(deployed, *args, **kwargs)
        weight.set_data(ms.Tensor(before))

    monkeypatch.setattr(owner, function, tampering)


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda weight: weight * np.float32(1.01), "outputs differ from the network's by .*, more than"),
        (lambda weight: np.where(weight == 0, np.float32(1e-20), weight), "linear.weight is not the check"),
    ],
    ids=["scaled", "not quite zero"],
)
def test_a_file_that_disagrees_is_not_left(file_format, change, message, small, task, tmp_path, monkeypatch):
    tamper(monkeypatch, file_format, "linear.weight", change)
    with pytest.raises(UserError, match=message):
        export(*small, task, file_format, tmp_path / "net", batch_size=16)
    assert not list(tmp_path.iterdir())


def test_another_top1_class_is_noticed(small, task, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "ONNX", replace(FORMATS["ONNX"], relative_tolerance=1e9))
    tamper(monkeypatch, "ONNX", "linear.weight", lambda weight: -1000 * weight)  # beyond what the biases decide
    with pytest.raises(UserError, match="its top-1 class is not the network's for [0-9]+ of 64 images"):
        export(*small, task, "ONNX", tmp_path / "net", batch_size=16)


# ----------------------------------------------------------------------------------------------------
# What cannot be exported
# ----------------------------------------------------------------------------------------------------


class Unexportable(nn.Cell):
    """Computes with an operator that MindSpore cannot write as ONNX."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(28 * 28, 10)

    def construct(self, x):
        return ops.asinh(self.dense(x.reshape(x.shape[0], -1)))


def test_what_onnx_cannot_hold(task, tmp_path, monkeypatch):
    network, found = pruned(Unexportable())
    with pytest.raises(UserError, match="resnet8 cannot be exported to ONNX: .* operator Asinh; MINDIR"):
        export(network, found, task, "ONNX", tmp_path / "net", batch_size=16)
    monkeypatch.setattr(onnx_file, "LARGEST", 2**10)
    with pytest.raises(UserError, match="ONNX holds at most 2 GiB in one file"):
        export(network, found, task, "ONNX", tmp_path / "net", batch_size=16)
    assert not list(tmp_path.iterdir())


def test_a_file_that_onnxruntime_does_not_take(task, tmp_path, monkeypatch):
    """A transposed convolution as MindSpore writes it; mended it loads, and is compared: this padding differs."""
    layers = [nn.Conv2d(1, 4, 3, 4), nn.Conv2dTranspose(4, 4, 3, 2), nn.Flatten(), nn.Dense(4 * 14 * 14, 10)]
    network, found = pruned(nn.SequentialCell(layers))
    with pytest.raises(UserError, match="its outputs differ from the network's"):
        export(network, found, task, "ONNX", tmp_path / "net", batch_size=16)
    monkeypatch.setattr(onnx_file, "restore_operators", lambda model: None)
    with pytest.raises(UserError, match="^--file_format: .* cannot be exported to ONNX: .*; MINDIR takes it$") as error:
        export(network, found, task, "ONNX", tmp_path / "net", batch_size=16)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    export(network, found, task, "MINDIR", tmp_path / "net", batch_size=16)


@pytest.mark.parametrize("file_format", ["MINDIR", "ONNX"])
def test_a_path_with_blanks_and_letters_beyond_ascii(file_format, small, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    described = export(*small, task, file_format, "my runs/结果/sparse net", batch_size=16)
    assert described["file"] == f"my runs/结果/sparse net.{file_format.lower()}"
    assert sorted(path.name for path in (tmp_path / "my runs/结果").iterdir()) == [
        f"sparse net.{file_format.lower()}",
        f"sparse net.{file_format.lower()}.json",
    ]


def test_a_network_that_computes_with_its_batch_size(task, tmp_path):
    network, found = pruned(WithSpareLayer())  # reshapes to the batch that it was compiled for
    with pytest.raises(UserError, match="^--dynamic_batch: the network computes with its batch size, "):
        export(network, found, task, "ONNX", tmp_path / "net", batch_size=16, dynamic_batch=True)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written(small, task, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--file_name: .*file/net.mindir could not be written: "):
        export(*small, task, "MINDIR", tmp_path / "file/net")
