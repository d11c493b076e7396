"""Object detection and instance segmentation: boxes, classes and masks of the objects in an image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from PIL import Image

from rpg_ms.data.coco import mask_functions
from rpg_ms.data.detection_samples import MASK_SIDE, DetectionDataset
from rpg_ms.data.transforms import apply
from rpg_ms.errors import UserError
from rpg_ms.models.compiling import compile_graph
from rpg_ms.models.detection import DetectionLoss, DetectionSettings, create_detector
from rpg_ms.tasks.average_precision import AveragePrecision, Found, found_objects
from rpg_ms.tasks.drawing import draw_objects
from rpg_ms.tasks.images import Deployed, ImageTask
from rpg_ms.tasks.task import Arrays, Batch

if TYPE_CHECKING:
    from rpg_ms.config import Config
    from rpg_ms.training.distributed import World

CLASSIFIER = "roi_heads.box_predictor.cls_score.weight"


class Detection(ImageTask):
    """Images in, objects out; measured by average precision in percent. See `rpg_ms.tasks.task.Task`.

    Only what is needed of the dataset is read: evaluation does not need the training images.

    Args:
        config: `rpg_ms.config.Config`; read are `model`, `data`, `detection`, `train` and `seed`.
        world: `rpg_ms.training.distributed.World`, whose processes share the images.
        weights: None, or a checkpoint to tell the number of classes in the place of the dataset.

    Raises:
        UserError: the dataset cannot be read, or pycocotools is not installed.
    """

    decision = "detected objects"
    teacher = None

    def __init__(self, config: Config, world: World, weights: Optional[str] = None) -> None:
        mask_functions()
        self.config = config
        self.world = world
        self.masks = config.model.masks
        self.outputs = ("boxes", "scores", "labels", "masks") if self.masks else ("boxes", "scores", "labels")
        self.dataset = DetectionDataset(config.data, self.masks, config.seed)
        self.input_shape = (3, self.dataset.size, self.dataset.size)
        self._inference: Optional[_Inference] = None
        self._keys: Optional[int] = None
        self.classes = config.model.num_classes or 0
        if weights is not None:
            self.classes = self.classes or _classes_of(weights)
            return
        needed = 1 + max(self.dataset.test.categories)  # the ids themselves, and 0 for the background
        self.classes = self.classes or needed
        if self.classes < needed:
            raise UserError(
                f"model.num_classes: {self.classes} is less than {needed}: the background and the ids of "
                f"{config.data.name}, up to {needed - 1}"
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Training steps in one pass over the training images of all processes.

        Raises:
            UserError: they cannot be read, are of other classes than the test images, or are fewer than a batch in
                every process.
        """
        train = self.dataset.train
        if train.categories != self.dataset.test.categories:
            raise UserError(f"{train.file}: its categories are not those of {self.dataset.test.file}")
        return self.count_steps()

    # -------------------------------------------------------------------------------------------- training

    def network(self, name: Optional[str] = None) -> nn.Cell:
        """The network of `model.name`, or another.

        Raises:
            UserError: an unknown network, or settings that do not fit it.
        """
        model, detection = self.config.model, self.config.detection
        given = {name: value for name, value in detection.model_dump().items() if name != "scale_jitter"}
        network = create_detector(
            name or model.name,
            self.classes,
            self.dataset.size,
            model.width,
            DetectionSettings(masks=self.masks, **given),
        )
        self._keys = network.keys
        return network

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This process's batches of steps `first_step + 1 .. last_step`: what `DetectionLoss` takes, in its order."""
        detection = self.config.detection
        transform = self.dataset.train_transform(detection.boxes_per_image, self._key_count(), detection.scale_jitter)
        return self.batches_to_train(transform, first_step, last_step)

    def zero_batch(self, batch_size: int) -> dict[str, np.ndarray]:
        """A training batch of zeros, of the shapes and types that `train_batches` has."""
        rows = (batch_size, self.config.detection.boxes_per_image)
        return {
            "image": np.zeros((batch_size, *self.input_shape), np.float32),
            "valid": np.zeros((batch_size, 2), np.float32),
            "boxes": np.zeros((*rows, 4), np.float32),
            "labels": np.zeros(rows, np.int32),
            "masks": np.zeros((*rows, MASK_SIDE, MASK_SIDE), np.uint8),
            "keys": np.zeros((batch_size, self._key_count()), np.float32),
        }

    def _key_count(self) -> int:
        """How many random numbers the losses of an image take, which the network knows."""
        if self._keys is None:
            self.network()
        return self._keys

    def with_loss(self, network: nn.Cell) -> nn.Cell:
        """The network with the sum of its losses, as a Cell from a training batch to a scalar."""
        return DetectionLoss(network)

    # ------------------------------------------------------------------------------------------ evaluation

    def test_batches(self) -> Iterator[Batch]:
        """This process's share of the test images, each once: "image", "valid", and "index", -1 for padding."""
        return self.batches_to_test(self.dataset.test_transform(), {"index": np.int32(-1)})

    def compile_evaluation(self, network: nn.Cell) -> nn.Cell:
        """The cell that evaluates a network, compiled in graph mode; leaves the network in inference mode.

        Raises:
            UserError: the network does not compile.
        """
        if self._inference is None or self._inference.network is not network:
            inference, size = _Inference(network).set_train(False), self.test_batch_size()
            zeros = np.zeros((size, *self.input_shape), np.float32), np.zeros((size, 2), np.float32)
            compile_graph(inference, zeros, network, self.config.model.name, "inference")
            self._inference = inference
        return self._inference.set_train(False)

    def evaluate(self, network: nn.Cell) -> dict[str, float]:
        """The figures over all test images of all processes; leaves the network in inference mode."""
        inference = self.compile_evaluation(network)
        test = self.dataset.test
        measured = AveragePrecision(test, self.masks)
        for batch in self.test_batches():
            outputs = [output.asnumpy() for output in inference(batch["image"], batch["valid"])]
            for row, index in enumerate(batch["index"].asnumpy().tolist()):
                if index >= 0:
                    picture = test.pictures[index]
                    measured.add(index, self._found(picture.height, picture.width, [one[row] for one in outputs]))
        return measured.figures(self.world)

    def _found(self, height: int, width: int, outputs: list[np.ndarray]) -> list[Found]:
        return found_objects(height, width, self.dataset.size, *outputs)

    # ------------------------------------------------------------------------------------------ prediction

    def predict(self, network: nn.Cell, image: Image.Image) -> dict[str, Any]:
        """The objects in an RGB image, the likeliest first, as plain values: class, name, score, box, mask."""
        if self._inference is None or self._inference.network is not network:
            self._inference = _Inference(network)
        sample = apply(self.dataset.test_transform(), {"image": image, "index": np.int32(0)})
        inputs = (ms.Tensor(sample[name][None]) for name in ("image", "valid"))
        outputs = [output.asnumpy()[0] for output in self._inference.set_train(False)(*inputs)]
        names = self.names()["class_names"]
        objects = []
        for one in self._found(image.height, image.width, outputs):
            made = {"class": one.label, "name": names.get(one.label), "score": one.score, "box": list(one.box)}
            if one.counts is not None:
                made["mask"] = {"size": [image.height, image.width], "counts": one.counts.decode()}
            objects.append(made)
        return {"objects": objects}

    def draw(self, image: Image.Image, prediction: dict[str, Any]) -> Image.Image:
        """The image with what `predict` found in it."""
        return draw_objects(image, prediction["objects"])

    # ------------------------------------------------------------------------------------------ deployment

    def inputs(self, count: int, raw: bool = False) -> np.ndarray:
        """The first `count` test images (repeated from the start if there are fewer), `[count, 3, size, size]` float32:
        normalised, or `raw` pixels, 0 to 255.
        """
        test = self.dataset.test
        transform = self.dataset.raw_transform() if raw else self.dataset.test_transform()
        return np.stack([apply(transform, test.sample(i % len(test)))["image"] for i in range(count)])

    def deployed(self, network: nn.Cell, normalize_input: bool, softmax: bool) -> nn.Cell:
        """From images, or pixels with `normalize_input`, to boxes, scores, labels and masks.

        Raises:
            UserError: with `softmax`: the scores are probabilities already.
        """
        if softmax:
            raise UserError("--softmax: a detector's scores are probabilities already")
        row = self.dataset.row
        return _Deployed(network, (row.mean, row.std) if normalize_input else None)

    def expected_outputs(self, outputs: Arrays, softmax: bool) -> Arrays:
        """The outputs, with zeros in the rows that are padding."""
        padding = outputs[1] == 0
        return tuple(np.where(padding.reshape(*padding.shape, *[1] * (one.ndim - 2)), 0, one) for one in outputs)

    def aligned(self, found: Arrays, expected: Arrays) -> Arrays:
        """Each detection in the row of the one of its class that is nearest to it: of two with nearly the same score
        another runtime may say the other one first. What has no counterpart stands in rows that are padding.
        """
        (boxes, scores, labels), (wanted_boxes, wanted_scores, wanted_labels) = found[:3], expected[:3]
        aligned = tuple(np.zeros_like(one) for one in found)
        for image in range(len(boxes)):
            free = np.flatnonzero(scores[image] > 0).tolist()
            rows = np.flatnonzero(wanted_scores[image] > 0).tolist()
            pairs = []
            for row in rows:
                same = [i for i in free if labels[image, i] == wanted_labels[image, row]]
                if same:
                    distance = np.abs(boxes[image, same] - wanted_boxes[image, row]).max(1)
                    pairs.append((row, same[int(distance.argmin())]))
                    free.remove(pairs[-1][1])
            taken = {row for row, _ in pairs}
            pairs += zip([row for row in range(boxes.shape[1]) if row not in taken], free)
            for row, i in pairs:
                for to, one in zip(aligned, found):
                    to[image, row] = one[image, i]
        return aligned

    def decisions(self, outputs: Arrays) -> np.ndarray:
        """Each detection's class, `[count, d]`; 0 is padding."""
        _, scores, labels, *_ = outputs
        return np.where(scores > 0, labels, 0)

    def usage(self, normalize_input: bool) -> dict[str, Any]:
        """Model, classes and how images are made ready, as plain values."""
        return {
            "model": self.config.model.name,
            "input_layout": "NCHW",
            "input_dtype": "float32",
            "input_values": "pixels, 0 to 255" if normalize_input else "(pixels / 255 - mean) / std",
            "input_placement": "scaled to the longer side, in the upper left corner; the rest has the mean",
            "mean": list(self.dataset.row.mean),
            "std": list(self.dataset.row.std),
            "classes": self.classes,
        }

    def names(self) -> dict[str, Any]:
        """The classes' names by their ids; none if the dataset is not there."""
        return {"class_names": self._class_names}

    @cached_property
    def _class_names(self) -> dict[int, str]:
        try:
            return dict(self.dataset.test.categories)
        except UserError:
            return {}


def _classes_of(weights: str) -> int:
    """How many classes the detector in a checkpoint tells apart, with the background."""
    from rpg_ms.weights import read_weights

    found = read_weights(weights).get(CLASSIFIER)
    if found is None:
        raise UserError(f"{weights}: not a detector: it has no {CLASSIFIER}")
    return len(found)


class _Inference(nn.Cell):
    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, images: ms.Tensor, valid: ms.Tensor) -> tuple[ms.Tensor, ...]:
        return self.network(images, valid)


class _Deployed(Deployed):
    """Images in, boxes, scores, labels and masks out."""

    def construct(self, images: ms.Tensor) -> tuple[ms.Tensor, ...]:
        made = ()
        for output in self.computed(images):  # none is negative; in ONNX what is used inside as well is no output
            made += (ops.abs(output),)
        return made
