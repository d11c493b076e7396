"""Boxes, anchors and matching, against numbers that torchvision gave."""

import mindspore as ms
import numpy as np
import pytest

import detection_cases as cases
from golden_cases import FOLDER
from rpg_ms.models.detection import boxes as arithmetic
from rpg_ms.models.detection.anchors import anchors
from rpg_ms.models.detection.matching import match, sample

GOLDEN = np.load(FOLDER / "detection.npz")
WEIGHTS = {"rpn": (1.0, 1.0), "heads": (10.0, 5.0)}


def tensors(*arrays):
    return [ms.Tensor(array) for array in arrays]


def close(ours, theirs, tolerance=1e-4):
    """To a share of the largest."""
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_anchors_are_torchvisions():
    # P6 of a feature map of 3 has 2 cells, which torchvision puts 96 // 2 pixels apart and not 64.
    levels = anchors(96, (24, 12, 6, 3, 2), (32, 64, 128, 256, 512))
    assert [len(level) for level in levels] == [3 * size**2 for size in (24, 12, 6, 3, 2)]
    assert np.array_equal(np.concatenate(levels), GOLDEN["anchors"])


@pytest.mark.parametrize("coder", WEIGHTS)
def test_encode_and_decode(coder):
    boxes, references, deltas = tensors(*cases.regression())
    close(arithmetic.encode(boxes, references, WEIGHTS[coder]).asnumpy(), GOLDEN[f"encode_{coder}"])
    decoded = arithmetic.decode(deltas, references, WEIGHTS[coder]).asnumpy()
    close(decoded, GOLDEN[f"decode_{coder}"])
    assert np.abs(decoded - GOLDEN[f"decode_{coder}"]).max() < 0.01
    back = arithmetic.decode(arithmetic.encode(boxes, references, WEIGHTS[coder]), references, WEIGHTS[coder]).asnumpy()
    assert np.abs(back - boxes.asnumpy()).max() < 1e-3


def test_what_is_empty_or_no_number():
    empty = ms.Tensor(np.zeros((1, 2, 4), np.float32))
    box = ms.Tensor(np.float32([[[0, 0, 10, 10]]]))
    assert np.array_equal(arithmetic.iou(empty, empty).asnumpy(), np.zeros((1, 2, 2)))
    assert np.array_equal(arithmetic.iou(empty, box).asnumpy(), np.zeros((1, 2, 1)))
    assert np.isfinite(arithmetic.encode(empty, empty, (1.0, 1.0)).asnumpy()).all()
    wild = ms.Tensor(np.float32([[[np.nan, -5, np.inf, 70]]]))
    assert arithmetic.clip(wild, ms.Tensor(np.float32([[40, 50]]))).asnumpy().tolist() == [[[0, 0, 50, 40]]]


@pytest.mark.parametrize(("kind", "bounds"), [("rpn", (0.7, 0.3, True)), ("heads", (0.5, 0.5, False))])
def test_matching_is_torchvisions(kind, bounds):
    candidates, objects = cases.matching()
    # Padding and its label change nothing.
    padded = np.concatenate([objects, np.zeros((3, 4), np.float32)])[None]
    labels = np.int32([[1] * len(objects) + [0] * 3])
    positive, negative, of = (x.asnumpy()[0] for x in match(*tensors(candidates[None], padded, labels), *bounds))
    theirs = GOLDEN[f"match_{kind}"]  # the object, -1 for background, -2 for neither
    assert np.array_equal(np.where(positive, of, np.where(negative, -1, -2)), theirs)
    assert len(set(theirs)) == (9 if kind == "rpn" else 8)


def test_candidates_in_a_crowd_are_no_background():
    candidates = np.float32([[[0, 0, 10, 10], [0, 0, 30, 30], [60, 60, 70, 70], [5, 5, 15, 15]]])
    boxes = np.float32([[[0, 0, 20, 20], [5, 5, 15, 15]]])
    arguments = tensors(candidates, boxes, np.int32([[-1, 1]]))
    positive, negative, _ = (x.asnumpy()[0].tolist() for x in match(*arguments, 0.5, 0.5, False))
    assert positive == [False, False, False, True]  # nothing matches the crowd itself
    assert negative == [False, True, True, False]  # 4/9 of the second lie in it


def test_without_objects_everything_is_background():
    arguments = tensors(np.float32([[[0, 0, 0, 0], [0, 0, 9, 9]]]), np.zeros((1, 2, 4), np.float32), np.int32([[0, 0]]))
    positive, negative, _ = (x.asnumpy()[0].tolist() for x in match(*arguments, 0.7, 0.3, True))
    assert positive == [False, False] and negative == [True, True]


def test_samples():
    keys = np.float32([[0.1, 0.9, 0.5, 0.3, 0.8, 0.2]])
    positive = np.array([[True, True, True, False, False, False]])
    negative = np.array([[False, False, False, True, False, True]])

    def sampled(count, most):
        arrays = sample(*tensors(positive, negative, keys), count, most)
        return [array.asnumpy()[0].tolist() for array in arrays]

    assert sampled(3, 2) == [[1, 2, 3], [True, True, False], [True] * 3]
    index, is_positive, is_sampled = sampled(6, 4)  # fewer than asked for, of both
    assert index[:5] == [1, 2, 0, 3, 5]
    assert is_positive == [True] * 3 + [False] * 3 and is_sampled == [True] * 5 + [False]
