"""Detectors by name: what is built, pruned, frozen, counted, refused, and loaded from torchvision's files."""

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file

import detection_cases as cases
import torch_files
from golden_cases import FOLDER
from rpg_ms.cells import sparsify
from rpg_ms.errors import UserError
from rpg_ms.models.detection import DetectionLoss, DetectionSettings, create_detector
from rpg_ms.models.flops import layer_flops, parameter_count
from rpg_ms.training.build import _mixed_precision
from rpg_ms.weights import load_weights, pytorch_names, write_weights

GOLDEN = np.load(FOLDER / "detection.npz")
SMALL = {**cases.SETTINGS, "anchor_sizes": ()}
# What torchvision's network of today is called, for each of ours that follows from no rule of layers.
NEW = {
    "backbone.body.conv1.weight": (64, 3, 7, 7),
    "backbone.body.layer2.0.downsample.1.running_var": (128,),
    "backbone.fpn.inner_blocks.3.0.weight": (256, 512, 1, 1),
    "backbone.fpn.layer_blocks.0.0.bias": (256,),
    "rpn.head.conv.0.0.weight": (256, 256, 3, 3),
    "rpn.head.cls_logits.weight": (3, 256, 1, 1),
    "rpn.head.bbox_pred.bias": (12,),
    "roi_heads.box_head.fc6.weight": (1024, 12544),
    "roi_heads.box_head.fc7.bias": (1024,),
    "roi_heads.box_predictor.cls_score.weight": (91, 1024),
    "roi_heads.box_predictor.bbox_pred.weight": (364, 1024),
    "roi_heads.mask_head.3.0.weight": (256, 256, 3, 3),
    "roi_heads.mask_predictor.conv5_mask.weight": (256, 256, 2, 2),
    "roi_heads.mask_predictor.mask_fcn_logits.weight": (91, 256, 1, 1),
}


def tiny(**changes):
    settings = DetectionSettings(**{**SMALL, **changes})
    return create_detector("maskrcnn_cifar_resnet8", cases.CLASSES, 64, 0.5, settings)


def test_torchvisions_names_and_shapes():
    network = create_detector("maskrcnn_resnet18_fpn", 91, 64)
    names = {theirs: name for name, theirs in pytorch_names(network).items()}
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    assert {name: parameters[names[name]].shape for name in NEW} == NEW


@pytest.mark.slow
def test_resnet50_is_of_torchvisions_size():
    network = create_detector("maskrcnn_resnet50_fpn", 91, 256, settings=DetectionSettings(norm="frozen"))
    # torchvision's 44,401,393 count no frozen norms, whose scales and shifts are parameters here.
    assert parameter_count(network) == 44_401_393 + 2 * 26_560
    assert sum(parameter.size for parameter in network.trainable_params()) == 44_401_393


def test_every_layer_can_be_pruned_but_the_predictors():
    network = tiny()
    found = sparsify(network, network.predictors)
    names = [layer.name for layer in found.layers]
    # Body 7, pyramid 6, RPN 1, fc6 and fc7, mask head 4 and the transposed convolution.
    assert len(names) == 7 + 6 + 1 + 2 + 5
    assert "roi_heads.mask_predictor.conv5_mask" in names and "roi_heads.box_head.fc6" in names
    excluded = [name for name, why in found.skipped.items() if why.startswith("excluded")]
    assert [name.removesuffix(".weight") for name in excluded] == [
        "rpn.head.cls_logits",
        "rpn.head.bbox_pred",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    ]
    boxes_only = tiny(masks=False)
    assert len(sparsify(boxes_only, boxes_only.predictors).layers) == len(names) - 5


def test_multiply_adds_count_every_proposal_and_detection():
    network = tiny()
    found = sparsify(network)
    counts = dict(zip((layer.name for layer in found.layers), layer_flops(network, found, (3, 64, 64))[0]))
    channels, hidden = cases.SETTINGS["fpn_channels"], cases.SETTINGS["hidden"]
    assert counts["roi_heads.box_head.fc7"][0] == 50 * hidden**2
    assert counts["roi_heads.mask_head.0.0"][0] == 20 * 14**2 * 9 * channels**2
    assert counts["roi_heads.mask_predictor.conv5_mask"][0] == 20 * 14**2 * 4 * channels**2
    cells = 32**2 + 16**2 + 8**2 + 4**2
    assert counts["rpn.head.conv.0.0"][0] == cells * 9 * channels**2


def test_what_is_trained():
    network = tiny(trainable_layers=2)
    frozen = [parameter.name for parameter in network.get_parameters() if "moving" not in parameter.name]
    frozen = [name for name in frozen if name not in {parameter.name for parameter in network.trainable_params()}]
    assert {name.split(".")[2] for name in frozen} == {"conv1", "bn1", "layer1"}
    assert len(tiny(trainable_layers=4).trainable_params()) == len(tiny(trainable_layers=5).trainable_params())
    assert all("bn" not in parameter.name for parameter in tiny(norm="frozen").trainable_params())


def test_frozen_norms_stay_and_take_no_epsilon():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        network = tiny(norm="frozen", norm_epsilon=0.0).set_train()
        norm = network.backbone.body.bn1
        norm.moving_variance.set_data(ms.Tensor(np.full(8, 1e-6, np.float32)))
        norm.moving_mean.set_data(ms.Tensor(np.ones(8, np.float32)))
        image = ms.Tensor(np.float32(np.random.RandomState(0).standard_normal((2, 8, 4, 4))))
        assert norm(image).asnumpy() == pytest.approx(1e3 * (image.asnumpy() - 1), rel=1e-5)
        assert norm.moving_mean.asnumpy().tolist() == [1] * 8
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("changes", [{"masks": False}, {"roi_align": "operator"}])
def test_other_networks_train(changes):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        network = tiny(**changes)
        arrays = [ms.Tensor(array) for array in (*cases.batch(), cases.keys(network.keys))]
        loss, gradients = ms.value_and_grad(DetectionLoss(network).set_train(), None, network.trainable_params())(
            *arrays
        )
        outputs = network.set_train(False)(*arrays[:2])
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    assert np.isfinite(float(loss.asnumpy()))
    assert all(gradient.asnumpy().any() for gradient in gradients)
    assert [output.shape for output in outputs] == [(2, 20, 4), (2, 20), (2, 20), (2, 20, 28, 28)][: len(outputs)]
    assert len(outputs) == (4 if network.roi_heads.masks else 3)


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_boxes_stay_float32_in_mixed_precision(level):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        whole = tiny()
        network = tiny()
        ms.load_param_into_net(network, {p.name: p for p in whole.get_parameters()})
        network = _mixed_precision(network, level)
        images, valid, *_ = map(ms.Tensor, cases.batch())
        features = [detector.set_train(False)._proposing(images)[0] for detector in (whole, network)]
        assert [str(level.dtype) for level in features[1]] == ["Float32"] * 4
        difference = np.abs(features[0][0].asnumpy() - features[1][0].asnumpy()).max()
        assert 0 < difference < 0.02 * np.abs(features[0][0].asnumpy()).max()  # it does compute in float16
        boxes = network(images, valid)[0].asnumpy()
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    inside = boxes[(boxes > 0) & (boxes % 1 > 0)]
    assert inside.dtype == np.float32 and (inside != inside.astype(np.float16)).mean() > 0.8


@pytest.mark.parametrize(
    ("name", "size", "settings", "message"),
    [
        ("maskrcnn_", 64, {}, "model.name: 'maskrcnn_' is not maskrcnn_ and a residual network"),
        ("resnet50", 64, {}, "model.name: 'resnet50' is not maskrcnn_ and a residual network"),
        ("maskrcnn_cifar_vgg19", 64, {}, "model.name: cifar_vgg19 is not a residual network of mindcv"),
        ("maskrcnn_resnet81", 64, {}, "model.name: 'resnet81' is not one of"),
        ("maskrcnn_resnet_small", 72, {}, "data.image_size: 72 is not a multiple of 16"),
        ("maskrcnn_resnet_small", 64, {"anchor_sizes": (8, 16)}, "detection.anchor_sizes: 2 sizes, not one for"),
    ],
)
def test_what_cannot_be_built(name, size, settings, message):
    with pytest.raises(UserError, match=message):
        create_detector(name, 2, size, settings=DetectionSettings(**settings))


def older(name):
    """torchvision's name in its published files."""
    parts = name.split(".")
    if parts[1] == "fpn":
        return ".".join([*parts[:4], parts[5]])
    if parts[:3] == ["rpn", "head", "conv"]:
        return f"rpn.head.conv.{parts[-1]}"
    if parts[1] == "mask_head":
        return f"roi_heads.mask_head.mask_fcn{int(parts[2]) + 1}.{parts[-1]}"
    return name


@pytest.mark.parametrize("rename", [str, older], ids=["new", "old"])
def test_torchvisions_files_load_and_come_back(tmp_path, rename):
    network = tiny(norm="frozen")
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    theirs = {their: cases.weight(their, parameters[name].shape) for name, their in pytorch_names(network).items()}
    assert rename is str or any(rename(name) != name for name in theirs)
    torch_files.save(tmp_path / "file.pth", {rename(name): value for name, value in theirs.items()})
    load_weights(tmp_path / "file.pth", network, sparsify(network))
    for name, their in pytorch_names(network).items():
        assert np.array_equal(parameters[name].asnumpy(), theirs[their])
    write_weights(tmp_path / "back.safetensors", network)
    back = load_file(tmp_path / "back.safetensors")
    back = {name: value for name, value in back.items() if not name.endswith("num_batches_tracked")}
    assert set(back) == set(theirs)
    assert all(np.array_equal(back[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("theirs", [True, False], ids=["torchvision", "mindspore"])
def test_a_classifiers_weights_start_the_body(tmp_path, theirs):
    network = tiny()
    body = [name for name in pytorch_names(network) if name.startswith("backbone.body.")]
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    names = {name: (pytorch_names(network)[name] if theirs else name)[len("backbone.body.") :] for name in body}
    weights = {their: cases.weight(their, parameters[name].shape) for name, their in names.items()}
    weights["fc.weight" if theirs else "linear.weight"] = np.zeros((10, 32), np.float32)
    torch_files.save(tmp_path / "file.pth", weights.copy())
    allow = ["fc.*", "linear.*", "backbone.fpn.*", "rpn.*", "roi_heads.*"]
    load_weights(tmp_path / "file.pth", network, sparsify(network), allow)
    assert all(np.array_equal(parameters[name].asnumpy(), weights[their]) for name, their in names.items())
    with pytest.raises(UserError, match="not found: backbone.fpn.inner_blocks.0.0.weight"):
        load_weights(tmp_path / "file.pth", tiny(), sparsify(tiny()), ["fc.*", "linear.*"])
