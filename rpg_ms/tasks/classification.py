"""Image classification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Optional

import mindspore as ms
import numpy as np
from mindcv.loss import create_loss
from mindspore import nn, ops

from rpg_ms.cells.distilled import Distilled
from rpg_ms.data.datasets import ImageDataset, known_shape, load_dataset, test_transform
from rpg_ms.data.pipeline import EvalSamples, Mix
from rpg_ms.data.transforms import OnImage, apply, planes
from rpg_ms.errors import UserError
from rpg_ms.models import create_model
from rpg_ms.models.compiling import compile_graph, reason
from rpg_ms.models.flops import try_image
from rpg_ms.tasks.drawing import draw_line
from rpg_ms.tasks.images import Deployed, ImageTask
from rpg_ms.tasks.task import Arrays, Batch
from rpg_ms.training.teacher import Teacher, build_teacher

if TYPE_CHECKING:
    from PIL import Image

    from rpg_ms.config import Config
    from rpg_ms.training.distributed import World

LIKELIEST = 5  # classes that a prediction names


class Classification(ImageTask):
    """Images in, one class each out; measured by top-1 accuracy in percent. See `rpg_ms.tasks.task.Task`.

    Args:
        config: `rpg_ms.config.Config`; read are `model`, `data`, `train` and `seed`.
        world: `rpg_ms.training.distributed.World`, whose processes share the images.
        weights: None, or a checkpoint to tell the number of classes in the place of the dataset.

    Raises:
        UserError: the dataset cannot be read, or has fewer images than a batch in every process.
    """

    decision = "top-1 class"
    outputs = ("outputs",)

    def __init__(self, config: Config, world: World, weights: Optional[str] = None) -> None:
        self.config = config
        self.world = world
        self._count: Optional[_CountCorrect] = None
        self.input_shape, classes = known_shape(config.data)
        if weights is not None:
            self.classes = config.model.num_classes or classes or _width_of_classifier(weights)
            return
        self.classes = config.model.num_classes or self.dataset.classes
        if self.classes < self.dataset.classes:
            raise UserError(
                f"model.num_classes: {self.classes} is less than the {self.dataset.classes} classes of "
                f"{config.data.name}"
            )
        self.steps_per_epoch = self.count_steps()
        if (config.train.mixup or config.train.cutmix) and config.train.batch_size % 2:
            raise UserError(f"train.batch_size: {config.train.batch_size} is odd, which mixup and cutmix cannot mix")

    @cached_property
    def dataset(self) -> ImageDataset:
        """The images, with their transforms."""
        return load_dataset(self.config.data, self.config.seed)

    # -------------------------------------------------------------------------------------------- training

    def network(self, name: Optional[str] = None) -> nn.Cell:
        """The network of `model.name`, or another, tried on one image.

        Raises:
            UserError: an unknown network, or one that does not fit the images and classes.
        """
        model, (channels, size, _) = self.config.model, self.input_shape
        name = name or model.name
        width, padding = (model.width, model.pool_padding) if name == model.name else (1.0, "pytorch")
        network = create_model(name, self.classes, channels, size, width, padding)
        self._check_fit(network, name)
        return network

    def _check_fit(self, network: nn.Cell, name: str) -> None:
        """Try one image, all zero: its size or the number of classes may not be what the network is made for."""
        data = self.config.data.name
        try:
            returned = try_image(network, self.input_shape)
        except Exception as error:  # of any kind, from anybody's network
            size = " x ".join(str(n) for n in self.input_shape)
            raise UserError(
                f"model.name: {name} cannot take images of {size} (data.name: {data}): {reason(error)[:300]}"
            ) from None
        shape = tuple(returned.shape) if isinstance(returned, ms.Tensor) else type(returned).__name__
        if shape != (1, self.classes):
            raise UserError(
                f"model.name: {name} returns {shape} for one image of {data}, not (1, {self.classes}), a number "
                "for each class"
            )

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This process's batches of steps `first_step + 1 .. last_step`: "image", "label" and, with one, "teacher"."""
        made = self.batches_to_train(self.dataset.train_transform, first_step, last_step, self._mix(first_step))
        return self.teacher.join(made) if self.teacher else made

    @cached_property
    def teacher(self) -> Optional[Teacher]:
        """What the network learns from besides the labels, or None."""
        return build_teacher(self.config, self)

    def zero_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """A training batch of zeros, of the shapes and types that `train_batches` has."""
        mixed = self._mix(0) is not None
        labels = np.zeros((batch_size, self.classes), np.float32) if mixed else np.zeros(batch_size, np.int32)
        taught = {"teacher": np.zeros((batch_size, self.classes), np.float32)} if self.teacher else {}
        return {"image": np.zeros((batch_size, *self.input_shape), np.float32), "label": labels, **taught}

    def with_loss(self, network: nn.Cell) -> nn.Cell:
        """The network with cross-entropy, and divergence from a teacher, as a Cell from a batch to a scalar."""
        loss, distill = create_loss("CE", label_smoothing=self.config.train.label_smoothing), self.config.distill
        if distill.weight > 0:
            return Distilled(network, loss, distill.weight, distill.temperature)
        return _WithLoss(network, loss)

    def _mix(self, first_step: int) -> Optional[Mix]:
        train = self.config.train
        if not train.mixup and not train.cutmix:
            return None
        return Mix(train.mixup, train.cutmix, self.classes, self.config.seed, first_step, self.world.rank)

    # ------------------------------------------------------------------------------------------ evaluation

    def test_batches(self) -> Iterator[Batch]:
        """This process's share of the test images, each once; labels of padding are -1."""
        return self.batches_to_test(self.dataset.test_transform, {"label": np.int32(-1)})

    def compile_evaluation(self, network: nn.Cell) -> nn.Cell:
        """The cell that evaluates a network, compiled in graph mode; leaves the network in inference mode.

        Raises:
            UserError: the network does not compile, or run so.
        """
        if self._count is None or self._count.network is not network:  # one cell for all evaluations: compiled once
            count, size = _CountCorrect(network).set_train(False), self.test_batch_size()
            zeros = np.zeros((size, *self.input_shape), np.float32), np.zeros(size, np.int32)
            compile_graph(count, zeros, network, self.config.model.name, "inference", run=True)
            self._count = count
        return self._count.set_train(False)

    def evaluate(self, network: nn.Cell) -> dict[str, float]:
        """`{"top1": percent}` over all test images of all processes; leaves the network in inference mode."""
        count = self.compile_evaluation(network)
        correct = sum(int(count(*batch.values()).asnumpy()) for batch in self.test_batches())
        correct = int(self.world.gather(np.int64(correct)).sum())
        return {"top1": 100 * correct / len(self.dataset.test)}

    # ------------------------------------------------------------------------------------------ prediction

    def predict(self, network: nn.Cell, image: Image.Image) -> dict[str, Any]:
        """The likeliest classes of an RGB image, at most LIKELIEST, with their probabilities, as plain values."""
        inputs = apply(test_transform(self.config.data), {"image": image})["image"]
        logits = network.set_train(False)(ms.Tensor(inputs[None].astype(np.float32))).asnumpy()[:1]
        probabilities = self.expected_outputs((logits,), softmax=True)[0][0]
        names = self._class_names or [None] * len(probabilities)
        return {
            "classes": [
                {"class": int(i), "name": names[i], "probability": float(probabilities[i])}
                for i in np.argsort(-probabilities, kind="stable")[:LIKELIEST]
            ]
        }

    @cached_property
    def _class_names(self) -> Optional[Sequence[str]]:
        """The classes' names, or None where the dataset is not there to tell them, or has other classes."""
        try:
            names = self.dataset.class_names
        except UserError:
            return None
        return names if names is not None and len(names) == self.classes else None

    def draw(self, image: Image.Image, prediction: dict[str, Any]) -> Image.Image:
        """The image with the likeliest class below it."""
        first = prediction["classes"][0]
        name = first["class"] if first["name"] is None else first["name"]
        return draw_line(image, f"{name} {100 * first['probability']:.0f} %")

    # ------------------------------------------------------------------------------------------ deployment

    def inputs(self, count: int, raw: bool = False) -> np.ndarray:
        """The first `count` test images (repeated from the start if there are fewer), `[count, channels, size, size]`
        float32: normalised, or `raw` pixels, 0 to 255.
        """
        test, transform = self.dataset.test, self.dataset.test_transform
        if raw:
            transform = [*transform[:-1], OnImage(planes)]  # the last one normalises
        samples = EvalSamples(test.subset(np.arange(count) % len(test)), transform, count, {})
        return np.stack([samples[i]["image"] for i in range(count)]).astype(np.float32)

    def deployed(self, network: nn.Cell, normalize_input: bool, softmax: bool) -> nn.Cell:
        """From images, or pixels with `normalize_input`, to logits, or probabilities with `softmax`."""
        normalisation = (self.dataset.mean, self.dataset.std) if normalize_input else None
        return _Deployed(network, normalisation, softmax)

    def expected_outputs(self, outputs: Arrays, softmax: bool) -> Arrays:
        """Logits, or their probabilities."""
        if not softmax:
            return outputs
        (logits,) = outputs
        powers = np.exp(np.float64(logits) - logits.max(1, keepdims=True))
        return (powers / powers.sum(1, keepdims=True),)

    def aligned(self, found: Arrays, expected: Arrays) -> Arrays:
        """The outputs themselves: classes have their order."""
        return found

    def decisions(self, outputs: Arrays) -> np.ndarray:
        """Each image's class."""
        return outputs[0].argmax(1)

    def usage(self, normalize_input: bool) -> dict[str, Any]:
        """Model, classes and how images are normalised, as plain values."""
        dataset = self.dataset
        return {
            "model": self.config.model.name,
            "input_layout": "NCHW",
            "input_dtype": "float32",
            "input_values": "pixels, 0 to 255" if normalize_input else "(pixels / 255 - mean) / std",
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "classes": self.classes,
        }

    def names(self) -> dict[str, Any]:
        """The classes' names."""
        return {"class_names": self.dataset.class_names}


def _width_of_classifier(weights: str) -> int:
    """How many classes the network in a checkpoint tells apart: its classifier comes last."""
    from rpg_ms.weights import read_weights

    widths = [
        len(weight) for name, weight in read_weights(weights).items() if name.endswith("weight") and weight.ndim >= 2
    ]
    return widths[-1] if widths else 1


class _WithLoss(nn.Cell):
    def __init__(self, network: nn.Cell, loss: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.loss = loss

    def construct(self, images: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
        return self.loss(self.network(images), labels)


class _CountCorrect(nn.Cell):
    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
        predicted = ops.argmax(self.network(images), 1).astype(ms.int32)
        return (predicted == labels).astype(ms.int32).sum()


class _Deployed(Deployed):
    """Images in, logits or probabilities out."""

    def __init__(
        self, network: nn.Cell, normalisation: Optional[tuple[Sequence[float], Sequence[float]]], softmax: bool
    ) -> None:
        super().__init__(network, normalisation)
        self.softmax = softmax

    def construct(self, images: ms.Tensor) -> ms.Tensor:
        outputs = self.computed(images)
        return ops.softmax(outputs, 1) if self.softmax else outputs
