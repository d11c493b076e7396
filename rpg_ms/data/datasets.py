"""The datasets by name: their images, labels, and what is done to an image on its way into the network."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

from rpg_ms.data import cifar, class_folders, fashion_mnist, mindrecord
from rpg_ms.data.transforms import OnImage, Sample, Transform, transforms
from rpg_ms.errors import UserError

if TYPE_CHECKING:
    from rpg_ms.config import DataConfig

# Of ImageNet: red, green, blue; customarily used for CIFAR as well.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in random access: `image(i)` is a PIL image, `labels` an int32 array `[n]`."""

    image: Callable[[int], Image.Image]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, i: int) -> Sample:
        """Image and label, by name."""
        return {"image": self.image(i), "label": self.labels[i]}

    def subset(self, indices: np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""
        return ImageSet(lambda i: self.image(int(indices[i])), self.labels[indices])

    def limited(self, count: int, spread: bool) -> ImageSet:
        """`count` images, or all if there are fewer: the first, or `spread` evenly over all."""
        return self.subset(some_of(len(self), count, spread))


def some_of(total: int, count: int, spread: bool) -> np.ndarray:
    """Indices of `count` of `total` images, or of all if there are fewer: the first, or `spread` evenly over all."""
    count = min(count, total)
    return np.arange(count) * total // count if spread else np.arange(count)


def held_out(share: float, total: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images that stay, and of the share that is held out for `data.validation`.

    Raises:
        UserError: one of them would be empty.
    """
    order = np.random.default_rng(seed).permutation(total)
    count = round(share * total)
    if not 0 < count < total:
        raise UserError(f"data.validation: {share} of {total} images leaves one part empty")
    return np.sort(order[count:]), np.sort(order[:count])


@dataclass(frozen=True)
class ImageDataset:
    """Train and test images of one dataset, with their transforms of samples.

    A transform takes a PIL image to `[channels, size, size]`. `mean` and `std` of each channel are what the
    transforms normalise with; `class_names` is None if unknown.
    """

    train: ImageSet
    test: ImageSet
    classes: int
    class_names: Optional[tuple[str, ...]]
    mean: Sequence[float]
    std: Sequence[float]
    channels: int
    size: int
    train_transform: Sequence
    test_transform: Sequence


@dataclass(frozen=True)
class DatasetRow:
    """A dataset by what is known before its files are read.

    Args:
        read: from a DataConfig to the train and test ImageSets and the classes: their names, or how many.
        classes: number of classes; None where the files decide.
        native_size: side of its images, pixels; None for photographs of all sizes, treated as ImageNet's are.
        padding: pixels around an image that is cropped at random; None for an eighth of its side.
        mean, std: of the pixels in [0, 1], one number a channel.
    """

    read: Callable
    classes: Optional[int] = None
    native_size: Optional[int] = None
    padding: Optional[int] = None
    mean: Sequence[float] = RGB_MEAN
    std: Sequence[float] = RGB_STD

    def size(self, config: DataConfig) -> int:
        """Side of the network's images, pixels."""
        return config.image_size or self.native_size or 224

    def transforms(self, config: DataConfig) -> list[list[Transform]]:
        """Those of training and of test samples."""
        size = self.size(config)
        return transforms(
            config.augment,
            "crop_flip" if self.native_size else "random_resized_crop",
            size,
            self.native_size,
            size // 8 if self.padding is None else self.padding,
            self.mean,
            self.std,
        )


def load_dataset(config: DataConfig, seed: int) -> ImageDataset:
    """The dataset of a `rpg_ms.config.DataConfig`.

    With `validation > 0` that share of the training images, drawn with `seed`, takes the place of the test images,
    which then stay untouched: for choosing hyper-parameters.

    Raises:
        UserError: an unknown name, or files that are missing or damaged.
    """
    row = _row(config)
    train, test, classes = row.read(config)
    size = row.size(config)
    for_train, for_test = row.transforms(config)
    names = None if isinstance(classes, int) else tuple(classes)
    dataset = ImageDataset(
        train,
        test,
        classes=len(names) if names else classes,
        class_names=names,
        mean=row.mean,
        std=row.std,
        channels=len(row.mean),
        size=size,
        train_transform=for_train,
        test_transform=for_test,
    )
    if config.limit is not None:
        spread = row.native_size is None  # photographs come class by class: the first ones would be of one class
        dataset = replace(
            dataset, train=dataset.train.limited(config.limit, spread), test=dataset.test.limited(config.limit, spread)
        )
    if config.validation > 0:
        stay, validation = held_out(config.validation, len(dataset.train), seed)
        dataset = replace(dataset, train=dataset.train.subset(stay), test=dataset.train.subset(validation))
    return dataset


def test_transform(config: DataConfig) -> list[Transform]:
    """That of test samples, for an RGB image of any size, without reading the dataset.

    Raises:
        UserError: an unknown name.
    """
    row = _row(config)
    size, mode = row.native_size, "RGB" if len(row.mean) == 3 else "L"

    def alike(image: Image.Image) -> Image.Image:
        """As the dataset's own are."""
        image = image.convert(mode)
        return (
            image
            if size is None or image.size == (size, size)
            else image.resize((size, size), Image.Resampling.BILINEAR)
        )

    return [OnImage(alike), *row.transforms(config)[1]]


def check_images(dataset: Any, first: int = 0, stride: int = 1) -> int:
    """Read the images of both parts that training would read, in a thread per core; name the unreadable on stderr.

    Args:
        dataset: with `train` and `test`, such as an `ImageDataset`.
        first, stride: of both parts' images only every `stride`-th is read, from the `first` on.

    Returns:
        How many were read.

    Raises:
        UserError: some cannot be read.
    """

    def problem(i: int) -> Optional[str]:
        try:
            train.sample(i) if i < len(train) else test.sample(i - len(train))
        except UserError as error:
            return str(error)

    train, test = dataset.train, dataset.test
    mine = range(first, len(train) + len(test), stride)
    unreadable = 0
    with ThreadPool(os.cpu_count()) as threads, tqdm(total=len(mine), unit="image", disable=None) as bar:
        for text in threads.imap_unordered(problem, mine, chunksize=16):
            bar.update()
            if text is not None:
                unreadable += 1
                tqdm.write(text, file=sys.stderr)
    if unreadable:
        raise UserError(f"{unreadable} of {len(mine)} images cannot be read, those named above; replace or remove them")
    return len(mine)


def known_shape(config: DataConfig) -> tuple[tuple[int, int, int], Optional[int]]:
    """What a `DataConfig` tells of its images without reading them: `((channels, height, width), classes)`.

    The classes are None where the files decide.

    Raises:
        UserError: an unknown name.
    """
    row = _row(config)
    size = row.size(config)
    return (len(row.mean), size, size), row.classes


def _row(config: DataConfig) -> DatasetRow:
    if config.name not in DATASETS:
        close = difflib.get_close_matches(config.name, DATASETS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"data.name: {config.name!r} is not one of {', '.join(DATASETS)}{hint}")
    return DATASETS[config.name]


def _fashion_mnist(config: DataConfig) -> tuple[ImageSet, ImageSet, Union[int, Sequence[str]]]:
    train, test = (_in_memory(*fashion_mnist.load(config.root, part)) for part in ("train", "test"))
    return train, test, fashion_mnist.CLASSES


def _cifar(layout: cifar.Layout, config: DataConfig) -> tuple[ImageSet, ImageSet, Union[int, Sequence[str]]]:
    train, test = (_in_memory(*cifar.load(layout, config.root, part)) for part in ("train", "test"))
    return train, test, layout.names or layout.classes


def _class_folders(config: DataConfig) -> tuple[ImageSet, ImageSet, Union[int, Sequence[str]]]:
    train, test = class_folders.load(config.root)
    return _from_files(train), _from_files(test), train.classes


def _mindrecord(config: DataConfig) -> tuple[ImageSet, ImageSet, Union[int, Sequence[str]]]:
    train, test = (mindrecord.MindRecord(config.root, part) for part in mindrecord.PARTS)
    classes = int(train.labels.max()) + 1
    if test.labels.max() >= classes:
        raise UserError(f"{test.files[0]}: label {test.labels.max()} is not among the {classes} classes of train")
    return ImageSet(train, train.labels), ImageSet(test, test.labels), classes


def _in_memory(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    return ImageSet(lambda i: Image.fromarray(images[i]), labels)


def _from_files(listing: class_folders.Listing) -> ImageSet:
    def image(i: int) -> Image.Image:
        path = os.fsdecode(listing.files[i])
        return class_folders.read_image(path, path)

    return ImageSet(image, listing.labels)


DATASETS = {
    "fashion_mnist": DatasetRow(_fashion_mnist, classes=10, native_size=28, padding=2, mean=(0.2860,), std=(0.3530,)),
    "cifar10": DatasetRow(partial(_cifar, cifar.CIFAR10), classes=10, native_size=32, padding=4),
    "cifar100": DatasetRow(partial(_cifar, cifar.CIFAR100), classes=100, native_size=32, padding=4),
    "imagenet": DatasetRow(_class_folders),
    "mindrecord": DatasetRow(_mindrecord),
}
