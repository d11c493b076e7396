import mindcv
import mindspore as ms
import numpy as np
import pytest
from mindspore import mint, nn, ops

from rpg_ms.cells import MaskedConv2d, MaskedDense, sparsify
from rpg_ms.cells.masked import NothingMatches, set_topology


class Mixed(nn.Cell):
    """One of everything: grouped and transposed convolutions, a dense layer, an embedding, a bare matrix."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, has_bias=True)
        self.body = nn.SequentialCell([nn.Conv2d(8, 8, 3, group=8), nn.BatchNorm2d(8), nn.ReLU()])
        self.up = nn.Conv2dTranspose(8, 4, 2, 2)
        self.head = nn.Dense(4, 5)
        self.words = nn.Embedding(7, 5)
        self.table = ms.Parameter(ms.Tensor(np.ones((5, 5), np.float32)), name="table")

    def construct(self, x):
        x = self.up(self.body(self.stem(x))).mean((2, 3))
        return ops.matmul(self.head(x), self.table) + self.words(ms.Tensor([1]))


@pytest.fixture
def mixed():
    ms.set_seed(1)
    return Mixed().set_train(False)


def test_finds_layers_and_says_what_it_skipped(mixed):
    found = sparsify(mixed)
    assert [(layer.name, layer.kind) for layer in found.layers] == [
        ("stem", "conv"),
        ("body.0", "conv"),
        ("up", "conv"),
        ("head", "dense"),
    ]
    assert found.prunable == 8 * 3 * 9 + 8 * 9 + 8 * 4 * 4 + 4 * 5
    assert found.nonzero == found.prunable and found.density == 1
    assert {name: reason.split(",")[0] for name, reason in found.skipped.items()} == {
        "table": "'table' of a Mixed",
        "words.embedding_table": "'embedding_table' of a Embedding",
    }
    assert type(mixed.stem) is MaskedConv2d and type(mixed.head) is MaskedDense
    assert type(mixed.body[0]) is MaskedConv2d


def test_masks_are_saved_with_the_network_and_not_trained(mixed, tmp_path):
    found = sparsify(mixed)
    rng = np.random.default_rng(0)
    for layer in found.layers:
        set_topology(layer, layer.weight.asnumpy(), rng.random(layer.weight.shape) < 0.5)
    assert not any("mask" in parameter.name for parameter in mixed.trainable_params())
    ms.save_checkpoint(mixed, str(tmp_path / "x.ckpt"))
    again = Mixed()
    found_again = sparsify(again)
    assert not ms.load_param_into_net(again, ms.load_checkpoint(str(tmp_path / "x.ckpt")))[0]
    assert found_again.nonzero == found.nonzero < found.prunable
    for old, new in zip(found.layers, found_again.layers):
        assert new.mask.name == f"{new.weight.name}_mask" and new.mask.dtype == ms.bool_
        assert np.array_equal(old.mask.asnumpy(), new.mask.asnumpy())


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_output_is_unchanged(mixed, mode):
    ms.set_context(mode=mode)
    x = ms.Tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)), ms.float32)
    before = mixed(x).asnumpy()
    found = sparsify(mixed)
    assert np.array_equal(mixed(x).asnumpy(), before)
    layer = found.layers[3]
    mask = np.zeros(layer.weight.shape, bool)
    set_topology(layer, layer.weight.asnumpy(), mask)
    bias = mixed.head.bias.asnumpy()
    expected = np.tile(bias.sum() + mixed.words.embedding_table.asnumpy()[1], (2, 1))
    np.testing.assert_allclose(mixed(x).asnumpy(), expected, rtol=1e-5, atol=1e-6)
    ms.set_context(mode=ms.GRAPH_MODE)


def test_masking_twice_changes_nothing(mixed):
    first, second = sparsify(mixed), sparsify(mixed)
    assert [id(layer.mask) for layer in first.layers] == [id(layer.mask) for layer in second.layers]


def test_exclude(mixed):
    found = sparsify(mixed, exclude=["stem", "body.*"])
    assert [layer.name for layer in found.layers] == ["up", "head"]
    assert {reason for reason in found.skipped.values() if "excluded" in reason} == {
        "excluded by 'stem'",
        "excluded by 'body.*'",
    }
    with pytest.raises(ValueError, match="'steem'"):
        sparsify(Mixed(), exclude=["steem"])
    with pytest.raises(ValueError, match="no convolution or dense layer"):
        sparsify(nn.SequentialCell([nn.ReLU()]))


def test_frozen_layers_stay_as_they_are(mixed):
    mixed.stem.weight.requires_grad = False
    found = sparsify(mixed)
    assert "stem" not in [layer.name for layer in found.layers]
    assert "frozen" in found.skipped["stem.weight"]


def test_a_network_with_nothing_to_prune_says_why():
    net = nn.SequentialCell([nn.Conv2d(1, 2, 3), nn.Dense(2, 3), nn.Dense(3, 3)])
    net[0].weight.requires_grad = net[2].weight.requires_grad = False
    with pytest.raises(NothingMatches, match="to prune: 2 frozen .requires_grad is False., 1 excluded by '1'$"):
        sparsify(net, exclude=["1"])
    net[1].weight.requires_grad = False
    with pytest.raises(ValueError, match="to prune: 3 frozen .requires_grad is False.$") as error:
        sparsify(net)
    assert not isinstance(error.value, NothingMatches)


@pytest.mark.parametrize(
    "own, what",
    [
        (lambda cell: ms.Parameter(ops.ones_like(cell.weight), name="weight_mask"), "Float32 of shape .4, 4."),
        (lambda cell: ms.Parameter(ms.Tensor(np.ones(4, np.bool_)), name="weight_mask"), "Bool of shape .4,."),
        (lambda cell: "none", "a str"),
    ],
)
def test_a_weight_mask_that_is_none_of_ours_is_refused(own, what):
    class OwnMask(nn.Dense):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.weight_mask = own(self)

    net = nn.SequentialCell([nn.Dense(4, 4), OwnMask(4, 4)])
    with pytest.raises(ValueError, match=f"^1.weight_mask is {what}, not a mask .* call it otherwise$"):
        sparsify(net)


def test_shared_weight_has_one_mask():
    net = nn.SequentialCell([nn.Dense(4, 4), nn.Dense(4, 4)])
    net[1].weight = net[0].weight
    assert len(sparsify(net).layers) == 1


def test_every_convolution_of_mint_is_found():
    for cell in (
        mint.nn.Conv1d(2, 3, 3),
        mint.nn.Conv2d(2, 3, 3),
        mint.nn.Conv3d(2, 3, 3),
        mint.nn.ConvTranspose2d(2, 3, 3),
    ):
        (layer,) = sparsify(nn.SequentialCell([cell])).layers
        assert layer.kind == "conv" and layer.mask.shape == cell.weight.shape


def test_subclass_keeps_its_own_construct():
    class Halved(nn.Conv2d):
        def construct(self, x):
            return 0.5 * super().construct(x)

    net = nn.SequentialCell([Halved(3, 4, 3)])
    ms.set_context(mode=ms.PYNATIVE_MODE)
    x = ms.Tensor(np.ones((1, 3, 5, 5), np.float32))
    before = net(x).asnumpy()
    found = sparsify(net)
    assert len(found.layers) == 1 and type(net[0]) is Halved
    assert np.array_equal(net(x).asnumpy(), before)
    ms.set_context(mode=ms.GRAPH_MODE)


def test_masked_layers_can_be_built_directly():
    conv, dense = MaskedConv2d(3, 4, 3), MaskedDense(4, 5)
    assert conv.weight_mask.shape == conv.weight.shape and conv.weight_mask.asnumpy().all()
    assert conv(ms.Tensor(np.ones((1, 3, 5, 5), np.float32))).shape == (1, 4, 5, 5)
    assert dense.weight_mask.shape == (5, 4)
    assert [layer.name for layer in sparsify(nn.SequentialCell([conv])).layers] == ["0"]


def test_set_topology_makes_positive_zeros(mixed):
    layer = sparsify(mixed).layers[0]
    set_topology(layer, -np.ones(layer.weight.shape, np.float32), np.zeros(layer.weight.shape, bool))
    assert layer.weight.asnumpy().tobytes() == bytes(4 * layer.weight.size)


def test_a_mindcv_network():
    network = mindcv.create_model("resnet18", num_classes=10).set_train(False)
    x = ms.Tensor(np.random.default_rng(0).standard_normal((2, 3, 32, 32)), ms.float32)
    before = network(x).asnumpy()
    found = sparsify(network)
    assert len(found.layers) == 21 and not found.skipped
    assert np.array_equal(network(x).asnumpy(), before)
