"""Distillation: the network learns from the outputs of a dense one as well (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Optional

import numpy as np

from rpg_ms.cells import sparsify
from rpg_ms.errors import UserError
from rpg_ms.files import sha256
from rpg_ms.models.compiling import compile_graph
from rpg_ms.weights import load_weights

if TYPE_CHECKING:
    from rpg_ms.config import Config
    from rpg_ms.tasks.task import Batch, Task


class Teacher:
    """A network in inference mode, whose outputs join the batches: it is no part of what is trained, saved or exported.

    Args:
        config: `rpg_ms.config.Config` with a `distill.weight` above 0.
        task: the task, which builds the network.

    Raises:
        UserError: there is no file of weights to teach, or it does not fit the network.
    """

    def __init__(self, config: Config, task: Task) -> None:
        model, distill = config.model, config.distill
        self.path = distill.teacher or model.pretrained
        if self.path is None:
            raise UserError("distill.teacher: null stands for model.pretrained, which is null too: there is no teacher")
        own = distill.teacher is None  # the very weights that training starts from, read as those are
        self.name = (not own and distill.model) or model.name
        self.network = task.network(self.name)
        fitting = (model.pretrained_allow, model.pretrained_entry, model.pretrained_prefix) if own else ()
        try:
            load_weights(self.path, self.network, sparsify(self.network), *fitting)
        except (UserError, ValueError) as error:
            raise UserError(f"distill.teacher: {error}") from None
        self.network.set_train(False)

    def sha256(self) -> str:
        """Of the file of weights: a run goes on with the same teacher."""
        return sha256(self.path)

    def compile(self, images: np.ndarray) -> None:
        """Compile for a batch of images, and run; UserError if the network does not."""
        compile_graph(self.network, [images], self.network, self.name, "inference", run=True)

    def join(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, each with the network's outputs for its "image" as "teacher"."""
        for batch in batches:
            yield {**batch, "teacher": self.network(batch["image"])}


def build_teacher(config: Config, task: Task) -> Optional[Teacher]:
    """The Teacher of a configuration, or None: `distill.weight` is 0."""
    return Teacher(config, task) if config.distill.weight > 0 else None
