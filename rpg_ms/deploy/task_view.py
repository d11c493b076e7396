"""All that exports ask of a task, and the network in the form in which a task exports it."""
from __future__ import annotations

from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops


class TaskView:
    """What a task answers about an export.

    Args:
        task: `rpg_ms.tasks.Classification`.
    """

    decision = "top-1 class"  # what `decisions` are called

    def __init__(self, task: Any) -> None:
        self._task = task

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the network, without the batch."""
        return self._task.input_shape

    @property
    def model(self) -> str:
        """The network's name."""
        return self._task.config.model.name

    def inputs(self, count: int, raw: bool = False) -> np.ndarray:
        """The first `count` test inputs, `[count, *input_shape]` float32, as the network takes them or as `raw` pixels.
        """
        return self._task.test_images(count, raw)

    def evaluate(self, network: nn.Cell) -> dict[str, float]:
        """The task's figures over its test data; leaves the network in inference mode."""
        return self._task.evaluate(network)

    def deployed(self, network: nn.Cell, normalize_input: bool, softmax: bool) -> nn.Cell:
        """The network as it is exported."""
        dataset = self._task.dataset
        return Deployed(network, (dataset.mean, dataset.std) if normalize_input else None, softmax)

    def expected_outputs(self, outputs: np.ndarray, softmax: bool) -> np.ndarray:
        """What an exported network should return where the network returns `outputs`."""
        if not softmax:
            return outputs
        powers = np.exp(np.float64(outputs) - outputs.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    def decisions(self, outputs: np.ndarray) -> np.ndarray:
        """What is decided by the outputs, `[batch]`, which an export must not change at all."""
        return outputs.argmax(1)

    def about(self) -> dict[str, Any]:
        """What the network is, as plain JSON values: for a file that holds its parameters."""
        return {"task": "classification", "model": self.model, "num_classes": self._task.classes,
                "input_shape": list(self.input_shape)}

    def usage(self, normalize_input: bool) -> dict[str, Any]:
        """What a program needs to know to use a file that computes, as plain JSON values."""
        dataset = self._task.dataset
        return {"model": self.model, "input_layout": "NCHW", "input_dtype": "float32",
                "input_values": "pixels, 0 to 255" if normalize_input else "(pixels / 255 - mean) / std",
                "mean": list(dataset.mean), "std": list(dataset.std), "classes": self._task.classes}

    def names(self) -> dict[str, Any]:
        """More of it, which is too long for a line of output."""
        return {"class_names": self._task.dataset.class_names}


class Deployed(nn.Cell):
    """A network as it is exported: images in, logits or probabilities out.

    Args:
        network: from normalised images to logits.
        normalisation: mean and std of each channel to normalise pixels with, or None.
        softmax: whether to return probabilities.
    """

    def __init__(self, network: nn.Cell, normalisation: Optional[tuple], softmax: bool) -> None:
        super().__init__(auto_prefix=False)  # the Parameters keep their names
        self.network = network
        self.normalize_input = normalisation is not None
        if self.normalize_input:
            mean, std = (np.float32(values).reshape(1, -1, 1, 1) for values in normalisation)
            self.mean, self.std = ms.Tensor(mean), ms.Tensor(std)
        self.softmax = softmax

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        if self.normalize_input:
            images = (images / 255 - self.mean) / self.std
        outputs = self.network(images)
        return ops.softmax(outputs, 1) if self.softmax else outputs
