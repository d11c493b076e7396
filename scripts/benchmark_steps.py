"""Networks, training steps and clocks for benchmark.py; `rpg_ms` must be on the path."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Optional, Union

import numpy as np

if TYPE_CHECKING:
    import mindspore as ms
    from mindspore import nn

    from rpg_ms.cells import SparseTrainStep

DENSITY = 0.05
UPDATE_EVERY = 100

Figure = tuple[str, str, str, Union[float, int], Optional[str]]  # key, English, Chinese, value, aim


def batch_of(batch: int, size: int) -> tuple[ms.Tensor, ms.Tensor]:
    import mindspore as ms

    rng = np.random.default_rng(0)
    return (
        ms.Tensor(rng.standard_normal((batch, 3, size, size), np.float32)),
        ms.Tensor(rng.integers(0, 10, batch), ms.int32),
    )


def network_with_loss(name: str, size: int, classes: int = 10) -> tuple[nn.Cell, nn.Cell, Callable]:
    """`(network, network with its loss, optimizer of parameters)`."""
    import mindspore as ms
    from mindspore import nn

    from rpg_ms.models import create_model

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    network = create_model(name, classes, 3, size)
    with_loss = nn.WithLossCell(network, nn.CrossEntropyLoss())
    return network, with_loss, lambda parameters: nn.Momentum(parameters, 1e-3, 0.9, weight_decay=5e-4)


def dense_step(name: str, size: int) -> nn.Cell:
    from mindspore import nn

    network, with_loss, optimizer = network_with_loss(name, size)
    return nn.TrainOneStepCell(with_loss, optimizer(network.trainable_params())).set_train()


def masked_step(name: str, size: int, classes: int = 10) -> SparseTrainStep:
    """RPG's step in the middle of a long run, the largest `DENSITY` of the weights active."""
    from rpg_ms.cells import RankTerm, SparseTrainStep, sparsify
    from rpg_ms.cells.masked import set_topology
    from rpg_ms.pruning import ALLOCATIONS, METHODS, Pruner, start_masks

    network, with_loss, optimizer = network_with_loss(name, size, classes)
    layers = sparsify(network).layers
    weights = [layer.weight.asnumpy() for layer in layers]
    counts = ALLOCATIONS["uniform"](weights, DENSITY, 1)
    for layer, weight, mask in zip(layers, weights, start_masks(weights, counts, "magnitude", 0)):
        set_topology(layer, weight, mask)
    pruner = Pruner(METHODS["rpg"], DENSITY, 100 * UPDATE_EVERY)
    term = RankTerm([layer for layer in layers if layer.kind == "conv"], weight=0.5)
    return SparseTrainStep(with_loss, optimizer(network.trainable_params()), layers, pruner, term).set_train()


def torch_step(torch: ModuleType, images: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    """The same network and step in PyTorch: ResNet-20 with parameter-free shortcuts (He et al. 2015, section 4.2)."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.stride, self.added = stride, width - channels
            self.body = nn.Sequential(
                nn.Conv2d(channels, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
            )

        def forward(self, x):
            shortcut = x[:, :, :: self.stride, :: self.stride]
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added // 2))
            return torch.relu(self.body(x) + shortcut)

    blocks = [
        Block(a, b, s)
        for a, b, s in (
            (16, 16, 1),
            (16, 16, 1),
            (16, 16, 1),
            (16, 32, 2),
            (32, 32, 1),
            (32, 32, 1),
            (32, 64, 2),
            (64, 64, 1),
            (64, 64, 1),
        )
    ]
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, 0.9, weight_decay=5e-4)
    images, labels = torch.from_numpy(images), torch.from_numpy(labels).long()

    def one():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return one


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """What a call takes by a clock: on the wall, or by `time.process_time` on all processors together."""
    started = clock()
    function()
    return clock() - started


def reset_peak_memory() -> int:
    """Forget the process's memory peak; the memory it has now, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
