import dataclasses
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rpg_ms.pruning import DENSITY_SCHEDULES, UpdateCalendar, cosine_drop_fraction, exponential_density

RUN = {"total_steps": 100, "update_every": 5, "prune_until": 0.9, "freeze_after": 0.96, "density": 0.1}


def test_calendar_known_by_hand():
    calendar = UpdateCalendar(**RUN)
    assert (calendar.prune_step, calendar.end_step, calendar.updates, calendar.reach_step) == (90, 96, 18, 90)
    assert list(calendar.steps()) == list(range(5, 96, 5))
    assert [step for step in range(-5, 111) if calendar.is_update(step)] == list(range(5, 96, 5))
    assert [calendar.update_index(step) for step in (0, 4, 5, 9, 90, 95, 100)] == [0, 0, 1, 1, 18, 19, 19]


def test_density_between_updates_is_that_of_the_last_one():
    calendar = UpdateCalendar(**RUN)
    assert [calendar.density_at(step) for step in (0, 1, 4)] == [1.0, 1.0, 1.0]
    assert calendar.density_at(5) == calendar.density_at(9) == exponential_density(1, 18, 0.1)
    assert calendar.density_at(89) == exponential_density(17, 18, 0.1) > 0.1
    assert [calendar.density_at(step) for step in (90, 94, 95, 100)] == [0.1] * 4


def test_drop_fraction_runs_to_the_freeze_and_stays_zero():
    calendar = UpdateCalendar(**RUN)
    assert calendar.drop_fraction(5, 0.3) == cosine_drop_fraction(5, 96, 0.3)
    assert calendar.drop_fraction(48, 0.3) == pytest.approx(0.15)
    assert [calendar.drop_fraction(step, 0.3) for step in (96, 97, 100)] == [0.0] * 3


def test_nothing_grows_at_the_last_step():
    calendar = UpdateCalendar(90, 10, 0.5, 1.0, 0.1, drop_decay="constant")
    assert [calendar.drop_fraction(step, 0.3) for step in (80, 90)] == [0.3, 0.0]


def test_warmup_stays_dense_and_still_arrives():
    calendar = UpdateCalendar(**RUN, schedule="cubic", warmup_updates=6)
    assert [calendar.density_at(step) for step in (5, 30, 34)] == [1.0] * 3
    assert calendar.density_at(60) == pytest.approx(0.1 + 0.9 / 8)  # update 12 of 18: half-way after warm-up
    assert calendar.density_at(90) == 0.1


@given(st.sampled_from(sorted(DENSITY_SCHEDULES)), st.integers(0, 50), st.integers(16, 50), st.data())
def test_warmup_holds_at_one_then_runs_the_density_schedule(name, warmup, rest, data):
    calendar = UpdateCalendar(warmup + rest, 1, 1.0, 1.0, 0.1, name, warmup)
    assert calendar.density_at(data.draw(st.integers(0, warmup))) == 1.0
    update = data.draw(st.integers(1, rest))
    assert calendar.density_at(warmup + update) == DENSITY_SCHEDULES[name](update, rest, 0.1)
    assert calendar.density_at(warmup + rest) == 0.1


@given(st.integers(1, 100_000), st.data())
def test_steps_are_the_exact_floor_of_a_decimal_fraction(total, data):
    thousandths = data.draw(st.integers(1, 1000))
    exact = Fraction(thousandths, 1000) * total // 1
    assume(exact >= 1)
    calendar = UpdateCalendar(total, 1, float(thousandths / 1000), 1.0, 0.1)
    assert calendar.prune_step == exact


def test_step_counts_survive_float_error():
    assert 0.29 * 100 < 29
    assert UpdateCalendar(100, 1, 0.29, 0.29, 0.1).prune_step == 29
    assert UpdateCalendar(3, 1, 1 / 3, 2 / 3, 0.1).end_step == 2
    assert UpdateCalendar(100, 1, 0.299, 0.3, 0.1).prune_step == 29  # 29.9 is no float error


@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
    st.integers(0, 5),
    st.sampled_from(["exponential", "cubic", "constant"]),
)
def test_a_calendar_that_is_accepted_reaches_its_target(total, every, until, after, warmup, schedule):
    try:
        calendar = UpdateCalendar(total, every, until, after, 0.05, schedule, warmup)
    except ValueError:
        # Refused only where it must be: no update by T_prune outside the warm-up, or frozen before T_prune.
        tolerance = 1e-9
        assert (until * total - tolerance) // every <= warmup or after < until
        return
    assert calendar.is_update(calendar.reach_step) and calendar.steps()[-1] <= calendar.end_step
    assert calendar.reach_step <= calendar.prune_step <= calendar.end_step <= total
    assert calendar.density_at(calendar.reach_step) == 0.05 == calendar.density_at(total)
    assert calendar.density_at(calendar.reach_step - 1) > 0.05 or schedule == "constant"
    densities = [calendar.density_at(step) for step in range(total + 1)]
    assert densities == sorted(densities, reverse=True)
    indices = [calendar.update_index(step) for step in calendar.steps()]
    assert indices == list(range(1, len(indices) + 1))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"update_every": 91},
            "pruning.update_every: 91 steps is more than the 90 .*pruning.prune_until.*no update can reach",
        ),
        ({"prune_until": 0.001}, "more than the 0 .*no update can reach"),
        ({"prune_until": 0.97}, "pruning.prune_until: 0.97 of 100 steps is after pruning.freeze_after: 0.96"),
        ({"warmup_updates": 18}, "pruning.warmup_updates: 18 is not in .0, 17.; there are 18 updates"),
        ({"warmup_updates": -1}, "pruning.warmup_updates: -1"),
        ({"update_every": 0}, "pruning.update_every: 0 steps, must be at least 1"),
        ({"total_steps": 0}, "a run of 0 steps"),
        ({"prune_until": 0.0}, r"pruning.prune_until: 0.0 is not in \(0, 1\]"),
        ({"freeze_after": 1.1}, r"pruning.freeze_after: 1.1 is not in \(0, 1\]"),
        ({"density": 0.0}, r"pruning.density: 0.0 is not in \(0, 1\]"),
        ({"density": float("nan")}, "pruning.density: nan"),
        ({"schedule": "linear"}, "pruning.schedule: 'linear' is not one of exponential, cubic, constant"),
        (
            {"schedule": "alternating", "update_every": 6},
            "pruning.schedule: alternating needs at least 16 updates .* there are 15; pruning.update_every: 6 steps",
        ),
        ({"schedule": "alternating", "warmup_updates": 3}, "alternating needs at least 16 updates .* there are 15"),
    ],
)
def test_refusals_name_the_key_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        UpdateCalendar(**{**RUN, **changes})
    assert "\n" not in str(error.value)


def test_largest_interval_and_warmup_that_still_work():
    assert list(UpdateCalendar(**{**RUN, "update_every": 90}).steps()) == [90]
    assert UpdateCalendar(**RUN, warmup_updates=17).density_at(89) == 1.0
    assert UpdateCalendar(**{**RUN, "prune_until": 0.96}).reach_step == 95


def test_calendar_is_a_value():
    assert UpdateCalendar(**RUN) == UpdateCalendar(**RUN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        UpdateCalendar(**RUN).density = 0.2
