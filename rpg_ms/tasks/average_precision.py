"""Average precision of boxes and masks as COCO defines it, by pycocotools, over the images of all processes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from rpg_ms.data.coco import CocoPart, mask_functions
from rpg_ms.data.detection_samples import letterboxed
from rpg_ms.models.detection.paste import paste_masks

if TYPE_CHECKING:
    from rpg_ms.training.distributed import World

PIECE = 1 << 20  # bytes that go between processes at once, where each takes the room of a float32
NUMBERS = 8  # of a detection on its way: image, label, score, box, length of its mask


@dataclass(frozen=True)
class Found:
    """An object found in an image: its class, its score, its box x1, y1, x2, y2 in pixels of the original, and its mask
    there in compressed run lengths, or None.
    """

    label: int
    score: float
    box: tuple[float, float, float, float]
    counts: Optional[bytes]


def found_objects(
    height: int,
    width: int,
    size: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    masks: Optional[np.ndarray] = None,
) -> list[Found]:
    """What a network found in one image, at the original's size.

    Args:
        height, width: of the original, pixels.
        size: side of the square that it was letterboxed to.
        boxes: float32 `[d, 4]`, pixels of the square.
        scores, labels: `[d]`; rows of score 0 are padding.
        masks: float32 `[d, side, side]`, probabilities inside the boxes; None without.
    """
    real = scores > 0
    seen = letterboxed(height, width, size)
    back = np.array([width / seen[1], height / seen[0]] * 2)
    boxes = np.clip(boxes[real] * back, 0, (width, height, width, height))
    counts = [None] * len(boxes)
    if masks is not None and len(boxes):
        pasted = paste_masks(masks[real], boxes, height, width)
        encoded = mask_functions().encode(np.asfortranarray(pasted.transpose(1, 2, 0).astype(np.uint8)))
        counts = [one["counts"] for one in encoded]
    return [
        Found(int(label), float(score), tuple(map(float, box)), runs)
        for label, score, box, runs in zip(labels[real], scores[real], boxes, counts)
    ]


class AveragePrecision:
    """Collects what was found in the images of a part, and measures it.

    Args:
        part: the images with their true objects.
        masks: whether masks are measured besides boxes.
    """

    def __init__(self, part: CocoPart, masks: bool) -> None:
        mask_functions()  # without pycocotools this ends here
        self.part = part
        self.masks = masks
        self._numbers: list[tuple[float, ...]] = []
        self._counts: list[bytes] = []

    def add(self, index: int, found: list[Found]) -> None:
        """What was found in image `index` of the part."""
        for one in found:
            counts = one.counts or b""
            self._numbers.append((index, one.label, one.score, *one.box, len(counts)))
            self._counts.append(counts)

    def figures(self, world: World) -> dict[str, float]:
        """`{"mask_ap": percent, "mask_ap50": ..., "box_ap": ..., "box_ap50": ...}` over all processes' images, each
        counted once; without masks the last two. 0 where there is no object to find.

        The average is over IoU 0.50 to 0.95 and the classes; at most 100 detections of an image count.
        """
        numbers = b"".join(_gather(world, np.array(self._numbers, np.float64).tobytes()))
        numbers = np.frombuffer(numbers, np.float64).reshape(-1, NUMBERS)
        counts = b"".join(_gather(world, b"".join(self._counts)))
        ends = np.cumsum(numbers[:, -1]).astype(int)
        texts = [counts[end - int(length) : end] for end, length in zip(ends, numbers[:, -1])]
        order = np.argsort(numbers[:, 0], kind="stable")  # so that ties do not depend on the number of processes
        truth = self._truth()
        figures = {}
        for name, kind in (("mask", "segm"), ("box", "bbox"))[0 if self.masks else 1 :]:
            results = [_result(kind, numbers[i], texts[i], self.part) for i in order]
            values = _measured(truth, results, kind) if results else (0.0, 0.0)
            figures.update({f"{name}_ap": values[0], f"{name}_ap50": values[1]})
        return figures

    def _truth(self) -> dict[str, list[dict[str, Any]]]:
        """The true objects as pycocotools takes them; images are numbered from 1, as its objects must be."""
        pictures = self.part.pictures
        return {
            "images": [{"id": i, "height": p.height, "width": p.width} for i, p in enumerate(pictures, 1)],
            "categories": [{"id": number, "name": name} for number, name in self.part.categories.items()],
            "annotations": [
                {"id": number, **values} for number, values in enumerate(_objects(self.part, self.masks), 1)
            ],
        }


def _objects(part: CocoPart, masks: bool) -> Iterator[dict[str, Any]]:
    for i, picture in enumerate(part.pictures, 1):
        for one in picture.annotations:
            values = {
                "image_id": i,
                "category_id": one.category,
                "bbox": list(one.box),
                "area": one.area,
                "iscrowd": int(one.crowd),
            }
            yield {**values, "segmentation": one.encoded(picture.height, picture.width)} if masks else values


def _result(kind: str, numbers: np.ndarray, counts: bytes, part: CocoPart) -> dict[str, Any]:
    index, label, score, x1, y1, x2, y2, _ = numbers.tolist()
    result = {"image_id": int(index) + 1, "category_id": int(label), "score": score}
    if kind == "bbox":
        return {**result, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    picture = part.pictures[int(index)]
    return {**result, "segmentation": {"size": [picture.height, picture.width], "counts": counts}}


def _measured(truth: dict[str, list[dict[str, Any]]], results: list[dict[str, Any]], kind: str) -> tuple[float, float]:
    """AP and AP50 in percent."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):  # it tells what it does
        known = COCO()
        known.dataset = truth
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return tuple(100 * max(float(value), 0.0) for value in evaluation.stats[:2])


def _gather(world: World, sent: bytes) -> list[bytes]:
    """What every process sent, exactly; in pieces, as a byte takes the room of a float32 on the way."""
    lengths = world.gather(np.int64(len(sent)))
    received = [b""] * world.size
    for start in range(0, int(lengths.max()), PIECE):
        piece = np.zeros(min(PIECE, int(lengths.max()) - start), np.uint8)
        mine = np.frombuffer(sent[start : start + len(piece)], np.uint8)
        piece[: len(mine)] = mine
        received = [whole + one.tobytes() for whole, one in zip(received, world.gather(piece))]
    return [whole[:length] for whole, length in zip(received, lengths)]
