"""Weights into networks and out again: round trips, MindSpore's own checkpoints, what does not fit."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from safetensors.numpy import load_file, save_file

import torch_files
from rpg_ms.cells import sparsify
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.weights import load_weights, to_pytorch, write_weights
from weight_networks import build, same, values


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
