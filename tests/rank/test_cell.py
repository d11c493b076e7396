import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from rpg_ms.rank import RankLoss, rank_term
from tests.golden_cases import rank_cases

CASES = rank_cases()


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE if request.param == "graph" else ms.PYNATIVE_MODE)
    yield request.param
    ms.set_context(mode=before)


def value_and_gradients(delta, backend, weights):
    loss, _, gradients = RankLoss(delta, backend)(*map(ms.Tensor, weights))
    return loss.asnumpy(), [gradient.asnumpy() for gradient in gradients]


@pytest.mark.parametrize("backend", ["svd", "gram"])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-3)])
def test_gradient_matches_golden(mode, backend, dtype, tolerance):
    for delta in sorted({case.delta for case in CASES}):  # one graph for all cases of a delta
        cases = [case for case in CASES if case.delta == delta]
        loss, grads = value_and_gradients(delta, backend, [case.w.astype(dtype) for case in cases])
        assert loss == pytest.approx(np.mean([case.loss for case in cases]), rel=tolerance)
        for case, grad in zip(cases, grads):
            assert grad.dtype == dtype
            error = np.linalg.norm(grad * len(cases) - case.grad) / np.linalg.norm(case.grad)
            assert error <= tolerance, case.name


@pytest.mark.parametrize("backend", ["svd", "gram"])
def test_value_is_the_terms_own_to_the_last_digit(mode, backend):
    w = CASES[5].w.astype(np.float32)
    loss, (grad,) = value_and_gradients(0.2, backend, [w])
    wanted, _, wanted_grad = rank_term(w, 0.2, backend)
    assert loss == np.float32(wanted)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "backend, delta", [("svd", 0.2), ("svd", 1.0), ("gram", 0.6), ("gram", 1.0), ("matmul", 0.2), ("matmul", 1.0)]
)
def test_zero_layers_do_not_count(mode, backend, delta):
    w = CASES[5].w.astype(np.float32)
    zero = np.zeros((4, 4, 3, 3), np.float32)
    loss, (grad, zero_grad) = value_and_gradients(delta, backend, [w, zero])
    wanted, _, wanted_grad = rank_term(w, delta, backend)
    assert loss == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-4, atol=1e-6)
    assert not zero_grad.any()
    loss, (zero_grad,) = value_and_gradients(delta, backend, [zero])
    assert loss == 0 and not zero_grad.any()
    _, ranks, _ = RankLoss(delta, backend)(ms.Tensor(w), ms.Tensor(zero))
    assert ranks.asnumpy().tolist() == [rank_term(w, delta)[1], 0]


@pytest.mark.parametrize("backend", ["svd", "gram"])
def test_inside_a_larger_graph_with_parameters(mode, backend):
    """lambda times its gradient on a network's own Parameters, as the training cell uses it."""
    w = CASES[5].w.astype(np.float32)

    class Objective(nn.Cell):
        def __init__(self):
            super().__init__()
            self.weight = ms.Parameter(ms.Tensor(w), name="weight")
            self.rank_loss = RankLoss(0.2, backend)

        def construct(self, x):
            loss, ranks, (gradient,) = self.rank_loss(self.weight)
            return (self.weight * x).sum() + 3.0 * loss, ranks, x + 3.0 * gradient

    value, ranks, grad = Objective()(ms.Tensor(np.float32(0.5)))
    loss, k, rank_grad = rank_term(w, 0.2, backend)
    assert value.asnumpy() == pytest.approx(0.5 * w.sum() + 3 * loss, rel=1e-4)
    assert ranks.asnumpy().tolist() == [k]
    np.testing.assert_allclose(grad.asnumpy(), 0.5 + 3 * rank_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["svd", "gram"])
def test_half_precision_weights_are_computed_in_float32(mode, backend):
    w = CASES[5].w.astype(np.float16)
    loss, (grad,) = value_and_gradients(0.2, backend, [w])
    assert loss.dtype == np.float32 and grad.dtype == np.float32
    assert loss == pytest.approx(rank_term(w.astype(np.float32), 0.2)[0], rel=1e-4)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="delta"):
        RankLoss(0.0)
    with pytest.raises(ValueError, match="backend"):
        RankLoss(0.1, "qr")
