"""What the training cell hands to a checkpoint is all that it needs to go on."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindcv.optim import create_optimizer
from mindspore import amp, nn, ops

from networks import Net, pruner, rank_term
from rpg_ms.cells import SoftThreshold, SparseTrainStep, StepOptions, WeightAverage, sparsify
from rpg_ms.errors import UserError
from rpg_ms.training.checkpoint import Checkpoints
from rpg_ms.training.distributed import ALONE

ONE, INFINITY = ms.Tensor(1.0, ms.float32), ms.Tensor(np.inf, ms.float32)
CASES = {  # what the cell is made of, and the steps whose loss overflows
    "momentum and average": ({"average": True}, ()),
    "adam and an update that waits": ({"optimizer": "adam", "scaler": True}, (3, 4)),
    "soft thresholds": ({"soft": True, "choices": {"alpha": 0.0, "soft_threshold": True}}, ()),
}


class ScaledLoss(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, y, factor):
        return ops.cross_entropy(self.network(x), y) * factor


def build(seed, optimizer="momentum", scaler=False, soft=False, average=False, choices=()):
    """A network and its training cell, every number of which depends on the seed."""
    ms.set_seed(seed)
    network = Net()
    layers = sparsify(network).layers
    soft = SoftThreshold(layers) if soft else None
    parameters = network.trainable_params() if soft is None else soft.trained(network.trainable_params())
    optimizer = create_optimizer(parameters, optimizer, lr=[0.05 / (1 + t) for t in range(20)], weight_decay=0.01)
    step = SparseTrainStep(
        ScaledLoss(network),
        optimizer,
        layers,
        pruner(**dict(choices)),
        rank_term(layers),
        soft,
        WeightAverage(network, 0.8) if average else None,
        StepOptions(scaler=amp.DynamicLossScaler(2**10, 2, 3) if scaler else None),
    )
    return network, step.set_train()


def advance(step, steps, overflow=()):
    for t in steps:
        rng = np.random.default_rng(t)
        step(
            ms.Tensor(rng.standard_normal((8, 2, 6, 6)), ms.float32),
            ms.Tensor(rng.integers(0, 3, 8), ms.int32),
            INFINITY if t in overflow else ONE,
        )


def everything(network, step):
    """Every number of the network and of the cell, to the bit."""
    parameters, values = step.state()
    own = {parameter.name: parameter for parameter in network.get_parameters()}
    return {**{name: value.asnumpy().tobytes() for name, value in {**own, **parameters}.items()}, **values}


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def mode(request):
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("parts, overflow", CASES.values(), ids=CASES)
def test_goes_on_from_a_checkpoint_to_the_bit(parts, overflow, mode, tmp_path):
    """At step 4: with an update behind it, or one that still waits for a finite gradient."""
    network, step = build(1, **parts)
    advance(step, range(1, 5), overflow)
    assert step.pruner.pending == bool(overflow)
    # Anything that has `state` and `load_state` can be saved and restored: a checkpoint knows no more of the cell.
    checkpoints = Checkpoints(tmp_path, 2, ALONE)
    checkpoints.save(
        network,
        SimpleNamespace(state=step.state),
        {"step": 4, "seconds": 1.0, "model": "net", "best_step": None},
        False,
    )
    again, other = build(2, **parts)
    assert everything(again, other) != everything(network, step)
    state = checkpoints.restore(again, SimpleNamespace(load_state=other.load_state), print)
    assert state["step"] == other.step_number == 4
    assert everything(again, other) == everything(network, step)
    for goes_on in step, other:
        advance(goes_on, range(5, 13))
    assert everything(again, other) == everything(network, step)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    network, step = build(1)
    checkpoints = Checkpoints(tmp_path, 2, ALONE)
    checkpoints.save(network, step, {"step": 4, "seconds": 1.0, "model": "net", "ranks": 1}, False)
    with pytest.raises(
        UserError, match="step-000000004.ckpt: holds no world_size, best: .* an earlier version of rpg_ms$"
    ):
        checkpoints.restore(network, step, print, ["step", "world_size", "best"])


def test_a_state_that_lacks_something_changes_nothing():
    network, step = build(1, average=True)
    advance(step, range(1, 4))
    parameters, values = step.state()
    lacking = {name: parameter for name, parameter in parameters.items() if name != "average:fc.weight"}
    again, other = build(2, average=True)
    before = everything(again, other)
    with pytest.raises(KeyError, match="average:fc.weight"):
        other.load_state(lacking, values)
    assert everything(again, other) == before
