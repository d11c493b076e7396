"""The table of formats: options, machines, a format of a user's own."""

import importlib.util
import json
import sys
from dataclasses import fields
from types import ModuleType

import mindspore as ms
import numpy as np
import pytest

from rpg_ms.deploy import formats
from rpg_ms.deploy.export import export
from rpg_ms.deploy.formats import FORMATS, VALUE_TYPES, Format, Options
from rpg_ms.deploy.verify import Loaded
from rpg_ms.errors import UserError
from rpg_ms.weights.packed import VALUE_TYPES as PACKED_TYPES

NOT_THE_DEFAULT = {
    "batch_size": 2,
    "dynamic_batch": True,
    "normalize_input": True,
    "softmax": True,
    "value_type": "int8",
}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("option", NOT_THE_DEFAULT)
def test_every_option_of_every_format_is_taken_or_refused(file_format, option):
    options = Options(**{option: NOT_THE_DEFAULT[option]})
    if option in FORMATS[file_format].options:
        formats.check_options(file_format, options)
        return
    with pytest.raises(UserError) as refusal:
        formats.check_options(file_format, options)
    assert str(refusal.value) == f"--{option}: for {formats.takers(option)} only, not for {file_format}"
    assert file_format not in formats.takers(option)


def test_the_table_knows_every_option_and_value_type():
    assert set(NOT_THE_DEFAULT) == {option.name for option in fields(Options)}
    assert all(set(row.options) <= set(NOT_THE_DEFAULT) for row in FORMATS.values())
    assert VALUE_TYPES == tuple(PACKED_TYPES)
    for options in ({"batch_size": 0}, {"value_type": "int4"}):
        with pytest.raises(UserError, match="--(batch_size: 0 is not at|value_type: 'int4' is not one of float32, )"):
            formats.check_options("PACKED" if "value_type" in options else "ONNX", Options(**options))


def write_raw(job, path):
    """A format of a user's own: the weights that the masks keep, one after another."""
    path.write_bytes(
        b"".join(layer.weight.asnumpy()[layer.mask.asnumpy()].tobytes() for layer in job.sparsified.layers)
    )


def load_numpy(job, path):
    """A format of a user's own that computes: here the network itself, and weights from the file."""
    with np.load(path) as archive:
        return Loaded(dict(archive), lambda images: job.deployed()(ms.Tensor(images)).asnumpy())


def write_numpy(job, path):
    with open(path, "wb") as file:
        np.savez(file, **{layer.weight.name: layer.weight.asnumpy() for layer in job.sparsified.layers})


def test_a_format_is_one_row(small, task, tmp_path, monkeypatch):
    """A row, and the functions that it names, are all that a format needs, with verification and without."""
    here = ModuleType("formats_of_a_test")
    here.write_raw, here.write_numpy, here.load_numpy = write_raw, write_numpy, load_numpy
    monkeypatch.setitem(sys.modules, "formats_of_a_test", here)
    monkeypatch.setitem(FORMATS, "RAW", Format(".raw", "formats_of_a_test:write_raw", None, (), computes=False))
    monkeypatch.setitem(
        FORMATS,
        "NUMPY",
        Format(
            ".npz",
            "formats_of_a_test:write_numpy",
            "formats_of_a_test:load_numpy",
            ("batch_size", "softmax"),
            absolute_tolerance=1e-6,
        ),
    )
    report = export(*small, task, "RAW", tmp_path / "net")
    assert report["bytes"] == 4 * small[1].nonzero and [file.name for file in tmp_path.iterdir()] == ["net.raw"]
    report = export(*small, task, "NUMPY", tmp_path / "net", batch_size=32, softmax=True)
    assert report["max_abs_difference"] <= 1e-6 and report["input_shape"] == [32, 1, 28, 28]
    assert json.loads((tmp_path / "net.npz.json").read_text())["format"] == "NUMPY"
    here.write_numpy = lambda job, path: np.savez(open(path, "wb"))
    with pytest.raises(UserError, match="net.npz: does not hold conv1.weight"):
        export(*small, task, "NUMPY", tmp_path / "net", batch_size=32)


@pytest.mark.parametrize(
    "missing, words",
    [
        ({"onnxruntime"}, "ONNX needs onnxruntime, not installed here; pip install -e '.[onnx]'"),
        ({"onnx", "onnxruntime"}, "ONNX needs onnx and onnxruntime, not installed"),
    ],
)
def test_onnx_without_its_packages(missing, words, small, task, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    with pytest.raises(UserError) as refusal:
        export(*small, task, "ONNX", tmp_path / "net", batch_size=16)
    assert words in str(refusal.value)


def test_air_is_for_ascend_and_a_fixed_batch(small, task, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^--file_format: AIR is written on Ascend only, not on CPU$"):
        export(*small, task, "AIR", tmp_path / "net")
    monkeypatch.setattr(ms, "get_context", lambda key: "Ascend")
    with pytest.raises(UserError, match="^--dynamic_batch: for MINDIR and ONNX only, not for AIR$"):
        export(*small, task, "AIR", tmp_path / "net", dynamic_batch=True)
