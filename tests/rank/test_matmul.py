"""The matmul backend: multiplications only, float32; k may be off by one where eigenvalues nearly agree."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpg_ms.rank import RankLoss, rank_term
from tests.golden_cases import rank_cases


@pytest.fixture(autouse=True)
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def cosine(a, b):
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


def agrees(w, delta, wanted_loss, wanted_k, wanted_grad):
    loss, k, grad = rank_term(w.astype(np.float32), delta, "matmul")
    assert grad.dtype == np.float32 and grad.shape == w.shape
    assert abs(k - wanted_k) <= 1 and abs(loss - wanted_loss) <= 0.01
    if k == wanted_k:
        assert loss == pytest.approx(wanted_loss, abs=1e-4)
        if np.linalg.norm(wanted_grad) * np.linalg.norm(w) < 1e-3:  # a tail of next to nothing has no direction
            return True
        assert cosine(grad, wanted_grad) >= 0.999
        assert np.linalg.norm(grad) == pytest.approx(np.linalg.norm(wanted_grad), rel=0.01)
    return k == wanted_k


def test_golden():
    hits = [agrees(case.w, case.delta, case.loss, case.k, case.grad) for case in rank_cases() if case.w.size < 5_000]
    assert len(hits) >= 15 and np.mean(hits) > 0.9


@settings(max_examples=15, deadline=None)
@given(
    st.integers(4, 40),
    st.integers(4, 60),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 0.3, 1.0]),
    st.sampled_from([0.05, 0.1, 0.2, 0.5, 0.9]),
    st.sampled_from([1e-25, 1.0, 1e15]),
)
def test_random_matrices(rows, columns, seed, density, delta, scale):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < density)
    if w.any():
        loss, k, grad = rank_term(w, delta, "svd")
        agrees(w, delta, loss, k, grad)
        scaled = rank_term((w * scale).astype(np.float32), delta, "matmul")
        assert scaled[:2] == pytest.approx(rank_term(w.astype(np.float32), delta, "matmul")[:2], rel=1e-3)


def test_special_weights():
    loss, k, grad = rank_term(np.zeros((4, 6), np.float32), 0.1, "matmul")
    assert (loss, k) == (0.0, 0) and not grad.any()
    loss, k, grad = rank_term(np.full((4, 6), np.nan, np.float32), 0.1, "matmul")
    assert np.isnan(loss) and k == 0 and np.isnan(grad).all()
    one = np.zeros((4, 6), np.float32)
    one[1, 2] = -3.0  # rank one: of the tails 1, 0, 0, 0 the zeros tie
    assert rank_term(one, 0.1, "matmul")[:2] == (pytest.approx(0.0, abs=1e-6), 3)
    assert rank_term(one, 0.9, "matmul")[:2] == (pytest.approx(-1.0), 0)
    for delta, wanted in ((0.1, 5), (0.5, 3), (1.0, 0)):  # all eigenvalues are equal
        assert rank_term(np.eye(6, dtype=np.float32), delta, "matmul")[:2] == (pytest.approx(wanted / 6 - 1), wanted)


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_batches_in_the_cell(mode):
    """Layers of equal and unequal size, one all zero, against the gram backend; the loop is part of the graph."""
    ms.set_context(mode=mode)
    rng = np.random.default_rng(0)
    shapes = (8, 2, 3, 3), (8, 20), (20, 8), (6, 4, 1, 1), (8, 3, 3, 3)
    weights = [ms.Tensor(rng.standard_normal(shape), ms.float32) for shape in shapes[:-1]]
    weights.append(ms.Tensor(np.zeros(shapes[-1]), ms.float32))
    found = {}
    for backend in ("gram", "matmul"):
        loss, _, gradients = RankLoss(0.2, backend)(*weights)
        found[backend] = loss.asnumpy(), [gradient.asnumpy() for gradient in gradients]
    assert found["matmul"][0] == pytest.approx(found["gram"][0], abs=1e-5)
    for ours, wanted in zip(found["matmul"][1][:-1], found["gram"][1]):
        assert np.allclose(ours, wanted, rtol=1e-3, atol=1e-5)
    assert not found["matmul"][1][-1].any()
