"""What the tests of packed files share: a small network as arrays, and what is said of a network."""

import numpy as np

ABOUT = {
    "task": "classification",
    "model": "cifar_resnet8",
    "num_classes": 10,
    "input_shape": [1, 28, 28],
    "step": 48,
    "seconds": 1.25,
}


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def small():
    """A packed network of two pruned tensors, one empty, and three others."""
    mask = np.zeros((2, 3, 4), np.bool_)
    mask.flat[[2, 8, 9, 20]] = True
    weight = np.zeros((2, 3, 4), np.float32)
    weight.flat[[2, 8, 9, 20]] = 1, -0.25, 0, 0.999
    return {
        "a": weight,
        "a_mask": mask,
        "b": np.zeros((2, 2), np.float32),
        "b_mask": np.zeros((2, 2), np.bool_),
        "scale": np.array([1, 2], np.float32),
        "steps": np.array(7, np.int64),
        "on": np.array([True, False]),
    }
