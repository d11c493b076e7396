"""The loss of a network that learns from another: its value and its gradient in closed form."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from rpg_ms.cells import Distilled


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("weight, temperature", [(0.7, 4.0), (1.0, 1.0), (0.2, 0.5)])
def test_value_and_gradient(mode, weight, temperature):
    ms.set_context(mode=mode)
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(0, 3, (2, 5, 7))
    labels = rng.integers(0, 7, 5)
    loss = Distilled(nn.Identity(), nn.CrossEntropyLoss(), weight, temperature)
    arrays = [ms.Tensor(student, ms.float32), ms.Tensor(labels, ms.int32), ms.Tensor(teacher, ms.float32)]
    value, gradient = ops.value_and_grad(loss, 0)(*arrays)
    ms.set_context(mode=ms.GRAPH_MODE)

    p, q = softmax(student / temperature), softmax(teacher / temperature)
    divergence = (q * np.log(q / p)).sum(1).mean()
    right = np.log(softmax(student)[range(5), labels])
    wanted = -(1 - weight) * right.mean() + weight * temperature**2 * divergence
    assert float(value.asnumpy()) == pytest.approx(wanted, rel=1e-5)
    wanted = (1 - weight) * (softmax(student) - np.eye(7)[labels]) / 5 + weight * temperature * (p - q) / 5
    np.testing.assert_allclose(gradient.asnumpy(), wanted, atol=1e-6)


def test_nothing_is_left_to_learn_from_oneself():
    logits = ms.Tensor(np.random.default_rng(0).normal(0, 3, (4, 6)), ms.float32)
    loss = Distilled(nn.Identity(), nn.CrossEntropyLoss(), 1.0, 4.0)
    assert float(loss(logits, ms.Tensor([0, 1, 2, 3], ms.int32), logits).asnumpy()) == pytest.approx(0, abs=1e-6)
