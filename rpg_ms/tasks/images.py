"""What tasks on images have in common: how their samples become batches, and how a network is exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

import mindspore as ms
import numpy as np
from mindspore import nn

from rpg_ms.data.datasets import check_images
from rpg_ms.data.pipeline import EvalSamples, Mix, TrainSamples, batches
from rpg_ms.data.transforms import Transform
from rpg_ms.errors import UserError
from rpg_ms.tasks.task import Batch

if TYPE_CHECKING:
    from rpg_ms.config import Config
    from rpg_ms.training.distributed import World


class ImageTask:
    """The part of a `rpg_ms.tasks.task.Task` that asks its dataset for no more than `train` and `test` images.

    A task derives from it and sets the attributes.

    Attributes:
        config, world: of the run.
        dataset: has `train` and `test`, images in random access.
        classes: of the network.
        input_shape: shape of one image for the network.
    """

    config: Config
    world: World
    dataset: Any
    classes: int
    input_shape: tuple[int, ...]

    def count_steps(self) -> int:
        """Training steps in one pass over the training images; UserError if a process has fewer than a batch."""
        batch_size, size, count = self.config.train.batch_size, self.world.size, len(self.dataset.train)
        steps = count // (batch_size * size)
        if steps < 1:
            across = f" on each of {size} ranks" if size > 1 else ""
            raise UserError(
                f"train.batch_size: {batch_size}{across} is more than the {count} training images of "
                f"{self.config.data.name}"
            )
        return steps

    def batches_to_train(
        self, transform: Sequence[Transform], first_step: int, last_step: int, mix: Optional[Mix] = None
    ) -> Iterator[Batch]:
        """This process's batches of the training images in the steps `first_step + 1 .. last_step`."""
        train, world = self.config.train, self.world
        samples = TrainSamples(
            self.dataset.train,
            transform,
            train.batch_size,
            self.config.seed,
            first_step,
            last_step,
            world.rank,
            world.size,
        )
        return batches(samples, train.batch_size, self.config.data.workers, mix)

    def batches_to_test(self, transform: Sequence[Transform], padding: Mapping[str, Any]) -> Iterator[Batch]:
        """This process's share of the test images, each once; `padding` as for `EvalSamples`."""
        batch_size = self.test_batch_size()
        samples = EvalSamples(self.dataset.test, transform, batch_size, padding, self.world.rank, self.world.size)
        return batches(samples, batch_size, self.config.data.workers)

    def test_batch_size(self) -> int:
        """Images in a batch of `batches_to_test`."""
        share = -(-len(self.dataset.test) // self.world.size)
        return min(self.config.train.eval_batch_size, share)

    def check_data(self) -> int:
        """Read this process's share of all images and name the unreadable on stderr; how many were read.

        Raises:
            UserError: some cannot be read.
        """
        return check_images(self.dataset, self.world.rank, self.world.size)

    def about(self) -> dict[str, Any]:
        """What the network is, as plain values."""
        return {
            "task": self.config.task,
            "model": self.config.model.name,
            "num_classes": self.classes,
            "input_shape": list(self.input_shape),
        }


class Deployed(nn.Cell):
    """A network as it is exported: it takes images, or, with the mean and standard deviation of each channel, pixels
    of 0 to 255. A task derives from it and writes `construct`.
    """

    def __init__(self, network: nn.Cell, normalisation: Optional[tuple[Sequence[float], Sequence[float]]]) -> None:
        super().__init__(auto_prefix=False)  # the Parameters keep their names
        self.network = network
        self.normalize_input = normalisation is not None
        if self.normalize_input:
            mean, std = (np.float32(values).reshape(1, -1, 1, 1) for values in normalisation)
            self.mean, self.std = ms.Tensor(mean), ms.Tensor(std)

    def computed(self, images: ms.Tensor) -> Any:
        """What the network returns."""
        if self.normalize_input:
            images = (images / 255 - self.mean) / self.std
        return self.network(images)
