"""Networks that do not fit the images or the classes, and which of their parameters decay."""

import sys

import mindspore as ms
import numpy as np
import pytest
from mindcv.optim import create_optimizer
from mindspore import mint, nn, ops

from networks import Net
from rpg_ms.config import Config, DataConfig, ModelConfig, OptimizerConfig
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.tasks import create_task
from rpg_ms.training.build import build_network, build_optimizer
from rpg_ms.training.distributed import ALONE

OWN = """
import mindspore as ms
from mindspore import nn, ops

def made_for_224():
    return nn.SequentialCell([nn.Conv2d(1, 4, 3, 16), nn.Flatten(), nn.Dense(4 * 14 * 14, 10)])

def five():
    return nn.SequentialCell([nn.Conv2d(1, 4, 3, 4), nn.Flatten(), nn.Dense(4 * 7 * 7, 5)])

class Two(nn.Cell):
    def construct(self, x):
        return x, x

def two():
    return Two()

def bfloat16():
    return five().to_float(ms.bfloat16)

def frozen():
    network = nn.SequentialCell([nn.Flatten(), nn.Dense(784, 10)])
    network[1].weight.requires_grad = False
    return network

class OwnMask(nn.Dense):
    def __init__(self):
        super().__init__(784, 10)
        self.weight_mask = ms.Parameter(ops.ones_like(self.weight), name="weight_mask")

def own_mask():
    return nn.SequentialCell([nn.Flatten(), OwnMask()])
"""


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
@pytest.mark.parametrize(
    "name, message",
    [
        (
            "my_unfit_net:made_for_224",
            "cannot take images of 1 x 28 x 28 .data.name: fashion_mnist.: .*MatMul.* 16 .* 784",
        ),
        (
            "my_unfit_net:five",
            r"returns \(1, 5\) for one image of fashion_mnist, not \(1, 10\), a number for each class",
        ),
        ("my_unfit_net:two", r"returns tuple for one image of fashion_mnist, not \(1, 10\)"),
        (
            "my_unfit_net:bfloat16",
            ".*cannot take images .*: Select CPU operator.*Unsupported data type.* input.BFloat16",
        ),
        ("my_unfit_net:frozen", ": the network has no .* to prune: 1 frozen"),
        ("my_unfit_net:own_mask", ": 1.weight_mask is Float32 of shape .10, 784., not a mask"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(name, message, mode, tmp_path, monkeypatch):
    (tmp_path / "my_unfit_net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_unfit_net", raising=False)
    ms.set_context(mode=mode)
    config = Config(model=ModelConfig(name=name), data=DataConfig(limit=128))
    with pytest.raises(UserError, match=f"^model.name: {name} ?{message}") as error:
        build_network(config, create_task(config, ALONE))
    assert "\n" not in str(error.value)
    assert ms.get_context("mode") == mode


def decayed(optimizer):
    """Names of the parameters that one step without a gradient makes smaller."""
    for parameter in optimizer.parameters:
        ops.assign(parameter, ops.ones_like(parameter))
    optimizer(tuple(ops.zeros_like(parameter) for parameter in optimizer.parameters))
    return {parameter.name for parameter in optimizer.parameters if (parameter.asnumpy() < 1).all()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_of_any_kind_and_biases_do_not_decay(name):
    class Beta(nn.Cell):
        def __init__(self):
            super().__init__()
            self.alphabeta = nn.Dense(3, 3)  # a layer's name decides nothing
            self.norm = mint.nn.BatchNorm2d(3)
            self.other_norm = nn.LayerNorm((3,))

    config = OptimizerConfig(name=name, weight_decay=0.1)
    assert decayed(build_optimizer(config, Beta().trainable_params(), [0.5])) == {"alphabeta.weight"}
    everything = config.model_copy(update={"decay_norm_and_bias": True})
    assert len(decayed(build_optimizer(everything, Beta().trainable_params(), [0.5]))) == 6


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
def test_a_network_of_weights_alone(decay_norm_and_bias):
    parameters = nn.Dense(3, 3, has_bias=False).trainable_params()
    config = OptimizerConfig(decay_norm_and_bias=decay_norm_and_bias)
    assert decayed(build_optimizer(config, parameters, [0.5])) == {"weight"}


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny", "mobilenet_v2_100"])
def test_mindcvs_networks_decay_as_mindcv_has_it(name):
    parameters = create_model(name, 10, 3).trainable_params()
    ours = build_optimizer(OptimizerConfig(), parameters, [0.1])
    theirs = create_optimizer(parameters, "momentum", [0.1], 5e-4, weight_decay_filter="norm_and_bias")
    assert [p.name for p in ours.parameters] == [p.name for p in theirs.parameters]
    assert np.array_equal(ours.decay_flags, theirs.decay_flags)
    assert [float(np.asarray(w)) for w in ours.weight_decay] == [float(np.asarray(w)) for w in theirs.weight_decay]


def test_tokens_and_position_embeddings_do_not_decay():
    network = create_model("deit_small", 10, 3)
    optimizer = build_optimizer(OptimizerConfig(), network.trainable_params(), [0.1])
    kept = {p.name for p, decays in zip(optimizer.parameters, optimizer.decay_flags) if not decays and p.ndim > 1}
    assert kept == network.no_weight_decay() == {"cls_token", "pos_embed"}


def test_the_steps_are_mindcvs():
    ends = []
    for name in ("sgd", "adam", "adamw"):
        for ours in (True, False):
            ms.set_seed(1)
            parameters = Net().trainable_params()
            optimizer = (
                build_optimizer(OptimizerConfig(name=name, nesterov=True), parameters, [0.1, 0.05])
                if ours
                else create_optimizer(
                    parameters,
                    {"sgd": "momentum"}.get(name, name),
                    [0.1, 0.05],
                    5e-4,
                    0.9,
                    name == "sgd",
                    weight_decay_filter="norm_and_bias",
                )
            )
            rng = np.random.default_rng(0)
            for _ in range(2):
                optimizer(tuple(ms.Tensor(rng.standard_normal(p.shape), ms.float32) for p in parameters))
            ends.append([p.asnumpy() for p in parameters])
        assert all(np.array_equal(a, b) for a, b in zip(*ends[-2:])), name
