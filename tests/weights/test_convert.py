"""Weights into networks and out again: names, shapes, what does not fit, and what the zeros in a file say."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from safetensors.numpy import load_file, save_file

import torch_files
from doors import TINY, door, last_json, refused
from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.weights import load_weights, pytorch_names, to_pytorch, write_weights


def build(name="cifar_resnet8", classes=10, channels=3, seed=0):
    """A masked network whose every Parameter is random, statistics included."""
    network = create_model(name, classes, channels, 32)
    rng = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        parameter.set_data(ms.Tensor(rng.random(parameter.shape) + 0.1, parameter.dtype))
    return network, sparsify(network)


def values(network):
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def same(network, other):
    one, two = values(network), values(other)
    return list(one) == list(two) and all(np.array_equal(one[name], two[name]) for name in one)


def pruned_state_dict(density=0.1, channels=3, seed=0):
    """PyTorch's weights of a network with zeros in its convolutions and dense layer."""
    network, found = build(channels=channels, seed=seed)
    rng = np.random.default_rng(seed)
    for layer in found.layers:
        set_topology(layer, layer.weight.asnumpy(), rng.random(layer.weight.shape) < density)
    return to_pytorch(network), found


# ----------------------------------------------------------------------------------------------------
# Names
# ----------------------------------------------------------------------------------------------------


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
# Round trips
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18", "mobilenet_v2_035_96", "regnet_x_200mf"])
def test_round_trip(tmp_path, name, suffix):
    network, _ = build(name)
    write_weights(tmp_path / f"x{suffix}", network)
    assert [file.name for file in tmp_path.iterdir()] == [f"x{suffix}"]
    again, found = build(name, seed=1)
    assert not same(network, again)
    load_weights(tmp_path / f"x{suffix}", again, found)
    assert same(network, again) and found.density == 1


def test_counters_complete_a_pytorch_state_dict(tmp_path):
    write_weights(tmp_path / "x.safetensors", build("resnet18")[0])
    written = load_file(tmp_path / "x.safetensors")
    assert len(written) == 122 and "layer1.0.bn1.num_batches_tracked" in written  # as torchvision's resnet18
    assert written["layer1.0.bn1.num_batches_tracked"].dtype == np.int64


def test_mindcvs_own_names(tmp_path):
    """mindcv saves its RegNet as "0.blocks…", which here is "stages.0.blocks…"."""
    import mindcv

    original = mindcv.create_model("regnet_x_200mf", num_classes=10)
    entries = [{"name": parameter.name, "data": parameter} for parameter in original.get_parameters()]
    ms.save_checkpoint(entries, str(tmp_path / "x.ckpt"))
    network, found = build("regnet_x_200mf")
    load_weights(tmp_path / "x.ckpt", network, found)
    for parameter, name in zip(original.get_parameters(), dict(original.parameters_and_names())):
        assert np.array_equal(parameter.asnumpy(), values(network)[name])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"param_groups": [{"lr": 0.1}]}},
        lambda state: {"model": state},
        lambda state: {"model_ema": state},
        lambda state: {"state_dict": {"conv1.weight": np.zeros(1)}, "state_dict_ema": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
        lambda state: {"n_averaged": np.array(7), **{f"module.{name}": value for name, value in state.items()}},
    ],
    ids=["bare", "state_dict", "model", "model_ema", "both", "module", "compiled", "lightning", "averaged"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_wrapped_files(tmp_path, wrap, legacy):
    network, _ = build()
    torch_files.save(tmp_path / "x.pth.tar", wrap(to_pytorch(network)), legacy)
    again, found = build(seed=1)
    load_weights(tmp_path / "x.pth.tar", again, found)
    assert same(network, again)


def test_an_entry_by_name(tmp_path):
    network, _ = build()
    averaged, _ = build(seed=2)
    content = {"state_dict": to_pytorch(network), "state_dict_ema": to_pytorch(averaged)}
    torch_files.save(tmp_path / "x.pth", content)
    again, found = build(seed=1)
    load_weights(tmp_path / "x.pth", again, found, entry="state_dict")
    assert same(network, again)
    with pytest.raises(
        UserError, match="no weights in an entry 'ema'; weights are in state_dict, state_dict_ema: name"
    ):
        load_weights(tmp_path / "x.pth", again, found, entry="ema")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(tmp_path, dtype):
    network, _ = build()
    save_file(
        {
            name: value.astype(dtype) if value.dtype == np.float32 else value
            for name, value in to_pytorch(network).items()
        },
        tmp_path / "x.safetensors",
    )
    again, found = build(seed=1)
    load_weights(tmp_path / "x.safetensors", again, found)
    for name, value in values(network).items():
        assert again.parameters_dict()[name].dtype == network.parameters_dict()[name].dtype
        np.testing.assert_allclose(values(again)[name], value, rtol=1e-3)


def test_pytorch_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    class Block(torch.nn.Module):
        def __init__(self, before, after, stride):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(after)
            self.conv2 = torch.nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(after)
            self.stride, self.pad = stride, (after - before) // 2

        def forward(self, x):
            out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            x = x[:, :, :: self.stride, :: self.stride]
            return torch.relu(out + functional.pad(x, (0, 0, 0, 0, self.pad, self.pad)))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(16)
            for i, (before, after) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
                setattr(self, f"layer{i}", torch.nn.Sequential(Block(before, after, 1 if i == 1 else 2)))
            self.linear = torch.nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    theirs = Net().eval()
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).numpy()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "x.pth")
    network, found = build()
    load_weights(tmp_path / "x.pth", network, found)
    logits = network.set_train(False)(ms.Tensor(x)).asnumpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    write_weights(tmp_path / "x.safetensors", network)
    again = Net().eval()
    written = load_file(tmp_path / "x.safetensors")
    again.load_state_dict({name: torch.tensor(value) for name, value in written.items()})
    with torch.no_grad():
        assert np.array_equal(again(torch.tensor(x)).numpy(), expected)


# ----------------------------------------------------------------------------------------------------
# Prefixes, wrappers and entries
# ----------------------------------------------------------------------------------------------------


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def infixed(infix, state):
    return {
        name.replace("layer1.", f"layer1.{infix}.").replace("conv1.", f"conv1.{infix}."): value
        for name, value in state.items()
    }


@pytest.mark.parametrize(
    "wrap",
    [
        *[
            lambda state, prefix=prefix: prefixed(prefix, state)
            for prefix in (
                "backbone.",
                "network.",
                "net.",
                "encoder_q.",
                "model.module.net.",
                "module.model._orig_mod.",
            )
        ],
        *[
            lambda state, infix=infix: infixed(infix, state)
            for infix in (
                "_orig_mod",
                "module",
                "_fsdp_wrapped_module",
                "_checkpoint_wrapped_module",
                "_fsdp_wrapped_module._checkpoint_wrapped_module",
            )
        ],
        lambda state: prefixed("_fsdp_wrapped_module.net.", infixed("_orig_mod", state)),
    ],
)
def test_prefixes_and_wrappers_are_found(tmp_path, wrap):
    network, _ = build()
    save_file(wrap(to_pytorch(network)), tmp_path / "x.safetensors")
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
# MindSpore's training checkpoints
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda weights: nn.Momentum(weights, 0.1, 0.9),
        lambda weights: nn.SGD(weights, [0.1, 0.2, 0.3], 0.9),
        nn.Adam,
        nn.AdamWeightDecay,
        nn.RMSProp,
        nn.FTRL,
        nn.ASGD,
        nn.Rprop,
        lambda weights: nn.Lamb(weights, 0.1),
        lambda weights: nn.Momentum([{"params": weights[:2], "lr": 0.1}, {"params": weights[2:]}], 0.1, 0.9),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_checkpoints_of_mindspores_own_training(tmp_path, optimizer, wrapped):
    """As `ModelCheckpoint` writes them: the training cell's Parameters, and entries of `append_info`."""
    network = create_model("cifar_resnet8", 10, 3, 32)
    step = nn.TrainOneStepCell(nn.WithLossCell(network, nn.CrossEntropyLoss()), optimizer(network.trainable_params()))
    weights = sorted((parameter.name for parameter in network.get_parameters()), key=len, reverse=True)
    entries = []
    for parameter in step.get_parameters():
        weight = next((name for name in weights if parameter.name.endswith(name)), None)
        name = parameter.name
        if wrapped and weight:  # the weight itself, or what the optimizer keeps for it
            name = f"{name[: -len(weight)]}network.{weight}"
        entries.append({"name": name, "data": parameter})
    ms.save_checkpoint(
        entries,
        str(tmp_path / "x.ckpt"),
        append_dict={"epoch_num": 3, "step_num": 90, "best_acc": 0.7, "stage": "warm-up", "done": True},
    )
    again, found = build(seed=1)
    load_weights(tmp_path / "x.ckpt", again, found)
    for parameter in network.get_parameters():
        assert np.array_equal(again.parameters_dict()[parameter.name].asnumpy(), parameter.asnumpy())


def test_a_scalar_of_the_network_is_no_counter(tmp_path):
    class Scaled(nn.Cell):
        def __init__(self, value):
            super().__init__()
            self.momentum = ms.Parameter(ms.Tensor(value, ms.float32))
            self.linear = nn.Dense(3, 2)

    network, again = Scaled(3.0), Scaled(4.0)
    ms.save_checkpoint(network, str(tmp_path / "x.ckpt"))
    load_weights(tmp_path / "x.ckpt", again, sparsify(again))
    assert again.momentum.asnumpy() == 3


def test_bfloat16_checkpoints(tmp_path):
    network, _ = build()
    entries = [
        {"name": parameter.name, "data": ms.Tensor(parameter.asnumpy(), ms.bfloat16)}
        for parameter in network.get_parameters()
        if parameter.is_floating_point()
    ]
    ms.save_checkpoint(entries, str(tmp_path / "x.ckpt"))
    again, found = build(seed=1)
    load_weights(tmp_path / "x.ckpt", again, found)
    for name, value in values(network).items():
        np.testing.assert_allclose(values(again)[name], value, rtol=2**-8)


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


# ----------------------------------------------------------------------------------------------------
# What does not fit
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message, allow",
    [
        (lambda s: s.pop("bn1.bias"), "not found: bn1.beta$", ["bn1.*"]),
        (lambda s: s.pop("bn1.bias"), "not found: bn1.beta$", ["bn1.bias"]),
        (lambda s: s.update(extra=s["bn1.bias"]), "not used: extra$", ["extra"]),
        (
            lambda s: s.update({"linear.bias": np.zeros(7, np.float32)}),
            r"of another shape: linear.bias \(\(7,\) in the file, \(10,\) in the network\)$",
            ["linear.*"],
        ),
        (lambda s: s.update({"linear.bias": np.zeros(10, np.int32)}), "linear.bias is int32 in the file", None),
        (
            lambda s: s.update({"linear.bias": np.full(10, np.nan, np.float32)}),
            "x.safetensors: linear.bias is not finite$",
            None,
        ),
        (lambda s: s.update({"conv1.weight": np.full((16, 3, 3, 3), 1e300)}), "conv1.weight is not finite$", None),
    ],
    ids=["missing", "missing, by PyTorch's name", "unused", "shape", "type", "NaN", "too large"],
)
def test_every_tensor_is_accounted_for(tmp_path, change, message, allow):
    state = to_pytorch(build()[0])
    change(state)
    save_file(state, tmp_path / "x.safetensors")
    network, found = build(seed=1)
    before = values(network)
    with pytest.raises(UserError, match=message):
        load_weights(tmp_path / "x.safetensors", network, found)
    if allow:
        assert all(np.array_equal(before[name], value) for name, value in values(network).items())
        load_weights(tmp_path / "x.safetensors", network, found, allow)
        changed = {name for name, value in values(network).items() if not np.array_equal(value, before[name])}
        masks = {layer.mask.name for layer in found.layers}
        kept = {"bn1.bias": "bn1.beta", "bn1.*": "bn1.beta", "linear.*": "linear.bias"}.get(allow[0])
        assert changed == set(before) - masks - {kept}


def test_the_message_says_what_to_do_and_is_not_endless(tmp_path):
    write_weights(tmp_path / "x.ckpt", build("cifar_resnet20")[0])
    network, found = build()
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "x.ckpt", network, found, keys="--{}")
    text = str(error.value)
    assert "x.ckpt does not fit the network: not used: layer1.1.conv1.weight" in text and " and " in text
    assert text.endswith("what may differ is named by --allow") and len(text) < 500 and "\n" not in text


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.safetensors", (50).to_bytes(8, "little") + b"{" + b" " * 10, "not a safetensors file, or damaged"),
        ("x.safetensors", b"", "an empty file"),
        (
            "x.pth",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "a pointer of git-LFS, not the weights",
        ),
        ("x.pth", b"\n <!DOCTYPE html><html>", "a web page, not weights"),
        ("x.pth", b"", "an empty file"),
        ("x.pth", b"hello", "not a checkpoint of MindSpore, PyTorch or safetensors: it begins like none of them"),
        ("x.ckpt", b"hello", "not a checkpoint of MindSpore, PyTorch or safetensors"),
        ("x.pth", b"PK\x03\x04 and no more", "not a PyTorch file that can be read safely, or damaged"),
        ("x.safetensors", b"\2\0\0\0\0\0\0\0{}", "holds no weights"),
        ("absent.pth", None, "no such file"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    network, found = build()
    with pytest.raises(UserError, match=f"{name}: .*{message}") as error:
        load_weights(tmp_path / name, network, found)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_written(tmp_path):
    network, _ = build()
    with pytest.raises(UserError, match="x.pth: weights are written to a .ckpt or a .safetensors file"):
        write_weights(tmp_path / "x.pth", network)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_weights(tmp_path / "file" / "x.safetensors", network)


# ----------------------------------------------------------------------------------------------------
# Pruned elsewhere
# ----------------------------------------------------------------------------------------------------


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
