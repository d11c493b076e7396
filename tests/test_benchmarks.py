"""The benchmark scripts run and refuse what they cannot use; what they measure is not tested."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from doors import TINY, door


@pytest.fixture
def sparse_file(tmp_path):
    weight = np.zeros((3, 5), np.float32)
    weight[1, 2] = 2
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["images", "w"], ["out"], transB=1)],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 5))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 3))],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_runtimes_are_timed(sparsity, sparse_file):
    asked = [] if sparsity is None else ["--sparsity", sparsity]
    result = door("scripts/benchmark_runtimes.py", sparse_file, "--seconds", 0.05, *asked, cwd=sparse_file.parent)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[0]["runtime"] == "onnxruntime" and lines[0]["times_faster"] == 1
    assert "C" in [line["runtime"] for line in lines]
    for line in lines:
        assert line["sparsity"] == sparsity and line["relative_difference"] <= 1e-5
        assert 0 < line["cpu_ms"] <= line["cpu_ms_median"] and 0 < line["wall_ms"] <= line["wall_ms_median"]
        assert line["times_faster"] == pytest.approx(lines[0]["cpu_ms"] / line["cpu_ms"], abs=0.01)


def test_the_data_pipeline_is_timed_against_the_step(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    result = door(
        "scripts/benchmark_data.py", "--config", "tiny.yaml", "--workers", 1, 2, "--seconds", 0.1, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["workers"] for line in lines] == [1, 2]
    for line in lines:
        assert line["model"] == "cifar_resnet8" and line["together_images_per_s"] > 0
        assert line["ratio"] == pytest.approx(line["pipeline_images_per_s"] / line["step_images_per_s"], rel=0.01)


@pytest.mark.parametrize(
    "name, arguments, word",
    [
        ("benchmark_runtimes.py", ["nowhere.onnx"], "nowhere.onnx"),
        ("benchmark_runtimes.py", [__file__], "is not an ONNX file"),
        ("benchmark_runtimes.py", ["x.onnx", "--seconds", "0"], "--seconds"),
        ("benchmark_runtimes.py", ["x.onnx", "--threads", "0"], "--threads"),
        ("benchmark_runtimes.py", ["x.onnx", "--sparsity", "1"], "--sparsity"),
        ("benchmark.py", ["walking"], "walking"),
    ],
)
def test_mistakes(tmp_path, name, arguments, word):
    result = door(f"scripts/{name}", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and word in result.stderr and result.stderr.count("\n") <= 2
    assert "Traceback" not in result.stderr
