"""Compacted networks compute the same with fewer channels."""
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.sparse import isspmatrix_csr

from networks import Net
from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.deploy.compact import compact
from rpg_ms.deploy.csr import csr_matrices


class Builder:
    """An ONNX graph from its layers; every method takes tensors' names and returns its output's."""

    def __init__(self, seed=0, channels=2, size=7):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights, self.shape = [], [], (3, channels, size, size)

    def add(self, kind, *inputs, **attributes):
        inputs = [name if isinstance(name, str) else self.constant(name) for name in inputs]
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, array):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x, inputs, outputs, kernel=3, dead=(), unread=(), bias=True, pad=None, group=1, **attributes):
        weight = self.rng.standard_normal((outputs, inputs // group, kernel, kernel)).astype(np.float32)
        weight /= np.sqrt(weight[0].size)
        weight[list(dead)] = 0
        weight[:, list(unread)] = 0
        terms = [self.rng.standard_normal(outputs).astype(np.float32)] if bias else []
        pad = kernel // 2 if pad is None else pad
        return self.add("Conv", x, weight, *terms, pads=[pad] * 4, group=group, **attributes)

    def norm(self, x, channels, shift=None):
        values = self.rng.random((4, channels)).astype(np.float32) + 0.5
        if shift is not None:
            values[1] = shift
        values[2] = 0  # mean
        return self.add("BatchNormalization", x, *values)

    def model(self, out, classes):
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("images", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, (3, classes))], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    def head(self, x, inputs, classes=4, unread=()):
        x = self.add("Flatten", self.add("GlobalAveragePool", x))
        weight = self.rng.standard_normal((classes, inputs)).astype(np.float32)
        weight[:, list(unread)] = 0
        return self.model(self.add("Gemm", x, weight, self.rng.standard_normal(classes).astype(np.float32), transB=1),
                          classes)


def run(model, shape):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"images": images})[0]


def compacted(builder, model, varies=1e-3):
    """The output channels of the compacted model's convolutions, once its outputs are found to be the same."""
    before = model.SerializeToString()
    new, cost, less = compact(model)
    assert model.SerializeToString() == before
    expected = run(model, builder.shape)
    assert np.ptp(expected, axis=0).max() >= varies, "the same for every image proves nothing"
    np.testing.assert_allclose(run(new, builder.shape), expected, atol=1e-5 * max(1, np.abs(expected).max()))
    again, *costs = compact(new)
    assert costs == [less, less] and less <= cost, "what is compact stays as it is"
    arrays = {x.name: x.dims for x in new.graph.initializer}
    channels = [arrays[node.input[1]][0] for node in new.graph.node if node.op_type == "Conv"]
    return channels, cost, less


def test_dense_networks_stay():
    net = Builder()
    x = net.add("Relu", net.norm(net.conv("images", 2, 5), 5))
    channels, cost, less = compacted(net, net.head(net.conv(x, 5, 6), 6))
    assert channels == [5, 6]
    assert cost == less == 49 * 9 * (2 * 5 + 5 * 6) + 6 * 4


@pytest.mark.parametrize("shift, kernel, channels", [(-1, 3, 3), (1, 3, 5), (1, 1, 3)],
                         ids=["relu makes it zero", "a constant at a padded border stays", "folded into the bias"])
def test_dead_filters(shift, kernel, channels):
    net = Builder()
    x = net.add("Relu", net.norm(net.conv("images", 2, 5, dead=(1, 3), bias=False), 5, shift))
    found, cost, less = compacted(net, net.head(net.conv(x, 5, 6, kernel, bias=kernel == 3), 6))
    assert found == [channels, 6] and (less < cost) == (channels < 5)


def test_unread_channels_and_what_only_they_read():
    net = Builder()
    x = net.conv("images", 2, 5)
    x = net.conv(net.add("Relu", x), 5, 6, unread=(0,))
    x = net.conv(net.add("Relu", x), 6, 6, unread=(2, 5))
    assert compacted(net, net.head(x, 6, unread=(4,)))[0] == [4, 4, 5]


def test_additions_join_channels():
    net = Builder()
    x = net.add("Relu", net.conv("images", 2, 5, dead=(0, 1), bias=False))
    y = net.add("Add", x, net.conv(x, 5, 5, dead=(1, 2), bias=False))
    # Channel 1 is zero on both sides; 0 and 2 on one only.
    assert compacted(net, net.head(net.conv(net.add("Relu", y), 5, 6), 6))[0] == [4, 4, 6]


def test_padded_shortcuts():
    net = Builder()
    x = net.add("Relu", net.conv("images", 2, 4, dead=(0,), bias=False))
    short = net.add("Pad", net.add("MaxPool", x, kernel_shape=[1, 1], strides=[2, 2]),
                    np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64), np.float32(0))
    y = net.add("Add", short, net.conv(x, 4, 8, dead=(0, 2, 7), bias=False, strides=[2, 2]))
    # 0 and 7 are padding and dead, 2 is the shortcut of the dead channel 0 and dead itself.
    assert compacted(net, net.head(net.add("Relu", y), 8))[0] == [3, 5]


def test_depthwise():
    net = Builder()
    x = net.add("Clip", net.conv("images", 2, 6, 1, dead=(4,), bias=False), np.float32(0), np.float32(6))
    x = net.add("Relu", net.norm(net.conv(x, 6, 6, group=6, dead=(1,), bias=False), 6, -1))
    assert compacted(net, net.head(net.conv(x, 6, 5, 1), 5))[0] == [5, 5, 5]  # a clipped constant is not followed


def test_flattened_planes_and_a_hidden_dense_layer():
    net = Builder(size=3)
    x = net.add("Relu", net.norm(net.conv("images", 2, 4, dead=(2,), bias=False), 4, -1))
    weight = net.rng.standard_normal((36, 5)).astype(np.float32)
    weight[:, 3] = 0
    x = net.add("Relu", net.add("Gemm", net.add("Reshape", x, np.array([3, 36], np.int64)), weight,
                                np.full(5, 0.5, np.float32)))
    model = net.model(net.add("MatMul", x, net.rng.standard_normal((5, 4)).astype(np.float32)), 4)
    channels, cost, less = compacted(net, model)
    assert channels == [3] and (cost, less) == (9 * 9 * 8 + 36 * 5 + 20, 9 * 9 * 6 + 27 * 5 + 20)


def test_rounded_up_to_whole_blocks():
    net = Builder()
    x = net.add("Relu", net.conv("images", 2, 12, dead=range(7), bias=False))
    y = net.add("Relu", net.conv(x, 12, 10, dead=range(9), bias=False))
    model = net.head(net.conv(y, 10, 16), 16, unread=range(7))
    for multiple_of, channels in ((1, [5, 1, 9]), (4, [8, 4, 12]), (8, [8, 8, 16])):
        new, _, _ = compact(model, multiple_of)
        arrays = {x.name: x.dims for x in new.graph.initializer}
        assert [arrays[node.input[1]][0] for node in new.graph.node if node.op_type == "Conv"] == channels
        np.testing.assert_allclose(run(new, net.shape), run(model, net.shape), atol=1e-5)


def test_unknown_operators_keep_what_they_read():
    net = Builder()
    x = net.add("Softmax", net.conv("images", 2, 5, dead=(1,), bias=False), axis=1)
    assert compacted(net, net.head(net.conv(x, 5, 6, unread=(1,)), 6))[0] == [5, 6]


def test_nothing_left():
    net = Builder()
    x = net.add("Relu", net.conv("images", 2, 5, dead=range(5), bias=False))
    model = net.head(net.conv(x, 5, 6), 6)
    assert {x.name: x.dims for x in compact(model)[0].graph.initializer}
    np.testing.assert_allclose(run(compact(model)[0], net.shape), run(model, net.shape), atol=1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_random_residual_networks(seed):
    net = Builder(seed)
    x, width = net.conv("images", 2, 6, dead=net.rng.choice(6, 2), bias=False), 6
    for _ in range(3):
        x = net.add("Relu", net.norm(x, width, net.rng.standard_normal(width)))
        kernel = int(net.rng.choice([1, 3]))
        branch = net.conv(x, width, 6, kernel, dead=net.rng.choice(6, 3), unread=net.rng.choice(width, 2), bias=False)
        kind = net.rng.choice(["Add", "Mul", "Concat", "none"])
        if kind == "none" or (kind != "Concat" and width != 6):
            x, width = branch, 6
        elif kind == "Concat":
            x, width = net.add("Concat", x, branch, axis=1), width + 6
        else:
            x = net.add(str(kind), x, branch)
    model = net.head(x, width, unread=net.rng.choice(width, 2))
    compacted(net, model, varies=0)
    np.testing.assert_allclose(run(compact(model, 4)[0], net.shape), run(model, net.shape), rtol=1e-4, atol=1e-5)


def test_layers_as_scipy_matrices():
    found = sparsify(Net())
    rng = np.random.default_rng(0)
    for layer in found.layers:
        set_topology(layer, layer.weight.asnumpy(), rng.random(layer.weight.shape) < 0.2)
    matrices = csr_matrices(found)
    assert list(matrices) == [layer.name for layer in found.layers]
    for layer in found.layers:
        matrix = matrices[layer.name]
        assert isspmatrix_csr(matrix) and matrix.nnz == np.count_nonzero(layer.mask.asnumpy())
        assert np.array_equal(matrix.toarray().reshape(layer.weight.shape), layer.weight.asnumpy())
        x = rng.standard_normal(matrix.shape[1]).astype(np.float32)
        np.testing.assert_allclose(matrix @ x, matrix.toarray() @ x, atol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_multiply_adds_of_a_sequence(flat):
    """A dense layer counts once at each of the 49 positions, whether they stand beside the batch or in it."""
    net = Builder()
    x = net.add("Transpose", net.conv("images", 2, 8, 1, bias=False), perm=[0, 2, 3, 1])
    x = net.add("Reshape", x, np.array([3 * 49, 8] if flat else [3, 49, 8]))
    x = net.add("MatMul", x, net.rng.standard_normal((8, 5)).astype(np.float32))
    x = net.add("ReduceMean", net.add("Reshape", x, np.array([3, 49, 5])), axes=[1], keepdims=0)
    model = net.model(x, 5)
    compacted, before, after = compact(model)
    assert before == after == 49 * (2 * 8 + 8 * 5)
    np.testing.assert_allclose(run(compacted, net.shape), run(model, net.shape), atol=1e-5)


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_multiply_adds_are_those_of_one_image(batch):
    net = Builder()
    model = net.head(net.conv("images", 2, 6), 6)
    for value in (model.graph.input[0], model.graph.output[0]):
        setattr(value.type.tensor_type.shape.dim[0], "dim_param" if batch == "batch" else "dim_value", batch)
    compacted, before, after = compact(model)
    assert before == after == 49 * 9 * 2 * 6 + 6 * 4
    assert compacted.graph.input[0] == model.graph.input[0]


def test_a_graph_that_does_not_tell_its_shapes_stays():
    net = Builder()
    x = net.add("Relu", net.conv("images", 2, 5, dead=(1,), bias=False))
    model = net.head(net.conv(x, 5, 6, 1), 6)
    dimension = model.graph.input[0].type.tensor_type.shape.dim[1]
    dimension.dim_param = "channels"
    np.testing.assert_allclose(run(compact(model)[0], net.shape), run(model, net.shape), atol=1e-5)
