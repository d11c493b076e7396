"""What the rest of the package asks a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Optional, Protocol

import mindspore as ms
import numpy as np
from mindspore import nn

if TYPE_CHECKING:
    from PIL import Image

    from rpg_ms.config import Config
    from rpg_ms.training.teacher import Teacher

Batch = dict[str, ms.Tensor]  # named arrays, each with the batch first
Arrays = tuple[np.ndarray, ...]  # of the outputs of a network, in their order


class Task(Protocol):
    """A network, its data, its loss and its figures (`rpg_ms.tasks.TASKS` has their labels).

    Attributes:
        config: `rpg_ms.config.Config`.
        decision: what `decisions` are called, such as "top-1 class".
        outputs: names of the network's outputs.
        input_shape: shape of one input of the network, without the batch.
        steps_per_epoch: training steps in one pass over the training data of all processes.
        teacher: what is learnt from besides the data, or None.
    """

    config: Config
    decision: str
    outputs: tuple[str, ...]
    input_shape: tuple[int, ...]
    steps_per_epoch: int
    teacher: Optional[Teacher]

    def network(self, name: Optional[str] = None) -> nn.Cell:
        """A fresh network, of `model.name` or another, which fits the data; UserError if it does not."""

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This process's batches of the steps `first_step + 1 .. last_step`."""

    def zero_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """A training batch of zeros, of the shapes and types that `train_batches` has: to compile for."""

    def check_data(self) -> int:
        """Read all of this process's data once; how much that was, or UserError for what cannot be read."""

    def with_loss(self, network: nn.Cell) -> nn.Cell:
        """The network with its loss: a Cell from the arrays of a training batch, in their order, to a scalar."""

    def compile_evaluation(self, network: nn.Cell) -> Any:
        """Compile what `evaluate` runs; UserError if the network does not compile."""

    def evaluate(self, network: nn.Cell) -> dict[str, float]:
        """The task's figures over the test data of all processes; leaves the network in inference mode."""

    def predict(self, network: nn.Cell, image: Image.Image) -> dict[str, Any]:
        """What the network makes of an RGB image of any size, as plain values; it is left in inference mode."""

    def draw(self, image: Image.Image, prediction: dict[str, Any]) -> Image.Image:
        """The image with what `predict` made of it."""

    def inputs(self, count: int, raw: bool = False) -> np.ndarray:
        """The first `count` test inputs, `[count, *input_shape]` float32: the network's, or `raw` pixels."""

    def deployed(self, network: nn.Cell, normalize_input: bool, softmax: bool) -> nn.Cell:
        """The network as it is exported."""

    def expected_outputs(self, outputs: Arrays, softmax: bool) -> Arrays:
        """What an exported network should return where the network returns `outputs`."""

    def aligned(self, found: Arrays, expected: Arrays) -> Arrays:
        """An exported network's outputs in the order of those expected, if they have none of their own."""

    def decisions(self, outputs: Arrays) -> np.ndarray:
        """What is decided by the outputs, exactly the same before and after an export, such as each image's class."""

    def about(self) -> dict[str, Any]:
        """What the network is, as plain values: for a file that holds its parameters."""

    def usage(self, normalize_input: bool) -> dict[str, Any]:
        """What a program needs to know to use a file that computes, as plain values."""

    def names(self) -> dict[str, Any]:
        """More of it, which is too long for a line of output."""
