"""Images in one folder per class, the layout of ImageNet.

That is `root/train/CLASS/*.JPEG` and `root/val/CLASS/*.JPEG`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, Optional, Union

import numpy as np
from PIL import Image

from rpg_ms.errors import UserError, one_line

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")  # formats whose deeper grey values Pillow hands on as 0 to 65535
BITS, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of a TIFF file
UNKNOWN_WHITE = "of which it is not known what is white; convert them to 8 or 16 bits, unsigned"


@dataclass(frozen=True)
class Listing:
    """The image files of one part: `files` (paths as an array of bytes `[n]`), `labels` (int32 `[n]`)."""

    classes: tuple[str, ...]
    files: np.ndarray
    labels: np.ndarray


def list_images(root: Optional[str], part: str) -> Listing:
    """The `Listing` of `part`, "train" or "val": classes by name, as torchvision sorts them, a class's files by path.

    Folders below a class folder are searched as well. Files whose names do not end like an image's are passed over, and
    so is whatever has a name that begins with a dot: copies and notes that editors and systems leave behind.

    Raises:
        UserError: no such folder, no class folders, or one without images.
    """
    if root is None:
        raise UserError(
            "data.root: not set; it is the folder with train/ and val/, each with one folder of images a class; for "
            "ImageNet see https://image-net.org/download.php"
        )
    folder = Path(root) / part
    if not folder.is_dir():
        raise UserError(f"data.root: {root} has no folder {part}; wanted are {part}/CLASS/*.JPEG, one folder a class")
    try:
        classes = sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
        found = [images_below(folder / name) for name in classes]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    if not classes:
        raise UserError(f"data.root: {folder} has no class folders")
    for name, files in zip(classes, found):
        if not files:
            raise UserError(f"data.root: {folder / name} has no images (files ending in {', '.join(SUFFIXES)})")
    # One array instead of a million strings: worker processes would copy those as they count references.
    labels = np.repeat(np.arange(len(found), dtype=np.int32), [len(files) for files in found])
    files = np.array([os.fsencode(file) for files in found for file in files])
    return Listing(tuple(classes), files, labels)


def load(root: Optional[str]) -> tuple[Listing, Listing]:
    """The Listings of the training and the test images; a UserError as of `list_images`, or if the classes differ."""
    train, test = list_images(root, "train"), list_images(root, "val")
    if train.classes != test.classes:
        name = sorted(set(train.classes) ^ set(test.classes))[0]
        has, lacks = ("train", "val") if name in train.classes else ("val", "train")
        raise UserError(f"data.root: {root}: class {name} has a folder in {has} but none in {lacks}")
    return train, test


def read_image(file: Union[str, BinaryIO], name: str) -> Image.Image:
    """The RGB image in a file (path or binary stream), 8 bits a channel; `name` is what an error calls it.

    Deeper pixels keep their 8 highest bits, alpha channels are dropped.

    Raises:
        UserError: it is no image, or damaged, or which value of its pixels is white is unknown.
    """
    try:
        with Image.open(file) as image:
            bits, inverted = _depth(image)
            if bits == 8:
                return image.convert("RGB")
            pixels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
            return Image.fromarray(255 - pixels if inverted else pixels).convert("RGB")
    except Exception as error:  # the decoders raise many kinds: OSError, SyntaxError, struct.error ...
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(f"{name}: not a readable image: {reason}") from None


def _depth(image: Image.Image) -> tuple[int, bool]:
    """How many bits the values of an opened image have, and whether 0 is white; (8, False): Pillow converts it rightly.

    Pillow cuts grey values of more bits off at 255. Colours of more bits it brings to 8 bits itself, rightly but for
    one layout of TIFF files. A ValueError says that it misreads the pixels, or that it is unknown what is white.
    """
    deep_grey = image.mode[0] in "IF"  # the modes I, I;16, I;16B ..., and F
    if image.format == "TIFF":
        tags = image.tag_v2
        bits, kind = max(tags.get(BITS, (1,))), max(tags.get(SAMPLE_FORMAT, (1,)))
        if kind != 1 or bits > 16:
            kind = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(kind, "unknown")
            raise ValueError(f"its pixels are {bits}-bit {kind} numbers, {UNKNOWN_WHITE}")
        if bits > 8 and not deep_grey and tags.get(PLANES) == 2 and image.info["compression"] == "raw":
            raise ValueError(f"its channels have {bits} bits and lie one after the other, uncompressed")
        return (bits, tags.get(PHOTOMETRIC, 0) == 0) if deep_grey else (8, False)
    if deep_grey and (image.mode == "F" or image.format not in SIXTEEN_BITS):
        raise ValueError(f"its pixels are {image.format} numbers of Pillow's mode {image.mode}, {UNKNOWN_WHITE}")
    return (16 if deep_grey else 8), False


def images_below(folder: Path) -> list[str]:
    """Paths of the images in a folder and those below it, linked ones too, each folder once."""

    def refuse(error: OSError) -> NoReturn:  # passed over, some ranks might have fewer images than others
        raise error

    files, visited = [], set()
    for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = os.path.realpath(path)
        if here in visited:  # by a link that leads back
            folders.clear()
            continue
        visited.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        files += (os.path.join(path, name) for name in images)
    return sorted(files)
