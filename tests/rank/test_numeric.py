"""Ranks of small matrices whose answer is known by hand."""

import time

import numpy as np
import pytest

from rpg_ms.pruning import structural_rank
from rpg_ms.rank import full_rank, mean_rank, numeric, numeric_rank


def test_numeric_rank_can_be_below_the_structural_one():
    equal = np.array([[1, 2], [2, 4]], np.float32)
    assert structural_rank(equal != 0) == 2 and numeric_rank(equal) == 1
    assert numeric_rank(np.diag([1, 1e-3, 1e-9]).astype(np.float32)) == 2  # 1e-9 is noise to float32
    assert numeric_rank(np.diag([1, 1e-3, 1e-9])) == 3  # but not to float64
    assert numeric_rank(np.zeros((2, 3), np.float32)) == 0


def test_random_weights_reach_the_structural_rank():
    rng = np.random.default_rng(0)
    for density in (0.02, 0.1, 0.5):
        mask = rng.random((24, 3, 3, 3)) < density
        weight = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float32)
        assert numeric_rank(weight) == structural_rank(mask) <= full_rank(weight) == 24
        assert numeric_rank(weight) == np.linalg.matrix_rank(weight.reshape(24, 27))


def test_full_rank_is_the_smaller_side():
    assert full_rank(np.zeros((16, 3, 3, 3))) == 16 and full_rank(np.zeros((64, 3, 3, 3))) == 27


def test_mean_rank_counts_every_layer_alike():
    """Full rank 2 and rank 1; full rank 27 and rank 27: 75 % on average, not 28 of 29."""
    wide = np.random.default_rng(0).standard_normal((64, 3, 3, 3)).astype(np.float32)
    assert mean_rank([np.ones((2, 5), np.float32), wide]) == pytest.approx(75)


def by_singular_values(weight):
    matrix = weight.reshape(len(weight), -1)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return int(np.count_nonzero(values > values.max() * max(matrix.shape) * np.finfo(matrix.dtype).eps))


def matrices(seed):
    """Random ones, sparse ones, of lower rank, with singular values around the threshold and over ten decades."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        rows, columns = rng.integers(1, 60, 2)
        matrix = rng.standard_normal((rows, columns))
        yield matrix
        yield matrix * (rng.random(matrix.shape) < rng.choice([0.02, 0.1, 0.3])) * 10.0 ** rng.integers(-30, 30)
        inner = rng.integers(1, 1 + min(rows, columns))
        yield matrix[:, :inner] @ rng.standard_normal((inner, columns))
        u, values, v = np.linalg.svd(matrix, full_matrices=False)
        threshold = max(rows, columns) * np.finfo(np.float32).eps
        values = threshold * np.exp(rng.normal(0, 0.3, len(values)))
        values[0] = 1
        yield u * values @ v
        yield u * 10.0 ** -rng.uniform(0, 10, len(values)) @ v


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_count_is_that_of_the_singular_values(dtype, monkeypatch):
    by_gram = []
    honest = numeric._rank_by_gram
    monkeypatch.setattr(numeric, "_rank_by_gram", lambda *given: by_gram.append(honest(*given)) or by_gram[-1])
    for number, matrix in enumerate(matrices(1)):
        with np.errstate(over="ignore"):
            weight = matrix.astype(dtype)
        if np.isfinite(weight).all():
            assert numeric_rank(weight) == by_singular_values(weight), number
    decided = sum(rank is not None for rank in by_gram)
    assert decided == 0 if dtype is np.float64 else 0 < decided < len(by_gram)


def test_weights_that_are_not_finite_are_no_rank():
    with pytest.raises(np.linalg.LinAlgError):
        numeric_rank(np.full((3, 4), np.nan, np.float32))


@pytest.mark.parametrize("density", [0.02, 1])
def test_large_layers_take_less_time_than_their_singular_values(density):
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((512, 3136)) < density, rng.standard_normal((512, 3136)), 0).astype(np.float32)
    started = time.perf_counter()
    assert numeric_rank(weight) == 512
    ours = time.perf_counter() - started
    assert by_singular_values(weight) == 512
    assert ours < 0.7 * (time.perf_counter() - started - ours)
