"""Generated pictures of discs, squares and triangles with exact masks, in COCO's layout."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

CLASSES = ("disc", "square", "triangle")


def picture(rng, height, width, objects):
    """An image, uint8 `[h, w, 3]`, and `objects` visible masks with their classes; later ones lie on top."""
    image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    masks, labels = [], []
    for _ in range(objects):
        kind, half = int(rng.integers(3)), rng.integers(6, max(7, min(height, width) // 4))
        cy, cx = rng.integers(half, height - half), rng.integers(half, width - half)
        dy, dx = y - cy, x - cx
        inside = np.maximum(abs(dy), abs(dx)) <= half
        mask = (dy**2 + dx**2 <= half**2, inside, inside & (2 * abs(dx) <= dy + half))[kind]
        image[mask] = rng.integers(120, 255, 3)
        masks = [earlier & ~mask for earlier in masks] + [mask]
        labels.append(kind + 1)
    seen = [(mask, label) for mask, label in zip(masks, labels) if mask.sum() > 8]
    return image, [mask for mask, _ in seen], [label for _, label in seen]


def annotation(number, image, mask, label, crowd=0):
    """The mask as COCO has it: run lengths, compressed if the number is even."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encoded["counts"].decode()
    if number % 2:
        flat = np.concatenate([[0], mask.T.ravel(), [2]])
        edges = np.flatnonzero(np.diff(flat))
        counts = np.diff(np.concatenate([[0], edges])).tolist() if not mask.T.ravel()[0] else None
        counts = counts or encoded["counts"].decode()
    return {
        "id": number,
        "image_id": image,
        "category_id": label,
        "iscrowd": crowd,
        "area": int(mask.sum()),
        "bbox": coco_mask.toBbox(encoded).tolist(),
        "segmentation": {"size": list(mask.shape), "counts": counts},
    }


def write(root, counts=(("train", 8), ("val", 4)), sizes=((64, 64),), objects=3, seed=0):
    """A folder in the layout of the nuclei; the i-th image is of `sizes[i % len(sizes)]`, height and width."""
    rng = np.random.default_rng(seed)
    for part, count in counts:
        (root / part).mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            pixels, masks, labels = picture(rng, height, width, objects)
            Image.fromarray(pixels).save(root / part / f"{i:03}.png")
            images.append({"id": 10 + i, "file_name": f"{i:03}.png", "height": height, "width": width})
            for mask, label in zip(masks, labels):
                annotations.append(annotation(len(annotations), 10 + i, mask, label))
        categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{part}.json").write_text(json.dumps(content))
    return root
