"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) on PIL images, in the setting of DeiT (Touvron et al. 2021, arXiv
2012.12877): `rand-m9-mstd0.5-inc1`.

Written here because the pipeline seeds Python's generator for every sample and none at hand fits that:
`mindspore.dataset.vision.RandAugment` draws from generators of its own in C++, and mindcv's passes its
arguments in other units than the operations take (posterize keeps more bits the higher the magnitude, shear is
a fraction taken as degrees).
"""

from __future__ import annotations

import random
from typing import Union

from PIL import Image, ImageEnhance, ImageOps

LAYERS = 2  # operations an image
MAGNITUDE, DEVIATION, MAX_MAGNITUDE = 9.0, 0.5, 10.0  # of an operation: the mean strength, its deviation, the largest
Fill = Union[int, tuple[int, ...]]  # a colour


class RandAugment:
    """Applies two random operations, each with probability one half.

    Args:
        fill: colour of what a geometric operation moves into the image: an int, or one a channel.
    """

    def __init__(self, fill: Fill) -> None:
        self.fill = fill

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation in random.choices(list(OPERATIONS.values()), k=LAYERS):
            if random.random() < 0.5:
                magnitude = min(max(random.gauss(MAGNITUDE, DEVIATION), 0.0), MAX_MAGNITUDE)
                image = operation(image, magnitude / MAX_MAGNITUDE, self.fill)
        return image


def _signed(value: float) -> float:
    return value if random.random() < 0.5 else -value


def _enhance(kind: type, image: Image.Image, strength: float) -> Image.Image:
    return kind(image).enhance(1 + _signed(0.9 * strength))


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _rotate(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return image.rotate(_signed(30 * strength), Image.Resampling.BICUBIC, fillcolor=fill)


def _solarize_add(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Adds up to 110 to the darker half of the values."""
    added = int(110 * strength)
    table = [value + added if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


# Each operation takes the image, a strength s in [0, 1] and the fill colour.
OPERATIONS = {
    "auto_contrast": lambda image, s, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, s, fill: ImageOps.equalize(image),
    "invert": lambda image, s, fill: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": lambda image, s, fill: ImageOps.posterize(image, max(4 - int(4 * s), 1)),  # to 4 bits, down to 1
    "solarize": lambda image, s, fill: ImageOps.solarize(image, 256 - int(256 * s)),  # from none to all values
    "solarize_add": _solarize_add,
    "color": lambda image, s, fill: _enhance(ImageEnhance.Color, image, s),
    "contrast": lambda image, s, fill: _enhance(ImageEnhance.Contrast, image, s),
    "brightness": lambda image, s, fill: _enhance(ImageEnhance.Brightness, image, s),
    "sharpness": lambda image, s, fill: _enhance(ImageEnhance.Sharpness, image, s),
    "shear_x": lambda image, s, fill: _affine(image, (1, _signed(0.3 * s), 0, 0, 1, 0), fill),
    "shear_y": lambda image, s, fill: _affine(image, (1, 0, 0, _signed(0.3 * s), 1, 0), fill),
    "translate_x": lambda image, s, fill: _affine(image, (1, 0, _signed(0.45 * s) * image.width, 0, 1, 0), fill),
    "translate_y": lambda image, s, fill: _affine(image, (1, 0, 0, 0, 1, _signed(0.45 * s) * image.height), fill),
}
