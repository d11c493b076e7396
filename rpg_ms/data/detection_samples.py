"""Samples of object detection: the datasets by name, and what is done to images, boxes and masks alike.

Boxes are x1, y1, x2, y2 in pixels, without any "+ 1": a box around the whole image is 0, 0, width, height.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np
from PIL import Image

from rpg_ms.data import coco
from rpg_ms.data.datasets import RGB_MEAN, RGB_STD, held_out, some_of
from rpg_ms.data.transforms import Normalise, OnImage, Sample, Transform, planes
from rpg_ms.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from rpg_ms.config import DataConfig

MASK_SIDE = 56  # of the masks in a batch, each inside its box
CROWD = -1  # label of a box with many objects; 0 is padding


@dataclass(frozen=True)
class DetectionRow:
    """A dataset by what is known before its files are read.

    Args:
        root: where it is if `data.root` is not given; None where it must be given.
        size: side of the network's images, pixels.
        mirrors: by which training images are flipped, each or not at random.
        spread: whether `data.limit` takes images evenly spread over all.
        mean, std: of the pixels in [0, 1], red, green, blue.
    """

    root: Optional[Path]
    size: int
    mirrors: tuple[Image.Transpose, ...]
    spread: bool
    mean: Sequence[float] = RGB_MEAN
    std: Sequence[float] = RGB_STD


class DetectionDataset:
    """Training and test images with their objects; each part is read when it is first asked for.

    Args:
        config: `rpg_ms.config.DataConfig`.
        masks: whether every object must have a mask.
        seed: draws the images of `data.validation`.

    Raises:
        UserError: an unknown name or augmentation, or no `data.root` where it is needed; later, where files are read,
            also if they are missing or damaged.
    """

    def __init__(self, config: DataConfig, masks: bool, seed: int) -> None:
        if config.name not in DATASETS:
            close = difflib.get_close_matches(config.name, DATASETS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"data.name: {config.name!r} is not one of {', '.join(DATASETS)} (task: detection){hint}")
        if config.augment not in AUGMENTS:
            raise UserError(f"data.augment: {config.augment} is not one of {', '.join(AUGMENTS)} (task: detection)")
        self.config, self.masks, self.seed = config, masks, seed
        self.row = DATASETS[config.name]
        self.size = config.image_size or self.row.size

    @cached_property
    def train(self) -> coco.CocoPart:
        """The training images, without those that are held out."""
        if self.config.validation == 0:
            return self._all_train
        return self._all_train.subset(held_out(self.config.validation, len(self._all_train), self.seed)[0])

    @cached_property
    def test(self) -> coco.CocoPart:
        """The test images, or what `data.validation` holds out."""
        if self.config.validation == 0:
            return self._read("val")
        return self._all_train.subset(held_out(self.config.validation, len(self._all_train), self.seed)[1])

    @cached_property
    def _all_train(self) -> coco.CocoPart:
        return self._read("train")

    def _read(self, part: str) -> coco.CocoPart:
        root = self.config.root or self.row.root
        if root is None:
            raise UserError(
                "data.root: not set; it is the folder with annotations/instances_train2017.json, train2017/, "
                "annotations/instances_val2017.json and val2017/; for COCO see https://cocodataset.org/#download"
            )
        read = coco.read_part(root, part, self.masks)
        return (
            read if self.config.limit is None else read.subset(some_of(len(read), self.config.limit, self.row.spread))
        )

    def train_transform(self, boxes_per_image: int, keys: int, jitter: float) -> list[Transform]:
        """From a `CocoPart`'s samples to "image", "valid", "boxes", "labels", "masks" and "keys" of a training batch.

        Args:
            boxes_per_image: rows for objects, padding included.
            keys: how many random numbers.
            jitter: as of `Letterbox`, unless nothing is to be augmented.
        """
        augmented = self.config.augment == "auto"
        return [
            Targets(self.masks),
            *(Mirror(method) for method in self.row.mirrors if augmented),
            Letterbox(self.size, jitter if augmented else 0.0),
            *self._to_arrays(),
            Rows(boxes_per_image),
            Keys(keys),
            Select(("image", "valid", "boxes", "labels", "masks", "keys")),
        ]

    def test_transform(self) -> list[Transform]:
        """From images to "image", "valid" and "index" of a test batch."""
        return [Letterbox(self.size), *self._to_arrays(), Select(("image", "valid", "index"))]

    def raw_transform(self) -> list[Transform]:
        """From images to "image" as pixels, 0 to 255; the rest of the square has the mean, as 0 has when normalised."""
        fill = 255 * np.float32(self.row.mean)
        return [Letterbox(self.size), OnImage(planes), OnImage(Corner(self.size, fill)), Select(("image",))]

    def _to_arrays(self) -> list[Transform]:
        return [OnImage(Normalise(self.row.mean, self.row.std)), OnImage(Corner(self.size))]


# ------------------------------------------------------------------------------------------------ transforms


class Targets:
    """What a picture's annotations say: "boxes" float32 `[n, 4]`, "labels" int32 `[n]`, "masks" uint8 `[n, h, w]`.

    Objects whose box is empty are left out.
    """

    def __init__(self, masks: bool) -> None:
        self.masks = masks

    def __call__(self, sample: Sample) -> Sample:
        picture = sample["picture"]
        height, width = picture.height, picture.width
        boxes = np.array([one.box for one in picture.annotations], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        objects = [picture.annotations[i] for i in kept]
        masks = np.zeros((len(kept), height, width), np.uint8)
        for mask, one in zip(masks, objects):
            mask[...] = one.mask(height, width) if self.masks else 1
        labels = np.array([CROWD if one.crowd else one.category for one in objects], np.int32)
        return {**sample, "boxes": boxes[kept], "labels": labels, "masks": masks}


class Mirror:
    """A reflection, with probability one half: left to right, top to bottom, or of both axes in one another."""

    def __init__(self, method: Image.Transpose) -> None:
        self.method = method

    def __call__(self, sample: Sample) -> Sample:
        if random.random() < 0.5:
            return sample
        image, boxes, masks = sample["image"], sample["boxes"], sample["masks"]
        x1, y1, x2, y2 = boxes.T
        if self.method is Image.Transpose.FLIP_LEFT_RIGHT:
            boxes, masks = (image.width - x2, y1, image.width - x1, y2), masks[:, :, ::-1]
        elif self.method is Image.Transpose.FLIP_TOP_BOTTOM:
            boxes, masks = (x1, image.height - y2, x2, image.height - y1), masks[:, ::-1]
        else:
            boxes, masks = (y1, x1, y2, x2), masks.transpose(0, 2, 1)
        return {**sample, "image": image.transpose(self.method), "boxes": np.stack(boxes, 1), "masks": masks}


class Letterbox:
    """The image at the size at which its longer side fills a square; with jitter larger or smaller than that.

    Adds "valid", float32 `[2]`, height and width of the image that comes out: what does not fit is cut off at random.
    Where there are boxes they move with it, and the masks become those inside the boxes, `[n, MASK_SIDE, MASK_SIDE]`.
    Objects of which not a pixel is left are dropped.

    Args:
        size: side of the square, pixels.
        jitter: the size is multiplied by a factor from [1 - jitter, 1 + jitter].
    """

    def __init__(self, size: int, jitter: float = 0.0) -> None:
        self.size = size
        self.jitter = jitter

    def __call__(self, sample: Sample) -> Sample:
        image = sample["image"]
        factor = random.uniform(1 - self.jitter, 1 + self.jitter) if self.jitter else 1.0
        whole = letterboxed(image.height, image.width, self.size, factor)
        height, width = (min(side, self.size) for side in whole)
        top, left = (random.randint(0, side - kept) if side > kept else 0 for side, kept in zip(whole, (height, width)))
        ratio = np.array([whole[1] / image.width, whole[0] / image.height], np.float64)  # x, y
        if image.size != (whole[1], whole[0]):
            image = image.resize((whole[1], whole[0]), Image.Resampling.BILINEAR)
        made = {**sample, "image": image.crop((left, top, left + width, top + height))}
        made["valid"] = np.array([height, width], np.float32)
        if "boxes" in sample:
            made.update(_moved(sample, np.tile(ratio, 2), np.tile([left, top], 2), (width, height)))
        return made


def letterboxed(height: int, width: int, size: int, factor: float = 1.0) -> tuple[int, int]:
    """Height and width in pixels of an image whose longer side is brought to `size` times `factor`."""
    scale = size * factor / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _moved(sample: Sample, ratio: np.ndarray, corner: np.ndarray, shape: tuple[int, int]) -> Sample:
    """Boxes, labels and masks of what is left of the objects; `shape` is width, height."""
    window = (np.concatenate([corner[:2], corner[:2] + shape])) / ratio  # in the original's pixels
    boxes, kept, masks = [], [], []
    for i, (box, mask) in enumerate(zip(sample["boxes"].astype(np.float64), sample["masks"])):
        left = np.concatenate([np.maximum(box[:2], window[:2]), np.minimum(box[2:], window[2:])])
        if (left != box).any():  # cut: of a smaller part the box is smaller
            left = _around(mask, left)
        if left is None or ((left[2:] - left[:2]) * ratio[:2] < 1).any():
            continue
        boxes.append(np.clip(left * ratio - corner, 0, np.tile(shape, 2)))
        masks.append(inside(mask, left))
        kept.append(i)
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": sample["labels"][kept],
        "masks": np.array(masks, np.uint8).reshape(-1, MASK_SIDE, MASK_SIDE),
    }


def _around(mask: np.ndarray, window: np.ndarray) -> Optional[np.ndarray]:
    """The smallest box around the part of a mask that is in a window; None if there is nothing."""
    (x1, y1), (x2, y2) = np.floor(window[:2]).astype(int), np.ceil(window[2:]).astype(int)
    seen = mask[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(rows):
        return None
    low, high = (x1 + columns[0], y1 + rows[0]), (x1 + columns[-1] + 1, y1 + rows[-1] + 1)
    return np.concatenate([np.maximum(window[:2], low), np.minimum(window[2:], high)])


def inside(mask: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A mask `[height, width]` seen through a box: at the centres of MASK_SIDE x MASK_SIDE cells, the pixel there."""
    places = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE
    columns, rows = (
        np.clip(np.floor(box[i] + places * (box[i + 2] - box[i])), 0, mask.shape[1 - i] - 1).astype(int) for i in (0, 1)
    )
    return mask[np.ix_(rows, columns)]


class Corner:
    """An image `[channels, h, w]` in the upper left corner of a float32 square.

    Args:
        size: side of the square, pixels.
        fill: of the rest, a value for each channel, or for all.
    """

    def __init__(self, size: int, fill: ArrayLike = 0.0) -> None:
        self.size = size
        self.fill = np.asarray(fill, np.float32).reshape(-1, 1, 1)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        square = np.zeros((len(image), self.size, self.size), np.float32) + self.fill
        square[:, : image.shape[1], : image.shape[2]] = image
        return square


class Rows:
    """Boxes, labels and masks in a fixed number of rows: padded with 0; of more, crowds go first, then random ones."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, sample: Sample) -> Sample:
        labels = sample["labels"]
        kept = np.arange(len(labels))
        if len(kept) > self.count:
            drawn = np.array(random.sample(range(len(labels)), len(labels)))
            kept = np.sort(drawn[np.argsort(labels[drawn] == CROWD, kind="stable")][: self.count])
        made = {}
        for name in ("boxes", "labels", "masks"):
            made[name] = np.zeros((self.count, *sample[name].shape[1:]), sample[name].dtype)
            made[name][: len(kept)] = sample[name][kept]
        return {**sample, **made}


class Keys:
    """Adds "keys", random numbers float32 `[count]` of [0, 1), by which the losses sample."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, sample: Sample) -> Sample:
        bits = 24  # all that a float32 has, so that none is rounded to 1
        keys = np.random.randint(0, 1 << bits, self.count, np.int32).astype(np.float32) / np.float32(1 << bits)
        return {**sample, "keys": keys}


class Select:
    """Only what a batch has, in its order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __call__(self, sample: Sample) -> Sample:
        return {name: sample[name] for name in self.names}


AUGMENTS = ("auto", "none")
FLIP = (Image.Transpose.FLIP_LEFT_RIGHT,)
ALL_EIGHT = (*FLIP, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE)  # a slide has no upper side

DATASETS: Mapping[str, DetectionRow] = {
    "nuclei": DetectionRow(
        Path(__file__).parent / "nuclei", 256, ALL_EIGHT, spread=False, mean=(0.05,) * 3, std=(0.07,) * 3
    ),
    "coco": DetectionRow(None, 800, FLIP, spread=True),
}
