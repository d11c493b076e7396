"""Objects with boxes and masks in COCO's layout: a JSON file and a folder of images a part (arXiv 1405.0312).

Polygons and both kinds of run lengths are taken, and crowds. Everything is checked before anything uses it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Union

import numpy as np

from rpg_ms.data.class_folders import read_image
from rpg_ms.data.transforms import Sample
from rpg_ms.errors import UserError
from rpg_ms.json_files import NUMBER, check

PARTS = ("train", "val")
SLACK = 1.0  # pixels that a box may stick out: COCO's own are rounded
NOTHING: Any = ()  # the segmentation of an object that has none
MOST_DIGITS = 7  # of 5 bits, in one number of compressed run lengths

IMAGE = {"id": int, "file_name": str, "width": int, "height": int}
ANNOTATION = {"image_id": int, "category_id": int, "bbox": list}


@dataclass(frozen=True)
class Annotation:
    """One object: `box` is x, y, width, height in pixels, `crowd` says that it is many objects in one.

    `segmentation` is polygons, a tuple of float64 arrays `[2 * points]`, or run lengths, int64 `[runs]` by column, from
    the first run of background on; () if there is none.
    """

    name: str  # in messages
    category: int
    box: tuple[float, float, float, float]
    crowd: bool
    area: float
    segmentation: Any

    def encoded(self, height: int, width: int) -> Optional[dict[str, Any]]:
        """The mask in pycocotools' compressed run lengths; None without one."""
        mask = mask_functions()
        if isinstance(self.segmentation, np.ndarray):
            return mask.frPyObjects({"size": [height, width], "counts": self.segmentation.tolist()}, height, width)
        if not self.segmentation:
            return None
        return mask.merge(mask.frPyObjects([polygon.tolist() for polygon in self.segmentation], height, width))

    def mask(self, height: int, width: int) -> np.ndarray:
        """The mask, uint8 `[height, width]` of 0 and 1; all 0 without one."""
        encoded = self.encoded(height, width)
        return np.zeros((height, width), np.uint8) if encoded is None else mask_functions().decode(encoded)


@dataclass(frozen=True)
class Picture:
    """An image file, its size in pixels, and what is in it."""

    file: str
    height: int
    width: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class CocoPart:
    """The images of one part in random access. `categories` are the names of the classes by their ids."""

    file: Path
    categories: Mapping[int, str]
    pictures: tuple[Picture, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def sample(self, i: int) -> Sample:
        """An image with its `Picture`, and which it is.

        Raises:
            UserError: the image cannot be read, or is of another size than the annotations.
        """
        picture = self.pictures[i]
        image = read_image(picture.file, picture.file)
        if image.size != (picture.width, picture.height):
            raise UserError(
                f"{picture.file}: {image.width} x {image.height} pixels; {self.file} says "
                f"{picture.width} x {picture.height}"
            )
        return {"image": image, "picture": picture, "index": np.int32(i)}

    def subset(self, indices: np.ndarray) -> CocoPart:
        """The images at `indices`, in that order."""
        return replace(self, pictures=tuple(self.pictures[int(i)] for i in indices))


def mask_functions() -> ModuleType:
    """`pycocotools.mask`.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise UserError(
            "task: detection needs pycocotools, which is not installed: pip install 'rpg-ms[detection]'"
        ) from None
    return mask


# ------------------------------------------------------------------------------------------------ reading


def read_part(root: Union[str, os.PathLike], part: str, masks: bool) -> CocoPart:
    """The images and annotations of `part`, "train" or "val".

    Args:
        root: folder with `instances_PART.json` and `PART/`; a year may follow both names, as in COCO's, and the files
            may lie in `annotations/`, the folders in `images/`.
        masks: whether every object must have a mask.

    Raises:
        UserError: a file is missing, damaged or contradicts itself; names it and the annotation.
    """
    file, folder = find_part(Path(root), part)
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not JSON: {error}") from None
    try:
        check(content, {"images": list, "annotations": list, "categories": list})
        categories = _categories(content["categories"])
        images = _images(content["images"], folder)
        objects: dict[int, list[Annotation]] = {number: [] for number in images}
        for i, values in enumerate(content["annotations"]):
            image, annotation = _annotation(i, values, images, categories, masks)
            objects[image].append(annotation)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    if not images:
        raise UserError(f"{file}: holds no images")
    pictures = (replace(picture, annotations=tuple(objects[number])) for number, picture in images.items())
    return CocoPart(file, categories, tuple(pictures))


def find_part(root: Path, part: str) -> tuple[Path, Path]:
    """The JSON file and the folder of images of a part; UserError unless there is just one of each."""
    pattern = re.compile(rf"instances_{part}(\d{{4}})?\.json")
    files = [
        Path(entry.path)
        for folder in (root / "annotations", root)
        if folder.is_dir()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
        if pattern.fullmatch(entry.name)
    ]
    if len(files) != 1:
        what = f"more than one: {', '.join(map(str, files))}" if files else "none there"
        raise UserError(
            f"data.root: {root}: wanted is one file instances_{part}.json, or annotations/instances_{part}2017.json as "
            f"COCO has it; {what}"
        )
    name = files[0].stem[len("instances_") :]
    for folder in (root / name, root / "images" / name):
        if folder.is_dir():
            return files[0], folder
    raise UserError(f"data.root: {root} has no folder {name} with the images of {files[0].name}")


def _categories(entries: Iterable[Any]) -> dict[int, str]:
    categories = {}
    for i, values in enumerate(entries):
        _check(f"category {i}", values, {"id": int, "name": str})
        if not 1 <= values["id"] <= 1000:
            raise ValueError(f"category {i}: id {values['id']} is not in [1, 1000]")
        categories[values["id"]] = values["name"]
    if not categories:
        raise ValueError("holds no categories")
    return categories


def _images(entries: Iterable[Any], folder: Path) -> dict[int, Picture]:
    there = set(os.listdir(folder))
    images = {}
    for i, values in enumerate(entries):
        _check(f"image {i}", values, IMAGE)
        number, name, width, height = (values[key] for key in IMAGE)
        if number in images:
            raise ValueError(f"image {i}: id {number} is given twice")
        if min(width, height) < 1 or max(width, height) > 65535:
            raise ValueError(f"image id {number}: {width} x {height} pixels")
        if os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
            raise ValueError(f"image id {number}: file_name {name!r} leads out of {folder}")
        if name not in there and not ("/" in name and (folder / name).is_file()):
            raise ValueError(f"image id {number}: {folder / name} is missing")
        images[number] = Picture(str(folder / name), height, width, ())
    return images


def _annotation(
    i: int, values: Any, images: Mapping[int, Picture], categories: Mapping[int, str], masks: bool
) -> tuple[int, Annotation]:
    """The id of its image and the Annotation; ValueError names it."""
    name = f"annotation id {values['id']}" if isinstance(values, dict) and "id" in values else f"annotation {i}"
    _check(name, values, ANNOTATION)
    if values["image_id"] not in images:
        raise ValueError(f"{name}: image_id {values['image_id']} is not one of the images")
    if values["category_id"] not in categories:
        raise ValueError(f"{name}: category_id {values['category_id']} is not one of the categories")
    picture, crowd = images[values["image_id"]], values.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise ValueError(f"{name}: iscrowd {crowd!r} is not 0 or 1")
    box = _numbers(values["bbox"])
    if box is None or len(box) != 4:
        raise ValueError(f"{name}: bbox is not four finite numbers")
    x, y, width, height = box
    if (
        min(x, y) < -SLACK
        or min(width, height) < 0
        or x + width > picture.width + SLACK
        or y + height > picture.height + SLACK
    ):
        raise ValueError(
            f"{name}: the box {', '.join(f'{value:g}' for value in box)} (x, y, width, height) is not inside its "
            f"image of {picture.width} x {picture.height} pixels"
        )
    segmentation = NOTHING
    if values.get("segmentation") or masks:
        segmentation = _segmentation(name, values.get("segmentation"), picture)
    area = values.get("area", width * height)
    if _numbers([area]) is None:
        raise ValueError(f"{name}: area is not a finite number")
    return values["image_id"], Annotation(name, values["category_id"], box, bool(crowd), float(area), segmentation)


def _segmentation(name: str, given: Any, picture: Picture) -> Union[np.ndarray, tuple[np.ndarray, ...]]:
    if isinstance(given, list) and given:
        polygons = [_numbers(polygon) for polygon in given]
        for polygon in polygons:
            if polygon is None or len(polygon) % 2:
                raise ValueError(f"{name}: a polygon is not pairs of finite numbers")
            if len(polygon) < 6:
                raise ValueError(f"{name}: a polygon of {len(polygon) // 2} points")
            if max(map(abs, polygon)) > 2 * 65535:
                raise ValueError(f"{name}: a polygon is not inside its image")
        return tuple(np.array(polygon) for polygon in polygons)
    if not isinstance(given, dict):
        raise ValueError(f"{name}: segmentation is neither polygons nor run lengths")
    counts = given.get("counts")
    if given.get("size") != [picture.height, picture.width]:
        raise ValueError(f"{name}: size {given.get('size')} is not that of its image: height, width")
    runs = run_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError(f"{name}: counts are not run lengths")
    if sum(runs) != picture.height * picture.width:
        raise ValueError(f"{name}: its run lengths sum up to {sum(runs)}, not {picture.height * picture.width} pixels")
    return np.array(runs, np.int64)


def run_lengths(text: str) -> Optional[list[int]]:
    """The numbers in COCO's compressed run lengths, or None if it is no such text.

    A number is written 5 bits a character, the lowest first, the sign in the last; from the fourth on it is the
    difference to the one before the previous. pycocotools reads on beyond the end of what is damaged.
    """
    runs: list[int] = []
    value = digits = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or digits == MOST_DIGITS:
            return None
        value |= (code & 31) << 5 * digits
        digits += 1
        if not code & 32:
            if code & 16:
                value -= 1 << 5 * digits
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = digits = 0
    return None if digits else runs


def _check(name: str, values: Any, wanted: Mapping[str, Any]) -> None:
    try:
        check(values, wanted)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _numbers(values: Any) -> Optional[tuple[float, ...]]:
    """The values as floats, or None if they are not all finite numbers in a list."""
    if not isinstance(values, list):
        return None
    if not all(isinstance(value, NUMBER) and type(value) is not bool and math.isfinite(value) for value in values):
        return None
    return tuple(map(float, values))
