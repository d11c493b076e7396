"""Training on many devices: one process ("rank") each, started by MindSpore's msrun.

Every rank holds the whole network and sees its own share of each global batch. What keeps the ranks one
network: weights and masks come from rank 0 at the start, gradients are averaged before anything uses them,
and every topology update ends with a comparison of digests.

Everything here rests on AllReduce of float32, which MindSpore documents for Ascend, GPU and CPU alike;
values that must arrive exactly (digests, counts, parameters) travel as bytes, one to a float32.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

import mindspore as ms
import numpy as np
from mindspore import communication, nn, ops

from rpg_ms.errors import UserError
from rpg_ms.models.flops import STATISTICS  # the parameters in which ranks may differ

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rpg_ms.cells import WeightAverage


def join() -> World:
    """The ranks of the run, as this process sees them; those that msrun did not start are alone.

    To be called when the device is chosen and before the first Tensor is made. Every rank but the first then prints
    nothing more to stdout. In msrun's scheduler process it does not return.

    Raises:
        UserError: the other ranks cannot be reached, or the process was started as one of several in another way.
    """
    if "MS_ROLE" not in os.environ:
        if os.environ.get("RANK_SIZE", "1") != "1":
            raise UserError(
                f"RANK_SIZE: {os.environ['RANK_SIZE']} ranks, but not started by msrun; "
                "scripts/run_distribute_train.sh does that, with a rank table too"
            )
        return ALONE
    try:
        communication.init()
    except RuntimeError as error:
        raise UserError(f"cannot join the other ranks: {str(error).splitlines()[0]}") from None
    world = World(communication.get_rank(), communication.get_group_size())
    if world.rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return world


@dataclass(frozen=True)
class World:
    """The ranks of a run as number `rank` of `size` sees them. With one rank nothing is sent and nothing changes.

    Each method is a collective: all ranks call it, in the same order.
    """

    rank: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self.gather(np.uint8(0))

    def gather(self, value: ArrayLike) -> np.ndarray:
        """Every rank's `value`, exactly: a NumPy array of any dtype and shape in, `[size, *shape]` out."""
        value = np.asarray(value)
        sent = np.zeros((self.size, value.nbytes), np.float32)
        sent[self.rank] = _bytes(value)
        return self._sum(sent).astype(np.uint8).view(value.dtype).reshape(self.size, *value.shape)

    def broadcast(self, network: nn.Cell) -> None:
        """Give every parameter of `network` (weights, statistics, masks) its value on rank 0, to the bit."""
        if self.size == 1:
            return
        for parameter in network.get_parameters():
            value = parameter.asnumpy()
            sent = _bytes(value).astype(np.float32) if self.first else np.zeros(value.nbytes, np.float32)
            received = self._sum(sent).astype(np.uint8).view(value.dtype).reshape(value.shape)
            ops.assign(parameter, ms.Tensor(received, parameter.dtype))

    def average_statistics(self, network: nn.Cell, average: Optional[WeightAverage] = None) -> None:
        """Replace the running statistics of batch norms, also in `average`, by their mean over the ranks.

        Each rank's batch norm follows its own share of the data. For the variance the mean leaves out how
        much the ranks' means differ, which is little: each has averaged over many batches of one shuffled
        dataset. The running averages are linear, so averaging now and again later gives what averaging later
        alone would.
        """
        if self.size == 1:
            return
        statistics = [p for name, p in network.parameters_and_names() if name.endswith(STATISTICS)]
        if average is not None:
            average_of = {id(source): moving for source, moving in zip(average.sources, average.averages)}
            statistics += [average_of[id(parameter)] for parameter in statistics]
        for parameter in statistics:
            mean = self.gather(parameter.asnumpy()).mean(axis=0, dtype=np.float64)
            ops.assign(parameter, ms.Tensor(mean, parameter.dtype))

    def check_same(self, number: int, what: str) -> None:
        """Raise a UserError, on all ranks, unless an integer is the same on all of them; `what` begins the message."""
        numbers = self.gather(np.int64(number))
        if (numbers != numbers[0]).any():
            raise UserError(
                f"{what}: {', '.join(map(str, numbers))}, on ranks 0 to {self.size - 1}; every node must be able "
                "to read the run's folder"
            )

    def check_equal(self, network: nn.Cell, step: int) -> str:
        """The digest (hexadecimal) of the weights and masks, the same on all ranks.

        Raises:
            UserError: the ranks differ: names the step and those that disagree with rank 0. On all ranks.
        """
        digest = weights_digest(network)
        digests = self.gather(np.frombuffer(digest, np.uint8))
        odd = [str(rank) for rank in range(self.size) if not np.array_equal(digests[rank], digests[0])]
        if odd:
            raise UserError(
                f"weights or masks differ between the ranks after step {step}: rank {', '.join(odd)} of "
                f"{self.size} against rank 0"
            )
        return digest.hex()

    def mean_of_gradients(self) -> Optional[MeanOfGradients]:
        """A Cell that averages a tuple of gradients over the ranks, or None with one rank."""
        return MeanOfGradients(self.size) if self.size > 1 else None

    def _sum(self, array: np.ndarray) -> np.ndarray:
        if self.size == 1:
            return array
        return ops.AllReduce()(ms.Tensor(np.ascontiguousarray(array, np.float32))).asnumpy()


ALONE = World(0, 1)


class MeanOfGradients(nn.Cell):
    """The mean of a tuple of gradients over the ranks.

    They travel as one float32 vector: one collective a step, so there is no order of collectives to agree on.
    """

    def __init__(self, size: int) -> None:
        super().__init__(auto_prefix=False)
        self.all_reduce = ops.AllReduce()
        self.share = 1.0 / size

    def construct(self, gradients: tuple[ms.Tensor, ...]) -> tuple[ms.Tensor, ...]:
        flat = ()
        for gradient in gradients:
            flat += (gradient.astype(ms.float32).reshape(-1),)
        total = self.all_reduce(ops.cat(flat)) * self.share
        means = ()
        start = 0
        for gradient in gradients:
            end = start + gradient.size
            means += (total[start:end].reshape(gradient.shape).astype(gradient.dtype),)
            start = end
        return means


def weights_digest(network: nn.Cell) -> bytes:
    """BLAKE2b, 16 bytes, of names and values of all parameters (weights, masks) but statistics."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in network.parameters_and_names():
        if not name.endswith(STATISTICS):
            digest.update(name.encode())
            digest.update(_bytes(parameter.asnumpy()).data)
    return digest.digest()


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
