"""Inputs of the numbers that were recorded with torchvision in tests/golden/detection.npz; see the README there.

They come from NumPy's `RandomState`, whose stream never changes, so that only results are kept.
"""

import zlib

import numpy as np

IMAGE_SIZE, BATCH, CLASSES, OBJECTS = 64, 2, 4, 6
SETTINGS = {
    "boxes_per_image": OBJECTS,
    "proposals": 50,
    "pre_nms_proposals": 100,
    "rois_per_image": 16,
    "detections": 20,
    "fpn_channels": 16,
    "hidden": 32,
    "anchor_sizes": (8, 16, 32, 64),
}
WIDTH = 1 / 3  # of resnet_small: 8, 16 and 32 channels


def random_boxes(state, count, size, smallest=4.0):
    """Boxes in a square of `size` pixels, float32 `[count, 4]`."""
    sides = state.uniform(smallest, size / 2, (count, 2))
    corners = state.uniform(0, size - sides)
    return np.concatenate([corners, corners + sides], 1).astype(np.float32)


def weight(name, shape):
    """The weights of a parameter by torchvision's name: of the size that training starts with."""
    state = np.random.RandomState(zlib.crc32(name.encode()) % 2**32)
    values = state.standard_normal(shape)
    if name.endswith("running_mean"):
        return np.float32(0.1 * values)
    if len(shape) == 1:  # of norms around 1, of biases around 0
        offset = 1.0 if ".bn" in name and not name.endswith("bias") else 0.0
        return np.float32(offset + 0.1 * np.clip(values, -3, 3))
    small = 0.1 if "bbox_pred" in name or "cls_" in name else 1.0  # the predictors, as in training
    return np.float32(small * values * np.sqrt(2 / np.prod(shape[1:])))


def batch():
    """A training batch of the whole network, without keys: images, valid, boxes, labels and masks.

    The second image is 50 x 60 pixels and has padding among its objects.
    """
    state = np.random.RandomState(7)
    images = np.float32(state.standard_normal((BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)))
    valid = np.float32([[64, 64], [50, 60]])
    boxes = np.stack([random_boxes(state, OBJECTS, 50) for _ in range(BATCH)])
    labels = state.randint(1, CLASSES, (BATCH, OBJECTS)).astype(np.int32)
    boxes[1, 4:], labels[1, 4:] = 0, 0
    masks = np.uint8(state.uniform(size=(BATCH, OBJECTS, 56, 56)) < 0.6)
    return images, valid, boxes, labels, masks


def keys(count):
    """Random numbers for the samples, `[batch, count]`."""
    return np.float32(np.random.RandomState(8).uniform(size=(BATCH, count)))


def regression():
    """Boxes, references and predicted numbers `[40, 4]`."""
    state = np.random.RandomState(1)
    return random_boxes(state, 40, 200), random_boxes(state, 40, 200), np.float32(state.standard_normal((40, 4)) * 2)


def matching():
    """Candidates `[400, 4]`, near and far from objects `[7, 4]`."""
    state = np.random.RandomState(2)
    objects = random_boxes(state, 7, 100)
    near = np.repeat(objects, 50, 0) + np.float32(state.standard_normal((350, 4)) * 3)
    return np.concatenate([near, random_boxes(state, 50, 100)]), objects


ALIGN_SIZE, ALIGN_STRIDES = 256, (4, 8, 16)


def aligning():
    """Feature maps of three levels, `[2, 3, size, size]`, boxes `[2, 16, 4]`, and a gradient for each output size."""
    state = np.random.RandomState(3)
    features = [
        np.float32(state.standard_normal((2, 3, ALIGN_SIZE // stride, ALIGN_SIZE // stride)))
        for stride in ALIGN_STRIDES
    ]
    boxes = np.stack([random_boxes(state, 16, 2 * ALIGN_SIZE) - ALIGN_SIZE / 4 for _ in range(2)])
    boxes[0, :5] = [[10, 10, 10, 10], [20.25, 30.5, 20.5, 90], [0, 0, 112, 112], [-60, -70, -30, -20], [0, 0, 256, 256]]
    return features, boxes, {size: np.float32(state.standard_normal((32, 3, size, size))) for size in (7, 14)}


def detecting():
    """Logits `[2, 60, 4]`, predicted numbers `[2, 60, 16]` and proposals `[2, 60, 4]`, close to one another."""
    state = np.random.RandomState(4)
    centres = random_boxes(state, 6, 60)
    proposals = np.stack([np.repeat(centres, 10, 0) + state.standard_normal((60, 4)) * 1.5 for _ in range(2)])
    logits = np.float32(state.standard_normal((2, 60, CLASSES)) * 2)
    return logits, np.float32(state.standard_normal((2, 60, 4 * CLASSES))), np.float32(np.clip(proposals, 0, 60))


def pasting():
    """Masks `[8, 28, 28]` and boxes `[8, 4]` in an image of 90 x 120 pixels, some of them partly outside."""
    state = np.random.RandomState(5)
    y, x = np.mgrid[:28, :28] / 27 - 0.5
    radii = state.uniform(0.1, 0.5, (8, 1, 1))
    masks = np.clip(1.5 - np.sqrt(x**2 + y**2) / radii + 0.1 * state.standard_normal((8, 28, 28)), 0, 1)
    boxes = random_boxes(state, 8, 90)
    boxes[0], boxes[1], boxes[2] = [-10.5, -5, 20, 30], [100, 60, 140, 95], [40, 40, 40.3, 40.2]
    return np.float32(masks), boxes


def excerpt(values):
    """At most 60 of an array's numbers, spread over it, and its largest magnitude: what is kept of a gradient."""
    flat = np.asarray(values).ravel()
    return np.append(flat[:: -(-flat.size // 60)], np.abs(flat).max())
