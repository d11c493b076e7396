"""RoI align and its gradient, against numbers that torchvision gave."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

import detection_cases as cases
from golden_cases import FOLDER
from rpg_ms.models.detection import roi_align
from rpg_ms.models.detection.roi_align import GatherAlign, OperatorAlign

GOLDEN = np.load(FOLDER / "detection.npz")


@pytest.fixture(autouse=True)
def pynative():
    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=before)


def aligned(kind, size):
    """What RoI align gives, and its gradient in each level."""
    features, boxes, gradients = cases.aligning()
    align = kind([cases.ALIGN_SIZE // stride for stride in cases.ALIGN_STRIDES], cases.ALIGN_STRIDES, size)
    boxes, gradient = ms.Tensor(boxes), ms.Tensor(gradients[size])

    def forward(*levels):
        pooled = align(levels, boxes)
        return (pooled * gradient).sum(), pooled

    levels = [ms.Tensor(level) for level in features]
    (_, pooled), grads = ms.value_and_grad(forward, (0, 1, 2), has_aux=True)(*levels)
    return pooled.asnumpy(), [grad.asnumpy() for grad in grads]


@pytest.mark.parametrize("size", (7, 14))
@pytest.mark.parametrize("kind", (GatherAlign, OperatorAlign))
def test_align_and_gradient_are_torchvisions(kind, size):
    pooled, gradients = aligned(kind, size)
    assert np.abs(pooled.ravel()[:: 1 if size == 7 else 7] - GOLDEN[f"align_{size}"]).max() < 1e-4
    for i, gradient in enumerate(gradients):
        theirs = GOLDEN[f"align_{size}_grad{i}"]
        assert np.abs(theirs).max() > 0.5  # every level pools some box
        assert np.abs(gradient.ravel()[::3] - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_pieces_give_the_same(monkeypatch):
    whole = aligned(GatherAlign, 7)
    monkeypatch.setattr(roi_align, "CHUNK", 2 * 49 * 16 * 3 * 5)  # five RoIs of each image at a time
    pieces = aligned(GatherAlign, 7)
    assert np.array_equal(whole[0], pieces[0])
    for one, other in zip(whole[1], pieces[1]):
        assert np.abs(one - other).max() < 1e-5


def test_gradient_repeats_to_the_bit():
    state = np.random.RandomState(0)
    feature = ms.Tensor(np.float32(state.standard_normal((1, 64, 64, 64))))
    boxes = ms.Tensor(cases.random_boxes(state, 128, 256)[None])
    align = GatherAlign((64,), (4,), 7)
    weight = ms.Tensor(np.float32(state.standard_normal((128, 64, 7, 7))))
    gradient = ms.grad(lambda feature: (align((feature,), boxes) * weight).sum())
    first = gradient(feature).asnumpy()
    assert all(np.array_equal(first, gradient(feature).asnumpy()) for _ in range(5))


def test_boxes_that_are_no_numbers():
    feature = ms.Tensor(np.ones((1, 2, 8, 8), np.float32))
    boxes = np.float32([[[np.nan] * 4, [0, 0, np.inf, 1e30], [-1e30, 0, 8, 8]]])
    assert GatherAlign((8,), (4,), 7)((feature,), ms.Tensor(boxes)).shape == (3, 2, 7, 7)


def test_level_by_area():
    boxes = ms.Tensor(np.float32([[0, 0, side, side] for side in (1, 111.9, 112, 223.9, 224, 448, 5000)]))
    assert roi_align.level_of(boxes, (4, 8, 16, 32)).asnumpy().tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert not ops.any(roi_align.level_of(boxes, (4,))).item()
