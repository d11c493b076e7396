"""What one rank does in training/test_distributed.py: python distributed_worker.py MODE FOLDER, under msrun.

Writes what it saw to FOLDER/rank_N.json.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindcv.optim import create_optimizer  # noqa: E402
from mindspore import nn, ops  # noqa: E402

import rpg_ms  # noqa: E402,F401  its environment variables come before mindspore
from networks import Net, WithLoss, pruner, rank_term  # noqa: E402
from rpg_ms.cells import SparseTrainStep, StepOptions, sparsify  # noqa: E402
from rpg_ms.config import load_config  # noqa: E402
from rpg_ms.errors import UserError  # noqa: E402
from rpg_ms.models import create_model  # noqa: E402
from rpg_ms.tasks import create_task  # noqa: E402
from rpg_ms.training import distributed  # noqa: E402

GLOBAL_BATCH = 16


def batch(step, rank, size):
    """This rank's share of the global batch of a step."""
    rng = np.random.default_rng(step)
    images = rng.standard_normal((GLOBAL_BATCH, 2, 6, 6)).astype(np.float32)
    labels = rng.integers(0, 3, GLOBAL_BATCH).astype(np.int32)
    mine = slice(rank * GLOBAL_BATCH // size, (rank + 1) * GLOBAL_BATCH // size)
    return ms.Tensor(images[mine]), ms.Tensor(labels[mine])


def trained(network, found, world, delta=0.2, every="update"):
    """Five steps: `losses`, `masks` and `digests` (of weights and masks) of each, the final weights."""
    optimizer = create_optimizer(network.trainable_params(), "momentum", lr=0.1, momentum=0.9)
    reduce = world.mean_of_gradients()
    step = SparseTrainStep(
        WithLoss(network),
        optimizer,
        found.layers,
        pruner(0.2, 5, update_every=2, prune_until=0.8),
        rank_term(found.layers, delta=delta, every=every, reduce=reduce),
        options=StepOptions(reduce=reduce),
    )
    step.set_train()
    losses, masks, digests = [], [], []
    for number in range(1, 6):
        loss = step(*batch(number, world.rank, world.size))
        losses.append(float(world.gather(loss.asnumpy()).mean()))
        masks.append([np.packbits(layer.mask.asnumpy()).tobytes().hex() for layer in found.layers])
        digests.append(distributed.weights_digest(network).hex())
    weights = [parameter.asnumpy().ravel().tolist() for parameter in network.trainable_params()]
    return {"losses": losses, "masks": masks, "digests": digests, "weights": weights}


def build(seed):
    ms.set_seed(seed)
    network = Net()
    return network, sparsify(network)


def evaluate(config_file, world):
    """Top-1 of an untrained network that is the same everywhere, and the labels this rank saw."""
    task = create_task(load_config(config_file), world)
    ms.set_seed(7)
    network = create_model("cifar_resnet8", 10, 1)
    sparsify(network)
    labels = np.concatenate([batch["label"].asnumpy() for batch in task.test_batches()])
    return {**task.evaluate(network), "labels": labels[labels >= 0].tolist(), "steps_per_epoch": task.steps_per_epoch}


def main():
    mode, folder = sys.argv[1], Path(sys.argv[2])
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    ms.set_deterministic(True)
    world = distributed.join()
    print("printed by rank", world.rank)
    seen = {"size": world.size}

    values = [
        np.array([2**62 + world.rank, -1]),
        np.float64(np.pi * (world.rank + 1)),
        np.array([[world.rank == 1]]),
        np.float32([-0.0, np.nan, 1e-45]),
    ]
    seen["gathered"] = [world.gather(value).tobytes().hex() for value in values]

    network, found = build(100 + world.rank)
    seen["own"] = distributed.weights_digest(network).hex()
    world.broadcast(network)
    seen["broadcast"] = distributed.weights_digest(network).hex()
    seen["trained"] = trained(network, found, world)

    seen["agreed"] = world.check_equal(network, 5)
    if world.rank == 1:
        weight = network.fc.weight.asnumpy().copy()
        weight.flat[0] = np.nextafter(weight.flat[0], np.float32(1))
        ops.assign(network.fc.weight, ms.Tensor(weight))
    try:
        world.check_equal(network, 6)
    except UserError as error:
        seen["divergence"] = str(error)

    world.check_same(5, "steps")
    try:
        world.check_same(0 if world.rank == 1 else 5, "steps")
    except UserError as error:
        seen["other_steps"] = str(error)

    # Another delta on every rank stands for processors that round otherwise.
    network, found = build(100)
    seen["other_rounding"] = trained(network, found, world, 0.1 + 0.2 * world.rank, "step")["digests"]

    norm = nn.BatchNorm2d(2)
    ops.assign(norm.moving_mean, ms.Tensor([world.rank, 5.0], ms.float32))
    ops.assign(norm.gamma, ms.Tensor([world.rank, 5.0], ms.float32))
    world.average_statistics(norm)
    seen["moving_mean"], seen["gamma"] = norm.moving_mean.asnumpy().tolist(), norm.gamma.asnumpy().tolist()

    seen["evaluation"] = evaluate(folder / "eval.yaml", world)
    if world.first:  # last, when nobody waits for it
        seen["alone"] = trained(*build(100), distributed.ALONE)
    (folder / f"rank_{world.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
