"""The datasets by name: their images, labels, and what is done to an image on its way into the network."""
from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Callable, Sequence

import numpy as np
from mindspore.dataset import vision
from PIL import Image

from rpg_ms.data import fashion_mnist
from rpg_ms.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in random access: `image(i)` is a PIL image, `labels` an int32 array `[n]`."""

    image: Callable[[int], Image.Image]
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def subset(self, indices):
        """The images at `indices`, in that order."""
        return ImageSet(lambda i: self.image(int(indices[i])), self.labels[indices])

    def first(self, count):
        """The first `count` images, or all if there are fewer."""
        return self.subset(np.arange(min(count, len(self))))


@dataclass(frozen=True)
class ImageDataset:
    """Train and test images of one dataset, with their transforms (PIL image in, `[channels, size, size]` out)."""

    train: ImageSet
    test: ImageSet
    classes: int
    channels: int
    size: int
    train_transform: Sequence
    test_transform: Sequence


def load_dataset(config, seed):
    """The dataset of a `rpg_ms.config.DataConfig`.

    With `validation > 0` that share of the training images, drawn with `seed`, takes the place of the test images,
    which then stay untouched: for choosing hyper-parameters.

    Raises:
        UserError: an unknown name, or files that are missing or damaged.
    """
    if config.name not in DATASETS:
        close = difflib.get_close_matches(config.name, DATASETS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"data.name: {config.name!r} is not one of {', '.join(DATASETS)}{hint}")
    dataset = DATASETS[config.name](config)
    if config.limit is not None:
        dataset = replace(dataset, train=dataset.train.first(config.limit), test=dataset.test.first(config.limit))
    if config.validation > 0:
        order = np.random.default_rng(seed).permutation(len(dataset.train))
        held_out = round(config.validation * len(order))
        if not 0 < held_out < len(order):
            raise UserError(f"data.validation: {config.validation} of {len(order)} images leaves one part empty")
        dataset = replace(dataset, train=dataset.train.subset(np.sort(order[held_out:])),
                          test=dataset.train.subset(np.sort(order[:held_out])))
    return dataset


def _fashion_mnist(config):
    def part(name):
        images, labels = fashion_mnist.load(config.root, name)
        return ImageSet(lambda i: Image.fromarray(images[i]), labels.astype(np.int32))
    augment = [vision.RandomCrop(28, padding=2), vision.RandomHorizontalFlip()]
    return _small_images(config, part("train"), part("test"), classes=10, channels=1, size=28, augment=augment,
                         mean=(0.2860,), std=(0.3530,))


def _small_images(config, train, test, *, augment, mean, std, **shape):
    """Images of one size; `data.augment` is "none", or "auto" for the dataset's customary crop and flip."""
    to_network = [vision.ToTensor(), vision.Normalize(mean, std, is_hwc=False)]
    if config.augment not in ("auto", "none"):
        raise UserError(f"data.augment: {config.augment!r} is not one of auto, none")
    augment = augment if config.augment == "auto" else []
    return ImageDataset(train, test, train_transform=augment + to_network, test_transform=to_network, **shape)


DATASETS = {"fashion_mnist": _fashion_mnist}
