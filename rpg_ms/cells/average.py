"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
from mindspore import nn, ops

AVERAGE = "average:"  # how the names of averaged weights begin in a checkpoint


class WeightAverage(nn.Cell):
    """An exponential moving average of a network's weights and statistics, exactly as sparse as the network.

    Masked weights are zero, so their averages decay to it; at a topology update they are set to zero at once
    (`MaskState`). `decay` is the share of the average that is kept each step.
    """

    def __init__(self, network: nn.Cell, decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.fresh = 1 - decay
        self.sources = ms.ParameterTuple([p for p in network.get_parameters() if p.is_floating_point()])
        self.averages = self.sources.clone("average")
        for average in self.averages:
            average.requires_grad = False

    def construct(self) -> bool:
        for average, source in zip(self.averages, self.sources):
            ops.assign_add(average, (source - average) * self.fresh)
        return True

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network's weights are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, ms.Parameter]:
        """The averages, by the names that they have in a checkpoint."""
        return {AVERAGE + source.name: average for source, average in zip(self.sources, self.averages)}

    def _swap(self) -> None:
        for average, source in zip(self.averages, self.sources):
            held = ms.Tensor(source.asnumpy().copy())
            ops.assign(source, average)
            ops.assign(average, held)
