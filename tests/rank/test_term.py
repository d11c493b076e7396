import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from rpg_ms.rank import rank_term, rank_terms, term
from tests.golden_cases import rank_cases

CASES = rank_cases()


def relative_error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("backend", ["svd", "gram"])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-3)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case, backend, dtype, tolerance):
    loss, k, grad = rank_term(case.w.astype(dtype), case.delta, backend)
    assert type(loss) is float and type(k) is int and grad.dtype == dtype and grad.shape == case.w.shape
    assert k == case.k
    assert abs(loss - case.loss) <= tolerance * abs(case.loss)
    assert relative_error(grad, case.grad) <= tolerance


@pytest.mark.parametrize("backend", ["svd", "gram"])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 2, 3, 3), (5, 1, 3, 3)])
def test_gradient_is_the_finite_difference_at_fixed_truncation(shape, backend):
    rng = np.random.default_rng(3)
    w = rng.standard_normal(shape)
    loss, k, grad = rank_term(w, 0.2, backend)

    def value(w):
        """-||W/||W|| - A_k||^2 with A_k recomputed: stationary in A_k, so its derivative is the same."""
        s = np.linalg.svd(w.reshape(shape[0], -1), compute_uv=False)
        return -(s[k:] ** 2).sum() / (s**2).sum()

    assert value(w) == pytest.approx(loss, rel=1e-10)
    for _ in range(5):
        direction = rng.standard_normal(shape)
        h = 1e-5
        difference = (value(w + h * direction) - value(w - h * direction)) / (2 * h)
        assert (grad * direction).sum() == pytest.approx(difference, rel=1e-6, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.floats(0.01, 1.0),
    st.sampled_from([1e-30, 1.0, 1e20]),
)
def test_gram_against_a_float64_svd(rows, columns, seed, density, delta, scale):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < density) * scale
    loss, k, grad = rank_term(w, delta, "gram")
    if not w.any():
        assert (loss, k) == (0.0, 0) and not grad.any()
        return
    u, s, vt = np.linalg.svd(w / np.linalg.norm(w), full_matrices=False)
    tails = np.array([(s[i:] ** 2).sum() for i in range(len(s))])
    assert abs(-loss - delta) <= np.abs(tails - delta).min() + 1e-12
    assert -loss == pytest.approx(tails[k], abs=1e-12)
    if k == 0 or s[k - 1] ** 2 - s[k] ** 2 > 1e-6:  # otherwise the truncation is not unique
        residual = (u[:, k:] * s[k:]) @ vt[k:]
        wanted = -2 / np.linalg.norm(w) * (residual - tails[k] * w / np.linalg.norm(w))
        assert np.abs(grad - wanted).max() * np.linalg.norm(w) <= 1e-8
    assert abs((grad * w).sum()) <= 1e-9  # the loss does not change with the scale of W


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])  # sigma_i ~ i^-decay: from flat to dominated by few
@pytest.mark.parametrize("shape", [(48, 200), (200, 48), (96, 96)])
def test_gram_in_float32_keeps_the_accuracy_of_float64(shape, decay):
    rng = np.random.default_rng(7)
    in_float32 = 0
    for delta in (0.3, 0.1, 0.01, 1e-3, 1e-5):
        u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
        w = ((u * np.arange(1.0, len(vt) + 1) ** -decay) @ vt).astype(np.float32)
        loss, k, grad = rank_term(w, delta, "gram")
        exact_loss, exact_k, exact_grad = rank_term(w.astype(np.float64), delta, "gram")
        assert k == exact_k and loss == pytest.approx(exact_loss, rel=1e-4)
        if decay > 0:  # flat: equal singular values, no unique truncation
            assert relative_error(grad, exact_grad) <= 2e-4
        in_float32 += term._eigen_term(w, delta, np.float32)[3] <= term.FLOAT32_ERROR
    assert in_float32 < 5 if decay != 0.5 else in_float32 > 0  # both ways are taken


def test_many_weights_are_as_one_by_one():
    rng = np.random.default_rng(2)
    weights = [
        rng.standard_normal(shape).astype(dtype)
        for shape, dtype in (
            ((4, 2, 3, 3), np.float32),
            ((64, 9), np.float32),
            ((3, 5), np.float64),
            ((30, 40), np.float32),
        )
    ]
    weights[1][:] = 0
    for weight, (loss, k, grad) in zip(weights, rank_terms(weights, 0.1)):
        one_loss, one_k, one_grad = rank_term(weight, 0.1)
        assert (loss, k) == (one_loss, one_k) and grad.tobytes() == one_grad.tobytes() and grad.shape == weight.shape
    assert rank_terms([], 0.1) == []


def test_blas_threads_are_as_before_afterwards():
    before = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    rank_terms([np.ones((4, 4), np.float32)], 0.1)
    assert [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"] == before


def test_tie_takes_the_larger_k():
    # Energies 1/4 each: t = 1, .75, .5, .25. delta .625 lies halfway between k = 1 and k = 2.
    for backend in ("gram", "svd"):
        assert rank_term(np.eye(4), 0.625, backend)[1] == 2


def test_rank_deficient_tail_is_a_tie_too():
    w = np.outer(np.arange(1.0, 5.0), np.ones(6))  # rank one: t = 1, 0, 0, 0
    for backend in ("gram", "svd"):
        loss, k, grad = rank_term(w, 0.1, backend)
        assert k == 3 and abs(loss) < 1e-12 and np.abs(grad).max() < 1e-12


def test_nonfinite_weights_are_loud():
    w = np.ones((3, 3), np.float32)
    w[1, 1] = np.nan
    loss, _, grad = rank_term(w, 0.1)
    assert np.isnan(loss) and np.isnan(grad).all()


def test_an_eigendecomposition_that_fails_is_replaced_by_an_svd(monkeypatch):
    def fails(gram):
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    monkeypatch.setattr(np.linalg, "eigh", fails)
    case = CASES[5]
    loss, k, grad = rank_term(case.w, case.delta, "gram")
    assert k == case.k and loss == pytest.approx(case.loss, rel=1e-9)
    assert relative_error(grad, case.grad) <= 1e-9


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_tiny_and_huge_float32_weights_are_as_any(scale):
    """The gradient is a homogeneous function of degree -1, so that of a tiny weight may overflow float32."""
    w = np.random.default_rng(5).integers(-9, 10, (12, 30)).astype(np.float32)
    w[3] = 0
    scaled = (w * scale).astype(np.float32)
    loss, k, grad = rank_term(scaled, 0.1)
    wanted_loss, wanted_k, wanted_grad = rank_term(scaled.astype(np.float64), 0.1)
    assert (loss, k) == (pytest.approx(wanted_loss, rel=1e-4), wanted_k)
    assert not np.isnan(grad).any()
    if scale > 1e-40:
        assert relative_error(grad / grad.max(), wanted_grad / wanted_grad.max()) <= 1e-4
    else:
        assert np.isinf(grad).any()


def test_failed_ops_svd_falls_back_to_lapack(monkeypatch, caplog):
    honest = term.svd_term

    def broken(weight, delta):
        loss, k, grad = honest(weight, delta)
        return loss, k, grad * float("nan")

    monkeypatch.setattr(term, "svd_term", broken)
    case = CASES[5]
    loss, k, grad = rank_term(case.w, case.delta, "svd")
    assert k == case.k and loss == pytest.approx(case.loss, rel=1e-9)
    assert relative_error(grad, case.grad) <= 1e-9
    assert "using LAPACK" in caplog.text


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((np.ones(3), 0.1), "two or more dimensions"),
        ((np.ones((2, 2), int), 0.1), "floating point"),
        ((np.ones((2, 2)), 0.0), "delta"),
        ((np.ones((2, 2)), 1.5), "delta"),
        ((np.ones((2, 2)), 0.1, "qr"), "backend"),
    ],
)
def test_nonsense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        rank_term(*arguments)


def test_float16_is_computed_in_more():
    case = CASES[5]
    loss, k, grad = rank_term(case.w.astype(np.float16), case.delta)
    assert grad.dtype == np.float16 and loss == pytest.approx(case.loss, rel=1e-2)
