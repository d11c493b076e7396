import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpg_ms.pruning.schedule import (
    DENSITY_SCHEDULES,
    DROP_DECAYS,
    LEAST_UPDATES,
    constant_density,
    cosine_drop_fraction,
    cubic_density,
    exponential_density,
)

densities = st.floats(1e-4, 1.0)
schedules = st.sampled_from(sorted(DENSITY_SCHEDULES))


def test_values_known_by_hand():
    assert exponential_density(1, 2, 0.25) == 0.5
    assert [exponential_density(n, 4, 0.0625) for n in range(6)] == [1.0, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    assert cubic_density(1, 2, 0.2) == pytest.approx(0.2 + 0.8 / 8)
    assert [constant_density(n, 3, 0.2) for n in range(5)] == [1.0, 0.2, 0.2, 0.2, 0.2]


@given(schedules, st.integers(1, 500), st.integers(0, 500), densities)
def test_target_is_reached_exactly_and_kept(name, updates, later, density):
    assert DENSITY_SCHEDULES[name](updates + later, updates, density) == density


@given(st.sampled_from(sorted(set(DENSITY_SCHEDULES) - {"alternating"})), st.integers(1, 200), densities, st.data())
def test_starts_dense_and_never_rises(name, updates, density, data):
    schedule = DENSITY_SCHEDULES[name]
    update = data.draw(st.integers(0, updates - 1))
    assert schedule(0, updates, density) == 1.0
    assert 1.0 >= schedule(update, updates, density) >= schedule(update + 1, updates, density) * (1 - 1e-15)


@pytest.mark.parametrize("name", sorted(DENSITY_SCHEDULES))
@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1, 0, 0.1), "updates must be at least 1, got 0"),
        ((-1, 5, 0.1), "update must be at least 0, got -1"),
        ((1, 5, 0.0), r"density must be in \(0, 1\], got 0.0"),
        ((1, 5, 1.5), "got 1.5"),
        ((1, 5, math.nan), "got nan"),
    ],
)
def test_schedules_refuse_nonsense(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        DENSITY_SCHEDULES[name](*arguments)


def test_drop_fraction_known_by_hand():
    assert cosine_drop_fraction(0, 90, 0.3) == 0.3
    assert cosine_drop_fraction(45, 90, 0.3) == pytest.approx(0.15)
    assert cosine_drop_fraction(30, 90, 0.4) == pytest.approx(0.3)  # cos 60° = 1/2
    assert cosine_drop_fraction(90, 90, 0.3) == 0.0
    assert cosine_drop_fraction(17, 90, 0.0) == 0.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1, 0, 0.3), "end_step must be at least 1, got 0"),
        ((-1, 10, 0.3), r"step must be in \[0, 10\].*got -1"),
        ((11, 10, 0.3), "got 11"),
        ((1, 10, -0.1), r"alpha must be in \[0, 1\], got -0.1"),
        ((1, 10, 1.1), "got 1.1"),
        ((1, 10, math.nan), "got nan"),
    ],
)
def test_drop_fraction_refuses_nonsense(arguments, message):
    with pytest.raises(ValueError, match=message):
        cosine_drop_fraction(*arguments)


def test_alternating_phases_of_a_hundred_epochs():
    """The published ImageNet run, an update an epoch: dense to 10, phases of 5 to 75, dense to 85, then sparse."""
    density = [DENSITY_SCHEDULES["alternating"](epoch, 85, 0.1) for epoch in range(100)]
    changes = [epoch for epoch in range(1, 100) if density[epoch] != density[epoch - 1]]
    assert changes == [*range(10, 80, 5), 85]
    assert density[0] == density[15] == density[84] == 1.0 and density[10] == density[85] == density[99] == 0.1


def test_alternating_goes_through_all_phases_from_its_least_number_of_updates_on():
    for updates in range(LEAST_UPDATES["alternating"], 100):
        density = [DENSITY_SCHEDULES["alternating"](update, updates, 0.1) for update in range(updates + 1)]
        assert sum(a != b for a, b in zip(density, density[1:])) == 15, updates
        assert density[0] == density[updates - 1] == 1.0 and density[updates] == 0.1
    fewer = [DENSITY_SCHEDULES["alternating"](update, 15, 0.1) for update in range(16)]
    assert sum(a != b for a, b in zip(fewer, fewer[1:])) < 15


def test_constant_drop_fraction():
    assert [DROP_DECAYS["constant"](step, 90, 0.3) for step in (1, 45, 90)] == [0.3] * 3
    with pytest.raises(ValueError, match="got 91"):
        DROP_DECAYS["constant"](91, 90, 0.3)
