"""Predictions drawn on pictures, by Pillow."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from rpg_ms.data.coco import mask_functions

DRAWN = 0.5  # objects of a lower score are not drawn
SHARE = 0.45  # of a mask's colour in the picture
SMALLEST = 256  # pixels; a smaller picture is enlarged, so that the letters are readable


def draw_objects(image: Image.Image, objects: Sequence[dict[str, Any]]) -> Image.Image:
    """An RGB image with the objects' masks, or their boxes without masks, their names and scores in percent.

    Args:
        image: RGB.
        objects: with "name" or "class", "score", "box" and perhaps "mask", as a detector's `predict` gives them.
    """
    pixels = np.asarray(image).astype(np.float32)
    drawn = [one for one in objects if one["score"] >= DRAWN]
    colours = [_colour(i) for i in range(len(drawn))]
    for one, colour in zip(drawn, colours):
        if "mask" in one:
            mask = mask_functions().decode(one["mask"]).astype(bool)
            pixels[mask] = (1 - SHARE) * pixels[mask] + SHARE * np.float32(colour)
    scale = -(-SMALLEST // max(image.size))
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    picture = picture.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    classes = {one["class"] for one in drawn}
    for one, colour in zip(drawn, colours):
        box = [scale * value for value in one["box"]]
        pen.rectangle(box, outline=colour)
        if len(classes) > 1 or len(drawn) <= 10:  # of many objects of one kind, names would cover the picture
            text = f"{one['name'] or one['class']} {100 * one['score']:.0f}"
            pen.text((box[0] + 2, max(box[1] - 11, 0)), text, fill=colour)
    return picture


def draw_line(image: Image.Image, text: str) -> Image.Image:
    """An RGB image with a line of text below it."""
    scale = -(-SMALLEST // max(image.size))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    _, _, right, bottom = ImageDraw.Draw(image).textbbox((4, 4), text)
    picture = Image.new("RGB", (max(image.width, right + 4), image.height + bottom + 4), "white")
    picture.paste(image, (0, 0))
    ImageDraw.Draw(picture).text((4, image.height + 4), text, fill="black")
    return picture


def _colour(number: int) -> tuple[int, int, int]:
    """Bright colours, far apart from one to the next."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
