"""The coder of positions: by hand, round trips, its size, codes that are none."""

import math
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpg_ms.weights.positions import decode_positions, encode_positions


def gaps(*code):
    """A list of positions from the bytes of its gaps."""
    return zlib.compress(bytes(code))


def test_positions_by_hand():
    mask = np.zeros(3000, np.bool_)
    mask[[2, 8, 9, 264, 520, 1286]] = True  # the gaps 2, 5, 0, 254, 255, 765
    code = encode_positions(mask)
    assert list(zlib.decompress(code)) == [2, 5, 0, 254, 255, 0, 255, 255, 255, 0]
    assert decode_positions(code, 6, 3000).tolist() == np.flatnonzero(mask).tolist()
    assert decode_positions(code, 6, 1287).tolist() == np.flatnonzero(mask).tolist()
    with pytest.raises(ValueError, match="a position beyond its 1286 prunable weights"):
        decode_positions(code, 6, 1286)
    assert zlib.decompress(encode_positions(np.zeros(9, np.bool_))) == b""
    assert decode_positions(gaps(), 0, 9).tolist() == []


@pytest.mark.parametrize(
    "code, count, size, words",
    [
        (gaps(1, 2), 1, 99, "not those of 1 weights|longer than 1 bytes"),
        (gaps(1, 2), 3, 99, "not those of 3 weights"),
        (gaps(1, 255), 2, 999, "not those of 2 weights"),  # a gap that does not end
        (gaps(1, 2, 255), 2, 999, "not those of 2 weights"),
        (gaps(255), 0, 999, "not those of 0 weights"),
        (gaps(1, 2), 2, 4, "beyond its 4 prunable"),
        (gaps(0, 0), 2, 1, "beyond its 1 prunable"),
        (gaps(1, 2)[:-1], 2, 99, "truncated, or longer"),
        (gaps(1, 2) + b"x", 2, 99, "truncated, or longer"),
        (gaps(1, 2) + gaps(3), 2, 99, "truncated, or longer"),
        (b"", 2, 99, "truncated, or longer"),
        (b"not of zlib", 2, 99, "list of positions is damaged"),
    ],
)
def test_codes_that_are_none(code, count, size, words):
    with pytest.raises(ValueError, match=words):
        decode_positions(code, count, size)


def test_a_bomb_is_inflated_no_further_than_its_mask_is_long():
    bombs = [zlib.compress(byte * 2**24) for byte in (b"\0", b"\xff")]
    tracemalloc.start()
    try:
        for content in bombs:
            with pytest.raises(ValueError, match="truncated, or longer than 1392 bytes"):
                decode_positions(content, 1000, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 2**18
    finally:
        tracemalloc.stop()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.integers(0, 99))
def test_positions_round_trip(size, density, seed):
    mask = np.random.default_rng(seed).random(size) < density**3
    assert np.array_equal(decode_positions(encode_positions(mask), int(mask.sum()), size), np.flatnonzero(mask))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.booleans(), st.integers(0, 60), st.integers(1, 5000))
def test_any_code_is_refused_or_increasing_and_in_range(content, whole, count, size):
    try:
        indices = decode_positions(zlib.compress(content) if whole else content, count, size)
    except ValueError:
        return
    assert len(indices) == count and (np.diff(indices, prepend=-1) > 0).all() and (indices < size).all()


@pytest.mark.parametrize(
    "density, share",
    [(0.005, 0.9), (0.01, 0.5), (0.02, 0.35), (0.05, 0.25), (0.2, 0.18), (0.5, 0.06), (0.9, 1.15), (1, 0.03)],
)
def test_positions_are_short(density, share):
    """Beyond the entropy, at most `share` percent of the float32 weights and the entropy."""
    mask = np.random.default_rng(0).random(500_000) < density
    density = mask.mean()
    entropy = mask.size / 8 * -sum(p * math.log2(p) for p in (density, 1 - density) if p)
    assert len(encode_positions(mask)) - entropy <= share / 100 * (4 * mask.sum() + entropy)
