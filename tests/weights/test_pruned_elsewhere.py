"""Files of networks that were pruned elsewhere: masks from zeros and masks, and the commands on them."""

import json

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import torch_files
from doors import TINY, door, last_json, refused
from rpg_ms.cells.masked import set_topology
from rpg_ms.errors import UserError
from rpg_ms.weights import load_weights, to_pytorch, write_weights
from weight_networks import build, prefixed, pruned_state_dict, values


def test_masks_are_taken_from_the_zeros(tmp_path):
    state, pruned = pruned_state_dict()
    torch_files.save(tmp_path / "x.pth", {"state_dict": state})
    network, found = build(seed=1)
    load_weights(tmp_path / "x.pth", network, found)
    assert 0.08 < found.density < 0.12 and found.nonzero == pruned.nonzero
    for layer, theirs in zip(found.layers, pruned.layers):
        assert np.array_equal(layer.mask.asnumpy(), theirs.mask.asnumpy())
        assert np.array_equal(layer.weight.asnumpy() != 0, layer.mask.asnumpy())


def test_a_few_zeros_do_not_make_a_pruned_network(tmp_path):
    for share, is_pruned in ((0.005, False), (0.02, True)):
        network, found = build()
        rng = np.random.default_rng(0)
        for layer in found.layers:
            weight = layer.weight.asnumpy().copy()
            weight[rng.random(weight.shape) < share] = 0
            layer.weight.set_data(ms.Tensor(weight))
        write_weights(tmp_path / "x.safetensors", network)
        again, found_again = build(seed=1)
        load_weights(tmp_path / "x.safetensors", again, found_again)
        assert (found_again.density < 1) == is_pruned


def test_masks_in_the_file_come_before_its_zeros(tmp_path):
    network, found = build()
    layer = found.layers[0]
    weight = layer.weight.asnumpy().copy()
    weight[0] = 0
    mask = np.ones(weight.shape, bool)
    mask[0, 0] = False  # the rest of weight[0] was just grown: zero, but active
    set_topology(layer, weight, mask)
    ms.save_checkpoint(network, str(tmp_path / "x.ckpt"))
    again, found_again = build(seed=1)
    load_weights(tmp_path / "x.ckpt", again, found_again)
    assert np.array_equal(found_again.layers[0].mask.asnumpy(), mask)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, bool])
def test_masks_of_other_types(tmp_path, dtype):
    state, pruned = pruned_state_dict()
    for layer in pruned.layers:
        state[layer.mask.name] = layer.mask.asnumpy().astype(dtype)
    save_file(state, tmp_path / "x.safetensors")
    network, found = build(seed=1)
    load_weights(tmp_path / "x.safetensors", network, found)
    assert all(np.array_equal(one.mask.asnumpy(), two.mask.asnumpy()) for one, two in zip(found.layers, pruned.layers))
    state["conv1.weight_mask"] = np.full((16, 3, 3, 3), 0.5, np.float32)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="conv1.weight_mask holds more than zeros and ones"):
        load_weights(tmp_path / "x.safetensors", network, found)


def test_networks_of_torch_prune(tmp_path):
    """`weight_orig` and `weight_mask` in the place of `weight`, in some layers; under a prefix; a bias as well."""
    dense, _ = build()
    state, pruned = to_pytorch(dense), build(seed=5)[1]
    rng = np.random.default_rng(0)
    masks = {
        name: rng.random(state[name].shape) < 0.1 for name in ("conv1.weight", "layer1.0.conv1.weight", "linear.bias")
    }
    for name, mask in masks.items():
        state.update({f"{name}_orig": state.pop(name), f"{name}_mask": mask.astype(np.float32)})
    torch_files.save(tmp_path / "x.pth", {"state_dict": prefixed("model.", state)})
    network, found = build(seed=1)
    load_weights(tmp_path / "x.pth", network, found)
    for layer in found.layers:
        mask = masks.get(layer.name + ".weight", True)
        assert np.array_equal(layer.mask.asnumpy(), np.broadcast_to(mask, layer.mask.shape))
        assert np.array_equal(layer.weight.asnumpy(), np.where(mask, values(dense)[layer.weight.name], 0))
    assert np.array_equal(network.linear.bias.asnumpy(), values(dense)["linear.bias"] * masks["linear.bias"])
    assert pruned.density == 1


def test_random_weights_are_not_left_in_silence(tmp_path, caplog):
    def said():  # by this package; MindSpore may have its say too, where it is imported first
        return [record.getMessage() for record in caplog.records if record.name.startswith("rpg_ms.")]

    network, found = build()
    state = to_pytorch(network)
    save_file(
        {name: value for name, value in state.items() if name not in ("conv1.weight", "bn1.weight")},
        tmp_path / "x.safetensors",
    )
    load_weights(tmp_path / "x.safetensors", network, found, ["bn1.*", "*weight"], keys="model.pretrained_{}")
    assert said() == [
        f"{tmp_path}/x.safetensors: as model.pretrained_allow has it, 1 of the {len(found.layers)} weights to prune "
        "are not set and stay random: conv1.weight"
    ]
    caplog.clear()
    del state["bn1.weight"]
    save_file(state, tmp_path / "x.safetensors")
    load_weights(tmp_path / "x.safetensors", network, found, ["bn1.*"])
    assert not said()


FINE_TUNE = [
    "--config",
    "tiny.yaml",
    "--set",
    "model.pretrained=sparse.pth",
    "pruning.method=dense",
    "pruning.alpha=0",
    "train.epochs=1",
    "schedule.warmup_epochs=0",
]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A folder with tiny.yaml and a sparse network pruned elsewhere: sparse.pth, one channel, ten classes."""
    folder = tmp_path_factory.mktemp("sparse")
    (folder / "tiny.yaml").write_text(TINY)
    state, found = pruned_state_dict(channels=1)
    rng = np.random.default_rng(0)
    for name, value in state.items():
        if value.ndim > 1:
            state[name] = (rng.standard_normal(value.shape) * 0.3 * (value != 0)).astype(np.float32)
    torch_files.save(folder / "sparse.pth", {"state_dict": {f"module.{name}": state[name] for name in state}})
    return folder, found.density, found.nonzero


def test_a_published_sparse_network_is_evaluated_exported_and_converted(sparse):
    folder, density, nonzero = sparse
    shared = ["--config", "tiny.yaml", "--checkpoint_path", "sparse.pth"]
    figures = last_json(door("eval.py", *shared, cwd=folder))
    assert figures["density"] == density and figures["steps"] is None and figures["seconds"] is None
    report = last_json(door("export.py", *shared, "--file_format", "MINDIR", "--file_name", "net", cwd=folder))
    assert report["density"] == density and report["nonzero"] == nonzero
    shape = ["--model", "cifar_resnet8", "--num_classes", 10, "--in_channels", 1]
    for source, target in (("sparse.pth", "sparse.ckpt"), ("sparse.ckpt", "back.safetensors")):
        report = last_json(door("convert", *shape, "--from", source, "--to", target, cwd=folder))
        assert report["nonzero"] == nonzero and report["file"] == target
    back = load_file(folder / "back.safetensors")
    assert sum(np.count_nonzero(value) for name, value in back.items() if value.ndim > 1) == nonzero
    refused(
        door("convert", *shape[:2], "--from", "sparse.pth", "--to", "x.ckpt", cwd=folder),
        "sparse.pth does not fit",
        "linear.weight ((10, 64) in the file, (1000, 64)",
        "--allow",
    )
    refused(
        door("convert", *shape, "--from", "sparse.pth", "--to", "x.ckpt", "--prefix", "net", cwd=folder),
        "sparse.pth: no name begins with 'net.'; there are module.",
    )


def test_a_published_sparse_network_is_fine_tuned(sparse):
    folder, density, nonzero = sparse
    options = [*FINE_TUNE, "data.limit=128", "optimizer.weight_decay=0.01", "--output_dir", "tuned"]
    summary = last_json(door("train.py", *options, cwd=folder))
    assert summary["nonzero"] == nonzero and summary["density"] == density
    before = build(channels=1)
    load_weights(folder / "sparse.pth", *before)
    after = build(channels=1)
    load_weights(folder / "tuned/last.ckpt", *after)
    for old, new in zip(before[1].layers, after[1].layers):
        assert np.array_equal(new.mask.asnumpy(), old.mask.asnumpy())
        assert not new.weight.asnumpy()[~old.mask.asnumpy()].any()
        assert not np.array_equal(new.weight.asnumpy(), old.weight.asnumpy())  # and it did train


def test_another_number_of_classes_needs_permission(sparse, tmp_path):
    folder = sparse[0]
    options = [*FINE_TUNE, "data.limit=64", "model.num_classes=12", "--output_dir", tmp_path]
    refused(
        door("train.py", *options, cwd=folder),
        "sparse.pth",
        "linear.weight",
        "(10, 64) in the file",
        "model.pretrained_allow",
    )
    result = door("train.py", *options, "--set", "model.pretrained_allow=[linear.*]", cwd=folder)
    assert result.stderr.count("stay random: linear.weight\n") == 1 and result.stderr.count("\n") == 1, result.stderr
    summary = last_json(result)
    assert summary["nonzero"] < summary["prunable"] / 2
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
