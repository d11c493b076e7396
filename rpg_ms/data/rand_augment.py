"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) on PIL images.

Written here because the pipeline seeds Python's generator for every sample and none at hand fits that:
`mindspore.dataset.vision.RandAugment` draws from generators of its own in C++, and mindcv's passes its
arguments in other units than the operations take (posterize keeps more bits the higher the magnitude, shear is
a fraction taken as degrees).
"""

from __future__ import annotations

import random
from typing import Union

from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10.0
Fill = Union[int, tuple[int, ...]]  # a colour


class RandAugment:
    """Applies `layers` random operations, each with probability one half.

    The defaults are the setting of DeiT (Touvron et al. 2021, arXiv 2012.12877): `rand-m9-mstd0.5-inc1`.

    Args:
        fill: colour of what a geometric operation moves into the image: an int, or one a channel.
        magnitude: strength, 0 to 10.
        deviation: standard deviation of the strength from one operation to the next.
        layers: operations an image.
    """

    def __init__(self, fill: Fill, magnitude: float = 9.0, deviation: float = 0.5, layers: int = 2) -> None:
        self.fill = fill
        self.magnitude = magnitude
        self.deviation = deviation
        self.layers = layers

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation in random.choices(OPERATIONS, k=self.layers):
            if random.random() < 0.5:
                magnitude = min(max(random.gauss(self.magnitude, self.deviation), 0.0), MAX_MAGNITUDE)
                image = operation(image, magnitude / MAX_MAGNITUDE, self.fill)
        return image


# Each operation takes the image, a strength in [0, 1] and the fill colour.


def auto_contrast(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageOps.equalize(image)


def invert(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageOps.invert(image)


def posterize(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Keeps 4 bits of each value, down to 1."""
    return ImageOps.posterize(image, max(4 - int(4 * strength), 1))


def solarize(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Inverts values from a threshold on: from none to all."""
    return ImageOps.solarize(image, 256 - int(256 * strength))


def solarize_add(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """Adds up to 110 to the darker half of the values."""
    added = int(110 * strength)
    table = [value + added if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def rotate(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return image.rotate(_signed(30 * strength), Image.Resampling.BICUBIC, fillcolor=fill)


def shear_x(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(image, (1, _signed(0.3 * strength), 0, 0, 1, 0), fill)


def shear_y(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(image, (1, 0, 0, _signed(0.3 * strength), 1, 0), fill)


def translate_x(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(image, (1, 0, _signed(0.45 * strength) * image.width, 0, 1, 0), fill)


def translate_y(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _signed(0.45 * strength) * image.height), fill)


def color(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + _signed(0.9 * strength))


def contrast(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + _signed(0.9 * strength))


def brightness(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + _signed(0.9 * strength))


def sharpness(image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + _signed(0.9 * strength))


OPERATIONS = (
    auto_contrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    color,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)


def _signed(value: float) -> float:
    return value if random.random() < 0.5 else -value


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)
