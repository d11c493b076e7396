"""Steps that run in one graph are the same steps."""

import mindspore as ms
import numpy as np
import pytest
from mindcv.optim import create_optimizer
from mindspore import amp

from doors import TINY, door, last_json
from networks import Net, WithLoss, pruner, rank_term
from rpg_ms.cells import SparseTrainStep, StepOptions, WeightAverage, sparsify


def every_five():
    return pruner(total_steps=16, update_every=5)


def batch(step):
    rng = np.random.default_rng(step)
    return (ms.Tensor(rng.standard_normal((8, 2, 6, 6)), ms.float32), ms.Tensor(rng.integers(0, 3, 8), ms.int32))


def trained(sink_size, optimizer, average, every="update", **options):
    """Losses, and all parameters of the network, its optimizer, average and loss scaler after 12 steps."""
    ms.set_seed(3)
    network = Net()
    found = sparsify(network)
    optimizer = create_optimizer(
        network.trainable_params(), optimizer, lr=[0.05 / (t + 1) for t in range(16)], weight_decay=0.01
    )
    step = SparseTrainStep(
        WithLoss(network),
        optimizer,
        found.layers,
        every_five(),
        rank_term(found.layers, every=every),
        average=WeightAverage(network, 0.9) if average else None,
        options=StepOptions(sink_size=sink_size, **options),
    ).set_train()
    losses, sunk = [], 0
    while step.step_number < 12:
        if step.can_sink():
            losses += step.sink([batch(step.step_number + i) for i in range(sink_size)]).asnumpy().tolist()
            sunk += sink_size
        else:
            losses.append(float(step(*batch(step.step_number)).asnumpy()))
    state = {p.name: p.asnumpy().copy() for cell in (network, step) for p in cell.get_parameters()}
    return losses, state, sunk


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "momentum", "average": True, "clip_norm": 1.0},
        {"optimizer": "adamw", "average": False, "scaler": True},
        {"optimizer": "momentum", "average": False, "every": "step"},
    ],
    ids=["momentum-ema-clip", "adamw-scaler", "rank-every-step"],
)
def test_sunk_steps_are_the_steps_one_by_one(options):
    runs = []
    for sink_size in (1, 2):
        scaler = {"scaler": amp.DynamicLossScaler(2**10, 2, 3)} if options.get("scaler") else {}
        runs.append(trained(sink_size, **{**options, **scaler}))
    assert runs[0][2] == 0 and runs[1][2] == 10  # all but the updates, 5 and 10
    assert runs[0][0] == runs[1][0]
    for name, value in runs[0][1].items():
        assert value.tobytes() == runs[1][1][name].tobytes(), name


def test_what_cannot_be_sunk_is_refused():
    network = Net()
    optimizer = create_optimizer(network.trainable_params(), "momentum", lr=0.1)
    step = SparseTrainStep(
        WithLoss(network), optimizer, sparsify(network).layers, every_five(), options=StepOptions(sink_size=5)
    )
    assert not step.can_sink()  # the fifth is an update
    with pytest.raises(ValueError, match="cannot be sunk"):
        step.sink([batch(i) for i in range(5)])


def test_a_run_with_sinking_leaves_the_same_run_behind(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    for size in (1, 3):
        last_json(
            door(
                "train.py",
                "--config",
                "tiny.yaml",
                "--output_dir",
                f"out{size}",
                "--set",
                f"train.sink_size={size}",
                "train.log_every=4",
                cwd=tmp_path,
            )
        )
    one, three = (ms.load_checkpoint(str(tmp_path / f"out{size}/last.ckpt")) for size in (1, 3))
    for name, value in one.items():
        if name != "rpg_state":
            assert value.asnumpy().tobytes() == three[name].asnumpy().tobytes(), name
    assert (tmp_path / "out1/metrics.jsonl").read_bytes() == (tmp_path / "out3/metrics.jsonl").read_bytes()
