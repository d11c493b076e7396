"""Networks in C against onnxruntime: every operator, every vector width, sanitizers, other processors, odd sizes."""

import shutil
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rpg_ms.deploy.c import compiled
from rpg_ms.deploy.c.graph import read_graph
from rpg_ms.deploy.c.lowering import Unsupported
from rpg_ms.deploy.c.operators import lower
from rpg_ms.deploy.c.plan import plan
from rpg_ms.deploy.c.write import write_folder
from rpg_ms.errors import UserError
from rpg_ms.weights.packed import round_weight

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="there is no C compiler")


class Net:
    """Builds an ONNX graph; every output is flattened and becomes a part of one."""

    def __init__(self, *shape, seed=0):
        self.rng, self.nodes, self.weights, self.parts = np.random.default_rng(seed), [], {}, []
        self.shape, self.count = shape, 0

    def constant(self, array):
        self.count += 1
        self.weights[f"w{self.count}"] = np.asarray(array)
        return f"w{self.count}"

    def sparse(self, *shape, density=0.3):
        return self.constant(np.float32(self.rng.standard_normal(shape) * (self.rng.random(shape) < density)))

    def add(self, kind, *inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x, *shape, density=0.3, bias=True, **attributes):
        given = [x, self.sparse(*shape, density=density)]
        given += [self.constant(np.float32(self.rng.standard_normal(shape[0])))] if bias else []
        return self.add("Conv", *given, **attributes)

    def out(self, x):
        self.parts.append(self.add("Flatten", x))

    def save(self, path):
        self.nodes.append(helper.make_node("Concat", self.parts, ["out"], axis=1))
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, *self.shape))],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
        return path


def written(path, folder, value_type="float32"):
    """The folder of an ONNX file, whose weights are rounded; the file holds what they became."""
    graph, rounded, model = read_graph(path), {}, onnx.load(path)
    if value_type != "float32":
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.ndim in (2, 4):
                values, scale = rounded[tensor.name] = round_weight(array, value_type)
                restored = values * scale.reshape(-1, *[1] * (array.ndim - 1))
                tensor.CopyFrom(numpy_helper.from_array(restored, tensor.name))
        onnx.save(model, path)
    builder, output, _ = lower(graph, rounded)
    told = write_folder(plan(builder, output), int(np.prod(graph.input_shape)), value_type, folder)
    return told


def expected(path, images):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"images": image[None]})[0].ravel() for image in images])


def agree(found, wanted):
    assert found.shape == wanted.shape and np.isfinite(found).all()
    assert np.ptp(wanted, axis=1).max() > 0, "all the same, which proves nothing"
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def images_of(net, count=3):
    return np.float32(net.rng.standard_normal((count, *net.shape)))


def operators():
    """A network with every operator, in forms that differ in stride, padding, dilation, groups and density."""
    net = Net(6, 13, 11)
    convolutions(net)
    x = net.add("Relu", net.conv("images", 8, 6, 3, 3, pads=[1, 1, 1, 1]))
    pooling(net, x)
    elementwise(net, x)
    lists(net, x)
    flat = net.add("Flatten", x)
    for density in (0.05, 1.0):
        dense = net.add("Gemm", flat, net.sparse(9, 8 * 13 * 11, density=density), transB=1)
        net.out(net.add("Softmax", dense, axis=1))
        net.out(net.add("MatMul", dense, net.sparse(9, 5, density=density)))
    return net


def convolutions(net):
    for shape, attributes in [
        ((7, 6, 3, 3), {"pads": [1, 1, 1, 1]}),
        ((5, 6, 3, 3), {}),
        ((5, 6, 5, 3), {"pads": [2, 0, 1, 3]}),
        ((4, 6, 7, 7), {"pads": [3, 3, 3, 3], "strides": [2, 2]}),
        ((4, 6, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((4, 6, 3, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 1]}),
        ((4, 6, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
        ((4, 6, 3, 3), {"dilations": [2, 2], "strides": [2, 2], "pads": [1, 2, 3, 0]}),
        ((6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
        ((6, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1], "strides": [2, 1]}),
        ((3, 6, 1, 1), {"strides": [2, 2]}),
        ((3, 6, 13, 11), {}),
        ((3, 6, 3, 3), {"pads": [4, 4, 4, 4]}),
    ]:
        for density in (0.3, 1.0):
            net.out(net.conv("images", *shape, density=density, bias=density < 1, **attributes))
    dead = net.sparse(5, 6, 3, 3)
    net.weights[dead][1:3] = 0  # channels that are constant: one above, one below zero
    biased = net.add("Conv", "images", dead, net.constant(np.float32([0.5, 2, -1, 0, 1])), pads=[1, 1, 1, 1])
    x = net.add("Relu", biased)
    net.out(net.conv(x, 4, 5, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2], density=0.8))
    net.out(net.conv(x, 4, 5, 1, 1, density=0.8))
    normal = [net.constant(np.float32(net.rng.uniform(0.5, 1.5, 4))) for _ in range(4)]
    first, second = net.conv(x, 4, 5, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1]), net.conv(x, 4, 5, 1, 1, strides=[2, 2])
    net.out(net.add("Relu", net.add("Add", net.add("BatchNormalization", first, *normal), second)))


def pooling(net, x):
    raw = net.conv(x, 8, 8, 1, 1)  # negative values, which padding must not hide
    for kind in ("MaxPool", "AveragePool"):
        for attributes in [
            {"kernel_shape": [2, 2], "strides": [2, 2]},
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
            {"kernel_shape": [3, 2], "strides": [1, 1], "auto_pad": "SAME_UPPER"},
            {"kernel_shape": [1, 1], "strides": [2, 2]},
            {"kernel_shape": [13, 11]},
        ]:
            net.out(net.add(kind, raw, **attributes))
    net.out(net.add("AveragePool", raw, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1))
    padded = net.add("Pad", raw, net.constant(np.int64([0, 1, 1, 2, 0, 3, 2, 1])))
    net.out(net.add("MaxPool", padded, kernel_shape=[3, 3], strides=[2, 2]))
    net.out(net.conv(padded, 3, 12, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]))
    net.out(net.add("Relu", padded))
    net.out(net.add("GlobalAveragePool", raw))
    net.out(net.add("MaxPool", "images", kernel_shape=[3, 3]))
    net.out(net.add("ReduceMean", "images", axes=[2, 3], keepdims=0))


def elementwise(net, x):
    raw = net.conv(x, 8, 8, 3, 3, pads=[1, 1, 1, 1])
    for kind, attributes in [("Sigmoid", {}), ("LeakyRelu", {"alpha": 0.2}), ("HardSigmoid", {"alpha": 1 / 6})]:
        net.out(net.add(kind, raw, **attributes))
    limits = net.constant(np.float32(0)), net.constant(np.float32(6))
    net.out(net.add("Clip", raw, *limits))
    net.out(net.add("Mul", raw, net.add("Sigmoid", raw)))
    six, three = net.constant(np.float32(6)), net.constant(np.float32(3))
    gate = net.add("Clip", net.add("Add", raw, three), *limits)
    net.out(net.add("Div", net.add("Mul", raw, gate), six))
    net.out(net.add("Div", gate, six))
    net.out(net.add("Max", net.add("Mul", net.constant(np.float32(0.1)), raw), raw))
    squeezed = net.add("ReduceMean", x, axes=[2, 3], keepdims=1)
    excited = net.add("Sigmoid", net.conv(net.add("Relu", net.conv(squeezed, 3, 8, 1, 1)), 8, 3, 1, 1))
    net.out(net.conv(net.add("Mul", raw, excited), 4, 8, 3, 3, pads=[1, 1, 1, 1]))
    net.out(net.add("Sub", net.add("Mul", raw, x), net.constant(np.float32(net.rng.standard_normal((8, 1, 1))))))
    net.out(net.add("Sub", net.constant(np.float32(1)), net.add("Add", raw, raw)))
    net.out(net.add("Sub", raw, x))


def lists(net, x):
    one, two = net.add("Split", x, net.constant(np.int64([3, 5])), outputs=2, axis=1)
    joined = net.add("Concat", two, "images", one, axis=1)
    net.out(net.conv(joined, 4, 14, 3, 3, pads=[1, 1, 1, 1]))
    part = net.add("Slice", joined, *(net.constant(np.int64([n])) for n in (1, 13, 1, 3)))
    net.out(net.conv(part, 3, 4, 3, 3, strides=[2, 2]))
    pairs = net.add("Reshape", x, net.constant(np.int64([2, 4, -1])))
    shuffled = net.add("Reshape", net.add("Transpose", pairs, perm=[1, 0, 2]), net.constant(np.int64([1, 8, 13, 11])))
    net.out(net.add("Relu", net.conv(shuffled, 4, 2, 3, 3, group=4)))
    column = net.add("Unsqueeze", net.add("Squeeze", x, net.constant(np.int64([0]))), net.constant(np.int64([0])))
    net.out(net.add("Identity", column))


WIDTHS = {
    "native": ["-march=native"],
    "4": ["-O1", "-DNET_LANES=4"],
    "8": ["-O1", "-march=native", "-DNET_LANES=8"],
    "16": ["-O1", "-march=native", "-DNET_LANES=16"],
    "plain": ["-O1", "-DNET_PLAIN", "-std=c99", "-pedantic"],
    "threads": ["-O1", "-fopenmp", "-DNET_WORTH_THREADS=0"],
}


@pytest.mark.parametrize(
    "width, value_type",
    [
        *((width, "float32") for width in WIDTHS),
        ("native", "float16"),
        ("native", "int8"),
        ("4", "int8"),
        ("16", "float16"),
        ("plain", "int8"),
    ],
)
def test_every_operator_in_every_width(width, value_type, tmp_path):
    net = operators()
    path, images = net.save(tmp_path / "net.onnx"), images_of(net)
    written(path, tmp_path / "net", value_type)
    compiled.build(tmp_path / "net", tmp_path / "net.so", "-Wall", "-Wextra", "-Werror", *WIDTHS[width])
    agree(compiled.run(tmp_path / "net", tmp_path / "net.so")(images), expected(path, images))


def run_main(folder, images, command, runner=()):
    """What the example program prints."""
    subprocess.run([*command, "main.c", "net.c", "-o", "net", "-lm"], cwd=folder, check=True)
    found = subprocess.run([*runner, "./net"], cwd=folder, input=images.tobytes(), capture_output=True)
    assert found.returncode == 0, found.stderr.decode()
    return np.array([line.split() for line in found.stdout.decode().splitlines()], np.float32)


@pytest.mark.parametrize(
    "flags, value_type", [(["-march=native"], "float32"), (["-DNET_LANES=4"], "int8"), (["-DNET_PLAIN"], "float16")]
)
def test_sanitizers_find_nothing(flags, value_type, tmp_path):
    net = operators()
    path, images = net.save(tmp_path / "net.onnx"), images_of(net, 2)
    written(path, tmp_path / "net", value_type)
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [compiled.compiler(), "-O1", "-g", *sanitizers, *flags]
    agree(run_main(tmp_path / "net", images, command), expected(path, images))


@pytest.mark.parametrize(
    "compiler, emulator, flags",
    [
        ("aarch64-linux-gnu-gcc", "qemu-aarch64", []),
        ("arm-linux-gnueabihf-gcc", "qemu-arm", ["-mfpu=neon", "-funsafe-math-optimizations"]),
    ],
)
def test_other_processors(compiler, emulator, flags, tmp_path):
    missing = [name for name in (compiler, emulator) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    net = operators()
    path, images = net.save(tmp_path / "net.onnx"), images_of(net, 1)
    written(path, tmp_path / "net", "float16")
    command = [compiler, "-O3", "-ffp-contract=fast", "-static", *flags]
    agree(run_main(tmp_path / "net", images, command, [emulator]), expected(path, images))


# ----------------------------------------------------------------------------------------------------
# Sizes
# ----------------------------------------------------------------------------------------------------


def outputs_of(net, tmp_path, value_type="float32"):
    path, images = net.save(tmp_path / "net.onnx"), images_of(net)
    told = written(path, tmp_path / "net", value_type)
    compiled.build_here(tmp_path / "net", tmp_path / "net.so")
    return compiled.run(tmp_path / "net", tmp_path / "net.so")(images), expected(path, images), told


@pytest.mark.parametrize("value_type", ["float32", "int8"])
def test_a_row_of_70000_non_zeros_and_weights_in_a_file(value_type, tmp_path):
    net = Net(280, 16, 16)
    weight = net.sparse(9, 280, 16, 16, density=0.01)
    net.weights[weight][4] = net.rng.standard_normal((280, 16, 16))
    net.weights[weight][6, 1:-1] = 0  # distances of more than 16 bits
    net.out(net.add("Conv", "images", weight, pads=[8, 8, 8, 8]))
    found, wanted, told = outputs_of(net, tmp_path, value_type)
    agree(found, wanted)
    assert told["weights_bytes"] > 10**5


def test_weights_beside_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr("rpg_ms.deploy.c.write.INSIDE", 100)
    net = operators()
    found, wanted, told = outputs_of(net, tmp_path)
    agree(found, wanted)
    assert (tmp_path / "net/net.bin").stat().st_size == told["weights_bytes"]
    assert f"NET_WEIGHTS_BYTES {told['weights_bytes']}" in (tmp_path / "net/net.h").read_text()
    images = images_of(net, 1)
    printed = run_main(tmp_path / "net", images, [compiled.compiler(), "-O1"])
    agree(printed, expected(tmp_path / "net.onnx", images))


def test_layers_without_weights_and_single_pixels(tmp_path):
    net = Net(3, 1, 1)
    x = net.add("Relu", net.conv("images", 5, 3, 3, 3, pads=[1, 1, 1, 1], density=0.8))
    net.out(net.conv(x, 4, 5, 1, 1, density=0))
    net.out(net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    net.out(net.conv(x, 4, 5, 1, 1, density=0.5))
    found, wanted, told = outputs_of(net, tmp_path)
    agree(found, wanted)
    assert told["arena_bytes"] <= 4 * 16 * 8


def test_single_pixels_after_a_concatenation(tmp_path):
    net = Net(3, 2, 2)
    one, other = net.conv("images", 4, 3, 2, 2, density=0.8), net.conv("images", 5, 3, 2, 2, density=0.8)
    normal = [net.constant(np.float32(net.rng.uniform(0.5, 1.5, 9))) for _ in range(4)]
    net.out(net.add("Relu", net.add("BatchNormalization", net.add("Concat", one, other, axis=1), *normal)))
    found, wanted, _ = outputs_of(net, tmp_path)
    agree(found, wanted)


def test_a_network_that_is_constant_needs_nothing(tmp_path):
    net = Net(3, 9, 9)
    net.out(net.conv(net.conv("images", 4, 3, 3, 3, density=0), 2, 4, 3, 3, pads=[1, 1, 1, 1], density=1))
    found, wanted, told = outputs_of(net, tmp_path)
    agree(found, wanted)
    assert "input" not in (tmp_path / "net/net.c").read_text().split("void net_run")[1].split("{")[1]


def test_what_nothing_reads_is_left_out(tmp_path):
    net = Net(3, 8, 8)
    x = net.add("Relu", net.conv("images", 16, 3, 3, 3, density=1))
    weight = net.sparse(4, 16, 1, 1, density=1)
    net.weights[weight][:, 2:] = 0
    net.out(net.add("Conv", x, weight))
    found, wanted, told = outputs_of(net, tmp_path)
    agree(found, wanted)
    assert told["executed_multiply_adds"] == 6 * 6 * (2 * 27 + 4 * 2)


# ----------------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------------


def test_operators_without_kernels_are_named(tmp_path):
    net = Net(3, 8, 8)
    net.out(net.add("Erf", "images"))
    with pytest.raises(Unsupported, match="^Erf$"):
        written(net.save(tmp_path / "net.onnx"), tmp_path / "net")
    net = Net(3, 8, 8)
    net.out(net.add("Transpose", "images", perm=[0, 2, 3, 1]))
    with pytest.raises(Unsupported, match=r"^Transpose of a tensor of shape \[1, 3, 8, 8\]$"):
        written(net.save(tmp_path / "net.onnx"), tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_arenas_beyond_32_bits(tmp_path):
    net = Net(1, 60000, 60000)
    net.out(net.add("ReduceMean", net.add("Relu", net.conv("images", 2, 1, 3, 3)), axes=[2, 3], keepdims=0))
    with pytest.raises(OverflowError, match="activations take [0-9.]+ GiB, more than 32-bit offsets"):
        written(net.save(tmp_path / "net.onnx"), tmp_path / "net")


def test_a_compiler_that_fails_is_told_in_a_line(tmp_path):
    net = Net(3, 8, 8)
    net.out(net.conv("images", 2, 3, 1, 1))
    written(net.save(tmp_path / "net.onnx"), tmp_path / "net")
    (tmp_path / "net/net.c").write_text("int broken(")
    with pytest.raises(UserError, match="^--file_format: .* does not compile the network: .*error") as refusal:
        compiled.build_here(tmp_path / "net", tmp_path / "net.so")
    assert "\n" not in str(refusal.value)
