"""Networks by name: what they compute, what of them can be pruned, and what a user can get wrong."""

import sys

import mindcv
import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from rpg_ms.cells import sparsify
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.models.resnet_cifar import BasicBlock


def images(*shape, seed=0):
    return ms.Tensor(np.random.default_rng(seed).standard_normal(shape), ms.float32)


def trainable(network):
    return sum(parameter.size for parameter in network.trainable_params())


@pytest.fixture
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("depth, weights", [(20, 269722), (32, 464154), (44, 658586), (56, 853018), (110, 1727962)])
def test_cifar_resnets_have_the_published_size(depth, weights):
    """Table 6 of arXiv 1512.03385: 0.27, 0.46, 0.66, 0.85 and 1.7 million."""
    network = create_model(f"cifar_resnet{depth}", 10, 3)
    assert trainable(network) == weights
    assert len(sparsify(network).layers) == depth  # shortcuts have no weights


def test_shortcut_strides_over_pixels_and_pads_channels_on_both_sides(pynative):
    block = BasicBlock(4, 8, 2).set_train(False)
    block.bn2.gamma.set_data(ops.zeros_like(block.bn2.gamma))  # leaves the shortcut alone
    x = np.abs(images(2, 4, 6, 6).asnumpy())
    expected = np.zeros((2, 8, 3, 3), np.float32)
    expected[:, 2:6] = x[:, :, ::2, ::2]
    assert np.array_equal(block(ms.Tensor(x)).asnumpy(), expected)


def test_width_scales_the_channels_of_cifar_resnets_only():
    assert create_model("cifar_resnet20", 10, 3, width=0.5).conv1.out_channels == 8
    assert create_model("cifar_resnet20", 10, 3, width=4).linear.in_channels == 256
    for name in ("resnet18", "cifar_vgg19"):
        with pytest.raises(UserError, match=f"^model.width: 2 is for .*cifar_resnet20.*, not for {name}$"):
            create_model(name, 10, 3, width=2)


def test_cifar_vgg19():
    network = create_model("cifar_vgg19", 10, 3, 32)
    assert [layer.kind for layer in sparsify(network).layers] == ["conv"] * 16 + ["dense"]
    assert trainable(network) == 20035018
    assert network.set_train(False)(images(2, 3, 32, 32)).shape == (2, 10)


def test_deit_small():
    network = create_model("deit_small", 1000, 3, 224)
    assert trainable(network) == 22050664  # 22 M in table 1 of arXiv 2012.12877
    assert len(network.blocks) == 12 and network.blocks[0].attn.num_heads == 6
    found = sparsify(network)
    names = [layer.name for layer in found.layers]
    assert len(names) == 1 + 12 * 4 + 1
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.11.mlp.fc2", "head"} <= set(names)
    assert set(found.skipped) == {"cls_token", "pos_embed"}
    assert create_model("deit_small", 10, 3, 32).pos_embed.shape == (1, 5, 384)


@pytest.mark.parametrize(
    "name, channels, size, runs",
    [
        ("resnet18", 1, 28, True),
        ("mobilenet_v1_025", 3, 32, True),
        ("mobilenet_v2_035_96", 3, 32, True),
        ("shufflenet_v1_g3_05", 3, 32, True),
        ("regnet_x_200mf", 1, 32, True),
        ("convnextv2_atto", 3, 32, True),
        ("squeezenet1_1", 3, 64, True),
        ("deit_small", 3, 16, True),
        ("densenet121", 3, 32, False),
        ("efficientnet_b0", 3, 32, False),
        ("swin_tiny", 3, 224, False),
    ],
)
def test_every_matrix_is_pruned_or_skipped_with_a_reason(name, channels, size, runs, pynative):
    ms.set_seed(0)
    network = create_model(name, 5, channels, size)
    matrices = {place: parameter for place, parameter in network.parameters_and_names() if parameter.ndim > 1}
    for place, parameter in network.parameters_and_names():
        assert parameter.name == place  # else MindSpore would save it and not find it again
    found = sparsify(network)
    pruned = {layer.weight.name for layer in found.layers}
    skipped = found.skipped
    assert pruned | set(skipped) == set(matrices) and not pruned & set(skipped)
    assert all("not the weight of a convolution or dense layer" in reason for reason in skipped.values())
    assert not any(place.endswith((".qkv.weight", "conv1.weight", "fc.weight")) for place in skipped)
    if not runs:
        return
    weights = [layer.weight for layer in found.layers]
    network.set_train()

    def loss(x):
        return (network(x) * ms.Tensor(np.arange(5), ms.float32)).sum()

    gradients = ops.grad(loss, None, ms.ParameterTuple(weights))(images(4, channels, size, size))
    for weight, gradient in zip(weights, gradients):
        assert gradient.shape == weight.shape and np.isfinite(gradient.asnumpy()).all(), weight.name


def test_max_pooling_of_mindcvs_resnets(pynative):
    x = np.maximum(images(1, 2, 8, 7).asnumpy(), 0)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.stack(
        [[padded[:, :, i : i + 3, j : j + 3].max((2, 3)) for j in range(0, 7, 2)] for i in range(0, 7, 2)]
    ).transpose(2, 3, 0, 1)
    as_in_pytorch = create_model("resnet18", 10, 3)
    assert np.array_equal(as_in_pytorch.max_pool(ms.Tensor(x)).asnumpy(), expected)
    as_in_mindcv = create_model("resnet18", 10, 3, pool_padding="mindcv").set_train(False)
    original = mindcv.create_model("resnet18", num_classes=10).set_train(False)
    for parameter, same in zip(original.get_parameters(), as_in_mindcv.get_parameters()):
        same.set_data(parameter.value())
    x = images(2, 3, 32, 32)
    assert np.array_equal(as_in_mindcv(x).asnumpy(), original(x).asnumpy())
    with pytest.raises(UserError, match="model.pool_padding: mindcv is for mindcv's ResNets, not for cifar"):
        create_model("cifar_resnet8", 10, 3, pool_padding="mindcv")


@pytest.mark.parametrize(
    "name, channels, size, message",
    [
        ("resnet5O", 3, 32, "model.name: 'resnet5O' is not one of .*did you mean resnet50"),
        ("swin_tiny", 3, 32, "model.name: swin_tiny of mindcv takes .* 224 x 224 pixels only, not 32 x 32"),
        ("deit_small", 3, 8, "model.name: deit_small takes images of at least 16 pixels a side, not 8"),
        ("edgenext_xx_small", 1, 32, "model.name: .*edgenext_xx_small .*in_channels|channels only, not 1"),
    ],
)
def test_what_a_network_does_not_take(name, channels, size, message):
    with pytest.raises(UserError, match=message) as error:
        create_model(name, 10, channels, size)
    assert "\n" not in str(error.value)


OWN = """
from mindspore import nn

def build_net(num_classes):
    return nn.SequentialCell([nn.Conv2d(3, 4, 3), nn.Dense(4, num_classes)])

class Net(nn.Cell):
    def __init__(self, num_classes=10, in_channels=3, image_size=32):
        super().__init__()
        self.given = (num_classes, in_channels, image_size)

def broken(**options):
    return options["nothing"]

number = 3

def not_a_cell():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_own_net.py").write_text(OWN)
    (tmp_path / "my_broken_net.py").write_text("import absent_module_xyz\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("my_own_net", "my_broken_net"):
        sys.modules.pop(name, None)


def test_a_users_own_network(own):
    assert isinstance(create_model("my_own_net:build_net", 7, 1), nn.SequentialCell)
    assert create_model("my_own_net:Net", 7, 1, 28).given == (7, 1, 28)


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_absent_net:build_net", "no module my_absent_net in "),
        ("my_own_net:nothing", "my_own_net.py has no function nothing"),
        ("my_own_net:number", "has no function number"),
        ("my_own_net:broken", r"\(num_classes=7, .*KeyError: 'nothing' \(.*my_own_net.py, line 13\)"),
        ("my_own_net:not_a_cell", "returns a int, not a mindspore.nn.Cell"),
        ("my_broken_net:net", r"ModuleNotFoundError: .*'absent_module_xyz' \(.*my_broken_net.py, line 1\)"),
        ("my_own_net:", "is not of the form module:function"),
        ("../x:build", "is not of the form module:function"),
    ],
)
def test_mistakes_in_a_users_own_network(own, name, message):
    with pytest.raises(UserError, match=message) as error:
        create_model(name, 7, 1)
    assert str(error.value).startswith("model.name: ") and "\n" not in str(error.value)


HIDDEN = """
import numpy as np
import mindspore as ms
from mindspore import nn

def dense():
    return nn.Dense(3, 3)

class Net(nn.Cell):
    def __init__(self, held):
        super().__init__()
        self.fc = dense()
        self.held = held(self)

def in_list(): return nn.SequentialCell([Net(lambda net: [nn.ReLU(), dense()])])
def in_tuple(): return Net(lambda net: (nn.SequentialCell([dense()]),))
def in_dict(): return Net(lambda net: {"a": [dense()]})
def parameters(): return Net(lambda net: [ms.Parameter(np.ones(3, np.float32), name="x")])
def named_twice(): return Net(lambda net: [net.fc, nn.ReLU()])
def cell_list(): return Net(lambda net: nn.CellList([dense()]))
def counter(): return Net(lambda net: ms.Parameter(np.zeros((2, 3), np.int32), name="counter"))
def flags(): return Net(lambda net: ms.Parameter(np.zeros(3, np.bool_), name="flags"))
"""


@pytest.fixture
def hidden(tmp_path, monkeypatch):
    (tmp_path / "my_hidden_net.py").write_text(HIDDEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_hidden_net", raising=False)


@pytest.mark.parametrize(
    "name, message",
    [
        ("in_list", "0.held is a plain list with a Dense in it, .*; make it a mindspore.nn.CellList$"),
        ("in_tuple", "held is a plain tuple with a SequentialCell in it, .*; make it a mindspore.nn.CellList$"),
        ("in_dict", "held is a plain dict with a Dense in it, .*; make it a mindspore.nn.CellDict$"),
        ("parameters", "held is a plain list with a Parameter in it, .*; make it a mindspore.ParameterTuple$"),
    ],
)
def test_layers_that_mindspore_does_not_find_are_refused(hidden, name, message):
    with pytest.raises(UserError, match=f"^model.name: my_hidden_net:{name}: {message}"):
        create_model(f"my_hidden_net:{name}", 10, 3)


def test_lists_of_what_mindspore_finds_are_taken(hidden):
    assert len(create_model("my_hidden_net:named_twice", 10, 3).trainable_params()) == 2
    assert len(create_model("my_hidden_net:cell_list", 10, 3).trainable_params()) == 4


@pytest.mark.parametrize("name", ["counter", "flags"])
def test_parameters_that_have_no_gradient_are_not_trained(hidden, name):
    network = create_model(f"my_hidden_net:{name}", 10, 3)
    assert [p.name for p in network.trainable_params()] == ["fc.weight", "fc.bias"]
    assert len(list(network.get_parameters())) == 3
