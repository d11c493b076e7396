"""One export: what is written, and what it asks its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mindspore import nn

from rpg_ms.deploy.formats import FORMATS, Format, Options

if TYPE_CHECKING:
    from rpg_ms.cells import Sparsified
    from rpg_ms.tasks.task import Task

IMAGES = 64  # real test images that a file is verified on, at least


@dataclass(frozen=True)
class Job:
    """What a format's `write` is given: the masked network in inference mode, and what is asked of the file.

    `path` is the file's name once it is written and verified; `trained` has the `step` and `seconds` of the training
    run, or None each.
    """

    network: nn.Cell
    sparsified: Sparsified
    task: Task
    file_format: str
    options: Options
    path: Path
    trained: Mapping[str, Any]

    @property
    def row(self) -> Format:
        """The row of the format."""
        return FORMATS[self.file_format]

    @cached_property
    def network_inputs(self) -> np.ndarray:
        """Test inputs as the network takes them, `[count, *input_shape]` float32: whole batches, `IMAGES` at least."""
        return self.task.inputs(-(-IMAGES // self.options.batch_size) * self.options.batch_size)

    @cached_property
    def file_inputs(self) -> np.ndarray:
        """The same inputs as the file takes them: pixels with `normalize_input`."""
        if not self.options.normalize_input:
            return self.network_inputs
        return self.task.inputs(len(self.network_inputs), raw=True)

    @property
    def example(self) -> np.ndarray:
        """The first batch of `file_inputs`."""
        return self.file_inputs[: self.options.batch_size]

    def deployed(self) -> nn.Cell:
        """A new Cell that computes what the file is to compute.

        A new one each time, which compiles anew: the ONNX exporter changes the graph that it reads, and fails on it a
        second time.
        """
        return self.task.deployed(self.network, self.options.normalize_input, self.options.softmax).set_train(False)
