"""PyTorch's files: what they hold is read, what they ask to be run is not."""
import argparse
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

import torch_files
from rpg_ms.errors import UserError
from rpg_ms.weights.pytorch_file import read_pytorch

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
    assert content["t"].tolist() == [[2, 5], [3, 6], [4, 7]]
    content["t"][:] = 0
    assert content["all"].tolist() == list(range(12))


def test_bfloat16(tmp_path):
    halves = np.array([0x3f80, 0xc000, 0x3eab], np.uint16)  # 1, -2 and about a third
    torch_files.save(tmp_path / "x.pth", {"a": torch_files.Tensor(halves, kind="BFloat16Storage")})
    value = read_pytorch(tmp_path / "x.pth")["a"]
    assert value.dtype == np.float32 and value.tolist() == [1, -2, 0.333984375]


def test_what_stands_beside_the_weights(tmp_path):
    """Attributes of a state dict, command lines and NumPy scalars are passed over."""
    state = OrderedDict(a=np.ones(2, np.float32))
    state._metadata = OrderedDict(version=2)
    torch_files.save(tmp_path / "x.pth", {"state_dict": state, "args": argparse.Namespace(lr=1),
                                          "best": np.float64(7), "epoch": 3, "list": [1, (2.5, None)]})
    content = read_pytorch(tmp_path / "x.pth")
    assert content["state_dict"]["a"].tolist() == [1, 1]
    assert content["epoch"] == 3 and content["list"] == [1, [2.5, None]]


class Runs:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@both_layouts
@pytest.mark.parametrize("function, args", [(os.system, ("touch ran",)), (eval, ("open('ran', 'w')",)),
                                            (open, ("ran", "w")), (getattr, ("", "join"))])
def test_nothing_is_run(tmp_path, monkeypatch, legacy, function, args):
    monkeypatch.chdir(tmp_path)
    torch_files.save("x.pth", {"a": np.ones(2, np.float32), "b": Runs(function, *args)}, legacy)
    with pytest.raises(UserError, match=f"x.pth: .*it asks for .*{function.__name__}, which is neither"):
        read_pytorch("x.pth")
    assert os.listdir() == ["x.pth"]


def test_what_is_allowed_cannot_be_changed(tmp_path):
    from rpg_ms.weights.pytorch_file import ALLOWED
    before = dict(ALLOWED), ALLOWED["torch._utils", "_rebuild_tensor"]._call
    for module, name in ALLOWED:
        for attributes in (b"}X\x05\x00\x00\x00_call]s", b"N}X\x05\x00\x00\x00_call]s\x86"):  # a dict; slots
            code = b"\x80\x02c" + f"{module}\n{name}\n".encode() + attributes + b"b."
            with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
                archive.writestr("a/data.pkl", code)
            with pytest.raises(UserError):
                read_pytorch(tmp_path / "x.pth")
    assert (dict(ALLOWED), ALLOWED["torch._utils", "_rebuild_tensor"]._call) == before
    assert not hasattr(ALLOWED["collections", "OrderedDict"], "_call")


@pytest.mark.parametrize("change", [
    {"shape": (5, 2)}, {"shape": (3, 3), "strides": (3, 1), "offset": 1}, {"offset": -1},
    {"strides": (-2, 1)}, {"shape": (1 << 40, 2), "strides": (0, 1)}, {"shape": (2,)}, {"shape": (1.0, 2)},
    {"shape": (0, 2), "offset": 99}])
def test_tensors_outside_their_storage(tmp_path, change):
    storage = np.arange(8, dtype=np.float32)
    tensor = torch_files.Tensor(storage, storage, **{"shape": (4, 2), "strides": (2, 1), **change})
    torch_files.save(tmp_path / "x.pth", {"a": tensor})
    if change.get("offset") == 99:  # empty: reads nothing
        assert read_pytorch(tmp_path / "x.pth")["a"].shape == (0, 2)
        return
    with pytest.raises(UserError, match="x.pth"):
        read_pytorch(tmp_path / "x.pth")


def test_compressed_archives_are_refused(tmp_path):
    torch_files.save(tmp_path / "x.pth", {"a": np.zeros(10**6, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_pytorch(tmp_path / "x.pth")


@both_layouts
def test_damage_is_a_users_error(tmp_path, legacy):
    path = tmp_path / "x.pth"
    state = {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.int64)}
    torch_files.save(path, {"state_dict": state}, legacy)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(300):
        content = bytearray(whole[:rng.integers(len(whole))] if trial % 3 == 0 else whole)
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
    torch.save({"model": model.state_dict(), "half": torch.ones(3).bfloat16(),
                "p": torch.nn.Parameter(torch.ones(2))},
               tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    content = read_pytorch(tmp_path / "x.pth")
    for name, value in model.state_dict().items():
        assert np.array_equal(content["model"][name], value.numpy())
    assert content["half"].tolist() == [1, 1, 1] and content["p"].tolist() == [1, 1]
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(UserError, match="it asks for torch.nn.modules.container.Sequential"):
        read_pytorch(tmp_path / "whole.pth")
