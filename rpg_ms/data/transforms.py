"""What is done to an image on its way into the network: fitted to size, augmented, normalised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np
from mindspore.dataset import vision

from rpg_ms.data.rand_augment import RandAugment

if TYPE_CHECKING:
    from PIL import Image

Sample = dict[str, Any]  # an image and what belongs to it, by name
Transform = Callable[[Sample], Sample]


def transforms(
    augment: str,
    customary: str,
    size: int,
    native_size: Optional[int],
    padding: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[list[OnImage]]:
    """The transforms of training and test samples: two lists of callables from sample to sample, applied in turn.

    Args:
        augment: "none", "crop_flip" (random crop of the zero-padded image, horizontal flip),
            "random_resized_crop" (8 to 100 % of the area, horizontal flip), "randaugment" (the customary one,
            then RandAugment), or "auto" for the customary one.
        customary: the dataset's own of those.
        size: side of the network's images, pixels.
        native_size: side of the dataset's images; None if they are of all sizes. The test, "none" and
            "crop_flip" transforms then start with the central crop after resizing the shorter side to size / 0.875.
        padding: zeros on each side before the random crop, pixels.
        mean, std: of each channel, in [0, 1].
    """
    if native_size is None:
        fit = [vision.Resize(round(size / 0.875)), vision.CenterCrop(size)]
    else:
        fit = [] if size == native_size else [vision.Resize((size, size))]
    flip = vision.RandomHorizontalFlip()
    lists = {
        "none": fit,
        "crop_flip": fit + [vision.RandomCrop(size, padding), flip],
        "random_resized_crop": [vision.RandomResizedCrop(size), flip],
    }
    fill = tuple(round(255 * value) for value in mean)
    lists["auto"] = lists[customary]
    lists["randaugment"] = lists[customary] + [RandAugment(fill if len(fill) > 1 else fill[0])]
    normalise = Normalise(mean, std)
    return [[OnImage(transform) for transform in (*some, normalise)] for some in (lists[augment], fit)]


class OnImage:
    """A transform of a sample's image alone.

    A transform takes a whole sample, a dict of the image and what belongs to it, so that boxes and masks can move with
    the image where a task has them.

    Args:
        function: from image to image.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, sample: Sample) -> Sample:
        return {**sample, "image": self.function(sample["image"])}


def apply(transforms: Iterable[Transform], sample: Sample) -> Sample:
    """The sample after all the transforms, one after the other."""
    for transform in transforms:
        sample = transform(sample)
    return sample


class Normalise:
    """A PIL image as `(x / 255 - mean) / std`, float32 `[channels, height, width]`.

    A value is one of 256, so all results are computed beforehand; the same numbers as those of
    `mindspore.dataset.vision`'s ToTensor and Normalize, in a third of the time.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        self.table = np.ascontiguousarray(((values - np.float32(mean)) / np.float32(std)).T)

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.stack([table.take(plane) for table, plane in zip(self.table, planes(image))])


def planes(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 `[channels, height, width]`."""
    pixels = np.asarray(image)
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
