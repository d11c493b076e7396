"""The packed format: rounding by hand, round trips, the size."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packed_arrays import ABOUT, same, small
from rpg_ms.cells import sparsify
from rpg_ms.cells.masked import set_topology
from rpg_ms.models import create_model
from rpg_ms.weights.packed import NO_DIGEST, pack, unpack
from weight_networks import values


def test_int8_by_hand():
    arrays = small()
    header, after = unpack(pack(arrays, "int8", ABOUT))
    # Channel 0: the largest weight 1 is 64 steps of 2**-6; of the next smaller step it would be 128.
    # Channel 1: 0.999 would be 127.9 steps of 2**-7, rounded more than 127, so the step is 2**-6 as well.
    assert after["a"].flat[[2, 8, 9, 20]].tolist() == [1, -0.25, 0, 1] and header.nonzero == 4
    assert np.array_equal(after["a_mask"], arrays["a_mask"]) and after["scale"].tolist() == [1, 2]


@settings(max_examples=100, deadline=None)
@given(st.integers(-140, 126), st.integers(0, 99))
def test_int8_is_off_by_half_a_step_at_most(exponent, seed):
    rng = np.random.default_rng(seed)
    weight = np.ldexp(rng.uniform(-1, 1, (5, 7)), exponent).astype(np.float32)
    weight[0] = 0
    _, after = unpack(pack({"w": weight, "w_mask": np.ones((5, 7), np.bool_)}, "int8", ABOUT))
    largest = np.abs(weight).max(1).astype(np.float64)
    step = np.exp2(np.maximum(np.ceil(np.log2(largest / 127.5 + 1e-300)), -126))
    assert (np.abs(after["w"].astype(np.float64) - weight).max(1) <= step / 2 * (1 + 1e-6)).all()


SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)
DTYPES = st.sampled_from(["float64", "float32", "float16", "int64", "uint8", "bool"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(SHAPES, st.floats(0, 1)), max_size=4),
    st.lists(st.tuples(SHAPES, DTYPES), max_size=4),
    st.integers(0, 99),
)
def test_round_trip_to_the_bit(pruned, rest, seed):
    rng, arrays = np.random.default_rng(seed), {}
    for i, (shape, density) in enumerate(pruned):
        mask = rng.random(shape) < density
        weight = rng.standard_normal(shape).astype(np.float32)
        weight[rng.random(shape) < 0.2] = rng.choice([0.0, -0.0, 1e-45, 3e38])
        arrays[f"layer{i}.weight"] = np.where(mask, weight, np.float32(0))
        arrays[f"layer{i}.weight_mask"] = mask
    for i, (shape, dtype) in enumerate(rest):
        arrays[f"rest{i}"] = (rng.random(shape) * 9).astype(dtype)
    content = pack(arrays, "float32", ABOUT)
    header, after = unpack(content)
    assert same(arrays, after) and content == pack(after, "float32", ABOUT)
    assert header.nonzero == sum(int(a.sum()) for name, a in arrays.items() if name.endswith("_mask"))
    assert header.about.model_dump() == ABOUT


def test_what_another_task_says_of_its_network():
    """Any JSON values come back; what is none is refused, written and read."""
    about = {
        **ABOUT,
        "task": "detection",
        "anchors": [[10, 13.5], [16, 30]],
        "strides": {"p3": 8, "p4": None},
        "mosaic": True,
    }
    assert unpack(pack(small(), "float32", about))[0].about.model_dump() == about
    for value in (float("nan"), [float("inf")]):
        with pytest.raises(ValueError, match="JSON"):
            pack(small(), "float32", {**about, "anchors": value})
    zeros = {**about, "note": NO_DIGEST}  # like the place of the checksum
    assert unpack(pack(small(), "float32", zeros))[0].about.note == NO_DIGEST


@pytest.mark.parametrize("spread", ["even", "uneven", "one layer"])
def test_size_at_98_percent(spread):
    """At most 1.10 of the values, the entropy of where they are, and the rest as it is."""
    network = create_model("cifar_resnet20", 10, 3)
    found = sparsify(network)
    rng = np.random.default_rng(0)
    sizes = [layer.weight.size for layer in found.layers]
    scores = rng.random(found.prunable)
    if spread == "uneven":
        scores *= np.repeat(rng.random(len(sizes)) ** 4, sizes)
    elif spread == "one layer":
        scores += np.repeat(np.arange(len(sizes)) == 15, sizes)
    keep = np.zeros(found.prunable, np.bool_)
    keep[np.argsort(-scores)[: round(0.02 * found.prunable)]] = True
    for layer, mask in zip(found.layers, np.split(keep, np.cumsum(sizes)[:-1])):
        mask = mask.reshape(layer.weight.shape)
        set_topology(layer, rng.standard_normal(mask.shape).astype(np.float32), mask)
    arrays = values(network)
    pruned = {layer.weight.name for layer in found.layers} | {layer.mask.name for layer in found.layers}
    rest = sum(array.nbytes for name, array in arrays.items() if name not in pruned)
    nonzero, density = found.nonzero, found.density
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    for value_type, bits in {"float32": 32, "float16": 16, "int8": 8}.items():
        content = pack(arrays, value_type, {**ABOUT, "model": "cifar_resnet20"})
        assert len(content) <= 1.10 * (nonzero * (bits + entropy / density) / 8 + rest), value_type
