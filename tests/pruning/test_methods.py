import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rpg_ms.pruning import ALLOCATIONS, METHODS, Method, UpdateCalendar, update_topology


def test_rows():
    assert METHODS["rpg"] == Method(
        "exponential", "global", grow="gradient", alpha=0.3, rank_lambda=0.5, rank_delta=0.1
    )
    assert [name for name, method in METHODS.items() if not method.prunes] == ["dense"]
    assert [name for name, method in METHODS.items() if method.prunes and not method.updates] == ["one_shot", "static"]
    assert [name for name, method in METHODS.items() if method.rank_lambda] == ["rpg", "rpg_erk"]
    assert METHODS["rpg_erk"] == dataclasses.replace(
        METHODS["rpg"], schedule="cubic", allocation="erk", prune_until=0.6
    )


@pytest.mark.parametrize(
    "name, choices, numbers",
    [  # numbers: alpha, update_every, prune_until, freeze_after
        ("gmp", ("cubic", "global", "dense", None), (0, 100, 0.8, 0.9)),
        ("gmp_uniform", ("cubic", "uniform", "dense", None), (0, 100, 0.8, 0.9)),
        ("one_shot", ("constant", "global", "magnitude", None), (0, 100, 0.8, 0.9)),
        ("static", ("constant", "erk", "random", None), (0, 100, 0.8, 0.9)),
        ("set", ("constant", "erk", "random", "random"), (0.3, 0, 0.8, 1)),
        ("rigl", ("constant", "erk", "random", "gradient"), (0.3, 100, 0.75, 0.75)),
        ("granet", ("cubic", "global", "dense", "gradient"), (0.5, 100, 0.3, 1)),  # 30 of 100 epochs
        ("acdc", ("alternating", "global", "dense", None), (0, 100, 0.85, 0.9)),  # 85 of 100 epochs
        ("st3", ("cubic", "global", "dense", None), (0, 1, 0.5, 1)),
    ],
)
def test_published_choices(name, choices, numbers):
    row = METHODS[name]
    assert (row.schedule, row.allocation, row.start, row.grow) == choices
    assert (row.alpha, row.update_every, row.prune_until, row.freeze_after) == numbers
    assert row.drop_decay == ("constant" if name == "set" else "cosine") and row.soft_threshold == (name == "st3")
    assert row.rank_lambda == 0 and row.clip_norm == (3 if name == "st3" else None)


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"schedule": "linear"}, "pruning.schedule: 'linear' is not one of exponential, cubic"),
        ({"allocation": "layerwise"}, "pruning.allocation: 'layerwise' is not one of global, uniform"),
        ({"grow": "hope"}, "pruning.grow: 'hope' is not one of magnitude, saliency, gradient, random"),
        ({"schedule": None}, "both a density schedule and an allocation, or neither"),
        ({"alpha": 1.5}, r"pruning.alpha: 1.5 is not in \[0, 1\]"),
        ({"grow": None}, "pruning.alpha: 0.3 drops weights, but the method has nothing to grow by"),
        ({"start": "random"}, "pruning.start: 'random' masks .* pruning.schedule must be constant, not exponential"),
        ({"start": "ones"}, "pruning.start: 'ones' is not one of dense, random, magnitude"),
        ({"drop_decay": "slow"}, "pruning.drop_decay: 'slow' is not one of cosine, constant"),
        ({"soft_threshold": True}, "pruning.alpha: 0.3; pruned weights of a soft threshold"),
        ({"drop": "hope"}, "pruning.drop: 'hope' is not one of magnitude"),
        (
            {"soft_threshold": True, "alpha": 0.0, "drop": "saliency"},
            "pruning.drop: saliency; a soft threshold cuts by magnitude",
        ),
        ({"rank_lambda": -1.0}, "rank.lambda: -1.0 is negative"),
        ({"rank_delta": 0.0}, r"rank.delta: 0.0 is not in \(0, 1\]"),
        ({"clip_norm": 0.0}, "train.clip_norm: 0.0 is not above 0"),
    ],
)
def test_contradictions_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(METHODS["rpg"], **choices)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.prunes])
@pytest.mark.parametrize("allocation", sorted(ALLOCATIONS))
def test_a_run_of_updates_ends_at_exactly_the_target(name, allocation):
    method = dataclasses.replace(METHODS[name], allocation=allocation)
    calendar = UpdateCalendar(60, 3, 0.8, 0.95, density=0.2, schedule=method.schedule)
    rng = np.random.default_rng(0)
    shapes = (4, 1, 3, 3), (8, 4, 3, 3), (10, 8)  # 36 + 288 + 80 = 404 weights
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    masks = [np.ones(shape, bool) for shape in shapes]
    for step in range(1, calendar.total_steps + 1):
        weights = [w + mask * rng.standard_normal(w.shape, np.float32) for w, mask in zip(weights, masks)]
        if calendar.is_update(step):
            counts = ALLOCATIONS[method.allocation](weights, calendar.density_at(step))
            grads = None
            if method.alpha > 0:
                grads = [rng.standard_normal(w.shape, np.float32) for w in weights]
            fraction = calendar.drop_fraction(step, method.alpha)
            weights, masks = zip(*update_topology(weights, grads, counts, fraction))
            assert sum(mask.sum() for mask in masks) == round(calendar.density_at(step) * 404)
    assert sum(mask.sum() for mask in masks) == round(0.2 * 404)
    assert all(not w[~m].any() for w, m in zip(weights, masks))


def test_the_package_needs_no_mindspore():
    program = "import sys, rpg_ms.pruning; sys.exit('mindspore' in sys.modules)"
    root = Path(__file__).resolve().parent.parent.parent
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0
