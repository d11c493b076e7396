"""Masks in the image, against numbers that torchvision gave."""

import numpy as np

import detection_cases as cases
from golden_cases import FOLDER
from rpg_ms.models.detection.paste import paste_masks


def test_pasted_masks_are_torchvisions():
    pasted = paste_masks(*cases.pasting(), 90, 120)
    assert pasted.dtype == bool and pasted.shape == (8, 90, 120)
    with np.load(FOLDER / "detection.npz") as golden:
        theirs = np.unpackbits(golden["pasted"]).astype(bool).reshape(pasted.shape)
    assert np.array_equal(pasted, theirs)
    assert theirs[0].any() and theirs[1].any()  # the two that are partly outside


def test_nothing_to_paste():
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), 5, 6).shape == (0, 5, 6)
    outside = paste_masks(np.ones((1, 28, 28)), np.float32([[50, 50, 60, 60]]), 20, 20)
    assert not outside.any()
