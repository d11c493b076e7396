"""Names: PyTorch's, prefixes and wrappers, entries of a file, two names of one weight."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from safetensors.numpy import load_file, save_file

import torch_files
from rpg_ms.cells import sparsify
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.weights import load_weights, pytorch_names, to_pytorch, write_weights
from weight_networks import build, prefixed, same, values


def test_torchvisions_names_of_resnet50():
    names = pytorch_names(create_model("resnet50", 1000, 3))
    assert names["bn1.gamma"] == "bn1.weight" and names["bn1.moving_variance"] == "bn1.running_var"
    assert names["layer2.0.down_sample.0.weight"] == "layer2.0.downsample.0.weight"
    assert names["layer2.0.down_sample.1.beta"] == "layer2.0.downsample.1.bias"
    assert names["layer4.2.conv3.weight"] == "layer4.2.conv3.weight" and names["classifier.bias"] == "fc.bias"
    assert len(set(names.values())) == len(names) == 267  # torchvision's 320 entries less its 53 counters


def test_torchvisions_names_of_mobilenet_v2():
    names = pytorch_names(create_model("mobilenet_v2_100", 1000, 3))
    expected = {"classifier.1.weight", "classifier.1.bias"}
    norm = ("weight", "bias", "running_mean", "running_var")

    def conv_and_norm(conv, bn):
        return {f"features.{conv}.weight"} | {f"features.{bn}.{attribute}" for attribute in norm}

    for end in (0, 18):
        expected |= conv_and_norm(f"{end}.0", f"{end}.1")
    for block in range(1, 18):
        narrow = 1 if block == 1 else 2  # convolutions before the linear one; the first block does not expand
        for i in range(narrow):
            expected |= conv_and_norm(f"{block}.conv.{i}.0", f"{block}.conv.{i}.1")
        expected |= conv_and_norm(f"{block}.conv.{narrow}", f"{block}.conv.{narrow + 1}")
    assert set(names.values()) == expected
    assert names["features.3.layers.3.weight"] == "features.1.conv.1.weight"
    assert names["features.4.layers.3.weight"] == "features.2.conv.1.0.weight"  # depthwise


class Others(nn.Cell):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.line = nn.Conv1d(4, 6, 3)
        self.norm = nn.LayerNorm((6,))
        self.slope = nn.PReLU(6)
        self.scale = ms.Parameter(ms.Tensor(np.ones(3, np.float32)), name="gamma")


def test_names_and_shapes_of_other_layers(tmp_path):
    network = Others()
    weights = to_pytorch(network)
    assert {name: value.shape for name, value in weights.items()} == {
        "words.weight": (5, 4),
        "line.weight": (6, 4, 3),
        "norm.weight": (6,),
        "norm.bias": (6,),
        "slope.weight": (6,),
        "gamma": (3,),
    }
    write_weights(tmp_path / "x.safetensors", network)
    again = Others()
    load_weights(tmp_path / "x.safetensors", again, sparsify(again))
    assert np.array_equal(again.line.weight.asnumpy(), network.line.weight.asnumpy())
    assert np.array_equal(again.words.embedding_table.asnumpy(), network.words.embedding_table.asnumpy())


# ----------------------------------------------------------------------------------------------------
# Prefixes, wrappers and entries
# ----------------------------------------------------------------------------------------------------


def infixed(infix, state):
    return {
        name.replace("layer1.", f"layer1.{infix}").replace("conv1.", f"conv1.{infix}"): value
        for name, value in state.items()
    }


PREFIXES = ["backbone.", "network.", "net.", "encoder_q.", "model.module.net.", "module.model._orig_mod."]
INFIXES = ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."]


@pytest.mark.parametrize(
    "prefix, infix",
    [
        *[(prefix, "") for prefix in PREFIXES],
        *[("", infix) for infix in (*INFIXES, "_fsdp_wrapped_module._checkpoint_wrapped_module.")],
        ("_fsdp_wrapped_module.net.", "_orig_mod."),
    ],
)
def test_prefixes_and_wrappers_are_found(tmp_path, prefix, infix):
    network, _ = build()
    save_file(prefixed(prefix, infixed(infix, to_pytorch(network))), tmp_path / "x.safetensors")
    again, found = build(seed=1)
    load_weights(tmp_path / "x.safetensors", again, found)
    assert same(network, again)


def test_a_prefix_of_most_names_is_enough(tmp_path):
    """Lightning's `model.*` beside a loss with weights of its own, which then may be allowed."""
    network, _ = build()
    save_file(
        {**prefixed("model.", to_pytorch(network)), "criterion.weight": np.ones(3, np.float32)},
        tmp_path / "x.safetensors",
    )
    again, found = build(seed=1)
    with pytest.raises(UserError, match="does not fit the network: not used: criterion.weight$"):
        load_weights(tmp_path / "x.safetensors", again, found)
    load_weights(tmp_path / "x.safetensors", again, found, allow=["criterion.*"])
    assert same(network, again)
    load_weights(tmp_path / "x.safetensors", again, found, prefix="model")  # which asks for nothing else
    assert same(network, again)


def test_two_networks_under_two_prefixes_have_to_be_chosen_from(tmp_path):
    query, keys = build(), build(seed=2)
    save_file(
        {
            **prefixed("encoder_q.", to_pytorch(query[0])),
            **prefixed("encoder_k.", to_pytorch(keys[0])),
            "queue": np.ones((2, 3), np.float32),
        },
        tmp_path / "x.safetensors",
    )
    again, found = build(seed=1)
    with pytest.raises(UserError, match="under 'encoder_..' and under 'encoder_..' fit .* by model.pretrained_prefix$"):
        load_weights(tmp_path / "x.safetensors", again, found, keys="model.pretrained_{}")
    for prefix, expected in (("encoder_k", keys), ("encoder_q.", query)):
        load_weights(tmp_path / "x.safetensors", again, found, prefix=prefix)
        assert same(expected[0], again)
    with pytest.raises(UserError, match="no name begins with 'encoder.'; there are encoder_"):
        load_weights(tmp_path / "x.safetensors", again, found, prefix="encoder")
    save_file(
        {**prefixed("model.", to_pytorch(query[0])), **prefixed("loss.model.", to_pytorch(query[0]))},
        tmp_path / "x.safetensors",
    )  # the same network twice
    with pytest.raises(UserError, match="not used: loss.model."):  # but in other memory
        load_weights(tmp_path / "x.safetensors", again, found)
    load_weights(tmp_path / "x.safetensors", again, found, allow=["loss.*"])
    assert same(query[0], again)


def test_entries_are_named(tmp_path):
    network, _ = build()
    again, found = build(seed=1)
    torch_files.save(tmp_path / "x.pth", {"params": to_pytorch(network), "epoch": 1})
    with pytest.raises(UserError, match="no weights; weights are in params: name one by model.pretrained_entry$"):
        load_weights(tmp_path / "x.pth", again, found, keys="model.pretrained_{}")
    load_weights(tmp_path / "x.pth", again, found, entry="params")
    assert same(network, again)
    torch_files.save(
        tmp_path / "x.pth", {"model": {"state_dict": to_pytorch(build(seed=3)[0]), "best.one": to_pytorch(network)}}
    )
    with pytest.raises(
        UserError,
        match="no weights in an entry 'model'; weights are in model.state_dict, model.best.one: name one by --entry$",
    ):
        load_weights(tmp_path / "x.pth", again, found, keys="--{}")
    load_weights(tmp_path / "x.pth", again, found, entry="model.best.one")
    assert same(network, again)
    with pytest.raises(UserError, match="no weights in an entry 'model.other'; weights are in model.state_dict, "):
        load_weights(tmp_path / "x.pth", again, found, entry="model.other")


def test_a_tensor_of_another_kind_is_named_where_it_is_needed(tmp_path):
    network, _ = build()
    state = to_pytorch(network)
    sparse = torch_files.Named("torch._utils._rebuild_sparse_tensor", (0,))
    torch_files.save(tmp_path / "x.pth", {"state_dict": {**state, "adjacency": sparse}})
    again, found = build(seed=1)
    load_weights(tmp_path / "x.pth", again, found)
    assert same(network, again)
    torch_files.save(tmp_path / "x.pth", {"state_dict": {**to_pytorch(network), "conv1.weight": sparse}})
    with pytest.raises(
        UserError,
        match=r"not found: conv1.weight; of a kind that is not read: conv1.weight "
        r"\(torch._utils._rebuild_sparse_tensor\)$",
    ):
        load_weights(tmp_path / "x.pth", again, found)


# ----------------------------------------------------------------------------------------------------
# Two names
# ----------------------------------------------------------------------------------------------------


class Tied(nn.Cell):
    """A block under two names, and one weight in two layers."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.block = nn.SequentialCell(nn.Dense(4, 4), nn.BatchNorm1d(4))
        self.again = self.block
        self.out = nn.Dense(4, 5)
        self.out.weight = self.words.embedding_table
        for name, parameter in self.parameters_and_names():
            parameter.name = name


def test_all_names_are_written_and_read(tmp_path):
    network = Tied()
    write_weights(tmp_path / "x.safetensors", network)
    written = load_file(tmp_path / "x.safetensors")
    block = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(written) == {
        "words.weight",
        "out.weight",
        "out.bias",
        *(f"block.{name}" for name in block),
        *(f"again.{name}" for name in block),
    }
    again = Tied()
    load_weights(tmp_path / "x.safetensors", again, sparsify(again))
    assert all(np.array_equal(value, values(again)[name]) for name, value in values(network).items())
    only = {name: value for name, value in written.items() if not name.startswith("block.")}
    save_file(only, tmp_path / "x.safetensors")
    load_weights(tmp_path / "x.safetensors", again, sparsify(again))
    save_file({**written, "again.0.bias": written["again.0.bias"] + 1}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="(block|again).0.bias and .*.0.bias differ, in the network they are one"):
        load_weights(tmp_path / "x.safetensors", again, sparsify(again))


def test_another_name_of_what_is_loaded_is_no_weight_of_its_own(tmp_path):
    network, _ = build()
    state = {name: torch_files.Tensor(value) for name, value in to_pytorch(network).items()}
    torch_files.save(tmp_path / "x.pth", {**state, "layers.0.weight": state["conv1.weight"]})
    again, found = build(seed=1)
    load_weights(tmp_path / "x.pth", again, found)
    assert same(network, again)
