"""PyTorch's files: what they hold is read."""

import argparse
import datetime
import enum
import pathlib
import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest

import torch_files
from rpg_ms.errors import UserError
from rpg_ms.weights.pytorch_file import StandIn, read_pytorch

both_layouts = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@both_layouts
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "bool"])
def test_values_and_types(tmp_path, legacy, dtype):
    value = (np.arange(24).reshape(2, 3, 4) % 3).astype(dtype)
    scalar = np.array(5).astype(dtype)
    torch_files.save(tmp_path / "x.pth", {"a": value.copy(), "nested": {"scalar": scalar}}, legacy)
    content = read_pytorch(tmp_path / "x.pth")
    assert content["a"].dtype == dtype and np.array_equal(content["a"], value)
    assert content["nested"]["scalar"].shape == () and content["nested"]["scalar"] == scalar


@both_layouts
def test_views_of_one_storage(tmp_path, legacy):
    storage = np.arange(12, dtype=np.float32)
    transposed = torch_files.Tensor(storage, storage, offset=2, shape=(3, 2), strides=(1, 3))
    both = {"all": torch_files.Tensor(storage, storage), "t": transposed}
    torch_files.save(tmp_path / "x.pth", both, legacy)
    content = read_pytorch(tmp_path / "x.pth")
    assert content["t"].tolist() == [[2, 5], [3, 6], [4, 7]] and content["all"].tolist() == list(range(12))
    assert not content["t"].flags.writeable  # it would change the other


def test_bfloat16(tmp_path):
    halves = np.array([0x3F80, 0xC000, 0x3EAB], np.uint16)  # 1, -2 and about a third
    torch_files.save(tmp_path / "x.pth", {"a": torch_files.Tensor(halves, kind="BFloat16Storage")})
    value = read_pytorch(tmp_path / "x.pth")["a"]
    assert value.dtype == np.float32 and value.tolist() == [1, -2, 0.333984375]


@both_layouts
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_stands_beside_the_weights(tmp_path, legacy, protocol, monkeypatch):
    """Whatever it is called, it takes no part in the reading."""
    monkeypatch.setattr(torch_files, "PROTOCOL", protocol)
    state = OrderedDict(a=np.ones(2, np.float32))
    state._metadata = OrderedDict(version=2)
    named = torch_files.Named
    torch_files.save(
        tmp_path / "x.pth",
        {
            "state_dict": state,
            "args": argparse.Namespace(lr=1, path=pathlib.Path("/x")),
            "best": np.float64(7),
            "epoch": 3,
            "list": [1, (2.5, None)],
            "scheduler": {"milestones": Counter([30, 60]), "gamma": 0.1},
            "sets": [{1, "b"}, frozenset([2]), {"ok": {3}}],
            "default": defaultdict(list, a=[1]),
            "queue": deque([1]),
            "enum": Colour.RED,
            "when": datetime.datetime(2020, 1, 1),
            "complex": 1j,
            "range": range(3),
            "bytes": b"ab",
            "bytearray": bytearray(b"c"),
            "function": len,
            "class": dict,
            "keys": {(1, "a"): 1, 2: 3, frozenset(): 4},
            "device": named("torch.device", ("cuda", 0)),
            "optimizer": named("torch.optim.sgd.SGD", (), {"state": {}}),
            "quantized": named("torch._utils._rebuild_qtensor", (np.ones(2, np.uint8), 0, (2,))),
            "user": named("their.project.Config", (), {"args": [1], "tensor": np.ones(3)}),
            "objects": torch_files.Array(np.array([{}, None], object)),
            "after": "this",
        },
        legacy,
    )
    content = read_pytorch(tmp_path / "x.pth")
    assert content["state_dict"]["a"].tolist() == [1, 1]
    assert content["epoch"] == 3 and content["list"] == [1, (2.5, None)] and content["after"] == "this"
    assert content["default"] == {"a": [1]} and content["scheduler"]["gamma"] == 0.1
    for name in ("args", "best", "enum", "device", "optimizer", "user", "objects", "function"):
        assert isinstance(content[name], StandIn), name
    assert repr(content["user"]) == "their.project.Config"


class Colour(enum.Enum):
    RED = 1


@both_layouts
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_of_numbers(tmp_path, legacy, protocol, monkeypatch):
    monkeypatch.setattr(torch_files, "PROTOCOL", protocol)
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(True),
        np.array([200, 3], np.uint8),
    ]
    torch_files.save(tmp_path / "x.pth", {i: torch_files.Array(array) for i, array in enumerate(arrays)}, legacy)
    content = read_pytorch(tmp_path / "x.pth")
    for i, array in enumerate(arrays):
        read = content[i]
        assert read.dtype == array.dtype and read.shape == array.shape and np.array_equal(read, array)


@both_layouts
def test_whole_modules_give_their_state_dict(tmp_path, legacy):
    weight = np.ones((2, 3), np.float32)
    shared = torch_files.Tensor(weight)
    buffers = {"running_mean": np.zeros(2, np.float32), "scratch": np.zeros(9)}
    norm = torch_files.module({"weight": np.ones(2, np.float32), "bias": None}, buffers, (), ["scratch"])
    net = torch_files.module(
        {},
        {},
        {
            "fc": torch_files.module({"weight": shared}),
            "none": None,
            "norm": norm,
            "tied": torch_files.module({"weight": shared}),
        },
    )
    torch_files.save(tmp_path / "x.pth", {"model": net}, legacy)
    content = read_pytorch(tmp_path / "x.pth")["model"]
    assert list(content) == ["fc.weight", "norm.weight", "norm.running_mean", "tied.weight"]
    assert content["fc.weight"] is content["tied.weight"] and content["fc.weight"].tolist() == weight.tolist()


def test_many_views_of_one_storage_are_no_copies_of_it(tmp_path):
    storage = np.zeros(100_000, np.float32)
    views = {str(i): torch_files.Tensor(storage, storage, offset=i, shape=(90_000,), strides=(1,)) for i in range(40)}
    torch_files.save(tmp_path / "x.pth", views)
    content = read_pytorch(tmp_path / "x.pth")
    assert all(np.shares_memory(content["0"], value) for value in content.values())
    same = {str(i): torch_files.Tensor(storage, storage) for i in range(40)}  # one array under forty names
    torch_files.save(tmp_path / "x.pth", same)
    assert len({id(value) for value in read_pytorch(tmp_path / "x.pth").values()}) == 1


def test_torchscript_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.writestr("a/code/__torch__.py", "pass", zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="a TorchScript program; save the state_dict"):
        read_pytorch(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (5, 2)},
        {"shape": (3, 3), "strides": (3, 1), "offset": 1},
        {"offset": -1},
        {"strides": (-2, 1)},
        {"shape": (1 << 40, 2), "strides": (0, 1)},
        {"shape": (2,)},
        {"shape": (1.0, 2)},
        {"shape": (0, 2), "offset": 99},
    ],
)
def test_tensors_outside_their_storage(tmp_path, change):
    storage = np.arange(8, dtype=np.float32)
    tensor = torch_files.Tensor(storage, storage, **{"shape": (4, 2), "strides": (2, 1), **change})
    torch_files.save(tmp_path / "x.pth", {"a": tensor})
    if change.get("offset") == 99:  # empty: reads nothing
        assert read_pytorch(tmp_path / "x.pth")["a"].shape == (0, 2)
        return
    with pytest.raises(UserError, match="x.pth"):
        read_pytorch(tmp_path / "x.pth")


@both_layouts
def test_damage_is_a_users_error(tmp_path, legacy):
    path = tmp_path / "x.pth"
    state = {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.int64)}
    torch_files.save(path, {"state_dict": state}, legacy)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(300):
        content = bytearray(whole[: rng.integers(len(whole))] if trial % 3 == 0 else whole)
        if trial % 3 and content:
            content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_pytorch(path)
        except UserError as error:
            assert "\n" not in str(error)


def test_other_pickles(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": 1}, 2) * 3)
    with pytest.raises(UserError, match="a pickle, but not of PyTorch"):
        read_pytorch(tmp_path / "x.pth")


@both_layouts
def test_files_of_pytorch_itself(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(
        {"model": model.state_dict(), "half": torch.ones(3).bfloat16(), "p": torch.nn.Parameter(torch.ones(2))},
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=not legacy,
    )
    content = read_pytorch(tmp_path / "x.pth")
    for name, value in model.state_dict().items():
        assert np.array_equal(content["model"][name], value.numpy())
    assert content["half"].tolist() == [1, 1, 1] and content["p"].tolist() == [1, 1]
    torch.save(model, tmp_path / "whole.pth")
    whole = read_pytorch(tmp_path / "whole.pth")
    assert list(whole) == list(model.state_dict())
    assert all(np.array_equal(whole[name], value.numpy()) for name, value in model.state_dict().items())
